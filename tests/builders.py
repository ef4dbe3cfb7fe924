"""Objects and runs for tests: builders over sensible defaults, so that a test says what matters."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from batchinference.model.batch import BatchState, Limits
from batchinference.model.metadata import API_VERSION
from batchinference.model.run import (
    Owner,
    Place,
    ProviderPin,
    Run,
    RunPhase,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from batchinference.model.staging import Staged

START = datetime(2026, 1, 1, tzinfo=UTC)
"""When everything in these objects began."""


def anytime() -> bool:
    """For a create call that can't come too late."""
    return True


def digest(text: str) -> str:
    """A hash that looks like one."""
    return hashlib.sha256(text.encode()).hexdigest()


# ---------------------------------------------------------------- manifests


@dataclass(frozen=True)
class JobBuilder:
    """A BatchInferenceJob; every method gives a changed copy, `build` the manifest."""

    name: str = "triage"
    namespace: str = "ml"
    spec: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    status: Mapping[str, Any] | None = None

    def with_spec(self, **members: Any) -> JobBuilder:
        """Members of the spec by their wire names."""
        return replace(self, spec={**self.spec, **members})

    def provider(self, name: str, kind: str = "InferenceProvider") -> JobBuilder:
        return self.with_spec(providerRef={"kind": kind, "name": name})

    def reading(self, uri: str) -> JobBuilder:
        return self.with_spec(input={"s3": {"uri": uri}})

    def inline(self, text: str) -> JobBuilder:
        return self.with_spec(input={"inline": text})

    def writing(self, uri: str) -> JobBuilder:
        return self.with_spec(output={"s3": {"uri": uri}})

    def run_id(self, value: str) -> JobBuilder:
        return self.with_spec(runID=value)

    def suspended(self, value: bool = True) -> JobBuilder:
        return self.with_spec(suspend=value)

    def cancelled(self) -> JobBuilder:
        return self.with_spec(desiredState="Cancelled")

    def orphaning(self) -> JobBuilder:
        return self.with_spec(deletionPolicy="Orphan")

    def tolerating(self, *, percent: int | None = None, records: int | None = None) -> JobBuilder:
        policy = {"maxFailedPercent": percent, "maxFailedRecords": records}
        return self.with_spec(successPolicy={k: v for k, v in policy.items() if v is not None})

    def budget(self, most: str, currency: str = "USD") -> JobBuilder:
        return self.with_spec(budget={"maxCost": most, "currency": currency})

    def attempts(self, number: int) -> JobBuilder:
        return self.with_spec(retryPolicy={"maxAttempts": number})

    def stamped(self, uid: str = "", generation: int = 1, version: str = "1") -> JobBuilder:
        """As an API server has it."""
        meta = {
            "uid": uid or digest(self.name)[:36],
            "generation": generation,
            "resourceVersion": version,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        }
        return replace(
            self,
            metadata={**meta, **self.metadata},
            status={"observedGeneration": -1} if self.status is None else self.status,
        )

    def finalized(self, *finalizers: str) -> JobBuilder:
        return replace(self, metadata={**self.metadata, "finalizers": list(finalizers)})

    def deleting(self, at: str = "2026-01-01T01:00:00Z") -> JobBuilder:
        return replace(self, metadata={**self.metadata, "deletionTimestamp": at})

    def with_status(self, status: Mapping[str, Any]) -> JobBuilder:
        return replace(self, status=status)

    def build(self) -> dict[str, Any]:
        """The manifest, free for the caller to change."""
        body: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": "BatchInferenceJob",
            "metadata": {"name": self.name, "namespace": self.namespace, **self.metadata},
            "spec": {
                "providerRef": {"kind": "InferenceProvider", "name": "openai"},
                "model": "gpt-4.1-mini",
                "operation": "ChatCompletions",
                "input": {"s3": {"uri": f"s3://data/{self.namespace}/in/{self.name}.jsonl"}},
                "output": {"s3": {"uri": f"s3://data/{self.namespace}/out/{self.name}/"}},
                **self.spec,
            },
        }
        if self.status is not None:
            body["status"] = dict(self.status)
        return copy.deepcopy(body)


def job(name: str = "triage", namespace: str = "ml") -> JobBuilder:
    """A job over defaults."""
    return JobBuilder(name=name, namespace=namespace)


_S3 = {
    "region": "us-east-1",
    "endpointURL": "http://127.0.0.1:9",
    "credentialsSecretRef": {"name": "aws"},
    "allowedPrefixes": ["s3://data/${namespace}/"],
}


def openai_provider(name: str = "openai", namespace: str = "ml", **spec: Any) -> dict[str, Any]:
    """An InferenceProvider that speaks OpenAI's batch API."""
    return _provider(
        name,
        namespace,
        {
            "openAI": {
                "baseURL": f"https://{name}.test/v1",
                "apiKeySecretRef": {"name": "openai", "key": "api-key"},
            },
            "storage": {"s3": _S3, "stagingURI": f"s3://staging/{namespace}/{name}/"},
            **spec,
        },
    )


def bedrock_provider(name: str = "bedrock", namespace: str = "ml", **spec: Any) -> dict[str, Any]:
    """An InferenceProvider for Bedrock."""
    return _provider(
        name,
        namespace,
        {
            "bedrock": {
                "region": "us-east-1",
                "serviceRoleARN": f"arn:aws:iam::123456789012:role/{name}",
                "credentialsSecretRef": {"name": "aws"},
            },
            "storage": {"s3": _S3, "stagingURI": f"s3://staging/{namespace}/{name}/"},
            **spec,
        },
    )


def _provider(name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "apiVersion": API_VERSION,
            "kind": "InferenceProvider",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
    )


# ---------------------------------------------------------------- journals


def limits(**members: Any) -> Limits:
    """Limits that are in nobody's way."""
    return Limits(
        **{
            "max_records_per_batch": 50_000,
            "max_bytes_per_batch": 100_000_000,
            "max_bytes_per_record": 1_000_000,
            **members,
        }
    )


def submission_of(
    ordinal: int = 1, state: SubmissionState = SubmissionState.ACCEPTED
) -> Submission:
    """A submission; accepted ones have a batch, ended ones an end."""
    accepted = state not in {SubmissionState.CLAIMED, SubmissionState.REFUSED}
    ended = state is SubmissionState.ENDED
    return Submission(
        ordinal=ordinal,
        state=state,
        request={"input_file_id": f"file-{ordinal}", "metadata": {"ordinal": str(ordinal)}},
        input_ref=f"file-{ordinal}",
        claimed_at=START + timedelta(minutes=ordinal),
        submit_by=START + timedelta(minutes=ordinal, seconds=60),
        batch_id=f"batch-{ordinal}" if accepted else "",
        accepted_at=START + timedelta(minutes=ordinal, seconds=1) if accepted else None,
        ended_at=START + timedelta(hours=1) if ended else None,
        batch_state=BatchState.COMPLETED if ended else None,
    )


def shard_of(
    index: int, state: ShardState = ShardState.QUEUED, rows: int = 100, **members: Any
) -> Shard:
    """A shard of consecutive rows."""
    return Shard(
        index=index,
        state=state,
        rows=rows,
        first_row=index * rows,
        last_row=(index + 1) * rows - 1,
        size=rows * 200,
        tokens=rows * 40,
        sha256=digest(f"shard {index}"),
        **members,
    )


def run_of(name: str = "triage", *, shards: int = 1, submitted: int = 0, **members: Any) -> Run:
    """A run of a job of that name, staged into shards, the first of them submitted."""
    key = digest(f"ml/{name}")[:40]
    made = tuple(
        shard_of(n, ShardState.SUBMITTED, submissions=(submission_of(1),))
        if n < submitted
        else shard_of(n)
        for n in range(shards)
    )
    return Run(
        **{
            "key": key,
            "tag": digest(f"tag {key}")[:20],
            "installation": "installation-1",
            "owner": Owner(namespace="ml", name=name, uid=digest(name)[:36]),
            "spec": job(name).build()["spec"],
            "provider": ProviderPin(
                kind="InferenceProvider",
                name="openai",
                namespace="ml",
                settings=openai_provider()["spec"],
                secrets_namespace="ml",
                account="openai/test",
            ),
            "limits": limits(),
            "output": Place(f"s3://data/ml/out/{name}/", claimed=bool(submitted)),
            "staging": Place(f"s3://staging/ml/openai/installation-1/{key}/"),
            "created_at": START,
            "phase": RunPhase.RUNNING if shards else RunPhase.ADMITTING,
            "staged": Staged(rows=shards * 100, bad=0, size=shards * 20_000, tokens=shards * 4_000)
            if shards
            else None,
            "shards": made,
            **members,
        }
    )

"""What a data scientist of one namespace does and sees, for tests on the real control plane."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from batchinference.core.keys import installation_id, run_tag
from batchinference.sandbox import Control
from stack import BUCKET, OPERATOR_NAMESPACE, Stack, wait_for

CHAT_MODEL = "gpt-4.1-mini"
BEDROCK_MODEL = "us.amazon.nova-lite-v1:0"
_JOB_NAME = re.compile(r"-([0-9a-f]{20})-s(\d+)-o(\d+)-[0-9a-f]+$")


def chat(custom_id: str, prompt: str, **body: Any) -> dict[str, Any]:
    """One canonical chat request."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": prompt}], **body},
    }


def jsonl(records: Iterable[Mapping[str, Any]]) -> bytes:
    """Records as a JSONL file."""
    return b"".join(json.dumps(r).encode() + b"\n" for r in records)


class Team:
    """One namespace with its jobs, its data in S3 and the sandbox behind it."""

    def __init__(self, stack: Stack, namespace: str) -> None:
        self.stack = stack
        self.namespace = namespace
        self.control = Control(stack.sandbox["url"])
        self.s3 = stack.s3()

    # ---------------------------------------------------------------- data

    def put(self, name: str, data: bytes) -> str:
        """An input object; returns its URI."""
        key = f"inputs/{self.namespace}/{name}"
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def read(self, uri: str) -> bytes:
        """An object whole."""
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        body: bytes = self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def keys(self, prefix: str) -> list[str]:
        """The URIs under a prefix."""
        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        return [f"s3://{bucket}/{o['Key']}" for page in pages for o in page.get("Contents", [])]

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of a job's results in S3."""
        uri = f"s3://{BUCKET}/results/{self.namespace}/{name}/manifest.json"
        found: dict[str, Any] = json.loads(self.read(uri))
        return found

    # ---------------------------------------------------------------- jobs

    def job(self, name: str, *, provider: str = "openai", **spec: Any) -> dict[str, Any]:
        """A job manifest: chat, S3 output, whatever `spec` says besides."""
        model = CHAT_MODEL if provider == "openai" else BEDROCK_MODEL
        return {
            "apiVersion": "batchinference.dev/v1alpha1",
            "kind": "BatchInferenceJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "providerRef": {"name": provider},
                "model": model,
                "operation": "ChatCompletions",
                "output": {"s3": {"uri": f"s3://{BUCKET}/results/{self.namespace}/{name}/"}},
                **spec,
            },
        }

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """`kubectl apply`."""
        self.stack.apply(*objects)

    def kubectl(self, *arguments: str, check: bool = True) -> str:
        """`kubectl` in this namespace; its standard output."""
        plane = self.stack.control_plane
        return plane.kubectl("--namespace", self.namespace, *arguments, check=check).stdout

    def get(self, name: str) -> dict[str, Any] | None:
        """The job object, or None."""
        return self.stack.get("batchinferencejob", name, self.namespace)

    def status(self, name: str) -> dict[str, Any]:
        """The job's status."""
        found = self.get(name) or {}
        status: dict[str, Any] = found.get("status", {})
        return status

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """One condition of a job, {} when it has none of that type."""
        listed = self.status(name).get("conditions", [])
        return next((c for c in listed if c["type"] == kind), {})

    def wait_condition(self, name: str, kind: str, timeout_s: float = 120) -> dict[str, Any]:
        """Wait until the condition is True; it."""

        def look() -> dict[str, Any] | None:
            found = self.condition(name, kind)
            return found if found.get("status") == "True" else None

        try:
            return wait_for(f"{kind} of {name}", look, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.explain(name)}") from error

    def wait_state(self, name: str, state: str, timeout_s: float = 120) -> None:
        """Wait until `status.state` is that."""
        try:
            wait_for(
                f"{state} of {name}", lambda: self.status(name).get("state") == state, timeout_s
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.explain(name)}") from error

    def explain(self, name: str) -> str:
        """What a person would look at."""
        status = json.dumps(self.status(name), indent=1)
        return f"{status}\n{self.stack.operators[0].log_tail()}"

    def delete_jobs(self) -> None:
        """Delete all jobs of the namespace and wait until they are gone."""
        self.kubectl("delete", "batchinferencejobs", "--all", "--timeout=120s")

    # ---------------------------------------------------------------- the provider's side

    def tag(self, name: str) -> str:
        """The run tag of a job."""
        return self.tag_of(self.status(name)["runKey"])

    def tag_of(self, run_key: str) -> str:
        """The run tag of a run that this installation was the first to claim."""
        system = self.stack.get("namespace", "kube-system", "")
        assert system is not None
        installation = installation_id(system["metadata"]["uid"], OPERATOR_NAMESPACE)
        return run_tag(installation, run_key)

    def accepted(self, tag: str) -> Counter[tuple[int, int]]:
        """How many batches the sandbox accepted, by (shard, ordinal) of a run."""
        return Counter(key for key, _ in self.submissions(tag))

    def submissions(self, tag: str) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """The batches that the sandbox accepted of a run."""
        state = self.control.state()
        for made in state["openai"]["submissions"]:
            metadata = made["metadata"] or {}
            if metadata.get("batchinference_run") == tag:
                shard = int(metadata["batchinference_shard"])
                yield (shard, int(metadata["batchinference_ordinal"])), made
        for made in state["bedrock"]["submissions"]:
            found = _JOB_NAME.search(made["jobName"])
            if found and found[1] == tag:
                yield (int(found[2]), int(found[3])), made

    def journal(self, name: str) -> dict[str, Any] | None:
        """The journal ConfigMap of a job."""
        key = self.status(name)["runKey"]
        return self.stack.get("configmap", f"run-{key}", OPERATOR_NAMESPACE)


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()

"""The provider port's suite, over both adapters (real SDKs, HTTP, the sandbox) and the fake."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from batchinference.adapters.bedrock import BedrockData, BedrockProvider
from batchinference.adapters.openai_batch import OpenAIBatchProvider, OpenAIData
from batchinference.adapters.s3 import S3Store
from batchinference.model.batch import RefusalKind, SubmissionID
from batchinference.model.run import Place, Run
from batchinference.ports import BatchProvider
from batchinference.sandbox import Sandbox
from builders import run_of
from conformance.provider import Bench, ProviderConformance
from fakes.provider import FakeProvider, Flavour
from fakes.server import Habits, ProviderServer
from fakes.world import World

BUCKET = "team-data"
STAGING = f"s3://{BUCKET}/ml/.staging/installation-1/"
AWS_SECRET = {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "anything"}
QUICK = {"in_progress_s": 0.05}


@pytest.fixture(scope="module")
def running() -> Iterator[Sandbox]:
    with Sandbox.start(s3_buckets=(BUCKET,)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(running: Sandbox) -> Iterator[Sandbox]:
    running.control.settings(
        openai={"validating_s": 0.0, "finalizing_s": 0.0, "cancelling_s": 0.0},
        bedrock={"submitted_s": 0.0, "validating_s": 0.0, "scheduled_s": 0.0, "stopping_s": 0.0},
    )
    running.control.hold()
    yield running
    running.control.reset()


def storage(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "s3": {
            "endpointURL": sandbox.s3_url,
            "region": "us-east-1",
            "credentialsSecretRef": {"name": "aws"},
        },
        "stagingURI": "s3://team-data/ml/.staging/",
    }


def lines(count: int, record: Mapping[str, Any]) -> bytes:
    return b"".join(
        json.dumps(
            {key: f"r{n:010d}" if value == "ID" else value for key, value in record.items()}
        ).encode()
        + b"\n"
        for n in range(count)
    )


MESSAGE = {"role": "user", "content": "Say hello"}


class OpenAIBench:
    unknown_id = "batch_nobody"

    def __init__(self, sandbox: Sandbox) -> None:
        self.settings = {
            "openAI": {
                "baseURL": sandbox.openai_base_url,
                "apiKeySecretRef": {"name": "openai", "key": "api-key"},
            },
            "storage": storage(sandbox),
        }
        self._sandbox = sandbox
        self._store = S3Store(self.settings, {"storage": AWS_SECRET})
        self._data = OpenAIData(self.settings, self._secrets("sandbox-key"))
        self.provider: BatchProvider = self._client("sandbox-key")
        self.run = pinned(run_of(), self.settings)

    def _secrets(self, key: str) -> dict[str, dict[str, str]]:
        return {"apiKey": {"value": key}}

    def _client(self, key: str) -> OpenAIBatchProvider:
        return OpenAIBatchProvider(
            self.settings, self._secrets(key), identity="InferenceProvider/ml/openai"
        )

    async def upload(self, submission: SubmissionID) -> str:
        body = {"model": "gpt-4.1-mini", "messages": [MESSAGE]}
        record = {
            "custom_id": "ID",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body,
        }
        uri = f"{self.run.staging.uri}shards/{submission.shard}.jsonl"
        self._store.put(uri, lines(3, record))
        return self._data.upload(self._store, uri, self.run, submission)

    async def lose_next_answer(self) -> None:
        self._sandbox.control.fault("openai", "lose_response", "batches.create")

    async def refuse_next(self) -> RefusalKind:
        self._sandbox.control.fault("openai", "error", "batches.create", status=429)
        return RefusalKind.THROTTLED

    async def finish(self) -> None:
        self._sandbox.control.release()

    async def locked_out(self) -> BatchProvider:
        return self._client("not-a-key")

    async def close(self) -> None:
        await self.provider.close()
        self._data.close()


class BedrockBench:
    unknown_id = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/abcdefghijkl"

    def __init__(self, sandbox: Sandbox) -> None:
        self.settings = {
            "bedrock": {
                "region": "us-east-1",
                "serviceRoleARN": "arn:aws:iam::123456789012:role/BedrockBatch",
                "endpointURL": sandbox.bedrock_url,
                "credentialsSecretRef": {"name": "aws"},
            },
            "storage": storage(sandbox),
        }
        self._sandbox = sandbox
        self._store = S3Store(self.settings, {"storage": AWS_SECRET})
        self._data = BedrockData(self._store, model="amazon.nova-lite-v1:0")
        self.provider: BatchProvider = self._client("sandbox")
        run = pinned(run_of(), self.settings)
        self.run = replace(run, spec={**run.spec, "model": "amazon.nova-lite-v1:0"})
        self._store.delete_prefix(self.run.staging.uri)

    def _client(self, key: str) -> BedrockProvider:
        secret = {**AWS_SECRET, "AWS_ACCESS_KEY_ID": key}
        return BedrockProvider(self.settings, {"bedrock": secret}, self._store)

    async def upload(self, submission: SubmissionID) -> str:
        turn = {"role": "user", "content": [{"text": "Say hello"}]}
        uri = f"{self.run.staging.uri}shards/{submission.shard}.jsonl"
        record = {"recordId": "ID", "modelInput": {"messages": [turn]}}
        self._store.put(uri, lines(100, record))
        return self._data.upload(self._store, uri, self.run, submission)

    async def lose_next_answer(self) -> None:
        self._sandbox.control.fault("bedrock", "lose_response", "CreateModelInvocationJob")

    async def refuse_next(self) -> RefusalKind:
        self._sandbox.control.fault("bedrock", "quota", "CreateModelInvocationJob")
        return RefusalKind.QUOTA

    async def finish(self) -> None:
        self._sandbox.control.release()

    async def locked_out(self) -> BatchProvider:
        return self._client("not-a-key")

    async def close(self) -> None:
        await self.provider.close()


class SetClock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        self.time += timedelta(milliseconds=1)
        return self.time

    def elapsed(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


class FakeBench:
    unknown_id = "batch-nobody"

    def __init__(self, flavour: Flavour) -> None:
        replay_s = 300.0 if flavour is Flavour.BEDROCK else 0.0
        self._server = ProviderServer("account", Habits(page_size=3, replay_s=replay_s))
        self._clock = SetClock()
        self._world = World(clock=self._clock)
        self._fake = FakeProvider(self._server, self._world, flavour=flavour)
        self._flavour = flavour
        self.provider: BatchProvider = self._fake
        self.run = run_of()
        self._quiet = self._fake.faults

    async def upload(self, submission: SubmissionID) -> str:
        data = lines(3, {"custom_id": "ID", "body": {"messages": [MESSAGE]}})
        if self._flavour is Flavour.OPENAI:
            return self._server.upload(data, self._clock.now())
        place = f"{self.run.staging.uri}input/{submission.shard}/{submission.ordinal}/"
        return self._server.store_at(place, data, self._clock.now())

    async def lose_next_answer(self) -> None:
        self._fake.faults = replace(self._quiet, lost=1.0)

    async def refuse_next(self) -> RefusalKind:
        self._fake.faults = replace(self._quiet, quota=1.0)
        return RefusalKind.QUOTA

    async def finish(self) -> None:
        self._clock.time += timedelta(hours=1)

    async def locked_out(self) -> BatchProvider:
        server = ProviderServer("account")
        server.locked_out = True
        return FakeProvider(server, self._world, flavour=self._flavour)

    async def close(self) -> None:
        await self.provider.close()


def pinned(run: Run, settings: Mapping[str, Any]) -> Run:
    return replace(
        run,
        provider=replace(run.provider, settings=settings),
        staging=Place(f"{STAGING}{run.key}/"),
    )


class TestOpenAI(ProviderConformance):
    @pytest.fixture
    async def bench(self, sandbox: Sandbox) -> AsyncIterator[Bench]:
        bench = OpenAIBench(sandbox)
        yield bench
        await bench.close()


class TestBedrock(ProviderConformance):
    @pytest.fixture
    async def bench(self, sandbox: Sandbox) -> AsyncIterator[Bench]:
        bench = BedrockBench(sandbox)
        yield bench
        await bench.close()


class TestFake(ProviderConformance):
    @pytest.fixture(params=list(Flavour))
    async def bench(self, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
        bench = FakeBench(request.param)
        yield bench
        await bench.close()

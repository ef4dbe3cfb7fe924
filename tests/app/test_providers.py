"""Which adapter serves what, and with whose credentials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchinference.adapters.bedrock import BedrockData, BedrockProvider
from batchinference.adapters.kube.config_map_place import ConfigMapPlace
from batchinference.adapters.kube.config_map_store import ConfigMapStore
from batchinference.adapters.openai_batch import OpenAIBatchProvider, OpenAIData
from batchinference.adapters.s3 import S3Store
from batchinference.app.bench import Connections, ConnectionsCache, workbench
from batchinference.app.metered import MeteredProvider
from batchinference.app.providers import Providers
from batchinference.errors import InvalidObject, Retry, Stalled
from batchinference.model.batch import OutcomeUnknown
from batchinference.model.run import Place, Run
from batchinference.model.work import Task, TaskKind
from batchinference.ports import ResolvedProvider
from batchinference.tasks.places import PrefixPlace
from batchinference.tasks.workbench import PART_BYTES
from builders import anytime, bedrock_provider, openai_provider, run_of

KUBE = {"host": "http://127.0.0.1:9"}
SECRETS = {
    "apiKey": {"value": "sk-1"},
    "bedrock": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
    "storage": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
}


class Told:
    """Metrics that remember."""

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, str]]] = []

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        self.said.append((name, labels))

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.said.append((name, labels))

    def observe(self, name: str, value: float, **labels: str) -> None:
        self.said.append((name, labels))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def factory(told: Told) -> Providers:
    return Providers(KUBE, 30.0, told)


@pytest.fixture
def cache() -> Iterator[ConnectionsCache]:
    made = ConnectionsCache()
    yield made
    for connections in made._kept.values():
        connections.close()


def resolved(provider: dict[str, Any], kind: str = "InferenceProvider") -> ResolvedProvider:
    return ResolvedProvider(provider["spec"], SECRETS, f"{kind}/ml/p")


async def test_each_kind_of_provider_has_its_adapter(factory: Providers) -> None:
    openai = factory.connect(resolved(openai_provider()))
    bedrock = factory.connect(resolved(bedrock_provider()))
    assert isinstance(openai, MeteredProvider)
    assert isinstance(openai._inner, OpenAIBatchProvider)
    assert isinstance(bedrock, MeteredProvider)
    assert isinstance(bedrock._inner, BedrockProvider)
    assert openai.traits is openai._inner.traits
    await openai.close()
    await bedrock.close()
    spec = openai_provider()["spec"]
    assert factory.default_limits(spec, "m", "ChatCompletions").max_records_per_batch == 50_000
    spec = bedrock_provider()["spec"]
    assert factory.default_limits(spec, "m", "ChatCompletions").min_records_per_batch == 100


def test_a_provider_without_batches_is_refused_by_name(factory: Providers) -> None:
    settings = {"langChain": {"modelProvider": "openai"}}
    with pytest.raises(Stalled, match="langChain") as refused:
        factory.connect(ResolvedProvider(settings, {}))
    assert refused.value.reason == "NotImplemented"
    with pytest.raises(Stalled):
        factory.default_limits(settings, "m", "ChatCompletions")


def without_secrets() -> dict[str, Any]:
    provider = bedrock_provider()
    del provider["spec"]["bedrock"]["credentialsSecretRef"]
    del provider["spec"]["storage"]["s3"]["credentialsSecretRef"]
    return provider


@pytest.mark.parametrize("identity", ["InferenceProvider/ml/p", ""])
def test_only_a_cluster_provider_may_use_the_operators_own_identity(
    factory: Providers, identity: str
) -> None:
    settings = without_secrets()["spec"]
    with pytest.raises(Stalled):
        factory.connect(ResolvedProvider(settings, {}, identity))
    assert factory.connect(ResolvedProvider(settings, {}, "ClusterInferenceProvider//p"))


def test_and_so_it_is_in_a_worker(cache: ConnectionsCache) -> None:
    settings = without_secrets()["spec"]
    run = run_of()
    with pytest.raises(Stalled):
        cache.of(run, settings, {}, KUBE)
    of_cluster = replace(run.provider, kind="ClusterInferenceProvider")
    assert cache.of(replace(run, provider=of_cluster), settings, {}, KUBE).s3 is not None


def connect(cache: ConnectionsCache, run: Run, provider: dict[str, Any]) -> Connections:
    return cache.of(run, provider["spec"], SECRETS, KUBE)


def test_a_run_in_object_storage_works_there(cache: ConnectionsCache, tmp_path: Path) -> None:
    run = run_of()
    connections = connect(cache, run, openai_provider())
    bench = workbench(Task(TaskKind.STAGE, run), connections, tmp_path)
    assert isinstance(bench.staging, S3Store)
    assert isinstance(bench.output, PrefixPlace)
    assert isinstance(bench.data, OpenAIData)
    assert bench.part_bytes == PART_BYTES


def test_a_tiny_run_works_in_config_maps(cache: ConnectionsCache, tmp_path: Path) -> None:
    provider = openai_provider()
    del provider["spec"]["storage"]
    run = replace(
        run_of(),
        spec={"input": {}, "output": {"configMap": {"name": "answers"}}},
        output=Place("configmap://ml/answers"),
        staging=Place("configmap://bio/staging-1/"),
    )
    connections = connect(cache, run, provider)
    bench = workbench(Task(TaskKind.STAGE, run, inline="{}\n"), connections, tmp_path)
    assert isinstance(bench.staging, ConfigMapStore)
    assert isinstance(bench.output, ConfigMapPlace)
    assert bench.part_bytes < 900 * 1024
    (found,) = bench.source.objects()
    assert b"".join(bench.source.read(found)) == b"{}\n"


def test_storage_that_is_not_named_is_told(cache: ConnectionsCache, tmp_path: Path) -> None:
    provider = openai_provider()
    del provider["spec"]["storage"]
    run = run_of()
    with pytest.raises(Stalled) as missing:
        workbench(Task(TaskKind.STAGE, run), connect(cache, run, provider), tmp_path)
    assert missing.value.reason == "StorageMissing"


def test_bedrock_reads_its_results_from_staging(cache: ConnectionsCache) -> None:
    run = run_of()
    assert isinstance(connect(cache, run, bedrock_provider()).data(run), BedrockData)


def test_warm_connections_are_used_again_and_changed_secrets_make_new_ones(
    cache: ConnectionsCache,
) -> None:
    run, spec = run_of(), openai_provider()["spec"]
    first = cache.of(run, spec, SECRETS, KUBE)
    assert cache.of(run_of("another"), spec, SECRETS, KUBE) is first
    rotated = {**SECRETS, "apiKey": {"value": "sk-2"}}
    assert cache.of(run, spec, rotated, KUBE) is not first
    for number in range(20):
        cache.of(run, {**spec, "quotaGroup": str(number)}, SECRETS, KUBE)
    assert len(cache._kept) == 8


def test_connections_that_are_none_are_refused(cache: ConnectionsCache) -> None:
    with pytest.raises(InvalidObject, match=r"connections\.kube\.host"):
        cache.of(run_of(), openai_provider()["spec"], SECRETS, {})


async def test_calls_are_counted_by_what_came_of_them(told: Told) -> None:
    class Inner:
        async def check(self) -> Any:
            raise Retry("ProviderUnavailable", "down")

        async def get(self, batch_id: str) -> Any:
            return None

        async def submit(self, request: Any, may_send: Any) -> Any:
            return OutcomeUnknown("no answer")

    metered = MeteredProvider(Inner(), "openAI", told)  # type: ignore[arg-type]
    with pytest.raises(Retry):
        await metered.check()
    await metered.get("b")
    await metered.submit({}, anytime)
    codes = [
        (labels["operation"], labels["code"])
        for name, labels in told.said
        if name == "provider_requests_total"
    ]
    assert codes == [("check", "ProviderUnavailable"), ("get", "ok"), ("submit", "OutcomeUnknown")]

"""Who has a place: what a run does not use is for the others at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from batchinference.core.effects import StartTask
from batchinference.core.outcomes import Outcome
from batchinference.model.run import Cancel, CancelWhy, RunPhase, ShardState
from batchinference.model.work import TaskKind
from batchinference.ports import ObjectRef
from batchinference.runtime.accounts import Accounts
from batchinference.runtime.circuits import Circuits
from batchinference.runtime.clients import Clients
from batchinference.runtime.credentials import Credentials
from batchinference.runtime.entry import Entry
from batchinference.runtime.settings import RuntimeSettings
from builders import START, job, limits, openai_provider, run_of
from fakes.clock import SeededRandomness, VirtualClock
from fakes.kube import FakeKube
from fakes.provider import FakeFactory
from fakes.world import World
from runtime.house import House, play

ACCOUNT = "openai/test"
PROVIDER = ObjectRef("InferenceProvider", "ml", "openai")


class NoMetrics:
    """Metrics that nobody reads."""

    def count(self, name: str, value: float = 1, **labels: str) -> None: ...
    def gauge(self, name: str, value: float, **labels: str) -> None: ...
    def observe(self, name: str, value: float, **labels: str) -> None: ...


class Office:
    """The places of one account, and the runs that ask for them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.looked: list[str] = []
        clock = VirtualClock()
        credentials = Credentials(FakeKube(), clock, 30.0)
        self.accounts = Accounts(
            self.entries,
            Clients(FakeFactory({}, World()), credentials, 30.0),
            self._told,
            self.looked.append,
            clock,
            SeededRandomness(1),
            RuntimeSettings(),
            NoMetrics(),
            Circuits(clock, SeededRandomness(1), RuntimeSettings(), NoMetrics()),
        )

    def _told(self, key: str, outcome: Outcome) -> None:
        raise AssertionError(f"nothing is at the provider: {key}: {outcome}")

    def run(self, name: str, shards: int = 1, *, uploads: int = 1, **limited: int) -> Entry:
        """A run of which all shards ask."""
        run = run_of(name, shards=shards, limits=limits(max_concurrent_uploads=uploads, **limited))
        entry = Entry(run.key, run=run, asking=frozenset(range(shards)))
        self.entries[run.key] = entry
        return entry

    async def granted(self, *entries: Entry) -> list[set[int]]:
        """The places that these have, once all that changed is known."""
        for key in self.entries:
            self.accounts.changed(ACCOUNT, key)
        for _ in range(3):
            await asyncio.sleep(0)
        return [set(self.accounts.granted(ACCOUNT, e.key)) for e in entries]


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    made = Office()
    yield made
    assert made.accounts.alive()
    await made.accounts.close()


def uploading(entry: Entry, shard: int = 0) -> None:
    entry.inflight.add(StartTask(TaskKind.UPLOAD, shard, 1).id)


def uploaded(entry: Entry, shard: int = 0) -> None:
    entry.inflight.clear()
    entry.notes = entry.notes.with_upload((shard, 1), "file-1")


def changed(entry: Entry, **members: Any) -> None:
    assert entry.run is not None
    entry.run = replace(entry.run, **members)


async def test_a_place_is_given_and_its_run_looked_at(office: Office) -> None:
    first = office.run("a")
    assert await office.granted(first) == [{0}]
    assert office.looked == [first.key]


async def test_a_place_that_its_run_does_not_use_goes_to_another(office: Office) -> None:
    stuck, other = office.run("a"), office.run("b")
    assert await office.granted(stuck, other) == [{0}, set()]
    stuck.asking = frozenset()
    assert await office.granted(stuck, other) == [set(), {0}]


LOST = [
    ("asking", frozenset(), "it is blocked, held back or waits after a failure"),
    ("newer_schema", True, "its journal is a newer operator's"),
    ("run", None, "nobody knows how it stands"),
]


@pytest.mark.parametrize(("member", "value", "reason"), LOST)
async def test_what_takes_the_places_of_a_run_away(
    office: Office, member: str, value: Any, reason: str
) -> None:
    stuck, other = office.run("a"), office.run("b")
    await office.granted()
    setattr(stuck, member, value)
    assert await office.granted(stuck, other) == [set(), {0}], reason


GONE = [
    ({"phase": RunPhase.FINISHING}, "nothing of it goes any more"),
    ({"cancel": Cancel(CancelWhy.DESIRED, START)}, "it is being cancelled"),
]


@pytest.mark.parametrize(("members", "reason"), GONE)
async def test_a_run_that_has_moved_on_has_no_places(
    office: Office, members: dict[str, Any], reason: str
) -> None:
    over, other = office.run("a"), office.run("b")
    await office.granted()
    changed(over, **members)
    assert await office.granted(over, other) == [set(), {0}], reason


async def test_an_upload_counts_as_long_as_it_is_under_way_whoever_has_the_place(
    office: Office,
) -> None:
    suspended, other = office.run("a"), office.run("b")
    await office.granted()
    uploading(suspended)
    suspended.asking = frozenset()
    assert await office.granted(suspended, other) == [set(), set()]
    uploaded(suspended)
    assert await office.granted(suspended, other) == [set(), {0}]


async def test_an_input_that_is_uploaded_leaves_room_for_the_next_one(office: Office) -> None:
    first, second = office.run("a"), office.run("b")
    await office.granted()
    uploading(first)
    assert await office.granted(first, second) == [{0}, set()]
    uploaded(first)
    assert await office.granted(first, second) == [{0}, {0}]


async def test_a_place_counts_as_a_batch_before_it_is_one(office: Office) -> None:
    first = office.run("a", uploads=9, max_active_batches=1)
    second = office.run("b", uploads=9, max_active_batches=1)
    assert await office.granted(first, second) == [{0}, set()]
    uploaded(first)
    assert await office.granted(first, second) == [{0}, set()]
    assert first.run is not None
    changed(first, shards=(replace(first.run.shards[0], state=ShardState.CLAIMED),))
    assert await office.granted(first, second) == [set(), set()]


async def test_a_provider_that_takes_few_uploads_does_not_hold_up_the_others(
    office: Office,
) -> None:
    few, many = office.run("a", 3, uploads=1), office.run("b", 3, uploads=4)
    assert await office.granted(few, many) == [{0}, {0, 1, 2}]


async def test_held_shards_are_not_counted_as_queued(office: Office) -> None:
    office.run("a", 2)
    office.run("b", 3).held = True
    await office.granted()
    numbers = office.accounts.numbers(ACCOUNT)
    assert (numbers.active_batches, numbers.queued_shards) == (0, 2)
    assert office.accounts.numbers("another").queued_shards == 0


def test_a_run_whose_provider_has_changed_holds_up_nobody() -> None:
    async def scene(house: House) -> None:
        house.kube.edit_spec(PROVIDER, limits={"maxActiveBatches": 1})
        await house.operator()
        house.give(job("busy"))
        await house.until(lambda: house.state("busy") == "Running")
        for name in ("stuck", "stuck-too", "stuck-as-well"):
            house.give(job(name))
            await house.until(lambda name=name: house.state(name) == "Queued")
        before = openai_provider()["spec"]["storage"]
        s3 = {**before["s3"], "endpointURL": "http://127.0.0.1:8"}
        house.kube.edit_spec(PROVIDER, storage={**before, "s3": s3})
        stalled = {"type": "Stalled", "status": "True", "reason": "ProviderChanged"}
        await house.until(lambda: stalled.items() <= house.condition("Stalled", "stuck").items())
        house.give(job("new"))
        await house.until(lambda: house.state("new") == "Succeeded")
        assert house.state("stuck") == "Stalled"
        house.kube.edit_spec(PROVIDER, storage=before)
        await house.until(lambda: house.state("stuck-as-well") == "Succeeded")

    play(scene)


GROUPS = [
    ("InferenceProvider", "ml", "shared", "group/ml/shared"),
    ("InferenceProvider", "qa", "shared", "group/qa/shared"),
    ("ClusterInferenceProvider", "", "shared", "group/shared"),
    ("InferenceProvider", "qa", "", "openai"),
]


@pytest.mark.parametrize(("kind", "namespace", "group", "account"), GROUPS)
def test_a_namespace_cannot_join_the_quota_group_of_another(
    kind: str, namespace: str, group: str, account: str
) -> None:
    async def scene(house: House) -> None:
        body = openai_provider(namespace=namespace, quotaGroup=group)
        ref = ObjectRef(kind, namespace, "grouped")
        body["kind"], body["metadata"]["name"] = kind, ref.name
        where = namespace or "batch-inference-system"
        house.kube.secrets[where, "openai"] = house.kube.secrets["ml", "openai"]
        house.kube.secrets[where, "aws"] = house.kube.secrets["ml", "aws"]
        house.kube.create(body)
        await house.operator()
        await house.until(lambda: house.kube.find(kind, namespace, ref.name)["status"])
        assert house.kube.find(kind, namespace, ref.name)["status"]["account"] == account

    play(scene)

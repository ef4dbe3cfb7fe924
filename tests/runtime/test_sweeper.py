"""Objects that went without the watch showing it (protocol 7.6), and the brake."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from batchinference.core.begin import key_of
from batchinference.core.decisions import GONE
from batchinference.model.job import KIND as JOB_KIND
from batchinference.model.job import parse_job
from batchinference.model.run import Owner
from batchinference.ports import ObjectRef
from batchinference.runtime.entry import Entry
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.store import Store
from batchinference.runtime.sweeper import Sweeper
from builders import job, run_of
from fakes.clock import VirtualClock
from fakes.journals import FakeJournals
from fakes.kube import FakeKube


@dataclass
class Gauges:
    """Metrics, kept."""

    held: dict[str, float] = field(default_factory=dict)

    def count(self, name: str, value: float = 1, **labels: str) -> None: ...
    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.held[name] = value

    def observe(self, name: str, value: float, **labels: str) -> None: ...


class House:
    """A sweeper over so many live runs."""

    def __init__(self, runs: int) -> None:
        self.kube = FakeKube()
        self.journals = FakeJournals()
        self.store = Store()
        self.entries: dict[str, Entry] = {}
        self.looked: list[str] = []
        self.metrics = Gauges()
        for n in range(runs):
            self.begin(f"job-{n}")
        self.sweeper = Sweeper(
            self.store,
            self.entries,
            self.journals,
            self.kube,
            self.looked.append,
            VirtualClock(),
            RuntimeSettings(),
            self.metrics,
        )

    def begin(self, name: str) -> None:
        body = self.kube.create(job(name).build())
        key = key_of(parse_job(body))
        owner = Owner("ml", name, body["metadata"]["uid"])
        run = run_of(name, submitted=1, key=key, owner=owner)
        self.entries[key] = Entry(key, run=run)
        self.show(body)

    def show(self, body: dict[str, Any], event: str | None = None) -> None:
        self.store.observe(JOB_KIND, event, body)

    def delete_unseen(self, *numbers: int) -> None:
        for n in numbers:
            self.kube.delete(ObjectRef(JOB_KIND, "ml", f"job-{n}"))

    def list_again(self) -> None:
        for _ in range(2):  # the first showing of an object may still be of the listing before
            for body in self.kube.jobs():
                self.show(body)

    def uid(self, number: int) -> str:
        return next(
            e.run.owner.uid
            for e in self.entries.values()
            if e.run and e.run.owner.name == f"job-{number}"
        )

    def vouch(self, number: int, uid: str) -> None:
        """Annotate the journal of a run."""
        key = next(
            k for k, e in self.entries.items() if e.run and e.run.owner.name == f"job-{number}"
        )
        self.journals.notes[key] = {GONE: uid}

    def believed_gone(self) -> list[str]:
        owners = [e.run.owner for e in self.entries.values() if e.run]
        return [o.name for o in owners if self.store.was_deleted(o.uid)]


async def test_an_object_that_a_new_listing_does_not_show_is_gone() -> None:
    house = House(5)
    house.delete_unseen(2)
    await house.sweeper.sweep()
    assert house.believed_gone() == [], "no new listing: nothing is suspected"
    house.list_again()
    await house.sweeper.sweep()
    assert house.believed_gone() == ["job-2"]
    assert house.looked


async def test_a_live_run_whose_object_was_never_seen_in_this_life_is_looked_for() -> None:
    house = House(2)
    house.store.__init__()  # type: ignore[misc]
    house.delete_unseen(0)
    await house.sweeper.sweep()
    assert house.believed_gone() == ["job-0"]
    assert len(house.store.jobs_of(next(reversed(house.entries)))) == 1, "the other one is found"


async def test_an_object_of_the_same_name_with_another_uid_is_another_object() -> None:
    house = House(1)
    house.delete_unseen(0)
    house.kube.create(job("job-0").build())
    house.store.__init__()  # type: ignore[misc]
    await house.sweeper.sweep()
    assert house.believed_gone() == ["job-0"]
    assert len(house.store.jobs_of(next(iter(house.entries)))) == 1


async def test_too_many_missing_objects_are_not_believed() -> None:
    house = House(6)
    house.delete_unseen(0, 1, 2, 3)
    house.list_again()
    await house.sweeper.sweep()
    assert house.believed_gone() == []
    assert house.metrics.held["sweeper_stopped"] == 1.0


async def test_three_missing_objects_are_believed_and_a_fourth_soon_after_is_not() -> None:
    house = House(6)
    house.delete_unseen(0, 1, 2)
    house.list_again()
    await house.sweeper.sweep()
    assert len(house.believed_gone()) == 3
    assert house.metrics.held["sweeper_stopped"] == 0.0
    house.delete_unseen(3)
    house.list_again()
    await house.sweeper.sweep()
    assert len(house.believed_gone()) == 3
    assert house.metrics.held["sweeper_stopped"] == 1.0


async def test_missing_objects_that_somebody_vouches_for_are_believed_and_no_others() -> None:
    house = House(9)
    house.delete_unseen(0, 1, 2, 3, 4, 5)
    house.list_again()
    await house.sweeper.sweep()
    assert house.metrics.held["sweeper_stopped"] == 1.0
    house.vouch(0, house.uid(0))
    house.vouch(1, house.uid(2))
    await house.sweeper.sweep()
    assert house.metrics.held["sweeper_stopped"] == 1.0, "five are still too many"
    assert house.believed_gone() == ["job-0"]
    for n in (1, 2, 3):
        house.vouch(n, house.uid(n))
    await house.sweeper.sweep()
    assert house.metrics.held["sweeper_stopped"] == 0.0, "the two others are few enough"
    assert len(house.believed_gone()) == 6


async def test_objects_that_were_seen_being_deleted_do_not_count() -> None:
    house = House(6)
    for n in range(5):
        ref = ObjectRef(JOB_KIND, "ml", f"job-{n}")
        await house.kube.set_finalizer(ref, present=True)
        house.kube.delete(ref)
        body = house.kube.find(JOB_KIND, "ml", f"job-{n}")
        assert body is not None
        house.show(body, "MODIFIED")
        house.kube.strip_finalizers(ref)
    house.list_again()
    await house.sweeper.sweep()
    assert len(house.believed_gone()) == 5
    assert house.metrics.held["sweeper_stopped"] == 0.0


async def test_nothing_is_believed_gone_while_its_namespace_is_not_there() -> None:
    house = House(2)
    house.delete_unseen(0)
    house.list_again()
    del house.kube.namespaces["ml"]
    await house.sweeper.sweep()
    assert house.believed_gone() == []


async def test_a_missed_change_is_taken_in() -> None:
    house = House(1)
    ref = ObjectRef(JOB_KIND, "ml", "job-0")
    other = house.kube.create(job("other").build())
    house.show(other)
    house.show(other)  # a new listing has begun, and has not come to job-0
    house.kube.edit_spec(ref, suspend=True)
    await house.sweeper.sweep()
    key = next(iter(house.entries))
    steering = house.store.steering(key)
    assert steering is not None
    assert steering.spec.suspend
    assert key in house.looked


class TestStoreAgainstLateNews:
    def test_an_older_version_of_an_object_changes_nothing(self) -> None:
        store = Store()
        old = job().stamped(version="9").build()
        new = job().suspended().stamped(generation=2, version="10").build()
        store.observe(JOB_KIND, "MODIFIED", new)
        assert store.observe(JOB_KIND, "MODIFIED", old) == set()
        steering = store.steering(key_of(parse_job(new)))
        assert steering is not None
        assert steering.spec.suspend

    def test_the_late_answer_to_our_own_write_does_not_set_the_version_back(self) -> None:
        store = Store()
        body = job().stamped(version="12").build()
        store.observe(JOB_KIND, "ADDED", body)
        store.wrote_status(body["metadata"]["uid"], {"state": "Pending"}, "11")
        steering = store.steering(key_of(parse_job(body)))
        assert steering is not None
        assert steering.metadata.resource_version == "12"

    def test_an_answer_that_the_deletion_has_overtaken_brings_nothing_back(self) -> None:
        store = Store()
        body = job().stamped().build()
        store.observe(JOB_KIND, "ADDED", body)
        store.observe(JOB_KIND, "DELETED", body)
        assert store.observe(JOB_KIND, "MODIFIED", body) == set()
        assert store.steering(key_of(parse_job(body))) is None

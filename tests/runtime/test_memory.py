"""What an operator keeps in memory: what goes on, and nothing of what is over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchinference.ports import ObjectRef
from batchinference.runtime.store import FINALIZER
from builders import JobBuilder, job
from fakes.server import Habits
from runtime.house import House, Life, play, ref

JOBS = [f"job-{n}" for n in range(12)]
PROVIDER = ObjectRef("InferenceProvider", "ml", "openai")
QUICK = Habits(validate_s=1, work_s=5)


def kept(life: Life) -> dict[str, int]:
    """Every table of the store and the entries, by how much is in it."""
    tables: dict[str, Any] = {"entries": life.operator._entries, **vars(life.operator._store)}
    sized = {name: len(held) for name, held in tables.items() if hasattr(held, "__len__")}
    return {name: size for name, size in sized.items() if size and name != "providers"}


async def run_all(house: House) -> None:
    for name in JOBS:
        house.give(job(name))
    await house.until(lambda: all(house.state(name) == "Succeeded" for name in JOBS))
    await house.pass_time(120)


def test_nothing_is_kept_of_runs_whose_objects_are_gone() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        await run_all(house)
        assert "entries" not in kept(life), "the objects say all there is to say"
        for name in JOBS:
            house.kube.delete(ref(name))
        await house.pass_time(120)
        assert kept(life) == {}
        assert len(house.journals.stored) == len(JOBS), "the receipts stay"

    play(scene, habits=QUICK)


def test_nothing_is_kept_of_jobs_that_were_deleted_on_their_way() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        for name in JOBS:
            house.give(job(name).orphaning())
        house.give(job("held").suspended())
        house.kube.create(job("broken").with_spec(model=None).build())
        await house.until(lambda: all(house.state(name) == "Running" for name in JOBS))
        for name in [*JOBS, "held", "broken"]:
            house.kube.delete(ref(name))
        await house.until(lambda: not house.kube.jobs())
        await house.pass_time(600)
        assert kept(life) == {}

    play(scene, parked_s=60.0)


def test_a_run_of_which_nothing_is_kept_is_found_when_its_object_comes_back() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        await run_all(house)
        done = house.status("job-3")["completionTime"]
        house.kube.delete(ref("job-3"))
        await house.pass_time(60)
        house.kube.create(job("job-3").build())
        await house.until(lambda: house.state("job-3") == "Succeeded")
        assert house.condition("Submitted", "job-3")["reason"] == "AdoptedPreviousRun"
        assert house.status("job-3")["completionTime"] == done
        assert len(house.server.batches) == len(JOBS)
        await house.pass_time(60)
        assert "entries" not in kept(life)

    play(scene, habits=QUICK)


def test_a_twin_of_a_job_that_is_over_is_told_so() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        first = house.give(twin("one"))
        await house.until(lambda: house.state("one") == "Succeeded")
        await house.pass_time(120)
        house.kube.create(twin("two").build())
        await house.until(lambda: house.state("two") == "Succeeded")
        assert house.status("two")["runKey"] == house.status("one")["runKey"]
        assert first["metadata"]["generateName"] == "triage-"

    play(scene, habits=QUICK)


def twin(name: str) -> JobBuilder:
    """One of several objects that were generated from the same manifest."""
    made = job("triage").run_id("once").build()["spec"]
    return replace(job(name), metadata={"generateName": "triage-"}, spec=made)


def test_a_restart_reads_no_receipts_of_jobs_that_say_all() -> None:
    async def scene(house: House) -> None:
        await house.die(await settled(house))
        house.journals.reads = 0
        written = (house.journals.writes, dict(house.kube.status_writes))
        life = await house.operator()
        await house.pass_time(60)
        assert house.journals.reads == 0
        assert (house.journals.writes, house.kube.status_writes) == written
        assert "entries" not in kept(life)
        house.kube.edit_spec(ref("job-3"), priority=7)
        await house.until(lambda: house.status("job-3")["observedGeneration"] == 2)
        assert house.state("job-3") == "Succeeded"
        await house.pass_time(60)
        assert "entries" not in kept(life)

    play(scene, habits=QUICK)


def test_a_finished_job_that_is_still_held_is_let_go_after_a_restart() -> None:
    async def scene(house: House) -> None:
        await house.die(await settled(house))
        await house.kube.set_finalizer(ref("job-3"), present=True)
        house.kube.delete(ref("job-3"))
        await house.operator()
        await house.until(lambda: house.job("job-3") is None)
        assert FINALIZER not in (house.job("job-4") or {})["metadata"]["finalizers"]

    play(scene, habits=QUICK)


def test_what_is_over_is_counted_as_long_as_its_object_is_there() -> None:
    async def scene(house: House) -> None:
        life = await settled(house)
        house.give(job("live"))
        await house.until(lambda: house.state("live") == "Running")
        house.kube.delete(ref("job-0"))
        await house.pass_time(20)
        jobs = {k[1]: v for k, v in life.metrics.gauges.items() if k[0] == "jobs" and v}
        assert jobs == {("openAI", "Running"): 1.0, ("", "Succeeded"): len(JOBS) - 1.0}
        assert life.metrics.counters["jobs_finished_total"] == len(JOBS)

    play(scene, habits=Habits(validate_s=1, work_s=60))


def test_queued_shards_are_counted_until_the_last_one_has_gone() -> None:
    async def scene(house: House) -> None:
        house.kube.edit_spec(PROVIDER, limits={"maxActiveBatches": 1})
        life = await house.operator()
        for name in ("first", "next", "last"):
            house.give(job(name))
        await house.until(lambda: queued_shards(life) == [2.0])
        house.kube.edit_spec(ref("last"), suspend=True)
        await house.until(lambda: queued_shards(life) == [1.0])
        assert house.state("first") == "Running", "the suspended one is not counted"
        for name in ("first", "next", "last"):
            house.kube.delete(ref(name))
        await house.until(lambda: not house.kube.jobs())
        await house.pass_time(60)
        assert queued_shards(life) == [0.0]

    play(scene, habits=Habits(validate_s=1, work_s=60, cancel_s=0.1))


def queued_shards(life: Life) -> list[float]:
    """The gauge, of each account."""
    return [v for k, v in life.metrics.gauges.items() if k[0] == "queued_shards"]


async def settled(house: House) -> Life:
    """An operator that has brought all jobs to their end."""
    life = await house.operator()
    await run_all(house)
    return life

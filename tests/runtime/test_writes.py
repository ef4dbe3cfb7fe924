"""What is written on the way of one small job, by verb and kind, and what may wait to be written."""

from __future__ import annotations

from collections import Counter

import pytest

from batchinference.core.begin import key_of
from batchinference.model.job import parse_job
from batchinference.model.run import RunPhase
from batchinference.model.work import FaultKind, TaskFault, TaskKind
from builders import job
from fakes.server import Habits
from runtime.house import House, play, ref

SMALL = Habits(validate_s=0.2, work_s=1)


def writes(house: House) -> Counter[str]:
    """Everything written so far."""
    return Counter(
        {
            "create journal": len(house.journals.stored),
            "update journal": house.journals.writes - len(house.journals.stored),
            "refused journal": house.journals.refused,
            "patch status": sum(house.kube.status_writes.values()),
            "refused status": house.kube.refused_status_writes,
            "patch finalizer": house.kube.finalizer_writes,
            "create event": len(house.recorder.events),
        }
    )


def test_a_small_job_is_written_ten_times_until_its_end_is_shown() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job("first"))
        await house.until(lambda: house.state("first") == "Succeeded")
        await house.pass_time(30)
        before, at_end = writes(house), Counter[str]()
        house.kube.on_change = lambda body: (
            at_end.update(writes(house))
            if body["status"].get("state") == "Succeeded" and not at_end
            else None
        )
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        assert at_end - before == {
            "create journal": 1,
            "update journal": 5,  # claimed, accepted, ended, collected, verdict
            "patch status": 2,  # running, succeeded
            "patch finalizer": 1,
            "create event": 1,  # running
        }
        await house.pass_time(30)
        after = writes(house) - at_end
        assert after == {"update journal": 1, "patch finalizer": 1, "create event": 1}

    play(scene, habits=SMALL, poll_s=1.0, progress_s=600.0, latency_s=0.02)


def test_steps_before_the_first_claim_are_written_after_a_while() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        life.refused[TaskKind.UPLOAD] = TaskFault(FaultKind.RETRY, "StagingUnavailable", "503")
        key = key_of(parse_job(house.give(job())))
        await house.until(lambda: house.phase(key) is RunPhase.ADMITTING)
        await house.pass_time(3)
        assert house.phase(key) is RunPhase.ADMITTING
        assert house.state() == "Queued", "the status is not held up"
        await house.until(lambda: house.phase(key) is RunPhase.RUNNING, 10)
        staged = [t for t in life.runner.started if t.endswith("/Stage")]
        assert len(staged) == 1, "a failed upload does not undo what is not written"

    play(scene)


def test_a_crash_before_the_first_claim_loses_nothing() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        life.refused[TaskKind.UPLOAD] = TaskFault(FaultKind.RETRY, "StagingUnavailable", "503")
        key = key_of(parse_job(house.give(job())))
        await house.until(lambda: any("/Upload" in task for task in life.runner.started))
        assert house.phase(key) is RunPhase.ADMITTING
        await house.die(life)
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")
        assert len(house.server.batches) == 1

    play(scene)


def test_a_crash_before_the_first_claim_leaves_nothing_behind() -> None:
    """The journal knows of no shard yet, and the object is deleted before anybody looks again."""

    async def scene(house: House) -> None:
        life = await house.operator()
        house.world.crash = lambda name, when: (
            (name, when) == ("journal.write", "before")
            and any("/Upload" in task for task in life.runner.started)
        )
        key = key_of(parse_job(house.give(job())))
        await life.process.died.wait()
        house.world.crash = None
        run = house.journals.peek(key)
        assert run is not None
        assert run.shards == ()
        assert house.server.files_of(run)
        await house.die(life)
        house.kube.strip_finalizers(ref())
        house.kube.delete(ref())
        await house.operator()
        await house.until(lambda: house.phase(key) is RunPhase.ENDED)
        assert house.server.files_of(run) == []
        assert not house.workers.leftovers(run)
        assert f"{run.output.uri}_run.json" not in house.workers.store.objects

    play(scene)


def test_two_operators_that_are_both_ahead_submit_once() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.operator()
        key = key_of(parse_job(house.give(job())))
        await house.until(lambda: house.state() == "Succeeded")
        assert len(house.server.batches) == 1
        await house.until(lambda: house.phase(key) is RunPhase.ENDED)

    play(scene, latency_s=0.05)


def test_a_wish_is_written_at_once_although_nothing_was_claimed() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        life.refused[TaskKind.ADMIT] = TaskFault(FaultKind.RETRY, "OutputUnavailable", "503")
        key = key_of(parse_job(house.give(job())))
        await house.until(lambda: house.phase(key) is RunPhase.ADMITTING)
        house.kube.edit_spec(ref(), deletionPolicy="Orphan")
        await house.pass_time(0.5)
        run = house.journals.peek(key)
        assert run is not None
        assert run.spec["deletionPolicy"] == "Orphan"

    play(scene)


def test_passing_states_are_not_shown_but_lasting_ones_are() -> None:
    shown: list[str] = []

    async def scene(house: House) -> None:
        life = await house.operator()
        house.kube.on_change = lambda body: shown.append(body["status"].get("state", ""))
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        life.refused[TaskKind.FINISH] = TaskFault(FaultKind.RETRY, "OutputUnavailable", "503")
        await house.until(lambda: house.state() == "Collecting")
        life.refused.clear()
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)
    told = [state for n, state in enumerate(shown) if state and state not in shown[:n]]
    assert told == ["Running", "Collecting", "Succeeded"]


@pytest.mark.parametrize("latency_s", [0.0, 0.5, 2.0])
def test_a_restart_writes_nothing_while_nothing_has_changed(latency_s: float) -> None:
    """Neither of a job that the provider works on, nor of one that waits for a place there."""

    async def scene(house: House) -> None:
        house.limit({"maxActiveBatches": 3})
        life = await house.operator()
        names = [f"job-{n}" for n in range(5)]
        for name in names:
            house.give(job(name))
        expected = ["Queued", "Queued", "Running", "Running", "Running"]
        await house.until(lambda: sorted(map(house.state, names)) == expected)
        await house.pass_time(200)
        made = [one for name in names for one in house.status(name).get("submissions", ())]
        assert {one["state"] for one in made} == {"InProgress"}, "which no journal holds"
        for _ in range(2):
            await house.die(life)
            before = writes(house)
            life = await house.operator()
            await house.pass_time(40)
            assert writes(house) - before == Counter()

    play(scene, latency_s=latency_s, habits=Habits(validate_s=10, work_s=36_000))


def test_a_poll_that_fails_writes_nothing_of_the_runs_that_wait_for_it() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(100)
        before = house.kube.status_writes["triage"]
        house.faults.flaky = 1.0
        await house.pass_time(25)
        house.faults.flaky = 0.0
        await house.pass_time(100)
        assert house.kube.status_writes["triage"] == before

    play(scene, habits=Habits(validate_s=10, work_s=36_000))

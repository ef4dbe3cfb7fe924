"""Two operators at work, one of which knows only what was true before (protocol 2.4).

The first one's watch is silent and an effect of it fails until the second one has moved on: when
it tries again, its memory is stale and no write of its own would tell it so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest

from batchinference.core.begin import key_of
from batchinference.errors import Retry
from batchinference.model.job import parse_job
from batchinference.model.run import ProviderPin, RunPhase, ShardState, SubmissionState
from batchinference.model.staging import InputSnapshot
from batchinference.model.work import Admitted, FaultKind, Task, TaskFault, TaskKind
from batchinference.runtime.clients import Clients, Connected
from builders import job
from fakes.provider import FakeProvider
from fakes.world import current_process
from invariants import object_step_problems
from runtime.house import HABITS, House, Life, play, ref

REFUSED = TaskFault(FaultKind.RETRY, "StagingUnavailable", "503")
CLAIM = "s3://data/ml/out/triage/_run.json"


def started(life: Life, kind: TaskKind) -> int:
    return sum(f"/{kind.value}" in task for task in life.runner.started)


def test_a_claim_is_not_released_that_a_later_life_of_the_run_holds() -> None:
    async def scene(house: House) -> None:
        old = await house.operator()
        old.refused[TaskKind.RELEASE] = REFUSED
        body = house.give(job(), records=0)  # ends without a submission: its claim is released
        key = key_of(parse_job(body))
        await house.until(lambda: house.state() == "Failed")
        house.kube.break_watches(old.process)
        await house.operator()
        await house.until(lambda: house.phase(key) is RunPhase.ENDED)
        house.kube.delete(ref())
        house.give(job())
        await house.until(lambda: house.phase(key) is RunPhase.RUNNING)
        tried = started(old, TaskKind.RELEASE)
        old.refused.clear()
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(60)
        assert CLAIM in house.workers.store.objects
        assert started(old, TaskKind.RELEASE) == tried, "it has read what stands there"
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


@pytest.mark.parametrize("kind", [TaskKind.CLEAN, TaskKind.FINISH, TaskKind.COLLECT])
def test_a_step_that_another_has_made_is_not_made_again(kind: TaskKind) -> None:
    async def scene(house: House) -> None:
        old = await house.operator()
        old.refused[kind] = REFUSED
        body = house.give(job())
        await house.until(lambda: started(old, kind) > 0)
        house.kube.break_watches(old.process)
        await house.operator()
        await house.until(lambda: house.phase(key_of(parse_job(body))) is RunPhase.ENDED)
        tried = started(old, kind)
        old.refused.clear()
        await house.pass_time(120)
        assert started(old, kind) == tried

    play(scene)


def test_the_input_of_a_batch_that_another_has_found_is_not_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one is about to fence an ordinal of which the second one finds the batch."""
    awake = False
    deleted: list[str] = []
    really: Callable[..., Any] = FakeProvider.delete_input

    async def delete_input(self: FakeProvider, input_ref: str) -> None:
        process = current_process()
        assert process is not None
        if process.name == "op1" and not awake:
            raise Retry("ProviderUnavailable", "503")
        deleted.append(f"{process.name} {input_ref}")
        await really(self, input_ref)

    monkeypatch.setattr(FakeProvider, "delete_input", delete_input)

    async def scene(house: House) -> None:
        nonlocal awake
        house.faults.lost = 1.0
        old = await house.operator()
        body = house.give(job())
        key = key_of(parse_job(body))
        await house.until(lambda: house.server.batches)
        (batch,) = house.server.batches.values()
        batch.visible_at = house.clock.now() + timedelta(hours=1)
        await house.until(lambda: house.shard(key).state is ShardState.FENCING)
        await house.pass_time(1)
        house.kube.break_watches(old.process)
        found = house.shard(key).with_last(
            state=SubmissionState.ACCEPTED, batch_id=batch.id, accepted_at=house.clock.now()
        )
        run, version = await house.journals.get(key) or (None, "")
        assert run is not None
        found = replace(found, state=ShardState.SUBMITTED)
        await house.journals.write(run.with_shard(found), version)
        awake = True
        await house.until(lambda: house.state() == "Succeeded")
        assert deleted == []

    play(scene, habits=replace(HABITS, list_lag_s=7200))


def test_an_input_that_another_has_deleted_does_not_mean_another_account(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one asks for an ordinal that the second one has given up behind a fence."""
    awake = True
    really: Callable[..., Any] = FakeProvider.page

    async def page(self: FakeProvider, *args: Any) -> Any:
        process = current_process()
        assert process is not None
        if process.name == "op1" and not awake:
            raise Retry("ProviderUnavailable", "503")
        return await really(self, *args)

    monkeypatch.setattr(FakeProvider, "page", page)

    async def scene(house: House) -> None:
        nonlocal awake
        house.faults.dropped = 1.0
        old = await house.operator()
        key = key_of(parse_job(house.give(job())))
        await house.until(lambda: house.server.calls.get("create"))
        await house.until(lambda: house.shard(key).state is ShardState.UNKNOWN)
        awake = False
        house.kube.break_watches(old.process)
        new = await house.operator()
        await house.until(lambda: house.shard(key).submissions[0].state is SubmissionState.FENCED)
        new.process.kill()
        house.faults.dropped = 0.0
        awake = True
        house.kube.mend_watches()
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_step_that_waited_long_for_credentials_is_decided_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first one is about to claim the output place of a run that the second one ends."""

    async def scene(house: House) -> None:
        old = await house.operator()
        of_run, waits = Clients.of_run, [house.settings.call_timeout_s * 3]

        async def slowly(self: Clients, pin: ProviderPin) -> Connected:
            task = asyncio.current_task()
            if waits and task is not None and task.get_name().startswith("task:Admit"):
                await asyncio.sleep(waits.pop())
            return await of_run(self, pin)

        monkeypatch.setattr(Clients, "of_run", slowly)
        body = house.give(job())
        await house.until(lambda: not waits)
        house.kube.break_watches(old.process)
        house.kube.edit_spec(ref(), desiredState="Cancelled")
        await house.operator()
        await house.until(lambda: house.phase(key_of(parse_job(body))) is RunPhase.ENDED)
        await house.pass_time(house.settings.call_timeout_s * 3)
        assert started(old, TaskKind.ADMIT) == 0
        assert CLAIM not in house.workers.store.objects

    play(scene)


def test_an_operator_that_was_stopped_does_not_deny_an_end_that_another_wrote() -> None:
    async def scene(house: House) -> None:
        old = await house.operator()
        body = house.give(job())
        key = key_of(parse_job(body))

        def stops(name: str, when: str) -> bool:
            run = house.journals.peek(key)
            sent = run is not None and [s.state for s in run.shards] == [ShardState.SUBMITTED]
            return sent and (name, when) == ("journal.write", "after")

        house.world.freeze = stops
        await house.until(lambda: old.process.is_frozen)
        house.world.freeze = None
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")
        old.process.thaw()
        await house.pass_time(60)
        steps = pairwise(house.kube.history)
        assert [p for before, after in steps for p in object_step_problems(before, after)] == []

    play(scene)


def test_an_operator_that_was_stopped_makes_no_journal_anew_of_a_run_that_is_over() -> None:
    """Its journal was lost while that one remembered a job that had not begun."""

    async def scene(house: House) -> None:
        old = await house.operator()
        held = dict(house.kube.secrets)
        house.kube.secrets.clear()
        body = house.give(job())
        key = key_of(parse_job(body))
        house.world.freeze = lambda name, when: (
            name == "kube.status" and when == "after" and house.state() != ""
        )
        await house.until(lambda: old.process.is_frozen)
        house.world.freeze = None
        house.kube.break_watches(old.process)
        house.kube.secrets.update(held)
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")
        await house.pass_time(60)
        house.journals.lose(key)
        old.process.thaw()
        await house.pass_time(300)
        assert house.phase(key) is None
        assert house.state() == "Succeeded"

    play(scene)


def test_what_came_of_an_older_life_of_the_run_is_not_true_of_the_next() -> None:
    """The output place was claimed for the one, and its end released it."""

    async def scene(house: House) -> None:
        life = await house.operator()
        life.refused[TaskKind.UPLOAD] = REFUSED
        body = house.give(job())
        await house.until(lambda: house.phase(key_of(parse_job(body))) is RunPhase.RUNNING)
        older = house.run(body)
        assert older is not None
        house.kube.delete(ref())
        await house.until(lambda: house.phase(older.key) is RunPhase.ENDED)
        uri = body["spec"]["input"]["s3"]["uri"]
        given = house.workers.store.objects.pop(uri)
        house.kube.create(job().build())
        await house.until(lambda: house.phase(older.key) is RunPhase.ADMITTING)
        life.refused.clear()
        admitted = Admitted(InputSnapshot(uri, 1, 10, "print"))
        life.operator._effects.done(Task(TaskKind.ADMIT, older), admitted)
        await house.pass_time(60)
        assert house.phase(older.key) is RunPhase.ADMITTING
        house.workers.store.objects[uri] = given
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_journal_that_another_left_without_its_object_is_found() -> None:
    """That one was stopped while it began the run, made the journal as it woke up, and died."""

    async def scene(house: House) -> None:
        old = await house.operator()
        house.world.freeze = lambda name, when: (name, when) == ("journal.create", "before")
        body = house.give(job())
        await house.until(lambda: old.process.is_frozen)
        house.world.freeze = None
        house.kube.break_watches(old.process)
        house.kube.delete(ref())
        await house.operator()
        await house.pass_time(5)
        old.process.thaw()
        await house.until(lambda: house.run(body))
        await house.die(old)
        await house.until(lambda: house.phase(key_of(parse_job(body))) is RunPhase.ENDED)
        assert house.server.batches == {}

    play(scene)


def test_a_run_that_another_operator_took_up_and_left_is_followed_without_an_object() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job())
        key = key_of(parse_job(body))
        await house.until(lambda: house.state() == "Running")
        house.kube.delete(ref())
        await house.until(lambda: house.phase(key) is RunPhase.PARKED)
        found = await house.journals.get(key)
        assert found is not None
        taken_up = replace(found[0], phase=RunPhase.RUNNING, verdict=None, results=None)
        await house.journals.write(taken_up, found[1])
        await house.until(lambda: house.phase(key) is RunPhase.PARKED)

    play(scene, habits=replace(HABITS, work_s=300))


def test_a_journal_that_was_only_annotated_goes_on_as_it_is() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job())
        key = key_of(parse_job(body))
        await house.until(lambda: house.state() == "Running")
        house.journals.annotate(key, note="seen")
        await house.until(lambda: house.state() == "Succeeded")
        assert len(house.server.batches) == 1

    play(scene, habits=replace(HABITS, work_s=300))

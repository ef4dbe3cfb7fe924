"""A failure that should pass and does not is told, and goes on being retried."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.draft import Decision
from batchinference.core.effects import ASKING, CancelBatch, StartTask
from batchinference.core.notes import Notes
from batchinference.core.outcomes import ProviderAsked, ShardStaged, TaskDone
from batchinference.model.run import Cancel, CancelWhy, Run, RunPhase, ShardState
from batchinference.model.staging import Cursor
from batchinference.model.work import Checkpoint, FaultKind, TaskFault, TaskKind
from builders import run_of, shard_of
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    failing,
    fold_all,
    in_state,
    observed,
    of_kind,
    owned,
    run_with,
)

STAGING = owned(run_of(shards=0, phase=RunPhase.STAGING))
DIED = TaskFault(FaultKind.RETRY, "WorkerLost", "The worker process was ended by SIGKILL")


def after_failures(
    run: Run, kind: TaskKind, times: int, fault: TaskFault = DIED
) -> tuple[Notes, Decision]:
    """The notes and the decision after so many failures in a row, when it may be tried again."""
    shard, ordinal = (0, 1) if kind is TaskKind.COLLECT else (None, None)
    notes = Notes()
    for _ in range(times):
        run, notes = fold_all(run, TaskDone(kind, shard, ordinal, fault), notes=notes)
    [failure] = notes.failures.values()
    return notes, decided(run, observed(now=failure.retry_at), notes)


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (STAGING, TaskKind.STAGE),
        (run_with(in_state(ShardState.ENDED)), TaskKind.COLLECT),
        (
            replace(run_with(in_state(ShardState.COLLECTED)), phase=RunPhase.FINISHING),
            TaskKind.FINISH,
        ),
    ],
)
def test_a_task_that_keeps_failing_is_told_and_tried_again(run: Run, kind: TaskKind) -> None:
    _, early = after_failures(run, kind, TIMING.told_after - 1)
    assert early.problem is None, "it may pass by itself"
    for times in (TIMING.told_after, 100):
        notes, decision = after_failures(run, kind, times)
        assert decision.problem is not None
        assert (decision.problem.reason, decision.problem.message) == (DIED.reason, DIED.message)
        assert not decision.problem.has_grace, "at once, not after a grace"
        assert [e.kind for e in of_kind(decision, StartTask)] == [kind], "it is tried again"
        [failure] = notes.failures.values()
        assert after(0) < failure.retry_at <= after(TIMING.retry_most_s * 1.25)


def test_it_is_told_after_about_a_minute_and_between_the_attempts_too() -> None:
    waits = []
    notes = Notes()
    for _ in range(TIMING.told_after - 1):
        notes = failing("task:Stage", notes=notes)
        waits.append((notes.failures["task:Stage"].retry_at - NOW).total_seconds())
    assert 30 < sum(waits) < 120
    notes = failing("task:Stage", notes=notes)
    under_way = replace(notes, inflight=frozenset({"task:Stage"}))
    for world in (notes, under_way):
        decision = decided(STAGING, observed(now=after(1)), world)
        assert decision.problem is not None


def test_it_heals_by_itself() -> None:
    notes, _ = after_failures(STAGING, TaskKind.STAGE, 20)
    cursor = Cursor(0, 10, 10, 10, 0, "print")
    checkpoint = ShardStaged(Checkpoint(shard_of(0, ShardState.STAGED), cursor))
    run, notes = fold_all(STAGING, checkpoint, notes=notes)
    assert notes.failures == {}, "a pass that gets on does not fail in a row"
    assert decided(run, notes=notes).problem is None


def test_waiting_is_no_failure_however_often() -> None:
    full = TaskFault(FaultKind.WAITING, "DiskFull", "no room")
    _, decision = after_failures(STAGING, TaskKind.STAGE, 100, full)
    assert decision.problem is None


def test_a_provider_that_is_away_is_told_by_its_own_object() -> None:
    run = replace(run_with(in_state(ShardState.SUBMITTED)), cancel=Cancel(CancelWhy.DESIRED, NOW))
    notes = Notes()
    for _ in range(100):
        notes = failing(CancelBatch(0, "batch-0-1").id, notes=notes)
    early = decided(run, observed(now=after(TIMING.unreachable_s - 1)), notes)
    assert early.problem is None


CALLS = [
    (run_with(in_state(ShardState.UNKNOWN)), "look:0:1"),
    (run_with(in_state(ShardState.FENCING)), "fence:0:1"),
    (
        replace(run_with(in_state(ShardState.SUBMITTED)), cancel=Cancel(CancelWhy.DESIRED, NOW)),
        "cancel:batch-0-1",
    ),
    (run_with(in_state(ShardState.SUBMITTED)), ASKING),
]


@pytest.mark.parametrize(("run", "effect_id"), CALLS)
def test_a_provider_that_stays_away_for_an_hour_is_told(run: Run, effect_id: str) -> None:
    notes = failing(effect_id)
    early = decided(run, notes=notes)
    assert early.problem is None
    assert early.wake_at is not None
    assert early.wake_at <= after(TIMING.unreachable_s), "it is looked at again by itself"
    late = decided(run, observed(now=after(TIMING.unreachable_s)), notes)
    assert late.problem is not None
    assert late.problem.reason == "ProviderUnavailable"


def test_rejected_credentials_are_told_while_everything_is_at_the_provider() -> None:
    run = run_with(in_state(ShardState.SUBMITTED), in_state(ShardState.COLLECTED, 1))
    fault = TaskFault(FaultKind.STALLED, "CredentialsRejected", "the key is not valid")
    _, notes = fold_all(run, ProviderAsked(fault))
    problem = decided(run, notes=notes).problem
    assert problem is not None
    assert (problem.reason, problem.has_grace) == ("CredentialsRejected", True)
    run, notes = fold_all(run, ProviderAsked(None), notes=notes)
    assert decided(run, notes=notes).problem is None


def test_nothing_is_told_of_asking_once_nothing_is_at_the_provider() -> None:
    run = run_with(in_state(ShardState.COLLECTED))
    stalled = failing(ASKING, FaultKind.STALLED)
    assert decided(run, notes=stalled).problem is None

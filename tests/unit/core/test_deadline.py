"""The deadline: when it is met, what it cancels, and that it is final."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.effects import Announce, CancelBatch, SetFinalizer
from batchinference.core.outcomes import TaskDone
from batchinference.model.metadata import PAUSED
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Earlier,
    Ending,
    Results,
    RunPhase,
    ShardState,
    Verdict,
)
from batchinference.model.status import Reason
from batchinference.model.work import Finished, TaskKind
from builders import job, run_of
from unit.core.given import NOW, after, decided, fold, in_state, observed, of_kind, owned, run_with

S = ShardState
LIMITED = job().with_spec(activeDeadlineSeconds=3600)
LATE = Cancel(CancelWhy.DEADLINE, NOW)


def running(*shards, ago=3600.0, **members):
    return run_with(*(shards or (in_state(S.SUBMITTED),)), start_time=after(-ago), **members)


def why(decision):
    return decision.run.cancel and decision.run.cancel.why


def test_a_run_that_is_not_over_in_time_is_cancelled_at_the_provider() -> None:
    decision = decided(running(in_state(S.SUBMITTED), in_state(S.QUEUED, 1)), observed(LIMITED))
    assert decision.run.cancel == LATE
    assert of_kind(decision, CancelBatch) == [CancelBatch(0, "batch-0-1")]
    assert [s.state for s in decision.run.shards] == [S.SUBMITTED, S.DROPPED]
    (told,) = of_kind(decision, Announce)
    assert told.reason == Reason.CANCELLING
    assert "3600 s" in told.message


def test_before_that_it_wakes_by_itself() -> None:
    decision = decided(running(ago=3590), observed(LIMITED))
    assert why(decision) is None
    assert decision.wake_at == after(10)


@pytest.mark.parametrize(
    ("run", "world", "reason"),
    [
        (running(ago=9e6), observed(), "there is none"),
        (run_with(in_state(S.SUBMITTED)), observed(LIMITED), "it has not begun"),
        (running(phase=RunPhase.FINISHING), observed(LIMITED), "all answers are there"),
        (running(), observed(LIMITED, gone=True, is_deleted=False), "no object is seen to say so"),
        (
            running(earlier=Earlier(asking=True, expected=True)),
            observed(LIMITED),
            "its batches are looked for",
        ),
        (
            running(earlier=Earlier(asking=False, strange=("b",))),
            observed(LIMITED),
            "and not known",
        ),
        (running(parked_s=60), observed(LIMITED), "it was parked for a minute"),
        (
            running(),
            observed(replace(LIMITED, metadata={"annotations": {PAUSED: "true"}})),
            "it is paused",
        ),
    ],
)
def test_when_it_does_not_count(run, world, reason) -> None:
    assert why(decided(run, world)) is None, reason


def test_raising_it_in_time_helps_and_afterwards_does_not() -> None:
    longer = job().with_spec(activeDeadlineSeconds=7200)
    assert why(decided(running(), observed(longer))) is None
    decided_late = running(cancel=LATE)
    assert why(decided(decided_late, observed(longer))) is CancelWhy.DEADLINE


@pytest.mark.parametrize("suspended", [False, True])
def test_it_counts_while_suspended_as_what_is_at_the_provider_goes_on(suspended) -> None:
    builder = LIMITED.suspended(suspended)
    assert why(decided(running(), observed(builder))) is CancelWhy.DEADLINE


def test_it_is_final_whatever_comes_after_it() -> None:
    run = running(cancel=LATE)
    for world in (
        observed(LIMITED.cancelled()),
        observed(LIMITED, deleting=True),
        observed(LIMITED, gone=True),
        observed(LIMITED.orphaning(), deleting=True),
    ):
        assert why(decided(run, world)) is CancelWhy.DEADLINE


def test_what_was_cancelled_before_stays_what_it_was() -> None:
    for earlier in (CancelWhy.DESIRED, CancelWhy.DELETED):
        run = running(cancel=Cancel(earlier, after(-60)))
        assert why(decided(run, observed(LIMITED.cancelled()))) is earlier


def test_a_deletion_at_the_same_moment_wins_since_it_can_be_taken_up_again() -> None:
    assert why(decided(running(), observed(LIMITED, deleting=True))) is CancelWhy.DELETED


def test_a_deleted_object_is_let_go_when_the_cancel_was_accepted() -> None:
    taken = in_state(S.SUBMITTED).with_last(cancel_accepted_at=NOW)
    decision = decided(running(taken, cancel=LATE), observed(LIMITED, deleting=True))
    assert of_kind(decision, SetFinalizer) == [SetFinalizer(present=False)]


@pytest.mark.parametrize("phase", [RunPhase.ADMITTING, RunPhase.STAGING])
def test_with_nothing_submitted_it_ends_at_once(phase) -> None:
    run = owned(replace(run_of(phase=phase, shards=0), start_time=after(-3601)))
    decision = decided(run, observed(LIMITED))
    assert decision.run.phase is RunPhase.CLEANING
    assert (decision.run.verdict.ending, decision.run.verdict.reason) == (
        Ending.FAILED,
        Reason.DEADLINE_EXCEEDED,
    )
    assert "3601 s" in decision.run.verdict.message


def finished(run, completed=1, failed=2):
    done = Finished(Results(completed=completed, failed=failed, manifest_uri="s3://b/m.json"))
    return fold(replace(run, phase=RunPhase.FINISHING), TaskDone(TaskKind.FINISH, None, None, done))


def test_its_end_is_a_failure_with_results_and_is_never_parked() -> None:
    dropped = replace(in_state(S.DROPPED), rows=2)
    run = finished(running(dropped, cancel=LATE))
    assert run.phase is RunPhase.CLEANING
    assert (run.verdict.ending, run.verdict.reason) == (Ending.FAILED, Reason.DEADLINE_EXCEEDED)
    assert "1 of 3 records were answered" in run.verdict.message
    assert run.results.completed == 1


def test_one_that_kept_no_record_from_its_answer_is_no_failure() -> None:
    whole = replace(in_state(S.COLLECTED), collected=Collected(answered=3))
    run = finished(running(whole, cancel=LATE), completed=3, failed=0)
    assert run.verdict.ending is Ending.SUCCEEDED


def test_time_that_a_run_was_parked_does_not_count() -> None:
    parked = running(
        in_state(S.DROPPED),
        ago=7000,
        phase=RunPhase.PARKED,
        cancel=Cancel(CancelWhy.DELETED, after(-6000)),
        verdict=Verdict(Ending.CANCELLED, Reason.CANCELLED, "m"),
        completion_time=after(-5000),
    )
    back = decided(parked, observed(LIMITED))
    assert back.run.phase is RunPhase.RUNNING
    assert back.run.parked_s == 5000
    assert why(back) is None
    assert back.wake_at <= after(1600), "2000 of 3600 s are used up"

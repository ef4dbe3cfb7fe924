"""What is left behind is removed, or told and left; a run that has nothing follows its provider."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.draft import Decision
from batchinference.core.durability import must_stand
from batchinference.core.effects import Announce, StartTask
from batchinference.core.notes import Notes
from batchinference.core.outcomes import TaskDone
from batchinference.model.earlier import Earlier
from batchinference.model.run import Ending, Place, Run, RunPhase, ShardState, Verdict
from batchinference.model.work import Cleaned, FaultKind, TaskFault, TaskKind
from builders import run_of
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    fold_all,
    in_state,
    observed,
    of_kind,
    owned,
    run_with,
)

RELEASE = StartTask(TaskKind.RELEASE)
NO_BUCKET = TaskFault(FaultKind.STALLED, "BucketNotFound", "There is no bucket 'staging'")
AWAY = TaskFault(FaultKind.RETRY, "StorageUnavailable", "503")


def ended(*, submitted: bool) -> Run:
    shard = in_state(ShardState.COLLECTED if submitted else ShardState.DROPPED)
    verdict = Verdict(Ending.FAILED, "BadRecords", "bad")
    return run_with(shard, phase=RunPhase.CLEANING, verdict=verdict, completion_time=NOW)


def after_failures(run: Run, fault: TaskFault, times: int, **later: float) -> Decision:
    """What is decided once the clean-up failed so often."""
    kind = TaskKind.CLEAN if run.was_submitted else TaskKind.RELEASE
    notes = Notes()
    for _ in range(times):
        run, notes = fold_all(run, TaskDone(kind, None, None, fault), notes=notes)
    return decided(run, observed(now=after(later.get("seconds", TIMING.retry_most_s * 2))), notes)


def test_remains_that_cannot_be_removed_are_told_once_and_tried_again() -> None:
    early = after_failures(ended(submitted=True), AWAY, TIMING.told_after - 1)
    assert of_kind(early, Announce) == []
    decision = after_failures(ended(submitted=True), AWAY, TIMING.told_after)
    assert [e.kind for e in of_kind(decision, StartTask)] == [TaskKind.CLEAN]
    assert [e.warning for e in of_kind(decision, Announce)] == [True]
    again = decided(decision.run, observed(now=after(TIMING.retry_most_s * 2)), decision.notes)
    assert of_kind(again, Announce) == []
    assert again.wake_at == after(TIMING.cleaning_s)


@pytest.mark.parametrize(
    ("submitted", "fault", "seconds", "given_up", "reason"),
    [
        (False, NO_BUCKET, 600, True, "there is no place, and nothing of value"),
        (True, NO_BUCKET, 600, False, "the bucket may come back, with answers in it"),
        (False, AWAY, 600, False, "it may pass"),
        (False, AWAY, TIMING.cleaning_s, True, "it did not pass"),
        (True, AWAY, TIMING.cleaning_s, True, "likewise"),
        (True, NO_BUCKET, TIMING.cleaning_s, True, "likewise"),
    ],
)
def test_the_clean_up_ends(submitted, fault, seconds, given_up, reason) -> None:
    run = ended(submitted=submitted)
    decision = after_failures(run, fault, TIMING.told_after, seconds=seconds)
    assert (decision.run.phase is RunPhase.ENDED) is given_up, reason
    if given_up:
        (said,) = of_kind(decision, Announce)
        assert said.warning
        assert fault.message in said.message
        assert run.staging.uri in said.message
        assert run.tag in said.message
        assert of_kind(decision, StartTask) == []


def test_a_clean_up_under_way_is_waited_for() -> None:
    run = ended(submitted=False)
    failed = after_failures(run, NO_BUCKET, TIMING.told_after - 1).notes
    _, notes = fold_all(run, TaskDone(TaskKind.RELEASE, None, None, NO_BUCKET), notes=failed)
    busy = replace(notes, inflight=frozenset({RELEASE.id}))
    assert decided(run, notes=busy).run.phase is RunPhase.CLEANING


# ---------------------------------------------------------------- a provider that leads elsewhere


def young(**members) -> Run:
    return owned(run_of(shards=0, phase=RunPhase.STAGING, start_time=NOW, **members))


FRESH = replace(young(), staging=Place("s3://mended/ml/"), output=Place("s3://mended/out/"))


def test_a_run_leaves_its_old_place_before_it_moves() -> None:
    run = replace(young(), output=Place("s3://data/ml/out/triage/", claimed=True))
    leaving = decided(run, observed(fresh=FRESH))
    assert [e.kind for e in of_kind(leaving, StartTask)] == [TaskKind.RELEASE]
    assert leaving.run.staging == run.staging, "it is still the old place that is released"
    assert (leaving.run.phase, leaving.run.output.claimed) == (RunPhase.ADMITTING, False)
    assert must_stand(run, leaving.run), "the claim is gone whether the next process knows or not"
    run, notes = fold_all(leaving.run, TaskDone(TaskKind.RELEASE, None, None, Cleaned()))
    assert run.phase is RunPhase.ADMITTING
    there = decided(run, observed(fresh=FRESH), notes)
    assert (there.run.staging, there.run.output) == (FRESH.staging, FRESH.output)
    assert there.run.phase is RunPhase.ADMITTING
    assert not there.notes.released
    assert of_kind(there, Announce) == []


def test_a_run_that_is_led_back_claims_its_place_anew() -> None:
    run = replace(young(), output=Place("s3://data/ml/out/triage/", claimed=True))
    run = decided(run, observed(fresh=FRESH)).run
    busy = Notes(inflight=frozenset({RELEASE.id}))
    assert of_kind(decided(run, notes=busy), StartTask) == [], "what it left is being removed"
    run, notes = fold_all(run, TaskDone(TaskKind.RELEASE, None, None, Cleaned()))
    back = decided(run, notes=notes)
    assert [e.kind for e in of_kind(back, StartTask)] == [TaskKind.ADMIT]
    assert not back.notes.released, "a later move removes what this one leaves"


def test_a_run_that_has_not_looked_anywhere_moves_at_once() -> None:
    run = replace(young(), phase=RunPhase.ADMITTING, start_time=None)
    assert decided(run, observed(fresh=FRESH)).run.staging == FRESH.staging


def test_nothing_is_removed_of_a_run_of_which_the_provider_may_have_more() -> None:
    """Its journal was lost: the claim, the inputs and the answers may be of batches that live."""
    run = young(earlier=Earlier(expected=True))
    decision = decided(run, observed(fresh=FRESH))
    assert of_kind(decision, StartTask) == []
    assert (decision.run.staging, decision.run.earlier) == (FRESH.staging, run.earlier)


@pytest.mark.parametrize(("fault", "times"), [(NO_BUCKET, 1), (AWAY, TIMING.told_after)])
def test_an_old_place_that_cannot_be_left_in_order_holds_nobody(fault, times) -> None:
    run, notes = young(), Notes()
    for _ in range(times):
        run = decided(run, observed(fresh=FRESH), notes).run
        assert run.staging == young().staging
        run, notes = fold_all(run, TaskDone(TaskKind.RELEASE, None, None, fault), notes=notes)
    decision = decided(run, observed(fresh=FRESH), notes)
    assert decision.run.staging == FRESH.staging
    (said,) = of_kind(decision, Announce)
    assert (said.warning, fault.message in said.message) == (True, True)
    assert decision.notes.failures == {}


def test_a_look_at_the_input_ends_before_the_run_moves() -> None:
    busy = Notes(inflight=frozenset({"task:Stage"}))
    decision = decided(young(), observed(fresh=FRESH), busy)
    assert (decision.run.staging, of_kind(decision, StartTask)) == (young().staging, [])


def test_a_run_that_was_cancelled_meanwhile_stays() -> None:
    decision = decided(young(), observed(fresh=FRESH, deleting=True))
    assert decision.run.phase is RunPhase.CLEANING
    assert decision.run.staging == young().staging

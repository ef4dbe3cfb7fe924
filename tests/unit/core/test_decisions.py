"""Decisions by annotation: what may be decided, when, once, and what is said of the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.decisions import GIVE_UP, RESUBMIT, named, values
from batchinference.core.effects import (
    Announce,
    CancelBatch,
    DeleteInput,
    LookUp,
    StartTask,
    following,
)
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchSeen,
    InputDeleted,
    LookedUp,
    TaskDone,
)
from batchinference.model.batch import BatchState, Traits
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Settlement,
    ShardState,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, ShardCollected, TaskKind
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    failing,
    fold,
    fold_all,
    in_state,
    looks,
    observed,
    of_kind,
    run_with,
    view_of,
)

S, U = ShardState, SubmissionState
PARTLY = Traits(lists_complete=False)
SETTLE = TIMING.settle_s
ABSENT = looks(first=SETTLE * 3, newest=5)
RUN = run_with(in_state(S.UNKNOWN))
ABOUT = named(RUN, 0, 1)


def world(**annotations):
    """A provider whose listings can't tell, and these annotations on the job."""
    given = {"resubmit": RESUBMIT, "give_up": GIVE_UP}
    told = {given[name]: text for name, text in annotations.items()}
    return observed(traits=PARTLY, annotations=told)


def said(decision, reason):
    return [e.message for e in of_kind(decision, Announce) if e.reason == reason]


# ---------------------------------------------------------------- the question


def test_the_stall_says_what_to_type() -> None:
    decision = decided(RUN, world(), ABSENT)
    assert decision.problem.reason == Reason.OUTCOME_UNKNOWN
    for annotation in (RESUBMIT, GIVE_UP):
        command = (
            f"kubectl annotate batchinferencejob/triage -n ml --overwrite {annotation}={ABOUT}"
        )
        assert f"`{command}`" in decision.problem.message
    assert decision.asks_people
    assert len(decision.problem.message.encode()) < 1024, "it fits into the note of an Event"


def test_without_an_object_it_names_the_journal() -> None:
    seen = observed(gone=True, traits=PARTLY, journal_namespace="batch-inference")
    cancelled = replace(RUN, cancel=Cancel(CancelWhy.DELETED, NOW))
    decision = decided(cancelled, seen, ABSENT)
    where = f"configmap/run-{RUN.key} -n batch-inference"
    assert f"kubectl annotate {where} --overwrite {GIVE_UP}={ABOUT}" in decision.problem.message


def test_nothing_is_asked_while_the_provider_can_tell() -> None:
    decision = decided(RUN, observed(), looks(first=1, newest=1))
    assert not decision.asks_people


def test_credentials_of_another_account_can_be_decided_about_too() -> None:
    decision = decided(RUN, observed(), looks(first=SETTLE, newest=1, readable=False))
    assert decision.problem.reason == Reason.ACCOUNT_CHANGED
    assert f"{GIVE_UP}={ABOUT}" in decision.problem.message


# ---------------------------------------------------------------- it was not accepted


def test_what_was_not_accepted_loses_its_input_and_goes_again_without_another_look() -> None:
    first = decided(RUN, world(resubmit=ABOUT), ABSENT)
    shard = first.run.shards[0]
    assert (shard.state, shard.last.settled) == (S.FENCING, Settlement.RESUBMIT)
    assert len(said(first, Reason.DECIDED)) == 1
    assert first.wake_at == NOW
    second = decided(first.run, world(resubmit=ABOUT), first.notes)
    assert of_kind(second, DeleteInput)
    assert second.problem is None
    assert not said(second, Reason.DECIDED), "once"
    fenced, notes = fold_all(second.run, InputDeleted(0, 1), notes=second.notes)
    third = decided(fenced, world(resubmit=ABOUT), notes)
    assert (third.run.shards[0].state, third.run.shards[0].last.state) == (S.QUEUED, U.FENCED)
    assert of_kind(third, StartTask) == [StartTask(TaskKind.UPLOAD, 0, 2)], "the next ordinal"
    assert not of_kind(third, LookUp)
    assert not third.asks_people


def test_a_fenced_one_goes_again_at_once() -> None:
    fenced = replace(RUN, shards=(in_state(S.FENCING).with_last(fenced_at=after(-SETTLE * 2)),))
    first = decided(fenced, world(resubmit=ABOUT), ABSENT)
    second = decided(first.run, world(resubmit=ABOUT), first.notes)
    assert second.run.shards[0].state is S.QUEUED


def test_of_a_cancelled_run_it_is_dropped() -> None:
    fenced = in_state(S.FENCING).with_last(fenced_at=NOW, settled=Settlement.RESUBMIT)
    run = replace(RUN, shards=(fenced,), cancel=Cancel(CancelWhy.DESIRED, NOW))
    assert decided(run, world(), ABSENT).run.shards[0].state is S.DROPPED


def test_a_batch_that_appears_against_a_decision_is_a_late_one() -> None:
    queued = in_state(S.QUEUED, submissions=in_state(S.FENCING).submissions).with_last(
        state=U.FENCED, settled=Settlement.RESUBMIT, settled_at=NOW
    )
    run = run_with(queued)
    appeared = fold(run, BatchSeen(view_of(run)))
    assert appeared.shards[0].state is S.SUBMITTED


# ---------------------------------------------------------------- its answers are given up


@pytest.mark.parametrize("state", [S.UNKNOWN, S.FENCING])
def test_what_is_given_up_is_lost_and_never_sent_again(state) -> None:
    run = replace(RUN, shards=(in_state(state).with_last(fenced_at=after(-SETTLE * 9)),))
    first = decided(run, world(give_up=ABOUT), ABSENT)
    shard = first.run.shards[0]
    assert (shard.state, shard.last.state, shard.last.ended_at) == (S.ENDED, U.ENDED, NOW)
    assert shard.last.request == {}
    second = decided(first.run, world(give_up=ABOUT), first.notes)
    assert second.problem is None
    collect = StartTask(TaskKind.COLLECT, 0, 1)
    assert collect in second.effects
    lost = ShardCollected(Collected(lost=shard.rows))
    over = fold(second.run, TaskDone(TaskKind.COLLECT, 0, 1, lost))
    third = decided(over, world(give_up=ABOUT))
    assert third.run.phase.value == "Finishing"
    assert not of_kind(third, LookUp), "nobody waits for another look"


def test_its_batch_is_taken_in_when_it_appears_all_the_same() -> None:
    first = decided(RUN, world(give_up=ABOUT), ABSENT)
    assert [s.ordinal for s in first.run.shards[0].missing] == [1], "listings go on matching it"
    appeared = fold(first.run, BatchSeen(view_of(first.run)))
    (late,) = appeared.shards[0].late
    assert late.batch_id == "batch-0-1"
    then = decided(appeared, world(give_up=ABOUT))
    assert then.run.shards[0].state is S.SUBMITTED
    assert then.problem.reason == Reason.DUPLICATE_SUBMISSION


# ---------------------------------------------------------------- when, and what is no answer


def test_an_answer_waits_until_the_create_call_can_not_arrive_any_more() -> None:
    young = in_state(S.UNKNOWN).with_last(claimed_at=after(-10))
    run = replace(RUN, shards=(young,))
    decision = decided(run, world(resubmit=ABOUT), looks(first=5, newest=1))
    assert decision.run == run
    assert decision.wake_at <= after(SETTLE - 10)
    assert not of_kind(decision, Announce), "it is not refused either"


@pytest.mark.parametrize(
    ("annotations", "reason"),
    [
        ({"resubmit": "0/1"}, "no run is named"),
        ({"resubmit": named(RUN, 0, 2)}, "another ordinal"),
        ({"resubmit": named(RUN, 7, 1)}, "a shard that is not there"),
        ({"resubmit": named(replace(RUN, key="f" * 40), 0, 1)}, "another run's, left over in Git"),
        ({"give_up": "batch-7"}, "no batch of the run"),
        ({"resubmit": ABOUT, "give_up": ABOUT}, "both at once"),
    ],
)
def test_what_names_nothing_that_is_asked_is_told_once_and_left_alone(annotations, reason) -> None:
    first = decided(RUN, world(**annotations), ABSENT)
    assert first.run == RUN, reason
    assert len(said(first, Reason.DECISION_IGNORED)) == 1
    assert not said(decided(RUN, world(**annotations), first.notes), Reason.DECISION_IGNORED)


def test_one_annotation_may_decide_several_things() -> None:
    run = run_with(in_state(S.UNKNOWN), in_state(S.UNKNOWN, 1))
    both = f"{named(run, 0, 1)}, {named(run, 1, 1)},"
    notes = replace(ABSENT, looks=dict.fromkeys(((0, 1), (1, 1)), ABSENT.looks[0, 1]))
    decision = decided(run, world(resubmit=both), notes)
    assert [s.state for s in decision.run.shards] == [S.FENCING, S.FENCING]
    assert values({RESUBMIT: both}, RESUBMIT) == (named(run, 0, 1), named(run, 1, 1))


# ---------------------------------------------------------------- what was given up before


def test_what_was_given_up_when_listings_could_tell_is_decided_when_they_no_longer_can() -> None:
    gone = in_state(S.FENCING).with_last(state=U.FENCED, fenced_at=after(-SETTLE * 5), request={})
    run = run_with(in_state(S.QUEUED, submissions=gone.submissions))
    stuck = decided(run, world(), looks(first=9, newest=1, complete=False))
    assert stuck.problem.reason == Reason.OUTCOME_UNKNOWN
    assert f"{RESUBMIT}={ABOUT}" in stuck.problem.message
    assert GIVE_UP not in stuck.problem.message
    first = decided(run, world(resubmit=ABOUT), looks(first=9, newest=1, complete=False))
    assert first.run.shards[0].last.settled is Settlement.RESUBMIT
    second = decided(first.run, world(resubmit=ABOUT), first.notes)
    assert of_kind(second, StartTask) == [StartTask(TaskKind.UPLOAD, 0, 2)]


# ---------------------------------------------------------------- a policy instead


def by_policy(**members):
    return observed(traits=PARTLY, resubmits_unknown=True, **members)


def test_the_providers_policy_decides_once_the_call_can_not_arrive_any_more() -> None:
    first = decided(RUN, by_policy(), ABSENT)
    assert first.run.shards[0].state is S.FENCING
    assert "may be billed twice" in said(first, Reason.DECIDED)[0]
    fenced, notes = fold_all(first.run, InputDeleted(0, 1), notes=first.notes)
    assert decided(fenced, by_policy(), notes).run.shards[0].state is S.QUEUED
    young = replace(RUN, shards=(in_state(S.UNKNOWN).with_last(claimed_at=after(-10)),))
    assert decided(young, by_policy(), looks(first=5, newest=1)).run == young


def test_the_policy_decides_about_what_is_fenced_and_what_was_given_up() -> None:
    fenced = in_state(S.FENCING).with_last(fenced_at=after(-SETTLE * 2))
    assert decided(run_with(fenced), by_policy(), ABSENT).run.shards[0].state is S.QUEUED
    gone = fenced.with_last(state=U.FENCED, request={})
    run = run_with(in_state(S.QUEUED, submissions=gone.submissions))
    decision = decided(run, by_policy(), looks(first=9, newest=1, complete=False))
    assert decision.problem is None
    assert of_kind(decision, StartTask) == [StartTask(TaskKind.UPLOAD, 0, 2)]


def test_the_policy_does_not_excuse_credentials_of_another_account() -> None:
    decision = decided(RUN, by_policy(), looks(first=SETTLE, newest=1, readable=False))
    assert decision.problem.reason == Reason.ACCOUNT_CHANGED
    assert decision.run == RUN


def test_a_provider_that_can_tell_is_asked_whatever_the_policy_is() -> None:
    decision = decided(RUN, observed(resubmits_unknown=True), looks(first=1, newest=1))
    assert decision.run == RUN


# ---------------------------------------------------------------- batches

LIVE = run_with(in_state(S.SUBMITTED))
DENIED = failing(
    following("batch-0-1"),
    FaultKind.STALLED,
    "BatchNotFound",
    failing(following("batch-0-1"), FaultKind.STALLED, "BatchNotFound"),
)


def test_a_batch_that_the_provider_denies_can_be_given_up() -> None:
    asked = decided(LIVE, observed(), DENIED)
    assert f"{GIVE_UP}=batch-0-1" in asked.problem.message
    first = decided(LIVE, observed(annotations={GIVE_UP: "batch-0-1"}), DENIED)
    assert first.run.shards[0].last.settled is Settlement.GIVE_UP
    second = decided(first.run, observed(annotations={GIVE_UP: "batch-0-1"}), first.notes)
    assert of_kind(second, CancelBatch) == [CancelBatch(0, "batch-0-1")]
    assert second.wake_at == after(TIMING.cancel_release_s), "it has a while to end of itself"
    assert second.problem is None
    later = observed(now=after(TIMING.cancel_release_s), annotations={GIVE_UP: "batch-0-1"})
    third = decided(second.run, later, second.notes)
    assert third.run.shards[0].state is S.ENDED
    assert StartTask(TaskKind.COLLECT, 0, 1) in third.effects


def test_what_a_batch_has_when_it_ends_in_time_is_collected() -> None:
    shard = in_state(S.SUBMITTED).with_last(settled=Settlement.GIVE_UP, settled_at=NOW)
    view = view_of(LIVE, state=BatchState.CANCELLED, files=("file-1",))
    run = fold(run_with(shard), BatchSeen(view))
    assert run.shards[0].last.files == ("file-1",)
    assert run.shards[0].last.batch_state is BatchState.CANCELLED


def test_a_batch_of_a_cancelled_run_is_cancelled_once() -> None:
    shard = in_state(S.SUBMITTED).with_last(settled=Settlement.GIVE_UP, settled_at=NOW)
    for why, calls in ((CancelWhy.DESIRED, 1), (CancelWhy.ORPHANED, 1)):
        run = run_with(shard, cancel=Cancel(why, NOW))
        assert len(of_kind(decided(run), CancelBatch)) == calls
    taken = shard.with_last(cancel_accepted_at=NOW)
    assert not of_kind(decided(run_with(taken)), CancelBatch)


def test_a_batch_that_gives_no_trouble_can_not_be_decided_about() -> None:
    decision = decided(LIVE, observed(annotations={GIVE_UP: "batch-0-1"}), Notes())
    assert decision.run == LIVE
    assert said(decision, Reason.DECISION_IGNORED)


def test_a_listing_that_can_not_tell_leaves_the_question_open() -> None:
    run, notes = fold_all(RUN, LookedUp(0, 1, None, complete=False), notes=ABSENT)
    assert decided(run, world(), notes).asks_people

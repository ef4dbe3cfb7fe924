"""What follows for the object and the run: coming back, going, suspending, the phases."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from batchinference.core.effects import (
    Announce,
    CancelBatch,
    SetFinalizer,
    StartTask,
    StopTasks,
    Submit,
)
from batchinference.core.notes import Notes
from batchinference.core.problem import Problem
from batchinference.model.batch import BatchState, Traits
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Ending,
    RunPhase,
    ShardState,
    Verdict,
)
from batchinference.model.staging import BadRecord, Staged
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskKind
from builders import START, job, limits, run_of
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    failing,
    in_state,
    looks,
    observed,
    of_kind,
    owned,
    run_with,
)

S, P = ShardState, RunPhase
DELETED = Cancel(CancelWhy.DELETED, NOW)
ORPHANED = Cancel(CancelWhy.ORPHANED, NOW)
DESIRED = Cancel(CancelWhy.DESIRED, NOW)
CANCELLED = Verdict(Ending.CANCELLED, Reason.CANCELLED, "The run was cancelled")
SUCCEEDED = Verdict(Ending.SUCCEEDED, Reason.SUCCEEDED, "all were answered")


def tasks(decision):
    return [effect.kind for effect in of_kind(decision, StartTask)]


def finalizers(decision):
    return [effect.present for effect in of_kind(decision, SetFinalizer)]


def admitting(**members):
    return owned(run_of(shards=0, **members))


def staging(**members):
    return admitting(phase=P.STAGING, **members)


def collected(index=0, unbilled=0, **members):
    found = Collected(answered=100 - unbilled, unbilled=unbilled, unbilled_code="Expired")
    return in_state(S.COLLECTED, index, collected=found, **members)


def stranger(run):
    """The same run, last steered by an object that is gone."""
    return replace(run, owner=replace(run.owner, uid="uid-of-before"))


def over(phase, *shards, verdict=SUCCEEDED, **members):
    return replace(run_with(*shards), phase=phase, verdict=verdict, completion_time=NOW, **members)


# ---------------------------------------------------------------- coming back


def test_a_live_run_is_adopted_and_followed() -> None:
    run = stranger(run_with(in_state(S.SUBMITTED)))
    decision = decided(run)
    assert decision.run == replace(run_with(in_state(S.SUBMITTED)), adopted=True)
    (event,) = of_kind(decision, Announce)
    assert event.reason == Reason.ADOPTED
    assert run.key[:12] in event.message
    assert not of_kind(decided(decision.run), Announce), "said once"


def test_what_was_found_without_a_journal_is_told_once() -> None:
    run = run_with(in_state(S.SUBMITTED), adopted=True)
    (event,) = of_kind(decided(run, observed(was_adopted=False)), Announce)
    assert event.reason == Reason.ADOPTED
    assert "without a journal" in event.message
    assert not of_kind(decided(run, observed()), Announce)


def test_an_orphaned_run_that_is_wanted_again_goes_on() -> None:
    shards = (in_state(S.SUBMITTED), in_state(S.DROPPED, 1))
    run = stranger(run_with(*shards, cancel=ORPHANED))
    taken = decided(run).run
    assert taken.cancel is None
    assert [s.state for s in taken.shards] == [S.SUBMITTED, S.QUEUED]
    deleted_again = decided(taken, observed(deleting=True))
    assert of_kind(deleted_again, CancelBatch), "by an object that cancels"
    cancelled = stranger(run_with(*shards, cancel=DELETED))
    assert decided(cancelled).run.cancel == DELETED, "it goes on once that is through"
    finishing = replace(run, phase=P.FINISHING)
    assert decided(finishing).run.cancel == ORPHANED, "too late: it is taken up after parking"


@pytest.mark.parametrize("phase", [P.CLEANING, P.ENDED])
def test_a_finished_run_is_adopted_with_its_times_and_its_verdict(phase) -> None:
    run = stranger(over(phase, in_state(S.COLLECTED), start_time=START))
    adopted = decided(run, observed(finalizer=False)).run
    assert (adopted.phase, adopted.verdict) == (phase, run.verdict)
    assert (adopted.start_time, adopted.completion_time) == (START, NOW)
    assert adopted.adopted


def test_a_run_that_was_cancelled_by_deletion_goes_on_with_what_lacks_an_answer() -> None:
    shards = (in_state(S.COLLECTED), in_state(S.DROPPED, 1))
    run = stranger(over(P.PARKED, *shards, verdict=CANCELLED, cancel=DELETED))
    taken = decided(run).run
    assert taken.phase is P.RUNNING
    assert [s.state for s in taken.shards] == [S.COLLECTED, S.QUEUED]
    assert (taken.cancel, taken.verdict, taken.results) == (None, None, None)
    assert taken.completion_time is None


def test_a_parked_run_comes_back_only_to_an_object_that_wants_it() -> None:
    shards = (in_state(S.DROPPED), in_state(S.COLLECTED, 1))
    run = stranger(over(P.PARKED, *shards, verdict=CANCELLED, cancel=DELETED))
    decision = decided(run, observed(job().cancelled(), finalizer=False))
    assert decision.run.phase is P.PARKED
    assert decision.run.verdict == CANCELLED


def test_a_resumed_run_holds_its_object_before_it_calls_anybody() -> None:
    shards = (in_state(S.DROPPED), in_state(S.COLLECTED, 1))
    run = stranger(over(P.PARKED, *shards, verdict=CANCELLED, cancel=DELETED))
    decision = decided(run, observed(finalizer=False), Notes(uploads={(0, 1): "f"}))
    assert not decision.asking
    assert finalizers(decision) == [True]
    assert not of_kind(decision, Submit) + of_kind(decision, StartTask)


def test_an_object_that_is_going_adopts_nothing() -> None:
    run = stranger(run_with(in_state(S.SUBMITTED)))
    assert decided(run, observed(deleting=True)).run.owner == run.owner


def test_an_unsubmitted_end_is_no_verdict_on_an_object_that_came_later() -> None:
    failed = Verdict(Ending.FAILED, Reason.BAD_RECORDS, "3 of 3 records can't be sent")
    ended = stranger(over(P.ENDED, verdict=failed))
    decision = decided(ended, observed(finalizer=False))
    assert (decision.run, decision.effects) == (ended, ()), "the runtime makes a fresh one"
    cleaning = stranger(over(P.CLEANING, verdict=failed))
    decision = decided(cleaning, observed(finalizer=False))
    assert decision.run == cleaning, "not adopted"
    assert tasks(decision) == [TaskKind.RELEASE], "cleaned up first"


# ---------------------------------------------------------------- the finalizer


WITHOUT_FINALIZER = [
    (admitting(), [TaskKind.ADMIT], "a look at the input is no provider call"),
    (staging(), [TaskKind.STAGE], "nor is staging"),
    (run_with(in_state(S.QUEUED)), [], "an upload is one"),
    (run_with(in_state(S.SUBMITTED)), [], "what the provider has is followed"),
    (run_with(in_state(S.ENDED)), [TaskKind.COLLECT], "and collected"),
    (run_with(collected()), [TaskKind.FINISH], "and finished"),
]


@pytest.mark.parametrize(("run", "wanted", "reason"), WITHOUT_FINALIZER)
@pytest.mark.parametrize("uploaded", [True, False])
def test_without_the_finalizer_nothing_is_uploaded_or_submitted(
    run, wanted, reason, uploaded
) -> None:
    notes = Notes(uploads={(0, 1): "f"}) if uploaded else Notes()
    decision = decided(run, observed(finalizer=False), notes)
    assert finalizers(decision) == [True], reason
    assert tasks(decision) == wanted, reason
    assert not of_kind(decision, Submit)
    assert decision.problem is None, "it takes a moment, and is nobody's fault"


def test_an_unanswered_request_is_not_repeated_without_the_finalizer() -> None:
    run = run_with(in_state(S.UNKNOWN).with_last(claimed_at=NOW))
    bedrock = Traits(resend_window_s=600)
    known = looks(first=5, newest=5)
    assert of_kind(decided(run, observed(traits=bedrock), known), Submit)
    bare = decided(run, observed(traits=bedrock, finalizer=False), known)
    assert not of_kind(bare, Submit)


def test_no_second_finalizer_is_asked_for_while_the_first_is_under_way() -> None:
    notes = Notes(inflight=frozenset({"finalizer"}))
    assert finalizers(decided(admitting(), observed(finalizer=False), notes)) == []


@pytest.mark.parametrize("phase", [P.CLEANING, P.ENDED])
def test_a_finished_run_lets_its_object_go_at_once(phase) -> None:
    run = over(phase, in_state(S.COLLECTED))
    assert finalizers(decided(run)) == [False]
    assert finalizers(decided(run, observed(finalizer=False))) == []


def accepted_cancel(shard):
    return shard.with_last(cancel_accepted_at=NOW)


RELEASES = [
    ((in_state(S.QUEUED),), True, "nothing was submitted"),
    ((in_state(S.SUBMITTED),), False, "its cancel is not accepted"),
    ((in_state(S.CLAIMED),), False, "it may be accepted any moment"),
    ((in_state(S.UNKNOWN),), False, "it may have been accepted"),
    ((in_state(S.FENCING),), False, "it may have been accepted"),
    ((accepted_cancel(in_state(S.SUBMITTED)),), True, "its cancel was accepted"),
    ((in_state(S.ENDED),), True, "the batch was found ended"),
    ((in_state(S.COLLECTED), in_state(S.SUBMITTED, 1)), False, "one of two"),
]


@pytest.mark.parametrize(("shards", "goes", "reason"), RELEASES)
def test_a_deleted_object_goes_when_every_batch_is_cancelled_or_over(shards, goes, reason) -> None:
    decision = decided(run_with(*shards), observed(deleting=True))
    assert finalizers(decision) == ([False] if goes else []), reason
    if not goes:
        assert decision.wake_at == after(TIMING.cancel_release_s), reason


def test_a_deleted_object_goes_after_two_minutes_whatever_happens_and_says_so() -> None:
    run = run_with(in_state(S.SUBMITTED), in_state(S.CLAIMED, 1), cancel=DELETED)
    world = observed(deleting=True)
    late = replace(world, now=after(TIMING.cancel_release_s))
    early = replace(world, now=after(TIMING.cancel_release_s - 1))
    assert finalizers(decided(run, early)) == []
    decision = decided(run, late)
    assert finalizers(decision) == [False]
    (event,) = of_kind(decision, Announce)
    assert event.warning
    assert "batch-0-1" in event.message
    assert "shard 1" in event.message
    waiting = Notes(inflight=frozenset({"finalizer"}))
    assert not of_kind(decided(run, late, waiting), Announce), "said once"


def test_a_deleted_object_without_our_finalizer_is_left_alone() -> None:
    run = run_with(in_state(S.SUBMITTED))
    assert finalizers(decided(run, observed(deleting=True, finalizer=False))) == []


def test_an_orphaning_object_goes_at_once() -> None:
    run = run_with(in_state(S.SUBMITTED), in_state(S.UNKNOWN, 1))
    decision = decided(run, observed(job().orphaning(), deleting=True))
    assert finalizers(decision) == [False]


# ---------------------------------------------------------------- cancelling

WANTS = [
    (job(), {}, None, None, "wanted"),
    (job(), {"deleting": True}, None, CancelWhy.DELETED, "being deleted"),
    (job(), {"gone": True}, None, CancelWhy.DELETED, "deleted while nobody looked"),
    (job().orphaning(), {"deleting": True}, None, CancelWhy.ORPHANED, "orphaned"),
    (job().cancelled(), {}, None, CancelWhy.DESIRED, "desiredState"),
    (job().cancelled(), {"deleting": True}, None, CancelWhy.DELETED, "deletion goes first"),
    (job(), {"deleting": True}, DESIRED, CancelWhy.DELETED, "deleted after desiredState"),
    (job().orphaning(), {"deleting": True}, DELETED, CancelWhy.DELETED, "no way back"),
    (job().orphaning(), {"deleting": True}, ORPHANED, CancelWhy.ORPHANED, "no way back"),
    (job().orphaning(), {"deleting": True}, DESIRED, CancelWhy.DELETED, "unwanted already"),
    (job().orphaning().cancelled(), {"gone": True}, None, CancelWhy.DELETED, "unwanted already"),
    (job().cancelled(), {}, DELETED, CancelWhy.DELETED, "no way back"),
    (job(), {}, DELETED, CancelWhy.DELETED, "an object that came back changes it later"),
]


@pytest.mark.parametrize(("builder", "world", "before", "why", "reason"), WANTS)
def test_why_a_run_is_cancelled(builder, world, before, why, reason) -> None:
    run = run_with(in_state(S.SUBMITTED), cancel=before)
    decision = decided(run, observed(builder, **world))
    assert (decision.run.cancel.why if decision.run.cancel else None) is why, reason
    told = [e for e in of_kind(decision, Announce) if e.reason == Reason.CANCELLING]
    changed = (before.why if before else None) is not why
    assert bool(told) == changed, reason
    if why is not None and not changed:
        assert decision.run.cancel == before, "the time is that of the first wish"


def test_a_finished_run_is_not_cancelled() -> None:
    for phase in (P.CLEANING, P.ENDED):
        run = over(phase, in_state(S.COLLECTED))
        assert decided(run, observed(job().cancelled(), deleting=True)).run == run


CANCELLING = [
    (S.STAGED, S.DROPPED, False, "never submitted"),
    (S.QUEUED, S.DROPPED, False, "never submitted"),
    (S.SUBMITTED, S.SUBMITTED, True, "cancelled at the provider"),
    (S.CLAIMED, S.CLAIMED, False, "its outcome is settled first"),
    (S.ENDED, S.ENDED, False, "collected: what was paid is kept"),
    (S.COLLECTED, S.COLLECTED, False, "settled"),
]


@pytest.mark.parametrize(("state", "then", "asked", "reason"), CANCELLING)
@pytest.mark.parametrize("cancel", [DELETED, DESIRED])
def test_what_cancelling_does_to_a_shard(state, then, asked, cancel, reason) -> None:
    other = in_state(S.SUBMITTED, 1).with_last(cancel_accepted_at=NOW)
    run = run_with(in_state(state), other, cancel=cancel)
    notes = Notes(inflight=frozenset({"submit:0:1"}))
    decision = decided(run, observed(gone=True), notes)
    assert decision.run.shards[0].state is then, reason
    wanted = [CancelBatch(0, "batch-0-1")] if asked else []
    assert of_kind(decision, CancelBatch) == wanted, reason
    assert not of_kind(decision, Submit)


def test_a_cancel_is_asked_for_until_it_is_accepted() -> None:
    run = run_with(in_state(S.SUBMITTED), cancel=DELETED)
    assert of_kind(decided(run, observed(gone=True)), CancelBatch)
    under_way = Notes(inflight=frozenset({"cancel:batch-0-1"}))
    assert not of_kind(decided(run, observed(gone=True), under_way), CancelBatch)
    failed = failing("cancel:batch-0-1")
    waiting = decided(run, observed(gone=True), failed)
    assert not of_kind(waiting, CancelBatch)
    assert waiting.wake_at == failed.failures["cancel:batch-0-1"].retry_at
    later = observed(gone=True, now=after(60))
    assert of_kind(decided(run, later, failed), CancelBatch)


def test_an_orphaned_run_submits_nothing_more_cancels_nothing_and_collects() -> None:
    shards = (in_state(S.QUEUED), in_state(S.SUBMITTED, 1), in_state(S.ENDED, 2))
    decision = decided(run_with(*shards, cancel=ORPHANED), observed(gone=True))
    assert [s.state for s in decision.run.shards] == [S.DROPPED, S.SUBMITTED, S.ENDED]
    assert decision.effects == (StartTask(TaskKind.COLLECT, 2, 1),)


UNPAID = [
    (admitting(), "admitting"),
    (staging(), "staging"),
    (run_with(in_state(S.QUEUED)), "queued"),
    (run_with(in_state(S.STAGED)), "staged"),
]


@pytest.mark.parametrize(("run", "reason"), UNPAID)
@pytest.mark.parametrize("gone", [True, False])
def test_a_cancelled_run_of_which_nothing_was_submitted_ends_at_once(run, gone, reason) -> None:
    world = observed(job().cancelled(), gone=gone)
    notes = Notes(inflight=frozenset({"task:Upload:0:1"}))
    decision = decided(run, world, notes)
    assert decision.run.phase is P.CLEANING, reason
    assert decision.run.verdict.ending is Ending.CANCELLED
    assert decision.run.completion_time == NOW
    kinds = [type(e) for e in decision.effects if not isinstance(e, Announce | SetFinalizer)]
    assert kinds == [StopTasks, StartTask], "the tasks are stopped before the claim is removed"
    assert tasks(decision) == [TaskKind.RELEASE]


def test_a_cancelled_run_that_is_finishing_finishes() -> None:
    run = replace(run_with(in_state(S.DROPPED)), phase=P.FINISHING, cancel=DESIRED)
    assert tasks(decided(run, observed(job().cancelled()))) == [TaskKind.FINISH]


# ---------------------------------------------------------------- suspending


@pytest.mark.parametrize("run", [admitting(), staging()])
def test_a_suspended_run_starts_nothing_and_stops_its_tasks(run) -> None:
    idle = decided(run, observed(job().suspended()))
    assert idle.held
    assert (idle.run, idle.effects) == (run, ())
    busy = Notes(inflight=frozenset({"task:Stage", "finalizer"}))
    assert decided(run, observed(job().suspended()), busy).effects == (StopTasks(),)


def test_the_start_is_the_first_time_not_suspended() -> None:
    assert decided(admitting(), observed(job().suspended())).run.start_time is None
    started = decided(admitting()).run
    assert started.start_time == NOW
    assert decided(started, observed(now=after(60))).run.start_time == NOW


def test_a_suspended_run_follows_and_collects_what_the_provider_has() -> None:
    shards = (in_state(S.QUEUED), in_state(S.SUBMITTED, 1), in_state(S.ENDED, 2))
    decision = decided(run_with(*shards), observed(job().suspended()), Notes(uploads={(0, 1): "f"}))
    assert decision.held
    assert tasks(decision) == [TaskKind.COLLECT]
    assert decision.run.shards == shards


def test_a_suspended_run_sends_no_record_again() -> None:
    leftover = replace(in_state(S.COLLECTED), collected=Collected(answered=60, unbilled=40))
    run = run_with(leftover)
    assert tasks(decided(run)) == [TaskKind.POOL]
    held = decided(run, observed(job().suspended()))
    assert (held.effects, held.run) == ((), run), "and does not finish without it"


def test_a_cancelled_run_is_not_held() -> None:
    run = run_with(in_state(S.SUBMITTED), cancel=DESIRED)
    assert not decided(run, observed(job().suspended().cancelled())).held


# ---------------------------------------------------------------- phases


def test_an_admitting_run_waits_for_its_provider() -> None:
    missing = Problem(Reason.SECRET_NOT_FOUND, "no such Secret", NOW, has_grace=True)
    decision = decided(admitting(), observed(provider=missing))
    assert (decision.problem, tasks(decision)) == (missing, [])
    assert decision.wake_at == after(TIMING.reference_retry_s)
    assert tasks(decided(admitting())) == [TaskKind.ADMIT]


CHANGED = Problem(Reason.SPEC_CHANGED, "`spec.model` is another one", NOW)


@pytest.mark.parametrize("run", [admitting(), staging()])
def test_the_input_is_not_looked_at_against_the_word_of_the_provider_or_the_spec(run) -> None:
    withdrawn = Problem(Reason.NAMESPACE_NOT_ALLOWED, "not any more", NOW, has_grace=True)
    denied = decided(run, observed(provider=withdrawn))
    assert (denied.problem, tasks(denied)) == (withdrawn, [])
    assert denied.wake_at == after(TIMING.reference_retry_s), "it waits, and does not spin"
    unfit = decided(run, observed(unfit=CHANGED))
    assert (unfit.problem, tasks(unfit)) == (CHANGED, [])
    assert unfit.wake_at is None, "a change of the object brings it back"


def test_a_look_under_way_is_not_stopped() -> None:
    busy = Notes(inflight=frozenset({"task:Stage"}))
    assert decided(staging(), observed(unfit=CHANGED), busy).effects == ()


UNFIT = [
    (run_with(in_state(S.QUEUED)), [], "nothing new"),
    (run_with(in_state(S.SUBMITTED)), [], "followed"),
    (run_with(in_state(S.ENDED)), [TaskKind.COLLECT], "collected"),
    (run_with(collected()), [TaskKind.FINISH], "finished"),
]


@pytest.mark.parametrize(("run", "wanted", "reason"), UNFIT)
def test_a_spec_that_cannot_be_acted_on_is_said_and_holds_up_only_what_is_new(
    run, wanted, reason
) -> None:
    decision = decided(run, observed(unfit=CHANGED), Notes(uploads={(0, 1): "f"}))
    assert decision.problem == CHANGED
    assert tasks(decision) == wanted, reason
    assert not of_kind(decision, Submit)
    assert not decision.asking


def test_a_spec_that_cannot_be_acted_on_is_no_matter_of_a_run_that_is_over() -> None:
    assert decided(over(P.ENDED, in_state(S.COLLECTED)), observed(unfit=CHANGED)).problem is None


def test_the_end_of_the_grace_wakes_us() -> None:
    missing = Problem(Reason.SECRET_NOT_FOUND, "", after(-50), has_grace=True)
    assert decided(admitting(), observed(provider=missing)).wake_at == after(10)


def test_a_task_that_stalled_is_told_also_while_it_is_tried_again() -> None:
    failed = failing("task:Admit", FaultKind.STALLED, Reason.INPUT_NOT_FOUND)
    waiting = decided(admitting(), notes=failed)
    trying = decided(admitting(), notes=replace(failed, inflight=frozenset({"task:Admit"})))
    retrying = decided(admitting(), observed(now=after(TIMING.reference_retry_s)), failed)
    for decision, started in ((waiting, False), (trying, False), (retrying, True)):
        assert decision.problem.reason == Reason.INPUT_NOT_FOUND
        assert decision.problem.has_grace, "it may appear by itself"
        assert bool(tasks(decision)) == started
    later = decided(staging(), notes=failing("task:Stage", FaultKind.STALLED, "DiskGone"))
    assert not later.problem.has_grace


def test_a_passing_failure_is_no_problem() -> None:
    for kind in (FaultKind.RETRY, FaultKind.WAITING):
        assert decided(admitting(), notes=failing("task:Admit", kind)).problem is None


PHASES = [
    (staging(), [TaskKind.STAGE], "one pass"),
    (replace(run_with(in_state(S.COLLECTED)), phase=P.FINISHING), [TaskKind.FINISH], "manifest"),
    (over(P.CLEANING, in_state(S.COLLECTED)), [TaskKind.CLEAN], "something was submitted"),
    (over(P.CLEANING), [TaskKind.RELEASE], "nothing was submitted"),
    (over(P.ENDED), [], "nothing is left to do"),
]


@pytest.mark.parametrize(("run", "wanted", "reason"), PHASES)
@pytest.mark.parametrize("gone", [True, False])
def test_each_phase_asks_for_its_task_with_or_without_an_object(run, wanted, gone, reason) -> None:
    run = replace(run, cancel=DELETED) if gone and not run.is_over else run
    if run.phase is P.STAGING and gone:
        wanted = [TaskKind.RELEASE]  # deleted before anything was paid
    assert tasks(decided(run, observed(gone=gone))) == wanted, reason


def test_a_parked_run_waits_for_its_object_but_not_for_ever() -> None:
    run = over(P.PARKED, in_state(S.DROPPED), verdict=CANCELLED, cancel=DELETED)
    waiting = decided(run, observed(gone=True, now=after(TIMING.parked_s - 1)))
    assert (waiting.run, waiting.effects) == (run, ())
    assert waiting.wake_at == after(TIMING.parked_s)
    expired = decided(run, observed(gone=True, now=after(TIMING.parked_s)))
    assert expired.run == replace(run, phase=P.CLEANING)
    assert expired.wake_at <= after(TIMING.parked_s)


STAGED = (in_state(S.STAGED),)


def judged(staged, shards=STAGED, **world):
    run = replace(run_with(*shards), phase=P.RUNNING, staged=staged)
    run = replace(run, limits=limits(min_records_per_batch=10))
    return decided(run, observed(**world))


BAD = (BadRecord(3, "InvalidJSON", "it is no JSON", "a.jsonl"), BadRecord(9, "Wrong", "x"))
JUDGED = [
    (Staged(100, 0, 1, 1), job(), None, "all are good"),
    (Staged(0, 0, 0, 0), job(), Reason.EMPTY_INPUT, "nothing to do"),
    (Staged(100, 2, 1, 1, BAD), job(), Reason.BAD_RECORDS, "none may fail"),
    (Staged(100, 2, 1, 1, BAD), job().tolerating(records=2), None, "two may fail"),
    (Staged(100, 2, 1, 1, BAD), job().tolerating(percent=1), Reason.BAD_RECORDS, "1 % may"),
    (Staged(9, 0, 1, 1), job(), Reason.BELOW_MINIMUM, "too few for a batch"),
    (Staged(10, 0, 1, 1), job(), None, "just enough"),
    (
        Staged(100, 91, 1, 1, BAD),
        job().tolerating(percent=100),
        Reason.BELOW_MINIMUM,
        "too few good ones",
    ),
]


@pytest.mark.parametrize(("staged", "builder", "why", "reason"), JUDGED)
def test_a_staged_run_is_judged_before_anything_is_paid(staged, builder, why, reason) -> None:
    decision = judged(staged, builder=builder)
    if why is None:
        assert decision.run.shards[0].state is S.QUEUED, reason
        return
    assert (decision.run.phase, decision.run.verdict.reason) == (P.CLEANING, why), reason
    assert decision.run.completion_time == NOW
    assert decision.wake_at == NOW, "cleaned up at once"
    assert not decision.effects


def test_an_input_without_a_shard_is_judged_too() -> None:
    assert judged(Staged(0, 0, 0, 0), shards=()).run.phase is P.CLEANING


def test_a_run_that_is_partly_paid_is_never_rejected() -> None:
    shards = (in_state(S.STAGED), in_state(S.SUBMITTED, 1))
    decision = judged(Staged(0, 0, 0, 0), shards=shards)
    assert decision.run.phase is P.RUNNING
    assert decision.run.shards[0].state is S.QUEUED


# ---------------------------------------------------------------- settling


SETTLED = [
    ((collected(),), None, [TaskKind.FINISH], "all are answered"),
    ((collected(), in_state(S.ENDED, 1)), None, [TaskKind.COLLECT], "one is not collected"),
    ((collected(), in_state(S.SUBMITTED, 1)), None, [], "one is at the provider"),
    ((collected(unbilled=5),), None, [TaskKind.POOL], "what was not billed goes again"),
    ((collected(unbilled=5, attempt=3),), None, [TaskKind.FINISH], "not more than maxAttempts"),
    ((collected(unbilled=5, pooled=True), collected(1)), None, [TaskKind.FINISH], "it went on"),
    ((collected(unbilled=5),), DESIRED, [TaskKind.FINISH], "a cancelled run sends nothing"),
    ((collected(), in_state(S.DROPPED, 1)), DELETED, [TaskKind.FINISH], "dropped is settled"),
]


@pytest.mark.parametrize(("shards", "cancel", "wanted", "reason"), SETTLED)
def test_when_every_shard_is_settled(shards, cancel, wanted, reason) -> None:
    decision = decided(run_with(*shards, cancel=cancel))
    assert tasks(decision) == wanted, reason
    done = wanted == [TaskKind.FINISH]
    assert decision.run.phase is (P.FINISHING if done else P.RUNNING), reason


def test_unbilled_records_are_pooled_from_all_shards_at_once() -> None:
    shards = (collected(0, 5), collected(1), collected(2, 7))
    (task,) = of_kind(decided(run_with(*shards)), StartTask)
    assert task == StartTask(TaskKind.POOL, sources=(0, 2))


def test_what_our_own_cancel_left_goes_again_whatever_the_attempts() -> None:
    shard = collected(0, 5, attempt=3).with_last(
        cancel_accepted_at=NOW, batch_state=BatchState.CANCELLED
    )
    assert tasks(decided(run_with(shard))) == [TaskKind.POOL]
    expired = shard.with_last(batch_state=BatchState.EXPIRED)
    assert tasks(decided(run_with(expired))) == [TaskKind.FINISH], "that one was an attempt"


def test_a_decision_is_the_same_when_it_is_made_again() -> None:
    """Deciding is idempotent: once its own change is written, only effects are left to want."""
    for run in (admitting(), staging(), run_with(in_state(S.STAGED), in_state(S.ENDED, 1))):
        first = decided(run)
        second = decided(first.run, notes=first.notes)
        assert second.run == first.run
        assert second.effects == first.effects


def test_effect_ids_tell_effects_apart() -> None:
    effects = (
        StartTask(TaskKind.UPLOAD, 0, 1),
        StartTask(TaskKind.UPLOAD, 0, 2),
        StartTask(TaskKind.UPLOAD, 1, 1),
        StartTask(TaskKind.COLLECT, 0, 1),
        StartTask(TaskKind.FINISH),
        CancelBatch(0, "b"),
        CancelBatch(1, "c"),
        SetFinalizer(True),
        StopTasks(),
        Announce("A", "m"),
        Announce("B", "m"),
    )
    assert len({e.id for e in effects}) == len(effects)
    assert SetFinalizer(True).id == SetFinalizer(False).id, "they must not overtake each other"


def test_parked_time_counts_from_the_end_even_where_it_is_not_known() -> None:
    run = replace(over(P.PARKED, in_state(S.DROPPED), cancel=DELETED), completion_time=None)
    assert decided(run, observed(gone=True)).wake_at == NOW + timedelta(seconds=TIMING.parked_s)

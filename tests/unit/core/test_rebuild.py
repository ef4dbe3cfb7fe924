"""A run whose journal may be lost asks the provider first, and takes in what matches (2.6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from batchinference.core.begin import afresh, begin
from batchinference.core.decisions import RESUBMIT, journal_named
from batchinference.core.draft import Decision
from batchinference.core.durability import must_stand
from batchinference.core.effects import Announce, CancelBatch, Search, SetFinalizer, StartTask
from batchinference.core.keys import next_ordinal
from batchinference.core.notes import Notes
from batchinference.core.outcomes import CancelAnswered, Searched, TaskDone
from batchinference.core.policy import reject
from batchinference.core.rebuild import LOOK
from batchinference.core.receipt import receipt
from batchinference.core.view import Scene, conditions_in, status_of
from batchinference.model.batch import (
    BatchFailure,
    BatchState,
    BatchView,
    CancelOutcome,
    SubmissionID,
)
from batchinference.model.codec import encode
from batchinference.model.earlier import Earlier
from batchinference.model.provider import parse_provider
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Run,
    RunPhase,
    ShardState,
    SubmissionState,
)
from batchinference.model.staging import InputSnapshot
from batchinference.model.status import Reason
from batchinference.model.work import Admitted, FaultKind, TaskFault, TaskKind
from builders import job, limits, openai_provider, run_of
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
    run_with,
    seen,
)

S = ShardState
SETTLED_S = TIMING.submit_timeout_s + TIMING.settle_s
FRESH = Earlier()
LOST = Earlier(expected=True)
SNAPSHOT = InputSnapshot("s3://in", 1, 10, "print-1")


def decide_once(run: Run, notes: Notes, **world: Any) -> Decision:
    return decided(run, observed(**world), notes)


def staged(shards: int = 2, earlier: Earlier | None = FRESH, **members: Any) -> Run:
    made = run_of(shards=shards)
    shards_made = tuple(replace(s, state=S.STAGED) for s in made.shards)
    return run_with(*shards_made, earlier=earlier, **members)


def batch(
    run: Run,
    shard: int,
    ordinal: int = 1,
    *,
    state: BatchState = BatchState.IN_PROGRESS,
    content: str | None = None,
    name: str = "",
    at: float = -600,
    void: bool = False,
) -> BatchView:
    """A batch that carries the run's tag."""
    known = run.shards[shard].sha256[:12] if shard < len(run.shards) else "0" * 12
    return BatchView(
        id=name or f"batch-{shard}-{ordinal}",
        state=BatchState.FAILED if void else state,
        submission=SubmissionID(run.tag, shard, ordinal, known if content is None else content),
        input_ref=f"file-{shard}-{ordinal}",
        created_at=after(at),
        files=("out",) if state.is_over and not void else (),
        completed=1 if state.is_over and not void else 0,
        failure=BatchFailure("invalid", "refused") if void else None,
    )


def told(run: Run, *looks: Iterable[BatchView], complete: bool = True) -> tuple[Run, Notes]:
    """The run after listings, each long enough after the one before."""
    notes = Notes()
    for n, found in enumerate(looks):
        seen_now = Searched(tuple(found), complete)
        run, notes = fold_all(run, seen_now, notes=notes, now=after(n * SETTLED_S))
    return run, notes


def searches(run: Run, notes: Notes | None = None, **world: Any) -> bool:
    decision = decide_once(run, notes or Notes(), **world)
    assert not any(isinstance(e, StartTask) and e.kind is TaskKind.UPLOAD for e in decision.effects)
    return Search() in decision.effects


# ---------------------------------------------------------------- who asks, and when


def begun(builder: Any) -> Run:
    pin = run_of().provider
    provider = parse_provider(openai_provider()).spec
    found = seen(builder)
    return begin(found, provider, pin, limits(), installation="i", operator_namespace="ns", now=NOW)


def test_a_new_journal_has_an_earlier_life_to_look_for() -> None:
    assert begun(job()).earlier == FRESH


def test_what_a_status_shows_is_to_be_found() -> None:
    submitted = {"type": "Submitted", "status": "True", "reason": "x", "message": ""}
    times = {"observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    listed = [{"shard": 0, "ordinal": 1, "batchID": "b-1"}, {"shard": 1, "batchID": ""}, "odd"]
    status = {"conditions": [{**submitted, **times}], "submissions": listed}
    found = begun(job().with_status(status)).earlier
    assert found == Earlier(expected=True, accepted=True, shown=("b-1",))


def test_what_is_due_is_not_forgotten_by_an_end_without_a_submission() -> None:
    ended = receipt(run_of(shards=0, phase=RunPhase.ENDED, earlier=replace(LOST, shown=("b",))))
    assert ended.earlier == LOST
    assert afresh(ended, begun(job())).earlier == LOST
    assert afresh(receipt(run_of(phase=RunPhase.ENDED)), begun(job())).earlier is None


@pytest.mark.parametrize("phase", [RunPhase.STAGING, RunPhase.RUNNING])
def test_it_asks_while_it_stages_and_submits_nothing_before_the_answer(phase: RunPhase) -> None:
    assert searches(staged(phase=phase))
    assert not searches(staged(phase=phase), Notes(inflight=frozenset({Search().id})))


def test_nothing_is_asked_before_the_place_is_claimed_nor_after_the_answer() -> None:
    assert not searches(staged(phase=RunPhase.ADMITTING))
    assert Search() not in decide_once(staged(earlier=None), Notes()).effects


def test_a_wait_for_the_account_to_be_listed_is_told_and_is_no_stall() -> None:
    fault = TaskFault(FaultKind.WAITING, Reason.LISTING_ACCOUNT, "17 so far", 30)
    notes = Notes().with_failure(Search().id, fault, NOW, TIMING, 0.5)
    decision = decide_once(staged(), notes)
    assert (decision.problem, decision.wake_at) == (None, after(30))
    scene = Scene(seen(job()), decision.run, decision.notes, None, False, NOW, TIMING)
    said = conditions_in(encode(status_of(scene)))["Submitted"]
    assert (said.reason, "17 so far" in said.message) == (Reason.LISTING_ACCOUNT, True)


# ---------------------------------------------------------------- nothing is there


def test_a_new_run_goes_on_after_one_answer() -> None:
    run, notes = told(staged(), [])
    assert run.earlier is None
    assert LOOK not in notes.looks
    assert {s.state for s in decide_once(run, notes).run.shards} == {S.QUEUED}
    assert told(staged(phase=RunPhase.STAGING), [])[0].earlier is None


def test_where_the_provider_cannot_tell_a_new_claim_is_enough() -> None:
    assert told(staged(), [], complete=False)[0].earlier is None


def test_a_run_that_was_here_before_is_asked_for_twice_a_settle_time_apart() -> None:
    run, notes = told(staged(earlier=LOST), [])
    assert run.earlier == LOST
    waiting = decide_once(run, notes)
    assert Search() not in waiting.effects
    assert waiting.wake_at == after(SETTLED_S)
    assert searches(run, notes, now=after(SETTLED_S))
    assert told(staged(earlier=LOST), [], [])[0].earlier is None


def test_while_it_stages_it_can_be_settled_only_that_there_is_nothing() -> None:
    run = staged(earlier=LOST, phase=RunPhase.STAGING)
    assert told(run, [], [])[0].earlier is None
    held, notes = told(run, [batch(run, 0)], [batch(run, 0)])
    assert held == run
    later = notes.looks[LOOK].newest
    asked = decide_once(held, notes, now=after(1, later))
    assert Search() not in asked.effects, "not all the time"


def test_an_incomplete_answer_settles_nothing_for_a_run_that_was_here_before() -> None:
    run, notes = told(staged(earlier=LOST), [], [], complete=False)
    assert run.earlier == LOST
    decision = decide_once(run, notes, now=after(SETTLED_S + 1))
    assert decision.problem is not None
    assert decision.problem.reason == Reason.JOURNAL_LOST
    assert "another `runID`" in decision.problem.message
    newest = notes.looks[LOOK].newest
    again = after(TIMING.reference_retry_s, newest)
    assert decision.wake_at == again
    assert searches(run, notes, now=again)


def test_a_status_that_shows_a_submission_is_not_refuted_by_an_empty_listing() -> None:
    earlier = replace(LOST, accepted=True)
    assert told(staged(earlier=earlier), [], [])[0].earlier == earlier


# ---------------------------------------------------------------- something is there


def test_what_matches_is_adopted() -> None:
    run = staged(3)
    found = [batch(run, 0), batch(run, 1, state=BatchState.COMPLETED)]
    once, notes = told(run, found)
    assert once.earlier == LOST, "a batch says so"
    assert once.shards == run.shards
    run, notes = told(run, found, found)
    live, ended, missing = run.shards
    assert (live.state, live.last.batch_id) == (S.SUBMITTED, "batch-0-1")
    assert (live.last.input_ref, live.last.claimed_at) == ("file-0-1", after(-600))
    assert (ended.state, ended.last.state) == (S.ENDED, SubmissionState.ENDED)
    assert (missing.state, missing.last) == (S.STAGED, None)
    assert (run.earlier, run.adopted, run.was_submitted) == (None, True, True)
    assert must_stand(staged(3), run)
    goes_on = decide_once(run, notes).run
    assert goes_on.shards[2].state is S.CLAIMED or goes_on.shards[2].state is S.QUEUED
    assert next_ordinal(run, missing) == 2, "above the highest that was seen"


def test_void_batches_came_before_and_late_ones_stand_beside() -> None:
    run = staged(1)
    found = [
        batch(run, 0, 1, void=True),
        batch(run, 0, 2, at=-500),
        batch(run, 0, 3, name="first", at=-400),
        batch(run, 0, 3, name="second", at=-300),
        batch(run, 0, 3, name="void", at=-450, void=True),
    ]
    (shard,) = told(run, found, found)[0].shards
    assert [(s.ordinal, s.state) for s in shard.submissions] == [
        (1, SubmissionState.VOID),
        (3, SubmissionState.ACCEPTED),
    ]
    assert shard.last.batch_id == "first"
    assert [s.batch_id for s in shard.late] == ["batch-0-2", "second"]
    assert (shard.state, shard.attempt) == (S.SUBMITTED, 2)


def test_a_shard_of_which_all_was_void_is_as_after_its_end() -> None:
    run = staged(1)
    found = [batch(run, 0, 1, void=True)]
    changed, _ = told(run, found, found)
    (shard,) = changed.shards
    assert shard.last.state is SubmissionState.VOID
    assert (shard.state, changed.earlier) == (S.ENDED, None)


STRANGE = [
    (0, "f" * 12, "another content"),
    (7, None, "a shard that was not staged"),
    (0, "", "no content at all"),
]


@pytest.mark.parametrize(("shard", "content", "reason"), STRANGE)
def test_what_does_not_match_stalls_and_the_rest_is_followed(shard, content, reason) -> None:
    run = staged()
    found = [batch(run, 1), batch(run, shard, 2, content=content, name="strange")]
    run, notes = told(run, found, found)
    assert run.earlier == replace(LOST, asking=False, strange=("strange",)), reason
    assert run.shards[1].state is S.SUBMITTED
    decision = decide_once(run, notes)
    assert decision.problem.reason == Reason.JOURNAL_LOST
    assert "strange" in decision.problem.message
    assert decision.run.shards[0].state is S.STAGED, "nothing more is submitted"
    assert not decision.asking


def test_void_batches_that_do_not_match_are_no_matter() -> None:
    run = staged()
    found = [batch(run, 0, 4, content="f" * 12, void=True)]
    run, _ = told(run, found, found)
    assert run.earlier is None
    assert next_ordinal(run, run.shards[0]) == 5


def test_many_strange_batches_are_told_in_short() -> None:
    run = staged(earlier=replace(LOST, asking=False, strange=tuple("abcdefg")))
    message = decide_once(run, Notes()).problem.message
    assert "Batches a, b, c, d, e, ... at the provider carry" in message


def test_a_run_with_strange_batches_does_not_finish_without_them() -> None:
    earlier = replace(LOST, asking=False, strange=("strange",))
    run = staged(1, earlier=earlier)
    done = run.with_shard(replace(run.shards[0], state=S.DROPPED))
    assert decide_once(done, Notes()).run.phase is RunPhase.RUNNING
    live = run_with(in_state(S.SUBMITTED), earlier=earlier, cancel=Cancel(CancelWhy.DESIRED, NOW))
    decision = decide_once(live, Notes())
    assert decision.problem is None
    assert CancelBatch(0, "batch-0-1") in decision.effects, "what is known is cancelled"


def test_where_all_is_found_a_listing_without_an_end_will_do() -> None:
    run = staged(earlier=replace(LOST, accepted=True))
    found = [batch(run, 0), batch(run, 1)]
    assert told(run, found, found, complete=False)[0].earlier is None
    assert told(run, found[:1], found[:1], complete=False)[0].earlier is not None
    void = [batch(run, 0), batch(run, 1, void=True)]
    assert told(run, void, void, complete=False)[0].earlier is not None
    small = run.with_shard(replace(run.shards[1], rows=3))
    small = replace(small, limits=limits(min_records_per_batch=10))
    assert told(small, found[:1], found[:1], complete=False)[0].earlier is None


def test_an_answer_that_comes_late_changes_nothing() -> None:
    for earlier in (None, replace(LOST, asking=False, strange=("x",))):
        run = staged(earlier=earlier)
        assert told(run, [batch(run, 0)])[0] == run


def test_batches_without_a_time_are_taken_for_new() -> None:
    run = staged(1)
    found = [replace(batch(run, 0), created_at=None)]
    run, _ = told(run, found, found)
    assert run.shards[0].last.accepted_at == after(SETTLED_S)


# ---------------------------------------------------------------- claims and stages


def test_a_claim_of_another_journal_says_that_there_was_one() -> None:
    run = run_of(shards=0, phase=RunPhase.ADMITTING, earlier=FRESH)
    for before in (FRESH, None):
        told_so = TaskDone(TaskKind.ADMIT, None, None, Admitted(SNAPSHOT, claimed_before=True))
        changed, _ = fold_all(replace(run, earlier=before), told_so)
        assert changed.earlier == LOST
        assert changed.phase is RunPhase.STAGING
    answered = Admitted(SNAPSHOT, claimed_before=True, had_answers=True)
    changed, _ = fold_all(run, TaskDone(TaskKind.ADMIT, None, None, answered))
    assert changed.earlier == replace(LOST, accepted=True), "a listing without it proves nothing"
    unclaimed = TaskDone(TaskKind.ADMIT, None, None, Admitted(SNAPSHOT))
    assert fold_all(run, unclaimed)[0].earlier == FRESH


def test_a_run_that_was_here_before_is_not_rejected_for_what_it_meets_now() -> None:
    run = staged(earlier=LOST, phase=RunPhase.STAGING)
    assert reject(run, "InputTooLarge", "m", NOW) == run
    assert reject(staged(phase=RunPhase.STAGING), "x", "m", NOW).phase is RunPhase.CLEANING


# ---------------------------------------------------------------- cancelled meanwhile


def test_deleting_a_run_that_was_here_before_waits_for_what_it_has() -> None:
    run = staged(earlier=LOST)
    decision = decide_once(run, Notes(), deleting=True)
    assert decision.run.phase is RunPhase.RUNNING
    assert Search() in decision.effects
    assert SetFinalizer(present=False) not in decision.effects
    late = decide_once(run, Notes(), deleting=True, now=after(TIMING.cancel_release_s + 1))
    assert late.run.cancel is not None


def test_a_cancelled_run_takes_what_there_is_and_cancels_it() -> None:
    run = staged(earlier=LOST, cancel=Cancel(CancelWhy.DELETED, NOW))
    found = [batch(run, 0)]
    run, notes = told(run, found, found, complete=False)
    assert run.earlier is not None
    assert not run.earlier.asking
    decision = decide_once(run, notes, gone=True, now=after(SETTLED_S))
    assert CancelBatch(0, "batch-0-1") in decision.effects


def test_the_next_life_of_a_cancelled_run_asks_again_where_not_all_was_told() -> None:
    run = staged(earlier=LOST, cancel=Cancel(CancelWhy.DELETED, NOW))
    run, notes = told(run, [], [], complete=False)
    ended = decide_once(run, notes, gone=True, now=after(SETTLED_S)).run
    assert ended.phase is RunPhase.CLEANING
    assert not ended.was_submitted
    kept = receipt(ended).earlier
    assert kept == Earlier(asking=True, expected=True)


def test_a_cancelled_run_does_not_wait_for_ever_for_what_it_may_have() -> None:
    run = staged(earlier=LOST, cancel=Cancel(CancelWhy.DELETED, NOW), phase=RunPhase.ADMITTING)
    early = decide_once(run, Notes(), gone=True, now=after(TIMING.parked_s - 1))
    assert early.run.phase is RunPhase.ADMITTING
    late = decide_once(run, Notes(), gone=True, now=after(TIMING.parked_s))
    assert late.run.phase is RunPhase.CLEANING


def test_a_cancelled_run_is_not_given_up_while_this_process_asks() -> None:
    """The operator may have been down for all that time."""
    run = staged(earlier=LOST, cancel=Cancel(CancelWhy.DELETED, NOW))
    first = decide_once(run, Notes(), gone=True, now=after(TIMING.parked_s))
    assert first.run.phase is RunPhase.RUNNING
    assert Search() in first.effects
    for reason, phase in (
        (Reason.LISTING_ACCOUNT, RunPhase.RUNNING),
        (Reason.PROVIDER_UNAVAILABLE, RunPhase.CLEANING),
    ):
        failed = failing(Search().id, FaultKind.RETRY, reason)
        later = decide_once(run, failed, gone=True, now=after(TIMING.parked_s))
        assert later.run.phase is phase, reason
    for complete, phase in ((True, RunPhase.RUNNING), (False, RunPhase.CLEANING)):
        looked = Notes().with_absence(LOOK, after(TIMING.parked_s), complete=complete)
        later = decide_once(run, looked, gone=True, now=after(TIMING.parked_s))
        assert later.run.phase is phase, complete


def test_a_new_run_that_is_deleted_is_gone_at_once() -> None:
    run = staged(phase=RunPhase.STAGING)
    assert decide_once(run, Notes(), deleting=True).run.phase is RunPhase.CLEANING


def test_a_parked_run_asks_again_when_its_object_comes_back() -> None:
    earlier = replace(LOST, asking=False, strange=("strange",))
    parked = staged(earlier=earlier, phase=RunPhase.PARKED, completion_time=NOW)
    parked = replace(parked, cancel=Cancel(CancelWhy.DELETED, NOW))
    assert decide_once(parked, Notes()).run.earlier == LOST


def test_a_lost_journal_is_told_while_it_is_rebuilt() -> None:
    run = staged(earlier=LOST)
    scene = Scene(seen(job()), run, Notes(), None, False, NOW, TIMING)
    said = conditions_in(encode(status_of(scene)))["Submitted"]
    assert (said.status, said.reason) == ("Unknown", Reason.JOURNAL_LOST)


# ---------------------------------------------------------------- decided by a person


def test_a_person_can_say_that_all_there_is_is_listed() -> None:
    run, notes = told(staged(earlier=replace(LOST, accepted=True)), [], complete=False)
    asked = decide_once(run, notes)
    about = journal_named(run)
    assert f"{RESUBMIT}={about}" in asked.problem.message
    annotations = {RESUBMIT: about}
    answered = decide_once(run, notes, annotations=annotations)
    assert answered.run.earlier.certain
    found = [batch(run, 0)]
    changed = answered.run
    known = answered.notes
    for n in (1, 2):
        changed, known = fold_all(
            changed, Searched(tuple(found), False), notes=known, now=after(n * SETTLED_S)
        )
    assert changed.earlier is None
    assert [s.state for s in changed.shards] == [S.SUBMITTED, S.STAGED], "what is listed is kept"
    after_all = decide_once(changed, known, annotations=annotations)
    reasons = [e.reason for e in after_all.effects if isinstance(e, Announce)]
    assert Reason.DECISION_IGNORED not in reasons, "it may stay"


def test_a_person_can_leave_batches_aside_that_do_not_match() -> None:
    run = staged(earlier=replace(LOST, asking=False, strange=("b-1", "b-2")))
    asked = decide_once(run, Notes())
    assert f"{RESUBMIT}=b-1,b-2" in asked.problem.message
    one = decide_once(run, Notes(), annotations={RESUBMIT: "b-1"}).run
    assert one.earlier.strange == ("b-2",)
    both = decide_once(run, Notes(), annotations={RESUBMIT: "b-1,b-2"}).run
    assert both.earlier is None
    assert {s.state for s in decide_once(both, Notes()).run.shards} == {S.QUEUED}


CANCELLED = Cancel(CancelWhy.DELETED, NOW)


@pytest.mark.parametrize(
    "shard", [in_state(S.STAGED), in_state(S.COLLECTED)], ids=["nothing matched", "another did"]
)
def test_a_deleted_run_cancels_what_carries_its_tag_and_matches_nothing(shard) -> None:
    earlier = replace(LOST, asking=False, strange=("b-1", "b-2"))
    run = run_with(shard, earlier=earlier, cancel=CANCELLED)
    decision = decide_once(run, Notes())
    assert [e.batch_id for e in of_kind(decision, CancelBatch)] == ["b-1", "b-2"]
    assert decision.run.phase is RunPhase.RUNNING, "the cancels are waited for"
    taken = CancelAnswered(0, "b-1", CancelOutcome.ACCEPTED)
    denied = CancelAnswered(0, "b-2", CancelOutcome.NOT_FOUND)
    run, notes = fold_all(decision.run, taken, denied)
    assert run.earlier is not None
    assert run.earlier.uncancelled == ("b-2",)
    again = decide_once(run, notes, now=after(TIMING.retry_most_s))
    assert again.run.phase is not RunPhase.RUNNING, "and not for ever"


def test_an_orphaned_run_cancels_nothing_that_matches_nothing() -> None:
    earlier = replace(LOST, asking=False, strange=("b-1",))
    orphaned = Cancel(CancelWhy.ORPHANED, NOW)
    run = run_with(in_state(S.COLLECTED), earlier=earlier, cancel=orphaned)
    decision = decide_once(run, Notes())
    assert of_kind(decision, CancelBatch) == []
    assert decision.run.phase is not RunPhase.RUNNING

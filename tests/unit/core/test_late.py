"""Batches that come to light after they were given up: followed, cancelled, collected, never lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.effects import Announce, CancelBatch, LookUp, StartTask, Submit, following
from batchinference.core.notes import Notes
from batchinference.core.outcomes import BatchSeen, CancelAnswered, LookedUp, TaskDone
from batchinference.model.batch import (
    BatchFailure,
    BatchState,
    CancelOutcome,
    SubmissionID,
    Traits,
)
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    RunPhase,
    Shard,
    ShardState,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, Pooled, ShardCollected, TaskKind
from builders import job, shard_of, submission_of
from invariants import journal_problems
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    failed_view,
    failing,
    fold,
    fold_all,
    in_state,
    looks,
    observed,
    of_kind,
    run_with,
    view_of,
    with_late_batch,
)

S, U = ShardState, SubmissionState
GIVEN_UP = replace(submission_of(1, U.FENCED), batch_id="", accepted_at=None, fenced_at=NOW)
NOTHING = BatchFailure("invalid_file", "no such file")
SETTLE = TIMING.settle_s


def behind(state: S, last: U | None = None, **members) -> Shard:
    """A shard whose first ordinal was given up, with the second one in that state."""
    shard = in_state(state, **members)
    second = shard.last or submission_of(2, last or U.REFUSED)
    if last is not None:
        second = replace(second, state=last)
    if second.state in {U.REFUSED, U.CLAIMED}:
        second = replace(second, batch_id="", accepted_at=None)
    second = replace(second, ordinal=2, batch_id=second.batch_id and "batch-0-2")
    if state is S.COLLECTED:
        members = {"collected": Collected(answered=60, unbilled=40), **members}
    return replace(shard, submissions=(GIVEN_UP, second), **members)


def late_view(run, **members):
    return view_of(run, ordinal=1, batch_id="batch-late", **members)


def next_step(run, notes=None, **world):
    decision = decided(run, observed(**world), notes)
    assert journal_problems(decision.run) == []
    return decision


APPEARANCES = [
    (behind(S.QUEUED), S.SUBMITTED, "the newer ordinal was refused: the late one is what it has"),
    (behind(S.QUEUED, U.VOID), S.SUBMITTED, "the newer ordinal failed with nothing processed"),
    (behind(S.DROPPED), S.SUBMITTED, "it was dropped, and the provider has it after all"),
    (behind(S.SUBMITTED), S.SUBMITTED, "both are at the provider"),
    (behind(S.ENDED), S.SUBMITTED, "not collected before the late one has ended too"),
    (behind(S.COLLECTED), S.SUBMITTED, "the late one may have what it lacks"),
    (behind(S.CLAIMED), S.CLAIMED, "the newer call is under way: first what becomes of that"),
    (behind(S.UNKNOWN), S.UNKNOWN, "first what became of the newer call"),
    (behind(S.FENCING), S.FENCING, "likewise"),
]


@pytest.mark.parametrize(("shard", "then", "reason"), APPEARANCES)
def test_a_late_batch_is_followed_whatever_became_of_newer_ordinals(shard, then, reason) -> None:
    run = run_with(shard, in_state(S.QUEUED, 1))
    run, notes = fold_all(run, BatchSeen(late_view(run)))
    busy = frozenset({"submit:0:2"})
    notes = replace(notes, inflight=busy, uploads={(1, 1): "file", (0, 3): "file"})
    decision = next_step(run, notes)
    changed = decision.run.shards[0]
    (late,) = changed.late
    assert changed.state is then, reason
    assert (late.ordinal, late.batch_id, late.state) == (1, "batch-late", U.ACCEPTED)
    assert changed.submissions == shard.submissions, "what it had stays as it was"
    assert decision.problem.reason == Reason.DUPLICATE_SUBMISSION
    assert "batch-late" in decision.problem.message
    assert not of_kind(decision, Submit), "nothing is submitted while it is live"
    assert not of_kind(decision, StartTask)
    (event,) = of_kind(decision, Announce)
    assert event.warning
    assert fold(decision.run, BatchSeen(late_view(run))) == decision.run, "seen twice is seen once"
    again = next_step(decision.run, decision.notes)
    assert not of_kind(again, Announce), "one Event is enough"


ENDS = [
    (behind(S.QUEUED), BatchState.COMPLETED, S.ENDED, "its answers are what the shard has"),
    (behind(S.QUEUED), BatchState.EXPIRED, S.ENDED, "and what it did not process goes again"),
    (behind(S.QUEUED, not_before=NOW), BatchState.FAILED, S.QUEUED, "it processed nothing"),
    (behind(S.QUEUED, U.VOID, not_before=NOW), BatchState.FAILED, S.QUEUED, "neither of them did"),
    (behind(S.SUBMITTED), BatchState.COMPLETED, S.SUBMITTED, "the newer one goes on"),
    (behind(S.ENDED), BatchState.COMPLETED, S.ENDED, "both are collected"),
    (behind(S.ENDED), BatchState.FAILED, S.ENDED, "the newer one is collected"),
    (behind(S.COLLECTED), BatchState.COMPLETED, S.ENDED, "collected once more, with the late one"),
    (behind(S.CLAIMED), BatchState.COMPLETED, S.CLAIMED, "the newer call is still under way"),
]


@pytest.mark.parametrize(("shard", "state", "then", "reason"), ENDS)
def test_the_run_heals_when_the_late_batch_has_ended(shard, state, then, reason) -> None:
    run = fold(run_with(shard), BatchSeen(late_view(run_with(shard))))
    run = next_step(run, Notes(inflight=frozenset({"submit:0:2"}))).run
    view = late_view(run, state=state, files=("out",))
    if state is BatchState.FAILED:
        view = failed_view(run, NOTHING, ordinal=1, batch_id="batch-late")
    run, notes = fold_all(run, BatchSeen(view))
    decision = next_step(run, replace(notes, inflight=frozenset({"submit:0:2"})), granted=())
    assert decision.run.shards[0].state is then, reason
    assert decision.problem is None, "the condition goes"
    collecting = [StartTask(TaskKind.COLLECT, 0, 2)] if then is S.ENDED else []
    assert of_kind(decision, StartTask) == collecting, reason


def test_a_second_batch_of_one_submission_is_followed_beside_the_first() -> None:
    run = run_with(in_state(S.SUBMITTED))
    run, notes = fold_all(run, BatchSeen(view_of(run, batch_id="second")))
    shard = run.shards[0]
    assert (shard.last.batch_id, [s.batch_id for s in shard.late]) == ("batch-0-1", ["second"])
    decision = next_step(run, notes)
    assert "second one of this submission" in decision.problem.message
    done = view_of(run, state=BatchState.COMPLETED, files=("out",))
    run = fold(decision.run, BatchSeen(done))
    assert run.shards[0].state is S.SUBMITTED, "the second one goes on"
    run = fold(run, BatchSeen(replace(done, id="second")))
    assert run.shards[0].state is S.ENDED


def test_of_two_batches_that_a_look_found_the_oldest_is_taken() -> None:
    run = run_with(in_state(S.UNKNOWN))
    old = view_of(run, batch_id="old", created_at=after(-90))
    new = view_of(run, batch_id="new", created_at=after(-60))
    shard = fold(run, LookedUp(0, 1, old, others=(new,))).shards[0]
    assert (shard.last.batch_id, [s.batch_id for s in shard.late]) == ("old", ["new"])


def test_a_batch_of_a_refused_ordinal_is_followed() -> None:
    refused = replace(submission_of(1, U.REFUSED), batch_id="", accepted_at=None)
    run = run_with(shard_of(0, S.QUEUED, submissions=(refused,)))
    run = next_step(fold(run, BatchSeen(late_view(run)))).run
    assert run.shards[0].state is S.SUBMITTED
    assert run.was_submitted


FORGOTTEN = [
    ("", True, "the journal does not keep certain refusals; the content says that it is ours"),
    ("other", False, "another content: of an earlier life with another input"),
]


@pytest.mark.parametrize(("content", "taken", "reason"), FORGOTTEN)
def test_a_batch_of_a_forgotten_ordinal_is_known_by_its_content(content, taken, reason) -> None:
    submitted = in_state(S.SUBMITTED)
    run = run_with(replace(submitted, submissions=(replace(submitted.last, ordinal=3),)))
    view = view_of(run, ordinal=2, batch_id="forgotten")
    if content:
        view = replace(view, submission=replace(view.submission, content_hash=content))
    assert bool(fold(run, BatchSeen(view)).shards[0].late) == taken, reason


def test_a_forgotten_batch_that_came_to_nothing_stays_forgotten() -> None:
    """The journal does not keep all that a quota failed."""
    submitted = in_state(S.SUBMITTED)
    run = run_with(replace(submitted, submissions=(replace(submitted.last, ordinal=9),)))
    full = BatchFailure("token_limit_exceeded", "the queue is full", quota=True)
    view = failed_view(run, full, ordinal=2, batch_id="void")
    assert fold(run, BatchSeen(view)) == run
    assert fold(run, BatchSeen(replace(view, completed=1))).shards[0].late, "it has answers"


def test_where_metadata_is_not_echoed_its_input_tells_a_late_batch() -> None:
    run = run_with(behind(S.SUBMITTED))
    view = replace(late_view(run), submission=None, input_ref="file-1")
    (late,) = fold(run, BatchSeen(view)).shards[0].late
    assert (late.ordinal, late.batch_id) == (1, "batch-late")
    assert fold(run, BatchSeen(replace(view, input_ref="file-9"))) == run
    assert fold(run, BatchSeen(replace(view, input_ref=""))) == run


def test_a_newer_call_that_is_given_up_leaves_the_late_batch() -> None:
    shard = with_late_batch(behind(S.FENCING)).with_last(fenced_at=after(-SETTLE - 5))
    decision = next_step(run_with(shard), looks(0, 2, first=5, newest=5))
    assert decision.run.shards[0].state is S.SUBMITTED
    assert decision.run.shards[0].last.state is U.FENCED


def test_a_late_batch_that_the_provider_denies_is_told() -> None:
    run = run_with(with_late_batch(in_state(S.SUBMITTED)))
    notes = Notes()
    for _ in range(2):
        missing = following("batch-late")
        notes = failing(missing, FaultKind.STALLED, Reason.BATCH_NOT_FOUND, notes)
    decision = next_step(run, notes)
    assert decision.problem.reason == Reason.DUPLICATE_SUBMISSION


# ---------------------------------------------------------------- cancelling


DELETED, ORPHANED = CancelWhy.DELETED, CancelWhy.ORPHANED
CANCELS = [
    (in_state(S.SUBMITTED), DELETED, {"batch-0-1", "batch-late"}, "both are cancelled"),
    (behind(S.QUEUED), CancelWhy.DESIRED, {"batch-late"}, "the late one is all there is"),
    (behind(S.UNKNOWN), DELETED, {"batch-late"}, "the other one is being looked for"),
    (in_state(S.SUBMITTED), ORPHANED, set(), "an orphaned run cancels nothing"),
]


@pytest.mark.parametrize(("shard", "why", "ids", "reason"), CANCELS)
def test_a_late_batch_is_cancelled_like_any_other(shard, why, ids, reason) -> None:
    run = run_with(with_late_batch(shard), cancel=Cancel(why, NOW))
    decision = next_step(run)
    assert {e.batch_id for e in of_kind(decision, CancelBatch)} == ids, reason
    run = fold(decision.run, *(CancelAnswered(0, i, CancelOutcome.ACCEPTED) for i in ids))
    assert {s.batch_id for s in run.shards[0].made if s.cancel_accepted_at} == ids
    assert not of_kind(next_step(run), CancelBatch), "once is enough"


@pytest.mark.parametrize("phase", [RunPhase.FINISHING, RunPhase.PARKED])
def test_one_that_appears_while_a_cancelled_run_ends_is_cancelled_too(phase) -> None:
    run = run_with(in_state(S.COLLECTED), cancel=Cancel(DELETED, NOW))
    run = replace(run, phase=phase, completion_time=NOW)
    run = fold(run, BatchSeen(view_of(run, batch_id="batch-late")))
    decision = decided(run, observed(gone=True))
    assert of_kind(decision, CancelBatch) == [CancelBatch(0, "batch-late")]
    assert decision.run.shards[0].state is S.COLLECTED, "its results are being written already"


def test_the_object_is_held_until_the_cancel_of_the_late_batch_was_accepted() -> None:
    shard = with_late_batch(in_state(S.SUBMITTED).with_last(cancel_accepted_at=NOW))
    run = run_with(shard, cancel=Cancel(DELETED, NOW))
    held = decided(run, observed(deleting=True))
    assert held.wake_at == after(TIMING.cancel_release_s)
    run = fold(run, CancelAnswered(0, "batch-late", CancelOutcome.ALREADY_OVER))
    released = decided(run, observed(deleting=True))
    assert "finalizer" in {e.id for e in released.effects}


def test_a_parked_run_that_is_taken_up_collects_what_appeared_meanwhile() -> None:
    ended = with_late_batch(behind(S.DROPPED), state=U.ENDED, batch_state=BatchState.CANCELLED)
    run = run_with(ended, in_state(S.DROPPED, 1), cancel=Cancel(DELETED, NOW))
    run = replace(run, phase=RunPhase.PARKED, completion_time=NOW)
    decision = next_step(run)
    assert [s.state for s in decision.run.shards] == [S.ENDED, S.QUEUED]


# ---------------------------------------------------------------- collecting


def collected(late: int = 0, **counts) -> TaskDone:
    found = Collected(**(counts or {"answered": 100}))
    return TaskDone(TaskKind.COLLECT, 0, 1, ShardCollected(found, late))


def test_what_was_collected_without_the_late_batch_does_not_count() -> None:
    done = replace(submission_of(1, U.ENDED), batch_id="batch-late")
    run = run_with(replace(in_state(S.ENDED), late=(done,)))
    assert fold(run, collected(late=0)) == run, "begun before the late one came to light"
    shard = fold(run, collected(late=1)).shards[0]
    assert shard.state is S.COLLECTED
    assert shard.late[0].collected
    assert next_step(run_with(shard)).run.shards[0] == shard, "it is not collected again"


def test_what_was_collected_before_is_shown_until_all_is() -> None:
    run = run_with(behind(S.COLLECTED))
    run = next_step(fold(run, BatchSeen(late_view(run)))).run
    assert run.shards[0].collected == Collected(answered=60, unbilled=40)
    assert run.shards[0].state is S.SUBMITTED


# ---------------------------------------------------------------- records that went on


def pooled(*made: Shard):
    """A shard whose unbilled records went on into others when its first ordinal appears."""
    source = replace(behind(S.COLLECTED), pooled=True)
    run = run_with(source, *(replace(s, sources=(0,)) for s in made))
    return next_step(fold(run, BatchSeen(late_view(run)))).run


def test_records_that_were_not_sent_yet_wait_for_the_late_batch() -> None:
    run = pooled(in_state(S.QUEUED, 1), in_state(S.QUEUED, 2))
    assert [(s.state, s.pooled) for s in run.shards[1:]] == [(S.REGROUPED, False)] * 2
    assert of_kind(decided(run), StartTask) == [], "what it has is not known yet"


@pytest.mark.parametrize("other", [S.SUBMITTED, S.COLLECTED, S.REGROUPED])
def test_records_that_were_not_sent_yet_go_on_once_the_late_batch_is_collected(other) -> None:
    members = {"collected": Collected(answered=100)} if other is S.COLLECTED else {}
    began = S.QUEUED if other is S.REGROUPED else other
    run = pooled(in_state(began, 1, **members), in_state(S.QUEUED, 2))
    late = replace(run.shards[0].late[0], state=U.ENDED, collected=True)
    source = replace(run.shards[0], state=S.COLLECTED, late=(late,))
    task = of_kind(decided(run.with_shard(source)), StartTask)
    unsent = (1, 2) if other is S.REGROUPED else (2,)
    assert [(t.kind, t.sources) for t in task] == [(TaskKind.POOL, unsent)]


def test_records_that_were_taken_back_wait_while_their_run_is_parked() -> None:
    run = pooled(in_state(S.QUEUED, 1))
    cancelled = decided(replace(run, cancel=Cancel(DELETED, NOW)), observed(gone=True)).run
    assert cancelled.shards[1].state is S.DROPPED
    parked = replace(
        cancelled, phase=RunPhase.PARKED, cancel=Cancel(DELETED, NOW), completion_time=NOW
    )
    resumed = decided(parked, observed(builder=job())).run
    assert resumed.shards[1].state is S.REGROUPED, "they are pooled when the late one has ended"


def test_records_that_were_being_sent_are_pooled_anew_when_nothing_came_of_it() -> None:
    run = pooled(in_state(S.SUBMITTED, 1))
    void = failed_view(run, BatchFailure("quota", "full", quota=True), shard=1)
    run = next_step(fold(run, BatchSeen(void))).run
    assert (run.shards[1].state, run.shards[1].pooled) == (S.REGROUPED, False)
    assert run.shards[0].pooled


def test_records_that_went_on_twice_are_taken_back_when_their_first_shard_appears() -> None:
    first = replace(behind(S.COLLECTED), pooled=True)
    second = replace(in_state(S.COLLECTED, 1, collected=Collected(unbilled=100)), pooled=True)
    second = replace(second, sources=(0,))
    third = replace(in_state(S.QUEUED, 2), sources=(1,))
    run = run_with(first, second, third)
    run = next_step(fold(run, BatchSeen(late_view(run)))).run
    assert [(s.state, s.pooled) for s in run.shards] == [
        (S.SUBMITTED, True),
        (S.COLLECTED, True),
        (S.REGROUPED, False),
    ]


def test_a_given_up_batch_of_a_shard_that_was_regrouped_is_a_late_one() -> None:
    gone = replace(shard_of(0, S.REGROUPED, submissions=(GIVEN_UP,)), pooled=True)
    unsent = replace(in_state(S.QUEUED, 1), sources=(0,))
    run = run_with(gone, unsent)
    run = next_step(fold(run, BatchSeen(late_view(run)))).run
    assert [s.state for s in run.shards] == [S.SUBMITTED, S.REGROUPED]
    assert [s.batch_id for s in run.shards[0].late] == [late_view(run).id]


def test_records_that_were_pooled_after_the_late_batch_go_as_they_are() -> None:
    run = run_with(with_late_batch(behind(S.COLLECTED), state=U.ENDED, collected=True))
    made = Pooled((shard_of(1, S.STAGED, rows=40),), (0,), late=1)
    stale = replace(made, late=0)
    assert fold(run, TaskDone(TaskKind.POOL, None, None, stale)) == run
    run = next_step(fold(run, TaskDone(TaskKind.POOL, None, None, made))).run
    assert run.shards[1].state is S.QUEUED


def test_pooled_records_remember_where_they_come_from() -> None:
    run = run_with(behind(S.COLLECTED))
    made = Pooled((shard_of(1, S.STAGED, rows=40),), (0,))
    run = fold(run, TaskDone(TaskKind.POOL, None, None, made))
    assert run.shards[1].sources == (0,)


def test_what_is_followed_again_is_not_pooled_meanwhile() -> None:
    run = run_with(behind(S.COLLECTED))
    run = next_step(fold(run, BatchSeen(late_view(run)))).run
    made = Pooled((shard_of(1, S.STAGED, rows=40),), (0,))
    assert fold(run, TaskDone(TaskKind.POOL, None, None, made)) == run


# ---------------------------------------------------------------- before the next ordinal

GONE = looks(first=999, newest=SETTLE)
STALE = looks(first=999, newest=SETTLE + 1)
CUT = looks(first=5, newest=5, complete=False)
LOOKS = [
    (Notes(), LookUp, "this process has not looked yet"),
    (STALE, LookUp, "time has passed since"),
    (GONE, StartTask, "it was not there just now"),
    (CUT, None, "the listing was cut short"),
]


@pytest.mark.parametrize(("notes", "effect", "reason"), LOOKS)
@pytest.mark.parametrize("made", ["itself", "of its records"])
def test_nothing_goes_again_before_a_fresh_look_for_what_was_given_up(
    made, notes, effect, reason
) -> None:
    if made == "itself":
        run = run_with(replace(in_state(S.QUEUED), submissions=(GIVEN_UP,)))
    else:
        run = run_with(replace(behind(S.COLLECTED), pooled=True), in_state(S.QUEUED, 1))
        run = run.with_shard(replace(run.shards[1], sources=(0,)))
    decision = next_step(run, notes)
    assert [type(e) for e in decision.effects] == ([effect] if effect else []), reason
    for look in of_kind(decision, LookUp):
        assert (look.shard, look.ordinal, look.fenced) == (0, 1, True)
    if effect is None:
        assert decision.problem.reason == Reason.OUTCOME_UNKNOWN
        assert decision.wake_at == after(TIMING.reference_retry_s - 5)


LAST_LOOKS = [
    (Notes(), LookUp, "this process has not looked yet"),
    (STALE, LookUp, "time has passed since"),
    (GONE, StartTask, "it was not there just now"),
    (CUT, StartTask, "more can't be done than to look"),
    (failing("look:0:1"), StartTask, "what is collected does not wait for a provider"),
]


@pytest.mark.parametrize("cancel", [None, Cancel(DELETED, NOW)])
@pytest.mark.parametrize(("notes", "effect", "reason"), LAST_LOOKS)
def test_a_run_does_not_finish_without_a_last_look(notes, effect, reason, cancel) -> None:
    run = run_with(behind(S.COLLECTED, collected=Collected(answered=100)), cancel=cancel)
    decision = next_step(run, notes)
    assert [type(e) for e in decision.effects] == [effect], reason
    finishing = effect is StartTask
    assert decision.run.phase is (RunPhase.FINISHING if finishing else RunPhase.RUNNING)


def test_a_last_look_under_way_is_waited_for() -> None:
    run = run_with(behind(S.COLLECTED, collected=Collected(answered=100)))
    decision = next_step(run, Notes(inflight=frozenset({"look:0:1"})))
    assert (decision.effects, decision.run.phase) == ((), RunPhase.RUNNING)


def test_a_look_for_what_was_given_up_is_counted() -> None:
    run = run_with(replace(in_state(S.QUEUED), submissions=(GIVEN_UP,)))
    run, notes = fold_all(run, LookedUp(0, 1, None))
    assert notes.looks[0, 1].newest == NOW
    assert of_kind(next_step(run, notes), StartTask)
    assert not of_kind(next_step(run, notes, traits=Traits(lists_complete=False)), StartTask)


@pytest.mark.parametrize("state", [S.UNKNOWN, S.SUBMITTED])
def test_a_look_that_finds_the_batch_of_another_submission_is_made_again_later(state) -> None:
    shard = with_late_batch(behind(state)) if state is S.UNKNOWN else behind(state)
    run = run_with(shard)
    ordinal, known = (2, "batch-late") if state is S.UNKNOWN else (1, "batch-0-2")
    changed, notes = fold_all(run, LookedUp(0, ordinal, view_of(run, 0, 2, batch_id=known)))
    assert changed == run
    assert not notes.looks, "it is no absence either"
    assert notes.failures[f"look:0:{ordinal}"].retry_at == after(TIMING.retry_first_s)


def test_a_look_for_a_shard_that_is_not_there_is_nothing() -> None:
    run = run_with(in_state(S.UNKNOWN))
    assert fold_all(run, LookedUp(7, 1, None)) == (run, Notes())


def test_a_given_up_ordinal_that_a_look_found_is_followed() -> None:
    run = run_with(behind(S.QUEUED))
    run = next_step(fold(run, LookedUp(0, 1, late_view(run)))).run
    assert run.shards[0].state is S.SUBMITTED
    assert not run.shards[0].missing, "it is not looked for any more"


def test_a_batch_that_names_no_shard_of_the_run_is_nobody_s() -> None:
    run = run_with(in_state(S.SUBMITTED))
    for shard in (-1, 1):
        named = SubmissionID(run.tag, shard, 1, "hash")
        view = replace(view_of(run, batch_id="batch-9"), submission=named)
        assert fold(run, BatchSeen(view)) == run


def test_a_second_batch_that_was_void_leaves_no_trace() -> None:
    run = run_with(in_state(S.SUBMITTED))
    for n in range(50):
        second = failed_view(run, NOTHING)
        run = fold(run, BatchSeen(replace(second, id=f"second-{n}")))
    assert run.shards[0].late == (), "a quota that fails each of them must not fill the journal"

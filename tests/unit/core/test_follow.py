"""What the provider said, folded into the run: answers to create calls, looks, batches as seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.effects import following
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchMissing,
    BatchSeen,
    CancelAnswered,
    InputDeleted,
    LookedUp,
    SubmitAnswered,
)
from batchinference.model.batch import (
    Accepted,
    BatchFailure,
    BatchState,
    CancelOutcome,
    NotSent,
    OutcomeUnknown,
    RefusalKind,
    Refused,
)
from batchinference.model.run import Ending, RunPhase, ShardState, SubmissionState
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskFault
from builders import shard_of, submission_of
from unit.core.given import (
    NOW,
    TIMING,
    after,
    failed_view,
    fold,
    fold_all,
    in_state,
    looks,
    run_with,
    spec_of,
    view_of,
)

S, U = ShardState, SubmissionState

ACCEPTED = "accepted"
QUOTA = Refused(RefusalKind.QUOTA, "token_limit_exceeded", "the queue is full")
THROTTLED = Refused(RefusalKind.THROTTLED, "429", "slow down", retry_after_s=17.0)
BILLING = Refused(RefusalKind.BILLING, "insufficient_quota", "You exceeded your quota.")
CREDENTIALS = Refused(RefusalKind.CREDENTIALS, "401", "the key is not valid")
INVALID = Refused(RefusalKind.INVALID, "400", "no such model")
LOST = OutcomeUnknown("the connection broke")
UNSENT = NotSent(Reason.OUTPUT_CONFLICT, "the claim is not ours")


def answer(run, outcome, ordinal=1, shard=0):
    if outcome == ACCEPTED:
        outcome = Accepted(view_of(run, shard, ordinal))
    return SubmitAnswered(shard, ordinal, outcome)


# ---------------------------------------------------------------- answers to create calls

ANSWERS = [
    (S.CLAIMED, ACCEPTED, S.SUBMITTED, U.ACCEPTED, "the provider has it"),
    (S.CLAIMED, QUOTA, S.QUEUED, U.REFUSED, "put back, not a failed attempt"),
    (S.CLAIMED, THROTTLED, S.QUEUED, U.REFUSED, "put back, soon"),
    (S.CLAIMED, BILLING, S.QUEUED, U.REFUSED, "put back until somebody has paid"),
    (S.CLAIMED, CREDENTIALS, S.QUEUED, U.REFUSED, "a person must act, nothing was accepted"),
    (S.CLAIMED, LOST, S.UNKNOWN, U.CLAIMED, "it may have been accepted"),
    (S.CLAIMED, UNSENT, S.QUEUED, U.REFUSED, "certainly not sent"),
    (S.UNKNOWN, ACCEPTED, S.SUBMITTED, U.ACCEPTED, "a repeat was answered"),
    (S.UNKNOWN, QUOTA, S.UNKNOWN, U.CLAIMED, "a refusal after an unanswered try proves nothing"),
    (S.UNKNOWN, INVALID, S.UNKNOWN, U.CLAIMED, "a refusal after an unanswered try proves nothing"),
    (S.UNKNOWN, CREDENTIALS, S.UNKNOWN, U.CLAIMED, "likewise"),
    (S.UNKNOWN, UNSENT, S.UNKNOWN, U.CLAIMED, "the repeat was not sent, the first try was"),
    (S.UNKNOWN, LOST, S.UNKNOWN, U.CLAIMED, "still unknown"),
    (S.FENCING, ACCEPTED, S.SUBMITTED, U.ACCEPTED, "accepted before the fence stood"),
    (S.FENCING, QUOTA, S.FENCING, U.CLAIMED, "proves nothing about the first try"),
    (S.SUBMITTED, ACCEPTED, S.SUBMITTED, U.ACCEPTED, "the poller was faster"),
    (S.SUBMITTED, LOST, S.SUBMITTED, U.ACCEPTED, "the poller was faster"),
    (S.SUBMITTED, INVALID, S.SUBMITTED, U.ACCEPTED, "the poller was faster"),
    (S.SUBMITTED, QUOTA, S.SUBMITTED, U.ACCEPTED, "the poller was faster"),
    (S.SUBMITTED, UNSENT, S.SUBMITTED, U.ACCEPTED, "a repeat that came too late to be sent"),
    (S.ENDED, LOST, S.ENDED, U.ENDED, "late news"),
    (S.ENDED, INVALID, S.ENDED, U.ENDED, "late news"),
    (S.COLLECTED, QUOTA, S.COLLECTED, U.ENDED, "late news"),
    (S.COLLECTED, ACCEPTED, S.COLLECTED, U.ENDED, "late news"),
]


@pytest.mark.parametrize(("state", "outcome", "then", "submission", "reason"), ANSWERS)
def test_an_answer_is_read_by_what_is_known(state, outcome, then, submission, reason) -> None:
    run = run_with(in_state(state))
    changed = fold(run, answer(run, outcome)).shards[0]
    assert (changed.state, changed.last.state) == (then, submission), reason
    if then is state:
        assert changed == run.shards[0], reason


def test_late_answers_leave_no_trace_in_the_notes() -> None:
    run = run_with(in_state(S.SUBMITTED))
    for outcome in (QUOTA, THROTTLED, CREDENTIALS, INVALID, LOST, UNSENT):
        assert fold_all(run, answer(run, outcome)) == (run, Notes())


@pytest.mark.parametrize("outcome", [ACCEPTED, QUOTA, INVALID, LOST, UNSENT])
@pytest.mark.parametrize(
    ("shard", "ordinal", "reason"),
    [(0, 7, "an ordinal that is not there"), (9, 1, "a shard that is not there")],
)
def test_an_answer_about_something_else_changes_nothing(outcome, shard, ordinal, reason) -> None:
    run = run_with(in_state(S.CLAIMED))
    told = SubmitAnswered(
        shard, ordinal, Accepted(view_of(run, 0, 1)) if outcome == ACCEPTED else outcome
    )
    assert fold(run, told) == run, reason


def test_acceptance_is_written_with_id_and_time_and_ends_all_worry() -> None:
    run = run_with(in_state(S.UNKNOWN))
    worried = Notes()
    for effect_id in ("submit:0", "submit:0:1", "look:0:1", "fence:0:1", "task:Admit"):
        worried = worried.with_failure(effect_id, _fault(), NOW, TIMING, 0.5)
    worried = worried.with_absence((0, 1), NOW, readable=True)
    view = view_of(run, created_at=None)
    changed, notes = fold_all(run, answer(run, ACCEPTED), notes=worried)
    assert changed.shards[0].last.batch_id == view.id
    assert changed.shards[0].last.accepted_at == after(-60)
    assert set(notes.failures) == {"task:Admit"}
    assert not notes.looks
    undated = fold(run, SubmitAnswered(0, 1, Accepted(view)))
    assert undated.shards[0].last.accepted_at == NOW


def _fault():
    return TaskFault(FaultKind.RETRY, "ProviderUnavailable", "it broke")


WAITS = [
    (QUOTA, TIMING.quota_first_s, Reason.QUOTA_WAIT, "quota waits long"),
    (
        replace(QUOTA, retry_after_s=5.0),
        TIMING.quota_first_s,
        Reason.QUOTA_WAIT,
        "an impatient provider does not make the wait shorter",
    ),
    (replace(QUOTA, retry_after_s=999.0), 999.0, Reason.QUOTA_WAIT, "the provider asks for more"),
    (BILLING, TIMING.quota_most_s, Reason.BILLING, "paying takes a person"),
    (replace(BILLING, retry_after_s=5.0), TIMING.quota_most_s, Reason.BILLING, "likewise"),
    (THROTTLED, 17.0, Reason.QUOTA_WAIT, "the provider said how long"),
    (replace(THROTTLED, retry_after_s=None), TIMING.retry_first_s, Reason.QUOTA_WAIT, "soon"),
    (CREDENTIALS, TIMING.retry_first_s, Reason.CREDENTIALS_REJECTED, "Secrets are read again"),
    (UNSENT, TIMING.reference_retry_s, Reason.OUTPUT_CONFLICT, "each try needs an upload"),
]


@pytest.mark.parametrize(("outcome", "wait", "why", "reason"), WAITS)
def test_a_shard_that_was_put_back_waits(outcome, wait, why, reason) -> None:
    run = run_with(in_state(S.CLAIMED))
    changed, notes = fold_all(run, answer(run, outcome))
    assert changed.shards[0].not_before == after(wait), reason
    assert notes.failures["submit:0"].fault.reason == why
    assert notes.failures["submit:0"].retry_at == after(wait)
    assert not changed.was_submitted, "nothing was accepted"


GROWING = [
    (QUOTA, [60, 120, 240, 480, 900, 900]),
    (replace(THROTTLED, retry_after_s=17.0), [17, 17, 17, 17, 32, 64]),
    (CREDENTIALS, [2, 4, 8, 16, 32, 64]),
    (UNSENT, [30, 30, 30, 30, 32, 64]),
    (BILLING, [900, 900, 900, 900, 900, 900]),
]


@pytest.mark.parametrize(("outcome", "waits"), GROWING)
def test_the_wait_grows_with_every_refusal_and_a_new_process_knows_how_far(outcome, waits) -> None:
    found = []
    for put_backs in range(6):
        run = run_with(in_state(S.CLAIMED, put_backs=put_backs))
        shard = fold(run, answer(run, outcome)).shards[0]
        assert shard.put_backs == put_backs + 1
        found.append((shard.not_before - NOW).total_seconds())
    assert found == waits


def test_a_bill_that_is_not_settled_is_told_as_what_it_is() -> None:
    run = run_with(in_state(S.CLAIMED))
    changed, notes = fold_all(run, answer(run, BILLING))
    told = notes.failures["submit:0"].fault
    assert (told.kind, told.reason) == (FaultKind.STALLED, Reason.BILLING)
    assert "insufficient_quota: You exceeded your quota)" in told.message
    assert "every 15 minutes" in told.message
    assert changed.shards[0].last.failure.billing, "a new process knows why it waits"
    assert not changed.was_submitted


def test_a_refused_claim_forgets_its_request_and_keeps_its_ordinal() -> None:
    run = run_with(in_state(S.CLAIMED))
    last = fold(run, answer(run, QUOTA)).shards[0].last
    assert (last.request, last.ordinal) == ({}, 1)


def test_an_invalid_request_of_the_first_shard_ends_the_run_before_anything_is_paid() -> None:
    run = run_with(in_state(S.CLAIMED), in_state(S.QUEUED, 1))
    changed = fold(run, answer(run, INVALID))
    assert changed.phase is RunPhase.CLEANING
    assert changed.verdict.ending is Ending.FAILED
    assert changed.verdict.reason == Reason.REFUSED
    assert changed.verdict.message == "400: no such model"
    assert not changed.was_submitted


@pytest.mark.parametrize("other", [S.CLAIMED, S.UNKNOWN, S.FENCING, S.SUBMITTED, S.COLLECTED])
def test_an_invalid_request_beside_what_may_be_paid_ends_only_its_shard(other) -> None:
    run = run_with(in_state(S.CLAIMED), in_state(other, 1))
    changed = fold(run, answer(run, replace(INVALID, code="")))
    assert changed.phase is RunPhase.RUNNING
    shard = changed.shards[0]
    assert (shard.state, shard.last.state) == (S.ENDED, U.REFUSED)
    assert shard.last.failure == BatchFailure("", "no such model")


def test_an_unanswered_repeat_starts_the_count_of_absences_anew() -> None:
    run = run_with(in_state(S.UNKNOWN))
    notes = looks(first=100, newest=50)
    _, then = fold_all(run, answer(run, LOST), notes=notes)
    assert not then.looks
    assert then.failures["submit:0:1"].fault.reason == Reason.OUTCOME_UNKNOWN


# ---------------------------------------------------------------- looks and fences


def test_an_absence_is_counted_from_the_observers_own_first_look() -> None:
    run = run_with(in_state(S.UNKNOWN))
    run, notes = fold_all(run, LookedUp(0, 1, None), now=NOW)
    run, notes = fold_all(run, LookedUp(0, 1, None), notes=notes, now=after(200))
    look = notes.looks[0, 1]
    assert (look.first, look.newest, look.readable) == (NOW, after(200), True)


def test_an_absence_seen_by_a_blind_client_starts_no_count() -> None:
    run = run_with(in_state(S.UNKNOWN))
    run, notes = fold_all(run, LookedUp(0, 1, None, readable=False), now=NOW)
    run, notes = fold_all(run, LookedUp(0, 1, None), notes=notes, now=after(200))
    assert notes.looks[0, 1].first == after(200), "the first one does not count"


def test_a_listing_that_was_cut_short_starts_no_count_and_ends_the_one_before() -> None:
    run = run_with(in_state(S.UNKNOWN))
    run, notes = fold_all(run, LookedUp(0, 1, None), now=NOW)
    run, notes = fold_all(run, LookedUp(0, 1, None, complete=False), notes=notes, now=after(100))
    assert not notes.looks[0, 1].counts
    run, notes = fold_all(run, LookedUp(0, 1, None), notes=notes, now=after(200))
    assert notes.looks[0, 1].first == after(200), "counting begins again"


@pytest.mark.parametrize("state", [S.SUBMITTED, S.ENDED, S.COLLECTED])
def test_an_absence_of_what_is_known_is_ignored(state) -> None:
    run = run_with(in_state(state))
    assert fold_all(run, LookedUp(0, 1, None)) == (run, Notes())


@pytest.mark.parametrize("state", [S.UNKNOWN, S.FENCING])
@pytest.mark.parametrize(
    ("named", "reason"),
    [(True, "by the metadata"), (False, "by its input where metadata is not echoed")],
)
def test_a_batch_that_a_look_found_is_followed(state, named, reason) -> None:
    run = run_with(in_state(state))
    view = view_of(run)
    view = view if named else replace(view, submission=None)
    assert fold(run, LookedUp(0, 1, view)).shards[0].state is S.SUBMITTED, reason


def test_a_batch_that_a_look_found_ended_is_ended_at_once() -> None:
    run = run_with(in_state(S.UNKNOWN))
    view = view_of(run, state=BatchState.COMPLETED, files=("out",))
    assert fold(run, LookedUp(0, 1, view)).shards[0].state is S.ENDED


def test_the_fence_stands_from_its_first_confirmation() -> None:
    run = run_with(in_state(S.FENCING))
    fenced, notes = fold_all(run, InputDeleted(0, 1), notes=looks(first=9, newest=9))
    assert fenced.shards[0].last.fenced_at == NOW
    assert not notes.looks, "absences are counted anew"
    look = Notes().with_absence((0, 1), after(10), readable=True)
    again, kept = fold_all(fenced, InputDeleted(0, 1), notes=look, now=after(60))
    assert again == fenced
    assert kept.looks, "told twice changes nothing"


@pytest.mark.parametrize("state", [S.UNKNOWN, S.SUBMITTED, S.COLLECTED])
def test_a_fence_of_what_is_not_being_fenced_is_ignored(state) -> None:
    run = run_with(in_state(state))
    assert fold(run, InputDeleted(0, 1), InputDeleted(4, 1), InputDeleted(0, 3)) == run


# ---------------------------------------------------------------- batches as seen


def fenced_shard(state=S.QUEUED, index=0):
    given_up = replace(submission_of(1, U.FENCED), batch_id="", accepted_at=None, fenced_at=NOW)
    return shard_of(index, state, submissions=(given_up,))


@pytest.mark.parametrize("state", [S.QUEUED, S.DROPPED])
def test_a_fenced_ordinal_that_appears_before_a_newer_one_is_followed(state) -> None:
    run = run_with(fenced_shard(state))
    shard = fold(run, BatchSeen(view_of(run))).shards[0]
    assert (shard.state, shard.last.state) == (S.SUBMITTED, U.ACCEPTED)
    assert not shard.late


def test_a_fenced_batch_that_fails_for_want_of_its_input_goes_again() -> None:
    run = run_with(fenced_shard())
    failure = BatchFailure("invalid_input_file", "no such file")
    shard = fold(run, BatchSeen(failed_view(run, failure))).shards[0]
    assert (shard.state, shard.last.state, shard.attempt) == (S.QUEUED, U.VOID, 2)


STRANGERS = [
    ({"submission": None}, "no metadata and no id of ours"),
    ({"tag": "another"}, "another run's tag"),
    ({"shard": 5}, "a shard that is not there"),
    ({"ordinal": 9}, "an ordinal that is not there"),
]


@pytest.mark.parametrize(("named", "reason"), STRANGERS)
def test_a_batch_that_is_not_of_this_run_changes_nothing(named, reason) -> None:
    run = run_with(in_state(S.UNKNOWN))
    view = view_of(run, batch_id="foreign")
    submission = named["submission"] if "submission" in named else replace(view.submission, **named)
    assert fold(run, BatchSeen(replace(view, submission=submission))) == run, reason


@pytest.mark.parametrize("state", [s for s in BatchState if not s.is_over])
def test_a_batch_that_is_not_over_goes_on(state) -> None:
    run = run_with(in_state(S.SUBMITTED))
    changed, notes = fold_all(run, BatchSeen(view_of(run, state=state)))
    assert changed == run
    assert notes.views["batch-0-1"].state is state


@pytest.mark.parametrize("state", [s for s in BatchState if s.is_over])
def test_the_end_of_a_batch_is_written_with_all_that_collecting_needs(state) -> None:
    run = run_with(in_state(S.SUBMITTED))
    view = view_of(run, state=state, files=("out", "err"), ended_at=after(-5))
    last = fold(run, BatchSeen(view)).shards[0].last
    assert fold(run, BatchSeen(view)).shards[0].state is S.ENDED
    assert (last.state, last.batch_state, last.files) == (U.ENDED, state, ("out", "err"))
    assert last.ended_at == after(-5)
    undated = fold(run, BatchSeen(replace(view, ended_at=None))).shards[0].last
    assert undated.ended_at == NOW


def test_the_end_seen_twice_or_taken_back_changes_nothing() -> None:
    run = run_with(in_state(S.SUBMITTED))
    ended = fold(run, BatchSeen(view_of(run, state=BatchState.COMPLETED)))
    for state in BatchState:
        assert fold(ended, BatchSeen(view_of(run, state=state)), now=after(60)) == ended


FAILURES = [
    # failure, attempt, state after, submission after, attempt after, reason
    (BatchFailure("x", "m", quota=True), 1, S.QUEUED, U.VOID, 1, "a quota is not an attempt"),
    (BatchFailure("x", "m", quota=True), 3, S.QUEUED, U.VOID, 3, "a quota never uses them up"),
    (BatchFailure("x", "m", billing=True), 3, S.QUEUED, U.VOID, 3, "nor does an open bill"),
    (BatchFailure("x", "m", transient=True), 1, S.QUEUED, U.VOID, 2, "may pass another time"),
    (BatchFailure("x", "m", transient=True), 3, S.ENDED, U.VOID, 3, "attempts are used up"),
    (BatchFailure("x", "m"), 1, S.ENDED, U.VOID, 1, "the same input fails in the same way"),
    (
        BatchFailure("x", "m", quota=True, nothing_processed=False),
        1,
        S.ENDED,
        U.ENDED,
        1,
        "something was processed, so it may have been billed",
    ),
]


@pytest.mark.parametrize(("failure", "attempt", "then", "state", "attempts", "reason"), FAILURES)
def test_a_batch_that_failed_as_a_whole(failure, attempt, then, state, attempts, reason) -> None:
    run = run_with(in_state(S.SUBMITTED, attempt=attempt))
    shard = fold(run, BatchSeen(failed_view(run, failure))).shards[0]
    assert (shard.state, shard.last.state, shard.attempt) == (then, state, attempts), reason
    assert (shard.not_before is not None) == (then is S.QUEUED), reason
    assert shard.was_accepted, "it was accepted, so the run is not a fresh one"


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"state": BatchState.EXPIRED}, "an expired batch has answers to collect"),
        ({"state": BatchState.CANCELLED}, "so has a cancelled one"),
        ({"completed": 3}, "it says itself that records were answered"),
    ],
)
def test_nothing_processed_is_believed_of_failed_batches_without_answers_only(
    members, reason
) -> None:
    run = run_with(in_state(S.SUBMITTED))
    view = failed_view(run, BatchFailure("x", "m", quota=True))
    shard = fold(run, BatchSeen(replace(view, **members))).shards[0]
    assert (shard.state, shard.last.state) == (S.ENDED, U.ENDED), reason


VOIDS = [
    (BatchFailure("x", "m", quota=True), 0, TIMING.quota_first_s),
    (BatchFailure("x", "m", quota=True), 2, 4 * TIMING.quota_first_s),
    (BatchFailure("x", "m", quota=True), 1000, TIMING.quota_most_s),
    (BatchFailure("x", "m", transient=True), 0, TIMING.quota_first_s),
    (BatchFailure("x", "m", billing=True), 0, TIMING.quota_most_s),
]


@pytest.mark.parametrize(("failure", "put_backs", "wait"), VOIDS)
def test_the_wait_after_failed_validations_grows_with_their_number(
    failure, put_backs, wait
) -> None:
    run = run_with(in_state(S.SUBMITTED, put_backs=put_backs))
    shard = fold(run, BatchSeen(failed_view(run, failure))).shards[0]
    assert (shard.not_before, shard.put_backs) == (after(wait), put_backs + 1)


@pytest.mark.parametrize("state", [U.REFUSED, U.VOID])
def test_an_input_that_nobody_needs_any_more_is_known_to_be_gone(state) -> None:
    run = run_with(shard_of(0, S.QUEUED, submissions=(submission_of(4, state),)))
    changed = fold(run, InputDeleted(0, 4))
    assert changed.shards[0].last.input_deleted
    assert changed.shards[0].last.fenced_at is None
    assert fold(run, InputDeleted(0, 3)) == run, "of an ordinal that is forgotten"


# ---------------------------------------------------------------- cancelled and denied batches

CANCELS = [
    (CancelOutcome.ACCEPTED, True, "the provider took it"),
    (CancelOutcome.ALREADY_OVER, True, "the batch was found ended"),
    (CancelOutcome.NOT_FOUND, False, "a 404 proves nothing"),
]


@pytest.mark.parametrize(("outcome", "confirmed", "reason"), CANCELS)
def test_a_cancel_is_confirmed_by_what_the_provider_said(outcome, confirmed, reason) -> None:
    run = run_with(in_state(S.SUBMITTED))
    changed, notes = fold_all(run, CancelAnswered(0, "batch-0-1", outcome))
    assert changed.shards[0].last.cancel_accepted_at == (NOW if confirmed else None), reason
    assert ("cancel:batch-0-1" in notes.failures) == (not confirmed), reason
    again = fold(changed, CancelAnswered(0, "batch-0-1", outcome), now=after(60))
    assert again == changed, "told twice changes nothing"


def test_a_cancel_of_something_else_changes_nothing() -> None:
    run = run_with(in_state(S.SUBMITTED))
    cancelled = CancelOutcome.ACCEPTED
    assert (
        fold(run, CancelAnswered(0, "other", cancelled), CancelAnswered(3, "batch-0-1", cancelled))
        == run
    )


def test_a_batch_that_ends_by_itself_ends_the_worry_about_its_cancel() -> None:
    run = run_with(in_state(S.SUBMITTED))
    run, notes = fold_all(run, CancelAnswered(0, "batch-0-1", CancelOutcome.NOT_FOUND))
    _, notes = fold_all(run, BatchSeen(view_of(run, state=BatchState.EXPIRED)), notes=notes)
    assert not notes.failures


def test_a_batch_that_the_provider_denies_is_noted_and_nothing_follows() -> None:
    run = run_with(in_state(S.SUBMITTED))
    changed, notes = fold_all(run, BatchMissing("batch-0-1"), BatchMissing("batch-0-1"))
    assert changed == run
    failure = notes.failures[following("batch-0-1")]
    assert (failure.count, failure.fault.reason) == (2, Reason.BATCH_NOT_FOUND)
    _, seen = fold_all(run, BatchSeen(view_of(run)), notes=notes)
    assert not seen.failures, "it heals when the batch is there again"


def test_attempts_are_those_of_the_job() -> None:
    assert spec_of().retry_policy.max_attempts == 3, "the table of failures counts on it"


@pytest.mark.parametrize("state", [BatchState.EXPIRED, BatchState.CANCELLED, BatchState.COMPLETED])
def test_an_end_without_files_is_not_believed_while_it_counts_processed_records(state) -> None:
    run = run_with(in_state(S.SUBMITTED))
    early = replace(view_of(run, state=state), completed=3, files=(), failure=None)
    waiting, notes = fold_all(run, BatchSeen(early), BatchSeen(early))
    assert waiting.shards[0].state is S.SUBMITTED
    told = notes.failures[following(early.id)]
    assert (told.count, told.fault.reason) == (2, Reason.OUTPUT_UNAVAILABLE)
    late = replace(early, files=("file-1",))
    ended, notes = fold_all(waiting, BatchSeen(late), notes=notes)
    assert ended.shards[0].state is S.ENDED
    assert following(early.id) not in notes.failures


@pytest.mark.parametrize("state", [BatchState.EXPIRED, BatchState.CANCELLED, BatchState.COMPLETED])
def test_an_end_that_names_its_errors_only_is_not_believed_while_it_counts_answers(state) -> None:
    run = run_with(in_state(S.SUBMITTED))
    counted = {"completed": 2, "failed": 1, "failure": None}
    early = replace(view_of(run, state=state), files=("errors",), lacks_answers=True, **counted)
    waiting, notes = fold_all(run, BatchSeen(early), BatchSeen(early))
    assert waiting.shards[0].state is S.SUBMITTED, "its answers would go for unbilled"
    assert notes.failures[following(early.id)].fault.reason == Reason.OUTPUT_UNAVAILABLE
    whole = replace(early, files=("answers", "errors"), lacks_answers=False)
    ended, _ = fold_all(waiting, BatchSeen(whole), notes=notes)
    assert ended.shards[0].state is S.ENDED
    assert ended.shards[0].last.files == ("answers", "errors")


def test_an_end_that_counts_nothing_processed_needs_no_files() -> None:
    run = run_with(in_state(S.SUBMITTED))
    view = replace(view_of(run, state=BatchState.EXPIRED), completed=0, failed=0, files=())
    assert fold(run, BatchSeen(view)).shards[0].state is S.ENDED

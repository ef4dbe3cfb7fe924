"""Handing shards to the provider: protocol 4 and 5, one rule after another."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.effects import DeleteInput, LookUp, StartTask, Submit, following
from batchinference.core.notes import Notes
from batchinference.core.outcomes import LookedUp
from batchinference.core.problem import Problem
from batchinference.errors import Permanent
from batchinference.model.batch import BatchFailure, Traits
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    RunPhase,
    ShardState,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskKind
from builders import job, shard_of, submission_of
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    failing,
    fold_all,
    in_state,
    looks,
    observed,
    of_kind,
    run_with,
    with_late_batch,
)

S, U = ShardState, SubmissionState
UPLOAD = StartTask(TaskKind.UPLOAD, 0, 1)
UPLOADED = Notes(uploads={(0, 1): "file-new"})
SETTLE = TIMING.settle_s
SENDING = Notes(inflight=frozenset({"submit:0:1"}))
CANCEL = Cancel(CancelWhy.DESIRED, NOW)
CHANGED = Problem(Reason.PROVIDER_CHANGED, "the provider is another one", NOW)


def sent(decision):
    return of_kind(decision, Submit)


def refuse(*_):
    raise Permanent("ProviderRefused", "this model has no batches")


def claimed_ago(shard, seconds):
    return shard.with_last(claimed_at=after(-seconds), submit_by=after(60 - seconds))


# ---------------------------------------------------------------- upload, claim, send


def test_a_shard_with_a_place_is_uploaded_before_it_is_claimed() -> None:
    decision = decided(run_with(in_state(S.QUEUED)))
    assert of_kind(decision, StartTask) == [StartTask(TaskKind.UPLOAD, 0, 1)]
    assert decision.run.shards[0].state is S.QUEUED


def test_the_claim_stands_in_the_journal_that_is_written_before_it_is_sent() -> None:
    decision = decided(run_with(in_state(S.QUEUED)), notes=UPLOADED)
    (submit,) = sent(decision)
    shard = decision.run.shards[0]
    assert (shard.state, shard.last.state) == (S.CLAIMED, U.CLAIMED)
    assert (submit.shard, submit.ordinal, submit.fresh) == (0, shard.last.ordinal, True)
    assert submit.request == shard.last.request
    assert shard.last.request["input_file_id"] == shard.last.input_ref == "file-new"
    assert shard.last.request["metadata"]["ordinal"] == 1
    assert shard.last.claimed_at == NOW
    assert shard.last.submit_by == after(TIMING.submit_timeout_s)
    assert not shard.last.attempted


HELD_BACK = [
    ({"granted": ()}, Notes(), {}, "the account gave no place"),
    ({"provider": CHANGED}, Notes(), {}, "the provider is another one"),
    ({"make_request": None}, Notes(), {}, "there is no client"),
    ({"builder": job().suspended()}, Notes(), {}, "suspended"),
    ({}, Notes(), {"not_before": after(1)}, "put back until later"),
    ({}, Notes(inflight=frozenset({"submit:1:1"})), {}, None),
]


@pytest.mark.parametrize(("world", "notes", "members", "reason"), HELD_BACK)
def test_what_holds_a_queued_shard_back(world, notes, members, reason) -> None:
    run = run_with(in_state(S.QUEUED, **members))
    decision = decided(run, observed(**world), replace(notes, uploads=UPLOADED.uploads))
    assert bool(sent(decision)) == (reason is None), reason
    assert decision.run.shards[0].state is (S.CLAIMED if reason is None else S.QUEUED)


ASKING = [
    ({}, Notes(), {}, {0}, "it could go at once"),
    ({"granted": ()}, Notes(), {}, {0}, "it asks before it has a place"),
    ({}, Notes(inflight=frozenset({UPLOAD.id})), {}, {0}, "its place is in use"),
    ({"granted": ()}, UPLOADED, {}, {0}, "it is uploaded and lacks a place"),
    ({}, failing(UPLOAD.id), {}, set(), "the upload failed and has to wait"),
    ({"now": after(600)}, failing(UPLOAD.id), {}, {0}, "its wait is over"),
    (
        {},
        failing(UPLOAD.id, notes=Notes(inflight=frozenset({UPLOAD.id}))),
        {},
        {0},
        "it is being tried again",
    ),
    ({"provider": CHANGED}, Notes(), {}, set(), "the provider is another one"),
    ({"builder": job().suspended()}, Notes(), {}, set(), "suspended"),
    ({"builder": job().cancelled()}, Notes(), {}, set(), "cancelled"),
    ({}, Notes(), {"not_before": after(1)}, set(), "put back until later"),
    ({"now": after(1)}, Notes(), {"not_before": after(1)}, {0}, "its time has come"),
]


@pytest.mark.parametrize(("world", "notes", "members", "asking", "reason"), ASKING)
def test_only_a_shard_that_would_use_a_place_asks_for_one(
    world, notes, members, asking, reason
) -> None:
    run = run_with(in_state(S.QUEUED, **members), in_state(S.SUBMITTED, 1))
    assert decided(run, observed(**world), notes).asking == asking, reason


def test_no_shard_of_a_run_that_cannot_go_on_asks_for_a_place() -> None:
    doubled = with_late_batch(in_state(S.SUBMITTED, 2))
    run = run_with(in_state(S.QUEUED), in_state(S.QUEUED, 1), doubled)
    decision = decided(run)
    assert decision.problem.reason == Reason.DUPLICATE_SUBMISSION
    assert decision.asking == frozenset()


def test_a_shard_that_stalls_its_run_takes_back_what_others_asked_for() -> None:
    run = run_with(in_state(S.QUEUED), in_state(S.QUEUED, 1), in_state(S.SUBMITTED, 2))
    notes = Notes(uploads={(1, 1): "file-new"})
    assert decided(run, observed(make_request=refuse), notes).asking == frozenset()


@pytest.mark.parametrize(
    ("notes", "asking", "reason"),
    [
        (Notes(), {0}, "it is asked for once there is a place"),
        (failing("look:0:1"), set(), "the provider can't be asked: a place would be of no use"),
        (
            Notes().with_absence((0, 1), NOW, readable=True, complete=False),
            set(),
            "the listing proves nothing",
        ),
    ],
)
def test_a_shard_whose_given_up_ordinal_cannot_be_asked_for_does_not_ask_for_a_place(
    notes, asking, reason
) -> None:
    gone = replace(submission_of(1, U.FENCED), batch_id="")
    run = run_with(shard_of(0, S.QUEUED, submissions=(gone,)), in_state(S.SUBMITTED, 1))
    assert decided(run, observed(granted=()), notes).asking == asking, reason


def test_a_failing_upload_does_not_keep_the_other_shards_from_asking() -> None:
    run = run_with(in_state(S.QUEUED), in_state(S.QUEUED, 1))
    notes = failing(UPLOAD.id, FaultKind.STALLED, Reason.STAGING_UNAVAILABLE)
    decision = decided(run, notes=notes)
    assert decision.problem.reason == Reason.STAGING_UNAVAILABLE
    assert decision.asking == {1}


def test_a_put_back_shard_wakes_us_when_it_may_go() -> None:
    run = run_with(in_state(S.QUEUED, not_before=after(17)))
    assert decided(run, notes=UPLOADED).wake_at == after(17)
    assert sent(decided(run, observed(now=after(17)), UPLOADED))


def test_an_unusable_provider_is_told_and_looked_at_again() -> None:
    decision = decided(run_with(in_state(S.QUEUED)), observed(provider=CHANGED))
    assert decision.problem == CHANGED
    assert decision.wake_at == after(TIMING.reference_retry_s)


def test_ordinals_go_on_above_an_earlier_life_and_drop_certain_refusals() -> None:
    fresh = run_with(in_state(S.QUEUED), ordinal_floor=4)
    upload = of_kind(decided(fresh), StartTask)
    assert upload == [StartTask(TaskKind.UPLOAD, 0, 5)]
    refused = replace(submission_of(2, U.REFUSED), request={})
    void = submission_of(1, U.VOID)
    run = run_with(shard_of(0, S.QUEUED, submissions=(void, refused)))
    decision = decided(run, notes=Notes(uploads={(0, 3): "file-3"}))
    assert [s.ordinal for s in decision.run.shards[0].submissions] == [1, 3]


def test_of_void_submissions_the_journal_keeps_the_newest() -> None:
    made = [submission_of(n, U.VOID) for n in (1, 2, 4, 5)]
    made.insert(2, replace(submission_of(3, U.FENCED), batch_id=""))
    run = run_with(shard_of(0, S.QUEUED, submissions=(*made, submission_of(6, U.VOID))))
    looked = Notes(uploads={(0, 7): "file-7"}).with_absence((0, 3), NOW, readable=True)
    (shard,) = decided(run, notes=looked).run.shards
    assert [s.ordinal for s in shard.submissions] == [3, 4, 5, 6, 7]
    assert shard.last.state is U.CLAIMED


def test_an_upload_that_has_its_claim_is_forgotten() -> None:
    decision = decided(run_with(in_state(S.QUEUED)), notes=UPLOADED)
    assert sent(decision)
    assert not decision.notes.uploads


# ---------------------------------------------------------------- refused for the time being

TIDY = [
    (U.REFUSED, {}, Notes(), True, "it was refused"),
    (U.VOID, {}, Notes(), True, "it was void"),
    (U.FENCED, {}, Notes(), False, "a fence stands there, and a batch may appear"),
    (U.VOID, {"input_deleted": True}, Notes(), False, "it is gone"),
    (U.VOID, {}, Notes(inflight=frozenset({DeleteInput(0, 1, "").id})), False, "under way"),
    (U.VOID, {}, failing(DeleteInput(0, 1, "").id), False, "tried once; the rest is for the end"),
]


@pytest.mark.parametrize(("state", "members", "notes", "wanted", "reason"), TIDY)
def test_the_input_of_what_came_to_nothing_is_deleted_at_once(
    state, members, notes, wanted, reason
) -> None:
    last = replace(submission_of(1, state), **members)
    run = run_with(shard_of(0, S.QUEUED, submissions=(last,), not_before=after(60)))
    decision = decided(run, notes=notes)
    assert of_kind(decision, DeleteInput) == ([DeleteInput(0, 1, "file-1")] if wanted else [])
    assert decision.problem is None, reason


def unpaid(index, state=U.REFUSED, **members):
    failure = BatchFailure("insufficient_quota", "You exceeded your quota", billing=True)
    last = replace(submission_of(1, state), failure=failure, request={}, input_deleted=True)
    return shard_of(index, S.QUEUED, submissions=(last,), **members)


@pytest.mark.parametrize("state", [U.REFUSED, U.VOID])
def test_a_run_that_nobody_paid_for_is_stalled_and_only_what_was_refused_is_tried(state) -> None:
    run = run_with(unpaid(0, state, not_before=after(60)), in_state(S.QUEUED, 1))
    waiting = decided(run)
    assert waiting.problem.reason == Reason.BILLING
    assert "You exceeded your quota" in waiting.problem.message
    assert (waiting.asking, of_kind(waiting, StartTask)) == (set(), [])
    assert waiting.wake_at == after(60)
    trying = decided(run, observed(now=after(60)))
    assert trying.problem.reason == Reason.BILLING, "it does not flap"
    assert trying.asking == {0}
    assert of_kind(trying, StartTask) == [StartTask(TaskKind.UPLOAD, 0, 2)]


def test_a_run_whose_bill_was_settled_goes_on_as_a_whole() -> None:
    taken = in_state(S.SUBMITTED)
    run = run_with(taken, in_state(S.QUEUED, 1))
    decision = decided(run)
    assert decision.problem is None
    assert decision.asking == {1}


def test_an_upload_of_another_ordinal_is_never_used() -> None:
    refused = submission_of(1, U.REFUSED)
    run = run_with(shard_of(0, S.QUEUED, submissions=(refused,)))
    assert not sent(decided(run, notes=UPLOADED))
    assert of_kind(decided(run, notes=UPLOADED), StartTask)[0].ordinal == 2


def test_a_request_that_cannot_be_made_ends_a_run_of_which_nothing_was_sent() -> None:
    decision = decided(run_with(in_state(S.QUEUED)), observed(make_request=refuse), UPLOADED)
    assert decision.run.phase is RunPhase.CLEANING
    assert decision.run.verdict.message == "this model has no batches"


def test_a_request_that_cannot_be_made_stalls_a_run_that_is_partly_paid() -> None:
    run = run_with(in_state(S.QUEUED), in_state(S.SUBMITTED, 1))
    decision = decided(run, observed(make_request=refuse), UPLOADED)
    assert decision.run == run
    assert decision.problem.reason == "ProviderRefused"


def test_why_a_shard_was_put_back_is_told_until_a_try_succeeds() -> None:
    notes = failing("submit:0", FaultKind.STALLED, Reason.CREDENTIALS_REJECTED)
    queued = decided(run_with(in_state(S.QUEUED)), notes=notes)
    assert queued.problem.reason == Reason.CREDENTIALS_REJECTED
    claimed = run_with(in_state(S.CLAIMED))
    trying = decided(claimed, notes=replace(notes, inflight=SENDING.inflight))
    assert trying.problem.reason == Reason.CREDENTIALS_REJECTED, "it does not flap"
    quota = failing("submit:0", FaultKind.WAITING, Reason.QUOTA_WAIT)
    assert decided(run_with(in_state(S.QUEUED)), notes=quota).problem is None


# ---------------------------------------------------------------- claims without a call


def test_a_claim_whose_call_is_under_way_is_left_alone() -> None:
    run = run_with(in_state(S.CLAIMED))
    decision = decided(run, notes=SENDING)
    assert (decision.run, decision.effects) == (run, ())


def test_a_claim_of_another_process_is_looked_up_and_never_sent() -> None:
    decision = decided(run_with(in_state(S.CLAIMED)))
    shard = decision.run.shards[0]
    assert (shard.state, shard.last.attempted) == (S.UNKNOWN, True)
    assert decision.effects == (LookUp(0, 1, shard.last.input_ref, fenced=False),)


# ---------------------------------------------------------------- unknown outcomes

UNKNOWN_STEPS = [
    # notes, effect, state after, wake, reason
    (Notes(), LookUp, S.UNKNOWN, None, "ask first"),
    (
        looks(first=10, newest=10),
        None,
        S.UNKNOWN,
        SETTLE - 10,
        "one absence proves nothing: wait a settle time",
    ),
    (looks(first=SETTLE - 1, newest=5), None, S.UNKNOWN, 1, "still within the settle time"),
    (looks(first=SETTLE, newest=5), LookUp, S.UNKNOWN, None, "look once more"),
    (looks(first=SETTLE + 50, newest=51), LookUp, S.UNKNOWN, None, "the newest is too early"),
    (looks(first=SETTLE + 50, newest=50), DeleteInput, S.FENCING, None, "two, a settle time apart"),
    (
        looks(first=SETTLE + 9, newest=9, readable=False),
        None,
        S.UNKNOWN,
        TIMING.reference_retry_s - 9,
        "a client that can't read the input may be of another account",
    ),
    (
        looks(first=9, newest=9, readable=False),
        None,
        S.UNKNOWN,
        TIMING.reference_retry_s - 9,
        "also on the first look",
    ),
    (
        looks(first=99, newest=99, readable=False),
        LookUp,
        S.UNKNOWN,
        None,
        "it is tried again, so that it heals",
    ),
    (
        looks(first=SETTLE + 9, newest=9, complete=False),
        None,
        S.UNKNOWN,
        TIMING.reference_retry_s - 9,
        "a listing that was cut short does not say what is not there",
    ),
    (
        looks(first=SETTLE + 99, newest=99, complete=False),
        LookUp,
        S.UNKNOWN,
        None,
        "it is read again, so that it heals",
    ),
    (
        replace(looks(first=SETTLE + 50, newest=50), inflight=SENDING.inflight),
        None,
        S.UNKNOWN,
        None,
        "a repeat is under way: whatever a listing shows proves nothing",
    ),
]


@pytest.mark.parametrize(("notes", "effect", "state", "wake", "reason"), UNKNOWN_STEPS)
def test_an_unknown_outcome_is_settled_by_asking(notes, effect, state, wake, reason) -> None:
    decision = decided(run_with(in_state(S.UNKNOWN)), notes=notes)
    assert [type(e) for e in decision.effects] == ([effect] if effect else []), reason
    assert decision.run.shards[0].state is state, reason
    assert decision.wake_at == (after(wake) if wake is not None else None), reason


def test_a_blind_client_stalls_the_run_from_its_first_look_on() -> None:
    run = run_with(in_state(S.UNKNOWN), in_state(S.QUEUED, 1))
    notes = Notes(uploads={(1, 1): "file-1"})
    for number in range(9):
        now = after(number * TIMING.reference_retry_s)
        run, notes = fold_all(run, LookedUp(0, 1, None, readable=False), notes=notes, now=now)
        decision = decided(run, observed(now=now), notes)
        assert decision.problem.reason == Reason.ACCOUNT_CHANGED
        assert not sent(decision), "stalled: nothing new is submitted"
        assert decision.run == run, "and absences do not count, however many there are"
        between = decided(run, observed(now=now + timedelta(seconds=1)), notes)
        assert between.problem == decision.problem, "it does not flap"


@pytest.mark.parametrize("cancel", [None, CANCEL])
def test_an_absence_counts_the_same_when_the_run_is_cancelled(cancel) -> None:
    run = run_with(in_state(S.UNKNOWN), cancel=cancel)
    decision = decided(run, notes=looks(first=SETTLE, newest=0))
    assert decision.run.shards[0].state is S.FENCING


def test_where_listings_prove_nothing_the_run_stalls_and_goes_on_looking() -> None:
    traits = Traits(lists_complete=False)
    run = run_with(in_state(S.UNKNOWN))
    first = decided(run, observed(traits=traits))
    assert of_kind(first, LookUp)
    notes = looks(first=SETTLE * 9, newest=10)
    decision = decided(run, observed(traits=traits), notes)
    assert decision.problem.reason == Reason.OUTCOME_UNKNOWN
    assert decision.run == run, "never fenced, never sent again"
    assert decision.wake_at == after(TIMING.reference_retry_s - 10)
    later = decided(run, observed(traits=traits, now=after(TIMING.reference_retry_s)), notes)
    assert of_kind(later, LookUp)


# ---------------------------------------------------------------- repeats inside the window

WINDOW = Traits(resend_window_s=3600)
LOOKED = looks(first=1, newest=1)
LAST_CHANCE = 3600 - TIMING.submit_timeout_s

REPEATS = [
    (10, LOOKED, {}, {}, True, "the token makes a second batch impossible"),
    (10, Notes(), {}, {}, False, "look up first"),
    (-2400, LOOKED, {}, {}, False, "the claim is of another clock: how old it is nobody knows"),
    (LAST_CHANCE - 1, LOOKED, {}, {}, True, "the call is over before the window is"),
    (LAST_CHANCE, LOOKED, {}, {}, False, "the call might outlast the window"),
    (10, LOOKED, {"traits": Traits()}, {}, False, "a provider without a token: never"),
    (10, LOOKED, {}, {"cancel": CANCEL}, False, "it may make the batch that nobody wants"),
    (10, LOOKED, {"builder": job().suspended()}, {}, False, "suspended"),
    (10, LOOKED, {"provider": CHANGED}, {}, False, "ProviderChanged stops submissions"),
    (10, replace(LOOKED, inflight=SENDING.inflight), {}, {}, False, "it is under way"),
    (10, looks(first=1, newest=1, readable=False), {}, {}, False, "perhaps another account"),
]


@pytest.mark.parametrize(("age", "notes", "world", "members", "again", "reason"), REPEATS)
def test_the_claimed_request_is_repeated_only_inside_the_window(
    age, notes, world, members, again, reason
) -> None:
    run = run_with(claimed_ago(in_state(S.UNKNOWN), age), **members)
    decision = decided(run, observed(**{"traits": WINDOW, **world}), notes)
    last = run.shards[0].last
    repeat = Submit(0, 1, last.request, fresh=False)
    assert sent(decision) == ([repeat] if again else []), reason
    assert decision.run.shards[0].state is S.UNKNOWN, reason
    if again:
        assert decision.wake_at == after(LAST_CHANCE - age), "then absences count"


def test_a_stalled_run_repeats_nothing() -> None:
    doubled = with_late_batch(in_state(S.SUBMITTED))
    run = run_with(doubled, claimed_ago(in_state(S.UNKNOWN, 1), 10))
    decision = decided(run, observed(traits=WINDOW), looks(1, 1, first=1, newest=1))
    assert decision.problem.reason == Reason.DUPLICATE_SUBMISSION
    assert not sent(decision)


# ---------------------------------------------------------------- fencing


def fencing(fenced_ago=None, **members):
    shard = in_state(S.FENCING)
    fenced_at = None if fenced_ago is None else after(-fenced_ago)
    return run_with(shard.with_last(fenced_at=fenced_at), **members)


FENCES = [
    (None, Notes(), DeleteInput, S.FENCING, None, "the fence first"),
    (10, Notes(), None, S.FENCING, SETTLE - 10, "a settle time after the deletion"),
    (SETTLE, Notes(), LookUp, S.FENCING, None, "then one more look"),
    (SETTLE, looks(first=5, newest=5), LookUp, S.FENCING, None, "that look was too early"),
    (SETTLE + 5, looks(first=5, newest=5), StartTask, S.QUEUED, None, "given up: next ordinal"),
    (
        SETTLE + 5,
        looks(first=5, newest=5, complete=False),
        None,
        S.FENCING,
        TIMING.reference_retry_s - 5,
        "a listing that was cut short proves nothing behind a fence either",
    ),
    (
        SETTLE + 99,
        looks(first=99, newest=99, complete=False),
        LookUp,
        S.FENCING,
        None,
        "it is read again, so that it heals",
    ),
]


@pytest.mark.parametrize(("fenced", "notes", "effect", "state", "wake", "reason"), FENCES)
def test_an_ordinal_is_given_up_only_behind_a_fence(
    fenced, notes, effect, state, wake, reason
) -> None:
    decision = decided(fencing(fenced), notes=notes)
    assert [type(e) for e in decision.effects] == ([effect] if effect else []), reason
    assert decision.run.shards[0].state is state, reason
    assert decision.wake_at == (after(wake) if wake is not None else None), reason
    for effect_ in of_kind(decision, LookUp):
        assert effect_.fenced, "the input is gone on purpose"


@pytest.mark.parametrize("state", [S.UNKNOWN, S.FENCING])
@pytest.mark.parametrize(
    ("complete", "traits", "reason"),
    [
        (False, Traits(), "the listing was cut"),
        (True, Traits(lists_complete=False), "the provider's listings show only a part"),
    ],
)
def test_no_ordinal_is_given_up_by_listings_that_prove_nothing(
    state, complete, traits, reason
) -> None:
    run = fencing(SETTLE * 9) if state is S.FENCING else run_with(in_state(S.UNKNOWN))
    run = replace(run, shards=(*run.shards, in_state(S.QUEUED, 1)))
    notes = looks(first=SETTLE * 8, newest=5, complete=complete)
    decision = decided(run, observed(traits=traits), replace(notes, uploads={(1, 1): "file-1"}))
    assert decision.run == run, reason
    assert decision.problem.reason == Reason.OUTCOME_UNKNOWN
    assert not sent(decision), "stalled: nothing new is submitted"


LOOKING = st.lists(
    st.tuples(
        st.sampled_from([1.0, SETTLE / 2, SETTLE - 1, SETTLE, SETTLE * 2]),
        st.booleans(),
        st.booleans(),
    ),
    max_size=8,
)


@given(LOOKING)
def test_only_conclusive_absences_a_settle_time_apart_are_counted(steps) -> None:
    run, notes, now = run_with(in_state(S.UNKNOWN)), Notes(), NOW
    counting: list[datetime] = []
    for wait, readable, complete in steps:
        now += timedelta(seconds=wait)
        look = LookedUp(0, 1, None, readable=readable, complete=complete)
        run, notes = fold_all(run, look, notes=notes, now=now)
        counting = [*counting, now] if readable and complete else []
        run = decided(run, observed(now=now), notes).run
        apart = bool(counting) and counting[-1] - counting[0] >= timedelta(seconds=SETTLE)
        assert (run.shards[0].state is S.FENCING) == apart
        if apart:
            break


@given(LOOKING)
def test_a_fenced_ordinal_is_given_up_only_by_a_conclusive_look_a_settle_time_later(steps) -> None:
    run, notes, now = fencing(0), Notes(), NOW
    for wait, _, complete in steps:
        now += timedelta(seconds=wait)
        run, notes = fold_all(run, LookedUp(0, 1, None, complete=complete), notes=notes, now=now)
        run = decided(run, observed(now=now), notes).run
        settled = now >= NOW + timedelta(seconds=SETTLE)
        assert (run.shards[0].state is S.QUEUED) == (complete and settled)
        if run.shards[0].state is S.QUEUED:
            break


def test_a_given_up_ordinal_goes_on_with_a_new_upload() -> None:
    notes = replace(looks(first=5, newest=5), uploads={(0, 1): "file-1"})
    decision = decided(fencing(SETTLE + 5), notes=notes)
    last = decision.run.shards[0].last
    assert (last.state, last.request) == (U.FENCED, {})
    assert of_kind(decision, StartTask) == [StartTask(TaskKind.UPLOAD, 0, 2)]


def test_a_given_up_ordinal_of_a_cancelled_run_is_dropped() -> None:
    decision = decided(fencing(SETTLE + 5, cancel=CANCEL), notes=looks(first=5, newest=5))
    shard = decision.run.shards[0]
    assert (shard.state, shard.last.state) == (S.DROPPED, U.FENCED)


@pytest.mark.parametrize("state", [s for s in S if s not in {S.STAGED, S.QUEUED}])
def test_nothing_but_a_queued_shard_is_ever_claimed(state) -> None:
    """Whatever the notes say, and with a place and an upload at hand."""
    notes = replace(looks(first=SETTLE * 9, newest=0), uploads={(0, n): "f" for n in range(9)})
    decision = decided(run_with(in_state(state)), notes=notes)
    assert not [s for s in sent(decision) if s.fresh]


# ---------------------------------------------------------------- stalls


def test_a_stall_of_a_later_shard_holds_earlier_ones() -> None:
    run = run_with(in_state(S.QUEUED), in_state(S.SUBMITTED, 1))
    missing = following(run.shards[1].last.batch_id)
    notes = failing(missing, FaultKind.STALLED, Reason.BATCH_NOT_FOUND, UPLOADED)
    once = decided(run, notes=notes)
    assert once.problem is None, "a batch that is missing once may be a hiccup"
    assert sent(once)
    twice = failing(missing, FaultKind.STALLED, Reason.BATCH_NOT_FOUND, notes)
    decision = decided(run, notes=twice)
    assert decision.problem.reason == Reason.BATCH_NOT_FOUND
    assert not sent(decision)
    assert decision.run.shards[0] == run.shards[0]


def test_nothing_is_submitted_before_the_run_is_running() -> None:
    for phase in set(RunPhase) - {RunPhase.PARKED}:  # a parked run is taken up by its object
        run = replace(run_with(in_state(S.QUEUED)), phase=phase)
        assert bool(sent(decided(run, notes=UPLOADED))) == (phase is RunPhase.RUNNING)


def test_waiting_counts_from_the_observers_clock() -> None:
    """A look is due exactly a settle time after the first one, whenever we are asked."""
    run = run_with(in_state(S.UNKNOWN))
    for passed in (0, 1, SETTLE - 0.001, SETTLE):
        notes = looks(first=0, newest=0)
        decision = decided(run, observed(now=NOW + timedelta(seconds=passed)), notes)
        assert bool(of_kind(decision, LookUp)) == (passed >= SETTLE)

"""What tasks answered, folded into the run; and that late or repeated news changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.effects import CancelBatch
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchSeen,
    CancelAnswered,
    EffectFailed,
    FinalizerSet,
    InputDeleted,
    ShardStaged,
    SubmitAnswered,
    TaskDone,
)
from batchinference.core.policy import BELOW_MINIMUM
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
from batchinference.model.earlier import Earlier
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Ending,
    Results,
    RunPhase,
    ShardState,
    Verdict,
)
from batchinference.model.staging import BadRecord, Cursor, InputSnapshot, Staged
from batchinference.model.status import Reason
from batchinference.model.work import (
    Admitted,
    Checkpoint,
    Cleaned,
    EarlierEnd,
    FaultKind,
    Finished,
    Holder,
    Pooled,
    ShardCollected,
    StageDone,
    TaskFault,
    TaskKind,
    Uploaded,
)
from builders import run_of, shard_of
from unit.core.given import (
    NOW,
    TIMING,
    after,
    failing,
    fold,
    fold_all,
    in_state,
    run_with,
    view_of,
)

S, P = ShardState, RunPhase
SNAPSHOT = InputSnapshot("s3://data/ml/in/triage.jsonl", 1, 100, "print-1")


def done(kind, result, shard=None, ordinal=None):
    return TaskDone(kind, shard, ordinal, result)


def fault(kind=FaultKind.PERMANENT, reason="InputTooLarge", after_s=None):
    return TaskFault(kind, reason, "it can't be done", after_s)


def admitting(**members):
    return run_of(shards=0, **members)


def staging(**members):
    return run_of(shards=0, **{"phase": P.STAGING, **members})


def checkpoint(index=0, row=100, print_="print-1", bad=()):
    cursor = Cursor(0, row * 10, row, row, len(bad), print_)
    return ShardStaged(Checkpoint(shard_of(index, S.STAGED), cursor, bad))


# ---------------------------------------------------------------- admitting


def test_an_admitted_run_has_its_place_and_its_input() -> None:
    run = fold(admitting(), done(TaskKind.ADMIT, Admitted(SNAPSHOT)))
    assert (run.phase, run.input, run.output.claimed) == (P.STAGING, SNAPSHOT, True)


def test_an_admission_told_late_changes_nothing() -> None:
    run = fold(admitting(), done(TaskKind.ADMIT, Admitted(SNAPSHOT)))
    other = replace(SNAPSHOT, fingerprint="print-2")
    for late in (Admitted(other), Admitted(other, Holder("other", "tag", "elsewhere"))):
        assert fold_all(run, done(TaskKind.ADMIT, late)) == (run, Notes())


HOLDERS = [
    (True, Reason.HELD_ELSEWHERE, "this very run, claimed by another cluster"),
    (False, Reason.OUTPUT_CONFLICT, "another run"),
]


@pytest.mark.parametrize(("own_key", "why", "reason"), HOLDERS)
def test_a_place_with_another_claim_stalls_and_says_whose(own_key, why, reason) -> None:
    run = admitting()
    holder = Holder(run.key if own_key else "other", "tag", "elsewhere", description="ml/other")
    changed, notes = fold_all(run, done(TaskKind.ADMIT, Admitted(SNAPSHOT, holder)))
    assert changed == run, reason
    found = notes.failures["task:Admit"].fault
    assert (found.kind, found.reason) == (FaultKind.STALLED, why)
    assert "ml/other" in found.message
    assert run.output.uri in found.message
    assert "another `spec.output`" in found.message
    assert notes.failures["task:Admit"].retry_at == after(TIMING.reference_retry_s), "heals"


EARLIER = [
    (100, Ending.SUCCEEDED, "all were answered"),
    (90, Ending.FAILED, "it did not tolerate failed records then, and does not now"),
]


@pytest.mark.parametrize(("completed", "ending", "reason"), EARLIER)
def test_a_run_whose_manifest_stands_is_adopted_as_finished(completed, ending, reason) -> None:
    run = admitting()
    results = Results(manifest_uri="s3://m", completed=completed, failed=100 - completed)
    holder = Holder(run.key, "tag", "elsewhere", finished=True)
    earlier = EarlierEnd(results, rows=100, bad=0, started_at=after(-900), ended_at=after(-600))
    told = done(TaskKind.ADMIT, Admitted(SNAPSHOT, holder, earlier))
    run, notes = fold_all(run, told)
    assert (run.phase, run.verdict.ending) == (P.CLEANING, ending), reason
    assert (run.start_time, run.completion_time) == (after(-900), after(-600)), "as it was"
    assert (run.results, run.staged.rows) == (results, 100)
    assert (run.adopted, run.was_submitted) == (True, True), "nothing is submitted again"
    assert not notes.failures
    ended = fold(run, done(TaskKind.CLEAN, Cleaned()))
    assert (ended.phase, ended.adopted, ended.was_submitted) == (P.ENDED, True, True)


MINI = {
    "model": "gpt-4.1-mini",
    "inputPerMillionTokens": "0",
    "outputPerMillionTokens": "2",
    "batchDiscountPercent": 0,
}


@pytest.mark.parametrize(
    ("results", "cost", "reason"),
    [
        (Results(completed=1, currency="EUR", cost="7.00"), ("EUR", "7.00"), "as it was written"),
        (
            Results(completed=1, output_tokens=1_000_000),
            ("USD", "2.00"),
            "an older version wrote it",
        ),
    ],
)
def test_what_an_adopted_end_cost_is_what_its_manifest_says(results, cost, reason) -> None:
    run = admitting()
    run = replace(run, provider=replace(run.provider, settings={"pricing": [MINI]}))
    holder = Holder("k", "tag", "elsewhere", finished=True)
    told = done(TaskKind.ADMIT, Admitted(SNAPSHOT, holder, EarlierEnd(results, rows=1, bad=0)))
    found = fold(run, told).results
    assert (found.currency, found.cost) == cost, reason


def test_an_adopted_end_without_times_ends_now() -> None:
    earlier = EarlierEnd(Results(completed=1), rows=1, bad=0)
    holder = Holder("k", "tag", "elsewhere", finished=True)
    told = done(TaskKind.ADMIT, Admitted(SNAPSHOT, holder, earlier))
    assert fold(admitting(), told).completion_time == NOW


def test_a_place_in_use_is_told_with_what_may_be_removed() -> None:
    for holder, told in (
        (
            Holder("b" * 40, "tag", "here", description="ml/b"),
            "(ml/b, run bbbbbbbbbbbb), which has",
        ),
        (Holder("b" * 40, "tag", "here", finished=True, description="ml/b"), "which finished"),
        (Holder("", "", "", description="results without a claim"), "in use: results without"),
    ):
        _, notes = fold_all(admitting(), done(TaskKind.ADMIT, Admitted(SNAPSHOT, holder)))
        message = notes.failures["task:Admit"].fault.message
        assert told in message
        assert "if nobody needs what is there" in message


def test_an_admission_that_succeeds_ends_the_failure_before_it() -> None:
    notes = failing("task:Admit")
    assert not fold_all(admitting(), done(TaskKind.ADMIT, Admitted(SNAPSHOT)), notes=notes)[
        1
    ].failures


# ---------------------------------------------------------------- staging


def test_finished_shards_are_journaled_in_order_with_the_cursor_and_the_counts() -> None:
    bad = (BadRecord(3, "InvalidJSON", "no"),)
    run = fold(staging(), checkpoint(0), checkpoint(1, 200, bad=bad))
    assert [s.index for s in run.shards] == [0, 1]
    assert (run.cursor.row, run.staged.rows, run.staged.bad) == (200, 200, 1)
    assert run.staged.first_bad == bad


IGNORED_CHECKPOINTS = [
    (checkpoint(0), "told twice"),
    (checkpoint(2), "out of order"),
    (checkpoint(1, 200, "print-2"), "of a pass over another state of the input"),
]


@pytest.mark.parametrize(("late", "reason"), IGNORED_CHECKPOINTS)
def test_a_checkpoint_that_does_not_follow_is_ignored(late, reason) -> None:
    run = fold(staging(), checkpoint(0))
    assert fold(run, late) == run, reason


def test_a_checkpoint_after_staging_is_ignored() -> None:
    run = run_with(in_state(S.SUBMITTED))
    assert fold(run, checkpoint(1)) == run


def test_a_whole_pass_makes_a_running_run() -> None:
    staged = Staged(100, 0, 1000, 400)
    run = fold(staging(), checkpoint(0), done(TaskKind.STAGE, StageDone(staged, SNAPSHOT)))
    assert (run.phase, run.staged, run.input) == (P.RUNNING, staged, SNAPSHOT)
    again = done(TaskKind.STAGE, StageDone(replace(staged, rows=1), SNAPSHOT))
    assert fold(run, again) == run, "told twice"


def test_a_pass_of_which_a_checkpoint_was_lost_has_not_ended() -> None:
    staged = Staged(201, 1, 2000, 800)
    run = fold(staging(), checkpoint(0), done(TaskKind.STAGE, StageDone(staged, SNAPSHOT)))
    assert run.phase is P.STAGING, "a hundred records are in no shard"
    again = fold(run, checkpoint(1), done(TaskKind.STAGE, StageDone(staged, SNAPSHOT)))
    assert again.phase is P.RUNNING


def test_the_end_of_a_pass_over_another_input_is_ignored() -> None:
    run = fold(staging(), checkpoint(0))
    other = replace(SNAPSHOT, fingerprint="print-2")
    assert fold(run, done(TaskKind.STAGE, StageDone(Staged(1, 0, 1, 1), other))) == run


def test_a_changed_input_begins_again_at_most_five_times() -> None:
    changed = done(TaskKind.STAGE, fault(FaultKind.WAITING, Reason.INPUT_CHANGING))
    run = fold(staging(input=SNAPSHOT), checkpoint(0))
    for passes in range(1, 5):
        run = fold(run, changed, checkpoint(0))
        assert (run.phase, run.passes, len(run.shards)) == (P.STAGING, passes, 1)
    run = fold(run, changed)
    assert (run.phase, run.verdict.reason) == (P.CLEANING, Reason.INPUT_CHANGING)
    assert run.verdict.ending is Ending.FAILED
    assert "5 staging passes" in run.verdict.message
    assert run.completion_time == NOW


def test_a_changed_input_forgets_everything_of_the_pass() -> None:
    run = fold(staging(input=SNAPSHOT), checkpoint(0))
    again = fold(run, done(TaskKind.STAGE, fault(reason=Reason.INPUT_CHANGING)))
    assert (again.shards, again.cursor, again.staged, again.input) == ((), None, None, None)


# ---------------------------------------------------------------- faults of tasks


PERMANENT = [
    (admitting(), TaskKind.ADMIT, None, None, P.CLEANING, "nothing is paid yet"),
    (staging(), TaskKind.STAGE, None, None, P.CLEANING, "nothing is paid yet"),
    (run_with(in_state(S.QUEUED)), TaskKind.UPLOAD, 0, 1, P.CLEANING, "nothing is paid yet"),
    (
        run_with(in_state(S.QUEUED), in_state(S.SUBMITTED, 1)),
        TaskKind.UPLOAD,
        0,
        1,
        P.RUNNING,
        "another shard is paid for",
    ),
    (run_with(in_state(S.ENDED)), TaskKind.COLLECT, 0, 1, P.RUNNING, "it is paid for"),
    (run_with(in_state(S.COLLECTED)), TaskKind.POOL, None, None, P.RUNNING, "it is paid for"),
]


@pytest.mark.parametrize(("run", "kind", "shard", "ordinal", "phase", "reason"), PERMANENT)
def test_a_permanent_fault_ends_only_what_is_not_paid_for(
    run, kind, shard, ordinal, phase, reason
) -> None:
    changed, notes = fold_all(run, done(kind, fault(), shard, ordinal))
    assert changed.phase is phase, reason
    assert notes.failures, "and it is told"
    if phase is P.CLEANING:
        assert changed.verdict == Verdict(Ending.FAILED, "InputTooLarge", "it can't be done")
    else:
        assert changed == run


@pytest.mark.parametrize("kind", [FaultKind.STALLED, FaultKind.WAITING, FaultKind.RETRY])
@pytest.mark.parametrize(("run", "task"), [(admitting(), "Admit"), (staging(), "Stage")])
def test_a_fault_that_may_pass_ends_nothing(run, task, kind) -> None:
    changed, notes = fold_all(run, done(TaskKind(task), fault(kind)))
    assert changed == run
    assert notes.failures[f"task:{task}"].fault.kind is kind


LATE = [
    (run_with(in_state(S.QUEUED)), TaskKind.ADMIT, None, None, "admitted by another process"),
    (run_with(in_state(S.QUEUED)), TaskKind.STAGE, None, None, "staged by another process"),
    (run_with(in_state(S.SUBMITTED)), TaskKind.UPLOAD, 0, 1, "submitted meanwhile"),
    (run_with(in_state(S.QUEUED)), TaskKind.UPLOAD, 0, 4, "of another ordinal"),
    (run_with(in_state(S.QUEUED)), TaskKind.UPLOAD, 5, 1, "of a shard that is not there"),
    (
        replace(run_with(in_state(S.DROPPED)), phase=P.FINISHING),
        TaskKind.UPLOAD,
        0,
        1,
        "the run finishes without it",
    ),
    (run_with(in_state(S.COLLECTED)), TaskKind.COLLECT, 0, 1, "collected meanwhile"),
    (run_with(in_state(S.ENDED)), TaskKind.COLLECT, 0, 2, "of another ordinal"),
    (replace(run_with(), phase=P.ENDED), TaskKind.COLLECT, 0, 1, "a receipt has no shards"),
    (replace(run_with(), phase=P.ENDED), TaskKind.FINISH, None, None, "finished meanwhile"),
    (run_with(), TaskKind.CLEAN, None, None, "nothing is being cleaned"),
    (run_with(in_state(S.QUEUED)), TaskKind.RELEASE, None, None, "nothing is being cleaned"),
]


@pytest.mark.parametrize(("run", "kind", "shard", "ordinal", "reason"), LATE)
@pytest.mark.parametrize("why", [Reason.INPUT_CHANGING, "InputTooLarge"])
def test_a_fault_of_a_step_that_is_behind_us_is_nothing(
    run, kind, shard, ordinal, why, reason
) -> None:
    told = done(kind, fault(reason=why), shard, ordinal)
    assert fold_all(run, told) == (run, Notes()), reason


# ---------------------------------------------------------------- uploads and collecting


def test_an_upload_waits_for_its_claim() -> None:
    run = run_with(in_state(S.QUEUED), in_state(S.QUEUED, 1))
    changed, notes = fold_all(run, done(TaskKind.UPLOAD, Uploaded("file-9"), 1, 3))
    assert changed == run
    assert notes.uploads == {(1, 3): "file-9"}


def test_a_collected_shard_is_settled_once() -> None:
    run = run_with(in_state(S.ENDED))
    found = Collected(answered=90, failed=10)
    collected = fold(run, done(TaskKind.COLLECT, ShardCollected(found), 0, 1))
    assert (collected.shards[0].state, collected.shards[0].collected) == (S.COLLECTED, found)
    other = done(TaskKind.COLLECT, ShardCollected(Collected(answered=1)), 0, 1)
    assert fold(collected, other) == collected


@pytest.mark.parametrize(
    ("run", "ordinal", "reason"),
    [
        (run_with(in_state(S.ENDED)), 2, "of another ordinal"),
        (run_with(in_state(S.SUBMITTED)), 1, "not over yet"),
        (run_with(), 1, "a receipt has no shards"),
    ],
)
def test_a_collect_of_what_has_not_ended_is_ignored(run, ordinal, reason) -> None:
    late = done(TaskKind.COLLECT, ShardCollected(Collected(answered=100)), 0, ordinal)
    assert fold(run, late) == run, reason


# ---------------------------------------------------------------- pooling


def unbilled(index=0, attempt=1, by_us=False, **members):
    shard = in_state(S.COLLECTED, index, attempt=attempt, **members)
    if by_us:
        shard = shard.with_last(cancel_accepted_at=NOW, batch_state=BatchState.CANCELLED)
    return replace(shard, collected=Collected(answered=60, unbilled=40, unbilled_code="Expired"))


def new_shard(index):
    return shard_of(index, S.STAGED, rows=40)


def test_pooled_records_go_on_in_new_shards_that_ask_for_a_place() -> None:
    run = run_with(unbilled(0), unbilled(1, attempt=2))
    pooled = done(TaskKind.POOL, Pooled((new_shard(2), new_shard(3)), (0, 1)))
    changed = fold(run, pooled)
    assert [s.pooled for s in changed.shards] == [True, True, False, False]
    assert [(s.state, s.attempt) for s in changed.shards[2:]] == [(S.QUEUED, 3)] * 2
    assert fold(changed, pooled) == changed, "told twice"


ATTEMPTS = [
    ((unbilled(0),), 2, "one more"),
    ((unbilled(0, by_us=True),), 1, "our own cancel was no attempt"),
    ((unbilled(0, by_us=True), unbilled(1)), 2, "the one that has gone most often counts"),
    ((unbilled(0, 2, by_us=True), unbilled(1, 1)), 2, "likewise"),
]


@pytest.mark.parametrize(("shards", "attempt", "reason"), ATTEMPTS)
def test_the_attempt_of_pooled_records(shards, attempt, reason) -> None:
    run = run_with(*shards)
    sources = tuple(range(len(shards)))
    result = Pooled((new_shard(len(shards)),), sources)
    assert fold(run, done(TaskKind.POOL, result)).shards[-1].attempt == attempt, reason


def test_leftovers_below_the_minimum_end_as_such() -> None:
    run = run_with(unbilled(0))
    left = done(TaskKind.POOL, Pooled((), (0,)))
    shard = fold(run, left).shards[0]
    assert (shard.collected.unbilled_code, shard.pooled) == (BELOW_MINIMUM, False)
    assert fold(fold(run, left), left) == fold(run, left)


LATE_POOLS = [
    (replace(run_with(unbilled()), phase=P.FINISHING), (1,), (0,), "finishing without them"),
    (replace(run_with(unbilled()), phase=P.PARKED), (1,), (0,), "parked"),
    (replace(run_with(), phase=P.ENDED), (1,), (0,), "a receipt has no shards"),
    (run_with(unbilled(), unbilled(1, pooled=True)), (2,), (0, 1), "one went on already"),
    (run_with(unbilled(), in_state(S.SUBMITTED, 1)), (2,), (0, 1), "one is not collected"),
    (run_with(unbilled(), in_state(S.QUEUED, 1)), (1,), (0,), "the number is taken"),
]


@pytest.mark.parametrize(("run", "made", "sources", "reason"), LATE_POOLS)
def test_a_pool_that_comes_too_late_is_ignored(run, made, sources, reason) -> None:
    result = Pooled(tuple(new_shard(n) for n in made), sources)
    assert fold(run, done(TaskKind.POOL, result)) == run, reason


# ---------------------------------------------------------------- the end


def finishing(*shards, **members):
    return replace(run_with(*shards), phase=P.FINISHING, **members)


ENDS = [
    (None, 100, 0, P.CLEANING, Ending.SUCCEEDED, "all were answered"),
    (None, 60, 40, P.CLEANING, Ending.FAILED, "too many failed"),
    (CancelWhy.DESIRED, 60, 40, P.CLEANING, Ending.CANCELLED, "desiredState is final"),
    (CancelWhy.DELETED, 60, 40, P.PARKED, Ending.CANCELLED, "the object may come back"),
    (CancelWhy.ORPHANED, 60, 40, P.PARKED, Ending.CANCELLED, "the object may come back"),
]


@pytest.mark.parametrize(("why", "completed", "failed", "phase", "ending", "reason"), ENDS)
def test_the_manifest_ends_the_run(why, completed, failed, phase, ending, reason) -> None:
    cancel = Cancel(why, NOW) if why else None
    run = finishing(unbilled(), cancel=cancel)
    results = Results(completed=completed, failed=failed)
    parks = phase is P.PARKED
    stale = done(TaskKind.FINISH, Finished(results, may_go_on=not parks))
    assert fold(run, stale) == run, "what the manifest says of the end is out of date"
    finished = done(TaskKind.FINISH, Finished(results, may_go_on=parks))
    ended = fold(run, finished)
    assert (ended.phase, ended.verdict.ending, ended.results) == (phase, ending, results), reason
    assert ended.completion_time == NOW
    assert fold(ended, finished, now=after(60)) == ended, "told twice"


def test_a_deletion_that_kept_no_record_from_its_answer_is_no_cancel() -> None:
    answered = replace(in_state(S.COLLECTED), collected=Collected(answered=60, failed=40))
    run = finishing(answered, cancel=Cancel(CancelWhy.DELETED, NOW))
    ended = fold(run, done(TaskKind.FINISH, Finished(Results(completed=60, failed=40))))
    assert (ended.phase, ended.verdict.ending) == (P.CLEANING, Ending.FAILED)


def test_a_deletion_is_a_cancel_where_the_provider_may_have_answers_of_an_earlier_life() -> None:
    answered = replace(in_state(S.COLLECTED), collected=Collected(answered=60, failed=40))
    earlier = Earlier(asking=False, expected=True, strange=("batch-9",))
    run = finishing(answered, cancel=Cancel(CancelWhy.DELETED, NOW), earlier=earlier)
    results = Results(completed=60, failed=40)
    ended = fold(run, done(TaskKind.FINISH, Finished(results, may_go_on=True)))
    assert (ended.phase, ended.verdict.ending) == (P.PARKED, Ending.CANCELLED)


@pytest.mark.parametrize("kind", [TaskKind.CLEAN, TaskKind.RELEASE])
def test_a_cleaned_run_is_a_receipt(kind) -> None:
    verdict = Verdict(Ending.SUCCEEDED, Reason.SUCCEEDED, "100 of 100 records were answered")
    run = replace(run_with(in_state(S.COLLECTED)), phase=P.CLEANING, verdict=verdict)
    ended = fold(run, done(kind, Cleaned()))
    assert (ended.phase, ended.shards, ended.verdict) == (P.ENDED, (), verdict)
    assert (ended.submitted, ended.ordinal_floor) == (True, 1)
    assert fold(ended, done(kind, Cleaned())) == ended
    assert fold(run_with(), done(kind, Cleaned())) == run_with(), "nothing was being cleaned"


# ---------------------------------------------------------------- other effects


def test_a_failed_effect_is_noted_and_a_finalizer_that_stands_ends_its_failure() -> None:
    run = run_with(in_state(S.SUBMITTED))
    effect = CancelBatch(0, "batch-0-1")
    changed, notes = fold_all(run, EffectFailed(effect, fault(FaultKind.RETRY, after_s=5)))
    assert changed == run
    assert notes.failures[effect.id].retry_at == after(5)
    _, notes = fold_all(run, FinalizerSet(True), notes=failing("finalizer", notes=notes))
    assert set(notes.failures) == {effect.id}


# ---------------------------------------------------------------- told twice, told late


def outcomes(run):
    """Anything that can be told of shard 0, ordinals 1 and 2, in any order."""
    ordinals = st.sampled_from([1, 2])
    answers = st.sampled_from(
        [
            Refused(RefusalKind.QUOTA, "q", "m"),
            Refused(RefusalKind.INVALID, "i", "m"),
            OutcomeUnknown("m"),
            NotSent(Reason.OUTPUT_CONFLICT, "m"),
        ]
    )
    failures = st.sampled_from([None, BatchFailure("x", "m", quota=True), BatchFailure("x", "m")])
    views = st.builds(
        lambda o, s, f: view_of(run, 0, o, s, failure=f if s is BatchState.FAILED else None),
        ordinals,
        st.sampled_from(BatchState),
        failures,
    )
    return st.one_of(
        st.builds(lambda o, a: SubmitAnswered(0, o, a), ordinals, answers),
        st.builds(lambda v: SubmitAnswered(0, v.submission.ordinal, Accepted(v)), views),
        st.builds(BatchSeen, views),
        st.builds(lambda o: InputDeleted(0, o), ordinals),
        st.builds(
            lambda o: done(TaskKind.COLLECT, ShardCollected(Collected(answered=100)), 0, o),
            ordinals,
        ),
        st.builds(lambda c: CancelAnswered(0, "batch-0-1", c), st.sampled_from(CancelOutcome)),
    )


RUN = run_with(in_state(S.CLAIMED))


@given(st.lists(outcomes(RUN), max_size=8))
def test_told_twice_in_a_row_is_told_once(news) -> None:
    run, notes = RUN, Notes()
    for outcome in news:
        run, notes = fold_all(run, outcome, notes=notes)
        again, _ = fold_all(run, outcome, notes=notes, now=after(300))
        assert again == run


@given(st.lists(outcomes(RUN), max_size=8))
def test_no_news_ever_reopens_a_settled_submission_or_loses_a_batch(news) -> None:
    run, notes = RUN, Notes()
    for outcome in news:
        before = run.shards[0] if run.shards else None
        run, notes = fold_all(run, outcome, notes=notes)
        if before is None or not run.shards:
            break
        then, now = before.last, run.shards[0].last
        assert not then.batch_id or now.batch_id == then.batch_id
        assert before.state is not S.COLLECTED or run.shards[0].state is S.COLLECTED
        if then.state.value in {"Ended", "Void", "Refused"}:
            assert now.state is then.state

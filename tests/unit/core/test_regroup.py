"""Batches that the provider finds too large: cut again, until a single record is too large."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.effects import StartTask
from batchinference.core.outcomes import BatchSeen, SubmitAnswered, TaskDone
from batchinference.core.policy import final_verdict
from batchinference.model.batch import BatchFailure, BatchLimit, RefusalKind, Refused
from batchinference.model.run import Cancel, CancelWhy, Results, Run, RunPhase, Shard, ShardState
from batchinference.model.work import FaultKind, Pooled, TaskFault, TaskKind
from builders import limits, shard_of
from invariants import journal_problems
from unit.core.given import (
    NOW,
    decided,
    failed_view,
    fold,
    fold_all,
    in_state,
    observed,
    of_kind,
    run_with,
    spec_of,
)

S = ShardState
RECORDS, BYTES, TOKENS = BatchLimit.RECORDS, BatchLimit.BYTES, BatchLimit.TOKENS
"""A shard of the builders has 100 rows, 20,000 bytes and an estimate of 4,000 tokens."""


def too_large(exceeds: BatchLimit = RECORDS, most: int | None = None) -> BatchFailure:
    return BatchFailure("too_large", "too much", exceeds=exceeds, most=most)


def failed(run: Run, failure: BatchFailure) -> Run:
    """The run once the batch of its first shard failed, and was decided about."""
    return decided(fold(run, BatchSeen(failed_view(run, failure)))).run


LEARNED = [
    (too_large(RECORDS, 60), {"max_records_per_batch": 60}, "the limit that it names"),
    (too_large(RECORDS), {"max_records_per_batch": 50}, "half of it"),
    (too_large(RECORDS, 100), {"max_records_per_batch": 50}, "a limit that it does not pass"),
    (too_large(BYTES, 12_000), {"max_bytes_per_batch": 12_000}, "in bytes"),
    (too_large(TOKENS, 3_000), {"max_enqueued_tokens": 3_000}, "in tokens"),
    (too_large(TOKENS, 9_000), {"max_enqueued_tokens": 2_000}, "we count too few"),
    (
        BatchFailure("token_limit_exceeded", "Limit: 900", quota=True, most=900),
        {"max_enqueued_tokens": 900},
        "a whole queue does not hold it",
    ),
]


@pytest.mark.parametrize(("failure", "lower", "reason"), LEARNED)
def test_what_is_too_large_lowers_the_limits_and_is_cut_again(failure, lower, reason) -> None:
    run = run_with(in_state(S.SUBMITTED), in_state(S.QUEUED, 1))
    run = failed(run, failure)
    assert run.limits == limits(**lower), reason
    assert [s.state for s in run.shards] == [S.REGROUPED, S.REGROUPED], "the next one, too"
    assert journal_problems(run) == []
    task = of_kind(decided(run), StartTask)
    assert [(t.kind, t.sources) for t in task] == [(TaskKind.POOL, (0, 1))]


@pytest.mark.parametrize(("failure", "lower", "reason"), LEARNED)
def test_what_is_refused_as_too_large_is_cut_again(failure, lower, reason) -> None:
    kind = RefusalKind.QUOTA if failure.quota else RefusalKind.TOO_LARGE
    refused = Refused(kind, "413", "too much", exceeds=failure.exceeds, most=failure.most)
    run = fold(run_with(in_state(S.CLAIMED)), SubmitAnswered(0, 1, refused))
    assert run.limits == limits(**lower), reason
    assert decided(run).run.shards[0].state is S.REGROUPED
    assert run.phase is RunPhase.RUNNING


def test_limits_are_never_raised() -> None:
    run = replace(run_with(in_state(S.SUBMITTED)), limits=limits(max_enqueued_tokens=10))
    assert failed(run, too_large(TOKENS, 3_000)).limits.max_enqueued_tokens == 10


def test_a_quota_that_the_shard_fits_into_is_waited_for() -> None:
    quota = BatchFailure("token_limit_exceeded", "Limit: 9,000", quota=True, most=9_000)
    run = failed(run_with(in_state(S.SUBMITTED)), quota)
    assert run.shards[0].state is S.QUEUED
    assert run.limits == limits()


@pytest.mark.parametrize(
    ("tries", "most", "state"),
    [(2, 5_000, S.QUEUED), (3, 5_000, S.REGROUPED), (3, 9_000, S.QUEUED)],
)
def test_a_quota_that_it_may_be_above_is_believed_after_some_tries(tries, most, state) -> None:
    quota = BatchFailure("token_limit_exceeded", "Limit", quota=True, most=most)
    run = failed(run_with(replace(in_state(S.SUBMITTED), put_backs=tries)), quota)
    assert run.shards[0].state is state


def test_one_record_that_is_too_large_fails() -> None:
    run = run_with(in_state(S.SUBMITTED, rows=1), in_state(S.QUEUED, 1))
    run = failed(run, too_large())
    assert (run.shards[0].state, run.shards[1].state) == (S.ENDED, S.QUEUED)
    refused = SubmitAnswered(0, 1, Refused(RefusalKind.TOO_LARGE, "413", "too much"))
    alone = fold(run_with(in_state(S.CLAIMED, rows=1)), refused)
    assert alone.verdict is not None, "nothing was submitted, and nothing can be"
    assert alone.verdict.reason == "ProviderRefused"
    for other in (S.SUBMITTED, S.QUEUED, S.REGROUPED):
        among = fold(run_with(in_state(S.CLAIMED, rows=1), in_state(other, 1)), refused)
        assert (among.shards[0].state, among.verdict) == (S.ENDED, None), other
    pooled_on = replace(in_state(S.REGROUPED, 1), pooled=True)
    last = fold(run_with(in_state(S.CLAIMED, rows=1), pooled_on), refused)
    assert last.verdict is not None, "it was the last of them"


UPLOAD_REFUSED = TaskFault(FaultKind.PERMANENT, "BatchTooLarge", "no file of that size (413)")


def test_an_upload_that_is_too_large_is_cut_before_anything_is_submitted() -> None:
    refused = TaskDone(TaskKind.UPLOAD, 0, 1, UPLOAD_REFUSED)
    run, notes = fold_all(run_with(in_state(S.QUEUED)), refused)
    assert (run.phase, notes.failures) == (RunPhase.RUNNING, {})
    assert run.limits == limits(max_bytes_per_batch=10_000)
    assert decided(run).run.shards[0].state is S.REGROUPED


def test_an_upload_of_one_record_that_is_too_large_ends_a_run_that_is_not_paid_for() -> None:
    refused = TaskDone(TaskKind.UPLOAD, 0, 1, UPLOAD_REFUSED)
    run = fold(run_with(in_state(S.QUEUED, rows=1)), refused)
    assert run.verdict is not None
    assert run.verdict.reason == "BatchTooLarge"


@pytest.mark.parametrize("other", [S.QUEUED, S.SUBMITTED, S.COLLECTED])
def test_an_upload_of_one_record_that_is_too_large_fails_that_record(other) -> None:
    refused = TaskDone(TaskKind.UPLOAD, 0, 1, UPLOAD_REFUSED)
    run, notes = fold_all(run_with(in_state(S.QUEUED, rows=1), in_state(other, 1)), refused)
    assert (run.shards[0].state, run.shards[1].state, run.verdict) == (S.ENDED, other, None)
    assert run.shards[0].last is not None
    assert run.shards[0].last.failure is not None
    assert run.shards[0].last.failure.code == "BatchTooLarge"
    assert notes.failures == {}
    collecting = of_kind(decided(run), StartTask)
    assert TaskKind.COLLECT in [task.kind for task in collecting]
    assert fold(run, refused) == run, "told twice"


def pooled(run: Run, *made: Shard, sources: tuple[int, ...] = (0,)) -> Run:
    return fold(run, TaskDone(TaskKind.POOL, None, None, Pooled(made, sources)))


def cut() -> Run:
    """A run whose only shard was found too large."""
    return failed(run_with(in_state(S.SUBMITTED, attempt=2)), too_large())


def test_its_records_go_on_without_having_lost_an_attempt() -> None:
    run = pooled(cut(), shard_of(1, S.STAGED, rows=50), shard_of(2, S.STAGED, rows=50))
    assert [(s.state, s.pooled, s.attempt) for s in run.shards] == [
        (S.REGROUPED, True, 2),
        (S.QUEUED, False, 2),
        (S.QUEUED, False, 2),
    ]
    done = replace(run, shards=tuple(replace(s, state=S.COLLECTED) for s in run.shards))
    done = done.with_shard(run.shards[0])
    assert "BatchFailed" not in final_verdict(done, spec_of(), Results(failed=1)).reason


def test_records_that_are_too_few_for_a_batch_end_where_they_are() -> None:
    run = pooled(cut())
    assert (run.shards[0].state, run.shards[0].pooled) == (S.DROPPED, False)
    assert pooled(run) == run, "told twice"


def test_nothing_is_cut_for_a_run_that_is_being_ended() -> None:
    cancelled = replace(cut(), cancel=Cancel(CancelWhy.DESIRED, NOW))
    decision = decided(cancelled)
    assert decision.run.shards[0].state is S.DROPPED
    assert [task.kind for task in of_kind(decision, StartTask)] == [TaskKind.FINISH]
    went_on = pooled(cut(), shard_of(1, S.STAGED))
    decision = decided(replace(went_on, cancel=Cancel(CancelWhy.DESIRED, NOW)))
    assert [s.state for s in decision.run.shards] == [S.REGROUPED, S.DROPPED]


def test_nothing_is_cut_while_the_run_is_held() -> None:
    decision = decided(cut(), observed(full="no room"))
    assert of_kind(decision, StartTask) == []
    assert decision.run.phase is RunPhase.RUNNING


@given(
    st.integers(2, 200),
    st.sampled_from(BatchLimit),
    st.none() | st.integers(0, 50_000),
)
def test_every_refusal_gets_on(rows: int, exceeds: BatchLimit, most: int | None) -> None:
    run = run_with(in_state(S.SUBMITTED, rows=rows))
    assert failed(run, too_large(exceeds, most)).shards[0].state is S.REGROUPED


def test_a_refusal_that_is_told_after_the_end_teaches_nothing() -> None:
    run = cut()
    again, _ = fold_all(run, BatchSeen(failed_view(run, too_large())))
    assert again == run

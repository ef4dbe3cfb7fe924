"""Verdicts over counts: exact tolerance, staged runs, ends, what may go again."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.policy import (
    BELOW_MINIMUM,
    final_verdict,
    has_unanswered,
    may_go_again,
    reject,
    staging_verdict,
    tolerates,
    was_cancelled_by_us,
    was_dropped,
)
from batchinference.model.batch import BatchFailure, BatchState
from batchinference.model.job import SuccessPolicy
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Ending,
    Place,
    Results,
    RunPhase,
    ShardState,
)
from batchinference.model.staging import BadRecord, Staged
from batchinference.model.status import Reason
from builders import job, limits, run_of
from unit.core.given import NOW, in_state, run_with, spec_of

S = ShardState

TOLERANCE = [
    (None, None, 100, 0, True, "nothing failed"),
    (None, None, 100, 1, False, "both unset: none may fail"),
    (0, None, 100, 0, True, "nothing failed"),
    (0, None, 10**9, 1, False, "none of a thousand million"),
    (None, 0, 100, 1, False, "no record may fail"),
    (5, None, 100, 5, True, "exactly five percent"),
    (5, None, 100, 6, False, "six percent"),
    (5, None, 99, 5, False, "5.05 percent: no rounding"),
    (33, None, 3, 1, False, "33.3 percent: no rounding"),
    (34, None, 3, 1, True, "33.3 percent"),
    (None, 7, 8, 7, True, "seven records, whatever the share"),
    (None, 7, 10**6, 8, False, "eight records, whatever the share"),
    (50, 2, 100, 3, False, "both limit: too many records"),
    (1, 50, 100, 3, False, "both limit: too large a share"),
    (50, 50, 100, 50, True, "within both"),
    (100, None, 3, 3, True, "all may fail"),
    (5, None, 0, 0, True, "nothing of nothing"),
]


@pytest.mark.parametrize(("percent", "records", "total", "failed", "within", "reason"), TOLERANCE)
def test_tolerance(percent, records, total, failed, within, reason) -> None:
    assert tolerates(SuccessPolicy(percent, records), total, failed) is within, reason


@given(
    percent=st.none() | st.integers(0, 100),
    records=st.none() | st.integers(0, 10**6),
    total=st.integers(0, 10**7),
    data=st.data(),
)
def test_tolerance_is_exact_and_one_more_failure_never_helps(percent, records, total, data) -> None:
    failed = data.draw(st.integers(0, total))
    policy = SuccessPolicy(percent, records)
    within = tolerates(policy, total, failed)
    if percent is not None and total and Fraction(failed, total) > Fraction(percent, 100):
        assert not within
    if records is not None and failed > records:
        assert not within
    if not within and failed < total:
        assert not tolerates(policy, total, failed + 1)
    if failed == 0:
        assert within


# ---------------------------------------------------------------- staged runs


def staged_run(staged):
    return replace(run_of(shards=1), staged=staged)


def bad_records(number, length=20):
    return tuple(BadRecord(7 * n, "InvalidJSON", "m" * length) for n in range(1, number + 1))


def test_nothing_is_known_of_a_run_that_is_not_staged() -> None:
    assert staging_verdict(staged_run(None), spec_of()) is None


@pytest.mark.parametrize(
    ("place", "rows", "refused"),
    [
        ("configmap://ml/answers", 500, False),
        ("configmap://ml/answers", 501, True),
        ("s3://data/out/", 501, False),
    ],
)
def test_more_records_than_config_maps_hold_are_refused_before_paying(place, rows, refused) -> None:
    run = staged_run(Staged(rows=rows, bad=0, size=1, tokens=1))
    verdict = staging_verdict(replace(run, output=Place(place)), spec_of())
    assert (verdict is not None and verdict.reason == Reason.TOO_LARGE) is refused


def test_bad_records_are_named_by_line_number_and_source() -> None:
    bad = (BadRecord(3, "InvalidJSON", "it is no JSON"), BadRecord(9, "TooLong", "x", "b.jsonl"))
    verdict = staging_verdict(staged_run(Staged(50, 2, 1, 1, bad)), spec_of())
    assert verdict.reason == Reason.BAD_RECORDS
    assert verdict.message == (
        "2 of 50 records can't be sent; nothing was submitted. They are on lines 3, 9: "
        "line 3: InvalidJSON: it is no JSON; b.jsonl line 9: TooLong: x"
    )


def test_the_first_ten_line_numbers_stand_there_however_long_the_details_are() -> None:
    staged = Staged(50, 40, 1, 1, bad_records(10, length=500))
    message = staging_verdict(staged_run(staged), spec_of()).message
    assert "The first 10 are on lines 7, 14, 21, 28, 35, 42, 49, 56, 63, 70: " in message
    assert len(message) < 600
    assert message.endswith("…")


# ---------------------------------------------------------------- the end

ENDS = [
    ((100, 0, 0), job(), Ending.SUCCEEDED, Reason.SUCCEEDED, "all were answered"),
    ((95, 5, 0), job().tolerating(percent=5), Ending.SUCCEEDED, Reason.PARTIAL, "within"),
    ((95, 3, 2), job().tolerating(percent=5), Ending.SUCCEEDED, Reason.PARTIAL, "expired count"),
    ((94, 3, 3), job().tolerating(percent=5), Ending.FAILED, Reason.TOLERANCE_EXCEEDED, "above"),
    ((99, 1, 0), job(), Ending.FAILED, Reason.TOLERANCE_EXCEEDED, "none may fail"),
    ((0, 0, 100), job(), Ending.FAILED, Reason.TOLERANCE_EXCEEDED, "all expired"),
]


@pytest.mark.parametrize(("counts", "builder", "ending", "why", "reason"), ENDS)
def test_how_a_run_ends(counts, builder, ending, why, reason) -> None:
    completed, failed, expired = counts
    results = Results(completed=completed, failed=failed, expired=expired)
    verdict = final_verdict(run_with(in_state(S.COLLECTED)), spec_of(builder), results)
    assert (verdict.ending, verdict.reason) == (ending, why), reason
    assert f"{completed} of 100 records" in verdict.message


def test_a_failed_batch_is_why_a_run_failed() -> None:
    failure = BatchFailure("invalid_model", "no such model")
    run = run_with(in_state(S.COLLECTED), in_state(S.COLLECTED, 1).with_last(failure=failure))
    verdict = final_verdict(run, spec_of(), Results(completed=1, failed=99))
    assert verdict.reason == Reason.BATCH_FAILED
    assert "invalid_model: no such model" in verdict.message
    unknown = run_with(in_state(S.DROPPED), in_state(S.COLLECTED, 1))
    failed = final_verdict(unknown, spec_of(), Results(failed=100))
    assert failed.reason == Reason.TOLERANCE_EXCEEDED


def leftover(unbilled=5, code="Expired", **members):
    found = Collected(answered=100 - unbilled, unbilled=unbilled, unbilled_code=code)
    return in_state(S.COLLECTED, collected=found, **members)


CUT = [
    (None, leftover(), Ending.FAILED, "nobody cancelled"),
    (CancelWhy.DESIRED, leftover(0), Ending.CANCELLED, "desiredState is final, however late"),
    (CancelWhy.DELETED, leftover(), Ending.CANCELLED, "records could still get their answer"),
    (CancelWhy.DELETED, in_state(S.DROPPED), Ending.CANCELLED, "never submitted"),
    (CancelWhy.DELETED, leftover(0), Ending.FAILED, "too late to keep any record back"),
    (CancelWhy.DELETED, leftover(attempt=3), Ending.FAILED, "they could not go again anyway"),
    (CancelWhy.DELETED, leftover(code=BELOW_MINIMUM), Ending.FAILED, "nor these"),
    (CancelWhy.DELETED, leftover(pooled=True), Ending.FAILED, "they went on"),
    (CancelWhy.ORPHANED, in_state(S.DROPPED), Ending.CANCELLED, "never submitted"),
]


@pytest.mark.parametrize(("why", "shard", "ending", "reason"), CUT)
def test_whether_a_cancel_is_why_a_run_ended(why, shard, ending, reason) -> None:
    run = run_with(shard, cancel=Cancel(why, NOW) if why else None)
    verdict = final_verdict(run, spec_of(), Results(completed=95, failed=5))
    assert verdict.ending is ending, reason


def test_a_cancelled_run_that_succeeded_by_itself_before_its_deletion_succeeded() -> None:
    run = run_with(leftover(0), cancel=Cancel(CancelWhy.DELETED, NOW))
    assert final_verdict(run, spec_of(), Results(completed=100)).ending is Ending.SUCCEEDED


# ---------------------------------------------------------------- going again

AGAIN = [
    (leftover(), True, "unbilled"),
    (leftover(0), False, "nothing is left"),
    (leftover(pooled=True), False, "they went on already"),
    (leftover(attempt=2), True, "one more attempt"),
    (leftover(attempt=3), False, "maxAttempts"),
    (leftover(code=BELOW_MINIMUM), False, "below the provider's minimum"),
    (in_state(S.COLLECTED), False, "not counted"),
    (replace(leftover(), state=S.ENDED), False, "not settled"),
    (replace(leftover(), state=S.DROPPED), False, "never went"),
]


@pytest.mark.parametrize(("shard", "again", "reason"), AGAIN)
def test_which_shards_have_records_that_may_go_again(shard, again, reason) -> None:
    assert may_go_again(shard, 3) is again, reason


OURS = [
    (True, BatchState.CANCELLED, True, "our cancel ended it"),
    (True, BatchState.EXPIRED, False, "it expired before the cancel reached it"),
    (True, BatchState.COMPLETED, False, "it completed before the cancel reached it"),
    (False, BatchState.CANCELLED, False, "somebody else cancelled it"),
]


@pytest.mark.parametrize(("asked", "state", "ours", "reason"), OURS)
def test_whether_our_own_cancel_ended_a_batch(asked, state, ours, reason) -> None:
    shard = leftover(attempt=3)
    shard = shard.with_last(cancel_accepted_at=NOW if asked else None, batch_state=state)
    assert was_cancelled_by_us(shard) is ours, reason
    assert may_go_again(shard, 3) is ours, reason
    assert not was_cancelled_by_us(in_state(S.QUEUED))


def test_what_lacks_an_answer() -> None:
    assert has_unanswered(run_with(in_state(S.DROPPED)), 3)
    assert has_unanswered(run_with(leftover()), 3)
    assert not has_unanswered(run_with(leftover(), leftover()), 1)


def test_records_that_are_too_few_for_a_batch_lack_no_answer_for_a_cancel() -> None:
    run = run_with(in_state(S.DROPPED, rows=50), in_state(S.DROPPED, 1, rows=100))
    run = replace(run, limits=limits(min_records_per_batch=100))
    assert [was_dropped(run, shard) for shard in run.shards] == [False, True]
    assert not has_unanswered(replace(run, shards=run.shards[:1]), 3)


@pytest.mark.parametrize("phase", RunPhase)
@pytest.mark.parametrize("state", [S.QUEUED, S.CLAIMED, S.UNKNOWN, S.SUBMITTED, S.COLLECTED])
def test_only_a_run_of_which_nothing_may_be_accepted_is_rejected(phase, state) -> None:
    run = replace(run_with(in_state(state)), phase=phase)
    rejected = reject(run, "Why", "because", NOW)
    before = phase in {RunPhase.ADMITTING, RunPhase.STAGING, RunPhase.RUNNING}
    if before and state is S.QUEUED:
        assert (rejected.phase, rejected.completion_time) == (RunPhase.CLEANING, NOW)
        assert (rejected.verdict.reason, rejected.verdict.message) == ("Why", "because")
    else:
        assert rejected == run

"""Verdicts over counts: how much may fail, which records may go again, what an end is called."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from batchinference.core.transitions import RunInput, step_run
from batchinference.model.batch import BatchState
from batchinference.model.job import JobSpec, SuccessPolicy
from batchinference.model.run import (
    CancelWhy,
    Ending,
    Results,
    Run,
    Shard,
    ShardState,
    SubmissionState,
    Verdict,
)
from batchinference.model.staging import Staged
from batchinference.model.status import Reason

MAX_CONFIG_MAP_RECORDS = 500
"""Records of a run whose results go to ConfigMaps, at most."""

BELOW_MINIMUM = "BelowProviderMinimum"
CANCELLED = "BatchCancelled"


def tolerates(policy: SuccessPolicy, total: int, failed: int) -> bool:
    """Whether so many failed records are within the tolerance; exact, no rounding.

    An unset member does not limit; with both unset none may fail.
    """
    percent, records = policy.max_failed_percent, policy.max_failed_records
    if percent is None and records is None:
        return failed == 0
    within_percent = percent is None or failed * 100 <= percent * total
    return within_percent and (records is None or failed <= records)


def staging_verdict(run: Run, spec: JobSpec) -> Verdict | None:
    """Why the staged run must not be paid for; None when it may."""
    staged = run.staged
    if staged is None:
        return None
    if staged.rows == 0:
        return Verdict(
            Ending.FAILED, Reason.EMPTY_INPUT, "The input holds no records: nothing was submitted"
        )
    if staged.bad and not tolerates(spec.success_policy, staged.records, staged.bad):
        text = f"{staged.bad} of {staged.records} records can't be sent; nothing was submitted. "
        return Verdict(Ending.FAILED, Reason.BAD_RECORDS, text + _bad_lines(staged))
    if run.output.is_config_map and staged.records > MAX_CONFIG_MAP_RECORDS:
        return Verdict(
            Ending.FAILED,
            Reason.TOO_LARGE,
            f"{staged.records} records are more than the {MAX_CONFIG_MAP_RECORDS} whose results "
            "fit into ConfigMaps; use `spec.output.s3`. Nothing was submitted",
        )
    good = staged.rows - staged.bad
    if good < run.limits.min_records_per_batch:
        return Verdict(
            Ending.FAILED,
            Reason.BELOW_MINIMUM,
            f"{good} records that can be sent are below the provider's minimum of "
            f"{run.limits.min_records_per_batch} per batch; nothing was submitted",
        )
    return None


_DETAILS = 400
"""Characters of the sentences about single bad records; line numbers always stand before them."""


def _bad_lines(staged: Staged) -> str:
    """The first bad records: all their line numbers, then what is wrong with as many as fit."""
    first = staged.first_bad
    lines = ", ".join(str(bad.line) for bad in first)
    unit = "in rows" if all(bad.is_row for bad in first) else "on lines"
    which = f"The first {len(first)} are {unit}" if staged.bad > len(first) else f"They are {unit}"
    details = "; ".join(f"{bad.place}: {bad.code}: {bad.message}" for bad in first)
    cut = details if len(details) <= _DETAILS else details[: _DETAILS - 1] + "…"
    return f"{which} {lines}: {cut}"


def quota_refusal(run: Run) -> str | None:
    """What the provider said of the newest batch that a quota failed and that has no other since;
    None when nothing of the run waits for a quota.
    """
    waiting = [
        shard.last
        for shard in run.shards
        if shard.state is ShardState.QUEUED
        and shard.last is not None
        and shard.last.failure is not None
        and shard.last.failure.quota
    ]
    if not waiting:
        return None
    newest = max(waiting, key=lambda made: made.claimed_at)
    assert newest.failure is not None
    said = ": ".join(filter(None, (newest.failure.code, newest.failure.message)))
    return (
        f"The provider has no quota left for {len(waiting)} of the shards ({said.rstrip('.')}). "
        "Each waits longer from try to try; these tries are no failed attempts"
    )


def may_go_again(shard: Shard, max_attempts: int) -> bool:
    """Whether a settled shard has unbilled records that may go to the provider once more."""
    if shard.state is ShardState.REGROUPED:
        return not shard.pooled
    if shard.state is not ShardState.COLLECTED or shard.pooled or not shard.collected:
        return False
    code = shard.collected.unbilled_code
    cancelled = was_cancelled_by_us(shard)
    return (
        shard.collected.unbilled > 0
        and code != BELOW_MINIMUM
        and (cancelled or shard.attempt < max_attempts)
    )


def was_cancelled_by_us(shard: Shard) -> bool:
    """Whether our own cancel ended its batch: that is not an attempt (protocol 6.3). A batch that
    expired or completed before the cancel reached it was one.
    """
    batches = [s for s in shard.made if s.state is SubmissionState.ENDED]
    return bool(batches) and all(
        s.cancel_accepted_at is not None and s.batch_state is BatchState.CANCELLED for s in batches
    )


def has_unanswered(run: Run, max_attempts: int) -> bool:
    """Whether records lack an answer that a run that goes on could still get."""
    return any(was_dropped(run, s) or may_go_again(s, max_attempts) for s in run.shards)


def was_dropped(run: Run, shard: Shard) -> bool:
    """Whether a cancel kept its records from being sent, and not that they were too few for a
    batch, or went on in another shard.
    """
    enough = shard.rows >= run.limits.min_records_per_batch
    return shard.state is ShardState.DROPPED and not shard.pooled and enough


def final_verdict(run: Run, spec: JobSpec, results: Results) -> Verdict:
    """How the run ended, from what its results hold."""
    total = results.completed + results.failed + results.expired
    failed = results.failed + results.expired
    counted = f"{results.completed} of {total} records were answered"
    if is_cut_short(run, spec):
        if run.cancel is not None and run.cancel.why is CancelWhy.DEADLINE:
            return Verdict(Ending.FAILED, Reason.DEADLINE_EXCEEDED, _late(run, counted))
        return Verdict(Ending.CANCELLED, Reason.CANCELLED, f"The run was cancelled; {counted}")
    if tolerates(spec.success_policy, total, failed):
        reason = Reason.PARTIAL if failed else Reason.SUCCEEDED
        return Verdict(Ending.SUCCEEDED, reason, counted)
    for shard in run.shards:
        failure = shard.last.failure if shard.last else None
        went_on = shard.state is ShardState.REGROUPED
        if failure is not None and not failure.quota and not went_on:
            text = f"{counted}. The provider failed a batch: {failure.code}: {failure.message}"
            return Verdict(Ending.FAILED, Reason.BATCH_FAILED, text)
    return Verdict(
        Ending.FAILED,
        Reason.TOLERANCE_EXCEEDED,
        f"{counted}; {failed} failed, more than `successPolicy` tolerates. The results are kept. "
        "To run it again, create the object with another `runID` and `output`",
    )


def deadline_exceeded(run: Run) -> str:
    """When the deadline ended the run; the spec may say something else by now."""
    assert run.cancel is not None
    took = run.cancel.at - (run.start_time or run.cancel.at)
    seconds = int(took.total_seconds()) - run.parked_s
    return f"The run was not over {seconds} s after its start (`activeDeadlineSeconds`)"


def _late(run: Run, counted: str) -> str:
    return (
        f"{deadline_exceeded(run)}. {counted}; the results are kept. To run it again, create the "
        "object with another `runID` and `output`"
    )


def may_go_on(run: Run, spec: JobSpec) -> bool:
    """Whether the run is parked once its manifest stands (protocol 7.4)."""
    deleted = run.cancel is not None and run.cancel.is_by_deletion
    return deleted and is_cut_short(run, spec)


def is_cut_short(run: Run, spec: JobSpec) -> bool:
    """Whether a cancel is why the run ended. One by deletion, or by the deadline, that came too
    late to keep any record from its answer is not: such a run ended by itself, and there is nothing
    to take up again. What an earlier life of it has at the provider may be answers (protocol 2.6).
    """
    if run.cancel is None:
        return False
    wanted = run.cancel.why is CancelWhy.DESIRED
    return wanted or run.earlier is not None or has_unanswered(run, spec.retry_policy.max_attempts)


def reject(run: Run, reason: str, message: str, now: datetime) -> Run:
    """The run fails before anything was accepted."""
    stepped = step_run(run, RunInput.REJECT)
    if stepped is None or run.was_submitted or run.may_have_more:
        return run
    verdict = Verdict(Ending.FAILED, reason, message)
    return replace(stepped, verdict=verdict, completion_time=now)

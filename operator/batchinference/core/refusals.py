"""What follows from a refusal, or from a batch that was void: the shard waits, is cut, or is over.

Pure. That nothing was billed is known by then; reading that from an answer is the adapters' part.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchinference.core.backoff import backoff_s
from batchinference.core.effects import resubmitting
from batchinference.core.notes import Notes
from batchinference.core.policy import reject
from batchinference.core.regroup import is_too_large, learned
from batchinference.core.setting import Setting
from batchinference.core.timing import Timing
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.batch import BatchFailure, NotSent, RefusalKind, Refused
from batchinference.model.run import Run, Shard, ShardState, SubmissionState
from batchinference.model.status import Reason
from batchinference.model.submission import Submission
from batchinference.model.work import FaultKind, TaskFault


def not_sent(
    run: Run, notes: Notes, shard: Shard, why: NotSent, setting: Setting
) -> tuple[Run, Notes]:
    """It never left: the shard goes again once a person may have acted."""
    # Every try needs a new upload, so the shard waits as long as a person needs anyway.
    wait = max(setting.timing.reference_retry_s, _growing_wait_s(shard, setting.timing))
    fault = TaskFault(FaultKind.STALLED, why.reason, why.message, wait)
    effect_id = resubmitting(shard.index)
    noted = notes.with_failure(effect_id, fault, setting.now, setting.timing, setting.jitter)
    return run.with_shard(_put_back(shard, setting, wait)), noted


def refused(
    run: Run, notes: Notes, shard: Shard, answer: Refused, setting: Setting
) -> tuple[Run, Notes]:
    """The provider took none of it, for certain: it is put back, cut smaller, or over."""
    text = f"{answer.code}: {answer.message}" if answer.code else answer.message
    if answer.kind is RefusalKind.TOO_LARGE and shard.rows > 1:
        large = BatchFailure(answer.code, answer.message, exceeds=answer.exceeds, most=answer.most)
        back = run.with_shard(_put_back(shard, setting, 0, large))
        return learned(back, shard, large), notes
    if answer.kind in {RefusalKind.INVALID, RefusalKind.TOO_LARGE}:
        is_of_all = answer.kind is RefusalKind.INVALID or not _others_go(run, shard)
        if is_of_all and not run.was_submitted_besides(shard):
            undone = run.with_shard(_put_back(shard, setting, 0))
            return reject(undone, Reason.REFUSED, text, setting.now), notes
        final = BatchFailure(answer.code, answer.message)
        ended = shard.with_last(state=SubmissionState.REFUSED, failure=final, request={})
        return run.with_shard(step_shard(ended, ShardInput.REFUSE) or shard), notes
    passing = BatchFailure(
        answer.code,
        answer.message,
        quota=answer.kind is RefusalKind.QUOTA,
        billing=answer.kind is RefusalKind.BILLING,
        most=answer.most,
    )
    failure = passing if passing.quota or passing.billing else None
    if passing.billing:
        text = unpaid(passing, setting.timing)
    kind, reason = _PUT_BACK[answer.kind]
    wait = _put_back_wait_s(shard, answer, setting.timing)
    noted = notes.with_failure(
        resubmitting(shard.index),
        TaskFault(kind, reason, text, wait),
        setting.now,
        setting.timing,
        setting.jitter,
    )
    back = run.with_shard(_put_back(shard, setting, wait, failure))
    return learned(back, shard, failure), noted


def too_large_to_upload(
    run: Run, shard: Shard, ordinal: int, failure: BatchFailure, now: datetime
) -> Run:
    """One record that the provider takes no file of: it fails, and others go on. Where there are
    none, and nothing was submitted, the run fails.
    """
    if not run.was_submitted and not _others_go(run, shard):
        return reject(run, failure.code, failure.message, now)
    claimed = step_shard(shard, ShardInput.CLAIM) or shard
    unsent = Submission(
        ordinal=ordinal,
        state=SubmissionState.REFUSED,
        request={},
        input_ref="",
        claimed_at=now,
        submit_by=now,
        failure=failure,
    )
    ended = replace(claimed, submissions=(*claimed.submissions, unsent))
    return run.with_shard(step_shard(ended, ShardInput.REFUSE) or shard)


def _others_go(run: Run, shard: Shard) -> bool:
    """Whether records of other shards may still be submitted."""
    others = [s for s in run.shards if s.index != shard.index and not s.pooled]
    return any(s.state in _TO_GO for s in others)


_TO_GO = {
    ShardState.STAGED,
    ShardState.QUEUED,
    ShardState.CLAIMED,
    ShardState.UNKNOWN,
    ShardState.FENCING,
    ShardState.REGROUPED,
}

_PUT_BACK = {
    RefusalKind.QUOTA: (FaultKind.WAITING, Reason.QUOTA_WAIT),
    RefusalKind.THROTTLED: (FaultKind.WAITING, Reason.QUOTA_WAIT),
    RefusalKind.CREDENTIALS: (FaultKind.STALLED, Reason.CREDENTIALS_REJECTED),
    RefusalKind.BILLING: (FaultKind.STALLED, Reason.BILLING),
}


def unpaid(failure: BatchFailure, timing: Timing) -> str:
    """What to do about a provider that wants to be paid first."""
    said = f"{failure.code}: {failure.message}" if failure.code else failure.message
    return (
        f"The provider takes no more batches until its bill is settled ({said.rstrip('.')}). Add "
        "credit there, or raise the spending limit; the run tries again every "
        f"{timing.quota_most_s / 60:.0f} minutes and then goes on by itself"
    )


def _put_back_wait_s(shard: Shard, refused: Refused, timing: Timing) -> float:
    """Growing from try to try, and never less than the provider asked for."""
    growing = _growing_wait_s(shard, timing)
    if refused.kind is RefusalKind.QUOTA:
        growing = _quota_wait_s(shard, timing)
    elif refused.kind is RefusalKind.BILLING:
        growing = timing.quota_most_s
    return max(refused.retry_after_s or 0.0, growing)


def _growing_wait_s(shard: Shard, timing: Timing) -> float:
    return backoff_s(shard.put_backs + 1, timing.retry_first_s, timing.retry_most_s)


def _quota_wait_s(shard: Shard, timing: Timing) -> float:
    return backoff_s(shard.put_backs + 1, timing.quota_first_s, timing.quota_most_s)


def _put_back(
    shard: Shard, setting: Setting, wait_s: float, failure: BatchFailure | None = None
) -> Shard:
    closed = shard.with_last(state=SubmissionState.REFUSED, request={}, failure=failure)
    back = step_shard(closed, ShardInput.PUT_BACK) or shard
    until = setting.now + timedelta(seconds=wait_s)
    return replace(back, not_before=until, put_backs=shard.put_backs + 1)


def tried_in_vain(shard: Shard, failure: BatchFailure, setting: Setting) -> Shard:
    """The newest submission was void: whether, and when, the shard goes again."""
    attempts = setting.spec.retry_policy.max_attempts
    fenced = shard.last is not None and shard.last.fenced_at is not None  # we took its input away
    passing = failure.transient or fenced
    if is_too_large(shard, failure):
        return replace(shard, not_before=setting.now, put_backs=shard.put_backs + 1)
    waits = failure.quota or failure.billing
    if not waits and not (passing and shard.attempt < attempts):
        return shard
    timing = setting.timing
    wait = timing.quota_most_s if failure.billing else _quota_wait_s(shard, timing)
    return replace(
        shard,
        not_before=setting.now + timedelta(seconds=wait),
        put_backs=shard.put_backs + 1,
        attempt=shard.attempt if waits else shard.attempt + 1,
    )

"""Fold what the provider said into the run: answers to calls, listings, batches as seen.

The rules of protocol 4.4 and 5 for reading an answer are here; what is asked next is decided in
`core.submit`.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchinference.core.backoff import backoff_s
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchMissing,
    CancelAnswered,
    InputDeleted,
    LookedUp,
    NotSent,
    SubmitAnswered,
)
from batchinference.core.policy import reject
from batchinference.core.setting import Setting
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.batch import (
    Accepted,
    BatchFailure,
    BatchView,
    OutcomeUnknown,
    RefusalKind,
    Refused,
)
from batchinference.model.run import (
    Run,
    Shard,
    ShardState,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import (
    FaultKind,
    TaskFault,
)

# ---------------------------------------------------------------- submitting


def _of_ordinal(run: Run, shard: int, ordinal: int) -> Shard | None:
    """The shard, when that ordinal is its newest submission."""
    found = run.shards[shard] if shard < len(run.shards) else None
    current = found is not None and found.last is not None and found.last.ordinal == ordinal
    return found if current else None


def submit_answered(
    run: Run, notes: Notes, answer: SubmitAnswered, setting: Setting
) -> tuple[Run, Notes]:
    """The create call is over: accepted, refused for certain, unknown, or never sent."""
    key = (answer.shard, answer.ordinal)
    outcome = answer.outcome
    if isinstance(outcome, Accepted):
        return accepted(run, notes, key, outcome.batch, setting.now)
    shard = _of_ordinal(run, *key)
    if shard is None or shard.last is None:
        return run, notes
    if isinstance(outcome, OutcomeUnknown) or shard.last.attempted:
        fault = TaskFault(FaultKind.RETRY, Reason.OUTCOME_UNKNOWN, outcome.message)
        effect_id = f"submit:{answer.shard}:{answer.ordinal}"
        noted = notes.with_failure(effect_id, fault, setting.now, setting.timing, setting.jitter)
        return lose(run, noted, shard)
    if isinstance(outcome, NotSent):
        notes = notes.with_failure(
            f"submit:{answer.shard}",
            TaskFault(FaultKind.STALLED, outcome.reason, outcome.message),
            setting.now,
            setting.timing,
            setting.jitter,
        )
        return _put_back(run, shard, setting, wait_s=setting.timing.retry_first_s), notes
    return _refused(run, notes, shard, outcome, setting)


def lose(run: Run, notes: Notes, shard: Shard) -> tuple[Run, Notes]:
    """The create call of the shard's newest submission may or may not have been accepted."""
    stepped = step_shard(shard, ShardInput.LOSE)
    changed = (stepped or shard).with_last(attempted=True)
    key = (shard.index, changed.submissions[-1].ordinal)
    return run.with_shard(changed), notes.without_looks(key)


def _refused(
    run: Run, notes: Notes, shard: Shard, refused: Refused, setting: Setting
) -> tuple[Run, Notes]:
    text = f"{refused.code}: {refused.message}" if refused.code else refused.message
    effect_id = f"submit:{shard.index}"
    if refused.kind is RefusalKind.INVALID:
        if not run.was_submitted_besides(shard):
            undone = _put_back(run, shard, setting, wait_s=0)
            return reject(undone, Reason.REFUSED, text, setting.now), notes
        stepped = step_shard(shard, ShardInput.REFUSE) or shard
        failure = BatchFailure(refused.code, refused.message)
        ended = stepped.with_last(state=SubmissionState.REFUSED, failure=failure)
        return run.with_shard(ended), notes
    reason = {
        RefusalKind.QUOTA: Reason.QUOTA_WAIT,
        RefusalKind.THROTTLED: Reason.QUOTA_WAIT,
        RefusalKind.CREDENTIALS: Reason.CREDENTIALS_REJECTED,
    }[refused.kind]
    is_credentials = refused.kind is RefusalKind.CREDENTIALS
    kind = FaultKind.STALLED if is_credentials else FaultKind.WAITING
    fault = TaskFault(kind, reason, text, refused.retry_after_s)
    wait = _put_back_wait(shard, refused, notes, setting)
    noted = notes.with_failure(
        effect_id, replace(fault, after_s=wait), setting.now, setting.timing, setting.jitter
    )
    return _put_back(run, shard, setting, wait_s=wait), noted


def _put_back_wait(shard: Shard, refused: Refused, notes: Notes, setting: Setting) -> float:
    if refused.retry_after_s is not None:
        return refused.retry_after_s
    timing = setting.timing
    before = notes.failures.get(f"submit:{shard.index}")
    count = before.count + 1 if before else 1
    if refused.kind is RefusalKind.QUOTA:
        return backoff_s(count, timing.quota_first_s, timing.quota_most_s, setting.jitter)
    return backoff_s(count, timing.retry_first_s, timing.retry_most_s, setting.jitter)


def _put_back(run: Run, shard: Shard, setting: Setting, wait_s: float) -> Run:
    stepped = step_shard(shard, ShardInput.PUT_BACK)
    if stepped is None:
        return run
    until = setting.now + timedelta(seconds=wait_s)
    closed = stepped.with_last(state=SubmissionState.REFUSED, request={})
    return run.with_shard(replace(closed, not_before=until))


def accepted(
    run: Run, notes: Notes, key: tuple[int, int], view: BatchView, now: datetime
) -> tuple[Run, Notes]:
    """The provider has the submission: by the call's answer, or found by asking."""
    shard = _of_ordinal(run, *key)
    stepped = step_shard(shard, ShardInput.ACCEPT) if shard else None
    if stepped is None:
        return _duplicate(run, key, view), notes.with_view(view)
    changed = stepped.with_last(
        state=SubmissionState.ACCEPTED,
        batch_id=view.id,
        accepted_at=view.created_at or now,
        batch_state=view.state,
    )
    noted = notes.with_view(view).without_looks(key).without_failure(f"submit:{key[0]}")
    return run.with_shard(changed), noted


def _duplicate(run: Run, key: tuple[int, int], view: BatchView) -> Run:
    """A second batch of a submission that was given up, or that has another batch already."""
    shard = run.shards[key[0]] if key[0] < len(run.shards) else None
    if shard is None or any(s.batch_id == view.id for s in shard.submissions):
        return run
    submissions = tuple(
        replace(s, batch_id=s.batch_id or view.id, duplicate=True) if s.ordinal == key[1] else s
        for s in shard.submissions
    )
    return run.with_shard(replace(shard, submissions=submissions))


def looked_up(run: Run, notes: Notes, look: LookedUp, setting: Setting) -> tuple[Run, Notes]:
    """The provider was asked for a submission."""
    key = (look.shard, look.ordinal)
    notes = notes.without_failure(f"look:{look.shard}:{look.ordinal}")
    if look.view is not None:
        run, notes = accepted(run, notes, key, look.view, setting.now)
        return batch_seen(run, notes, look.view, setting)
    return run, notes.with_absence(key, setting.now, look.readable)


def input_deleted(
    run: Run, notes: Notes, outcome: InputDeleted, setting: Setting
) -> tuple[Run, Notes]:
    """The fence stands; absences are counted anew."""
    key = (outcome.shard, outcome.ordinal)
    notes = notes.without_failure(f"fence:{outcome.shard}:{outcome.ordinal}").without_looks(key)
    shard = _of_ordinal(run, *key)
    if shard is None or shard.state is not ShardState.FENCING:
        return run, notes
    return run.with_shard(shard.with_last(fenced_at=setting.now)), notes


# ---------------------------------------------------------------- following


def cancel_answered(
    run: Run, notes: Notes, outcome: CancelAnswered, setting: Setting
) -> tuple[Run, Notes]:
    """The provider took the cancel call, or the batch was over."""
    notes = notes.without_failure(f"cancel:{outcome.shard}:{outcome.ordinal}")
    shard = _of_ordinal(run, outcome.shard, outcome.ordinal)
    if shard is None:
        return run, notes
    return run.with_shard(shard.with_last(cancel_accepted_at=setting.now)), notes


def batch_seen(run: Run, notes: Notes, view: BatchView, setting: Setting) -> tuple[Run, Notes]:
    """The poller saw a batch: ours, one that was lost, a duplicate, or foreign."""
    named = view.submission
    shard = next((s for s in run.shards if s.last and s.last.batch_id == view.id), None)
    if shard is None:
        if named is None or named.tag != run.tag or named.shard >= len(run.shards):
            return run, notes
        run, notes = accepted(run, notes, (named.shard, named.ordinal), view, setting.now)
        shard = next((s for s in run.shards if s.last and s.last.batch_id == view.id), None)
        if shard is None:
            return run, notes
    notes = notes.with_view(view).without_failure(following(view.id))
    if not view.state.is_over or shard.state is not ShardState.SUBMITTED:
        return run, notes
    return run.with_shard(_ended(shard, view, setting)), notes


def following(batch_id: str) -> str:
    """The id under which trouble with following a batch is noted."""
    return f"follow:{batch_id}"


def batch_missing(notes: Notes, outcome: BatchMissing, setting: Setting) -> Notes:
    """The provider denies the batch: noted, and nothing follows from it (protocol 6.4)."""
    text = (
        f"The provider says that batch {outcome.batch_id} does not exist. It may have been billed, "
        "so its records are not sent again; it is asked for again from time to time. Check that "
        "the credentials are of the account that submitted it"
    )
    fault = TaskFault(FaultKind.STALLED, Reason.BATCH_NOT_FOUND, text)
    effect_id = following(outcome.batch_id)
    return notes.with_failure(effect_id, fault, setting.now, setting.timing, setting.jitter)


def _ended(shard: Shard, view: BatchView, setting: Setting) -> Shard:
    ended = shard.with_last(
        state=SubmissionState.ENDED,
        ended_at=view.ended_at or setting.now,
        batch_state=view.state,
        files=view.files,
        failure=view.failure,
    )
    failure = view.failure
    if failure is None or not failure.nothing_processed:
        return step_shard(ended, ShardInput.OVER) or shard
    void = ended.with_last(state=SubmissionState.VOID, request={})
    attempts = setting.spec.retry_policy.max_attempts
    if not failure.quota and not (failure.transient and shard.attempt < attempts):
        return step_shard(void, ShardInput.OVER) or shard
    voids = sum(s.state is SubmissionState.VOID for s in void.submissions)
    timing = setting.timing
    wait = backoff_s(voids, timing.quota_first_s, timing.quota_most_s, setting.jitter)
    back = step_shard(void, ShardInput.VOID) or shard
    return replace(
        back,
        not_before=setting.now + timedelta(seconds=wait),
        attempt=shard.attempt if failure.quota else shard.attempt + 1,
    )

"""Fold one outcome into the run and the notes: what the world said becomes what is true.

Pure. Every fold goes through the transition tables, so news that comes late, twice or out of
order changes nothing. What follows from the new state is `decide`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from batchinference.core.backoff import backoff_s
from batchinference.core.effects import StartTask
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchMissing,
    BatchSeen,
    CancelAnswered,
    EffectFailed,
    FinalizerSet,
    InputDeleted,
    LookedUp,
    NotSent,
    Outcome,
    ShardStaged,
    SubmitAnswered,
    TaskDone,
)
from batchinference.core.policy import BELOW_MINIMUM, final_verdict, was_cancelled_by_us
from batchinference.core.receipt import receipt
from batchinference.core.timing import Timing
from batchinference.core.transitions import RunInput, ShardInput, step_run, step_shard
from batchinference.model.batch import (
    Accepted,
    BatchFailure,
    BatchView,
    OutcomeUnknown,
    RefusalKind,
    Refused,
)
from batchinference.model.job import JobSpec
from batchinference.model.run import (
    CancelWhy,
    Ending,
    Run,
    RunPhase,
    Shard,
    ShardState,
    Staged,
    SubmissionState,
    Verdict,
)
from batchinference.model.status import Reason
from batchinference.model.work import (
    Admitted,
    Cleaned,
    FaultKind,
    Finished,
    Pooled,
    ShardCollected,
    StageDone,
    TaskFault,
    TaskKind,
    Uploaded,
)


@dataclass(frozen=True, slots=True)
class Setting:
    """What folding needs besides the outcome: when it is, the job's policies, the waits."""

    now: datetime
    spec: JobSpec
    timing: Timing
    jitter: float = 0.5


def absorb(run: Run, notes: Notes, outcome: Outcome, setting: Setting) -> tuple[Run, Notes]:
    """The run and the notes after the outcome."""
    match outcome:
        case TaskDone():
            return _task_done(run, notes, outcome, setting)
        case ShardStaged():
            return _shard_staged(run, outcome), notes
        case SubmitAnswered():
            return _submit_answered(run, notes, outcome, setting)
        case LookedUp():
            return _looked_up(run, notes, outcome, setting)
        case InputDeleted():
            return _input_deleted(run, notes, outcome, setting)
        case CancelAnswered():
            return _cancel_answered(run, notes, outcome, setting)
        case BatchSeen():
            return _batch_seen(run, notes, outcome.view, setting)
        case BatchMissing():
            return run, _batch_missing(notes, outcome, setting)
        case FinalizerSet():
            return run, notes.without_failure("finalizer")
        case EffectFailed():
            failed = notes.with_failure(
                outcome.effect.id, outcome.fault, setting.now, setting.timing, setting.jitter
            )
            return run, failed


# ---------------------------------------------------------------- tasks


def _task_done(run: Run, notes: Notes, done: TaskDone, setting: Setting) -> tuple[Run, Notes]:
    effect = StartTask(done.kind, done.shard, done.ordinal)
    result = done.result
    if isinstance(result, TaskFault):
        return _task_failed(run, notes, effect, result, setting)
    notes = notes.without_failure(effect.id)
    match result:
        case Admitted():
            return _admitted(run, notes, effect, result, setting)
        case StageDone():
            if run.phase is not RunPhase.STAGING:
                return run, notes
            staged = replace(run, staged=result.staged, input=result.snapshot)
            return step_run(staged, RunInput.STAGE) or run, notes
        case Uploaded():
            key = (done.shard or 0, done.ordinal or 0)
            return run, notes.with_upload(key, result.input_ref)
        case ShardCollected():
            shard = run.shards[done.shard or 0]
            stepped = step_shard(shard, ShardInput.COLLECT)
            if stepped is None:
                return run, notes
            return run.with_shard(replace(stepped, collected=result.collected)), notes
        case Pooled():
            return _pooled(run, result), notes
        case Finished():
            return _finished(run, result, setting), notes
        case Cleaned():
            ended = step_run(run, RunInput.CLEAN)
            return receipt(ended) if ended else run, notes


def _task_failed(
    run: Run, notes: Notes, effect: StartTask, fault: TaskFault, setting: Setting
) -> tuple[Run, Notes]:
    notes = notes.with_failure(effect.id, fault, setting.now, setting.timing, setting.jitter)
    if effect.kind is TaskKind.STAGE and fault.reason == Reason.INPUT_CHANGING:
        again = replace(run, cursor=None, shards=(), staged=None, input=None, passes=run.passes + 1)
        if again.passes < setting.timing.max_staging_passes:
            return again, notes
        text = f"The input changed during {again.passes} staging passes: {fault.message}"
        return reject(again, Reason.INPUT_CHANGING, text, setting.now), notes
    if fault.kind is not FaultKind.PERMANENT:
        return run, notes
    if effect.kind in {TaskKind.ADMIT, TaskKind.STAGE}:
        return reject(run, fault.reason, fault.message, setting.now), notes
    if effect.kind is TaskKind.UPLOAD and not run.was_submitted:
        return reject(run, fault.reason, fault.message, setting.now), notes
    return run, notes


def reject(run: Run, reason: str, message: str, now: datetime) -> Run:
    """The run fails before anything was accepted."""
    stepped = step_run(run, RunInput.REJECT)
    if stepped is None or run.was_submitted:
        return run
    verdict = Verdict(Ending.FAILED, reason, message)
    return replace(stepped, verdict=verdict, completion_time=now)


def _admitted(
    run: Run, notes: Notes, effect: StartTask, result: Admitted, setting: Setting
) -> tuple[Run, Notes]:
    holder = result.holder
    if holder is not None:
        elsewhere = holder.run_key == run.key
        reason = Reason.HELD_ELSEWHERE if elsewhere else Reason.OUTPUT_CONFLICT
        whose = "this very run of another installation" if elsewhere else "another run"
        text = (
            f"The output place '{run.output.uri}' holds the claim of {whose} "
            f"({holder.description or holder.run_key}). Choose another `spec.output`, or remove it"
        )
        fault = TaskFault(FaultKind.STALLED, reason, text)
        failed = notes.with_failure(effect.id, fault, setting.now, setting.timing, setting.jitter)
        return run, failed
    stepped = step_run(run, RunInput.ADMIT)
    if stepped is None:
        return run, notes
    claimed = replace(run.output, claimed=True)
    return replace(stepped, input=result.snapshot, output=claimed), notes


def _shard_staged(run: Run, outcome: ShardStaged) -> Run:
    shard = outcome.checkpoint.shard
    if run.phase is not RunPhase.STAGING or shard.index != len(run.shards):
        return run
    found = Staged(
        rows=outcome.checkpoint.cursor.row,
        bad=outcome.checkpoint.cursor.bad,
        size=0,
        tokens=0,
        first_bad=outcome.checkpoint.first_bad,
    )
    cursor = outcome.checkpoint.cursor
    return replace(run, shards=(*run.shards, shard), cursor=cursor, staged=found)


def _pooled(run: Run, result: Pooled) -> Run:
    if any(run.shards[n].pooled for n in result.sources):
        return run
    shards = list(run.shards)
    for n in result.sources:
        collected = shards[n].collected
        if result.shards:
            shards[n] = replace(shards[n], pooled=True)
        elif collected is not None:
            left = replace(collected, unbilled_code=BELOW_MINIMUM)
            shards[n] = replace(shards[n], collected=left)
    attempt = max(
        (run.shards[n].attempt + (0 if was_cancelled_by_us(run.shards[n]) else 1))
        for n in result.sources
    )
    shards += [replace(s, state=ShardState.QUEUED, attempt=attempt) for s in result.shards]
    return replace(run, shards=tuple(shards))


def _finished(run: Run, result: Finished, setting: Setting) -> Run:
    verdict = final_verdict(run, setting.spec, result.results)
    deleted = run.cancel is not None and run.cancel.why is not CancelWhy.DESIRED
    park = deleted and verdict.ending is Ending.CANCELLED
    stepped = step_run(run, RunInput.PARK if park else RunInput.MANIFEST)
    if stepped is None:
        return run
    return replace(stepped, results=result.results, verdict=verdict, completion_time=setting.now)


# ---------------------------------------------------------------- submitting


def _of_ordinal(run: Run, shard: int, ordinal: int) -> Shard | None:
    """The shard, when that ordinal is its newest submission."""
    found = run.shards[shard] if shard < len(run.shards) else None
    current = found is not None and found.last is not None and found.last.ordinal == ordinal
    return found if current else None


def _submit_answered(
    run: Run, notes: Notes, answer: SubmitAnswered, setting: Setting
) -> tuple[Run, Notes]:
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


def _looked_up(run: Run, notes: Notes, look: LookedUp, setting: Setting) -> tuple[Run, Notes]:
    key = (look.shard, look.ordinal)
    notes = notes.without_failure(f"look:{look.shard}:{look.ordinal}")
    if look.view is not None:
        run, notes = accepted(run, notes, key, look.view, setting.now)
        return _batch_seen(run, notes, look.view, setting)
    return run, notes.with_absence(key, setting.now, look.readable)


def _input_deleted(
    run: Run, notes: Notes, outcome: InputDeleted, setting: Setting
) -> tuple[Run, Notes]:
    key = (outcome.shard, outcome.ordinal)
    notes = notes.without_failure(f"fence:{outcome.shard}:{outcome.ordinal}").without_looks(key)
    shard = _of_ordinal(run, *key)
    if shard is None or shard.state is not ShardState.FENCING:
        return run, notes
    return run.with_shard(shard.with_last(fenced_at=setting.now)), notes


# ---------------------------------------------------------------- following


def _cancel_answered(
    run: Run, notes: Notes, outcome: CancelAnswered, setting: Setting
) -> tuple[Run, Notes]:
    notes = notes.without_failure(f"cancel:{outcome.shard}:{outcome.ordinal}")
    shard = _of_ordinal(run, outcome.shard, outcome.ordinal)
    if shard is None:
        return run, notes
    return run.with_shard(shard.with_last(cancel_accepted_at=setting.now)), notes


def _batch_seen(run: Run, notes: Notes, view: BatchView, setting: Setting) -> tuple[Run, Notes]:
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


def _batch_missing(notes: Notes, outcome: BatchMissing, setting: Setting) -> Notes:
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

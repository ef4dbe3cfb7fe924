"""Fold one outcome into the run and the notes: what the world said becomes what is true.

Pure. Every fold goes through the transition tables, so news that comes late, twice or out of
order changes nothing. What follows from the new state is `decide`'s business.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from batchinference.core.begin import has_nothing
from batchinference.core.budget import estimate, price_of
from batchinference.core.effects import FINALIZER, StartTask
from batchinference.core.follow import (
    batch_missing,
    batches_seen,
    cancel_answered,
    input_deleted,
    looked_up,
    of_ordinal,
    provider_asked,
    submit_answered,
)
from batchinference.core.holding import may_take_over, whose
from batchinference.core.keys import next_ordinal
from batchinference.core.late import late_of
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchMissing,
    BatchSeen,
    CancelAnswered,
    EffectFailed,
    FinalizerSet,
    InputDeleted,
    LookedUp,
    Outcome,
    ProviderAsked,
    Searched,
    ShardStaged,
    SubmitAnswered,
    TaskDone,
)
from batchinference.core.policy import (
    BELOW_MINIMUM,
    final_verdict,
    may_go_on,
    reject,
    was_cancelled_by_us,
)
from batchinference.core.pricing import own_price, priced, shown_bound
from batchinference.core.rebuild import searched
from batchinference.core.receipt import receipt
from batchinference.core.refusals import too_large_to_upload
from batchinference.core.regroup import is_too_large, learned
from batchinference.core.setting import Setting
from batchinference.core.transitions import RunInput, ShardInput, step_run, step_shard
from batchinference.model.batch import BatchFailure, BatchLimit
from batchinference.model.earlier import Earlier
from batchinference.model.run import Results, Run, RunPhase, Shard, ShardState
from batchinference.model.staging import InputSnapshot, Staged
from batchinference.model.status import Reason
from batchinference.model.work import (
    Admitted,
    Cleaned,
    EarlierEnd,
    FaultKind,
    Finished,
    Pooled,
    ShardCollected,
    StageDone,
    TaskFault,
    TaskKind,
    Uploaded,
)


def absorb(run: Run, notes: Notes, outcome: Outcome, setting: Setting) -> tuple[Run, Notes]:
    """The run and the notes after the outcome."""
    match outcome:
        case TaskDone():
            return _task_done(run, notes, outcome, setting)
        case ShardStaged():
            # It gets on: what made it fail before is behind it.
            stage = StartTask(TaskKind.STAGE)
            return _shard_staged(run, outcome), notes.without_failure(stage.id)
        case SubmitAnswered():
            return submit_answered(run, notes, outcome, setting)
        case LookedUp():
            return looked_up(run, notes, outcome, setting)
        case Searched():
            return searched(run, notes, outcome, setting)
        case InputDeleted():
            return input_deleted(run, notes, outcome, setting)
        case CancelAnswered():
            return cancel_answered(run, notes, outcome, setting)
        case BatchSeen():
            return batches_seen(run, notes, (outcome.view,), setting)
        case BatchMissing():
            return run, batch_missing(notes, outcome, setting)
        case ProviderAsked():
            return run, provider_asked(notes, outcome, setting)
        case FinalizerSet():
            return run, notes.without_failure(FINALIZER)
        case EffectFailed():
            failed = notes.with_failure(
                outcome.effect.id, outcome.fault, setting.now, setting.timing, setting.jitter
            )
            return run, failed
        case _:
            assert_never(outcome)


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
            if run.phase is not RunPhase.STAGING or _is_other(run, result.snapshot.fingerprint):
                return run, notes
            if sum(s.rows for s in run.shards) + result.staged.bad != result.staged.rows:
                return run, notes  # checkpoints were lost with a memory: the pass is resumed
            staged = replace(run, staged=result.staged, input=result.snapshot)
            return step_run(staged, RunInput.STAGE) or run, notes
        case Uploaded():
            key = (done.shard or 0, done.ordinal or 0)
            return run, notes.with_upload(key, result.input_ref)
        case ShardCollected():
            shard = of_ordinal(run, done.shard or 0, done.ordinal or 0)
            stepped = step_shard(shard, ShardInput.COLLECT) if shard else None
            if stepped is None or result.late != len(stepped.late):
                return run, notes  # what appeared meanwhile is to be collected too
            late = tuple(replace(s, collected=True) for s in stepped.late)
            return run.with_shard(replace(stepped, collected=result.collected, late=late)), notes
        case Pooled():
            return _pooled(run, result), notes
        case Finished():
            return _finished(run, result, setting), notes
        case Cleaned():
            ended = step_run(run, RunInput.CLEAN)
            return (receipt(ended), notes) if ended else (run, replace(notes, released=True))
        case _:
            assert_never(result)


def _task_failed(
    run: Run, notes: Notes, effect: StartTask, fault: TaskFault, setting: Setting
) -> tuple[Run, Notes]:
    if not _is_awaited(run, effect):
        return run, notes  # of a step that is behind us: another process was faster
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
    if effect.kind is TaskKind.UPLOAD and fault.reason == Reason.BATCH_TOO_LARGE:
        shard = run.shards[effect.shard or 0]
        large = BatchFailure(fault.reason, fault.message, exceeds=BatchLimit.BYTES)
        if is_too_large(shard, large):
            return learned(run, shard, large), notes.without_failure(effect.id)
        notes = notes.without_failure(effect.id)
        return too_large_to_upload(run, shard, effect.ordinal or 1, large, setting.now), notes
    if effect.kind is TaskKind.UPLOAD and not run.was_submitted:
        return reject(run, fault.reason, fault.message, setting.now), notes
    return run, notes


_PHASE_OF = {
    TaskKind.ADMIT: RunPhase.ADMITTING,
    TaskKind.STAGE: RunPhase.STAGING,
    TaskKind.POOL: RunPhase.RUNNING,
    TaskKind.FINISH: RunPhase.FINISHING,
    TaskKind.CLEAN: RunPhase.CLEANING,
    TaskKind.RELEASE: RunPhase.CLEANING,
}


def _is_awaited(run: Run, effect: StartTask) -> bool:
    """Whether the run still stands where it asked for that task."""
    if effect.kind is TaskKind.RELEASE and has_nothing(run):
        return True
    if effect.kind in _PHASE_OF:
        return run.phase is _PHASE_OF[effect.kind]
    shard, ordinal = effect.shard or 0, effect.ordinal or 0
    if effect.kind is TaskKind.COLLECT:
        found = of_ordinal(run, shard, ordinal)
        return found is not None and found.state is ShardState.ENDED
    if run.phase is not RunPhase.RUNNING or shard >= len(run.shards):
        return False
    asking = run.shards[shard]
    return asking.state is ShardState.QUEUED and next_ordinal(run, asking) == ordinal


def _admitted(
    run: Run, notes: Notes, effect: StartTask, result: Admitted, setting: Setting
) -> tuple[Run, Notes]:
    if run.phase is not RunPhase.ADMITTING:
        return run, notes
    holder = result.holder
    if result.earlier is not None:
        return _adopted(run, result.snapshot, result.earlier, setting), notes
    if holder is not None:
        taken = may_take_over(run, holder, setting.spec.output_policy)
        if taken and holder != notes.taking:
            return run, replace(notes, taking=holder)  # looked at again, and taken over then
        notes = replace(notes, taking=holder)
        reason, text = whose(run, holder)
        # What could not be taken over although it may be is changing hands at this moment.
        fault = TaskFault(FaultKind.RETRY if taken else FaultKind.STALLED, reason, text)
        failed = notes.with_failure(effect.id, fault, setting.now, setting.timing, setting.jitter)
        return run, failed
    stepped = step_run(run, RunInput.ADMIT) or run
    claimed = replace(run.output, claimed=True)
    stepped = replace(stepped, input=result.snapshot, output=claimed)
    if result.claimed_before:
        known = run.earlier or Earlier()
        accepted = known.accepted or result.had_answers
        earlier = replace(known, expected=True, accepted=accepted)
        stepped = replace(stepped, tag=result.tag or run.tag, earlier=earlier)
    return stepped, notes


def _adopted(run: Run, snapshot: InputSnapshot, earlier: EarlierEnd, setting: Setting) -> Run:
    """Its manifest stands: it is finished, with its original times, and nothing is submitted.

    One that had lost its journal before may have started anew after its batches had ended: it did
    not end before.
    """
    stepped = step_run(run, RunInput.ADOPT)
    assert stepped is not None, "only a run that is being admitted looks at its place"
    started, ended = earlier.started_at or run.start_time, earlier.ended_at or setting.now
    return replace(
        stepped,
        input=snapshot,
        staged=Staged(rows=earlier.rows, bad=earlier.bad, size=0, tokens=0),
        results=_costed(earlier.results, run, setting),
        verdict=final_verdict(run, setting.spec, earlier.results),
        start_time=started,
        completion_time=max(ended, started or ended),
        earlier=None,
        adopted=True,
        submitted=True,
    )


def _costed(found: Results, run: Run, setting: Setting) -> Results:
    """What a manifest tells: what it cost, too, unless an older version wrote it."""
    if found.currency:
        return found
    return priced(found, own_price(run.provider.settings, setting.spec.model))


def _shard_staged(run: Run, outcome: ShardStaged) -> Run:
    shard = outcome.checkpoint.shard
    if run.phase is not RunPhase.STAGING or shard.index != len(run.shards):
        return run
    if _is_other(run, outcome.checkpoint.cursor.fingerprint):
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


def _is_other(run: Run, fingerprint: str) -> bool:
    """Whether the shards so far are of a pass over another state of the input."""
    return run.cursor is not None and run.cursor.fingerprint not in {"", fingerprint}


_POOLS = {ShardState.COLLECTED, ShardState.REGROUPED}


def _left(shard: Shard) -> Shard:
    """Its records are too few for a batch, and stay where they are."""
    if shard.collected is None:
        return step_shard(shard, ShardInput.DROP) or shard
    return replace(shard, collected=replace(shard.collected, unbilled_code=BELOW_MINIMUM))


def _next_attempt(shard: Shard) -> int:
    """Of the records of a shard that go on: one that never went counts for none."""
    was_none = shard.state is ShardState.REGROUPED or was_cancelled_by_us(shard)
    return shard.attempt + (not was_none)


def _pooled(run: Run, result: Pooled) -> Run:
    sources = [
        s for s in run.shards if s.index in result.sources and s.state in _POOLS and not s.pooled
    ]
    fits = all(s.index >= len(run.shards) for s in result.shards)
    if run.phase is not RunPhase.RUNNING or len(sources) < len(result.sources) or not fits:
        return run  # the records went on already, or the run finishes without them
    if result.late != late_of(run, result.sources):
        return run  # some of them may have answers by now
    for shard in sources:
        run = run.with_shard(replace(shard, pooled=True) if result.shards else _left(shard))
    attempt = max(map(_next_attempt, sources), default=1)
    added = [
        replace(
            s,
            state=ShardState.QUEUED,
            attempt=attempt,
            sources=result.sources,
            known_late=result.late,
        )
        for s in result.shards
    ]
    return replace(run, shards=(*run.shards, *added))


def _finished(run: Run, result: Finished, setting: Setting) -> Run:
    parks = may_go_on(run, setting.spec)
    stepped = step_run(run, RunInput.PARK if parks else RunInput.MANIFEST)
    if stepped is None or result.may_go_on is not parks:
        return run  # it was deleted, or came back, meanwhile: the manifest is to say that too
    verdict = final_verdict(run, setting.spec, result.results)
    results = priced(result.results, price_of(run))
    most = estimate(run)
    if most is not None:
        results = replace(results, estimated=shown_bound(most))
    return replace(stepped, results=results, verdict=verdict, completion_time=setting.now)

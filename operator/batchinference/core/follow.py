"""Fold what the provider said into the run: answers to calls, listings, batches as seen.

The rules of protocol 4.4 and 5 for reading an answer are here; what is asked next is decided in
`core.submit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from batchinference.core.effects import (
    ASKING,
    cancelling,
    fencing,
    following,
    looking,
    resubmitting,
    submitting,
)
from batchinference.core.late import appeared, ended, submission_of
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchMissing,
    CancelAnswered,
    InputDeleted,
    LookedUp,
    ProviderAsked,
    SubmitAnswered,
)
from batchinference.core.refusals import not_sent, refused, tried_in_vain
from batchinference.core.regroup import learned
from batchinference.core.setting import Setting
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.batch import (
    Accepted,
    BatchState,
    BatchView,
    CancelOutcome,
    NotSent,
    OutcomeUnknown,
)
from batchinference.model.run import (
    Run,
    RunPhase,
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


def of_ordinal(run: Run, shard: int, ordinal: int) -> Shard | None:
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
    shard = of_ordinal(run, *key)
    if shard is None or shard.last is None or not shard.state.is_open:
        return run, notes  # settled meanwhile: by the poller, or by a look
    if isinstance(outcome, OutcomeUnknown) or shard.last.attempted:
        fault = TaskFault(FaultKind.RETRY, Reason.OUTCOME_UNKNOWN, outcome.message)
        effect_id = submitting(*key)
        noted = notes.with_failure(effect_id, fault, setting.now, setting.timing, setting.jitter)
        return lose(run, noted, shard)
    if isinstance(outcome, NotSent):
        return not_sent(run, notes, shard, outcome, setting)
    return refused(run, notes, shard, outcome, setting)


def lose(run: Run, notes: Notes, shard: Shard) -> tuple[Run, Notes]:
    """The create call of the shard's newest submission may or may not have been accepted."""
    stepped = step_shard(shard, ShardInput.LOSE)
    changed = (stepped or shard).with_last(attempted=True)
    key = (shard.index, changed.submissions[-1].ordinal)
    return run.with_shard(changed), notes.without_looks(key)


def accepted(
    run: Run, notes: Notes, key: tuple[int, int], view: BatchView, now: datetime
) -> tuple[Run, Notes]:
    """The provider has that submission as this batch."""
    notes = notes.with_views([view])
    if key[0] >= len(run.shards) or run.shards[key[0]].batch(view.id) is not None:
        return run, notes
    return _taken(run, notes, key, view, now)


def _taken(
    run: Run, notes: Notes, key: tuple[int, int], view: BatchView, now: datetime
) -> tuple[Run, Notes]:
    """As `accepted`, of a batch that the shard does not know."""
    shard = run.shards[key[0]]
    current = of_ordinal(run, *key)
    stepped = step_shard(shard, ShardInput.ACCEPT) if current and _may_hold(run, shard) else None
    if stepped is None:
        return appeared(run, key, view, now), notes
    changed = stepped.with_last(
        state=SubmissionState.ACCEPTED,
        batch_id=view.id,
        accepted_at=view.created_at or now,
        batch_state=view.state,
    )
    moot = (resubmitting(key[0]), submitting(*key), looking(*key), fencing(*key))
    return run.with_shard(changed), notes.without_looks(key).without_failure(*moot)


def _may_hold(run: Run, shard: Shard) -> bool:
    """Whether a batch of the newest ordinal is the shard's: not after a certain refusal, and of a
    fenced ordinal only while the run is not finishing without it.
    """
    assert shard.last is not None
    fenced = shard.last.state is SubmissionState.FENCED and run.phase is RunPhase.RUNNING
    return shard.state.is_open or (fenced and not shard.pooled)


def looked_up(run: Run, notes: Notes, look: LookedUp, setting: Setting) -> tuple[Run, Notes]:
    """The provider was asked for a submission."""
    key = (look.shard, look.ordinal)
    effect_id = looking(*key)
    if look.view is not None:
        run, notes = accepted(run, notes, key, look.view, setting.now)
        run, notes = batches_seen(run, notes, (look.view, *look.others), setting)
    if not _is_looked_for(run, key):
        return run, notes.without_failure(effect_id)
    if look.view is not None:
        text = f"Batch {look.view.id} is known as another submission's; it is asked again"
        fault = TaskFault(FaultKind.RETRY, Reason.OUTCOME_UNKNOWN, text)
        noted = notes.with_failure(effect_id, fault, setting.now, setting.timing, setting.jitter)
        return run, noted
    settled = notes.without_failure(effect_id)
    return run, settled.with_absence(
        key, setting.now, readable=look.readable, complete=look.complete
    )


def _is_looked_for(run: Run, key: tuple[int, int]) -> bool:
    """Whether it is not known what became of that submission, or it was given up."""
    if key[0] >= len(run.shards):
        return False
    shard = run.shards[key[0]]
    is_open = shard.state.is_open and of_ordinal(run, *key) is not None
    return is_open or any(s.ordinal == key[1] for s in shard.missing)


def input_deleted(
    run: Run, notes: Notes, outcome: InputDeleted, setting: Setting
) -> tuple[Run, Notes]:
    """The fence stands, and absences are counted anew; or what was refused left nothing behind."""
    key = (outcome.shard, outcome.ordinal)
    notes = notes.without_failure(fencing(*key))
    shard = of_ordinal(run, *key)
    if shard is None or shard.last is None:
        return run, notes
    if shard.last.state in {SubmissionState.REFUSED, SubmissionState.VOID}:
        return run.with_shard(shard.with_last(input_deleted=True)), notes
    if shard.state is not ShardState.FENCING or shard.last.fenced_at is not None:
        return run, notes  # told twice: the absences since then still count
    return run.with_shard(shard.with_last(fenced_at=setting.now)), notes.without_looks(key)


# ---------------------------------------------------------------- following


def cancel_answered(
    run: Run, notes: Notes, outcome: CancelAnswered, setting: Setting
) -> tuple[Run, Notes]:
    """The provider took the cancel call, or the batch was over, or it denies the batch: then
    nothing is known, and it is asked again (protocol 6.4).
    """
    effect_id = cancelling(outcome.batch_id)
    denied = outcome.outcome is CancelOutcome.NOT_FOUND
    if run.earlier is not None and outcome.batch_id in run.earlier.uncancelled and not denied:
        taken = (*run.earlier.cancelled, outcome.batch_id)
        earlier = replace(run.earlier, cancelled=taken)
        return replace(run, earlier=earlier), notes.without_failure(effect_id)
    shard = run.shards[outcome.shard] if outcome.shard < len(run.shards) else None
    asked = shard.batch(outcome.batch_id) if shard is not None else None
    if shard is None or asked is None or asked.cancel_accepted_at is not None:
        return run, notes.without_failure(effect_id)
    if denied:
        fault = _denied(outcome.batch_id)
        noted = notes.with_failure(effect_id, fault, setting.now, setting.timing, setting.jitter)
        return run, noted
    changed = shard.with_batch(outcome.batch_id, cancel_accepted_at=setting.now)
    return run.with_shard(changed), notes.without_failure(effect_id)


def batches_seen(
    run: Run, notes: Notes, views: Iterable[BatchView], setting: Setting
) -> tuple[Run, Notes]:
    """Batches as a provider shows them: ours, lost ones, late ones, or foreign.

    Takes time that grows with the run and with the views, not with their product: a provider may
    show thousands of batches that say to be the same submission.
    """
    newest = {view.id: view for view in views}
    live = {b.batch_id: shard.index for shard in run.shards for b in shard.live}
    known = {(shard.index, b.batch_id) for shard in run.shards for b in shard.made}
    ours: list[BatchView] = []
    for view in newest.values():
        if view.id not in live:
            key = submission_of(run, view)
            if key is None:
                continue
            if (key[0], view.id) not in known:
                before = run
                run, notes = _taken(run, notes, key, view, setting.now)
                if run is not before:
                    live[view.id] = key[0]
        ours.append(view)
    return _followed(run, notes.with_views(ours), ours, live, setting)


def _followed(
    run: Run,
    notes: Notes,
    views: Iterable[BatchView],
    live: Mapping[str, int],
    setting: Setting,
) -> tuple[Run, Notes]:
    """What batches say of which `live` tells the shards; others are over already."""
    settled: list[str] = []
    over: dict[int, list[BatchView]] = {}
    for view in views:
        if view.id not in live:
            continue
        if _lacks_files(view):
            notes = _files_missing(notes, view, setting)
            continue
        settled.append(following(view.id))
        if view.state.is_over:
            settled.append(cancelling(view.id))
            over.setdefault(live[view.id], []).append(view)
    for index, ended_ones in over.items():
        shard = run.shards[index]
        run = run.with_shard(_ended(shard, ended_ones, setting))
        for view in ended_ones:
            run = learned(run, shard, view.failure if view.is_void else None)
    return run, notes.without_failure(*settled)


def _lacks_files(view: BatchView) -> bool:
    """Whether a batch that is over counts processed records but does not name their files (yet):
    none at all, or only that of the errors.

    Reading nothing would make every record look unbilled, or lost. A batch that failed as a whole
    is not waited for: its records are never taken for unbilled.
    """
    ended = view.state.is_over and view.state is not BatchState.FAILED
    nowhere = view.completed + view.failed > 0 and not view.files
    return ended and (nowhere or view.lacks_answers)


def _files_missing(notes: Notes, view: BatchView, setting: Setting) -> Notes:
    text = (
        f"Batch {view.id} is {view.state.value} and counts {view.completed + view.failed} "
        "processed records, but the provider does not name the files of all of them yet; it is "
        "asked again. None of its records is sent again meanwhile"
    )
    fault = TaskFault(FaultKind.STALLED, Reason.OUTPUT_UNAVAILABLE, text)
    return notes.with_failure(
        following(view.id), fault, setting.now, setting.timing, setting.jitter
    )


def provider_asked(notes: Notes, outcome: ProviderAsked, setting: Setting) -> Notes:
    """Nothing was heard of the batches, or they can be followed (again)."""
    fault = outcome.fault
    if fault is None:
        return notes.without_failure(ASKING)
    return notes.with_failure(ASKING, fault, setting.now, setting.timing, setting.jitter)


def batch_missing(notes: Notes, outcome: BatchMissing, setting: Setting) -> Notes:
    """The provider denies the batch: noted, and nothing follows from it (protocol 6.4)."""
    fault = _denied(outcome.batch_id)
    effect_id = following(outcome.batch_id)
    return notes.with_failure(effect_id, fault, setting.now, setting.timing, setting.jitter)


def _denied(batch_id: str) -> TaskFault:
    text = (
        f"The provider says that batch {batch_id} does not exist. It may have been billed, "
        "so its records are not sent again; it is asked for again from time to time. Check that "
        "the credentials are of the account that submitted it"
    )
    return TaskFault(FaultKind.STALLED, Reason.BATCH_NOT_FOUND, text)


def _ended(shard: Shard, views: Iterable[BatchView], setting: Setting) -> Shard:
    """Some of the shard's batches are over."""
    closed = shard.with_batches({view.id: _end(view, setting) for view in views})
    last = closed.last
    newest = next((view for view in views if last is not None and last.batch_id == view.id), None)
    if newest is not None and newest.failure is not None and newest.is_void:
        closed = tried_in_vain(closed, newest.failure, setting)
    return ended(closed)


def _end(view: BatchView, setting: Setting) -> dict[str, Any]:
    """What changes in the submission of a batch that is over."""
    return {
        "state": SubmissionState.VOID if view.is_void else SubmissionState.ENDED,
        "ended_at": view.ended_at or setting.now,
        "batch_state": view.state,
        "files": view.files,
        "failure": view.failure,
        "answered": view.completed,
        **({"request": {}} if view.is_void else {}),
    }

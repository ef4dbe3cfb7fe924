"""Batches that come to light when nobody reckons with them any more (protocol 5.4).

Of an ordinal that was given up, or a second one of the same ordinal: listings showed them too late.
They are kept beside a shard's own submissions, and followed, cancelled and collected like those.
Here is what their appearance and their end mean for the shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from batchinference.core.draft import Draft
from batchinference.core.effects import Announce, CancelBatch, LookUp
from batchinference.core.regroup import origins
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.batch import BatchView
from batchinference.model.run import (
    CancelWhy,
    Run,
    RunPhase,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from batchinference.model.status import Reason


def submission_of(run: Run, view: BatchView) -> tuple[int, int] | None:
    """Which submission of the run a batch is, as (shard, ordinal): by what it carries, or by its
    input where the provider does not echo that.
    """
    named = view.submission
    if named is not None:
        known = named.tag == run.tag and 0 <= named.shard < len(run.shards)
        return (named.shard, named.ordinal) if known else None
    if not view.input_ref:
        return None
    made = ((shard.index, s) for shard in run.shards for s in shard.submissions)
    return next(((n, s.ordinal) for n, s in made if s.input_ref == view.input_ref), None)


def appeared(run: Run, key: tuple[int, int], view: BatchView, now: datetime) -> Run:
    """A late batch came to light: from now on it is known."""
    shard = run.shards[key[0]]
    made = next((s for s in shard.submissions if s.ordinal == key[1]), None)
    if made is None and not _is_forgotten(shard, view):
        return run
    if view.is_void and (made is None or made.state is not SubmissionState.FENCED):
        return run  # it has nothing, and cost nothing; of one given up it ends the search
    at = view.created_at or now
    late = Submission(
        ordinal=key[1],
        state=SubmissionState.ACCEPTED,
        request={},
        input_ref=made.input_ref if made else view.input_ref,
        claimed_at=made.claimed_at if made else at,
        submit_by=made.submit_by if made else at,
        attempted=True,
        batch_id=view.id,
        accepted_at=at,
        batch_state=view.state,
        fenced_at=made.fenced_at if made else None,
    )
    return run.with_shard(replace(shard, late=(*shard.late, late)))


def _is_forgotten(shard: Shard, view: BatchView) -> bool:
    """Whether it is of an ordinal that was certainly refused, which the journal does not keep. Nor
    does it keep all that were void; but these are over, and have nothing.
    """
    named = view.submission
    if named is None or shard.last is None or named.ordinal >= shard.last.ordinal:
        return False
    return shard.sha256.startswith(named.content_hash)


def late_of(run: Run, sources: Iterable[int]) -> int:
    """How many late batches are known of these shards, and of those that their records were pooled
    from.
    """
    return sum(len(run.shards[n].late) for n in origins(run, sources))


def taken_back(run: Run) -> Run:
    """Pooled records that ask for a place do not go as they are when a batch that held them came
    to light since: what it has no answer to is pooled anew, once it has ended.
    """
    for made in run.shards:
        is_stale = made.known_late != late_of(run, made.sources)
        if made.state is ShardState.QUEUED and is_stale:
            run = run.with_shard(step_shard(made, ShardInput.REGROUP) or made)
    return run


def with_late(shard: Shard) -> Shard:
    """The shard goes on for the late batches that are live or not collected; what its own newest
    submission is waiting for goes on first.
    """
    if not any(_is_pending(s) for s in shard.late):
        return shard
    stepped = step_shard(shard, ShardInput.APPEAR)
    return ended(stepped) if stepped is not None else shard


def _is_pending(late: Submission) -> bool:
    is_live = late.state is SubmissionState.ACCEPTED
    return is_live or (late.state is SubmissionState.ENDED and not late.collected)


def ended(shard: Shard) -> Shard:
    """One of the shard's batches ended: what the shard does once all of them have."""
    if shard.state is not ShardState.SUBMITTED or shard.live:
        return shard
    has_answers = any(s.state is SubmissionState.ENDED for s in shard.made)
    over = has_answers or not _goes_again(shard)
    return step_shard(shard, ShardInput.OVER if over else ShardInput.VOID) or shard


def _goes_again(shard: Shard) -> bool:
    """Whether a shard none of whose batches processed anything was waiting for another try."""
    given_up = shard.last is not None and shard.last.state is SubmissionState.FENCED
    return given_up or shard.not_before is not None


# ---------------------------------------------------------------- steps of `decide`


def follow_late(draft: Draft) -> bool:
    """Say what appeared, submit nothing more while one of them is live, and collect them."""
    run = draft.run
    if run.phase is RunPhase.RUNNING:
        run = replace(run, shards=tuple(map(with_late, run.shards)))
        draft.run = run = taken_back(run)
    for shard in run.shards:
        for late in shard.late:
            _tell(draft, shard, late)
    return False


def _tell(draft: Draft, shard: Shard, late: Submission) -> None:
    where = f"Batch {late.batch_id} of shard {shard.index}, ordinal {late.ordinal},"
    has_one = any(s.batch_id and s.ordinal == late.ordinal for s in shard.submissions)
    how = "is a second one of this submission" if has_one else "appeared after it was given up"
    text = f"{where} {how}: its records may be billed twice"
    if late.batch_id not in draft.notes.told:
        draft.notes = replace(draft.notes, told=draft.notes.told | {late.batch_id})
        said = f"{text}. It is followed and its answers are used where others are lacking"
        draft.effects.append(Announce(Reason.DUPLICATE_SUBMISSION, said, warning=True))
    if late.state is SubmissionState.ACCEPTED:
        draft.stall(
            Reason.DUPLICATE_SUBMISSION,
            f"{text}. It is followed, and nothing more is submitted until it has ended",
            late.accepted_at,
        )


def in_doubt(shard: Shard) -> list[Submission]:
    """Given up, and by nobody's word: before more is made of that, it is looked for again."""
    return [gone for gone in shard.missing if gone.settled is None]


def look_once_more(draft: Draft) -> bool:
    """Whether a last look for what was given up is to be waited for, before the run goes on
    without it. One that fails is not repeated: the answers that there are must not wait for it.
    """
    oldest = draft.observed.now - timedelta(seconds=draft.timing.settle_s)
    waiting = False
    for shard in draft.run.shards:
        for gone in in_doubt(shard):
            ask = LookUp(shard.index, gone.ordinal, gone.input_ref, fenced=True)
            look = draft.notes.looks.get((shard.index, gone.ordinal))
            is_stale = look is None or look.newest < oldest
            if is_stale and ask.id not in draft.notes.failures:
                draft.want(ask)
                waiting = True
    return waiting


def let_go(draft: Draft, shard: Shard, live: Submission) -> None:
    """A batch that somebody gave up is cancelled, and has a while to end of itself: then what it
    has is collected. After that it is written off.
    """
    assert live.settled_at is not None
    until = live.settled_at + timedelta(seconds=draft.timing.cancel_release_s)
    if draft.observed.now >= until:
        over = shard.with_batch(
            live.batch_id, state=SubmissionState.ENDED, ended_at=draft.observed.now
        )
        draft.run = draft.run.with_shard(ended(over))
        return
    draft.wake(until)
    if live.cancel_accepted_at is None and not is_cancelling(draft.run):
        draft.want(CancelBatch(shard.index, live.batch_id))


def is_cancelling(run: Run) -> bool:
    """Whether all that is live is cancelled anyway."""
    return run.cancel is not None and run.cancel.why is not CancelWhy.ORPHANED


def cancel_live(draft: Draft) -> None:
    """Cancel each batch of a cancelled run once; an orphaned one goes on."""
    run = draft.run
    if not is_cancelling(run):
        return
    for shard in run.shards:
        for live in shard.live:
            if live.cancel_accepted_at is None:
                draft.want(CancelBatch(shard.index, live.batch_id))
    for batch_id in run.earlier.uncancelled if run.earlier is not None else ():
        draft.want(CancelBatch(0, batch_id))


def cancels_strange(draft: Draft) -> bool:
    """Whether the end of a cancelled run waits for the cancels of batches that match nothing that
    it has: not for ever, since nothing of them is collected.
    """
    run = draft.run
    if run.cancel is None or run.earlier is None or not is_cancelling(run):
        return False
    until = run.cancel.at + timedelta(seconds=draft.timing.cancel_release_s)
    if not run.earlier.uncancelled or draft.observed.now >= until:
        return False
    draft.wake(until)
    return True

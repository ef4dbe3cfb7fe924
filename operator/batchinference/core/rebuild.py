"""A run whose journal may have been lost: what the provider has of it is taken in (protocol 2.6).

A new journal looks the same whether its key is new or its predecessor was lost. So each asks the
account for the run's tag before its first submission. What is found and matches the staged content
becomes the submissions of these shards; anything else stalls the run. Every ambiguous branch
submits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from batchinference.core.decisions import ask_of_earlier_life, ask_of_strange
from batchinference.core.draft import Draft
from batchinference.core.effects import Search
from batchinference.core.follow import batches_seen
from batchinference.core.notes import Look, Notes, SubmissionKey
from batchinference.core.outcomes import Searched
from batchinference.core.setting import Setting
from batchinference.core.timing import Timing
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.batch import BatchView
from batchinference.model.earlier import Earlier
from batchinference.model.run import (
    Run,
    RunPhase,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from batchinference.model.status import Reason

LOOK: SubmissionKey = (-1, 0)
"""Under which the searches of a run are noted among its looks."""

_SEARCH = Search()
_NEVER = datetime.max.replace(tzinfo=UTC)


# ---------------------------------------------------------------- a step of `decide`


def look_back(draft: Draft) -> bool:
    """Nothing is submitted before the provider was asked for an earlier life of the run."""
    run = draft.run
    earlier = run.earlier
    if earlier is None or run.phase not in {RunPhase.STAGING, RunPhase.RUNNING}:
        return False
    if not earlier.asking:
        if run.cancel is None and run.phase is RunPhase.RUNNING:
            text = f"{_strange(earlier)}. {ask_of_strange(draft, earlier.strange)}"
            draft.stall(Reason.JOURNAL_LOST, text)
        return False
    # What there is can only be matched once all is staged; that there is nothing shows before.
    is_staged = run.phase is RunPhase.RUNNING
    look = draft.notes.looks.get(LOOK)
    if look is None:
        draft.want(_SEARCH)
        return is_staged
    later = look.newest + timedelta(seconds=draft.timing.reference_retry_s)
    settled = _settled_at(look, draft.timing)
    if not look.counts:
        text = f"{_UNSURE}. {ask_of_earlier_life(draft)}"
        draft.stall(Reason.JOURNAL_LOST, text, look.first)
        _again(draft, later)
    else:
        _again(draft, settled if is_staged else max(settled, later))
    return is_staged


def is_asking(draft: Draft) -> bool:
    """Whether `look_back` gets on with it, or is about to: the operator may have been down for as
    long as anybody waits.
    """
    failure = draft.notes.failures.get(_SEARCH.id)
    in_vain = failure is not None and failure.fault.reason != Reason.LISTING_ACCOUNT
    if draft.run.phase not in {RunPhase.STAGING, RunPhase.RUNNING} or in_vain:
        return False
    look = draft.notes.looks.get(LOOK)
    return look is None or look.counts


def _again(draft: Draft, at: datetime) -> None:
    if draft.observed.now >= at:
        draft.want(_SEARCH)
    else:
        draft.wake(at)


_UNSURE = (
    "The journal of this run is lost, and the provider can't tell all that it has of it: its "
    "listing does not come to its end, or shows batches without saying whose they are, or lacks a "
    "batch that the status shows. Nothing is submitted, and the provider is asked again from time "
    "to time. Restore the journal from a backup, or create the job with another `runID` and "
    "`output`"
)


def _strange(earlier: Earlier) -> str:
    several = len(earlier.strange) > 1
    ids = ", ".join(earlier.strange[:5]) + (", ..." if len(earlier.strange) > 5 else "")
    return (
        f"The journal of this run is lost. {'Batches' if several else 'Batch'} {ids} at the "
        f"provider {'carry' if several else 'carries'} its tag and "
        f"{'do' if several else 'does'} not match what was staged now: the input, or the "
        "provider's limits, may have changed since, or records were sent a second time. Nothing "
        "more is submitted; what does match is followed and collected. Restore the journal from a "
        "backup; or, once nothing of it is live at the provider, create the job with another "
        "`runID` and `output`"
    )


# ---------------------------------------------------------------- what was found


def searched(run: Run, notes: Notes, found: Searched, setting: Setting) -> tuple[Run, Notes]:
    """The provider was asked for what it has of this run."""
    notes = notes.without_failure(_SEARCH.id)
    earlier = run.earlier
    if earlier is None or not earlier.asking:
        return run, notes
    if found.found and not earlier.expected:
        earlier = replace(earlier, expected=True)
        run = replace(run, earlier=earlier)
    if not earlier.expected:
        # An output place that no earlier life had claimed says it, too: that is enough where the
        # provider can't be asked conclusively.
        return replace(run, earlier=None), notes.without_looks(LOOK)
    is_staged = run.phase is RunPhase.RUNNING
    said = earlier.certain or run.cancel is not None
    enough = is_staged and (said or _covers(run, found.found))
    # A status that shows a submission is not refuted by a provider that shows none.
    complete = found.complete and (bool(found.found) or not earlier.accepted)
    notes = notes.with_absence(LOOK, setting.now, complete=complete or enough)
    if not _is_settled(notes.looks[LOOK], setting) or (found.found and not is_staged):
        return run, notes
    is_all = complete or earlier.certain or _covers(run, found.found)
    return _taken_in(run, notes.without_looks(LOOK), found.found, setting, is_all=is_all)


def _is_settled(look: Look, setting: Setting) -> bool:
    """Whether what was on its way when this process began to look has come to light by now."""
    return look.counts and look.newest >= _settled_at(look, setting.timing)


def _settled_at(look: Look, timing: Timing) -> datetime:
    """A create call of the earlier life may still have been on its way at the first look."""
    return look.first + timedelta(seconds=timing.submit_timeout_s + timing.settle_s)


def _covers(run: Run, found: Iterable[BatchView]) -> bool:
    """Whether every shard that would be submitted has a batch: what else there may be, there is
    nothing left to submit.
    """
    held = {
        v.submission.shard for v in found if _matches(run, v) and not v.is_void and v.submission
    }
    least = run.limits.min_records_per_batch
    return all(s.index in held or s.rows < least for s in run.shards)


def _matches(run: Run, view: BatchView) -> bool:
    """Whether the batch is of a shard as it was staged."""
    named = view.submission
    if named is None or not named.content_hash or not 0 <= named.shard < len(run.shards):
        return False
    return run.shards[named.shard].sha256.startswith(named.content_hash)


def _taken_in(
    run: Run, notes: Notes, found: tuple[BatchView, ...], setting: Setting, *, is_all: bool
) -> tuple[Run, Notes]:
    """The run with what was found. Where that may not be all of it, a cancelled run ends all the
    same, but the next life of it asks again.
    """
    known = {made.batch_id for shard in run.shards for made in shard.made}
    fresh = [view for view in found if view.id not in known]
    ordinals = [v.submission.ordinal for v in fresh if v.submission]
    run = replace(run, ordinal_found=max([run.ordinal_found, *ordinals]))
    for shard in run.shards:
        mine = [v for v in fresh if _matches(run, v) and _of(v) == shard.index]
        if mine and not shard.made:
            run = run.with_shard(_with_batches(shard, mine, setting.now))
    ours = [view for view in sorted(fresh, key=_age) if _matches(run, view)]
    run, notes = batches_seen(run, notes, ours, setting)
    strange = tuple(v.id for v in fresh if not _matches(run, v) and not v.is_void)
    is_settled = is_all and not strange
    rest = None if is_settled else Earlier(asking=False, expected=True, strange=strange)
    return replace(run, earlier=rest, adopted=run.adopted or bool(fresh)), notes


def _with_batches(shard: Shard, found: list[BatchView], now: datetime) -> Shard:
    """The shard as the provider has it: its own submission is the newest ordinal's oldest batch
    that was not void; what else may bill is beside it, and what was void before it.
    """
    newest = max(map(_ordinal, found))
    tops = sorted((v for v in found if _ordinal(v) == newest), key=lambda v: (v.is_void, _age(v)))
    others = [v for v in found if v is not tops[0]]
    void = sorted({_ordinal(v) for v in others if v.is_void} - {newest})
    made = tuple(
        replace(_submission(v, now), state=SubmissionState.VOID)
        for ordinal in void
        for v in [next(v for v in others if v.is_void and _ordinal(v) == ordinal)]
    )
    late = tuple(_submission(v, now) for v in sorted(others, key=_age) if not v.is_void)
    submitted = shard
    for event in (ShardInput.QUEUE, ShardInput.CLAIM, ShardInput.ACCEPT):
        submitted = step_shard(submitted, event) or submitted
    assert submitted.state is ShardState.SUBMITTED, "nothing of it was submitted in this life"
    return replace(
        submitted,
        submissions=(*made, _submission(tops[0], now)),
        late=late,
        attempt=1 + len(made),
    )


def _submission(view: BatchView, now: datetime) -> Submission:
    at = view.created_at or now
    return Submission(
        ordinal=_ordinal(view),
        state=SubmissionState.ACCEPTED,
        request={},
        input_ref=view.input_ref,
        claimed_at=at,
        submit_by=at,
        attempted=True,
        batch_id=view.id,
        accepted_at=at,
        batch_state=view.state,
    )


def _of(view: BatchView) -> int:
    assert view.submission is not None
    return view.submission.shard


def _ordinal(view: BatchView) -> int:
    assert view.submission is not None
    return view.submission.ordinal


def _age(view: BatchView) -> tuple[datetime, str]:
    return view.created_at or _NEVER, view.id

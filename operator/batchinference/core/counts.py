"""What a status says in numbers: records, shards, submissions, tokens, money.

Counts come from the results, else from the answers that were collected, else from what the provider
says of the batches that it works on. It must not know conditions or states of jobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from batchinference.core.budget import cost_of
from batchinference.core.notes import Notes
from batchinference.core.policy import CANCELLED
from batchinference.core.pricing import used
from batchinference.model.run import Run, Shard, ShardState, Submission
from batchinference.model.status import (
    Cost,
    JobStatus,
    RequestCounts,
    ShardCounts,
    SubmissionView,
    Usage,
)

_SHOWN_SUBMISSIONS = 20


def has_unseen_batch(run: Run, notes: Notes) -> bool:
    """Whether a batch is at the provider that this process has not looked at yet."""
    return any(live.batch_id not in notes.views for shard in run.shards for live in shard.live)


def _known(counts: RequestCounts) -> int:
    """Records whose outcome is known."""
    return counts.completed + counts.failed + counts.expired


def request_counts(run: Run, notes: Notes, before: RequestCounts | None = None) -> RequestCounts:
    """Records of the run: from the results once they stand; else by what was collected, and by the
    provider's own counts for the batches that it works on.

    Args:
        run: whose records.
        notes: batches as last seen.
        before: as shown by an earlier process, for which the provider's counts stood in place of
            those of batches that this one has not seen yet.
    """
    total = run.staged.records if run.staged else 0
    if run.results is not None:
        found = run.results
        return RequestCounts(total, found.completed, found.failed, found.expired)
    completed, failed, expired = 0, run.staged.bad if run.staged else 0, 0
    for shard in run.shards:
        views = [notes.views[s.batch_id] for s in shard.made if s.batch_id in notes.views]
        view = max(views, key=lambda v: v.completed, default=None)
        if shard.collected is not None:
            completed += shard.collected.answered
            failed += shard.collected.failed + shard.collected.lost
            if not shard.pooled and shard.collected.unbilled_code != CANCELLED:
                expired += shard.collected.unbilled
        elif view is not None:  # what servers count may be anything
            answered = min(view.completed, shard.rows)
            completed += answered
            failed += min(view.failed, shard.rows - answered)
    if run.staged is not None and run.staged.several:
        # Until the end it is known of rows only what became of them; a record has several here.
        rows = run.staged.rows
        completed, failed, expired = (n * total // rows for n in (completed, failed, expired))
    counts = RequestCounts(total, completed, failed, expired)
    return before if before is not None and _known(before) > _known(counts) else counts


def shard_counts(shards: Iterable[Shard]) -> ShardCounts:
    """Shards by where they are."""
    states = [s.state for s in shards]
    queued = sum(s in {ShardState.STAGED, ShardState.QUEUED} for s in states)
    finished = sum(s.is_settled for s in states)
    return ShardCounts(len(states), queued, len(states) - queued - finished, finished)


def newest_submissions(
    run: Run, notes: Notes, before: JobStatus | None
) -> tuple[SubmissionView, ...]:
    """The newest submissions, newest first, with their batches' states as last seen; `before` has
    those of the batches that this process has not seen yet.
    """
    pairs: list[tuple[Submission, Shard]] = [(u, s) for s in run.shards for u in _shown(s)]
    newest = sorted(pairs, key=lambda p: (p[0].claimed_at, p[1].index))[-_SHOWN_SUBMISSIONS:]
    shown = {v.batch_id: v.state for v in before.submissions} if before is not None else {}
    return tuple(
        SubmissionView(
            shard=shard.index,
            ordinal=made.ordinal,
            state=_shown_submission(made, notes, shown),
            batch_id=made.batch_id,
        )
        for made, shard in reversed(newest)
    )


def _shown(shard: Shard) -> list[Submission]:
    """One for each ordinal: a late batch takes the place of the submission that was given up."""
    late = {s.ordinal: s for s in reversed(shard.late)}
    own = [s if s.batch_id else late.get(s.ordinal, s) for s in shard.submissions]
    forgotten = late.keys() - {s.ordinal for s in shard.submissions}
    return [*own, *(late[n] for n in sorted(forgotten))]


def _shown_submission(made: Submission, notes: Notes, shown: Mapping[str, str]) -> str:
    view = notes.views.get(made.batch_id)
    seen = view.state if view is not None else made.batch_state
    is_known = view is not None or (seen is not None and seen.is_over)
    if not is_known and made.batch_id in shown:
        return shown[made.batch_id]  # the journal has what was said when it was accepted
    return (seen or made.state).value


def usage(run: Run) -> Usage | None:
    """Tokens of the answers so far; None before there are any."""
    if run.results is not None:
        spent_in, spent_out = run.results.input_tokens, run.results.output_tokens
    else:
        spent_in, spent_out = used(run)
    return Usage(str(spent_in), str(spent_out)) if spent_in or spent_out else None


def cost(run: Run) -> Cost | None:
    """What the results cost, or the answers so far, and what all may cost at most; None where no
    price is known.
    """
    found = run.results
    if found is not None:
        if not found.currency:
            return None
        return Cost(found.currency, found.estimated, found.cost, found.on_demand_cost)
    return cost_of(run)

"""What a run waits for that needs nobody to act, in words for its status."""

from __future__ import annotations

from batchinference.core.effects import ASKING
from batchinference.core.notes import Notes
from batchinference.core.policy import quota_refusal
from batchinference.model.run import Run, RunPhase, ShardState
from batchinference.model.status import Reason


def waiting_for(
    run: Run | None, notes: Notes, delay: tuple[str, str] | None
) -> tuple[str, str] | None:
    """A reason to wait and its message: `delay`, which all of the account wait for; or the newest
    passing failure; or the quota that fails every batch; or its turn. Not that nothing was heard
    of the batches for a moment: it is the same for thousands of runs, and told as a problem once it
    lasts.
    """
    if delay is not None:
        return delay
    own = (failure for effect, failure in notes.failures.items() if effect != ASKING)
    failures = sorted(own, key=lambda f: f.retry_at, reverse=True)
    if failures:
        return failures[0].fault.reason, failures[0].fault.message
    refused = quota_refusal(run) if run is not None else None
    if refused:
        return Reason.QUOTA_WAIT, refused
    return (Reason.QUEUED, _turn(run)) if run is not None and _asks_for_places(run) else None


def _asks_for_places(run: Run) -> bool:
    queued = any(shard.state is ShardState.QUEUED for shard in run.shards)
    return queued and run.phase is RunPhase.RUNNING and run.cancel is None


def _turn(run: Run) -> str:
    """Who waits for a place, and what bounds them. Says nothing of how many others there are: each
    that comes or goes would be a write for every job that waits.
    """
    limits = {
        "maxActiveBatches": run.limits.max_active_batches,
        "maxEnqueuedTokens": run.limits.max_enqueued_tokens,
    }
    named = " and ".join(f"{name} {value}" for name, value in limits.items() if value is not None)
    within = f" within {named}" if named else ""
    return (
        f"What is queued waits for a place at the provider{within}, and within the quota that "
        "refusals of the account have shown: namespaces take turns, then priority and age count"
    )

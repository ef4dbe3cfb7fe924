"""A run and its object find each other again: adopted, followed, or taken up (protocol 7.4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from batchinference.core.begin import starts_afresh
from batchinference.core.draft import Draft
from batchinference.core.effects import Announce
from batchinference.core.policy import was_dropped
from batchinference.core.transitions import RunInput, ShardInput, step_run, step_shard
from batchinference.model.job import DesiredState
from batchinference.model.run import CancelWhy, Owner, Run, RunPhase, Shard
from batchinference.model.status import Reason


def tell_found(draft: Draft) -> bool:
    """What its output place or its provider had of the run, while its journal knew nothing."""
    run = draft.run
    if run.adopted and not draft.observed.was_adopted:
        text = f"Found run {run.key[:12]} by what it left, without a journal of it; {_history(run)}"
        draft.effects.append(Announce(Reason.ADOPTED, text))
    return False


def come_back(draft: Draft) -> bool:
    """An object with this key appeared: it finds its run (protocol 7.4)."""
    job, run = draft.observed.job, draft.run
    if job is None or job.metadata.is_being_deleted or starts_afresh(run, job):
        return False
    meta = job.metadata
    if run.owner.uid != meta.uid:
        owner = Owner(meta.namespace, meta.name, meta.uid, meta.generate_name)
        draft.run = replace(_wanted_again(run), owner=owner, adopted=True)
        text = f"Found run {run.key[:12]} ({run.phase.value}) of an earlier object; {_history(run)}"
        draft.effects.append(Announce(Reason.ADOPTED, text))
    if draft.run.phase is RunPhase.PARKED and draft.spec.desired_state is DesiredState.ACTIVE:
        draft.run = _take_up(draft.run, draft.observed.now)
    return False


def _history(run: Run) -> str:
    if run.phase is RunPhase.PARKED:
        return "it was cancelled by deletion and goes on with the records that lack an answer"
    if run.is_over:
        return (
            "it is finished and nothing is submitted; to run it again, create the object anew with "
            "another `spec.runID` and `spec.output`"
        )
    return "it is still running and is followed"


def _wanted_again(run: Run) -> Run:
    """An orphaned run of which nothing was cancelled goes on as if it had never been orphaned."""
    orphaned = run.cancel is not None and run.cancel.why is CancelWhy.ORPHANED
    if not orphaned or run.phase is not RunPhase.RUNNING:
        return run
    return replace(run, shards=_resumed(run), cancel=None)


def _take_up(run: Run, now: datetime) -> Run:
    stepped = step_run(run, RunInput.RESUME) or run
    earlier = stepped.earlier and replace(stepped.earlier, asking=True, strange=())
    return replace(
        stepped,
        shards=_resumed(stepped),
        cancel=None,
        verdict=None,
        results=None,
        completion_time=None,
        earlier=earlier,
        parked_s=run.parked_s + int((now - (run.completion_time or now)).total_seconds()),
    )


def _resumed(run: Run) -> tuple[Shard, ...]:
    """What was dropped asks for a place again, unless it is too small, or went on elsewhere."""
    return tuple((_resume(s) if was_dropped(run, s) else None) or s for s in run.shards)


def _resume(shard: Shard) -> Shard | None:
    return step_shard(replace(shard, unsent_code=""), ShardInput.RESUME)

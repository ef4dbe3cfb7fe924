"""A run without an object whose credentials are gone (protocol 7.2).

Its Secret went with its namespace, or its key was revoked, and nobody is left to whom a condition
could tell it. Where the provider drops its answers after a while, and none was collected before,
the run ends then: they are lost. Answers that are in our staging, or in the user's own bucket, wait
for credentials for ever.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchinference.core.draft import Draft
from batchinference.core.effects import (
    ASKING,
    TASKS,
    Announce,
    StopTasks,
    cancelling,
    following,
)
from batchinference.core.keys import journal_name
from batchinference.core.stuck import window
from batchinference.core.timing import Timing
from batchinference.core.transitions import RunInput, step_run
from batchinference.model.run import Ending, Run, RunPhase, Verdict
from batchinference.model.status import Reason

_GONE = {Reason.SECRET_NOT_FOUND, Reason.CREDENTIALS_REJECTED}
_CALLS = (ASKING, following(""), cancelling(""), TASKS)
"""What is done until the end, so that a call that works ends the failure of the one before."""


def abandon(draft: Draft) -> bool:
    """A step of `decide`: tell it, and end the run once its answers can't be there any more."""
    run = draft.run
    if draft.observed.job is not None or run.cancel is None:
        return False
    if not (run.cancel.is_by_deletion or draft.observed.is_deleted):
        return False  # its object may only not have been seen yet
    gone = _credentials_gone(draft)
    if not gone or run.is_over:
        return False
    stepped = step_run(run, RunInput.ABANDON)
    until = _kept_until(run, draft.observed.now, draft.timing)
    if until is None or stepped is None or draft.observed.now < until:
        _tell(draft, gone, until)
        return False
    batches = sum(len(shard.live) for shard in run.shards)
    text = (
        f"{gone}. The object is gone, and the provider keeps answers no longer than until "
        f"{until:%Y-%m-%dT%H:%M:%SZ}: those that were not collected are lost ({batches} batches "
        "were not seen to end)"
    )
    verdict = Verdict(Ending.FAILED, Reason.CREDENTIALS_GONE, text)
    draft.run = replace(stepped, verdict=verdict, completion_time=draft.observed.now)
    draft.effects += [StopTasks(), Announce(Reason.CREDENTIALS_GONE, text, warning=True)]
    return False


def _credentials_gone(draft: Draft) -> str:
    """What says that there are none; "" while nothing does. A call that worked since ends it."""
    problem = draft.observed.provider
    if problem is not None and problem.reason in _GONE:
        return problem.message.rstrip(".")
    for effect_id, failure in draft.notes.failures.items():
        if effect_id.startswith(_CALLS) and failure.fault.reason in _GONE:
            return failure.fault.message.rstrip(".")
    return ""


def _kept_until(run: Run, now: datetime, timing: Timing) -> datetime | None:
    """From then on there is nothing of the run that could be read; None: there will always be."""
    ours = run.phase is not RunPhase.RUNNING or any(shard.collected for shard in run.shards)
    if ours or "openAI" not in run.provider.settings:
        return None
    made = [one for shard in run.shards for one in shard.made]
    last = [one.claimed_at + window(run.provider.settings) for one in made]
    # When it ended is the provider's word, which may be anything.
    last += [min(one.ended_at, now) for one in made if one.ended_at is not None]
    return max(last, default=run.created_at) + timedelta(seconds=timing.answers_kept_s)


def _tell(draft: Draft, gone: str, until: datetime | None) -> None:
    where = f"configmap/{journal_name(draft.run.key)} -n {draft.observed.journal_namespace}"
    text = (
        f"{gone}. The run has no object any more, and what it has at the provider and in storage "
        "can't be cancelled, collected or written. Bring the credentials back. Its journal is "
        f"{where}"
    )
    if until is not None:
        text += f". After {until:%Y-%m-%dT%H:%M:%SZ} its answers are given up"
        draft.wake(until)
    draft.stall(Reason.CREDENTIALS_GONE, text)
    if Reason.CREDENTIALS_GONE not in draft.notes.told:
        draft.notes = replace(draft.notes, told=draft.notes.told | {Reason.CREDENTIALS_GONE})
        draft.effects.append(Announce(Reason.CREDENTIALS_GONE, text, warning=True))

"""The deadline of a run: `activeDeadlineSeconds`, counted from its start.

Time that the run was parked does not count: nothing of it was going. Once it has passed, that is
the end of the run, whatever is edited or deleted later.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from batchinference.core.draft import Draft
from batchinference.core.effects import Announce
from batchinference.model.job import JobSpec
from batchinference.model.run import Cancel, CancelWhy, Run, RunPhase
from batchinference.model.status import Reason


def deadline(run: Run, spec: JobSpec) -> datetime | None:
    """When the run must be over; None without a deadline, or before its start."""
    if run.start_time is None or spec.active_deadline_seconds is None:
        return None
    return run.start_time + timedelta(seconds=spec.active_deadline_seconds + run.parked_s)


def meet_deadline(draft: Draft) -> bool:
    """A step of `decide`: cancel what is not over in time.

    Not while batches of a lost journal are looked for, or found and not matched: what they have was
    paid for, and who ends the run without it must have looked. And only by the word of an object
    that is there: the journal's spec may be older than an edit. A run whose answers are all there
    is not failed for the time that it takes to write them.
    """
    run, job = draft.run, draft.observed.job
    if run.is_over or run.phase is RunPhase.FINISHING or run.cancel is not None or job is None:
        return False
    if run.may_have_more or (run.earlier is not None and run.earlier.strange):
        return False
    due = deadline(run, draft.spec)
    if due is None or job.metadata.is_paused:
        return False
    if draft.observed.now < due:
        draft.wake(due)
        return False
    draft.run = replace(run, cancel=Cancel(CancelWhy.DEADLINE, draft.observed.now))
    text = f"The run is being ended: it is not over {draft.spec.active_deadline_seconds} s after "
    draft.effects.append(Announce(Reason.CANCELLING, text + "its start (`activeDeadlineSeconds`)"))
    return False

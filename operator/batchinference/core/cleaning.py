"""Removing what is ours and of no use any more: after an end, and where a run does not stay.

None of it is worth anything to anybody, so it must not hold up anything for ever: what can't be
removed is told in an Event, and left after a while.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from batchinference.core.begin import has_nothing, moved, unadmitted
from batchinference.core.draft import Draft
from batchinference.core.effects import Announce, StartTask
from batchinference.core.notes import Failure
from batchinference.core.receipt import receipt
from batchinference.core.transitions import RunInput, step_run
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskKind

_NOWHERE = {Reason.BUCKET_NOT_FOUND, Reason.ENDPOINT_UNREACHABLE}
"""There is nothing to be removed where there is no place."""

_TOLD = "remains"


def remove_remains(draft: Draft) -> None:
    """Of an ended run: the provider's files and its staging; its claim, if it never submitted."""
    run = draft.run
    task = StartTask(TaskKind.CLEAN if run.was_submitted else TaskKind.RELEASE)
    failure = draft.notes.failures.get(task.id)
    if run.verdict is not None and run.verdict.reason == Reason.CREDENTIALS_GONE:
        _leave(draft, run, run.verdict.reason, "its credentials are gone")
        return
    if failure is not None and task.id not in draft.notes.inflight:
        if _is_given_up(draft, failure):
            _leave(draft, run, failure.fault.reason, failure.fault.message)
            return
        if failure.count >= draft.timing.told_after and _TOLD not in draft.notes.told:
            draft.notes = replace(draft.notes, told=draft.notes.told | {_TOLD})
            said = f"What the run left behind can't be removed yet: {failure.fault.message}"
            draft.effects.append(Announce(failure.fault.reason, said, warning=True))
    draft.want(task)


def _is_given_up(draft: Draft, failure: Failure) -> bool:
    """Whether it is of no use to go on. A run that was submitted has answers in staging and files
    at the provider, which cost or may be secret; that there is no such place may be a mistake.
    """
    lasting = failure.count >= draft.timing.told_after
    nowhere = failure.fault.reason in _NOWHERE and not draft.run.was_submitted
    if lasting and nowhere:
        return True
    until = failure.since + timedelta(seconds=draft.timing.cleaning_s)
    draft.wake(until)
    return draft.observed.now >= until


def _leave(draft: Draft, run: Run, reason: str, why: str) -> None:
    left = [run.staging.uri] if run.was_submitted else [run.output.uri, run.staging.uri]
    said = (
        f"Gave up removing what the run left behind ({why}). Remove by hand what "
        f"there is under {' and '.join(left)}, and its files at the provider, tagged {run.tag}"
    )
    draft.effects.append(Announce(reason, said, warning=True))
    ended = step_run(run, RunInput.CLEAN)
    draft.run = receipt(ended) if ended is not None else run


def leave_provider(draft: Draft) -> bool:
    """A run that has nothing yet goes where its provider object leads now; what it may have left
    where that led before is removed first, if that can be done; nothing is while an earlier life of
    it may have batches, whose inputs, answers and claim these are. The claim goes with it, so the
    journal says first that the run has none: it may be led back before it has moved.
    """
    fresh, release = draft.observed.fresh, StartTask(TaskKind.RELEASE)
    if fresh is None and has_nothing(draft.run):
        draft.notes = replace(draft.notes, released=False)
        return release.id in draft.notes.inflight
    if fresh is None or not has_nothing(draft.run) or draft.notes.inflight - {release.id}:
        return False
    failure = draft.notes.failures.get(release.id)
    passing = failure is not None and failure.fault.kind in {FaultKind.RETRY, FaultKind.WAITING}
    in_vain = failure is not None and (not passing or failure.count >= draft.timing.told_after)
    began = draft.run.start_time is not None
    if began and not draft.notes.released and not in_vain and not draft.run.may_have_more:
        draft.run = unadmitted(draft.run)
        draft.want(release)
        return True
    if failure is not None:
        said = (
            "The run goes on where its provider leads now. What it may have left where that led "
            f"before can't be removed: {failure.fault.message}"
        )
        draft.effects.append(Announce(Reason.PROVIDER_CHANGED, said, warning=True))
    draft.run = moved(draft.run, fresh)
    draft.notes = replace(draft.notes, failures={}, uploads={}, looks={}, views={}, released=False)
    draft.wake(draft.observed.now)
    return True

"""Fold many outcomes, each for itself: one that can't be folded is dropped alone.

A dropped outcome is as one that was lost in a crash: the journal's claim makes somebody ask. What
it came of counts as failed, so that it is tried again after a while, and told when it persists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import assert_never

from batchinference.core import absorb
from batchinference.core.effects import (
    ASKING,
    FINALIZER,
    Search,
    StartTask,
    cancelling,
    fencing,
    following,
    looking,
    submitting,
)
from batchinference.core.follow import batches_seen
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
from batchinference.core.setting import Setting
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskFault, TaskKind

_TEXT = "Internal error: what came of this step can't be read; the operator's log has the details"


@dataclass(frozen=True, slots=True)
class Dropped:
    """An outcome that could not be folded, and why."""

    outcome: Outcome
    error: Exception


@dataclass(frozen=True, slots=True)
class Folded:
    """The run and the notes after all outcomes but the dropped ones."""

    run: Run
    notes: Notes
    dropped: tuple[Dropped, ...] = ()


def fold(run: Run, notes: Notes, outcomes: Iterable[Outcome], setting: Setting) -> Folded:
    """Fold the outcomes in their order. Batches that were seen in a row are folded in one go."""
    folded = Folded(run, notes)
    for are_sightings, group in groupby(outcomes, lambda one: isinstance(one, BatchSeen)):
        alike = list(group)
        whole = _all_seen(folded, alike, setting) if are_sightings else None
        folded = whole or _one_by_one(folded, alike, setting)
    return folded


def _all_seen(before: Folded, seen: Sequence[Outcome], setting: Setting) -> Folded | None:
    """None when one of them can't be folded."""
    views = [one.view for one in seen if isinstance(one, BatchSeen)]
    try:
        run, notes = batches_seen(before.run, before.notes, views, setting)
    except Exception:  # noqa: BLE001 - found, and reported, when they are folded one by one
        return None
    return Folded(run, notes, before.dropped)


def _one_by_one(folded: Folded, outcomes: Sequence[Outcome], setting: Setting) -> Folded:
    for outcome in outcomes:
        try:
            run, notes = absorb.absorb(folded.run, folded.notes, outcome, setting)
        except Exception as error:  # noqa: BLE001 - a defect must not cost the other outcomes
            fault = TaskFault(FaultKind.RETRY, Reason.INTERNAL_ERROR, _TEXT)
            noted = folded.notes.with_failure(
                came_of(outcome), fault, setting.now, setting.timing, setting.jitter
            )
            folded = Folded(folded.run, noted, (*folded.dropped, Dropped(outcome, error)))
        else:
            folded = Folded(run, notes, folded.dropped)
    return folded


def came_of(outcome: Outcome) -> str:
    """The id of the effect that the outcome is of, or under which trouble with it is noted."""
    match outcome:
        case TaskDone():
            return StartTask(outcome.kind, outcome.shard, outcome.ordinal).id
        case ShardStaged():
            return StartTask(TaskKind.STAGE).id
        case SubmitAnswered():
            return submitting(outcome.shard, outcome.ordinal)
        case LookedUp():
            return looking(outcome.shard, outcome.ordinal)
        case Searched():
            return Search().id
        case InputDeleted():
            return fencing(outcome.shard, outcome.ordinal)
        case CancelAnswered():
            return cancelling(outcome.batch_id)
        case BatchSeen():
            return following(outcome.view.id)
        case BatchMissing():
            return following(outcome.batch_id)
        case ProviderAsked():
            return ASKING
        case FinalizerSet():
            return FINALIZER
        case EffectFailed():
            return outcome.effect.id
        case _:
            assert_never(outcome)

"""What came of effects, and news from outside, as values: the input of `core.absorb`.

They live in memory only. Losing them in a crash loses nothing: the journal's claim makes the next
process ask.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchinference.core.effects import Effect
from batchinference.model.batch import BatchView, CancelOutcome, SubmitOutcome
from batchinference.model.work import Checkpoint, TaskFault, TaskKind, TaskResult


@dataclass(frozen=True, slots=True)
class TaskDone:
    """A task is over."""

    kind: TaskKind
    shard: int | None
    ordinal: int | None
    result: TaskResult


@dataclass(frozen=True, slots=True)
class ShardStaged:
    """The staging pass finished a shard."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class SubmitAnswered:
    """The create call is over."""

    shard: int
    ordinal: int
    outcome: SubmitOutcome


@dataclass(frozen=True, slots=True)
class LookedUp:
    """The provider was asked for a submission; `view` None = a listing did not show it.

    Attributes:
        readable: whether the same client can still read the claimed input.
        others: further batches that say that they are this submission.
        complete: the listing was followed to its end, and the provider's listings show everything;
            otherwise not having seen it proves nothing.
    """

    shard: int
    ordinal: int
    view: BatchView | None
    readable: bool = True
    complete: bool = True
    others: tuple[BatchView, ...] = ()


@dataclass(frozen=True, slots=True)
class Searched:
    """All that the provider shows of this run.

    Attributes:
        complete: the listing was followed to its end, shows everything, and says of each batch
            whose it is; and what the object's status shows was found. Otherwise there may be more.
    """

    found: tuple[BatchView, ...]
    complete: bool = True


@dataclass(frozen=True, slots=True)
class InputDeleted:
    """The fence stands."""

    shard: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class CancelAnswered:
    """A cancel call was answered."""

    shard: int
    batch_id: str
    outcome: CancelOutcome


@dataclass(frozen=True, slots=True)
class BatchSeen:
    """The poller saw a batch of this run."""

    view: BatchView


@dataclass(frozen=True, slots=True)
class BatchMissing:
    """The provider says that there is no batch of that id (protocol 6.4: no proof of anything)."""

    batch_id: str


@dataclass(frozen=True, slots=True)
class ProviderAsked:
    """The provider was asked what became of the run's batches; why it could not be, or None."""

    fault: TaskFault | None


@dataclass(frozen=True, slots=True)
class FinalizerSet:
    """The steering object has our finalizer now, or not any more."""

    present: bool


@dataclass(frozen=True, slots=True)
class EffectFailed:
    """An effect could not be done; it may be tried again."""

    effect: Effect
    fault: TaskFault


Outcome = (
    TaskDone
    | ShardStaged
    | SubmitAnswered
    | LookedUp
    | Searched
    | InputDeleted
    | CancelAnswered
    | BatchSeen
    | BatchMissing
    | ProviderAsked
    | FinalizerSet
    | EffectFailed
)

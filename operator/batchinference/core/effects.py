"""What `decide` wants done, as values. `runtime.effects` does them.

Every effect is idempotent or guarded by the journal entry that was written before it, and has an
id: while one of that id is under way it is not started again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from batchinference.model.work import Holder, TaskKind


@dataclass(frozen=True, slots=True)
class StartTask:
    """Give a task to the workers.

    `replaces`: the run whose output place an ADMIT takes over, once its journal says that it ended.
    `may_go_on`: what the manifest that a FINISH writes says of the run.
    """

    kind: TaskKind
    shard: int | None = None
    ordinal: int | None = None
    sources: tuple[int, ...] = ()
    replaces: Holder | None = None
    may_go_on: bool = False

    @property
    def id(self) -> str:
        """See the module."""
        return TASKS + ":".join([self.kind, *_numbers(self.shard, self.ordinal)])


@dataclass(frozen=True, slots=True)
class Submit:
    """Send the claimed create request; `fresh` when this process has just made the claim."""

    shard: int
    ordinal: int
    request: Mapping[str, Any] = field(hash=False)
    fresh: bool = True

    @property
    def id(self) -> str:
        """See the module."""
        return submitting(self.shard, self.ordinal)


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the provider, over one complete listing, whether it has that submission.

    `input_ref` decides where metadata is not echoed; it must be readable for absence to count,
    unless `fenced` says that it was deleted on purpose.
    """

    shard: int
    ordinal: int
    input_ref: str
    fenced: bool

    @property
    def id(self) -> str:
        """See the module."""
        return looking(self.shard, self.ordinal)


@dataclass(frozen=True, slots=True)
class Search:
    """Ask the provider for all that it has of this run, of a life whose journal may be lost."""

    @property
    def id(self) -> str:
        """See the module."""
        return "search"


@dataclass(frozen=True, slots=True)
class DeleteInput:
    """Fence: delete the submission's input, so that it can't be accepted late."""

    shard: int
    ordinal: int
    input_ref: str

    @property
    def id(self) -> str:
        """See the module."""
        return fencing(self.shard, self.ordinal)


@dataclass(frozen=True, slots=True)
class CancelBatch:
    """Ask the provider to end a batch."""

    shard: int
    batch_id: str

    @property
    def id(self) -> str:
        """See the module."""
        return cancelling(self.batch_id)


ASKING = "ask"
"""The id under which it is noted that the provider can't be asked for the run's batches at all."""


def submitting(shard: int, ordinal: int) -> str:
    """The id of the create call of a submission."""
    return f"submit:{shard}:{ordinal}"


def resubmitting(shard: int) -> str:
    """The id under which it is noted why a shard was put back, whatever its ordinal."""
    return f"submit:{shard}"


def looking(shard: int, ordinal: int) -> str:
    """The id of a look for a submission."""
    return f"look:{shard}:{ordinal}"


def fencing(shard: int, ordinal: int) -> str:
    """The id of the deletion of a submission's input."""
    return f"fence:{shard}:{ordinal}"


def cancelling(batch_id: str) -> str:
    """The id of the effect that cancels a batch."""
    return f"cancel:{batch_id}"


def following(batch_id: str) -> str:
    """The id under which trouble with following a batch is noted."""
    return f"follow:{batch_id}"


FINALIZER = "finalizer"
"""The id of whatever is done with our finalizer."""

TASKS = "task:"
"""What the ids of all tasks begin with."""


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Put our finalizer on the steering object, or take it off."""

    present: bool

    @property
    def id(self) -> str:
        """See the module."""
        return FINALIZER


@dataclass(frozen=True, slots=True)
class StopTasks:
    """End whatever the workers do for this run."""

    @property
    def id(self) -> str:
        """See the module."""
        return "stop-tasks"


@dataclass(frozen=True, slots=True)
class Announce:
    """Record an Event on the steering object."""

    reason: str
    message: str
    warning: bool = False

    @property
    def id(self) -> str:
        """See the module."""
        return f"event:{self.reason}"


Effect = (
    StartTask
    | Submit
    | LookUp
    | Search
    | DeleteInput
    | CancelBatch
    | SetFinalizer
    | StopTasks
    | Announce
)


def _numbers(*values: int | None) -> list[str]:
    return [str(v) for v in values if v is not None]

"""What heavy tasks are asked for and what they answer: plain values that cross a process border.

A task is a function of a run, a shard and ports (`tasks`). The operator never sees record bytes;
it sees these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from batchinference.errors import Fault, Permanent, Stalled, Waiting
from batchinference.model.run import Collected, Results, Run, Shard
from batchinference.model.staging import BadRecord, Cursor, InputSnapshot, Staged


class TaskKind(StrEnum):
    """The tasks, in the order of a run's life."""

    ADMIT = "Admit"  # first look at the input, claim the output place
    STAGE = "Stage"  # one pass over the input
    UPLOAD = "Upload"  # hand one shard's bytes to the provider, for one ordinal
    COLLECT = "Collect"  # bring one ended shard's answers into staging
    POOL = "Pool"  # make new shards of unbilled records
    FINISH = "Finish"  # parts in input order, then the manifest
    CLEAN = "Clean"  # delete provider files and staging
    RELEASE = "Release"  # of a run that never submitted: its claim, its unused uploads, its staging


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work.

    Attributes:
        shard, ordinal: for UPLOAD and COLLECT.
        sources: for POOL, the shards whose unbilled records go again.
        replaces: for ADMIT, the ended run whose output place is taken over.
        may_go_on: for FINISH, whether the run is parked once the manifest stands (protocol 7.4).
        failing_s: for how long this process has tried in vain.
        inline, template: the inline input and the prompt template as they stand in the spec, which
            the journal does not hold.
        connections: everything needed to reach storage, provider and API server, secrets
            included. Travels through a pipe, never through argv or the environment.
    """

    kind: TaskKind
    run: Run
    shard: int | None = None
    ordinal: int | None = None
    sources: tuple[int, ...] = ()
    replaces: Holder | None = None
    may_go_on: bool = False
    failing_s: int = 0
    inline: str | None = None
    template: Mapping[str, Any] | None = None
    connections: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Unique among the tasks that may be under way at one time."""
        parts = [self.run.key, self.kind.value]
        parts += [str(n) for n in (self.shard, self.ordinal) if n is not None]
        return "/".join(parts)


# ---- what a running task reports


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A finished shard of the staging pass, to be journaled; staging resumes after it.

    `first_bad` are the first ten bad records of the pass so far.
    """

    shard: Shard
    cursor: Cursor
    first_bad: tuple[BadRecord, ...] = ()


# ---- what a task answers


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose claim stands in an output place.

    Attributes:
        finished: a manifest of that run stands there.
        final: and it says that the run never goes on; one cancelled by deletion may.
    """

    run_key: str
    run_tag: str
    installation: str
    finished: bool = False
    description: str = ""
    final: bool = False


@dataclass(frozen=True, slots=True)
class EarlierEnd:
    """How a run ended in a life of which there is no journal, as its manifest says.

    Attributes:
        rows, bad: records of the input, and those that were never sent.
        started_at, ended_at: when it began, and when its last batch was over.
    """

    results: Results
    rows: int
    bad: int
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The input's first look; `holder` is None where the output place is ours now, and `earlier`
    is set where the holder is this very run and has finished.

    `claimed_before`: it was ours already, by a claim that was made with another journal, or it
    was handed over; `tag` is the run tag that this claim names. `had_answers`: a manifest of that
    life stood there, so it had submitted, whatever the provider still lists of it.
    """

    snapshot: InputSnapshot
    holder: Holder | None = None
    earlier: EarlierEnd | None = None
    claimed_before: bool = False
    tag: str = ""
    had_answers: bool = False


@dataclass(frozen=True, slots=True)
class StageDone:
    """The pass is over. `snapshot` is the input as it was during the whole pass."""

    staged: Staged
    snapshot: InputSnapshot


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The shard's bytes are at the provider under this reference, for this ordinal alone."""

    input_ref: str


@dataclass(frozen=True, slots=True)
class ShardCollected:
    """Every record of the shard has a canonical result in staging, or is listed as unbilled.

    `late`: how many late batches were known when this was begun.
    """

    collected: Collected
    late: int = 0


@dataclass(frozen=True, slots=True)
class Pooled:
    """New shards made of the unbilled records of others, and which those were.

    `late`: how many late batches of the sources were known when this was begun.
    """

    shards: tuple[Shard, ...]
    sources: tuple[int, ...]
    late: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The manifest stands, and says whether the run may go on."""

    results: Results
    may_go_on: bool = False


@dataclass(frozen=True, slots=True)
class Cleaned:
    """Nothing of ours is left at the provider and in staging."""


class FaultKind(StrEnum):
    """See the classes of the same name in `errors`."""

    STALLED = "Stalled"
    WAITING = "Waiting"
    RETRY = "Retry"
    PERMANENT = "Permanent"


@dataclass(frozen=True, slots=True)
class TaskFault:
    """A task that could not do its work, as a value."""

    kind: FaultKind
    reason: str
    message: str
    after_s: float | None = None

    @classmethod
    def of(cls, fault: Fault) -> TaskFault:
        """A fault as a value."""
        kind = next(kind for raised, kind in _KINDS.items() if isinstance(fault, raised))
        return cls(kind, fault.reason, fault.message, fault.after_s)


_KINDS = {
    Stalled: FaultKind.STALLED,
    Waiting: FaultKind.WAITING,
    Permanent: FaultKind.PERMANENT,
    Fault: FaultKind.RETRY,
}


TaskResult = (
    Admitted | StageDone | Uploaded | ShardCollected | Pooled | Finished | Cleaned | TaskFault
)
TaskReport = Checkpoint

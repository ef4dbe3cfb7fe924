"""What the runtime holds in memory of one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from batchinference.core.notes import Notes
from batchinference.core.problem import Problem
from batchinference.model.job import JobSpec
from batchinference.model.run import Run, RunPhase, ShardState
from batchinference.runtime.mailbox import Mailbox


@dataclass(slots=True)
class Entry:
    """A run as this process knows it.

    Attributes:
        spec: the object's, or the journal's last-seen one.
        held: see `core.draft.Decision`.
        asking: likewise, as decided last; empty until then.
        paused, asks_people: likewise.
        run: the run as it stands, which may be a few steps ahead of its journal; None before one
            exists. See `core.durability`.
        stored, version: the journal as last read or written.
        write_by: when the journal is written at the latest, on `Clock.elapsed`; None while `run` is
            not ahead of it.
        mailbox: outcomes that are not folded in yet.
        inflight: ids of effects under way.
        problem: why the job does not get on, as last shown.
        reasons: of all that keeps a run from getting on, as last decided.
        written_at: when numbers were last written to the status.
        passing: a state that may be over before anybody has seen it, and since when.
        newer_schema: a newer operator's journal: hands off.
        in_doubt: its journal may stand, or be a newer one, although no object tells of it: there
            was no answer when it was made, or another process wrote it.
        full: why its journal can take nothing new, "" while it can.
    """

    key: str
    run: Run | None = None
    spec: JobSpec | None = None
    held: bool = False
    asking: frozenset[int] = frozenset()
    paused: str = ""
    asks_people: bool = False
    stored: Run | None = None
    version: str = ""
    write_by: float | None = None
    notes: Notes = field(default_factory=Notes)
    mailbox: Mailbox = field(default_factory=Mailbox)
    inflight: set[str] = field(default_factory=set)
    problem: Problem | None = None
    reasons: frozenset[str] = frozenset()
    written_at: datetime | None = None
    passing: tuple[str, float] | None = None
    newer_schema: bool = False
    in_doubt: bool = False
    full: str = ""
    failures: int = 0

    @property
    def queued(self) -> int:
        """How many shards wait for their turn at the provider: none of a run that is held back."""
        run = self.run
        if run is None or self.held or run.phase is not RunPhase.RUNNING or run.cancel is not None:
            return 0
        return sum(shard.state is ShardState.QUEUED for shard in run.shards)

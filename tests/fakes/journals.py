"""Journals in memory, stored as the JSON they would be in a ConfigMap."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from batchinference.errors import (
    InvalidObject,
    NewerSchema,
    Permanent,
    Retry,
    Superseded,
    Unreadable,
)
from batchinference.model.codec import decode, encode
from batchinference.model.job import parse_journaled_spec
from batchinference.model.run import SCHEMA, Run, RunPhase
from batchinference.model.status import Reason
from fakes.world import World


class FakeJournals:
    """`ports.Journals` with resourceVersion preconditions.

    Attributes:
        stored: run key -> (document, version), what survives a crash.
        notes: run key -> annotations that people put on the ConfigMap.
        writes, reads: how often anything was written, and any one journal read.
        refused: writes with an outdated precondition.
        on_write: told of every write as (before, after), for invariants.
        max_bytes: of one journal; twice as many where what has happened must be kept.
        failure_rate: how often a call answers Retry, half of the time after it took hold.
    """

    def __init__(
        self, world: World | None = None, *, failure_rate: float = 0.0, max_bytes: int = 512 * 1024
    ) -> None:
        self.stored: dict[str, tuple[str, int]] = {}
        self.notes: dict[str, dict[str, str]] = {}
        self.writes = 0
        self.reads = 0
        self.refused = 0
        self.failure_rate = failure_rate
        self.on_write: Callable[[Run | None, Run], None] | None = None
        self.max_bytes = max_bytes
        self._world = world or World()
        self._version = 0

    async def unended(self) -> Sequence[tuple[str, Run | None, str]]:
        await self._world.pause()
        self._maybe_fail("journal.unended")
        found: list[tuple[str, Run | None, str]] = []
        for key in sorted(self.stored):
            text, version = self.stored[key]
            try:
                run = _read(text)
            except NewerSchema:
                found.append((key, None, str(version)))
            else:
                if run.phase is not RunPhase.ENDED:
                    found.append((key, run, str(version)))
        await self._world.pause()
        return found

    async def unended_versions(self) -> AsyncIterator[tuple[str, str]]:
        for key, _run, version in await self.unended():
            yield key, version

    async def ended(self) -> AsyncIterator[tuple[Run, str]]:
        self._maybe_fail("journal.ended")
        for text, version in list(self.stored.values()):
            await self._world.pause()
            run = _read(text)
            if run.phase is RunPhase.ENDED:
                yield run, str(version)

    async def get(self, key: str) -> tuple[Run, str] | None:
        await self._world.pause()
        self.reads += 1
        self._maybe_fail("journal.get")
        held = self.stored.get(key)
        await self._world.pause()
        return (_read(held[0]), str(held[1])) if held else None

    async def is_current(self, key: str, version: str) -> bool:
        await self._world.pause()
        self._maybe_fail("journal.current")
        held = self.stored.get(key)
        await self._world.pause()
        return held is not None and str(held[1]) == version

    async def annotations(self, key: str) -> Mapping[str, str]:
        await self._world.pause()
        self._maybe_fail("journal.annotations")
        return dict(self.notes.get(key, {}))

    async def create(self, run: Run) -> str:
        async with self._world.effect("journal.create"):
            self._maybe_fail("journal.create")
            if run.key in self.stored:
                raise Superseded(f"the journal of {run.key} exists")
            version = self._store(run)
            self._maybe_fail("journal.create answer")
        return version

    async def write(self, run: Run, version: str, *, in_full: bool = False) -> str:
        async with self._world.effect("journal.write"):
            self._maybe_fail("journal.write")
            held = self.stored.get(run.key)
            if held is None:
                raise Superseded(f"the journal of {run.key} is gone")
            if str(held[1]) != version:
                self.refused += 1
                self._world.trace(f"journal {run.key} superseded: {held[1]}, not {version}")
                raise Superseded(f"the journal of {run.key} has version {held[1]}, not {version}")
            _read(held[0])
            new = self._store(run, reserve=in_full)
            self._maybe_fail("journal.write answer")
        return new

    async def delete(self, key: str, version: str) -> None:
        async with self._world.effect("journal.delete"):
            self._maybe_fail("journal.delete")
            held = self.stored.get(key)
            if held is not None and str(held[1]) != version:
                raise Superseded(f"the journal of {key} has version {held[1]}, not {version}")
            self.lose(key)

    def peek(self, key: str) -> Run | None:
        """The journal as it stands, for whoever watches from outside."""
        held = self.stored.get(key)
        return _read(held[0]) if held else None

    def runs(self) -> list[Run]:
        """Every journal as it stands."""
        return [_read(text) for text, _ in self.stored.values()]

    def lose(self, key: str) -> None:
        """Somebody deleted the ConfigMap."""
        self.stored.pop(key, None)

    def annotate(self, key: str, **annotations: str) -> None:
        """Somebody decides on the ConfigMap."""
        self._version += 1
        self.notes.setdefault(key, {}).update(annotations)
        self.stored[key] = (self.stored[key][0], self._version)

    def put_raw(self, key: str, document: dict[str, Any]) -> None:
        """A document as another operator wrote it."""
        self._version += 1
        self.stored[key] = (json.dumps(document), self._version)

    def _store(self, run: Run, *, reserve: bool = False) -> str:
        text = json.dumps(encode(run), sort_keys=True)
        fits = self.max_bytes * (2 if reserve else 1)
        if len(text) > fits:
            raise Permanent(
                Reason.JOURNAL_TOO_LARGE,
                f"The journal would take {len(text)} bytes and {fits} fit.",
            )
        before = self.peek(run.key)
        self._version += 1
        self.writes += 1
        self.stored[run.key] = (text, self._version)
        self._world.trace(f"journal {run.key} v{self._version} {summary(run)}")
        if self.on_write is not None:
            self.on_write(before, run)
        return str(self._version)

    def _maybe_fail(self, what: str) -> None:
        if self._world.chance(self.failure_rate / 2):
            self._world.trace(f"{what} fails")
            raise Retry("Unavailable", f"{what}: the API server did not answer")


@lru_cache(maxsize=512)
def _read(text: str) -> Run:
    document = json.loads(text)
    schema = document.get("schema", 1)
    if schema > SCHEMA:
        raise NewerSchema(f"The journal has schema {schema}, this operator knows {SCHEMA}")
    try:
        run = decode(Run, document)
        parse_journaled_spec(run.spec)
    except InvalidObject as fault:
        raise Unreadable(f"The journal can't be read: {fault}") from fault
    return run


def summary(run: Run) -> str:
    """A run in one line, for traces."""
    shards = " ".join(
        f"{s.index}:{s.state.value}" + (f"#{s.last.ordinal}{s.last.state.value}" if s.last else "")
        for s in run.shards
    )
    cancel = f" cancel={run.cancel.why.value}" if run.cancel else ""
    verdict = f" verdict={run.verdict.ending.value}/{run.verdict.reason}" if run.verdict else ""
    return f"{run.phase.value}{cancel}{verdict} [{shards}]"

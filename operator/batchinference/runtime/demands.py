"""What the runs of each account want and have, kept up to date run by run.

With thousands of runs under way one of them changes at a time: only that one is counted anew. So
whatever changes in an entry of what `share_of` reads must be told. It must not know who gets a
place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from batchinference.core.admission import Demand, Placed, Waiting
from batchinference.core.effects import StartTask
from batchinference.core.keys import next_ordinal
from batchinference.model.run import Run, RunPhase, Shard, ShardState
from batchinference.model.work import TaskKind
from batchinference.runtime.entry import Entry


@dataclass(frozen=True, slots=True)
class Share:
    """What one run wants and has.

    Attributes:
        account: where.
        placed: shards that the provider has, or may have.
        asking: queued shards that would use a place now.
        uploading: queued shards whose input is on its way, with a place or not any more.
        uploaded: names of queued shards whose input is at the provider already.
        refused: shards that the provider had no quota for, each with the number of its try.
        model: of the run.
        queued: see `Entry.queued`.
    """

    account: str
    placed: tuple[Demand, ...] = ()
    asking: tuple[Demand, ...] = ()
    uploading: tuple[Demand, ...] = ()
    uploaded: frozenset[tuple[str, int]] = frozenset()
    refused: frozenset[tuple[int, int]] = frozenset()
    model: str = ""
    queued: int = 0


class Book:
    """The shares of one account, summed up.

    Attributes:
        refused: models of which a batch was refused for want of quota, until somebody reads it.
    """

    def __init__(self) -> None:
        self.placed = Placed()
        self.waiting = Waiting()
        self.queued = 0
        self.refused: set[str] = set()
        self._uploading: dict[tuple[str, int], Demand] = {}
        self._uploaded: set[tuple[str, int]] = set()

    def add(self, share: Share) -> None:
        """A run is of this account."""
        for demand in share.placed:
            self.placed.add(demand)
        for demand in share.asking:
            self.waiting.add(demand)
        self._uploading.update((demand.name, demand) for demand in share.uploading)
        self._uploaded |= share.uploaded
        self.queued += share.queued

    def remove(self, share: Share) -> None:
        """It is not any more, or has another share now."""
        for demand in share.placed:
            self.placed.remove(demand)
        for demand in share.asking:
            self.waiting.remove(demand)
        for demand in share.uploading:
            del self._uploading[demand.name]
        self._uploaded -= share.uploaded
        self.queued -= share.queued

    def uploading(self, granted: Iterable[Demand]) -> Iterator[Demand]:
        """Who takes one of the places for uploads, where these have been given a place."""
        yield from self._uploading.values()
        for demand in granted:
            if demand.name not in self._uploaded and demand.name not in self._uploading:
                yield demand


class Demands:
    """The books of all accounts."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = entries
        self._shares: dict[str, Share] = {}
        self._books: dict[str, Book] = {}
        self._touched: set[str] = set()

    def touched(self, key: str) -> None:
        """Something of the run may be another than before."""
        self._touched.add(key)

    def of(self, account: str) -> Book:
        """The account's book as it stands now."""
        for key in self._touched:
            self._count_anew(key)
        self._touched.clear()
        return self._books.get(account) or Book()

    def _count_anew(self, key: str) -> None:
        entry = self._entries.get(key)
        before, after = self._shares.get(key), share_of(entry) if entry is not None else None
        if before == after:
            return
        if before is not None:
            self._books[before.account].remove(before)
            del self._shares[key]
        if after is not None:
            book = self._books.setdefault(after.account, Book())
            book.add(after)
            self._shares[key] = after
            if after.refused - (before.refused if before is not None else frozenset()):
                book.refused.add(after.model)


def share_of(entry: Entry) -> Share | None:
    """What a run wants and has; None while that is nothing."""
    run = entry.run
    if run is None or run.phase is not RunPhase.RUNNING:
        return None
    placed, asking, uploading = [], [], []
    uploaded: set[tuple[str, int]] = set()
    refused: set[tuple[int, int]] = set()
    for shard in run.shards:
        if shard.state.is_live:
            placed.append(_demand(entry, run, shard))
        if shard.state is not ShardState.QUEUED or run.cancel is not None:
            continue
        demand = _demand(entry, run, shard)
        if shard.last is not None and shard.last.failure is not None and shard.last.failure.quota:
            refused.add((shard.index, shard.put_backs))
        if shard.index in entry.asking and not entry.newer_schema:
            asking.append(demand)
        if not entry.inflight and not entry.notes.uploads:
            continue
        ordinal = next_ordinal(run, shard)
        if StartTask(TaskKind.UPLOAD, shard.index, ordinal).id in entry.inflight:
            uploading.append(demand)
        elif (shard.index, ordinal) in entry.notes.uploads:
            uploaded.add(demand.name)
    return Share(
        run.provider.account,
        tuple(placed),
        tuple(asking),
        tuple(uploading),
        frozenset(uploaded),
        frozenset(refused),
        _model(run),
        entry.queued,
    )


def _demand(entry: Entry, run: Run, shard: Shard) -> Demand:
    return Demand(
        run_key=run.key,
        shard=shard.index,
        namespace=run.owner.namespace,
        model=_model(run),
        tokens=shard.tokens,
        priority=entry.spec.priority if entry.spec else 0,
        since=run.created_at,
        limits=run.limits,
    )


def _model(run: Run) -> str:
    return str(run.spec.get("model", ""))

"""POOL: the unbilled records of several shards, and those of shards that can't go as they are,
together in row order, as new shards.

The encoded bytes are copied as they were staged: a record is never translated twice. Where the
records are fewer than a batch needs, there are no new shards.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from batchinference.core.late import late_of
from batchinference.model.run import Run, Shard
from batchinference.model.staging import Cursor
from batchinference.model.work import Pooled
from batchinference.ports import ObjectStore
from batchinference.records.index import entries
from batchinference.records.lines import plain_lines
from batchinference.tasks import spool
from batchinference.tasks.layout import Layout, layout
from batchinference.tasks.merge import rows_answered_late, unbilled_rows
from batchinference.tasks.shard_files import Piece, ShardBuilder, TooManyShards
from batchinference.tasks.workbench import Workbench

_PIECE_RECORDS = 1_000
_PIECE_BYTES = 1 << 20


class _Record(NamedTuple):
    row: int
    line: bytes
    tokens: int
    output: int


def pool(run: Run, sources: tuple[int, ...], bench: Workbench) -> Pooled:
    """Make the new shards of the sources' unbilled records.

    A last shard that can't be brought to the provider's minimum is left out, and so is what would
    pass the number of shards that a run may have: those records keep the error they have.
    """
    shards = [run.shards[n] for n in sources]
    late = late_of(run, sources)
    where = layout(run)
    answered = rows_answered_late(run, bench.staging, where)
    total = _count(shards, bench.staging, where, answered)
    if total < run.limits.min_records_per_batch or not total:
        return Pooled((), sources, late)
    made: list[Shard] = []
    attempt = max(shard.attempt for shard in shards) + 1

    def finished(shard: Shard, cursor: Cursor | None) -> None:
        del cursor
        if shard.rows >= run.limits.min_records_per_batch:
            made.append(shard)

    with (
        spool.folder(bench.spool, run) as folder,
        ShardBuilder(
            run.limits,
            bench.staging,
            where,
            folder,
            finished,
            first=len(run.shards),
            attempt=attempt,
            has_table=False,
        ) as builder,
    ):
        records = heapq.merge(*(_records(s, bench.staging, where, answered) for s in shards))
        with suppress(TooManyShards):
            for piece in _pieces(records):
                builder.add(piece)
        builder.finish(None)
    return Pooled(tuple(made), sources, late)


def _count(shards: list[Shard], store: ObjectStore, where: Layout, answered: frozenset[int]) -> int:
    if not answered:
        return sum(s.collected.unbilled if s.collected else s.rows for s in shards)
    return sum(row not in answered for s in shards for row in _wanted(s, store, where))


def _wanted(shard: Shard, store: ObjectStore, where: Layout) -> Iterator[int]:
    """The rows that go on: the unbilled ones, or all of a shard that never went."""
    if shard.collected is not None:
        return unbilled_rows(shard, store, where)
    info = spool.staged(store, where.index(shard.index))
    return (entry.row for entry in entries(store.read(info)))


def _records(
    shard: Shard, store: ObjectStore, where: Layout, answered: frozenset[int]
) -> Iterator[_Record]:
    """The records of one shard that go on, from one pass over its staged bytes."""
    wanted = (row for row in _wanted(shard, store, where) if row not in answered)
    row = next(wanted, None)
    if row is None:
        return
    table = entries(store.read(spool.staged(store, where.index(shard.index))))
    lines = plain_lines(store.read(spool.staged(store, where.shard(shard.index))))
    for entry, line in zip(table, lines, strict=True):
        if entry.row == row:
            yield _Record(row, line, entry.tokens, entry.output)
            row = next(wanted, None)
            if row is None:
                return


def _pieces(records: Iterator[_Record]) -> Iterator[Piece]:
    held: list[_Record] = []
    size = 0
    for record in records:
        held.append(record)
        size += len(record.line)
        if len(held) >= _PIECE_RECORDS or size >= _PIECE_BYTES:
            yield _piece(held)
            held.clear()
            size = 0
    if held:
        yield _piece(held)


def _piece(records: list[_Record]) -> Piece:
    return Piece(
        b"".join([part for r in records for part in (r.line, b"\n")]),
        [len(r.line) + 1 for r in records],
        [r.row for r in records],
        [r.tokens for r in records],
        outputs=[r.output for r in records],
    )

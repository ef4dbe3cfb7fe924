"""Everything that is known of a run's rows, in row order, from many files at once.

Files are opened when their first row is near and closed when they end, so that five hundred shards
are as cheap as a few: those of the staging pass don't overlap.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

from batchinference.errors import Retry
from batchinference.model.run import Run, Shard, ShardState
from batchinference.model.status import Reason
from batchinference.ports import ObjectStore
from batchinference.records import codes
from batchinference.records.index import entries, unpack_rows
from batchinference.records.lines import plain_lines
from batchinference.records.tails import tail_of
from batchinference.tasks import spool
from batchinference.tasks.layout import Layout


class Known(NamedTuple):
    """What one shard has to say of one row.

    Attributes:
        kind: a class of `records.tails`, or b"" when the row has no answer and was not billed.
        text: the tail, or the code of a row without an answer.
    """

    row: int
    shard: int
    kind: bytes
    text: bytes


def known_rows(run: Run, store: ObjectStore, layout: Layout) -> Iterator[Known]:
    """What all shards say, by row and then by shard; rows that no shard has are not here."""
    return merged(
        [
            (shard.first_row, shard.index, _opener(run, shard, store, layout))
            for shard in run.shards
            # One whose records went on elsewhere before it was sent has nothing to say.
            if shard.rows and not (shard.pooled and shard.state is ShardState.DROPPED)
        ]
    )


Opener = Callable[[], Iterator[Known]]


def merged(sources: list[tuple[int, int, Opener]]) -> Iterator[Known]:
    """Merge sorted streams of which only the first rows are known, opening each at its turn."""
    # Entries: (row, shard, is open, what was read, the stream or how to open it).
    heap: list[tuple[int, int, Known | None, Iterator[Known] | Opener]] = [
        (row, shard, None, opener) for row, shard, opener in sources
    ]
    heapq.heapify(heap)
    while heap:
        _, shard, item, stream = heap[0]
        if item is None:
            assert callable(stream)
            stream = stream()
        else:
            yield item
        assert not callable(stream)
        following = next(stream, None)
        if following is None:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (following.row, shard, following, stream))


def _opener(run: Run, shard: Shard, store: ObjectStore, layout: Layout) -> Opener:
    if shard.state is not ShardState.COLLECTED:
        if shard.state.is_live or shard.state is ShardState.ENDED:
            raise Retry(
                Reason.COLLECTING, f"Shard {shard.index} is {shard.state.value}, not collected"
            )
        minimum = run.limits.min_records_per_batch
        usual = codes.BELOW_MINIMUM if shard.rows < minimum else codes.NOT_SUBMITTED
        code = shard.unsent_code or usual
        return lambda: _never_sent(shard, code.encode(), store, layout)
    return lambda: _collected(shard, store, layout)


def _never_sent(shard: Shard, code: bytes, store: ObjectStore, layout: Layout) -> Iterator[Known]:
    info = spool.staged(store, layout.index(shard.index))
    for entry in entries(store.read(info)):
        yield Known(entry.row, shard.index, b"", code)


def _collected(shard: Shard, store: ObjectStore, layout: Layout) -> Iterator[Known]:
    answers = _answers(shard, store, layout)
    if shard.collected is None or not shard.collected.unbilled:
        return answers
    code = shard.collected.unbilled_code or codes.NOT_PROCESSED
    return heapq.merge(answers, _unbilled(shard, code.encode(), store, layout))


def rows_answered_late(run: Run, store: ObjectStore, layout: Layout) -> frozenset[int]:
    """Rows with an answer in a shard of which a batch appeared late. Others that have them too may
    count them as unbilled.
    """
    return frozenset(
        known.row
        for shard in run.shards
        if shard.is_doubled and shard.state is ShardState.COLLECTED
        for known in _answers(shard, store, layout)
    )


def _answers(shard: Shard, store: ObjectStore, layout: Layout) -> Iterator[Known]:
    info = spool.staged(store, layout.answers(shard.index))
    for line in plain_lines(store.read(info)):
        found = tail_of(line)
        yield Known(found.row, shard.index, found.kind, found.tail)


def _unbilled(shard: Shard, code: bytes, store: ObjectStore, layout: Layout) -> Iterator[Known]:
    for row in unbilled_rows(shard, store, layout):
        yield Known(row, shard.index, b"", code)


def unbilled_rows(shard: Shard, store: ObjectStore, layout: Layout) -> Iterator[int]:
    """The rows of a collected shard that were certainly not billed, ascending."""
    info = spool.staged(store, layout.unbilled(shard.index))
    held = b""
    for chunk in store.read(info):
        data = held + chunk
        usable = len(data) - len(data) % 8
        yield from unpack_rows(data[:usable])
        held = data[usable:]

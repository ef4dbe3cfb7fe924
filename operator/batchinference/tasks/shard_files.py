"""Building shards on local disk and storing them in order. Shared by staging and pooling.

Owns the files of a shard that is being filled, the last shard's rebalancing, and the moment when a
shard is finished: only when the one after it is sure not to need records of it. What records are,
and where they come from, is the caller's.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from batchinference.core.sharding import Cutter, records_to_move
from batchinference.errors import Permanent
from batchinference.model.batch import Limits
from batchinference.model.run import MAX_SHARDS, Shard, ShardState
from batchinference.model.staging import Cursor
from batchinference.model.status import Reason
from batchinference.ports import ObjectStore, ObjectWriter
from batchinference.records import index
from batchinference.tasks.layout import Layout
from batchinference.tasks.spool import chunks, store_file


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of an input, good and bad.

    Attributes:
        data: the encoded good records, each with its newline.
        sizes, rows, tokens: of each good record; the size with the newline.
        outputs: the most tokens of each one's answer, 0 where nothing bounds it; empty: of none.
        first_row, table: the row table's lines of all rows; both unused when pooling.
        cursor_at: the state of the pass right before the n-th good record.
    """

    data: bytes
    sizes: Sequence[int]
    rows: Sequence[int]
    tokens: Sequence[int]
    first_row: int = 0
    table: Sequence[bytes] = ()
    cursor_at: Callable[[int], Cursor] | None = None
    outputs: Sequence[int] = ()

    def entry_of(self, record: int) -> int:
        """Which line of the table the n-th good record has."""
        return self.rows[record] - self.first_row if self.table else 0


@dataclass(slots=True)
class _Mark:
    """Where the files of a shard are cut when a record and all after it move to the next one."""

    cursor: Cursor | None
    records: int
    size: int
    tokens: int
    line_at: int
    table_at: int
    row: int


@dataclass(slots=True)
class _Files:
    """One shard being filled.

    Its lines go to a local file, or straight to the store where nothing will move out of it.
    """

    number: int
    lines: IO[bytes] | None
    writer: ObjectWriter | None
    entries: IO[bytes]
    table: IO[bytes]
    marks: deque[_Mark]
    records: int = 0
    size: int = 0
    tokens: int = 0
    output: int = 0
    is_bounded: bool = True
    longest: int = 0
    table_size: int = 0
    first_row: int = 0
    last_row: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def append(self, piece: Piece, start: int, end: int, entry: int, entry_end: int) -> None:
        """Add the good records `start:end` and the table's lines `entry:entry_end`."""
        self._mark(piece, start, end, entry)
        if entry_end > entry:
            text = b"\n".join(piece.table[entry:entry_end]) + b"\n"
            self.table.write(text)
            self.table_size += len(text)
        if end == start:
            return
        sizes, rows, tokens = piece.sizes, piece.rows, piece.tokens
        outputs = piece.outputs or [0] * len(sizes)
        data: bytes | memoryview = piece.data
        if end - start < len(sizes):
            before = sum(sizes[:start])
            sizes, rows, tokens = sizes[start:end], rows[start:end], tokens[start:end]
            outputs = outputs[start:end]
            data = memoryview(piece.data)[before : before + sum(sizes)]
        if self.lines is not None:
            self.lines.write(data)
        else:
            assert self.writer is not None
            self.writer.write(bytes(data))
        self.digest.update(data)
        self.entries.write(index.pack(rows, sizes, tokens, outputs, self.size))
        if not self.records:
            self.first_row = rows[0]
        self.last_row = rows[-1]
        self.records += end - start
        self.size += len(data)
        self.tokens += sum(tokens)
        self.output += sum(outputs)
        self.is_bounded = self.is_bounded and all(outputs)
        self.longest = max([self.longest, *tokens])

    def _mark(self, piece: Piece, start: int, end: int, entry: int) -> None:
        """Remember the places of the last few records."""
        if not self.marks.maxlen:
            return
        first = max(start, end - self.marks.maxlen)
        line_at = self.size + sum(piece.sizes[start:first])
        at = entry
        table_at = self.table_size
        for n in range(first, end):
            own = piece.entry_of(n)
            table_at += sum(map(len, piece.table[at:own])) + max(own - at, 0)
            at = max(own, at)
            size, tokens = piece.sizes[n], piece.tokens[n]
            cursor = piece.cursor_at(n) if piece.cursor_at else None
            records = self.records + n - start
            self.marks.append(
                _Mark(cursor, records, size, tokens, line_at, table_at, piece.rows[n])
            )
            line_at += size

    def shard(self, attempt: int) -> Shard:
        """What the journal says of it."""
        return Shard(
            index=self.number,
            state=ShardState.STAGED,
            rows=self.records,
            first_row=self.first_row,
            last_row=self.last_row,
            size=self.size,
            tokens=self.tokens,
            sha256=self.digest.hexdigest(),
            attempt=attempt,
            output=self.output if self.is_bounded else None,
            longest=self.longest,
        )

    def store(self, store: ObjectStore, layout: Layout) -> None:
        """Make the lines and the index visible."""
        if self.writer is not None:
            self.writer.commit()
            self.writer = None
        elif self.lines is not None:
            store_file(store, layout.shard(self.number), self.lines)
        store_file(store, layout.index(self.number), self.entries)

    def close(self) -> None:
        """Remove the files; more than once is fine."""
        if self.writer is not None:
            self.writer.abort()
            self.writer = None
        for file in (self.lines, self.entries, self.table):
            if file is not None:
                file.close()
                Path(file.name).unlink(missing_ok=True)


Finish = Callable[[Shard, Cursor | None], None]


class ShardBuilder:
    """Distributes records over shards, stores each when it is finished, and says so. Use as a
    context manager: it holds open files.

    Args:
        first: the index of the first shard.
        most: how many shards there may be in all.
        on_finished: called in order, after the shard's files are stored; the cursor is the state
            of the pass right after the shard.
    """

    def __init__(
        self,
        limits: Limits,
        store: ObjectStore,
        layout: Layout,
        folder: Path,
        on_finished: Finish,
        *,
        first: int = 0,
        most: int = MAX_SHARDS,
        attempt: int = 1,
        has_table: bool = True,
    ) -> None:
        self._limits = limits
        self._store = store
        self._layout = layout
        self._folder = folder
        self._on_finished = on_finished
        self._most = most
        self._attempt = attempt
        self._has_table = has_table
        self._cutter = Cutter(limits)
        self._keep = max(limits.min_records_per_batch - 1, 0)
        self._full: _Files | None = None
        self._full_cursor: Cursor | None = None
        self._open = self._new(first)
        self.finished = first

    def _new(self, number: int) -> _Files:
        def open_file(kind: str) -> IO[bytes]:
            return (self._folder / f"{number:05d}.{kind}").open("w+b")

        # A first shard that stays empty must not become visible: the writer is opened late.
        lines = open_file("jsonl") if self._keep else None
        marks: deque[_Mark] = deque(maxlen=self._keep)
        return _Files(number, lines, None, open_file("idx"), open_file("rows"), marks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for files in (self._full, self._open):
            if files is not None:
                files.close()

    def add(self, piece: Piece) -> None:
        """Take more records.

        Raises:
            TooManyShards: another shard would be needed than there may be.
        """
        sizes = piece.sizes
        done = entry = 0
        while True:
            rest = (sizes, piece.tokens) if not done else (sizes[done:], piece.tokens[done:])
            end = done + self._cutter.take(*rest)
            is_cut = end < len(sizes)
            entry_end = piece.entry_of(end) if is_cut else len(piece.table)
            if self._open.lines is None and self._open.writer is None and end > done:
                self._open.writer = self._store.writer(self._layout.shard(self._open.number))
            self._open.append(piece, done, end, entry, entry_end)
            if self._full and self._open.records >= self._limits.min_records_per_batch:
                self._store_full()
            if not is_cut:
                return
            self._cut(piece.cursor_at(end) if piece.cursor_at else None)
            done, entry = end, entry_end

    def _cut(self, cursor: Cursor | None) -> None:
        if self._full:
            self._store_full()
        number = self._open.number + 1
        if number >= self._most:
            raise TooManyShards(self._most)
        self._full, self._full_cursor = self._open, cursor
        self._open = self._new(number)
        self._cutter.open()
        if not self._keep:
            self._store_full()

    def finish(self, cursor: Cursor | None) -> None:
        """No more records: `cursor` is the state of the pass at its end."""
        if self._full:
            marks = self._full.marks
            moved = records_to_move(
                self._cutter,
                self._full.records,
                [m.size for m in marks],
                [m.tokens for m in marks],
                self._limits,
            )
            if moved:
                mark = marks[-moved]
                _move(self._full, mark, self._open)
                self._full_cursor = mark.cursor
            self._store_full()
        self._store_shard(self._open, cursor)

    def _store_full(self) -> None:
        assert self._full is not None
        self._store_shard(self._full, self._full_cursor)
        self._full = None

    def _store_shard(self, files: _Files, cursor: Cursor | None) -> None:
        if self._has_table and (files.records or (files.table_size and not files.number)):
            store_file(self._store, self._layout.rows(files.number), files.table)
        if files.records:
            files.store(self._store, self._layout)
            self.finished = files.number + 1
            self._on_finished(files.shard(self._attempt), cursor)
        files.close()


class TooManyShards(Permanent):
    """An input needs more shards than a journal can hold."""

    def __init__(self, most: int) -> None:
        super().__init__(Reason.TOO_LARGE, f"The input needs more than {most} batches")


def _move(source: _Files, mark: _Mark, target: _Files) -> None:
    """Move the records from `mark` on to the front of the next shard."""
    assert source.lines is not None
    assert target.lines is not None
    _prepend(target.lines, source.lines, mark.line_at)
    _prepend(target.table, source.table, mark.table_at)
    moved_size = source.size - mark.line_at
    moved_table = source.table_size - mark.table_at
    source.entries.flush()
    target.entries.flush()
    entries_at = mark.records * index.ENTRY_BYTES
    moved = [*index.entries(chunks(source.entries, entries_at))]
    own = [*index.entries(chunks(target.entries))]
    target.entries.seek(0)
    for entries, shift in ((moved, -mark.line_at), (own, moved_size)):
        rows = [e.row for e in entries]
        sizes, tokens = [e.size for e in entries], [e.tokens for e in entries]
        outputs = [e.output for e in entries]
        target.entries.write(index.pack(rows, sizes, tokens, outputs, entries[0].offset + shift))
    target.entries.truncate()
    source.entries.truncate(entries_at)
    moved_tokens = sum(e.tokens for e in moved)
    source.output -= sum(e.output for e in moved)

    source.records = mark.records
    source.size = mark.line_at
    source.table_size = mark.table_at
    source.tokens -= moved_tokens
    source.last_row = _last_row(source)
    source.digest = _digest(source.lines)
    target.records += len(moved)
    target.size += moved_size
    target.table_size += moved_table
    target.tokens += moved_tokens
    target.output += sum(e.output for e in moved)
    target.is_bounded = target.is_bounded and all(e.output for e in moved)
    target.longest = max([target.longest, *(e.tokens for e in moved)])
    target.first_row = mark.row
    target.digest = _digest(target.lines)


def _prepend(target: IO[bytes], source: IO[bytes], start: int) -> None:
    """Cut the source at `start` and put what was cut off in front of the target."""
    own_end = target.seek(0, 2)
    source.flush()
    joined = Path(f"{target.name}.joined")
    with joined.open("w+b") as both:
        for chunk in chunks(source, start):
            both.write(chunk)
        for chunk in chunks(target, 0, own_end):
            both.write(chunk)
        target.seek(0)
        target.truncate()
        for chunk in chunks(both):
            target.write(chunk)
    joined.unlink()
    source.truncate(start)


def _last_row(files: _Files) -> int:
    start = (files.records - 1) * index.ENTRY_BYTES
    return next(index.entries(chunks(files.entries, start))).row


def _digest(file: IO[bytes]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for chunk in chunks(file):
        digest.update(chunk)
    return digest

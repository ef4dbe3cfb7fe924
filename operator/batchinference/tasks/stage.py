"""STAGE: one streaming pass over the input, before anything is paid.

Reads, checks, numbers, encodes and cuts; what it leaves in staging is in `layout`. The same input
gives the same bytes, always: also when the pass was cut short after any shard and resumed. It can
be resumed because a checkpoint says which byte of the input the next shard starts at; the ids seen
before are read back from the row table.
"""
# ruff: noqa: TRY301 - one handler numbers every kind of bad record; a function would cost a call

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import msgspec

from batchinference.core.sharding import shards_needed
from batchinference.errors import Permanent, Stalled
from batchinference.model.run import MAX_SHARDS, Run, Shard
from batchinference.model.staging import BadRecord, Cursor, Staged
from batchinference.model.status import Reason
from batchinference.model.work import Checkpoint, StageDone
from batchinference.ports import ObjectInfo, SourceChanged
from batchinference.records import codes
from batchinference.records.duplicates import SeenIDs
from batchinference.records.lines import Block, Oversized, blocks, plain_lines
from batchinference.records.refusal import BadLine
from batchinference.records.request import (
    BEHIND_BODY,
)
from batchinference.records.rowtable import SAME_RECORD, bad_entry, bad_row
from batchinference.records.tokens import estimate, estimates
from batchinference.records.wire import MAX_ROWS
from batchinference.tasks import spool
from batchinference.tasks.encoder import Encoder
from batchinference.tasks.layout import layout
from batchinference.tasks.shard_files import Piece, ShardBuilder, TooManyShards
from batchinference.tasks.sources import snapshot
from batchinference.tasks.workbench import Report, Workbench

FIRST_BAD = 10
_SLACK_BYTES = 64 << 10
"""How much longer than the encoded request an input line may be, for blanks and unknown keys."""


_ROW_BYTES = 32 << 20
"""How long a row may be, of which most may be left out of the request."""


class StageEnd(msgspec.Struct, rename="camel"):
    """`stage.json`: what the pass came to; see `model.staging.Staged`."""

    rows: int
    bad: int
    segments: int
    fingerprint: str
    several: int = 0


def stage(run: Run, bench: Workbench, report: Report) -> StageDone:
    """Make the pass, or go on with it where the run's cursor says.

    Raises:
        SourceChanged: the input is not what it was when the pass began.
        Permanent: `InputTooLarge`.
        Stalled, Waiting, Retry.
    """
    if run.may_have_more and run.cursor is None:
        _keep_what_was_sent(run, bench)
    with spool.folder(bench.spool, run) as folder, SeenIDs(folder) as seen:
        return _Pass(run, bench, report, folder, seen).make()


def _keep_what_was_sent(run: Run, bench: Workbench) -> None:
    """What an earlier life of the run has staged is not overwritten with something else: its
    answers can be told by it alone, once its journal is back.
    """
    data = bench.staging.get(layout(run).stage)
    if data is None:
        return
    staged = msgspec.json.decode(data, type=StageEnd)
    now = snapshot(bench.source.objects())
    if staged.fingerprint != now.fingerprint:
        raise Stalled(
            Reason.JOURNAL_LOST,
            f"The journal of this run is lost, and {now.source} is no longer what the run was made "
            "of: what it may have at the provider can't be matched. Nothing is submitted. Restore "
            "the journal from a backup, or the input as it was; or create the job with another "
            "`runID` and `output`",
        )


@dataclass(slots=True)
class _State:
    """What the pass knows at one point of the input, besides the shards."""

    row: int = 0
    bad: int = 0
    line: int = 0
    several: int = 0
    first_bad: list[BadRecord] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Checked:
    """A block of lines after the checks: the good records, and a table line for every row.

    Attributes:
        read: how many lines the block has.
        at: which line of the block each good record is; more than one may be of the same line.
        bad_rows: the rows that are never sent.
        skipped: rows of the first line that an earlier shard has.
        outputs: the most tokens of each good record's answer, 0 where nothing bounds it.
    """

    read: int
    data: bytes
    sizes: Sequence[int]
    rows: Sequence[int]
    tokens: Sequence[int]
    table: Sequence[bytes]
    at: Sequence[int]
    bad_rows: Sequence[int]
    skipped: int = 0
    outputs: Sequence[int] = ()


class _Pass:
    def __init__(
        self, run: Run, bench: Workbench, report: Report, folder: Path, seen: SeenIDs
    ) -> None:
        self._run = run
        self._bench = bench
        self._report = report
        self._seen = seen
        self._layout = layout(run)
        self._objects = bench.source.objects()
        self._snapshot = snapshot(self._objects)
        self._shards = list(run.shards) if run.cursor else []
        self._state = _State()
        self._skipped = 0
        self._encode = Encoder(run, bench.data, bench.template)
        limits = run.limits
        # With the newline, which a record that fills a batch alone has too.
        self._max_record = min(limits.max_bytes_per_record + 1, limits.max_bytes_per_batch)
        self._builder = ShardBuilder(
            limits,
            bench.staging,
            self._layout,
            folder,
            self._shard_finished,
            first=len(self._shards),
        )

    def make(self) -> StageDone:
        with self._builder:
            return self._make()

    def _make(self) -> StageDone:
        cursor = self._resumed()
        state = self._state
        before = sum(info.size for info in self._objects[: cursor.object_index])
        for number in range(cursor.object_index, len(self._objects)):
            info = self._objects[number]
            is_first = number == cursor.object_index
            start = cursor.offset if is_first else 0
            state.line = cursor.line if is_first else 0
            chunks = self._bench.source.read(info, start)
            longest = _ROW_BYTES if self._encode.has_rows else self._max_record + _SLACK_BYTES
            for block in blocks(chunks, longest, start):
                try:
                    self._builder.add(self._piece(block, number, info))
                except TooManyShards:
                    raise self._too_large(before + block.offset) from None
            before += info.size
        if snapshot(self._bench.source.objects()).fingerprint != self._snapshot.fingerprint:
            raise SourceChanged(f"{self._snapshot.source} changed while it was read")
        self._builder.finish(self._cursor_at_end())
        return self._done()

    # ------------------------------------------------------------ resuming

    def _resumed(self) -> Cursor:
        """Where to start; brings the state to that point."""
        cursor = self._run.cursor
        if cursor is None:
            return Cursor(0, 0, 0, 0, 0)
        if cursor.fingerprint != self._snapshot.fingerprint:
            raise SourceChanged(f"{self._snapshot.source} changed while staging was interrupted")
        state = self._state
        state.row, state.bad = cursor.row, cursor.bad
        self._skipped = cursor.item
        store = self._bench.staging
        rows = 0
        for shard in self._shards:
            info = spool.staged(store, self._layout.rows(shard.index))
            for entry in plain_lines(store.read(info)):
                rows += 1
                bad = bad_row(entry)
                if entry == SAME_RECORD:
                    state.several += 1
                elif bad is None:
                    self._seen.add(entry)
                elif len(state.first_bad) < FIRST_BAD:
                    state.first_bad.append(bad.bad)
        if rows != cursor.row:
            raise Stalled(
                Reason.STAGING_UNAVAILABLE,
                f"The row table in {self._layout.prefix} has {rows} rows, not {cursor.row}",
            )
        return cursor

    # ------------------------------------------------------------ the pass

    def _piece(self, block: Block, number: int, info: ObjectInfo) -> Piece:
        """Check and encode a block of lines. The hot loop of the whole product: what is written
        the usual way is done in bulk, and one by one only where something is the matter.
        """
        state = self._state
        if state.row + len(block.data) >= MAX_ROWS:  # a row has more bytes than one
            raise Permanent(Reason.TOO_LARGE, f"The input has more than {MAX_ROWS} records")
        usual = None
        if block.data and self._encode.takes_many:
            usual = self._encode.reader.read_usual(block.data, block.is_ascii)
        repeated: frozenset[int] | None = None
        if usual is not None and (encoded := self._encode.many(state.row, usual)):
            data, sizes = encoded
            if max(sizes) <= self._max_record:
                repeated = frozenset(self._seen.add_all(usual.ids))
                if not repeated:
                    count = len(sizes)
                    rows, at = range(state.row, state.row + count), range(count)
                    tokens = estimates(usual.front, usual.rests, len(BEHIND_BODY))
                    checked = _Checked(
                        count, data, sizes, rows, tokens, usual.ids, at, (), 0, usual.outputs
                    )
                    return self._whole_piece(checked, block, number)
        return self._whole_piece(self._check_singly(block, info, repeated), block, number)

    def _check_singly(
        self, block: Block, info: ObjectInfo, repeated: frozenset[int] | None
    ) -> _Checked:
        """Line by line. `repeated` are the lines whose ids were seen before, where that is known
        already: then all ids are counted as seen.
        """
        state = self._state
        row, max_record, is_ascii = state.row, self._max_record - 1, block.is_ascii
        read, encode, is_new = self._encode.read, self._encode.lines, self._seen.add
        is_row = self._bench.source.is_table(info)
        lines: list[bytes] = []
        rows: list[int] = []
        tokens: list[int] = []
        outputs: list[int] = []
        table: list[bytes] = []
        at: list[int] = []
        bad_rows: list[int] = []
        skipped = skipped_first = self._skipped
        self._skipped = 0
        for position, line in enumerate(block.lines):
            try:
                if isinstance(line, Oversized):
                    raise BadLine(
                        codes.LINE_TOO_LONG,
                        f"the line has {len(line)} bytes; a record may have {max_record}",
                    )
                request = read(line, is_ascii, row - state.several)
                custom_id = request.custom_id
                encoded = encode(row - skipped, request)
                longest = max(map(len, encoded))
                if longest > max_record:
                    raise BadLine(
                        codes.LINE_TOO_LONG,
                        f"the request has {longest} bytes; a record may have {max_record}",
                        custom_id,
                    )
                if (custom_id != b"null" and not skipped) and (
                    position in repeated if repeated is not None else not is_new(custom_id)
                ):
                    raise BadLine(
                        codes.DUPLICATE_ID, "an earlier record has the same `custom_id`", custom_id
                    )
            except BadLine as bad:
                if not len(line) or (isinstance(line, bytes) and not line.strip()):
                    continue  # a blank line is no record
                number = state.line + position + 1
                found = BadRecord(number, bad.code, bad.message, info.uri, is_row)
                table.append(bad_entry(bad.custom_id, found))
                bad_rows.append(row)
                if len(state.first_bad) < FIRST_BAD:
                    state.first_bad.append(found)
                row += 1
                continue
            if len(encoded) == 1:
                tokens.append(estimate(request.body))
            else:
                tokens += map(estimate, encoded[skipped:])
            entries = [custom_id, *[SAME_RECORD] * (len(encoded) - 1)][skipped:]
            state.several += len(entries) - (not skipped)
            table += entries
            lines += encoded[skipped:]
            rows += range(row, row + len(entries))
            outputs += [request.output] * len(entries)
            at += [position] * len(entries)
            row += len(entries)
            skipped = 0
        sizes = [len(line) + 1 for line in lines]
        data = b"\n".join([*lines, b""])
        read_lines = len(block.lines)
        return _Checked(
            read_lines, data, sizes, rows, tokens, table, at, bad_rows, skipped_first, outputs
        )

    def _whole_piece(self, checked: _Checked, block: Block, number: int) -> Piece:
        """The piece for the shards; moves the state behind the block."""
        state = self._state
        first_row, first_line, bad_before = state.row, state.line, state.bad
        state.row += len(checked.table)
        state.line += checked.read
        state.bad += len(checked.bad_rows)
        starts: list[int] = []

        def cursor_at(record: int) -> Cursor:
            if not starts:
                starts.extend(accumulate(len(line) + 1 for line in block.lines))
            position, row = checked.at[record], checked.rows[record]
            offset = block.offset + (starts[position - 1] if position else 0)
            bad = bad_before + bisect_left(checked.bad_rows, row)
            item = record - bisect_left(checked.at, position) + (0 if position else checked.skipped)
            return self._cursor(number, offset, first_line + position, row, bad, item)

        return Piece(
            checked.data,
            checked.sizes,
            checked.rows,
            checked.tokens,
            first_row,
            checked.table,
            cursor_at,
            checked.outputs,
        )

    def _cursor(
        self, number: int, offset: int, line: int, row: int, bad: int, item: int = 0
    ) -> Cursor:
        native = bool(self._encode.native)
        return Cursor(number, offset, line, row, bad, self._snapshot.fingerprint, native, item)

    def _cursor_at_end(self) -> Cursor:
        state = self._state
        return self._cursor(len(self._objects), 0, 0, state.row, state.bad)

    # ------------------------------------------------------------ what comes of it

    def _shard_finished(self, shard: Shard, cursor: Cursor | None) -> None:
        assert cursor is not None
        self._shards.append(shard)
        first_bad = tuple(self._state.first_bad[: cursor.bad])
        self._report(Checkpoint(shard, cursor, first_bad))

    def _done(self) -> StageDone:
        state = self._state
        end = StageEnd(
            state.row,
            state.bad,
            max(len(self._shards), 1),
            self._snapshot.fingerprint,
            state.several,
        )
        self._bench.staging.put(self._layout.stage, msgspec.json.encode(end))
        staged = Staged(
            rows=state.row,
            bad=state.bad,
            size=sum(shard.size for shard in self._shards),
            tokens=sum(shard.tokens for shard in self._shards),
            first_bad=tuple(state.first_bad),
            native=bool(self._encode.native),
            several=state.several,
        )
        return StageDone(staged, self._snapshot)

    def _too_large(self, read: int) -> Permanent:
        size = self._snapshot.size
        needed = shards_needed(MAX_SHARDS, read / size if size else 1.0)
        return Permanent(
            Reason.TOO_LARGE,
            f"The input would make about {needed} batches; a run has at most {MAX_SHARDS}. "
            "Split it over several jobs",
        )

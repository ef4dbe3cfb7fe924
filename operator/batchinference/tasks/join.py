"""The records of one shard, joined by row with what result files say of them.

Owns which of two lines on one record counts. Knows nothing of providers, of where files come from,
and of what it means that no line speaks of a record.

Memory: a few integers per record. The bodies go through a local file and an index over it.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from typing import IO

from batchinference.model.run import Collected
from batchinference.ports import ResultLine
from batchinference.records import codes, tails
from batchinference.records.index import Rows
from batchinference.records.result import answer_tail, error_tail
from batchinference.records.tails import AROUND_TAIL, tail_line
from batchinference.records.wire import row_of

ABSENT, UNBILLED, LOST, FAILED, ANSWERED = range(5)
"""What is known of a row, each worth more than those before: a better line replaces a worse one,
an equal one is a duplicate and is ignored."""

KINDS = {LOST: tails.LOST, FAILED: tails.FAILED, ANSWERED: tails.ANSWERED}
STATES = {kind: state for state, kind in KINDS.items()}

_NOT_PROCESSED, _PROCESSED = 1, 2
"""What a batch's lines say of a row, beside nothing."""

_OWN_ID = re.compile(rb'"(?:custom_id|recordId)"\s*:\s*"(r\d{1,10})"')
"""A line's id by its name: a text that it repeats may hold something that looks like one."""
_FLUSH_BYTES = 1 << 20


class Join:
    """Results by row: the bodies in a file, where they are in arrays.

    Attributes:
        foreign, duplicates: lines that were ignored.
        broken: lines without a legible id.
        processed: rows of which lines of this batch say that they were processed.
    """

    def __init__(self, rows: Rows, file: IO[bytes]) -> None:
        self.rows = rows
        self._position = rows.position
        self._file = file
        self._held: list[bytes] = []
        self._size = self._written = 0
        self._state = bytearray(len(rows))
        self._spoken = bytearray(len(rows))
        self._offsets = array("Q", bytes(8 * len(rows)))
        self._lengths = array("Q", bytes(8 * len(rows)))
        self.foreign = self.duplicates = self.broken = self.processed = 0
        self.input_tokens = self.output_tokens = 0

    def begin_batch(self) -> None:
        """No line of this batch was read so far."""
        self._spoken = bytearray(len(self.rows))
        self.processed = 0

    def add(self, line: bytes, found: ResultLine) -> None:
        """Take one line of a result file."""
        if not found.wire_id:
            if not line.isspace():
                self._salvage(line)
            return
        row = row_of(found.wire_id)
        at = -1 if row is None else self._position(row)
        if row is None or at < 0:
            self.foreign += 1
            return
        if not found.error_code:
            tail = answer_tail(row, found.status_code, found.request_id, found.body)
            if not _is_legible(tail):
                self._lose(row)
            elif self._put(at, row, ANSWERED, tail):
                self.input_tokens += found.input_tokens
                self.output_tokens += found.output_tokens
        elif found.unbilled:
            self._put(at, row, UNBILLED, b"")
        else:
            self._put(at, row, FAILED, _error(row, found))

    def _salvage(self, line: bytes) -> None:
        """A line that can't be read loses one row's answer: the one whose id it shows, if any."""
        ids = {row_of(name.decode()) for name in _OWN_ID.findall(line)}
        row = ids.pop() if len(ids) == 1 else None
        at = self._position(row) if row is not None else -1
        if row is None or at < 0 or self._spoken[at]:
            self.broken += 1
            return
        self._lose(row)

    def _lose(self, row: int) -> None:
        message = (
            "The record was processed and maybe billed, but its line in the result file can't be "
            "read; it is not sent again"
        )
        self.put(row, LOST, error_tail(row, codes.ANSWER_LOST, message))

    def put(self, row: int, state: int, tail: bytes) -> bool:
        """Keep a verdict, unless one as good is known. Whether it was kept."""
        return self._put(self._position(row), row, state, tail)

    def _put(self, at: int, row: int, state: int, tail: bytes) -> bool:
        if state >= LOST and self._spoken[at] != _PROCESSED:
            self._spoken[at] = _PROCESSED
            self.processed += 1
        elif not self._spoken[at]:
            self._spoken[at] = _NOT_PROCESSED
        if self._state[at] >= state:
            self.duplicates += 1
            return False
        self._state[at] = state
        if state >= LOST:
            self._held += tail_line(KINDS[state], row, tail)
            self._offsets[at] = start = self._size
            self._lengths[at] = length = len(tail) + AROUND_TAIL
            self._size = end = start + length
            if end - self._written >= _FLUSH_BYTES:
                self._flush()
        return True

    def _flush(self) -> None:
        self._file.write(b"".join(self._held))
        self._held.clear()
        self._written = self._size

    def all_unspoken_are_unbilled(self) -> None:
        """Rows of which this batch has no line, unless another batch has something of them."""
        for at, spoken in enumerate(self._spoken):
            if not spoken and self._state[at] == ABSENT:
                self._state[at] = UNBILLED

    def unspoken_rows(self, below: int) -> Iterator[int]:
        """Rows of which this batch has no line, and no batch anything as good as that."""
        for at, spoken in enumerate(self._spoken):
            if not spoken and self._state[at] < below:
                yield self.rows[at]

    def rows_called_unbilled(self) -> Iterator[int]:
        """Rows that lines of this batch call so, and no batch has anything better of."""
        for at, spoken in enumerate(self._spoken):
            if spoken == _NOT_PROCESSED and self._state[at] == UNBILLED:
                yield self.rows[at]

    def unbilled_rows(self) -> Iterator[int]:
        """Rows that were certainly not billed."""
        for at, known in enumerate(self._state):
            if known == UNBILLED:
                yield self.rows[at]

    def in_row_order(self) -> Iterator[bytes]:
        """The lines of all rows but the unbilled ones, in pieces: lines that came one behind the
        other are read together.
        """
        self._flush()
        self._file.flush()
        handle = self._file.fileno()
        start = end = 0
        for state, offset, length in zip(self._state, self._offsets, self._lengths, strict=True):
            if state < LOST:
                continue
            if offset != end or end - start >= _FLUSH_BYTES:
                if end > start:
                    yield os.pread(handle, end - start, start)
                start = offset
            end = offset + length
        if end > start:
            yield os.pread(handle, end - start, start)

    def collected(self, code: str) -> Collected:
        """The counts, from the rows; `code` is that of the unbilled ones."""
        unbilled = self._state.count(UNBILLED)
        return Collected(
            answered=self._state.count(ANSWERED),
            failed=self._state.count(FAILED),
            unbilled=unbilled,
            lost=self._state.count(LOST),
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            unbilled_code=code if unbilled else "",
            ignored=self.foreign + self.duplicates + self.broken,
        )


def _error(row: int, found: ResultLine) -> bytes:
    code = found.error_code or codes.PROVIDER_ERROR
    tail = error_tail(
        row,
        code,
        found.error_message,
        status_code=found.status_code,
        request_id=found.request_id,
        body=found.body,
    )
    return tail if _is_legible(tail) else error_tail(row, code, found.error_message)


def _is_legible(tail: bytes) -> bool:
    """Whether bytes that were passed on untouched are one line of UTF-8, as they should be."""
    if not tail.isascii():
        try:
            tail.decode()
        except UnicodeDecodeError:
            return False
    return b"\n" not in tail


def batched(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces, put together until they have about a megabyte."""
    held: list[bytes] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= _FLUSH_BYTES:
            yield b"".join(held)
            held.clear()
            size = 0
    if held:
        yield b"".join(held)

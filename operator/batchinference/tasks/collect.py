"""COLLECT: bring one ended shard's answers into staging, in row order, each record accounted for.

Usually a shard has one batch. Where late ones came to light (`core.late`), the oldest has the first
word on each record, and a better answer of another replaces a worse one.

Classes follow protocol 6 to the letter: unbilled is only what a line says is unbilled, or what is
absent from completely read files of a batch that may leave records unprocessed. Everything else
that has no answer is `AnswerLost`, and is never sent again.

Memory: a few integers per record. The bodies go through a local file and an index over it.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from typing import IO

from batchinference.errors import Permanent
from batchinference.model.batch import BatchState
from batchinference.model.run import Collected, Run, Shard, Submission, SubmissionState
from batchinference.model.work import ShardCollected
from batchinference.ports import ResultLine
from batchinference.records import codes
from batchinference.records.index import Rows, pack_rows
from batchinference.records.lines import plain_lines
from batchinference.records.result import answer_tail, error_tail
from batchinference.records.tails import ANSWERED, FAILED, LOST, tail_line, tail_of
from batchinference.records.wire import row_of
from batchinference.tasks import spool
from batchinference.tasks.layout import Layout, layout
from batchinference.tasks.merge import unbilled_rows
from batchinference.tasks.workbench import ProgressReports, Report, Workbench

_ABSENT, _UNBILLED, _LOST, _FAILED, _ANSWERED = range(5)
"""What is known of a row, each worth more than those before: a better line replaces a worse one,
an equal one is a duplicate and is ignored."""

_KINDS = {_LOST: LOST, _FAILED: FAILED, _ANSWERED: ANSWERED}
_STATES = {kind: state for state, kind in _KINDS.items()}

_UNBILLED_CODES = {
    BatchState.EXPIRED: codes.BATCH_EXPIRED,
    BatchState.CANCELLED: codes.BATCH_CANCELLED,
}

_SOME_ID = re.compile(rb'"(r\d{1,10})"')
_FLUSH_BYTES = 1 << 20
_PROGRESS_MASK = 0xFF  # look at the clock every 256 lines


def collect(run: Run, shard: Shard, bench: Workbench, report: Report) -> ShardCollected:
    """Collect every batch of the shard that was not collected before.

    Raises:
        Permanent: there is nothing to collect.
        Stalled, Waiting, Retry.
    """
    submission = shard.last
    if submission is None:
        raise Permanent(codes.NOT_SUBMITTED, f"Shard {shard.index} was never submitted")
    where = layout(run)
    rows = Rows(bench.staging.read(spool.staged(bench.staging, where.index(shard.index))))
    with spool.folder(bench.spool, run) as folder, (folder / "answers").open("w+b") as file:
        join = _Join(rows, file)
        if shard.collected is not None:
            _take_over(join, shard, bench, where)
        for batch in _batches(shard):
            join.begin_batch()
            if _is_refused(batch):
                _refuse(join, batch)
            else:
                _read(join, batch, bench, report)
        lines = join.in_row_order()
        writer = bench.staging.writer(where.answers(shard.index))
        try:
            for data in _batched(lines):
                writer.write(data)
            writer.commit()
        except BaseException:
            writer.abort()
            raise
        bench.staging.put(where.unbilled(shard.index), pack_rows(join.unbilled_rows()))
        return ShardCollected(join.collected(_code(shard)), late=len(shard.late))


def _batches(shard: Shard) -> list[Submission]:
    """What is to be read, the oldest first."""
    found = [s for s in shard.late if not s.collected and s.state is SubmissionState.ENDED]
    last = shard.last
    if last is not None and shard.collected is None and (_was_sent(last) or not shard.late):
        found.append(last)
    return sorted(found, key=lambda s: (s.accepted_at or s.claimed_at, s.batch_id))


def _was_sent(submission: Submission) -> bool:
    """Whether it has a say: not one that was given up, or put back to be tried again."""
    has_verdict = submission.failure is not None
    is_open = submission.state in {SubmissionState.FENCED, SubmissionState.REFUSED}
    return has_verdict or not is_open


def _take_over(join: _Join, shard: Shard, bench: Workbench, where: Layout) -> None:
    """Begin with what was collected before: the provider may not have it any more."""
    before, answers = shard.collected, where.answers(shard.index)
    assert before is not None
    for line in plain_lines(bench.staging.read(spool.staged(bench.staging, answers))):
        found = tail_of(line)
        join.put(found.row, _STATES[found.kind], found.tail)
    for row in unbilled_rows(shard, bench.staging, where):
        join.put(row, _UNBILLED, b"")
    join.input_tokens, join.output_tokens = before.input_tokens, before.output_tokens
    join.duplicates += before.ignored


def _code(shard: Shard) -> str:
    """Why records were not billed, should any not have been."""
    codes_of = [_UNBILLED_CODES.get(s.batch_state) for s in reversed(shard.made) if s.batch_state]
    return next(filter(None, codes_of), codes.NOT_PROCESSED)


def _is_refused(submission: Submission) -> bool:
    """Whether the provider certainly processed nothing of it, as a whole."""
    return submission.state in {SubmissionState.REFUSED, SubmissionState.VOID} or (
        submission.batch_state is BatchState.FAILED
        and submission.failure is not None
        and submission.failure.nothing_processed
        and not submission.files
    )


def _refuse(join: _Join, submission: Submission) -> None:
    """One verdict for all of its records, without asking the provider."""
    failure = submission.failure
    if failure is not None and (failure.quota or failure.transient):
        join.all_unspoken_are_unbilled()
        return
    said = f"{failure.code}: {failure.message}" if failure and failure.code else ""
    said = said or (failure.message if failure else "")
    message = f"The provider failed the whole batch: {said}" if said else "The whole batch failed"
    for row in join.unspoken_rows(below=_FAILED):
        join.put(row, _FAILED, error_tail(row, codes.BATCH_FAILED, message))


def _read(join: _Join, submission: Submission, bench: Workbench, report: Report) -> None:
    """Read every result file, then judge the rows that no line spoke of."""
    progress = ProgressReports(report, bench, len(join.rows), "records")
    is_complete, broken_before = True, join.broken
    decode = bench.data.decode
    for name in submission.files:
        try:
            for line in plain_lines(bench.data.open_results([name])):
                if not line:
                    continue
                join.add(line, decode(line))
                if not join.seen & _PROGRESS_MASK:
                    progress.at(join.seen)
        except Permanent as gone:
            if gone.reason != codes.ANSWER_LOST:
                raise
            is_complete = False
    state = submission.batch_state
    may_leave = state is not None and state.may_leave_unbilled
    # A line without an id may be the answer of any absent row, so then absence says nothing.
    broken = join.broken - broken_before
    is_unbilled = may_leave and is_complete and not broken
    if is_unbilled:
        join.all_unspoken_are_unbilled()
        return
    if not is_complete:
        why = "a result file of the batch is gone"
    elif broken:
        why = f"the result files have {broken} lines that can't be read"
    else:
        why = "the result files of the batch don't have it"
    message = f"The record may have been processed and billed, but {why}; it is not sent again"
    for row in join.unspoken_rows(below=_LOST):
        join.put(row, _LOST, error_tail(row, codes.ANSWER_LOST, message))


class _Join:
    """Results by row: the bodies in a file, where they are in arrays.

    Attributes:
        seen: lines with an id of this shard.
        foreign, duplicates: lines that were ignored.
        broken: lines without a legible id.
    """

    def __init__(self, rows: Rows, file: IO[bytes]) -> None:
        self.rows = rows
        self._file = file
        self._held: list[bytes] = []
        self._size = self._written = 0
        self._state = bytearray(len(rows))
        self._spoken = bytearray(len(rows))
        self._offsets = array("Q", bytes(8 * len(rows)))
        self._lengths = array("Q", bytes(8 * len(rows)))
        self.seen = self.foreign = self.duplicates = self.broken = 0
        self.input_tokens = self.output_tokens = 0

    def begin_batch(self) -> None:
        """No line of this batch was read so far."""
        self._spoken = bytearray(len(self.rows))

    def add(self, line: bytes, found: ResultLine) -> None:
        """Take one line of a result file."""
        if not found.wire_id:
            if not line.isspace():
                self._salvage(line)
            return
        row = row_of(found.wire_id)
        at = -1 if row is None else self.rows.position(row)
        if row is None or at < 0:
            self.foreign += 1
            return
        self.seen += 1
        if not found.error_code:
            tail = answer_tail(row, found.status_code, found.request_id, found.body)
            if not _is_legible(tail):
                self._lose(row)
            elif self._put(at, row, _ANSWERED, tail):
                self.input_tokens += found.input_tokens
                self.output_tokens += found.output_tokens
        elif found.unbilled:
            self._put(at, row, _UNBILLED, b"")
        else:
            self._put(at, row, _FAILED, _error(row, found))

    def _salvage(self, line: bytes) -> None:
        """A line that can't be read loses one row's answer: the one whose id it shows, if any."""
        ids = {row_of(name.decode()) for name in _SOME_ID.findall(line)}
        row = ids.pop() if len(ids) == 1 else None
        if row is None or self.rows.position(row) < 0:
            self.broken += 1
            return
        self.seen += 1
        self._lose(row)

    def _lose(self, row: int) -> None:
        message = (
            "The record was processed and maybe billed, but its line in the result file can't be "
            "read; it is not sent again"
        )
        self.put(row, _LOST, error_tail(row, codes.ANSWER_LOST, message))

    def put(self, row: int, state: int, tail: bytes) -> bool:
        """Keep a verdict, unless one as good is known. Whether it was kept."""
        return self._put(self.rows.position(row), row, state, tail)

    def _put(self, at: int, row: int, state: int, tail: bytes) -> bool:
        self._spoken[at] = 1
        if self._state[at] >= state:
            self.duplicates += 1
            return False
        self._state[at] = state
        if state >= _LOST:
            line = tail_line(_KINDS[state], row, tail)
            length = len(line)
            self._offsets[at] = self._size
            self._lengths[at] = length
            self._size += length
            self._held.append(line)
            if self._size - self._written >= _FLUSH_BYTES:
                self._flush()
        return True

    def _flush(self) -> None:
        self._file.write(b"".join(self._held))
        self._held.clear()
        self._written = self._size

    def all_unspoken_are_unbilled(self) -> None:
        """Rows of which this batch has no line, unless another batch has something of them."""
        for at, spoken in enumerate(self._spoken):
            if not spoken and self._state[at] == _ABSENT:
                self._state[at] = _UNBILLED

    def unspoken_rows(self, below: int) -> Iterator[int]:
        """Rows of which this batch has no line, and no batch anything as good as that."""
        for at, spoken in enumerate(self._spoken):
            if not spoken and self._state[at] < below:
                yield self.rows[at]

    def unbilled_rows(self) -> Iterator[int]:
        for at, known in enumerate(self._state):
            if known == _UNBILLED:
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
            if state < _LOST:
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
        unbilled = self._state.count(_UNBILLED)
        return Collected(
            answered=self._state.count(_ANSWERED),
            failed=self._state.count(_FAILED),
            unbilled=unbilled,
            lost=self._state.count(_LOST),
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


def _batched(pieces: Iterator[bytes]) -> Iterator[bytes]:
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

"""COLLECT: bring one ended shard's answers into staging, in row order, each record accounted for.

Usually a shard has one batch. Where late ones came to light (`core.late`), the oldest has the first
word on each record, and a better answer of another replaces a worse one.

Classes follow protocol 6 to the letter: unbilled is only what a line says is unbilled, or what is
absent from completely read files of a batch that may leave records unprocessed. Everything else
that has no answer is `AnswerLost`, and is never sent again.

What is in staging wins over what the provider still has: the answers become visible with one write,
behind a note of what they are and of which batches. A collection that finds both was only not heard
of, and is not made again; the provider may have dropped its files by now.
"""

from __future__ import annotations

import hashlib
import zlib

import msgspec

from batchinference.errors import Permanent
from batchinference.model.batch import BatchState
from batchinference.model.run import (
    Collected,
    Run,
    Settlement,
    Shard,
    Submission,
    SubmissionState,
)
from batchinference.model.work import ShardCollected
from batchinference.ports import ObjectStore
from batchinference.records import codes
from batchinference.records.index import Rows, pack_rows
from batchinference.records.lines import plain_lines
from batchinference.records.result import error_tail
from batchinference.records.tails import tail_of
from batchinference.tasks import spool
from batchinference.tasks.join import FAILED, LOST, STATES, UNBILLED, Join, batched
from batchinference.tasks.layout import Layout, layout
from batchinference.tasks.merge import unbilled_rows
from batchinference.tasks.workbench import Workbench

_UNBILLED_CODES = {
    BatchState.EXPIRED: codes.BATCH_EXPIRED,
    BatchState.CANCELLED: codes.BATCH_CANCELLED,
}


def collect(run: Run, shard: Shard, bench: Workbench) -> ShardCollected:
    """Collect every batch of the shard that was not collected before.

    Raises:
        Permanent: there is nothing to collect.
        Stalled, Waiting, Retry.
    """
    submission = shard.last
    if submission is None:
        raise Permanent(codes.NOT_SUBMITTED, f"Shard {shard.index} was never submitted")
    where = layout(run)
    staged = _already_staged(shard, bench, where)
    if staged is not None:
        return ShardCollected(staged, late=len(shard.late))
    rows = Rows(bench.staging.read(spool.staged(bench.staging, where.index(shard.index))))
    with spool.folder(bench.spool, run) as folder, (folder / "answers").open("w+b") as file:
        join = Join(rows, file)
        if shard.collected is not None:
            _take_over(join, shard, bench, where)
        for batch in _batches(shard):
            join.begin_batch()
            if _is_refused(batch):
                _refuse(join, batch)
            else:
                _read(join, batch, bench)
        collected = join.collected(_code(shard))
        _store(join, shard, collected, bench.staging, where)
        return ShardCollected(collected, late=len(shard.late))


# ---------------------------------------------------------------- staging


class _Note(msgspec.Struct):
    """What the staged answers of a shard are.

    Attributes:
        basis: of which batches, see `_basis`.
        size, checksum: of the answers that belong to it; they are written after it.
    """

    basis: str
    size: int
    checksum: int
    collected: Collected


def _store(
    join: Join, shard: Shard, collected: Collected, staging: ObjectStore, where: Layout
) -> None:
    """The answers last: with them all of it is there."""
    size = checksum = 0
    writer = staging.writer(where.answers(shard.index))
    try:
        for data in batched(join.in_row_order()):
            writer.write(data)
            size, checksum = size + len(data), zlib.adler32(data, checksum)
        staging.put(where.unbilled(shard.index), pack_rows(join.unbilled_rows()))
        note = _Note(_basis(shard), size, checksum, collected)
        staging.put(where.collected(shard.index), msgspec.json.encode(note))
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def _already_staged(shard: Shard, bench: Workbench, where: Layout) -> Collected | None:
    """What an earlier try came to that nobody heard of."""
    data = bench.staging.get(where.collected(shard.index))
    answers = bench.staging.head(where.answers(shard.index))
    if data is None or answers is None:
        return None
    note = msgspec.json.decode(data, type=_Note)
    if (note.basis, note.size) != (_basis(shard), answers.size):
        return None
    checksum = 0
    for piece in bench.staging.read(answers):
        checksum = zlib.adler32(piece, checksum)
    return note.collected if checksum == note.checksum else None


def _basis(shard: Shard) -> str:
    """A hash of everything that a collection of the shard depends on, besides the files' bytes."""
    batches = [(b.ordinal, b.batch_id, b.batch_state, b.files, b.failure) for b in _batches(shard)]
    form = msgspec.json.encode([shard.sha256, shard.collected, batches])
    return hashlib.sha256(form).hexdigest()


# ---------------------------------------------------------------- the batches


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


def _take_over(join: Join, shard: Shard, bench: Workbench, where: Layout) -> None:
    """Begin with what was collected before: the provider may not have it any more."""
    before, answers = shard.collected, where.answers(shard.index)
    assert before is not None
    for line in plain_lines(bench.staging.read(spool.staged(bench.staging, answers))):
        found = tail_of(line)
        join.put(found.row, STATES[found.kind], found.tail)
    for row in unbilled_rows(shard, bench.staging, where):
        join.put(row, UNBILLED, b"")
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


def _refuse(join: Join, submission: Submission) -> None:
    """One verdict for all of its records, without asking the provider."""
    failure = submission.failure
    if failure is not None and (failure.quota or failure.transient):
        join.all_unspoken_are_unbilled()
        return
    said = f"{failure.code}: {failure.message}" if failure and failure.code else ""
    said = said or (failure.message if failure else "")
    message = f"The provider failed the whole batch: {said}" if said else "The whole batch failed"
    for row in join.unspoken_rows(below=FAILED):
        join.put(row, FAILED, error_tail(row, codes.BATCH_FAILED, message))


def _read(join: Join, submission: Submission, bench: Workbench) -> None:
    """Read every result file, then judge the rows that no line spoke of."""
    is_complete, broken_before = True, join.broken
    decode = bench.data.decode
    for name in submission.files:
        try:
            for line in plain_lines(bench.data.open_results([name])):
                if not line:
                    continue
                join.add(line, decode(line))
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
    elif submission.settled is Settlement.GIVE_UP and not (state and state.is_over):
        why = "somebody decided not to wait for its answer"
    else:
        why = "the result files of the batch don't have it"
    message = f"The record may have been processed and billed, but {why}; it is not sent again"
    for row in join.unspoken_rows(below=LOST):
        join.put(row, LOST, error_tail(row, codes.ANSWER_LOST, message))

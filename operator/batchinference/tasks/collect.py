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

from batchinference.errors import Permanent, Retry, Stalled
from batchinference.model.batch import BatchState
from batchinference.model.run import (
    Collected,
    Run,
    Settlement,
    Shard,
    Submission,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import ShardCollected
from batchinference.ports import ObjectStore, ShowsBatches
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


GONE_AFTER_S = 600
"""How long it must be said of answers that they are gone before it is believed."""

STRANGE_FOR_S = 7 * 86_400
"""The same where the provider does not know the batch either: people change credentials back."""


def collect(
    run: Run, shard: Shard, bench: Workbench, *, failing_s: int = GONE_AFTER_S
) -> ShardCollected:
    """Collect every batch of the shard that was not collected before.

    Args:
        run: of which run.
        shard: which of its shards.
        bench: the ports.
        failing_s: for how long it could not be done.

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
                _read(join, batch, bench, failing_s)
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


def _read(join: Join, submission: Submission, bench: Workbench, failing_s: int) -> None:
    """Read every result file, then judge the rows that no line spoke of."""
    is_complete, broken_before = True, join.broken + join.foreign
    for name in submission.files:
        is_complete = _read_file(join, name, submission, bench, failing_s) and is_complete
    state = submission.batch_state
    may_leave = state is not None and state.may_leave_unbilled
    # A line of no row of ours may be the answer of any absent row, so then absence says nothing.
    broken = join.broken + join.foreign - broken_before
    missing = (submission.answered or 0) - join.processed if may_leave else 0
    if may_leave and is_complete and not broken and missing <= 0:
        join.all_unspoken_are_unbilled()
        return
    if not is_complete:
        why = "a result file of the batch is gone"
    elif broken:
        why = f"the result files have {broken} lines that are no record's or can't be read"
    elif missing > 0:
        why = f"the provider counts {missing} more as answered than its result files have"
    elif submission.settled is Settlement.GIVE_UP and not (state and state.is_over):
        why = "somebody decided not to wait for its answer"
    else:
        why = "the result files of the batch don't have it"
    message = f"The record may have been processed and billed, but {why}; it is not sent again"
    lost = [*join.unspoken_rows(below=LOST)]
    if missing > 0:  # nor can its word on single records be believed
        lost += join.rows_called_unbilled()
    for row in lost:
        join.put(row, LOST, error_tail(row, codes.ANSWER_LOST, message))


def _read_file(
    join: Join, name: str, submission: Submission, bench: Workbench, failing_s: int
) -> bool:
    """Take the lines of one result file; False where it is gone for good.

    What says so may be a server's bad minute, a gateway in between, or the credentials of another
    account; and once it is believed, the file is deleted with all others of the run. So it must
    say so for a while, of an account that it shows.
    """
    data = bench.data
    legible = illegible = 0
    try:
        for line in plain_lines(data.open_results([name])):
            if line:
                found = data.decode(line)
                legible += bool(found.wire_id)
                illegible += not found.wire_id
                join.add(line, found)
    except Permanent as gone:
        if gone.reason != codes.ANSWER_LOST:
            raise
        is_strange = isinstance(data, ShowsBatches) and not data.shows(submission.batch_id)
        if is_strange and failing_s < STRANGE_FOR_S:
            raise Stalled(
                Reason.ACCOUNT_CHANGED,
                f"The provider has neither batch {submission.batch_id} nor its result file: check "
                "that the credentials are of the account that submitted it. Nothing of it is sent "
                "again. It is asked again for a week; after that its answers count as lost",
            ) from gone
        if failing_s < GONE_AFTER_S:
            raise Retry(
                Reason.OUTPUT_UNAVAILABLE,
                f"The provider says that the result file {name} is gone; it is asked for again",
            ) from gone
        return False
    if illegible and not legible and failing_s < GONE_AFTER_S:
        raise Retry(
            Reason.OUTPUT_UNAVAILABLE,
            f"No line of the result file {name} is a record's; it is read again",
        )
    return True

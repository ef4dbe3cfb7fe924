"""What one row of the input came to, from everything that shards have to say of it.

Owns which answer counts, and the words for a record without one. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import NamedTuple

from batchinference.errors import Permanent
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.records import codes
from batchinference.records.result import error_tail
from batchinference.records.rowtable import SAME_RECORD, bad_row
from batchinference.records.several import Part, combined, of_record
from batchinference.records.tails import ANSWERED, FAILED, LOST
from batchinference.tasks.merge import Known

_BEST_FIRST = (ANSWERED, FAILED, LOST)

_WHY = {
    codes.BATCH_EXPIRED: "The batch ran out of time before the record was processed",
    codes.BATCH_CANCELLED: "The batch was cancelled before the record was processed",
    codes.NOT_PROCESSED: "The batch ended without processing the record",
    codes.BELOW_MINIMUM: "Too few records were left for another batch",
    codes.BUDGET_EXCEEDED: "Sending the record again could have passed `spec.budget`",
    codes.NOT_SUBMITTED: "The run ended before the record was sent",
}


class Count(StrEnum):
    """What a record counts as, by its name in the manifest."""

    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"


class End(NamedTuple):
    """The user's id as JSON text, what the row counts as, the tail of its result line."""

    custom_id: bytes
    counts_as: Count
    tail: bytes


class Verdicts:
    """The verdicts on the rows of one run."""

    def __init__(self, run: Run) -> None:
        self._doubled = frozenset(shard.index for shard in run.shards if shard.is_doubled)
        self._strange = run.earlier.strange if run.earlier is not None else ()

    def on(self, row: int, entry: bytes, said: list[Known]) -> End:
        """The verdict on a row.

        A row of a shard of which a batch appeared late may have two answers, when it had gone on
        into another shard by then: the better one counts, and of equals the first.

        Args:
            row: its number.
            entry: its entry in the row table.
            said: what the shards say, the oldest first.

        Raises:
            Permanent: they contradict each other, or the table.
        """
        bad = bad_row(entry)
        if bad is not None:
            if said:
                raise inconsistent(f"row {row} is a bad record, and was sent")
            message = f"{bad.bad.place}: {bad.bad.message}"
            return End(bad.custom_id, Count.FAILED, error_tail(row, bad.bad.code, message))
        final = [known for known in said if known.kind]
        if len(final) > 1 and not any(known.shard in self._doubled for known in final):
            raise inconsistent(f"row {row} has {len(final)} answers")
        if final:
            best = min(final, key=lambda known: _BEST_FIRST.index(known.kind))
            count = Count.COMPLETED if best.kind == ANSWERED else Count.FAILED
            return End(entry, count, best.text)
        if not said:
            raise inconsistent(f"row {row} is in no shard")
        if self._strange:
            # Batches that nobody knows the records of, since the run's journal was lost.
            ids = ", ".join(self._strange[:5]) + (", ..." if len(self._strange) > 5 else "")
            message = (
                "The record may have been processed and billed in a batch that could not be "
                f"matched after the run's journal was lost ({ids}); it is not sent again"
            )
            return End(entry, Count.FAILED, error_tail(row, codes.ANSWER_LOST, message))
        code = said[-1].text.decode()  # what the newest shard that had it says
        why = _WHY.get(code, "The record was not processed")
        count = Count.EXPIRED if code == codes.BATCH_EXPIRED else Count.FAILED
        return End(entry, count, error_tail(row, code, f"{why}; it was not billed"))


def by_record(ends: Iterable[End]) -> Iterator[End]:
    """The ends of records from those of their rows.

    Raises:
        Permanent: an answer to one of several rows of a record is of an odd form.
    """
    held: list[End] = []
    row = record = 0
    for end in ends:
        if held and end.custom_id != SAME_RECORD:
            yield _together(held, row, record)
            row += len(held)
            record += 1
            held.clear()
        held.append(end)
    if held:
        yield _together(held, row, record)


def _together(ends: list[End], row: int, record: int) -> End:
    """The end of a record from those of its rows, of which `row` is the first."""
    first = ends[0]
    if len(ends) == 1:
        return first._replace(tail=of_record(row, record, first.tail))
    try:
        tail = combined(record, [Part(e.counts_as is Count.COMPLETED, e.tail) for e in ends])
    except ValueError as error:
        raise inconsistent(f"the rows from {row} on are one record, and {error}") from error
    counts = {end.counts_as for end in ends}
    bad = counts - {Count.COMPLETED}
    count = Count.COMPLETED if not bad else Count.FAILED if Count.FAILED in bad else Count.EXPIRED
    return End(first.custom_id, count, tail)


def inconsistent(what: str) -> Permanent:
    """The rows of a run don't add up."""
    return Permanent(
        Reason.RESULTS_INCONSISTENT,
        f"The results of the run don't add up: {what}. No manifest was written, and the answers "
        "are kept in staging; this is a defect of the operator, please report it",
    )

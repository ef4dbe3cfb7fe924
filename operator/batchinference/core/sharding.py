"""Where to cut a sequence of records into shards, within every limit of a batch. Pure.

Owns the arithmetic only: it sees sizes (bytes of a line with its newline) and token estimates.
A batch must fit the records, bytes and, where the account's queue is bounded in tokens, the tokens
that one batch may have. A single record above a token limit gets a shard of its own: an estimate is
no reason to refuse it.
"""

from __future__ import annotations

from collections.abc import Sequence

from batchinference.model.batch import Limits


class Cutter:
    """Fills one shard after another.

    Attributes:
        records, size, tokens: what the open shard has.
    """

    __slots__ = ("_max_records", "_max_size", "_max_tokens", "records", "size", "tokens")

    def __init__(self, limits: Limits) -> None:
        self._max_records = limits.max_records_per_batch
        self._max_size = limits.max_bytes_per_batch
        self._max_tokens = limits.max_enqueued_tokens
        self.open()

    def open(self) -> None:
        """Start an empty shard."""
        self.records = self.size = self.tokens = 0

    def take(self, sizes: Sequence[int], tokens: Sequence[int]) -> int:
        """How many of the next records go into the open shard, and count them in.

        Less than were offered means that the shard is full: `open` the next one. An empty shard
        takes at least one.
        """
        if not sizes:
            return 0
        total_size, total_tokens = sum(sizes), sum(tokens)
        if self._fits(len(sizes), total_size, total_tokens):
            self._count(len(sizes), total_size, total_tokens)
            return len(sizes)
        taken = 0
        for size, weight in zip(sizes, tokens, strict=True):
            if not self._fits(1, size, weight) and self.records:
                break
            self._count(1, size, weight)
            taken += 1
        return taken

    def _fits(self, records: int, size: int, tokens: int) -> bool:
        return (
            self.records + records <= self._max_records
            and self.size + size <= self._max_size
            and (self._max_tokens is None or self.tokens + tokens <= self._max_tokens)
        )

    def _count(self, records: int, size: int, tokens: int) -> None:
        self.records += records
        self.size += size
        self.tokens += tokens


def records_to_move(
    last: Cutter, full_records: int, sizes: Sequence[int], tokens: Sequence[int], limits: Limits
) -> int:
    """How many records the last shard must take over from the end of the one before it.

    Args:
        last: the last shard.
        full_records: records of the shard before it.
        sizes: of the end of the shard before it, in order; as far back as is known.
        tokens: the same records'.
        limits: what both shards are held to.

    Returns:
        0 where the last shard has enough, or where no move gives both enough within the limits:
        then the last shard stays below the minimum.
    """
    minimum = limits.min_records_per_batch
    missing = minimum - last.records
    if missing <= 0 or full_records - missing < minimum or missing > len(sizes):
        return 0
    size = last.size + sum(sizes[-missing:])
    weight = last.tokens + sum(tokens[-missing:])
    fits = size <= limits.max_bytes_per_batch and minimum <= limits.max_records_per_batch
    within = limits.max_enqueued_tokens is None or weight <= limits.max_enqueued_tokens
    return missing if fits and within else 0


def shards_needed(made: int, covered: float) -> int:
    """An estimate of all shards from those made so far and the part of the input they cover."""
    return max(made, round(made / covered)) if covered > 0 else made

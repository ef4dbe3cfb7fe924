"""The index of a shard: which rows it has and where each one's line is. Owns the fixed-width form.

Four little-endian 64-bit words per record, in the order of the shard's lines (rows ascending): the
row, the line's offset in the shard, its size with the newline, and two numbers of 32 bits: its
token estimate, and the most tokens of its answer, 0 where nothing bounds it.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

WORDS = 4
ENTRY_BYTES = 8 * WORDS


class Entry(NamedTuple):
    """One record of a shard; `size` with the newline, `output` as above."""

    row: int
    offset: int
    size: int
    tokens: int
    output: int


MAX_TOKENS = 0xFFFFFFFF
"""The most that an entry can tell."""


def pack(
    rows: Sequence[int],
    sizes: Sequence[int],
    tokens: Sequence[int],
    outputs: Sequence[int],
    offset: int,
) -> bytes:
    """Entries of consecutive lines of which the first starts at `offset`."""
    words = array("Q", bytes(ENTRY_BYTES * len(rows)))
    words[0::WORDS] = array("Q", rows)
    words[1::WORDS] = array("Q", accumulate(sizes, initial=offset))[:-1]
    words[2::WORDS] = array("Q", sizes)
    words[3::WORDS] = array("Q", tokens)
    data = bytearray(_little(words))
    memoryview(data).cast("I")[7 :: 2 * WORDS] = memoryview(_little(array("I", outputs)))
    return bytes(data)


def entries(chunks: Iterable[bytes]) -> Iterator[Entry]:
    """The entries of an index, streamed."""
    held = b""
    for chunk in chunks:
        data = held + chunk if held else chunk
        usable = len(data) - len(data) % ENTRY_BYTES
        words = _little(array("Q", data[:usable]))
        for at in range(0, len(words), WORDS):
            row, offset, size, both = words[at : at + WORDS]
            yield Entry(row, offset, size, both & MAX_TOKENS, both >> 32)
        held = data[usable:]
    if held:
        raise ValueError(f"an index ends inside an entry: {len(held)} bytes are left over")


def pack_rows(rows: Iterable[int]) -> bytes:
    """Rows alone, one 64-bit word each."""
    return _little(array("Q", rows)).tobytes()


def unpack_rows(data: bytes) -> array[int]:
    """The rows of `pack_rows`."""
    return _little(array("Q", data))


class Rows:
    """The rows of one shard: position by row, in eight bytes for each."""

    __slots__ = ("_rows", "first", "is_range")

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._rows = array("Q")
        held = b""
        for chunk in chunks:
            data = held + chunk if held else chunk
            usable = len(data) - len(data) % ENTRY_BYTES
            self._rows.extend(_little(array("Q", data[:usable]))[0::WORDS])
            held = data[usable:]
        self.first = self._rows[0] if self._rows else 0
        count = len(self._rows)
        self.is_range = bool(count) and self._rows[-1] - self.first == count - 1

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> int:
        return self._rows[position]

    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    def position(self, row: int) -> int:
        """Where the row is in the shard, -1 when it is not."""
        if self.is_range:
            at = row - self.first
            return at if 0 <= at < len(self._rows) else -1
        at = bisect_left(self._rows, row)
        return at if at < len(self._rows) and self._rows[at] == row else -1


def _little(words: array[int]) -> array[int]:
    if sys.byteorder == "big":
        words.byteswap()
    return words

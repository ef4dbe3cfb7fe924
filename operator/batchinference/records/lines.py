r"""Split chunks of bytes into lines. Owns newline handling and the bound on a line's length.

Lines end at `\n` and at nothing else: U+2028 and its like are ordinary characters inside JSON
strings. It knows nothing of JSON. Memory: one chunk and at most one bounded line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Oversized:
    """Stands for a line that is above the bound; its bytes are gone. `length` without newline."""

    length: int

    def __len__(self) -> int:
        return self.length


BLOCK_BYTES = 1 << 18
"""About the size of a block: small enough to stay in a core's cache while it is worked on."""


class Block:
    """Consecutive lines.

    Attributes:
        data: the lines with their newlines; empty when the one line is oversized.
        offset: where the first one starts, in bytes of the object.
        is_ascii: no byte is above 127, so all lines are valid UTF-8.
    """

    def __init__(self, data: bytes, offset: int, is_ascii: bool, max_line: int) -> None:
        self.data = data
        self.offset = offset
        self.is_ascii = is_ascii
        self._max_line = max_line
        self._lines: list[bytes | Oversized] | None = None

    @classmethod
    def oversized(cls, length: int, offset: int) -> Block:
        """A block of one line whose bytes are gone."""
        block = cls(b"", offset, True, 0)
        block._lines = [Oversized(length)]
        return block

    @property
    def lines(self) -> list[bytes | Oversized]:
        """The lines without their newlines; an `Oversized` in place of one that is too long."""
        if self._lines is None:
            lines: list[bytes | Oversized] = [*self.data.split(b"\n")]
            if self.data.endswith(b"\n"):
                lines.pop()
            if len(self.data) > self._max_line:
                most = self._max_line
                lines = [Oversized(len(line)) if len(line) > most else line for line in lines]
            self._lines = lines
        return self._lines


def blocks(chunks: Iterable[bytes], max_line: int, start: int = 0) -> Iterator[Block]:
    """All lines of the chunks.

    A BOM at byte 0 of the object belongs to no line; offsets count it. A last line without a
    newline is a line; a final newline starts no further one.
    """
    held: list[bytes] = []  # pieces of a line that has not ended yet
    held_size = 0
    offset = start
    if not start:
        offset, chunks = _without_bom(chunks)
    for chunk in _pieces(chunks):
        end = chunk.rfind(b"\n") + 1
        begin = 0
        if held_size and end:
            begin = chunk.index(b"\n") + 1
            held_size += begin - 1
            if held_size > max_line:
                yield Block.oversized(held_size, offset)
            else:
                line = b"".join([*held, chunk[:begin]])
                yield Block(line, offset, line.isascii(), max_line)
            offset += held_size + 1
            held.clear()
            held_size = 0
        if begin < end:
            data = chunk[begin:end]
            yield Block(data, offset, data.isascii(), max_line)
            offset += len(data)
        if end < len(chunk):
            held_size += len(chunk) - end
            if held_size > max_line:
                held.clear()
            else:
                held.append(chunk[end:])
    if held_size > max_line:
        yield Block.oversized(held_size, offset)
    elif held_size:
        line = b"".join(held)
        yield Block(line, offset, line.isascii(), max_line)


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks of at most a block's size."""
    for chunk in chunks:
        for at in range(0, len(chunk), BLOCK_BYTES):
            yield chunk[at : at + BLOCK_BYTES]


def _without_bom(chunks: Iterable[bytes]) -> tuple[int, Iterable[bytes]]:
    """How many bytes the BOM takes, and the chunks behind it."""
    rest = iter(chunks)
    head = b""
    for chunk in rest:
        head += chunk
        if len(head) >= len(BOM):
            break
    taken = len(BOM) if head.startswith(BOM) else 0
    return taken, chain([head[taken:]], rest)


def plain_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a file that we wrote ourselves, or whose lines must all be had: no bound."""
    held: list[bytes] = []
    for chunk in chunks:
        end = chunk.rfind(b"\n")
        if end < 0:
            held.append(chunk)
            continue
        lines = chunk[:end].split(b"\n")
        if held:
            held.append(lines[0])
            lines[0] = b"".join(held)
            held.clear()
        yield from lines
        if end + 1 < len(chunk):
            held.append(chunk[end + 1 :])
    if held:
        yield b"".join(held)

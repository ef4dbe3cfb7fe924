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


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines without their newlines.

    Attributes:
        lines: in order; an `Oversized` in place of one that is too long.
        offset: where the first one starts, in bytes of the object.
        is_ascii: no line has a byte above 127, so all of them are valid UTF-8.
        has_oversized: there is an `Oversized` among the lines.
    """

    lines: list[bytes | Oversized]
    offset: int
    is_ascii: bool
    has_oversized: bool = False

    def offset_of(self, index: int) -> int:
        """Where a line starts, in bytes of the object."""
        return self.offset + sum(map(len, self.lines[:index])) + index


def blocks(chunks: Iterable[bytes], max_line: int, start: int = 0) -> Iterator[Block]:
    """All lines of the chunks, in blocks of about a chunk.

    A BOM at byte 0 of the object belongs to no line; offsets count it. A last line without a
    newline is a line; a final newline starts no further one.
    """
    held: list[bytes] = []  # pieces of a line that has not ended yet
    held_size = 0
    is_ascii = True
    offset = start
    if not start:
        head, chunks = _without_bom(chunks)
        offset = head
    for chunk in chunks:
        end = chunk.rfind(b"\n")
        if end < 0:
            held_size += len(chunk)
            if held_size > max_line:
                held.clear()
            else:
                held.append(chunk)
                is_ascii = is_ascii and chunk.isascii()
            continue
        is_ascii = is_ascii and chunk.isascii()
        lines: list[bytes | Oversized]
        whole = chunk[:end]
        if not held_size:
            lines = [*whole.split(b"\n")]
        else:
            first, newline, rest = whole.partition(b"\n")
            held_size += len(first)
            if held_size > max_line:
                lines = [Oversized(held_size)]
            else:
                held.append(first)
                lines = [b"".join(held)]
            if newline:
                lines += rest.split(b"\n")
        held.clear()
        has_oversized = held_size > max_line
        if len(whole) > max_line and max(map(len, lines)) > max_line:
            has_oversized = True
            lines = [
                Oversized(len(line)) if isinstance(line, bytes) and len(line) > max_line else line
                for line in lines
            ]
        block = Block(lines, offset, is_ascii, has_oversized)
        yield block
        offset = block.offset_of(len(lines))
        rest_of_chunk = chunk[end + 1 :]
        held_size = len(rest_of_chunk)
        is_ascii = True
        if held_size > max_line:
            continue
        if held_size:
            held.append(rest_of_chunk)
            is_ascii = rest_of_chunk.isascii()
    if held_size:
        is_over = held_size > max_line
        last: bytes | Oversized = Oversized(held_size) if is_over else b"".join(held)
        yield Block([last], offset, is_ascii, is_over)


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

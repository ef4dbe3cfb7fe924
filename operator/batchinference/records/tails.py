"""Collected results in staging: one line per row, with its class in front. Owns that form.

    A0000000012 "response":{...},"error":null,"row":12}

The class says whether it is an answer (A), a final error (F) or a lost answer (L); then the row in
ten digits, a blank, and the tail of the canonical result line (`records.result`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

ANSWERED: Final = b"A"
FAILED: Final = b"F"
LOST: Final = b"L"

_HEAD = 12

AROUND_TAIL = _HEAD + 1
"""Bytes of a line besides its tail."""


class Tail(NamedTuple):
    """One collected result."""

    kind: bytes
    row: int
    tail: bytes


def tail_line(kind: bytes, row: int, tail: bytes) -> tuple[bytes, bytes, bytes]:
    """The line with its newline, in pieces: putting them together would copy the tail."""
    return b"%b%010d " % (kind, row), tail, b"\n"


def tail_of(line: bytes) -> Tail:
    """The result of a line."""
    return Tail(line[:1], int(line[1 : _HEAD - 1]), line[_HEAD:])

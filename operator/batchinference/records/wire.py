"""Record ids on the wire: the row number, so that any user id is legal. Owns the one form of them.

`r` and ten digits fit every edition of every provider's rules, and sort as the rows do. A record
that goes to the provider as several has a row for each (`records.rowtable`), so that every answer
is known, retried and paid for by itself (ADR 0023).
"""

from __future__ import annotations

_DIGITS = 10

MAX_ROWS = 10**_DIGITS
"""Rows that ten digits can number."""


def wire_id(row: int) -> str:
    """The id that is sent for a row."""
    return f"r{row:010d}"


def row_of(wire: str) -> int | None:
    """The row of an id that came back, or None for one that we never made."""
    digits = wire[1:]
    if digits.isdigit() and wire[0] == "r" and len(digits) <= _DIGITS and wire.isascii():
        return int(digits)
    return None

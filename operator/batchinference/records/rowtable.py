"""The row table: for every row of the input, in order, the user's id or what is wrong with it.

One line per row: the id as JSON text (`"ticket-7"`, `null`), or for a bad record an object with
`custom_id`, `code`, `message`, `line` (1-based), `source` and `is_row`. It never holds prompts. A
record that goes to the provider as several has as many rows, one behind the other; `+` stands for
all of them but the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from batchinference.model.staging import BadRecord

MESSAGE_LIMIT = 500

SAME_RECORD = b"+"
"""The entry of a row that belongs to the record of the row before it."""


class _Bad(msgspec.Struct, omit_defaults=True):
    custom_id: msgspec.Raw
    code: str
    message: str
    line: int
    source: str = ""
    is_row: bool = False


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that is never sent, and the user's id as JSON text."""

    custom_id: bytes
    bad: BadRecord


_decoder = msgspec.json.Decoder(_Bad)


def bad_entry(custom_id: bytes, bad: BadRecord) -> bytes:
    """The table's line of a bad record."""
    message = bad.message[:MESSAGE_LIMIT]
    return msgspec.json.encode(
        _Bad(msgspec.Raw(custom_id), bad.code, message, bad.line, bad.source, bad.is_row)
    )


def bad_row(entry: bytes) -> BadRow | None:
    """The bad record of a table's line; None for a good one, whose line is its id."""
    if entry[:1] != b"{":
        return None
    found = _decoder.decode(entry)
    bad = BadRecord(found.line, found.code, found.message, found.source, found.is_row)
    return BadRow(bytes(found.custom_id), bad)

"""CSV as lines of JSON, one object of texts for each row. Owns what a CSV file is here.

RFC 4180 with a header: commas, double quotes, line ends of either kind, UTF-8 with or without a
BOM. Every value is a text; an empty one is an empty text. Blank lines are no rows. A row with more
or fewer fields than the header has is a `Ragged` line, which whoever makes requests of rows
refuses; what spoils everything behind it ends the pass.

Memory: one row.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterable, Iterator

import msgspec

from batchinference.errors import Permanent
from batchinference.model.status import Reason

MAX_FIELD = 16 << 20
"""Characters of one field, and of one line of the file."""

_FLUSH = 1 << 18


class Ragged(msgspec.Struct, forbid_unknown_fields=True, array_like=True, tag="ragged row"):
    """Stands for a row whose fields are not as many as the header's."""

    fields: int
    header: int


def csv_lines(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The rows as JSON lines with their newlines, in chunks.

    Args:
        chunks: the file's bytes.
        name: of the file, for messages.

    Raises:
        Permanent: InputUnreadable, it is no CSV file in UTF-8 with a header.
    """
    csv.field_size_limit(MAX_FIELD)
    encode = msgspec.json.Encoder().encode
    rows = csv.reader(_text_lines(chunks, name), strict=True)
    number = 0
    held: list[bytes] = []
    size = 0
    try:
        header = next((row for row in rows if row), [])
        _check_header(header, name)
        width = len(header)
        for row in rows:
            if not row:
                continue
            number += 1
            is_whole = len(row) == width
            value = dict(zip(header, row, strict=True)) if is_whole else Ragged(len(row), width)
            line = encode(value)
            held += (line, b"\n")
            size += len(line)
            if size >= _FLUSH:
                yield b"".join(held)
                held.clear()
                size = 0
    except csv.Error as error:
        raise _unreadable(
            f"{name} can't be read as CSV behind row {number}: {error}. Quote fields with commas, "
            "quotes or newlines in double quotes, and double the quotes in them"
        ) from error
    if held:
        yield b"".join(held)


def _check_header(header: list[str], name: str) -> None:
    if not header:
        raise _unreadable(f"{name} is empty; a CSV file begins with the names of its columns")
    seen: set[str] = set()
    for number, column in enumerate(header, 1):
        if not column.strip():
            raise _unreadable(f"{name}: column {number} has no name in the header")
        if column in seen:
            raise _unreadable(f"{name}: the header names column {number} as one before it")
        seen.add(column)


def _text_lines(chunks: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines with their ends, which are newlines alone: quotes may hold anything else."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    held: list[str] = []
    held_size = 0
    try:
        for chunk in chunks:
            text = decoder.decode(chunk)
            start = 0
            while (end := text.find("\n", start) + 1) > 0:
                yield "".join([*held, text[start:end]])
                held.clear()
                held_size = 0
                start = end
            held.append(text[start:])
            held_size += len(text) - start
            if held_size > MAX_FIELD:
                raise _unreadable(f"{name} has a line of more than {MAX_FIELD} characters")
        held.append(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        raise _unreadable(
            f"{name} is not UTF-8: {error.reason}. Save it with the encoding UTF-8"
        ) from None
    last = "".join(held)
    if last:
        yield last


def _unreadable(message: str) -> Permanent:
    return Permanent(Reason.INPUT_UNREADABLE, message)

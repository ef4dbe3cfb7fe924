"""Result lines over parts of bounded size. Owns when a part is full, and what is told of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Protocol

from batchinference.ports import ObjectWriter, ResultPlace

FLUSH_BYTES = 1 << 20

Opener = Callable[[str, int], ObjectWriter]
"""Opens a part, by its kind and its number."""


class Parts(Protocol):
    """Takes lines in order."""

    def write(self, line: bytes) -> None:
        """Append a result line, which has no newline."""


class LineParts:
    """Parts of JSON lines; what another format makes of lines is in `_encoded` and `_end`."""

    def __init__(self, place: ResultPlace, kind: str, part_bytes: int, part: Opener) -> None:
        """Begin.

        Args:
            place: names the parts.
            kind: `results` or `errors`.
            part_bytes: of lines, after which a part is closed.
            part: opens a part.
        """
        self._part = part
        self._place = place
        self._kind = kind
        self._part_bytes = part_bytes
        self._writer: ObjectWriter | None = None
        self._digest = hashlib.sha256()
        self._held: list[bytes] = []
        self._held_size = 0
        self._rows = self._lines = self._size = 0
        self._parts: list[dict[str, Any]] = []

    def write(self, line: bytes) -> None:
        """See `Parts.write`."""
        size = len(line) + 1
        if self._rows and self._lines + self._held_size + size > self._part_bytes:
            self._close_part()
        self._held.append(line)
        self._held_size += size
        self._rows += 1
        if self._held_size >= FLUSH_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._put(self._encoded(self._held))
        self._lines += self._held_size
        self._held.clear()
        self._held_size = 0

    def _encoded(self, lines: list[bytes]) -> bytes:
        """What is written for lines; it may be written later."""
        return b"\n".join([*lines, b""])

    def _end(self) -> bytes:
        """What stands behind all lines of a part."""
        return b""

    def _put(self, data: bytes) -> None:
        if self._writer is None:
            self._writer = self._part(self._kind, len(self._parts))
        if data:
            self._writer.write(data)
            self._digest.update(data)
            self._size += len(data)

    def _close_part(self) -> None:
        if self._held:
            self._flush()
        self._put(self._end())
        assert self._writer is not None
        self._writer.commit()
        self._writer = None
        number = len(self._parts)
        self._parts.append(
            {
                "uri": self._place.part_uri(self._kind, number),
                "rows": self._rows,
                "bytes": self._size,
                "sha256": self._digest.hexdigest(),
            }
        )
        self._digest = hashlib.sha256()
        self._rows = self._lines = self._size = 0

    def close(self) -> list[dict[str, Any]]:
        """Close the last part; the parts as the manifest lists them."""
        if self._rows:
            self._close_part()
        return self._parts

    def abort(self) -> None:
        """Forget the part that is open."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

"""An object of a store as a file that can be sought and read again, without a copy on disk.

The SDK sends such a file in small pieces, knows its length, and can begin anew for a retry.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from batchinference.ports import ObjectInfo, ObjectStore


class StoredFile(io.RawIOBase):
    """Read-only; a seek opens the object anew at that byte with the next read."""

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        super().__init__()
        self._store = store
        self._info = info
        self._position = 0
        self._pieces: Iterator[bytes] | None = None
        self._rest = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """The next byte that is read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._info.size}
        position = max(0, origin[whence] + offset)
        if position != self._position:
            self._position, self._pieces, self._rest = position, None, b""
        return position

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes, b"" at the end.

        Raises:
            Whatever `ObjectStore.read` does.
        """
        if size < 0:
            return b"".join(iter(lambda: self.read(1 << 20), b""))
        if not self._rest and self._position < self._info.size:
            if self._pieces is None:
                self._pieces = self._store.read(self._info, self._position)
            self._rest = next(self._pieces, b"")
        piece, self._rest = self._rest[:size], self._rest[size:]
        self._position += len(piece)
        return piece

r"""A file of lines, opened for reading in any order without holding it in memory.

Owns the index of line starts. Splits on the byte `\n` and nothing else. Must not know what
the lines mean.
"""

import mmap
from array import array
from pathlib import Path
from types import TracebackType
from typing import Self


class Lines:
    """Random access to a file's lines, without their line ends."""

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("rb")  # noqa: SIM115  # closed by __exit__
        self._starts = array("Q", [0])
        self._map: mmap.mmap | None = None
        size = Path(path).stat().st_size
        if size:  # an empty file cannot be mapped
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            at = self._map.find(b"\n")
            while at >= 0:
                self._starts.append(at + 1)
                at = self._map.find(b"\n", at + 1)
            if self._starts[-1] != size:  # no final newline: the rest is a line all the same
                self._starts.append(size + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._map is not None:
            self._map.close()
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> bytes:
        if self._map is None or not 0 <= number < len(self):
            raise IndexError(number)
        return self._map[self._starts[number] : self._starts[number + 1] - 1]

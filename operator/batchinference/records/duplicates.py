"""Which user ids were seen already, over a whole input, in bounded memory.

The first ids are kept as they are. From some size on they become 128-bit fingerprints in an open
hash table in a mapped file, whose pages are given back to the kernel as they pile up: the table may
grow with the input, the process does not. Fingerprints use the interpreter's keyed hash, so nobody
can prepare collisions, and the table means nothing to another process: it is rebuilt on resuming.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

EXACT_BYTES = 24 << 20
"""Bytes of ids, with 100 for each one's bookkeeping, that are kept as they are."""

_SLOT = 2  # 64-bit words of one entry
_WORD = 8
_MASK = (1 << 64) - 1
_FULL = 0.6
_FIRST_SLOTS = 1 << 18
_RESIDENT_BYTES = 16 << 20  # tables up to this size stay mapped in
_PROBES_RESIDENT = 256  # inserts into a larger one before its pages are given back


class SeenIDs:
    """A set of ids that can only grow. Use as a context manager: it may hold a file."""

    def __init__(self, folder: Path, exact_bytes: int = EXACT_BYTES) -> None:
        self._folder = folder
        self._exact: set[bytes] | None = set()
        self._room = exact_bytes
        self._table: _Table | None = None

    def add(self, custom_id: bytes) -> bool:
        """Whether the id is new; it is seen from now on."""
        exact = self._exact
        if exact is None:
            assert self._table is not None
            return self._table.add(custom_id)
        before = len(exact)
        exact.add(custom_id)
        if len(exact) == before:
            return False
        self._room -= len(custom_id) + 100
        if self._room < 0:
            self._spill(exact)
        return True

    def add_all(self, ids: Sequence[bytes]) -> list[int]:
        """Add ids in order; the positions of those that were seen before, or earlier among them."""
        exact = self._exact
        if exact is not None:
            fresh = set(ids)
            if len(fresh) == len(ids) and exact.isdisjoint(fresh):
                exact |= fresh
                self._room -= sum(map(len, ids)) + 100 * len(ids)
                if self._room < 0:
                    self._spill(exact)
                return []
        add = self.add
        return [position for position, custom_id in enumerate(ids) if not add(custom_id)]

    def _spill(self, exact: set[bytes]) -> None:
        self._table = _Table(self._folder, max(_FIRST_SLOTS, 4 * len(exact)))
        for custom_id in exact:
            self._table.add(custom_id)
        self._exact = None

    def close(self) -> None:
        """Forget everything."""
        self._exact = set()
        if self._table is not None:
            self._table.close()
            self._table = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Table:
    """Fingerprints by linear probing. A slot of two zero words is free."""

    def __init__(self, folder: Path, slots: int) -> None:
        self._folder = folder
        self._map, self._words, self._slots = _mapped(folder, slots)
        self._count = 0
        self._touched = 0

    def add(self, custom_id: bytes) -> bool:
        first = hash(custom_id) & _MASK or 1
        second = hash(custom_id + b"\0") & _MASK
        if not _insert(self._words, self._slots, first, second):
            return False
        self._count += 1
        if self._count > self._slots * _FULL:
            self._grow()
        self._touched += 1
        if self._touched >= _PROBES_RESIDENT:
            self._release()
        return True

    def _release(self) -> None:
        """Give the pages back; what they hold stays in the file."""
        self._touched = 0
        if len(self._map) > _RESIDENT_BYTES:
            self._map.madvise(mmap.MADV_DONTNEED)

    def _grow(self) -> None:
        old_map, old_words = self._map, self._words
        self._map, self._words, self._slots = _mapped(self._folder, self._slots * 4)
        for start in range(0, len(old_words), _SLOT):
            if old_words[start]:
                _insert(self._words, self._slots, old_words[start], old_words[start + 1])
                self._touched += 1
                if self._touched >= _PROBES_RESIDENT:
                    self._release()
                    old_map.madvise(mmap.MADV_DONTNEED)
        old_words.release()
        old_map.close()

    def close(self) -> None:
        self._words.release()
        self._map.close()


def _insert(words: memoryview, slots: int, first: int, second: int) -> bool:
    """Put a fingerprint in; False when it is there."""
    at = first % slots * _SLOT
    end = slots * _SLOT
    while True:
        found = words[at]
        if not found:
            words[at] = first
            words[at + 1] = second
            return True
        if found == first and words[at + 1] == second:
            return False
        at += _SLOT
        if at == end:
            at = 0


def _mapped(folder: Path, at_least: int) -> tuple[mmap.mmap, memoryview, int]:
    """A zeroed table without a name in the folder. Its space is reserved first: writing to a
    mapped file on a full disk would kill the process, reserving raises OSError.
    """
    slots = 1 << (at_least - 1).bit_length()
    size = slots * _SLOT * _WORD
    name = folder / f"ids-{os.getpid()}-{slots}"
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        name.unlink()
        os.posix_fallocate(handle, 0, size)
        mapped = mmap.mmap(handle, size)
    finally:
        os.close(handle)
    return mapped, memoryview(mapped).cast("Q"), slots

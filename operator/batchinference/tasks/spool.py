"""Local files of a task, and moving their bytes. Memory: one chunk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from batchinference.errors import Stalled
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import ObjectInfo, ObjectStore

CHUNK = 1 << 20


@contextmanager
def folder(spool: Path, run: Run) -> Iterator[Path]:
    """A fresh folder for one task, gone afterwards whatever happened."""
    spool.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{run.key[:16]}-", dir=spool) as name:
        yield Path(name)


def chunks(file: IO[bytes], start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """The bytes of a file between two offsets."""
    file.seek(start)
    left = end - start if end is not None else None
    while left is None or left > 0:
        data = file.read(CHUNK if left is None else min(CHUNK, left))
        if not data:
            return
        if left is not None:
            left -= len(data)
        yield data


def store_file(store: ObjectStore, uri: str, file: IO[bytes]) -> None:
    """Write a whole local file to the store; visible as a whole or not at all."""
    file.flush()
    writer = store.writer(uri)
    try:
        for chunk in chunks(file):
            writer.write(chunk)
        writer.commit()
    except BaseException:
        writer.abort()
        raise


def staged(store: ObjectStore, uri: str) -> ObjectInfo:
    """A staged object that must be there.

    Raises:
        Stalled: it is gone.
    """
    info = store.head(uri)
    if info is None:
        raise Stalled(
            Reason.STAGING_UNAVAILABLE,
            f"{uri} is gone from staging; was it cleaned up by a lifecycle rule, or by hand?",
        )
    return info

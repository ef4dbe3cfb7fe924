"""What a task is given to work with: ports, a folder for spool files. No policy.

The composition root builds one per task from the task's connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from batchinference.model.work import TaskReport
from batchinference.ports import BatchData, ObjectInfo, ObjectStore, ResultPlace

PART_BYTES = 256 << 20
"""Size at which a part of the results is closed; whole lines, so a part may be a line above it."""


class InputSource(Protocol):
    """The user's input: one or more objects in a stable order."""

    def objects(self) -> Sequence[ObjectInfo]:
        """The input as it is now.

        Raises:
            Stalled: `InputNotFound` and what else keeps it from being read.
            Permanent: it can never be this operator's input.
        """

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """The lines of one of them, from that byte on: its own bytes, or those of what it holds as
        lines of JSON. Raises SourceChanged when it is another now, Permanent InputUnreadable.
        """

    def is_table(self, info: ObjectInfo) -> bool:
        """Whether its records are rows of a table, without lines of their own."""


@dataclass(frozen=True, slots=True)
class Workbench:
    """The ports of one task.

    Attributes:
        spool: a folder on local disk for the bytes of a shard or two.
        template: of a job whose records are rows; None where it is not known any more.
        part_bytes: see `PART_BYTES`; small where the output place is made of small objects.
    """

    source: InputSource
    staging: ObjectStore
    output: ResultPlace
    data: BatchData
    spool: Path
    part_bytes: int = PART_BYTES
    template: Mapping[str, Any] | None = None


Report = Callable[[TaskReport], None]

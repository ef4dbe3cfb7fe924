"""The record that several operators fight for, and where it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Lease:
    """The record that is fought for.

    Attributes:
        holder: identity; "" when it was released.
        duration_s: for how long others leave it alone after it was last changed.
        acquired, renewed: as the holder's clock had it; for people.
        transitions: how often it changed hands.
        version: the precondition of a write; "" of one that is not stored.
    """

    holder: str
    duration_s: int
    acquired: datetime | None = None
    renewed: datetime | None = None
    transitions: int = 0
    version: str = ""


class Leases(Protocol):
    """Where the record is stored."""

    async def read(self) -> Lease | None:
        """The record; None when there is none. Raises Stalled, Retry."""

    async def write(self, lease: Lease) -> str:
        """Create it (version "") or change it; returns the new version.

        Raises:
            Superseded: somebody else was first.
            Stalled, Retry.
        """

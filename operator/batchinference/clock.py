"""Time and randomness as dependencies, so that tests and simulations own them.

Knows nothing of the operator. Code below `runtime` takes `now` as an argument instead.
"""

from __future__ import annotations

import asyncio
import random
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What time it is, and how to wait."""

    def now(self) -> datetime:
        """The wall clock in UTC, for everything that is written down."""

    def elapsed(self) -> float:
        """Seconds on a clock that never jumps back and counts the time a machine was suspended.

        For deadlines inside one process. Its zero has no meaning.
        """

    async def sleep(self, seconds: float) -> None:
        """Wait. Zero and below yields once."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)

    def elapsed(self) -> float:
        """See `Clock.elapsed`: CLOCK_BOOTTIME, which goes on while a machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(max(0.0, seconds))


class Randomness(Protocol):
    """The source of jitter."""

    def random(self) -> float:
        """A number in [0, 1)."""


def system_randomness() -> Randomness:
    """Jitter for production: not reproducible, not for secrets."""
    return random.Random()  # noqa: S311 - jitter, not cryptography

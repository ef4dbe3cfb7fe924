"""The sandbox's time: real time plus an offset that tests may push forward.

Owns the offset. Knows nothing of batches, states or waiting.
"""

import time
from datetime import UTC, datetime


class Clock:
    """Seconds since the epoch, never running backwards when advanced."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def now(self) -> float:
        """Return the sandbox's present moment in Unix seconds."""
        return time.time() + self._offset_s

    def advance(self, seconds: float) -> None:
        """Push time forward.

        Raises:
            ValueError: when `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"time only goes forward, got {seconds} seconds")
        self._offset_s += seconds


def iso8601(moment: float) -> str:
    """Render Unix seconds the way AWS does: UTC, milliseconds, a trailing Z."""
    text = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")

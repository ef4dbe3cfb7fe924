"""The transfers under way in this process, and which of them is too slow.

The time-outs of sockets only see silence: an endpoint that sends a byte a minute keeps every one of
them happy and holds its task for years. So what moves bytes says so here, and the watchdog of a
worker (`app.worker`) ends a process whose transfer is too slow. Nothing is interrupted in its
thread. What is moved, and by which library, is not known here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from batchinference.errors import Retry


@dataclass(frozen=True, slots=True)
class Pace:
    """The slowest that a transfer may be.

    Attributes:
        idle_s: seconds that it may fall behind, which is also how long it may move nothing.
        answer_s: seconds more for a call as a whole, so that time-outs of sockets, with the
            attempts that an SDK makes by itself, come first where a server is silent.
        least_bytes_per_s: the speed that it may not fall behind for longer.
    """

    idle_s: float = 120.0
    answer_s: float = 90.0
    least_bytes_per_s: float = 64 << 10


class Transfers:
    """All transfers of a process. May be used by several threads."""

    def __init__(
        self,
        pace: Pace = Pace(),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pace = pace
        self._now = now
        self._lock = threading.Lock()
        self._going: dict[int, list[Transfer]] = {}

    def begin(self, what: str, reason: str) -> Transfer:
        """Several moves that together are one transfer.

        Args:
            what: the transfer in the reader's words, such as `Reading s3://bucket/key`.
            reason: that of the fault when it is too slow.
        """
        return Transfer(self, what, reason)

    @contextmanager
    def call(self, what: str, reason: str, size: int = 0) -> Iterator[None]:
        """A transfer that is one call, in which `size` bytes are moved."""
        with self.begin(what, reason).asking(size):
            yield

    def too_slow(self) -> Retry | None:
        """The fault of a transfer that is too slow at this moment."""
        with self._lock:
            now = self._now()
            for nested in self._going.values():
                if nested[-1].is_too_slow(now):
                    return nested[-1].fault(now)
        return None

    def enter(self, transfer: Transfer) -> None:
        """It begins to move something. One that it is part of does not count meanwhile."""
        with self._lock:
            now = self._now()
            nested = self._going.setdefault(threading.get_ident(), [])
            if nested:
                nested[-1].pause(now)
            nested.append(transfer)
            transfer.resume(now)

    def leave(self, transfer: Transfer) -> None:
        """What it moved is there, or failed."""
        with self._lock:
            now = self._now()
            nested = self._going[threading.get_ident()]
            nested.remove(transfer)
            transfer.pause(now)
            if nested:
                nested[-1].resume(now)
            else:
                del self._going[threading.get_ident()]


class Transfer:
    """One transfer, used by one thread at a time. A fast beginning gives no credit for a slow end,
    and time between the moves does not count.
    """

    def __init__(self, transfers: Transfers, what: str, reason: str) -> None:
        self._transfers = transfers
        self._what = what
        self._reason = reason
        self._allowed_s = 0.0
        self._behind_s = 0.0
        self._spent_s = 0.0
        self._moved = 0
        self._since: float | None = None

    @contextmanager
    def moving(self, size: int = 0) -> Iterator[None]:
        """Its time runs inside, and is held against it until `moved` says what came of it.

        Args:
            size: bytes that are to be moved inside, for which it gets more time.
        """
        with self._allowing(size / self._transfers.pace.least_bytes_per_s):
            yield

    @contextmanager
    def asking(self, size: int = 0) -> Iterator[None]:
        """As `moving`, for a whole call of an SDK, which waits for its answer."""
        pace = self._transfers.pace
        with self._allowing(pace.answer_s + size / pace.least_bytes_per_s):
            yield

    @contextmanager
    def _allowing(self, allowed_s: float) -> Iterator[None]:
        self._allowed_s = allowed_s
        self._transfers.enter(self)
        try:
            yield
        finally:
            self._transfers.leave(self)

    def moved(self, size: int) -> None:
        """So many bytes went through."""
        self._moved += size
        self._behind_s = max(0.0, self._behind_s - size / self._transfers.pace.least_bytes_per_s)

    # ------------------------------------------------------------ under the lock of all transfers

    def resume(self, now: float) -> None:
        """Let its time run."""
        self._since = now

    def pause(self, now: float) -> None:
        """Let its time rest."""
        self._behind_s += self._running_s(now)
        self._spent_s += self._running_s(now)
        self._since = None

    def is_too_slow(self, now: float) -> bool:
        """Whether it has fallen behind for longer than it may."""
        behind_s = self._behind_s + self._running_s(now) - self._allowed_s
        return behind_s > self._transfers.pace.idle_s

    def fault(self, now: float) -> Retry:
        """What is told of it."""
        pace, seconds = self._transfers.pace, self._spent_s + self._running_s(now)
        came = f"{self._moved} bytes" if self._moved else "nothing complete"
        return Retry(
            self._reason,
            f"{self._what} was given up after {seconds:.0f} s, in which {came} came through: for "
            f"the last {pace.idle_s:g} s it was slower than {pace.least_bytes_per_s / 1024:g} "
            "KiB/s. It is tried again; if this goes on, look at the endpoint and the network in "
            "between.",
        )

    def _running_s(self, now: float) -> float:
        return 0.0 if self._since is None else now - self._since


TRANSFERS = Transfers()
"""Those of this process."""

"""How slow a transfer may be. Owns one promise: a call that moves bytes ends.

The time-outs of sockets only see silence: an endpoint that sends a byte a minute keeps every one of
them happy and holds its thread for years. So a call also gets an amount of time by what it moves,
and is interrupted in its thread when that is used up. What is moved, and by which library, is not
known here.
"""

from __future__ import annotations

import ctypes
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from batchinference.errors import Retry

T = TypeVar("T")

_AGAIN_S = 0.1
_NEVER = math.inf
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


@dataclass(frozen=True, slots=True)
class Pace:
    """The slowest that a transfer may be.

    Attributes:
        idle_s: seconds that it may fall behind, which is also how long it may move nothing.
        least_bytes_per_s: the speed that it may not fall behind for longer.
    """

    idle_s: float = 120.0
    least_bytes_per_s: float = 64 << 10

    def call(self, what: str, reason: str, do: Callable[[], T], size: int = 0) -> T:
        """One call that moves `size` bytes. Raises as `Transfer.call`."""
        return Transfer(self, what, reason).call(do, size)


PACE = Pace()


class Transfer:
    """Several calls that together move something. To be used by one thread.

    A fast beginning gives no credit for a slow end.
    """

    def __init__(self, pace: Pace, what: str, reason: str) -> None:
        """`what` is the transfer in the reader's words, such as `Reading s3://bucket/key`."""
        self._pace = pace
        self._what = what
        self._reason = reason
        self._behind_s = 0.0

    def call(self, do: Callable[[], T], size: int = 0) -> T:
        """Do it, for as long as moving `size` bytes may take. The time is held against the
        transfer until `moved` says what came of it.

        Raises:
            Retry: it was too slow.
            Whatever `do` raises.
        """
        room_s = self._pace.idle_s - self._behind_s + size / self._pace.least_bytes_per_s
        started = time.monotonic()
        alarm = _Alarm(threading.get_ident(), started + room_s)
        try:
            _alarms.set(alarm)
            return do()
        except _TimeIsUp:
            if not alarm.rang:
                raise  # it is for a call around this one
            raise self._too_slow() from None
        finally:
            alarm.is_over = True  # from here on only what rings at this very moment may be heard
            try:
                _silence(alarm)
            except _TimeIsUp:
                _silence(alarm)
            self._behind_s += time.monotonic() - started

    def moved(self, size: int) -> None:
        """So many bytes went through. Raises as `call`."""
        self._behind_s = max(0.0, self._behind_s - size / self._pace.least_bytes_per_s)
        if self._behind_s > self._pace.idle_s:
            raise self._too_slow()

    def _too_slow(self) -> Retry:
        return Retry(
            self._reason,
            f"{self._what} was given up: for {self._pace.idle_s:g} s it was slower than "
            f"{self._pace.least_bytes_per_s / 1024:g} KiB/s. It is tried again; if this goes on, "
            "look at the endpoint and the network in between.",
        )


# ---------------------------------------------------------------- interrupting a thread


class _TimeIsUp(BaseException):
    """Raised in the thread whose time is up. As KeyboardInterrupt it is no Exception: libraries
    clean up and let it pass, and don't take it for a fault that they may try again.
    """


@dataclass(slots=True, eq=False)
class _Alarm:
    """One call's time. `rings` is set while an exception may be on its way to the thread."""

    thread: int
    at: float
    rings: bool = False
    rang: bool = False
    is_over: bool = False


class _Alarms:
    """Raises `_TimeIsUp` in threads, again and again until their alarm is over: once may be lost,
    in a destructor, or to a call inside of another that was just over.

    A thread that is blocked in the kernel hears it when it comes back: time-outs of sockets see to
    that. No locks: an exception that comes while one is taken would leave it taken.
    """

    def __init__(self) -> None:
        self._set: set[_Alarm] = set()
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._sleeps_until = _NEVER
        self._thread: threading.Thread | None = None

    def set(self, alarm: _Alarm) -> None:
        self._set.add(alarm)
        if alarm.at < self._sleeps_until:
            self._wake.put(None)
        if self._thread is None:
            # Two threads may come here at once: two that ring are no harm.
            self._thread = threading.Thread(target=self._watch, name="pace", daemon=True)
            self._thread.start()

    def _watch(self) -> None:
        while True:
            self._sleeps_until = _NEVER  # whatever is set from here on wakes us
            now, first = time.monotonic(), _NEVER
            for alarm in list(self._set):
                if alarm.is_over:
                    self._set.discard(alarm)
                    continue
                if alarm.at <= now:
                    alarm.at = now + _AGAIN_S
                    _ring(alarm)
                first = min(first, alarm.at)
            self._sleeps_until = first
            with suppress(queue.Empty):
                self._wake.get(timeout=None if first == _NEVER else max(0.0, first - now))


def _ring(alarm: _Alarm) -> None:
    alarm.rings = True
    if not alarm.is_over:
        alarm.rang = True
        _raise_in(ctypes.c_ulong(alarm.thread), ctypes.py_object(_TimeIsUp))
    alarm.rings = False


def _silence(alarm: _Alarm) -> None:
    """Take back what an alarm that is over has raised and nobody has heard yet."""
    while alarm.rings:
        time.sleep(0)
    if alarm.rang:
        _raise_in(ctypes.c_ulong(alarm.thread), None)


_alarms = _Alarms()

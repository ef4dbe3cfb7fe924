"""Virtual time: an event loop whose clock jumps to the next timer, and the clock on top of it.

Nothing sleeps and nothing runs in another thread, so a run depends on its seed alone. Knows
nothing of the operator.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""What the wall clock shows when virtual time is 0."""

_SPIN_LIMIT = 200_000  # rounds of the loop without time moving: somebody waits by spinning


class Hang(AssertionError):
    """Nothing is ready and no timer is set: everybody waits for something that never comes."""


class _Jump(selectors.SelectSelector):
    """A selector that waits by moving the clock. Only the loop's own wake-up pipe is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.spins = 0
        self.limit: float | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Hang("nothing is ready and no timer is set")
        if timeout <= 0:
            self.spins += 1
            if self.spins > _SPIN_LIMIT:
                raise Hang(f"time stands still at {self.now:.3f} s: somebody waits by spinning")
        else:
            self.spins = 0
            self.now += timeout
            if self.limit is not None and self.now > self.limit:
                raise Hang(f"virtual time passed {self.limit:.0f} s without an end")
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time.

    Executor calls run inline, each between two delays from `thread_delay`, so that other tasks get
    their turn before and after as they would with real threads.

    Attributes:
        holds_back: asked before every callback; True = it keeps it, and may `wake` it later.
    """

    _ready: deque[asyncio.Handle]
    _scheduled: list[Any]
    _stopping: bool

    def __init__(self, thread_delay: Callable[[], float] = lambda: 0.0) -> None:
        self._jump = _Jump()
        self._thread_delay = thread_delay
        self.complaints: list[dict[str, Any]] = []
        self.holds_back: Callable[[asyncio.Handle], bool] | None = None
        super().__init__(self._jump)
        self._clock_resolution = 1e-9
        self.set_exception_handler(lambda _loop, context: self.complaints.append(context))

    def time(self) -> float:
        return self._jump.now

    def _run_once(self) -> None:
        """One round, as of the base class but for the system calls, and for what is held back."""
        timers, ready = self._scheduled, self._ready
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not ready and not self._stopping:
            self._jump.select(timers[0]._when - self._jump.now if timers else None)
        else:
            self._jump.select(0)
        while timers and timers[0]._when <= self._jump.now + self._clock_resolution:
            due = heapq.heappop(timers)
            due._scheduled = False
            ready.append(due)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if self.holds_back is None or not self.holds_back(handle):
                handle._run()

    def wake(self, held: Iterable[asyncio.Handle]) -> None:
        """Have what was held back run now, in its order."""
        self._ready.extend(held)

    def limit_time(self, until: float | None) -> None:
        """Make it a `Hang` when virtual time passes `until`."""
        self._jump.limit = until

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        done: asyncio.Future[T] = self.create_future()

        def answer(settle: Callable[[], None]) -> None:
            if not done.done():
                settle()

        def work() -> None:
            # A thread that has begun goes on when its caller is cancelled; so does this one.
            try:
                result = func(*args)
            except Exception as exc:  # noqa: BLE001 - handed to the caller, as an executor does
                error = exc
                self.call_later(self._thread_delay(), answer, lambda: done.set_exception(error))
            else:
                self.call_later(self._thread_delay(), answer, lambda: done.set_result(result))

        self.call_later(self._thread_delay(), work)
        return done

    def pending(self) -> list[asyncio.Task[Any]]:
        """The tasks that are not done, by name."""
        return sorted(asyncio.all_tasks(self), key=lambda task: task.get_name())

    def describe_pending(self) -> str:
        """Every waiting task with the line where it waits, for a `Hang`."""
        lines = []
        for task in self.pending():
            where = "not started"
            for frame in task.get_stack():
                where = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
            lines.append(f"  {task.get_name()}: {where}")
        return "\n".join(lines)


class VirtualClock:
    """`clock.Clock` in the running loop's time."""

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.elapsed())

    def elapsed(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class SeededRandomness:
    """`clock.Randomness` that gives the same numbers for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def random(self) -> float:
        return self._random.random()


def run_virtual(
    main: Coroutine[Any, Any, T],
    *,
    thread_delay: Callable[[], float] = lambda: 0.0,
    limit_s: float | None = None,
) -> T:
    """Run a coroutine in virtual time; everything it left running is cancelled afterwards.

    Raises:
        Hang: it waits for what never comes; the message lists who waits where.
    """
    loop = VirtualLoop(thread_delay)
    loop.limit_time(limit_s)
    try:
        asyncio.set_event_loop(loop)
        task = contextvars.Context().run(loop.create_task, main)
        try:
            return loop.run_until_complete(task)
        except Hang as hang:
            raise Hang(f"{hang}; waiting are:\n{loop.describe_pending()}") from None
        finally:
            loop.limit_time(None)
            _drain(loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _drain(loop: VirtualLoop) -> None:
    left = [task for task in loop.pending() if not task.done()]
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())

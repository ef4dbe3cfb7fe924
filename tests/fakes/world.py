"""What all fakes share: seeded delays, the lives of the operator, and the points where it dies.

A `Process` is one life of the operator: its tasks and timers carry it in their context, and a
fake that is called by a dead one does nothing. What happens outside the operator (a provider's
work, a watch's delivery) runs in no process and survives.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from batchinference.clock import Clock
from fakes.clock import VirtualClock, VirtualLoop

_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)

_CANCEL_ROUNDS = 2_000  # rounds of the loop after which a task is said to swallow cancellation


STUCK_S = 45.0
"""How long a stuck call takes one way."""


class Process:
    """One life of the operator.

    Attributes:
        died: set when it was killed.
        is_frozen: stopped, as by SIGSTOP: nothing of it runs, and all of it goes on later.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.alive = True
        self.is_frozen = False
        self._held: list[asyncio.Handle] = []
        self._stopped_in: list[asyncio.Future[None]] = []
        self.died = asyncio.Event()
        self._loop = loop
        self._tasks: list[asyncio.Task[Any]] = []
        self._context = contextvars.copy_context()
        self._context.run(_PROCESS.set, self)

    def run(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call something as this process, unless it is dead."""
        if self.alive:
            self._context.copy().run(callback, *args)

    def spawn(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Start a task of this process."""
        return self._loop.create_task(coro, context=self._context.copy())

    def later(self, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """Call something as this process after a while; a death in between cancels it."""
        self._loop.call_later(delay, callback, *args, context=self._context.copy())

    async def freeze(self) -> None:
        """Stop the process here, in the middle of a call, until `thaw`.

        Whatever becomes ready meanwhile (timers, answers, events) is kept. The call goes on first:
        what was about to be sent is sent, however late, before any time-out is noticed.
        """
        self.is_frozen = True
        here: asyncio.Future[None] = self._loop.create_future()
        self._stopped_in.append(here)
        if isinstance(self._loop, VirtualLoop):
            self._loop.holds_back = _hold_back
        await here

    def thaw(self) -> None:
        """Let it go on."""
        self.is_frozen = False
        stopped, self._stopped_in = self._stopped_in, []
        for here in stopped:
            if not here.done():
                here.set_result(None)
        held, self._held = self._held, []
        if isinstance(self._loop, VirtualLoop):
            self._loop.wake(held)

    def hold(self, handle: asyncio.Handle) -> None:
        """Keep what became ready while it is frozen."""
        self._held.append(handle)

    def kill(self) -> None:
        """End it here and now, as `kill -9` would: no further effect of it reaches a fake."""
        self.alive = False
        if self.is_frozen:
            self.thaw()
        self.died.set()
        for handle in list(getattr(self._loop, "_scheduled", ())):
            if handle._context.get(_PROCESS) is self:
                handle.cancel()
        for task in self._tasks:
            task.cancel()

    async def buried(self) -> None:
        """Wait until every task of a killed process is gone.

        Raises:
            AssertionError: a task swallows its cancellation.
        """
        for _ in range(_CANCEL_ROUNDS):
            left = [task for task in self._tasks if not task.done()]
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(0)
        raise AssertionError(f"{self.name}: these swallow their cancellation: {left}")

    def owns(self, task: asyncio.Task[Any]) -> None:
        """Remember a task, so that it dies with the process."""
        if len(self._tasks) > 256:
            self._tasks = [one for one in self._tasks if not one.done()]
        self._tasks.append(task)
        if not self.alive:
            task.cancel()

    def failures(self) -> list[BaseException]:
        """What tasks of this process died of, other than by being cancelled."""
        over = [task for task in self._tasks if task.done() and not task.cancelled()]
        return [error for task in over if (error := task.exception()) is not None]


def _hold_back(handle: asyncio.Handle) -> bool:
    process = handle._context.get(_PROCESS)  # type: ignore[attr-defined]
    if process is None or not process.is_frozen:
        return False
    process.hold(handle)
    return True


def current_process() -> Process | None:
    """Who is calling; None outside of any process."""
    return _PROCESS.get()


def track_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Make a loop tell processes of their tasks."""

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **kwargs)
        context = kwargs.get("context")
        process = context.get(_PROCESS) if context is not None else _PROCESS.get()
        if process is not None:
            process.owns(task)
        return task

    loop.set_task_factory(factory)


class World:
    """Seeded delays and crash points. The default world is quick, kind and never crashes.

    Attributes:
        stuck_rate: how often a call takes longer one way than anybody waits for it.
        crash: asked at every point as (name, "before" | "after"); True kills the caller there.
        freeze: asked likewise, at calls from outside alone; True stops the caller there.
        trace: told in one line what happened; for the report of a failing seed.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        latency_s: float = 0.0,
        crash: Callable[[str, str], bool] | None = None,
        trace: Callable[[str], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.clock: Clock = clock or VirtualClock()
        self.latency_s = latency_s
        self.stuck_rate = 0.0
        self.crash = crash
        self.freeze: Callable[[str, str], bool] | None = None
        self._trace = trace

    def trace(self, line: str) -> None:
        """Note what happened."""
        if self._trace is not None:
            process = current_process()
            self._trace(f"{process.name if process else '-':>4} {line}")

    def chance(self, probability: float) -> bool:
        """A seeded yes or no."""
        return probability > 0 and self.random.random() < probability

    def delay(self) -> float:
        """Seconds that a call takes one way: mostly short, now and then ten times as long."""
        if self.chance(self.stuck_rate):
            self.trace("a call is stuck")
            return STUCK_S
        if not self.latency_s:
            return 0.0
        stretch = 10.0 if self.random.random() < 0.05 else 1.0
        return self.random.random() * self.latency_s * stretch

    @asynccontextmanager
    async def effect(self, name: str) -> AsyncIterator[None]:
        """A call from outside: delay, crash point, the effect itself, crash point, delay.

        The body must not await: it takes hold as a whole or, when the caller is dead, not at all.
        """
        await self.pause()
        await self._freeze_point(name, "before")
        self.crash_point(name, "before")
        yield
        self.crash_point(name, "after")
        await self._freeze_point(name, "after")
        await self.pause()

    async def pause(self) -> None:
        """A delay; the dead never come back from it."""
        demand_life()
        await asyncio.sleep(self.delay())
        demand_life()

    async def _freeze_point(self, name: str, when: str) -> None:
        process = current_process()
        if process is not None and self.freeze is not None and self.freeze(name, when):
            self.trace(f"FREEZE {when} {name}")
            await process.freeze()
            self.trace("goes on")

    def crash_point(self, name: str, when: str) -> None:
        """Where the operator may die.

        Raises:
            asyncio.CancelledError: it did.
        """
        demand_life()
        process = current_process()
        if process is not None and self.crash is not None and self.crash(name, when):
            self.trace(f"CRASH {when} {name}")
            process.kill()
            raise asyncio.CancelledError

    def later(self, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        """Something that happens in the world, whoever lives or dies."""
        loop = asyncio.get_running_loop()
        loop.call_later(delay, callback, *args, context=contextvars.Context())


def demand_life() -> None:
    """Stop a dead process from having any effect.

    Raises:
        asyncio.CancelledError: the caller is dead.
    """
    process = current_process()
    if process is not None and not process.alive:
        raise asyncio.CancelledError

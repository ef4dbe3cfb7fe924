"""How batches pass through states: stays that end by time, by release or by an interruption.

Owns waiting and holds. Must not know any provider's states or what happens between them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from .clock import Clock


def _never() -> bool:
    return False


class Lifecycle:
    """Runs one task per batch; a batch waits without polling."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._held: set[tuple[str, str]] = set()
        self._pokes: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.broken: list[BaseException] = []  # bugs of the sandbox, shown by the control endpoint

    def start(self, key: str, steps: Coroutine[Any, Any, None]) -> None:
        """Begin a batch's life."""
        self._pokes[key] = asyncio.Event()
        task = asyncio.get_running_loop().create_task(steps, name=key)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._pokes.pop(task.get_name(), None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.broken.append(error)

    async def stay(
        self,
        key: str,
        place: tuple[str, str],
        seconds: float,
        interrupted: Callable[[], bool] = _never,
        deadline: float | None = None,
    ) -> None:
        """Stay in a state (`place` = provider, state) for a time, longer while it is held.

        Ends early when `interrupted()` turns true or `deadline` (Unix seconds) has come.
        """
        until = self.clock.now() + seconds
        poke = self._pokes[key]
        while not interrupted():
            wake = None if place in self._held else until
            if deadline is not None:
                wake = deadline if wake is None else min(wake, deadline)
            poke.clear()
            now = self.clock.now()
            if wake is not None and wake <= now:
                return
            try:
                async with asyncio.timeout(None if wake is None else wake - now):
                    await poke.wait()
            except TimeoutError:
                continue

    def is_held(self, place: tuple[str, str]) -> bool:
        """Tell whether batches are kept in a state."""
        return place in self._held

    def hold(self, place: tuple[str, str]) -> None:
        """Keep every batch that is or comes into a state there until released."""
        self._held.add(place)
        self.poke()

    def release(self, provider: str | None = None, state: str | None = None) -> None:
        """Let go of one state, of a provider's, or of all."""
        self._held = {
            place
            for place in self._held
            if (provider is not None and place[0] != provider)
            or (state is not None and place[1] != state)
        }
        self.poke()

    def held(self) -> list[list[str]]:
        """List the places in force."""
        return sorted([provider, state] for provider, state in self._held)

    def poke(self, key: str | None = None) -> None:
        """Make one batch, or all, look at the clock and their interruptions again."""
        if key is not None:
            if key in self._pokes:
                self._pokes[key].set()
            return
        for event in self._pokes.values():
            event.set()

    async def stop(self) -> None:
        """End all lives where they are."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

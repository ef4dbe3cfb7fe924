"""A keyed work queue: a key is worked on by one worker at a time, however often it is added.

Knows nothing of what keys mean. Keys added while they are being worked on come again afterwards.
"""

from __future__ import annotations

import asyncio
import heapq

from batchinference.clock import Clock


class KeyedQueue:
    """Dirty-set de-duplication with delays, in memory and on one loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ready: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()
        self._working: set[str] = set()
        self._again: set[str] = set()
        self._delayed: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._earlier = asyncio.Event()

    def __len__(self) -> int:
        return self._ready.qsize()

    def add(self, key: str) -> None:
        """Have the key worked on soon."""
        self._due.pop(key, None)
        if key in self._working:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: str, seconds: float) -> None:
        """Have the key worked on then, or earlier if something earlier is planned."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._clock.elapsed() + seconds
        planned = self._due.get(key)
        if planned is not None and planned <= due:
            return
        self._due[key] = due
        heapq.heappush(self._delayed, (due, key))
        self._earlier.set()

    async def take(self) -> str:
        """The next key; call `done` with it afterwards."""
        key = await self._ready.get()
        self._queued.discard(key)
        self._working.add(key)
        return key

    def done(self, key: str) -> None:
        """The worker is through with the key."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def run_delays(self) -> None:
        """Move delayed keys when they are due; run as a task for the queue's life."""
        while True:
            self._earlier.clear()
            now = self._clock.elapsed()
            while self._delayed and self._delayed[0][0] <= now:
                due, key = heapq.heappop(self._delayed)
                if self._due.get(key) == due:
                    del self._due[key]
                    self.add(key)
            if not self._delayed:
                await self._earlier.wait()
                continue
            wait = self._delayed[0][0] - now
            try:
                async with asyncio.timeout(wait):
                    await self._earlier.wait()
            except TimeoutError:
                continue

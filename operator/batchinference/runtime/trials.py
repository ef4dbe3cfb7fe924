"""Trials of provider objects: calls to endpoints that may be silent, beside the reconcilers.

Bounded per namespace and over all, and the namespaces take turns, so that whoever points many
objects at nothing waits for himself alone. It must not know what a trial does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from batchinference.ports import Metrics

Try = Callable[[], Awaitable[None]]
"""One trial: ends in bounded time, reports by itself, and does not raise."""


@dataclass(slots=True)
class _Trial:
    """One that waits for its turn, or is under way.

    Attributes:
        version: of the object that is tried.
        task: None while it waits.
    """

    namespace: str
    version: tuple[str, int]
    work: Try
    task: asyncio.Task[None] | None = None


class Trials:
    """Runs trials, one per object at a time."""

    def __init__(self, at_once: int, per_namespace: int, metrics: Metrics) -> None:
        self._at_once = at_once
        self._per_namespace = per_namespace
        self._metrics = metrics
        self._trials: dict[str, _Trial] = {}
        self._turns: dict[str, None] = {}
        """Namespaces by turn: the one that was served last comes last."""
        self._closed = False

    def start(self, key: str, namespace: str, version: tuple[str, int], work: Try) -> None:
        """Have the object tried. One of that version that waits or is under way goes on; one of
        another version is of no use any more and is dropped.
        """
        known = self._trials.get(key)
        if known is not None and known.version == version:
            return
        self.drop(key)
        self._trials[key] = _Trial(namespace, version, work)
        self._turns.setdefault(namespace)
        self._begin()

    def drop(self, key: str) -> None:
        """Nobody wants to know about the object any more."""
        known = self._trials.pop(key, None)
        if known is not None and known.task is not None:
            known.task.cancel()

    async def close(self) -> None:
        """End all."""
        self._closed = True
        tasks = [trial.task for trial in self._trials.values() if trial.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self) -> None:
        """Begin whatever there is room for."""
        running = Counter(t.namespace for t in self._trials.values() if t.task is not None)
        waiting: dict[str, list[str]] = {}
        for key, trial in self._trials.items():
            if trial.task is None:
                waiting.setdefault(trial.namespace, []).append(key)
        while not self._closed and running.total() < self._at_once:
            turn = next(
                (n for n in self._turns if waiting.get(n) and running[n] < self._per_namespace),
                None,
            )
            if turn is None:
                break
            key = waiting[turn].pop(0)
            trial = self._trials[key]
            trial.task = asyncio.create_task(self._run(key, trial), name=f"trial {key}")
            running[turn] += 1
            del self._turns[turn]
            self._turns[turn] = None
        for namespace in [n for n in self._turns if not waiting.get(n) and not running[n]]:
            del self._turns[namespace]
        self._metrics.gauge("provider_trials_waiting", sum(map(len, waiting.values())))

    async def _run(self, key: str, trial: _Trial) -> None:
        try:
            await trial.work()
        finally:
            if self._trials.get(key) is trial:
                del self._trials[key]
            self._begin()

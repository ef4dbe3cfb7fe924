"""Many seeds in several processes; what is told of them does not depend on how many."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sim.scenario import draw
from sim.shrink import shrink, story
from sim.stage import play

_AT_ONCE = 8
_BETWEEN_LOOKS = 128  # seeds per process between two looks at the clock
_MEMORY = Path("/dev/shm")
"""Where spooled files cost nothing; the system's place where that is missing."""


@dataclass(frozen=True)
class Played:
    """What came of one seed.

    Attributes:
        story: what went wrong; "" when nothing did.
        counts: what happened, by name.
    """

    seed: int
    story: str
    counts: Counter[str]


@dataclass
class Totals:
    """What came of all of them."""

    seeds: int = 0
    failing: list[int] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, played: Played) -> None:
        """Count one in."""
        self.seeds += 1
        self.counts += played.counts
        if played.story:
            self.failing.append(played.seed)

    def lines(self) -> list[str]:
        """For the end of the output; the last one is how many seeds were run and failed."""
        told = [", ".join(f"{name}: {n}" for name, n in sorted(self.counts.items()))]
        if self.failing:
            told.append(f"failing seeds: {self.failing}")
        return [*told, f"{self.seeds} seeds run, {len(self.failing)} failures"]


def run_seeds(
    first: int, seeds: int, jobs: int, *, shrinks: bool = True, most_s: float | None = None
) -> Iterator[Played]:
    """Play seeds from `first` on, in order, in that many processes. With `most_s`, those that come
    after that many seconds are left out.
    """
    if _MEMORY.is_dir():
        tempfile.tempdir = str(_MEMORY)
    until = None if most_s is None else time.monotonic() + most_s
    numbers = range(first, first + seeds)
    one = _cut_down if shrinks else _whole
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for at in range(0, seeds, step := _BETWEEN_LOOKS * jobs):
            if until is not None and time.monotonic() > until:
                return
            yield from pool.imap(one, numbers[at : at + step], chunksize=_AT_ONCE)


def _cut_down(seed: int) -> Played:
    return _play(seed, shrinks=True)


def _whole(seed: int) -> Played:
    return _play(seed, shrinks=False)


def _play(seed: int, *, shrinks: bool) -> Played:
    report = play(draw(seed))
    told = ""
    if report.failed:
        told = story(shrink(report) if shrinks else report)
    return Played(seed, told, report.counts)

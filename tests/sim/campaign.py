"""Many seeds in several processes; what is told of them does not depend on how many."""

from __future__ import annotations

import gc
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


@dataclass(frozen=True)
class Span:
    """Which seeds to play.

    Attributes:
        first: the first one.
        most: how many at most.
        least: how many at least.
        most_s: seconds after which no more than `least` are played; None = all are.
    """

    first: int
    most: int
    least: int = 0
    most_s: float | None = None


def run_seeds(span: Span, jobs: int, *, shrinks: bool = True) -> Iterator[Played]:
    """Play seeds in their order, in that many processes."""
    if _MEMORY.is_dir():
        tempfile.tempdir = str(_MEMORY)
    until = None if span.most_s is None else time.monotonic() + span.most_s
    one = _cut_down if shrinks else _whole
    numbers = range(span.first, span.first + span.most)
    with multiprocessing.get_context("fork").Pool(jobs, initializer=_collect_rarely) as pool:
        for number, played in enumerate(pool.imap(one, numbers, chunksize=_AT_ONCE), start=1):
            yield played
            if until is not None and number >= span.least and time.monotonic() > until:
                return


def _collect_rarely() -> None:
    """A play's tasks and loops are cycles, but few: looking for them took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


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

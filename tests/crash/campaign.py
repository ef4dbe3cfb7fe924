"""Many small jobs, one operator, and a seed that says what is killed and how long to wait.

The kinds, the targets and the pauses are the seed's; what they meet is as random as real time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from crash.blows import Blows
from crash.books import Tally, balance, defects, left_behind
from crash.jobs import PATIENCE_S, Jobs
from stack import Stack, wait_for

SANDBOX = (
    *("--set", "openai.validating_s=0.2", "--set", "openai.in_progress_s=3"),
    *("--set", "openai.finalizing_s=0.2", "--set", "bedrock.validating_s=0.2"),
    *("--set", "bedrock.in_progress_s=3", "--set", "bedrock.min_records=1"),
)
_AT_ONCE = 9
_HASTY = 0.2
"""How often a blow falls before the operator has started."""


class Campaign:
    """Plays once, on a stack without an operator."""

    def __init__(
        self, stack: Stack, *, seed: int, say: Callable[[str], None] = lambda _text: None
    ) -> None:
        self._luck = random.Random(seed)
        self._say = say
        self._tally = Tally()
        self._jobs = Jobs(stack, _AT_ONCE)
        self._blows = Blows(stack, self._jobs.team, self._luck, self._tally)

    def play(self, kills: int) -> Tally:
        """Kill so many processes, let everything end, and balance the books."""
        tally, blows, jobs = self._tally, self._blows, self._jobs
        began = time.monotonic()
        while tally.kills.total() < kills:
            if blows.calm:
                jobs.keep_alive()
            hasty = self._luck.random() < _HASTY
            blows.see_to_the_operator(healthy=not hasty)
            blows.at_random(0.05, 2.5)
            kind = blows.strike()
            self._say(f"{time.monotonic() - began:6.0f} s {tally.kills.total():4} {kind}")
        self._say(f"{tally.kills.total()} kills; {len(jobs.given)} jobs are to end by themselves")
        blows.heal()
        unended = jobs.wait_for_the_end()
        tally.problems += [f"{name} did not end: {jobs.team.status(name)}" for name in unended]
        balance(jobs.team, [job for job in jobs.given if job.name not in unended], tally)
        try:
            wait_for("everything cleaned up", lambda: not left_behind(jobs.team), PATIENCE_S)
        except AssertionError:
            tally.problems.append(f"left behind: {left_behind(jobs.team)[:10]}")
        tally.problems += defects(blows.operator.log.read_text(errors="replace"))
        tally.seconds = time.monotonic() - began
        return tally

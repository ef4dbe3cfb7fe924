"""Cuts a failing scenario down to what it needs to fail, and tells its story."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, replace

from fakes.provider import Faults
from sim.scenario import Scenario
from sim.stage import Report, play

_TRIES = 60


def shrink(
    report: Report, *, mutant: Callable[[ExitStack], None] | None = None, tries: int = _TRIES
) -> Report:
    """A report of a smaller scenario that fails alike, in a bounded number of tries."""
    best, shrunk = report, True
    while shrunk and tries > 0:
        shrunk = False
        for smaller in _smaller(best.scenario):
            tries -= 1
            again = play(smaller, mutant=mutant)
            if again.failed and _kind(again) == _kind(report):
                best, shrunk = again, True
                break
            if tries <= 0:
                break
    return best


def _kind(report: Report) -> str:
    """What sort of failure it is: its first sentence without names and numbers."""
    return "".join(c for c in report.problems[0].split("\n")[0][:200] if c.isalpha())[-30:]


def _smaller(scenario: Scenario) -> Iterator[Scenario]:
    if scenario.crash_gaps:
        yield replace(scenario, crash_gaps=(), pauses=())
    if len(scenario.jobs) > 1:
        for n in range(len(scenario.jobs)):
            left = (*scenario.jobs[:n], *scenario.jobs[n + 1 :])
            kept = {j.name for j in left} | {""}
            acts = tuple(a for a in scenario.actions if a.job in kept)
            yield replace(scenario, jobs=left, actions=acts)
    for n in range(len(scenario.actions)):
        yield replace(scenario, actions=(*scenario.actions[:n], *scenario.actions[n + 1 :]))
    quiet: dict[str, float] = {"api_failure_rate": 0.0, "duplicate_rate": 0.0}
    quiet |= {"worker_death_rate": 0.0, "orphan_worker_share": 0.0}
    for name in quiet:
        if getattr(scenario, name):
            yield replace(scenario, **{name: 0.0})  # type: ignore[arg-type]
    for fault in fields(Faults):
        if not fault.name.endswith("_s") and getattr(scenario.faults, fault.name):
            yield replace(scenario, faults=replace(scenario.faults, **{fault.name: 0.0}))
    half = len(scenario.crash_gaps) // 2
    if half:
        yield replace(scenario, crash_gaps=scenario.crash_gaps[:half])
    if scenario.crash_gaps:
        yield replace(scenario, crash_gaps=scenario.crash_gaps[:-1])


def story(report: Report, lines: int = 120) -> str:
    """What was played, what happened last, what was wrong, and how to see it again."""
    seed = report.scenario.seed
    shown = report.trace[-lines:]
    left_out = len(report.trace) - len(shown)
    told = [f"... {left_out} lines before"] if left_out else []
    again = f"PYTHONPATH=tests python -m sim --first-seed {seed} --seeds 1 --whole --trace"
    return "\n".join(
        [
            f"==== seed {seed} fails; cut down to:",
            f"{report.scenario}",
            *told,
            *shown,
            *[f"WRONG: {problem}" for problem in report.problems],
            f"again: {again}",
        ]
    )

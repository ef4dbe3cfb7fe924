"""The simulation as tests: a few hundred seeds, the deliberate bugs, and that a seed is a seed."""

from __future__ import annotations

import pytest

from sim.campaign import Span, Totals, run_seeds
from sim.mutants import MUTANTS, Mutant
from sim.scenario import draw
from sim.shrink import shrink, story
from sim.stage import play

SEEDS_PER_TEST = 20
GROUPS = 10


@pytest.mark.parametrize("group", range(GROUPS))
def test_nothing_goes_wrong_in_these_seeds(group: int) -> None:
    first = 1 + group * SEEDS_PER_TEST
    for seed in range(first, first + SEEDS_PER_TEST):
        report = play(draw(seed))
        if report.failed:
            pytest.fail(story(shrink(report)), pytrace=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_deliberate_bug_is_caught(mutant: Mutant) -> None:
    assert mutant.caught_by, "any complaint would do"
    for seed in mutant.seeds:
        report = play(draw(seed, grim=1.0), mutant=mutant.patch)
        if any(mutant.caught_by in problem for problem in report.problems):
            break
    else:
        pytest.fail(f"{mutant.name} survives {len(mutant.seeds)} seeds: the simulation is blind")
    sound = play(draw(seed, grim=1.0))
    assert not sound.failed, f"seed {seed} fails without the bug: {sound.problems}"


def test_a_campaign_ends_in_time_and_not_before_its_least() -> None:
    totals = Totals()
    for played in run_seeds(Span(first=1, most=200, least=3, most_s=0.0), jobs=1):
        totals.add(played)
    assert totals.lines()[-1] == "3 seeds run, 0 failures"


def test_the_same_seed_plays_the_same_way() -> None:
    scenario = draw(15, grim=1.0)
    first, second = play(scenario), play(scenario)
    assert first.trace == second.trace
    assert first.crashes > 0
    assert first.submissions > 0


def test_a_failing_scenario_is_cut_down_and_tells_how_to_see_it_again() -> None:
    mutant = next(m for m in MUTANTS if m.name == "claim after sending")
    report = next(
        r for seed in mutant.seeds if (r := play(draw(seed, 1.0), mutant=mutant.patch)).failed
    )
    small = shrink(report, mutant=mutant.patch, tries=12)
    told = story(small)
    assert small.failed
    assert len(small.trace) <= len(report.trace)
    assert f"WRONG: {small.problems[0]}" in told
    assert f"--first-seed {report.scenario.seed}" in told

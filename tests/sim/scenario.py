"""What happens in one play, drawn from a seed and small enough to read.

A scenario is data: the same one plays the same way, and a failing one can be cut down.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from fakes.provider import Faults, Flavour
from fakes.server import Fate, Habits


@dataclass(frozen=True)
class JobPlan:
    """A job that a user creates.

    Attributes:
        records: how many records its input holds; bad ones among them have no `messages`.
        at: when it is created, in seconds.
        input_at: when its input is there.
        twin_at: when a second object with the same key is created; None for no twin.
    """

    name: str
    provider: str
    records: int
    bad: int = 0
    at: float = 0.0
    input_at: float = 0.0
    twin_at: float | None = None
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ProviderPlan:
    """A provider and how its server behaves.

    Attributes:
        is_shared: two provider objects use the account.
    """

    name: str
    flavour: Flavour
    habits: Habits
    max_records: int
    max_active: int | None = None
    min_records: int = 1
    is_shared: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the provider objects."""
        return (self.name, f"{self.name}-too") if self.is_shared else (self.name,)


@dataclass(frozen=True)
class Action:
    """Something that happens at a time: to a job, or to the world."""

    at: float
    do: str
    job: str = ""


@dataclass(frozen=True)
class Freeze:
    """An operator is stopped for a while and goes on, as if nothing had happened meanwhile.

    Attributes:
        gap: calls that operators make before it, counted from the freeze before.
        lasts: seconds.
        stand_in_after: another one is started so many seconds later; None for none.
    """

    gap: int
    lasts: float
    stand_in_after: float | None = None


@dataclass(frozen=True)
class Scenario:
    """One play.

    Attributes:
        parked_s: how long a run that was cancelled by deletion may go on when its object is back.
        crash_gaps: crash points that each life of the operator passes before it dies.
        pauses: seconds between a death and the next start.
        stuck_rate: how often a call takes longer than anybody waits for it.
        list_pages: listings are cut after so many pages; None = not at all.
        calm_at: from then on nothing goes wrong any more; everything must come to its end.
    """

    seed: int
    jobs: tuple[JobPlan, ...]
    providers: tuple[ProviderPlan, ...]
    actions: tuple[Action, ...] = ()
    faults: Faults = field(default_factory=Faults)
    crash_gaps: tuple[int, ...] = ()
    pauses: tuple[float, ...] = ()
    latency_s: float = 0.05
    api_failure_rate: float = 0.0
    duplicate_rate: float = 0.0
    worker_death_rate: float = 0.0
    orphan_worker_share: float = 0.0
    stuck_rate: float = 0.0
    list_pages: int | None = None
    freezes: tuple[Freeze, ...] = ()
    parked_s: float = 7 * 86400.0
    calm_at: float = 1200.0


SETTLE_S = 40.0
"""The settle time of all plays. Straggling creates stay below it, and listings nearly always: where
they don't, a double submission can't be helped; but it must be reported, followed and collected."""


def draw(seed: int, grim: float | None = None) -> Scenario:
    """The scenario of a seed. `grim` from 0 to 1 says how much goes wrong: some plays are quiet."""
    rnd = random.Random(seed)
    drawn = rnd.random()
    grim = drawn if grim is None else grim
    providers = tuple(_provider(rnd, name, grim) for name in ("p1", "p2")[: rnd.randint(1, 2)])
    jobs = tuple(_job(rnd, n, providers) for n in range(rnd.randint(1, 3)))
    crashes = rnd.randint(0, 20) if rnd.random() < grim else rnd.randint(0, 2)
    gaps = tuple(1 + int(rnd.expovariate(1 / 25)) for _ in range(crashes))
    scenario = Scenario(
        seed=seed,
        jobs=jobs,
        providers=providers,
        actions=tuple(sorted(_actions(rnd, jobs, grim), key=lambda a: a.at)),
        faults=_faults(rnd, grim),
        crash_gaps=gaps,
        pauses=tuple(_pause(rnd) for _ in range(crashes)),
        latency_s=rnd.choice([0.01, 0.05, 0.3]),
        api_failure_rate=rnd.choice([0.0, 0.0, 0.02, 0.1]) * grim,
        duplicate_rate=rnd.choice([0.0, 0.2]),
        worker_death_rate=rnd.choice([0.0, 0.0, 0.1, 0.3]) * grim,
        orphan_worker_share=rnd.choice([0.0, 0.3]),
    )
    scenario = _with_more(scenario, random.Random(f"more of {seed}"), grim)
    scenario = _with_lifecycle(scenario, random.Random(f"lifecycle of {seed}"), grim)
    scenario = _with_lost_journals(scenario, random.Random(f"lost journals of {seed}"), grim)
    scenario = _with_small_servers(scenario, random.Random(f"servers of {seed}"), grim)
    return _with_stops(scenario, random.Random(f"stops of {seed}"), grim)


def _with_lost_journals(scenario: Scenario, rnd: random.Random, grim: float) -> Scenario:
    """All journals are deleted, once or twice; run tags and output claims must carry it alone."""
    if rnd.random() > grim / 4:
        return scenario
    times = sorted(rnd.random() * 700 for _ in range(rnd.choice([1, 1, 2])))
    actions = [*scenario.actions, *(Action(at, "journals deleted") for at in times)]
    return replace(
        scenario,
        actions=tuple(sorted(actions, key=lambda a: a.at)),
        providers=tuple(_showing_in_time(plan) for plan in scenario.providers),
    )


def _with_stops(scenario: Scenario, rnd: random.Random, grim: float) -> Scenario:
    """Operators that stop and go on, stale reads, claims that somebody takes, parked runs that
    become final, edits: drawn apart as well.
    """
    stale = [0.0, 0.0, 5.0, 25.0]
    providers = tuple(
        replace(plan, habits=replace(plan.habits, stale_s=rnd.choice(stale)))
        for plan in scenario.providers
    )
    freezes = tuple(
        _freeze(rnd) for _ in range(rnd.randint(1, 3) if rnd.random() < grim / 2 else 0)
    )
    actions = list(scenario.actions)
    for job in scenario.jobs:
        if rnd.random() < 0.15:
            at = job.at + rnd.random() * rnd.choice([1.0, 100.0])
            actions.append(Action(at, "claim is taken", job.name))
            actions.append(Action(at + rnd.random() * 300, "claim is back", job.name))
        if rnd.random() < 0.2:
            at = job.at + rnd.random() * rnd.choice([2.0, 30.0, 300.0])
            actions.append(Action(at, rnd.choice(EDITS), job.name))
    return replace(
        scenario,
        providers=providers,
        freezes=freezes,
        actions=tuple(sorted(actions, key=lambda a: a.at)),
        parked_s=rnd.choice([7 * 86400.0, 7 * 86400.0, 200.0]),
    )


def _freeze(rnd: random.Random) -> Freeze:
    return Freeze(
        gap=1 + int(rnd.expovariate(1 / 15)),
        lasts=rnd.choice([5.0, 60.0, 300.0, 900.0]) * rnd.random(),
        stand_in_after=rnd.random() * 20 if rnd.random() < 0.8 else None,
    )


EDITS = (
    "edit retryPolicy: one attempt",
    "edit deletionPolicy: orphan",
    "edit model, then back",
)


def _with_more(scenario: Scenario, rnd: random.Random, grim: float) -> Scenario:
    """Calls that hang, accounts with two provider objects, files that come late, listings that are
    cut, creates that happen twice: drawn apart, so that a seed's other draws stay what they were.
    """
    providers = []
    for plan in scenario.providers:
        lag = rnd.choice([0.0, 0.0, 15.0, 60.0])
        habits = replace(plan.habits, file_lag_s=lag)
        providers.append(replace(plan, habits=habits, is_shared=rnd.random() < 0.3))
    names = {plan.name: plan.names for plan in providers}
    jobs = tuple(replace(j, provider=rnd.choice(names[j.provider])) for j in scenario.jobs)
    actions = list(scenario.actions)
    if rnd.random() < grim / 3:
        at = rnd.random() * 600
        actions.append(Action(at, "listings break"))
        actions.append(Action(at + rnd.random() * rnd.choice([30.0, 300.0]), "listings mend"))
    doubled = rnd.random() * 0.2 * grim if rnd.random() < 0.2 else 0.0
    return replace(
        scenario,
        providers=tuple(providers),
        jobs=jobs,
        actions=tuple(sorted(actions, key=lambda a: a.at)),
        faults=replace(scenario.faults, doubled=doubled),
        stuck_rate=rnd.choice([0.0, 0.0, 0.003, 0.02]) * grim,
        list_pages=rnd.choice([None, None, None, 0, 2]) if rnd.random() < grim else None,
    )


def _showing_in_time(plan: ProviderPlan) -> ProviderPlan:
    """Who has no journal can only ask; what listings hide for too long is paid for twice then."""
    lag = min(plan.habits.list_lag_s, SETTLE_S * 0.45)
    return replace(plan, habits=replace(plan.habits, list_lag_s=lag))


def _with_lifecycle(scenario: Scenario, rnd: random.Random, grim: float) -> Scenario:
    """Deadlines, times to live, pauses, and people who decide; drawn apart likewise."""
    jobs, actions = [], list(scenario.actions)
    for job in scenario.jobs:
        spec = dict(job.spec)
        if rnd.random() < 0.15:
            spec["activeDeadlineSeconds"] = rnd.choice([20, 200, 2000])
        if rnd.random() < 0.1:
            spec["ttlSecondsAfterFinished"] = rnd.choice([0, 100])
        if rnd.random() < 0.1:
            at = job.at + rnd.random() * 300
            actions.append(Action(at, "pause", job.name))
            actions.append(Action(at + rnd.random() * 300, "unpause", job.name))
        if rnd.random() < 0.1:
            actions.append(Action(job.at + rnd.random() * 600, "deadline", job.name))
        jobs.append(replace(job, spec=spec))
    if rnd.random() < 0.1:
        at = rnd.random() * 600
        actions.append(Action(at, "pause providers"))
        actions.append(Action(at + rnd.random() * 300, "unpause providers"))
    if rnd.random() < grim:
        actions += [Action(at, "decide") for at in (300.0, 600.0, 900.0)]
    ordered = tuple(sorted(actions, key=lambda a: a.at))
    return replace(scenario, jobs=tuple(jobs), actions=ordered)


def _with_small_servers(scenario: Scenario, rnd: random.Random, grim: float) -> Scenario:
    """Servers that take fewer records in a batch than anybody knew. Not where journals are lost:
    what was cut again by then can't be told from the input alone.
    """
    if any(action.do == "journals deleted" for action in scenario.actions):
        return scenario
    providers = []
    for plan in scenario.providers:
        small = rnd.random() < grim / 3
        most = rnd.randint(plan.min_records, plan.max_records) if small else None
        habits = replace(plan.habits, most_rows=most, names_limit=rnd.random() < 0.5)
        providers.append(replace(plan, habits=habits))
    return replace(scenario, providers=tuple(providers))


def _pause(rnd: random.Random) -> float:
    return rnd.choice([0.0, 1.0, 10.0]) * rnd.random() if rnd.random() < 0.9 else 300.0


def _provider(rnd: random.Random, name: str, grim: float) -> ProviderPlan:
    flavour = rnd.choice(list(Flavour))
    fates: list[tuple[Fate, float]] = [(Fate.COMPLETE, 1.0)]
    if rnd.random() < grim:
        end = Fate.EXPIRE if flavour is Flavour.OPENAI else Fate.PARTIAL
        weight = rnd.random() * 0.5
        fates += [(end, weight), (Fate.QUOTA, weight / 2), (Fate.TRANSIENT, weight / 4)]
        fates += [(rnd.choice([Fate.INVALID, Fate.LOST, Fate.GAPS]), weight / 4)]
    habits = Habits(
        validate_s=rnd.choice([1.0, 30.0]),
        work_s=rnd.choice([5.0, 60.0, 300.0, 3000.0]),
        cancel_s=rnd.choice([0.0, 5.0, 60.0]),
        list_lag_s=rnd.choice(
            [0.0, 1.0, SETTLE_S * 0.45, SETTLE_S * (4 if rnd.random() < grim else 0)]
        ),
        replay_s=rnd.choice([60.0, 600.0]) if flavour is Flavour.BEDROCK else 0.0,
        fates=tuple(fates),
        error_share=rnd.choice([0.0, 0.2]),
        page_size=rnd.choice([2, 100]),
        echoes=flavour is Flavour.BEDROCK or rnd.random() < 0.9,
    )
    return ProviderPlan(
        name=name,
        flavour=flavour,
        habits=habits,
        max_records=rnd.randint(2, 5),
        max_active=rnd.choice([None, 1, 2]),
        min_records=rnd.choice([1, 1, 2]),
    )


def _job(rnd: random.Random, n: int, providers: tuple[ProviderPlan, ...]) -> JobPlan:
    provider = rnd.choice(providers)
    spec: dict[str, Any] = {"retryPolicy": {"maxAttempts": rnd.choice([1, 2, 3])}}
    if rnd.random() < 0.7:
        spec["successPolicy"] = {"maxFailedPercent": rnd.choice([30, 100])}
    if rnd.random() < 0.1:
        spec["deletionPolicy"] = "Orphan"
    if rnd.random() < 0.1:
        spec["suspend"] = True
    at = rnd.random() * rnd.choice([0.0, 1.0, 100.0])
    return JobPlan(
        name=f"job-{n}",
        provider=provider.name,
        records=rnd.randint(1, 4 * provider.max_records),
        bad=rnd.choice([0, 0, 0, 1]),
        at=at,
        input_at=at + rnd.random() * rnd.choice([0.0, 0.0, 0.0, 200.0]),
        twin_at=at + rnd.random() * 100 if rnd.random() < 0.15 else None,
        spec=spec,
    )


def _faults(rnd: random.Random, grim: float) -> Faults:
    def rate(most: float) -> float:
        return rnd.random() * most * grim if rnd.random() < 0.5 else 0.0

    return Faults(
        lost=rate(0.3),
        dropped=rate(0.2),
        straggling=rate(0.2),
        hanging=rate(0.1),
        throttled=rate(0.2),
        quota=rate(0.2),
        flaky=rate(0.3),
        straggle_s=SETTLE_S * 0.45,
        hang_s=20.0,
    )


def _actions(rnd: random.Random, jobs: tuple[JobPlan, ...], grim: float) -> list[Action]:
    found = []
    for job in jobs:
        at = job.at
        if job.spec.get("suspend"):
            found.append(Action(at + rnd.random() * 200, "resume", job.name))
        for _ in range(rnd.choice([0, 0, 1, 2, 4])):
            at += rnd.random() * rnd.choice([2.0, 30.0, 300.0])
            if at > 900:
                break
            found.append(Action(at, _job_action(rnd), job.name))
    for _ in range(rnd.randint(0, 3) if rnd.random() < grim else 0):
        at, lasts = rnd.random() * 600, rnd.random() * rnd.choice([10.0, 200.0])
        begin, end = rnd.choice(
            [
                ("outage", "outage over"),
                ("watches break", "watches mend"),
                ("lock out", "let in"),
                ("secret gone", "secret back"),
                ("second operator", "first operator dies"),
                ("provider changes", "provider is as before"),
            ]
        )
        found += [Action(at, begin), Action(at + lasts, end)]
    return found


def _job_action(rnd: random.Random) -> str:
    kinds = ["delete", "delete and create again", "cancel", "suspend then resume", "strip"]
    return rnd.choices(kinds, [3, 5, 1, 1, 1])[0]

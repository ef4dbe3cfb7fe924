"""Who leads: one at a time, the next one soon after the first dies, whatever their clocks say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from batchinference.errors import Retry, Superseded
from batchinference.ports.election import Lease
from batchinference.runtime.election import JITTER, Election, Terms
from builders import job
from fakes.clock import EPOCH, SeededRandomness, VirtualClock, run_virtual
from runtime.house import House, play

TERMS = Terms(lease_s=10, renew_deadline_s=7.0, retry_period_s=2.0)
TAKE_OVER_S = TERMS.lease_s + JITTER * TERMS.retry_period_s + 0.1


class Skewed(VirtualClock):
    """A wall clock that is off by days."""

    def __init__(self, days: int) -> None:
        self._days = days

    def now(self) -> object:  # type: ignore[override]
        return EPOCH + timedelta(days=self._days, seconds=self.elapsed())


class Registry:
    """The API server with one Lease."""

    def __init__(self) -> None:
        self.stored: Lease | None = None
        self.writes = 0
        self.down = self.silent = False

    async def read(self) -> Lease | None:
        await self._answer()
        return self.stored

    async def write(self, lease: Lease) -> str:
        await self._answer()
        held = self.stored.version if self.stored else ""
        if lease.version != held:
            raise Superseded("another was first")
        self.writes += 1
        self.stored = replace(lease, version=str(self.writes))
        return self.stored.version

    async def _answer(self) -> None:
        await asyncio.sleep(0.01)
        if self.silent:
            await asyncio.get_running_loop().create_future()
        if self.down:
            raise Retry("APIServerUnavailable", "down")


@dataclass
class Replica:
    """One candidate, and what it went through."""

    registry: Registry
    name: str
    clock: VirtualClock = field(default_factory=VirtualClock)
    led_at: float | None = None
    lost_at: float | None = None

    def __post_init__(self) -> None:
        seed = SeededRandomness(len(self.name))
        self.election = Election(self.registry, self.name, TERMS, self.clock, seed)
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        await self.election.acquire()
        self.led_at = self.clock.elapsed()
        await self.election.hold()
        self.lost_at = self.clock.elapsed()

    async def die(self) -> None:
        """As `kill -9` would have it: nothing is released."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def scene(of: Callable[[Registry], Awaitable[None]]) -> None:
    async def main() -> None:
        registry = Registry()
        await of(registry)

    run_virtual(main(), limit_s=3600)


async def until(holds: Callable[[], object], within_s: float) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not holds():
        assert loop.time() - began < within_s, "it never came"
        await asyncio.sleep(0.05)
    return loop.time() - began


@pytest.mark.parametrize("days", [0, -3, 3])
def test_a_standby_takes_over_soon_after_the_leader_dies(days: int) -> None:
    async def of(registry: Registry) -> None:
        first = Replica(registry, "first")
        await until(first.election.leads, 5)
        second = Replica(registry, "second", Skewed(days))
        await asyncio.sleep(120)
        assert first.election.leads()
        assert not second.election.leads()
        assert second.election.leader == "first"
        await first.die()
        assert await until(lambda: second.led_at is not None, TAKE_OVER_S) > TERMS.lease_s - 2.1
        assert registry.stored is not None
        assert (registry.stored.holder, registry.stored.transitions) == ("second", 1)

    scene(of)


def test_a_release_hands_over_at_once() -> None:
    async def of(registry: Registry) -> None:
        first = Replica(registry, "first")
        await until(first.election.leads, 5)
        second = Replica(registry, "second")
        await asyncio.sleep(5)
        await first.die()
        await first.election.release()
        assert not first.election.leads()
        await until(second.election.leads, JITTER * TERMS.retry_period_s + 0.2)
        await first.election.release()
        assert registry.stored is not None
        assert registry.stored.holder == "second", "it does not release what is another's"

    scene(of)


@pytest.mark.parametrize("how", ["down", "silent"])
def test_a_leader_that_can_t_renew_stops_before_another_may_lead(how: str) -> None:
    async def of(registry: Registry) -> None:
        first, second = Replica(registry, "first"), Replica(registry, "second")
        await until(lambda: first.election.leads() or second.election.leads(), 5)
        leader = first if first.election.leads() else second
        await asyncio.sleep(60)
        setattr(registry, how, True)
        began = asyncio.get_running_loop().time()
        within = TERMS.renew_deadline_s + TERMS.retry_period_s
        await until(lambda: leader.lost_at is not None, within)
        assert not leader.election.leads()
        await asyncio.sleep(1)
        setattr(registry, how, False)
        other = second if leader is first else first
        await until(other.election.leads, 3 * TAKE_OVER_S)
        assert other.led_at is not None
        assert other.led_at - began >= TERMS.lease_s - 2.1
        assert other.led_at > leader.lost_at  # type: ignore[operator]

    scene(of)


def test_a_short_outage_costs_nobody_the_lead() -> None:
    async def of(registry: Registry) -> None:
        first = Replica(registry, "first")
        second = Replica(registry, "second-one")
        await until(lambda: first.election.leads() or second.election.leads(), 5)
        leader = first if first.election.leads() else second
        for _ in range(20):
            registry.down = True
            await asyncio.sleep(4)
            registry.down = False
            await asyncio.sleep(4)
        assert leader.election.leads()
        assert leader.lost_at is None

    scene(of)


def test_a_leader_that_slept_knows_that_it_does_not_lead() -> None:
    """A stopped process wakes up: no timer of it has run, and another one leads by now."""

    async def of(registry: Registry) -> None:
        first = Replica(registry, "first")
        await until(first.election.leads, 5)
        await first.die()  # its loop stands still, its knowledge is as it was
        second = Replica(registry, "second")
        await until(second.election.leads, 3 * TAKE_OVER_S)
        assert not first.election.leads()
        await first.election.hold()
        assert not first.election.leads()
        assert second.election.leads()

    scene(of)


def test_a_leader_that_slept_goes_on_where_nobody_has_taken_over() -> None:
    async def of(registry: Registry) -> None:
        first = Replica(registry, "first")
        await until(first.election.leads, 5)
        await first.die()
        await asyncio.sleep(TERMS.renew_deadline_s + 60)
        assert not first.election.leads(), "nothing begins before it has asked"
        holding = asyncio.create_task(first.election.hold())
        await until(first.election.leads, 1)
        await asyncio.sleep(60)
        assert first.election.leads()
        holding.cancel()

    scene(of)


def test_one_that_lost_the_lease_to_another_stops_at_once() -> None:
    async def of(registry: Registry) -> None:
        first = Replica(registry, "first")
        await until(first.election.leads, 5)
        await registry.write(replace(registry.stored or Lease("", 1), holder="thief"))
        await until(lambda: first.lost_at is not None, TERMS.retry_period_s + 0.2)

    scene(of)


@pytest.mark.parametrize(
    ("terms", "flaw"),
    [
        (TERMS, ""),
        (Terms(7, 7.0, 2.0), "leaseSeconds"),
        (Terms(10, 2.4, 2.0), "renewDeadlineSeconds"),
        (Terms(10, 7.0, 0.0), "retryPeriodSeconds"),
    ],
)
def test_waits_that_do_not_fit_together_are_told(terms: Terms, flaw: str) -> None:
    assert flaw in terms.flaw
    assert bool(terms.flaw) == bool(flaw)


# ---------------------------------------------------------------- a standby


def test_a_standby_asks_nobody_and_writes_nothing_and_is_warm() -> None:
    async def play_it(house: House) -> None:
        leader = await house.operator()
        standby = await house.standby()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(200)
        assert standby.operator.alive() is False
        assert standby.runner.started == []
        assert standby.metrics.counters == {}
        calls = dict(house.server.calls)
        await house.die(leader)
        secrets = house.kube.secret_reads
        await house.pass_time(100)
        assert dict(house.server.calls) == calls
        assert house.kube.secret_reads == secrets
        await standby.process.spawn(standby.operator.start())
        await house.until(lambda: house.state() == "Succeeded")
        assert house.server.calls["create"] == 1

    play(play_it)


def test_one_that_does_not_lead_any_more_begins_nothing() -> None:
    async def play_it(house: House) -> None:
        old = await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        old.leads = False
        house.give(job("second"))
        await house.pass_time(100)
        assert house.server.calls["create"] == 1
        assert [t for t in old.runner.started if "second" in t] == []
        new = await house.operator()
        await house.until(lambda: house.state("second") == "Succeeded")
        assert new.operator.alive()

    play(play_it)

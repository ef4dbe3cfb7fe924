"""The fake provider does what every provider must do, in both flavours."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from batchinference.model.batch import RefusalKind, SubmissionID
from batchinference.model.run import Run
from batchinference.ports import BatchProvider
from builders import START, run_of
from conformance.provider import ProviderConformance
from fakes.clock import VirtualClock
from fakes.provider import FakeProvider, Faults, Flavour
from fakes.server import Habits, ProviderServer
from fakes.world import World

LINES = b'{"custom_id":"r0","body":{}}\n{"custom_id":"r1","body":{}}\n'


class HandClock(VirtualClock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at


@dataclass
class FakeBench:
    flavour: Flavour
    clock: HandClock = field(default_factory=HandClock)
    run: Run = field(default_factory=run_of)
    unknown_id: str = "batch-of-nobody"

    def __post_init__(self) -> None:
        habits = Habits(replay_s=600.0 if self.flavour is Flavour.BEDROCK else 0.0)
        self.server = ProviderServer("acme", habits)
        self.faults = Faults()
        self.provider = self._client(self.server)

    def _client(self, server: ProviderServer) -> FakeProvider:
        world = World(clock=self.clock)
        return FakeProvider(server, world, flavour=self.flavour, faults=self.faults)

    async def upload(self, submission: SubmissionID) -> str:
        return self.server.upload(LINES, self.clock.now())

    async def lose_next_answer(self) -> None:
        self.faults.lost = 1.0

    async def refuse_next(self) -> RefusalKind:
        self.faults.throttled = 1.0
        return RefusalKind.THROTTLED

    async def finish(self) -> None:
        self.clock.at += timedelta(hours=1)

    async def locked_out(self) -> BatchProvider:
        stranger = ProviderServer("stranger", self.server.habits)
        stranger.locked_out = True
        return self._client(stranger)


class TestFakeProvider(ProviderConformance):
    @pytest.fixture(params=list(Flavour))
    def bench(self, request: pytest.FixtureRequest) -> FakeBench:
        return FakeBench(request.param)

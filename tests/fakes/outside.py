"""Everything outside of the operator, as fakes that belong together; and operators in it.

`runtime.house` and `sim.stage` play on it: one lets a test say what happens, the other a seed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from batchinference.model.run import Run
from batchinference.ports import Metrics
from batchinference.runtime.operator import Operator
from batchinference.runtime.settings import RuntimeSettings
from fakes.clock import SeededRandomness, VirtualClock
from fakes.journals import FakeJournals
from fakes.kube import FakeKube
from fakes.prices import FakePrices
from fakes.provider import FakeFactory, Faults
from fakes.recorder import FakeRecorder
from fakes.runner import FakeRunner
from fakes.server import ProviderServer
from fakes.world import World
from sim.workers import Workers

OURS = "installation-1"
SECRETS: Mapping[str, Mapping[str, str]] = {
    "openai": {"api-key": "secret"},
    "aws": {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"},
}


class Outside:
    """An API server, providers and an object store.

    Attributes:
        servers: the providers, by endpoint; more may be added.
        ours: the installation that has the journals; another one has journals of its own.
    """

    ours = OURS

    def __init__(
        self,
        world: World,
        clock: VirtualClock,
        spool: Path,
        server_of: Callable[[Run], ProviderServer],
        *,
        faults: Faults | None = None,
        api_failure_rate: float = 0.0,
        worker_death_rate: float = 0.0,
    ) -> None:
        self.world = world
        self.clock = clock
        self.kube = FakeKube(world, failure_rate=api_failure_rate)
        self.journals = FakeJournals(world, failure_rate=api_failure_rate)
        self.recorder = FakeRecorder(world)
        self.prices = FakePrices()
        self.servers: dict[str, ProviderServer] = {}
        self.factory = FakeFactory(self.servers, world, faults=faults or Faults())
        self.workers = Workers(world, server_of, spool, worker_death_rate)
        self.factory.claim_holds = self.workers.holds_claim
        self.factory.claim_taken = self.workers.taken_by
        self.give_secrets()

    def give_secrets(self) -> None:
        """Put the Secrets in place that the builders' providers name."""
        for name, data in SECRETS.items():
            self.kube.secrets["ml", name] = dict(data)

    def operator_of(
        self,
        runner: FakeRunner,
        metrics: Metrics,
        settings: RuntimeSettings,
        *,
        seed: int = 1,
        installation: str = "",
        **wiring: Any,
    ) -> Operator:
        """An operator out here; of ours, unless another installation is named."""
        of_ours = installation in {"", self.ours}
        journals = self.journals if of_ours else FakeJournals(self.world)
        return Operator(
            kube=self.kube,
            journals=journals,
            recorder=self.recorder,
            runner=runner,
            factory=self.factory,
            prices=self.prices,
            clock=self.clock,
            randomness=SeededRandomness(seed),
            settings=settings,
            metrics=metrics,
            installation=installation or self.ours,
            namespace="batch-inference-system",
            worker_connections={},
            **wiring,
        )


class Complaints(logging.Handler):
    """What the runtime logs as an error: bugs, since it meets every failure with a plan.

    While it listens nothing of the runtime is passed on to other handlers, if that is asked for.
    """

    def __init__(self, *, alone: bool = False) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []
        self._alone = alone

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append((self.formatter or logging.Formatter()).format(record))

    def __enter__(self) -> Self:
        runtime = logging.getLogger("batchinference")
        runtime.addHandler(self)
        runtime.propagate = not self._alone
        return self

    def __exit__(self, *_exc: object) -> None:
        runtime = logging.getLogger("batchinference")
        runtime.removeHandler(self)
        runtime.propagate = True

"""One API server, one provider, and as many operators as a test wants, in virtual time.

The runtime and the tasks are the real ones; everything outside of the operator is a fake.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batchinference.core.begin import key_of
from batchinference.model.job import parse_job
from batchinference.model.run import Run, RunPhase, Shard
from batchinference.model.work import Task, TaskFault, TaskKind, TaskReport, TaskResult
from batchinference.ports import ObjectRef
from batchinference.runtime.operator import Operator
from batchinference.runtime.settings import RuntimeSettings
from builders import JobBuilder, openai_provider
from fakes.clock import VirtualClock, run_virtual
from fakes.kube import JOB
from fakes.outside import Complaints, Outside
from fakes.provider import endpoint
from fakes.runner import FakeRunner
from fakes.server import Habits, ProviderServer
from fakes.world import Process, World, track_tasks
from invariants import billing_problems, provider_problems

SETTINGS = RuntimeSettings(
    submit_timeout_s=20.0,
    settle_s=60.0,
    reference_retry_s=15.0,
    retry_first_s=1.0,
    retry_most_s=30.0,
    poll_s=10.0,
    sweep_s=60.0,
)
PATIENCE_S = 3600.0
"""Virtual seconds after which a test no longer waits for what it waits for."""

HABITS = Habits(validate_s=10, work_s=600, cancel_s=20)


@dataclass
class Counts:
    """`ports.Metrics`, kept: counters and gauges by name and labels."""

    counters: Counter[str] = field(default_factory=Counter)
    gauges: dict[tuple[str, tuple[str, ...]], float] = field(default_factory=dict)

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        self.counters[name] += int(value)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.gauges[name, tuple(labels.values())] = value

    def observe(self, name: str, value: float, **labels: str) -> None: ...


@dataclass
class Life:
    """One operator process.

    Attributes:
        refused: tasks that do nothing and fail in this one, and how.
        leads: whether it may begin anything.
    """

    process: Process
    operator: Operator
    runner: FakeRunner
    metrics: Counts
    refused: dict[TaskKind, TaskFault]
    leads: bool = True


class House(Outside):
    """Everything a test of the runtime plays on."""

    def __init__(
        self, spool: Path, *, habits: Habits, settings: RuntimeSettings, latency_s: float = 0.0
    ) -> None:
        clock = VirtualClock()
        self.trace: list[str] = []
        world = World(clock=clock, trace=self._trace, latency_s=latency_s)
        super().__init__(world, clock, spool, lambda _run: self.server)
        self.settings = settings
        self.faults = self.factory.faults
        self.server = ProviderServer("openai", habits, settle_s=settings.settle_s)
        provider = openai_provider()
        self.servers[endpoint(provider["spec"])] = self.server
        self.kube.create(provider)
        self.lives: list[Life] = []

    def add_server(self, provider: Mapping[str, Any], account: str) -> ProviderServer:
        """A server of its own behind a provider object."""
        server = ProviderServer(account, self.server.habits, settle_s=self.settings.settle_s)
        self.servers[endpoint(provider["spec"])] = server
        return server

    def _trace(self, line: str) -> None:
        self.trace.append(f"{self.clock.elapsed():9.3f} {line}")

    # ---- operators

    async def operator(self, *, watching: bool = True, installation: str = "") -> Life:
        """Start an operator; without a watch it knows the journals alone. Another installation has
        journals of its own.
        """
        life = self._life(installation or self.ours)
        await life.process.spawn(life.operator.start())
        if watching:
            self.kube.watch(life.process, life.operator.observe)
        return life

    async def standby(self) -> Life:
        """One that watches and does not begin."""
        life = self._life(self.ours)
        self.kube.watch(life.process, life.operator.observe)
        return life

    def _life(self, installation: str) -> Life:
        process = Process(f"op{len(self.lives) + 1}", asyncio.get_running_loop())
        refused: dict[TaskKind, TaskFault] = {}

        def perform(task: Task, report: Callable[[TaskReport], None]) -> TaskResult:
            return refused.get(task.kind) or self.workers.perform(task, report)

        runner = FakeRunner(perform, self.world)
        metrics = Counts()
        made: list[Life] = []

        def leads() -> bool:
            return made[0].leads

        def make() -> None:
            operator = self.operator_of(
                runner, metrics, self.settings, installation=installation, leads=leads
            )
            made.append(Life(process, operator, runner, metrics, refused))

        process.run(make)
        self.lives.append(made[0])
        return made[0]

    async def die(self, life: Life) -> None:
        """End an operator as `kill -9` would."""
        life.process.kill()
        await life.process.buried()
        self.lives.remove(life)

    async def close(self) -> None:
        """End all operators."""
        for life in list(self.lives):
            await self.die(life)
            assert life.process.failures() == []

    def limit(self, limits: Mapping[str, Any]) -> None:
        """Give the provider object these limits."""
        self.kube.edit_spec(ObjectRef("InferenceProvider", "ml", "openai"), limits=dict(limits))

    # ---- objects

    def give(self, builder: JobBuilder, records: int = 3) -> dict[str, Any]:
        """Create a job, and its input."""
        body = builder.build()
        texts = [f"{builder.name} asks {n}" for n in range(records)]
        self.workers.put_input(body["spec"]["input"]["s3"]["uri"], builder.name, texts)
        return self.kube.create(body)

    def job(self, name: str = "triage") -> Mapping[str, Any] | None:
        """The object as it stands."""
        return self.kube.find(JOB, "ml", name)

    def status(self, name: str = "triage") -> Mapping[str, Any]:
        """Its status."""
        body = self.job(name)
        return {} if body is None else body.get("status") or {}

    def state(self, name: str = "triage") -> str:
        """Its state in one word; "" when it is gone."""
        return str(self.status(name).get("state", ""))

    def condition(self, kind: str, name: str = "triage") -> Mapping[str, Any]:
        """One of its conditions; empty where there is none."""
        listed = self.status(name).get("conditions") or []
        return next((c for c in listed if c["type"] == kind), {})

    def run(self, body: Mapping[str, Any]) -> Run | None:
        """The journal of an object's run as it stands."""
        return self.journals.peek(key_of(parse_job(body)))

    def phase(self, key: str) -> RunPhase | None:
        """Where a run stands; None without a journal."""
        run = self.journals.peek(key)
        return run.phase if run is not None else None

    def shard(self, key: str) -> Shard:
        """The one shard of a run."""
        run = self.journals.peek(key)
        assert run is not None
        (found,) = run.shards
        return found

    # ---- time

    async def until(self, holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        """Let time pass until that holds."""
        until = self.clock.elapsed() + patience_s
        while not holds():
            if self.clock.elapsed() > until:
                raise AssertionError("it never came:\n" + "\n".join(self.trace[-60:]))
            await asyncio.sleep(0.25)

    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass."""
        await asyncio.sleep(seconds)


def ref(name: str = "triage", uid: str = "") -> ObjectRef:
    """A job by name."""
    return ObjectRef(JOB, "ml", name, uid)


def play(
    scene: Callable[[House], Coroutine[Any, Any, None]],
    *,
    habits: Habits = HABITS,
    latency_s: float = 0.0,
    complaints: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Run a scene in virtual time; nothing may be billed or submitted twice in it.

    `complaints`: what the runtime must log as errors; the last one, any number of times.
    """
    expected = [*complaints]

    async def main() -> None:
        track_tasks(asyncio.get_running_loop())
        with Complaints() as heard, tempfile.TemporaryDirectory() as spool:
            timing = replace(SETTINGS, **settings)
            house = House(Path(spool), habits=habits, settings=timing, latency_s=latency_s)
            try:
                await scene(house)
            finally:
                await house.close()
            assert provider_problems([house.server]) == []
            assert billing_problems(house.server, house.clock.now()) == []
            assert len(heard.said) >= len(expected), expected
            for number, said in enumerate(heard.said):
                assert expected, said
                assert expected[min(number, len(expected) - 1)] in said

    run_virtual(main())

"""One play: the real runtime on the fakes, users and the weather, deaths and new lives.

`play` runs a scenario to its end in virtual time and tells what was wrong.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from batchinference.core.decisions import GIVE_UP, RESUBMIT, named
from batchinference.errors import Fault
from batchinference.model.metadata import PAUSED
from batchinference.model.run import Run, RunPhase
from batchinference.ports import ObjectRef
from batchinference.runtime import listing
from batchinference.runtime.operator import Operator
from batchinference.runtime.settings import RuntimeSettings
from builders import bedrock_provider, job, openai_provider
from fakes.clock import Hang, VirtualClock, VirtualLoop, run_virtual
from fakes.kube import JOB
from fakes.outside import Complaints, Outside
from fakes.provider import CREATE_FAULTS, Faults, Flavour, endpoint
from fakes.runner import FakeRunner
from fakes.server import ProviderServer
from fakes.world import STUCK_S, Process, World, current_process, track_tasks
from invariants import (
    is_terminal,
    manifest_problems,
    rests,
    result_problems,
    unpaid_problems,
)
from sim.scenario import SETTLE_S, Action, JobPlan, ProviderPlan, Scenario
from sim.waits import StepMetrics, waiting_problems
from sim.watcher import Watcher, run_key_of

SETTINGS = RuntimeSettings(
    submit_timeout_s=20.0,
    settle_s=SETTLE_S,
    reference_grace_s=60.0,
    reference_retry_s=15.0,
    retry_first_s=1.0,
    retry_most_s=30.0,
    quota_first_s=10.0,
    quota_most_s=60.0,
    poll_s=20.0,
    provider_check_s=240.0,
    provider_retry_s=15.0,
    call_timeout_s=30.0,
    sweep_s=60.0,
)
_PATIENCE_S = 10 * 3600.0
"""Virtual seconds after the calm in which everything must have come to its end."""

_SILENCE_S = 2 * 3600.0
"""So long after the calm nothing happens only where nothing will: no batch works for so long."""

_IDLE_ROUNDS = 30
"""Looks of five seconds each: late listings and late creates have come by then."""


@dataclass
class Report:
    """What came of a play.

    Attributes:
        problems: what was wrong; empty when all went well.
        trace: everything that happened, one line each.
        crashes: how often the operator died.
        freezes: how often it was stopped and went on later.
        is_calm: nothing goes wrong any more.
        records: how many went in, and how many result lines came out.
    """

    scenario: Scenario
    problems: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    crashes: int = 0
    freezes: int = 0
    submissions: int = 0
    is_calm: bool = False
    excused: int = 0
    records: tuple[int, int] = (0, 0)
    ends: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.problems)

    @property
    def counts(self) -> Counter[str]:
        """What happened, for the sum over many plays: a simulation must not go blind unnoticed."""
        found = Counter({f"runs {end}": n for end, n in Counter(self.ends).items()})
        found["crashes"], found["freezes"] = self.crashes, self.freezes
        found["batches accepted"] = self.submissions
        found["doubles that nobody could help"] = self.excused
        found["records in"], found["results out"] = self.records
        return found


def play(scenario: Scenario, *, mutant: Callable[[ExitStack], None] | None = None) -> Report:
    """Play a scenario; `mutant` patches a bug into the runtime for the time of the play."""
    report = Report(scenario)
    rnd, hangs = random.Random(scenario.seed), random.Random(f"hangs of {scenario.seed}")

    def thread_delay() -> float:
        stuck = not report.is_calm and hangs.random() < scenario.stuck_rate
        return STUCK_S if stuck else rnd.random() * scenario.latency_s

    with ExitStack() as patches:
        patches.callback(setattr, listing, "MOST_PAGES", listing.MOST_PAGES)
        if scenario.list_pages is not None:
            listing.MOST_PAGES = scenario.list_pages
        if mutant is not None:
            mutant(patches)
        report.complaints = patches.enter_context(Complaints(alone=True)).said
        try:
            run_virtual(
                _begin(scenario, report),
                thread_delay=thread_delay,
                limit_s=scenario.calm_at + 4 * _PATIENCE_S,
            )
        except (Hang, AssertionError) as wrong:
            report.problems.append(str(wrong))
    return report


async def _begin(scenario: Scenario, report: Report) -> None:
    with tempfile.TemporaryDirectory() as spool:
        await Stage(scenario, report, Path(spool)).play()


@dataclass
class Life:
    """One life of the operator."""

    process: Process
    operator: Operator
    runner: FakeRunner


class Stage(Outside):
    """The fakes of one play and what happens on them."""

    def __init__(self, scenario: Scenario, report: Report, spool: Path) -> None:
        self.scenario = scenario
        self.report = report
        clock = VirtualClock()
        world = World(
            seed=scenario.seed,
            latency_s=scenario.latency_s,
            crash=self._crashes,
            trace=self._trace,
            clock=clock,
        )
        world.stuck_rate = scenario.stuck_rate
        super().__init__(
            world,
            clock,
            spool,
            self._server_of,
            faults=scenario.faults,
            api_failure_rate=scenario.api_failure_rate,
            worker_death_rate=scenario.worker_death_rate,
        )
        self.kube.duplicate_rate = scenario.duplicate_rate
        self.faults = scenario.faults
        for plan in scenario.providers:
            self._add_provider(plan)
        self.watcher = Watcher(
            self.world,
            self.kube,
            self.journals,
            self.servers,
            self.workers.store,
            scenario.parked_s,
        )
        self.workers.is_over = self._is_over
        self._lives: list[Life] = []
        self._more = asyncio.Event()
        self._gaps = list(scenario.crash_gaps)
        self._pauses = list(scenario.pauses)
        self._left = self._gaps.pop(0) if self._gaps else -1
        self._freezes = list(scenario.freezes)
        self._calls_left = self._freezes[0].gap if self._freezes else -1
        self.world.freeze = self._freezes_now
        self._helpers: list[asyncio.Task[None]] = []
        self._serial = 0
        self._idle_rounds = 0
        self._records: dict[str, list[str]] = {}
        self._bodies: dict[str, dict[str, Any]] = {}

    # ---- setting

    def _add_provider(self, plan: ProviderPlan) -> None:
        limits = {
            "maxRecordsPerBatch": plan.max_records,
            "minRecordsPerBatch": plan.min_records,
        }
        if plan.max_active is not None:
            limits["maxActiveBatches"] = plan.max_active
        make = openai_provider if plan.flavour is Flavour.OPENAI else bedrock_provider
        server = ProviderServer(plan.name, plan.habits, seed=self.scenario.seed, settle_s=SETTLE_S)
        server.may_ask_again = False
        first = make(plan.name, limits=limits)
        self.servers[endpoint(first["spec"])] = server
        for name in plan.names:
            body = make(name, limits=limits)
            for kind in {"openAI", "bedrock"} & body["spec"].keys():
                body["spec"][kind] = first["spec"][kind]
            self.kube.create(body)

    def _server_of(self, run: Run) -> ProviderServer:
        plan = next(p for p in self.scenario.jobs if run.owner.name.startswith(p.name))
        account = next(p.name for p in self.scenario.providers if plan.provider in p.names)
        return next(s for s in self.servers.values() if s.account == account)

    def _is_over(self, key: str) -> bool:
        run = self.journals.peek(key)
        return run is not None and run.is_over

    def _trace(self, line: str) -> None:
        self.report.trace.append(f"{self.clock.elapsed():9.3f} {line}")

    # ---- deaths

    def _crashes(self, _name: str, _when: str) -> bool:
        if self._left < 0 or self.clock.elapsed() >= self.scenario.calm_at:
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self._left = self._gaps.pop(0) if self._gaps else -1
        self.report.crashes += 1
        return True

    def _freezes_now(self, _name: str, _when: str) -> bool:
        """Whether the caller stops here, for how long, and who stands in for it."""
        if not self._freezes or self.report.is_calm:
            return False
        self._calls_left -= 1
        if self._calls_left > 0:
            return False
        plan = self._freezes.pop(0)
        self._calls_left = self._freezes[0].gap if self._freezes else -1
        self.report.freezes += 1
        process = current_process()
        assert process is not None
        self.world.later(plan.lasts, process.thaw)
        if plan.stand_in_after is not None:
            self.world.later(plan.stand_in_after, self._stand_in)
        return True

    def _stand_in(self) -> None:
        self._helpers.append(asyncio.get_running_loop().create_task(self._start()))
        self._more.set()

    async def _start(self) -> None:
        self._serial += 1
        process = Process(f"op{self._serial}", asyncio.get_running_loop())
        runner = FakeRunner(
            self.workers.perform, self.world, orphan_share=self.scenario.orphan_worker_share
        )
        made: list[Operator] = []

        def after_step() -> None:
            if process.alive:
                self.watcher.note(waiting_problems(made[0]))

        metrics = StepMetrics(after_step)
        settings = replace(SETTINGS, parked_s=self.scenario.parked_s)
        seed = self.scenario.seed
        process.run(lambda: made.append(self.operator_of(runner, metrics, settings, seed=seed)))
        operator = made[0]
        self._lives.append(Life(process, operator, runner))
        self.world.trace(f"{process.name} starts")

        async def begin() -> None:
            try:
                await operator.start()
            except Fault as fault:
                self.world.trace(f"can't start: {fault}")  # the pod exits and is started again
                process.kill()
            else:
                self.kube.watch(process, operator.observe)

        process.spawn(begin())

    async def _keep_alive(self) -> None:
        """Start the operator again after every death."""
        await self._start()
        while True:
            deaths = [asyncio.create_task(one.process.died.wait()) for one in self._lives]
            deaths.append(asyncio.create_task(self._more.wait()))
            await asyncio.wait(deaths, return_when=asyncio.FIRST_COMPLETED)
            for waiting in deaths:
                waiting.cancel()
            self._more.clear()
            for life in [one for one in self._lives if not one.process.alive]:
                await life.process.buried()
                self._lives.remove(life)
            if not self._lives:
                await asyncio.sleep(self._pauses.pop(0) if self._pauses else 1.0)
                await self._start()

    # ---- users and weather

    async def _act(self, action: Action) -> None:
        await asyncio.sleep(max(0.0, action.at - self.clock.elapsed()))
        self.world.trace(f"ACTION {action.do} {action.job}")
        ref = ObjectRef(JOB, "ml", action.job)
        there = self.kube.find(JOB, "ml", action.job) is not None
        server_list = list(self.servers.values())
        match action.do:
            case "delete":
                self.kube.delete(ref)
            case "delete and create again":
                self.kube.delete(ref)
                await self._create_when_gone(action.job)
            case "cancel" if there:
                self.kube.edit_spec(ref, desiredState="Cancelled")
            case "suspend then resume" if there:
                self.kube.edit_spec(ref, suspend=True)
                await asyncio.sleep(60)
                if self.kube.find(JOB, "ml", action.job):
                    self.kube.edit_spec(ref, suspend=False)
            case "resume" if there:
                self.kube.edit_spec(ref, suspend=False)
            case "pause" | "unpause" if there:
                self.kube.annotate(ref, **{PAUSED: str(action.do == "pause").lower()})
            case "pause providers" | "unpause providers":
                self._pause_providers(paused=action.do == "pause providers")
            case "deadline" if there:
                self.kube.edit_spec(ref, activeDeadlineSeconds=1 + int(self.clock.elapsed()))
            case "decide":
                self._decide()
            case "strip":
                self.kube.strip_finalizers(ref)
            case "outage" | "outage over":
                for server in server_list:
                    server.outage = action.do == "outage"
            case "lock out" | "let in":
                for server in server_list:
                    server.locked_out = action.do == "lock out"
            case "listings break" | "listings mend":
                for server in server_list:
                    server.lists_partly = action.do == "listings break"
            case "watches break":
                self.kube.break_watches()
            case "watches mend":
                self.kube.mend_watches()
            case "secret gone":
                self.kube.secrets.clear()
            case "secret back":
                self.give_secrets()
            case "provider changes" | "provider is as before":
                self._change_providers(changed=action.do == "provider changes")
            case "journals deleted":
                for run in self.journals.runs():
                    self.journals.lose(run.key)
                self.watcher.journals_lost()
            case "second operator":
                await self._start()
                self._more.set()
            case "first operator dies" if len(self._lives) > 1:
                self._lives[0].process.kill()
            case "claim is taken":
                self._take_claims(action.job)
            case "claim is back":
                self._give_claims_back(action.job)
            case "edit retryPolicy: one attempt" if there:
                self.kube.edit_spec(ref, retryPolicy={"maxAttempts": 1})
            case "edit deletionPolicy: orphan" if there:
                self.kube.edit_spec(ref, deletionPolicy="Orphan")
            case "edit model, then back" if there:
                await self._change_model(ref)

    async def _change_model(self, ref: ObjectRef) -> None:
        """An edit that the API server would have refused, had validation not been off."""
        before = self.kube.find(ref.kind, ref.namespace, ref.name)
        if before is None or not run_key_of(before):
            return  # nobody knows it yet: it would just be another run
        ref, model = replace(ref, uid=before["metadata"]["uid"]), before["spec"]["model"]
        self.kube.edit_spec(ref, model="another")
        await asyncio.sleep(60)
        now = self.kube.find(ref.kind, ref.namespace, ref.name)
        if now is not None and now["metadata"]["uid"] == ref.uid:
            self.kube.edit_spec(ref, model=model)

    def _take_claims(self, job_name: str) -> None:
        """Somebody writes over the claim of a job's output place."""
        for run in self.journals.runs():
            uri = f"{run.output.uri}_run.json"
            held = self.workers.store.objects.get(uri)
            known = run.output.claimed and uri not in self.watcher.taken
            if run.owner.name.startswith(job_name) and held and known:
                self.watcher.taken[uri] = (self.clock.now(), held)
                foreign = json.loads(held) | {"runKey": "f" * 40, "runTag": "f" * 40}
                self.workers.store.objects[uri] = json.dumps(foreign).encode()

    def _give_claims_back(self, job_name: str = "") -> None:
        runs = {f"{run.output.uri}_run.json": run for run in self.journals.runs()}
        for uri, (_, held) in list(self.watcher.taken.items()):
            run = runs.get(uri)
            if run is not None and not run.owner.name.startswith(job_name):
                continue
            del self.watcher.taken[uri], self.workers.store.objects[uri]
            is_unpaid = run is not None and run.is_over and not run.was_submitted
            if self.watcher.were_lost or (run is not None and run.output.claimed):
                self.workers.store.objects.update({} if is_unpaid else {uri: held})

    def _pause_providers(self, *, paused: bool) -> None:
        for body in [b for b in self.kube.objects.values() if b["kind"] == "InferenceProvider"]:
            name = body["metadata"]["name"]
            held = ObjectRef("InferenceProvider", "ml", name)
            self.kube.annotate(held, **{PAUSED: str(paused).lower()})

    def _decide(self) -> None:
        """Somebody who has looked at the provider decides what nobody else can know: only of what
        was not accepted, and can't be any more.
        """
        settled = self.clock.now() - timedelta(seconds=4 * SETTLE_S)
        for run in self.journals.runs():
            accepted = self._server_of(run).accepted()
            for shard in run.shards:
                last = shard.last
                if not shard.state.is_open or last is None or last.claimed_at > settled:
                    continue
                if accepted.get((run.tag, shard.index, last.ordinal)):
                    continue
                name = self.world.random.choice([RESUBMIT, GIVE_UP])
                decision = {name: named(run, shard.index, last.ordinal)}
                owner = ObjectRef(JOB, run.owner.namespace, run.owner.name)
                self.world.trace(f"DECIDES {decision}")
                if self.kube.find(JOB, owner.namespace, owner.name) is not None:
                    self.kube.annotate(owner, **decision)
                else:
                    self.journals.annotate(run.key, **decision)

    def _change_providers(self, *, changed: bool) -> None:
        """Point the provider objects elsewhere, and back."""
        for plan in self.scenario.providers:
            ref = ObjectRef("InferenceProvider", "ml", plan.name)
            body = self.kube.find(ref.kind, ref.namespace, ref.name)
            assert body is not None
            storage = {**body["spec"]["storage"]}
            storage["stagingURI"] = f"s3://staging/ml/{plan.name}{'-new' if changed else ''}/"
            self.kube.edit_spec(ref, storage=storage)

    async def _create(self, plan: JobPlan) -> None:
        await asyncio.sleep(plan.at)
        records = [f"{plan.name} asks {n}" for n in range(plan.records)]
        for n in range(min(plan.bad, plan.records)):
            records[n * 3 % plan.records] = "bad"
        body = job(plan.name).provider(plan.provider).with_spec(**plan.spec).build()
        self._records[plan.name] = records
        uri = body["spec"]["input"]["s3"]["uri"]
        if plan.input_at <= plan.at:
            self.workers.put_input(uri, plan.name, records)
        if plan.twin_at is not None:
            body["metadata"]["generateName"] = f"{plan.name}-"
            body["spec"]["runID"] = "once"
        self._bodies[plan.name] = body
        self.kube.create(body)
        await asyncio.sleep(max(0.0, plan.input_at - self.clock.elapsed()))
        self.workers.put_input(uri, plan.name, records)
        if plan.twin_at is not None:
            await asyncio.sleep(max(0.0, plan.twin_at - self.clock.elapsed()))
            twin = copy.deepcopy(body)
            twin["metadata"]["name"] = f"{plan.name}-twin"
            self.kube.create(twin)

    async def _create_when_gone(self, name: str) -> None:
        """As Argo CD does: the object is there again as soon as it has gone."""
        body = self.kube.find(JOB, "ml", name)
        leaving = body["metadata"]["uid"] if body else ""
        while (there := self.kube.find(JOB, "ml", name)) is not None:
            if there["metadata"]["uid"] != leaving:
                return  # somebody else was faster
            await asyncio.sleep(0.2)
        self.kube.create(self._bodies[name])

    def _calm_down(self) -> None:
        self.world.trace("CALM")
        self.report.is_calm = True
        listing.MOST_PAGES = 500
        self.world.stuck_rate = 0.0
        for name in (*CREATE_FAULTS, "flaky"):
            setattr(self.factory.faults, name, 0.0)
        self.kube.failure_rate = self.journals.failure_rate = self.workers.death_rate = 0.0
        for server in self.servers.values():
            server.outage = server.locked_out = server.lists_partly = False
        self.give_secrets()
        self._pause_providers(paused=False)
        for body in self.kube.jobs():
            if PAUSED in body["metadata"].get("annotations", {}):
                self.kube.annotate(ObjectRef(JOB, "ml", body["metadata"]["name"]), **{PAUSED: ""})
        self._change_providers(changed=False)
        self._give_claims_back()
        self.kube.mend_watches()
        for life in self._lives:
            if life.process.is_frozen:
                life.process.thaw()

    # ---- the play

    async def play(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        track_tasks(loop)
        self.faults = Faults(**vars(self.faults))  # the calm changes them; the scenario stays
        self.factory.faults = self.faults
        keeper = loop.create_task(self._keep_alive(), name="keeper")
        users = [loop.create_task(self._create(plan)) for plan in self.scenario.jobs]
        users += [loop.create_task(self._act(action)) for action in self.scenario.actions]
        await self._until(lambda: self._is_enough(users), keeper)
        self._calm_down()
        ended = await self._until(self._quiet, keeper, _PATIENCE_S)
        if not self.report.problems:
            for user in users:
                if user.done() and user.exception():
                    raise AssertionError(f"the play itself went wrong: {user.exception()!r}")
            self._judge(ended)
        self.report.problems += [str(c) for c in loop.complaints]
        keeper.cancel()
        await self._bring_down()

    async def _until(
        self, done: Callable[[], bool], keeper: asyncio.Task[None], patience_s: float = 1e9
    ) -> bool:
        """Let time pass; stop early where something is wrong. False = out of patience, which each
        batch that is made renews.
        """
        until, made = self.clock.elapsed() + patience_s, self._batches_made()
        lines, heard = len(self.report.trace), self.clock.elapsed()
        while not done():
            self.report.problems = [*self.watcher.check(), *self.report.complaints]
            if keeper.done():
                keeper.result()
            if self.report.problems:
                return True
            if len(self.report.trace) > lines:
                lines, heard = len(self.report.trace), self.clock.elapsed()
            if self._batches_made() > made:
                until, made = self.clock.elapsed() + patience_s, self._batches_made()
            silent = self.report.is_calm and self.clock.elapsed() > heard + _SILENCE_S
            if silent or self.clock.elapsed() > until:
                return False
            await asyncio.sleep(5.0)
        return True

    def _batches_made(self) -> int:
        return sum(len(server.batches) for server in self.servers.values())

    def _is_enough(self, users: Sequence[asyncio.Task[None]]) -> bool:
        """Whether the weather may become calm: it is time, or nothing is left that it could hit."""
        if self.clock.elapsed() >= self.scenario.calm_at:
            return True
        if self._quiet() and all(user.done() for user in users):
            self._idle_rounds += 1
        else:
            self._idle_rounds = 0
        return self._idle_rounds > _IDLE_ROUNDS

    def _rests(self, key: str) -> bool:
        """Whether a run waits for a person, and rightly so."""
        jobs = [b for b in self.kube.jobs() if key and run_key_of(b) == key]
        return any(rests(b) for b in jobs)

    def _quiet(self) -> bool:
        if not any(life.process.alive for life in self._lives):
            return False  # nobody sees what is asked for
        jobs = self.kube.jobs()
        if not all(is_terminal(b) or rests(b) or self._rests(run_key_of(b)) for b in jobs):
            return False
        if any(b["metadata"].get("deletionTimestamp") for b in jobs):
            return False
        over = {RunPhase.ENDED, RunPhase.PARKED}
        if not all(r.phase in over or self._rests(r.key) for r in self.journals.runs()):
            return False
        return all(life.runner.idle for life in self._lives)

    def _judge(self, ended: bool) -> None:
        if not ended:
            for run in self.journals.runs():
                if run.phase not in {RunPhase.ENDED, RunPhase.PARKED} and not self._rests(run.key):
                    self.report.problems.append(f"{run.owner.name} never ends: {run.phase.value}")
        for name, records in self._records.items() if not self.watcher.were_lost else ():
            if not any(run.owner.name.startswith(name) for run in self.journals.runs()):
                for server in self.servers.values():
                    self.report.problems += unpaid_problems(name, records, server)
        self.watcher.check_end(grace_s=900.0)
        self.report.problems += self.watcher.unreported(self.recorder.reasons())
        self.report.problems += [*self.watcher.problems, *self.report.complaints]
        for run in self.journals.runs():
            self.report.ends.append(run.verdict.ending.value if run.verdict else run.phase.value)
            self.report.problems += self._result_problems(run)
        self.report.submissions = self._batches_made()
        self.report.excused = sum(len(s.excused) for s in self.servers.values())
        outputs = {run.output.uri for run in self.journals.runs()}
        lines = [len(self.workers.results(uri) or ()) for uri in outputs]
        self.report.records = (sum(map(len, self._records.values())), sum(lines))

    def _is_of_lost_life(self, run: Run) -> bool:
        """Whether a life whose journal is lost claimed the place after this one had begun."""
        return self.watcher.were_lost and self.workers.has_later_claim(run)

    def _result_problems(self, run: Run) -> list[str]:
        name = next(p.name for p in self.scenario.jobs if run.owner.name.startswith(p.name))
        results = self.workers.results(run.output.uri)
        server = self._server_of(run)
        if run.phase is RunPhase.ENDED and not run.was_submitted:
            claimed = f"{run.output.uri}_run.json" in self.workers.store.objects
            # What an earlier life left there, whose journal is lost, is not this one's to remove.
            earlier = self.watcher.were_lost and self.workers.manifest(run.output.uri) is not None
            held = earlier or self._is_of_lost_life(run)
            claimed = claimed and not held and run.key not in self.workers.claimed_late
            found = [f"{name}: ended unsubmitted and keeps its claim"] if claimed else []
            if not self.watcher.were_lost:
                found += unpaid_problems(name, self._records[name], server)
            return found
        if run.phase not in {RunPhase.ENDED, RunPhase.PARKED}:
            return []
        if results is None:
            return [f"{name}: is over and there is no manifest"]
        known = self.watcher.journaled
        now = self.clock.now()
        found = result_problems(run, self._records[name], results, server, now, known)
        manifest = self.workers.manifest(run.output.uri) or {}
        errors = self.workers.results(run.output.uri, "errors") or []
        found += manifest_problems(name, manifest, results, errors)
        if run.phase is RunPhase.ENDED and not self._is_of_lost_life(run):
            known_places = tuple(self.watcher.staging[run.key])
            left = [u for u in self.workers.leftovers(run) if u.startswith(known_places)]
            left = [] if run.key in self.workers.staged_late else left
            found += [f"{name}: left in staging: {uri}" for uri in left]
            found += [f"{name}: left at the provider: {f}" for f in server.files_of(run)]
        return found

    async def _bring_down(self) -> None:
        for life in self._lives:
            if life.process.alive:
                life.process.kill()
                await life.process.buried()
            self.report.problems += [
                f"{life.process.name}: {error!r}" for error in life.process.failures()
            ]

"""Does what `decide` wants done, one coroutine per effect, and returns what came of it as a value.

Every effect runs under a timeout and maps every failure to an outcome; nothing raises. The create
call is sent once, with the claim read again just before it, and never after its deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from batchinference.clock import Clock
from batchinference.core.effects import (
    TASKS,
    Announce,
    CancelBatch,
    DeleteInput,
    Effect,
    LookUp,
    Search,
    SetFinalizer,
    StartTask,
    StopTasks,
    Submit,
)
from batchinference.core.holding import handed_over, has_ended, still_going
from batchinference.core.outcomes import (
    CancelAnswered,
    EffectFailed,
    FinalizerSet,
    InputDeleted,
    Outcome,
    ShardStaged,
    SubmitAnswered,
    TaskDone,
)
from batchinference.errors import Fault, NewerSchema, Retry, Stalled, Superseded
from batchinference.model.batch import TOO_LATE, Accepted, NotSent, OutcomeUnknown, SubmitOutcome
from batchinference.model.codec import encode
from batchinference.model.job import KIND as JOB_KIND
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.model.work import (
    Checkpoint,
    FaultKind,
    Holder,
    Task,
    TaskFault,
    TaskReport,
    TaskResult,
)
from batchinference.ports import Event, Journals, Kube, Metrics, ObjectRef, Recorder, TaskRunner
from batchinference.runtime.accounts import Accounts
from batchinference.runtime.census import provider_kind
from batchinference.runtime.circuits import Circuits, may_wait
from batchinference.runtime.clients import Clients, Connected, no_answer
from batchinference.runtime.entry import Entry
from batchinference.runtime.index import Indexes
from batchinference.runtime.looking_up import look_up
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.store import Store

logger = logging.getLogger(__name__)

_DECISIONS = {Reason.DECIDED, Reason.DECISION_IGNORED}

Done = Callable[[Entry, str, Outcome | None], None]
"""An effect is over: the entry, the effect's id, what came of it."""


class Effects:
    """Starts effects as tasks and hands their outcomes back."""

    def __init__(
        self,
        *,
        store: Store,
        journals: Journals,
        clients: Clients,
        indexes: Indexes,
        accounts: Accounts,
        circuits: Circuits,
        kube: Kube,
        recorder: Recorder,
        runner: TaskRunner,
        clock: Clock,
        settings: RuntimeSettings,
        metrics: Metrics,
        connections: Mapping[str, Any],
        done: Done,
        deliver: Callable[[str, Outcome], None],
        entries: Mapping[str, Entry],
        leads: Callable[[], bool],
    ) -> None:
        self._leads = leads
        self._store = store
        self._journals = journals
        self._clients = clients
        self._indexes = indexes
        self._accounts = accounts
        self._circuits = circuits
        self._kube = kube
        self._recorder = recorder
        self._runner = runner
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._connections = connections
        self._done = done
        self._deliver = deliver
        self._entries = entries
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, entry: Entry, effect: Effect, decided_at: float) -> None:
        """Begin an effect. `decided_at` is the elapsed time from before its claim was written.

        Raises:
            Retry: this process does not lead, or is late with renewing its lead.
        """
        if not self._leads():
            raise Retry(Reason.PENDING, f"{effect.id} does not begin: this is not the leader now")
        if isinstance(effect, Announce):
            self._announce(entry, effect)
            return
        if isinstance(effect, StopTasks):
            self._runner.stop(entry.key)
            entry.inflight = {i for i in entry.inflight if not i.startswith(TASKS)}
            return
        entry.inflight.add(effect.id)
        task = asyncio.create_task(
            self._perform(entry, effect, decided_at), name=f"{effect.id} {entry.key[:12]}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Drop what is under way; the journal's claims make the next process ask."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _perform(self, entry: Entry, effect: Effect, decided_at: float) -> None:
        outcome: Outcome | None
        try:
            outcome = await self._do(entry, effect, decided_at)
        except Fault as fault:
            self._heard(entry, fault.reason)
            outcome = EffectFailed(effect, TaskFault.of(fault))
        except Superseded:
            fault_value = TaskFault(FaultKind.RETRY, Reason.PENDING, "Changed meanwhile", 0.2)
            outcome = EffectFailed(effect, fault_value)
        except TimeoutError:
            pinned = entry.run.provider.settings if entry.run else {}
            text = no_answer(pinned, self._settings.call_timeout_s)
            outcome = EffectFailed(
                effect, TaskFault(FaultKind.RETRY, Reason.PROVIDER_UNAVAILABLE, text)
            )
        except Exception:  # a bug must not leave the effect "under way" for ever
            logger.exception("Effect %s of run %s failed", effect.id, entry.key)
            text = "Internal error; the operator's log has the details"
            outcome = EffectFailed(effect, TaskFault(FaultKind.RETRY, Reason.INTERNAL_ERROR, text))
        if not isinstance(effect, StartTask) or outcome is not None:
            self._done(entry, effect.id, outcome)

    def _heard(self, entry: Entry, reason: str) -> None:
        if entry.run is not None:
            pin = entry.run.provider
            self._clients.heard(reason, pin.secrets_namespace, pin.settings)

    async def _do(self, entry: Entry, effect: Effect, decided_at: float) -> Outcome | None:
        run = entry.run
        assert run is not None
        if isinstance(effect, SetFinalizer):
            return await self._set_finalizer(run, effect)
        try:
            connected = await self._clients.of_run(run.provider)
        except Fault as fault:
            if not isinstance(effect, Submit):
                raise
            not_sent = NotSent(fault.reason, fault.message)
            return SubmitAnswered(effect.shard, effect.ordinal, not_sent)
        if self._clock.elapsed() - decided_at > self._settings.call_timeout_s:
            raise Superseded("Reading credentials took so long that the decision may be old")
        if may_wait(effect, run):
            self._circuits.hold(run.provider.account)
        if isinstance(effect, StartTask):
            if effect.replaces is not None and not await self._may_take(run, effect.replaces):
                text = still_going(run, effect.replaces)
                held = TaskFault(FaultKind.STALLED, Reason.OUTPUT_CONFLICT, text)
                return TaskDone(effect.kind, effect.shard, effect.ordinal, held)
            return self._start_task(entry, run, effect, connected)
        if isinstance(effect, Submit):
            return await self._submit(run, effect, connected, decided_at)
        if isinstance(effect, DeleteInput):
            await self._demand_run(run, effect, connected)
            return await self._delete_input(effect, connected)
        if isinstance(effect, Search):
            return await self._search(run, connected)  # often from memory: it says nothing
        try:
            if isinstance(effect, LookUp):
                timeout_s = self._settings.call_timeout_s
                outcome: Outcome = await look_up(run, effect, connected, timeout_s, self._metrics)
            else:
                assert isinstance(effect, CancelBatch)
                await self._demand_run(run, effect, connected)
                outcome = await self._cancel(run, effect, connected)
        except TimeoutError:
            text = no_answer(run.provider.settings, self._settings.call_timeout_s)
            self._circuits.failed(run.provider.account, text)
            raise
        except Fault as fault:
            self._circuits.heard(run.provider.account, fault)
            raise
        self._circuits.answered(run.provider.account)
        return outcome

    async def _delete_input(self, effect: DeleteInput, connected: Connected) -> Outcome:
        async with asyncio.timeout(self._settings.call_timeout_s):
            await connected.client.delete_input(effect.input_ref)
        return InputDeleted(effect.shard, effect.ordinal)

    async def _cancel(self, run: Run, effect: CancelBatch, connected: Connected) -> Outcome:
        async with asyncio.timeout(self._settings.call_timeout_s):
            cancelled = await connected.client.cancel(effect.batch_id)
        self._accounts.poll_now(run.provider.account)
        return CancelAnswered(effect.shard, effect.batch_id, cancelled)

    async def _taken_by(self, run: Run, connected: Connected) -> str:
        try:
            async with asyncio.timeout(self._settings.call_timeout_s):
                return await self._clients.taken_by(run, connected)
        except (Fault, TimeoutError):
            return ""  # what is not held is not submitted, whoever has it

    async def _demand_run(self, run: Run, effect: Effect, connected: Connected) -> None:
        """Cancel and delete nothing of a run that another installation has by now (protocol 3.3).

        A place that can't be read keeps no batch from being cancelled: it costs money.

        Raises:
            Stalled: HeldElsewhere.
            Retry: the place can't be read, and something is to be deleted.
        """
        try:
            async with asyncio.timeout(self._settings.call_timeout_s):
                taken_by = await self._clients.taken_by(run, connected)
        except (Fault, TimeoutError):
            if isinstance(effect, CancelBatch):
                return
            raise
        if taken_by:
            raise Stalled(Reason.HELD_ELSEWHERE, handed_over(run, taken_by))

    # ---------------------------------------------------------------- the object

    async def _set_finalizer(self, run: Run, effect: SetFinalizer) -> Outcome:
        ref = job_ref(run)
        body = await self._kube.set_finalizer(ref, effect.present)
        if body is None:
            # Whether that is a deletion is for the watch and the sweeper to say (protocol 7.6).
            raise Retry(Reason.PENDING, "The object is gone; its deletion was not seen yet")
        self._store.observe(JOB_KIND, "MODIFIED", body)
        return FinalizerSet(effect.present)

    def _announce(self, entry: Entry, effect: Announce) -> None:
        if entry.run is not None:
            about = job_ref(entry.run)
            self._recorder.record(Event(about, effect.reason, effect.message, effect.warning))
            if effect.reason in _DECISIONS:
                self._metrics.count("decisions_total", outcome=effect.reason)

    # ---------------------------------------------------------------- tasks

    async def _may_take(self, run: Run, holder: Holder) -> bool:
        """Whether the run that holds a place is this one, or over for good by its journal."""
        if holder.run_key == run.key:
            return True
        try:
            found = await self._journals.get(holder.run_key)
        except NewerSchema:
            return False
        return has_ended(holder, found[0] if found is not None else None)

    def _start_task(
        self, entry: Entry, run: Run, effect: StartTask, connected: Connected
    ) -> Outcome | None:
        job = self._store.steering(entry.key)
        resolved = connected.resolved
        template = job.spec.prompt_template if job is not None else None
        task = Task(
            kind=effect.kind,
            run=run,
            shard=effect.shard,
            ordinal=effect.ordinal,
            sources=effect.sources,
            replaces=effect.replaces,
            may_go_on=effect.may_go_on,
            failing_s=self._failing_s(entry, effect),
            inline=job.spec.input.inline if job else None,
            template=encode(template) if template is not None else None,
            connections={
                "provider": {"settings": resolved.pin_settings, "secrets": resolved.secrets},
                "kube": self._connections,
            },
        )
        self._runner.start(task, self)
        return None

    def _failing_s(self, entry: Entry, effect: StartTask) -> int:
        failure = entry.notes.failures.get(effect.id)
        return (self._clock.now() - failure.since) // timedelta(seconds=1) if failure else 0

    def report(self, task: Task, report: TaskReport) -> None:
        """See `ports.TaskListener`."""
        if isinstance(report, Checkpoint):
            self._deliver(task.run.key, ShardStaged(report))

    def done(self, task: Task, result: TaskResult) -> None:
        """See `ports.TaskListener`."""
        entry = self._entries.get(task.run.key)
        if entry is None:
            return
        effect = StartTask(task.kind, task.shard, task.ordinal)
        if entry.run is None or not entry.run.is_same_life(task.run):
            self._done(entry, effect.id, None)
            return
        if isinstance(result, TaskFault):
            self._heard(entry, result.reason)
            if result.reason == Reason.PROVIDER_UNAVAILABLE:
                self._circuits.heard(entry.run.provider.account, result)
        name = type(result).__name__ if not isinstance(result, TaskFault) else result.reason
        self._metrics.count("tasks_total", kind=task.kind, outcome=name)
        outcome = TaskDone(task.kind, task.shard, task.ordinal, result)
        self._done(entry, effect.id, outcome)

    # ---------------------------------------------------------------- the provider

    async def _submit(
        self, run: Run, effect: Submit, connected: Connected, decided_at: float
    ) -> Outcome:
        until = decided_at + self._settings.submit_timeout_s
        outcome: SubmitOutcome | None = await self._reason_not_to_send(run, connected, until)
        if outcome is None:
            outcome = await self._send(connected, effect.request, until)
            self._circuits.heard_submit(run.provider.account, outcome)
        kind = type(outcome).__name__
        provider = provider_kind(run)
        self._metrics.count("submissions_total", provider=provider, outcome=kind)
        if isinstance(outcome, OutcomeUnknown):
            self._metrics.count("unanswered_submissions_total", provider=provider)
        logger.info(
            "Job %s/%s: shard %s, ordinal %s: %s",
            run.owner.namespace,
            run.owner.name,
            effect.shard,
            effect.ordinal,
            kind,
        )
        if isinstance(outcome, Accepted):
            self._indexes.saw(connected, (outcome.batch,))
            self._accounts.poll_now(run.provider.account)
        return SubmitAnswered(effect.shard, effect.ordinal, outcome)

    async def _reason_not_to_send(
        self, run: Run, connected: Connected, until: float
    ) -> NotSent | None:
        """The output claim is read again before each submission (protocol 3.1)."""
        try:
            async with asyncio.timeout(max(until - self._clock.elapsed(), 0)):
                held = await self._clients.holds_claim(run, connected)
        except TimeoutError:
            return NotSent(Reason.OUTPUT_UNAVAILABLE, "The output place did not answer in time")
        except Fault as fault:
            pin = run.provider
            self._clients.heard(fault.reason, pin.secrets_namespace, pin.settings)
            return NotSent(fault.reason, fault.message)
        if not held:
            taken_by = await self._taken_by(run, connected)
            if taken_by:
                return NotSent(Reason.HELD_ELSEWHERE, handed_over(run, taken_by))
            text = (
                f"The output place '{run.output.uri}' does not hold this run's claim any more: "
                "somebody has removed or replaced it. Nothing more is submitted; bring it back, or "
                "create the job with another `spec.output`"
            )
            return NotSent(Reason.OUTPUT_CONFLICT, text)
        return None

    async def _send(
        self, connected: Connected, request: Mapping[str, Any], until: float
    ) -> SubmitOutcome:
        def may_send() -> bool:
            return self._clock.elapsed() < until

        if not may_send():
            return TOO_LATE
        left = until - self._clock.elapsed()
        try:
            async with asyncio.timeout(left):
                return await connected.client.submit(request, may_send)
        except TimeoutError:
            return OutcomeUnknown(f"The create call was not over within {left:.0f} s")
        except Exception:  # an adapter's bug after the request may have been sent
            logger.exception("A create call ended in an unforeseen error")
            return OutcomeUnknown("The create call ended in an unforeseen error")

    async def _search(self, run: Run, connected: Connected) -> Outcome:
        found = await self._indexes.search(run, connected)
        if found.found:
            self._metrics.count("duplicate_submissions_prevented_total", layer="index")
            text = (
                f"The journal of this run is lost, and the provider has {len(found.found)} batches "
                "of it: what matches the input is followed, and nothing of it is submitted again"
            )
            self._recorder.record(Event(job_ref(run), Reason.JOURNAL_LOST, text, warning=True))
        return found


def job_ref(run: Run) -> ObjectRef:
    """The object that steers the run."""
    return ObjectRef(JOB_KIND, run.owner.namespace, run.owner.name, run.owner.uid)

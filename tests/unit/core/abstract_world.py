"""An abstract provider and one object around `absorb` and `decide`: everything that can happen.

The provider is as real ones are at their worst inside the protocol's assumptions: answers get lost,
calls take hold late (up to the submit deadline), listings lag (less than the settle time), batches
fail, expire, end partially. Nothing here knows how the core decides; it only keeps the books.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from batchinference.core.absorb import absorb
from batchinference.core.begin import afresh, starts_afresh
from batchinference.core.decide import decide
from batchinference.core.draft import Decision, Observed
from batchinference.core.effects import (
    Announce,
    CancelBatch,
    DeleteInput,
    Effect,
    LookUp,
    SetFinalizer,
    StartTask,
    StopTasks,
    Submit,
)
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchMissing,
    BatchSeen,
    CancelAnswered,
    EffectFailed,
    FinalizerSet,
    InputDeleted,
    LookedUp,
    Outcome,
    ShardStaged,
    SubmitAnswered,
    TaskDone,
)
from batchinference.core.problem import Problem
from batchinference.core.setting import Setting
from batchinference.core.view import Scene, status_of
from batchinference.model.batch import (
    Accepted,
    BatchFailure,
    BatchState,
    BatchView,
    CancelOutcome,
    NotSent,
    OutcomeUnknown,
    RefusalKind,
    Refused,
    SubmissionID,
    Traits,
)
from batchinference.model.codec import encode
from batchinference.model.price import Price, PriceSource
from batchinference.model.run import (
    CancelWhy,
    Collected,
    Results,
    Run,
    RunPhase,
    ShardState,
    SubmissionState,
)
from batchinference.model.staging import Cursor, InputSnapshot, Staged
from batchinference.model.status import Reason
from batchinference.model.work import (
    Admitted,
    Checkpoint,
    Cleaned,
    FaultKind,
    Finished,
    Pooled,
    ShardCollected,
    StageDone,
    TaskFault,
    TaskKind,
    Uploaded,
)
from builders import START, JobBuilder, job, run_of, shard_of
from invariants import journal_problems, journal_step_problems, object_problems
from unit.core.given import TIMING, request_of, seen

ROWS = 4
"""Records of a staged shard."""

LAG_S = 20.0
"""How long a new batch may stay out of listings; with the submit deadline below the settle time."""

A_RECORD = Price("0", "2000000", "0", "1000000", "USD", PriceSource.LIBRARY)
"""At which a record costs at most 1, as its answer has one token at most."""

SNAPSHOT = InputSnapshot("s3://data/in", 1, 1, "print")


@dataclass
class Batch:
    """A batch as the provider has it."""

    id: str
    shard: int
    ordinal: int
    rows: tuple[int, ...]
    input_ref: str
    created_at: datetime
    state: BatchState = BatchState.IN_PROGRESS
    billed: tuple[int, ...] = ()
    failure: BatchFailure | None = None


@dataclass(frozen=True)
class Flying:
    """A create call that may still take hold."""

    shard: int
    ordinal: int
    input_ref: str
    until: datetime


@dataclass
class World:
    """The journal, one process's memory, the object, the provider, and the clock."""

    window_s: float = 0.0
    shards: int = 2
    now: datetime = START
    run: Run = field(default_factory=lambda: fresh_run("uid-0"))
    notes: Notes = field(default_factory=Notes)
    wake_at: datetime | None = None
    inflight: dict[str, tuple[Effect, datetime]] = field(default_factory=dict)
    told: list[Outcome] = field(default_factory=list)
    # the object
    builder: JobBuilder = field(default_factory=lambda: job().stamped(uid="uid-0"))
    is_there: bool = True
    deleting_since: datetime | None = None
    finalizer: bool = False
    held: bool = False
    lives: int = 0
    provider_ok: bool = True
    blind: bool = False
    priced: bool = True
    # the provider
    inputs: set[str] = field(default_factory=set)
    batches: list[Batch] = field(default_factory=list)
    flying: list[Flying] = field(default_factory=list)
    serial: int = 0
    # the books
    rows: dict[int, tuple[int, ...]] = field(default_factory=dict)
    unbilled: dict[int, tuple[int, ...]] = field(default_factory=dict)
    highest: dict[int, int] = field(default_factory=dict)
    collected_batches: set[str] = field(default_factory=set)

    # ------------------------------------------------------------ the operator

    @property
    def timing(self):
        return TIMING

    def observe(self) -> Observed:
        found = None
        if self.is_there:
            found = seen(self.builder)
            if self.deleting_since is not None:
                meta = replace(found.metadata, deletion_time=self.deleting_since)
                found = replace(found, metadata=meta)
        problem = None if self.provider_ok else Problem("ProviderChanged", "changed", self.now)
        return Observed(
            now=self.now,
            timing=TIMING,
            spec=seen(self.builder).spec,
            job=found,
            is_deleted=not self.is_there or self.deleting_since is not None,
            has_finalizer=self.is_there and self.finalizer,
            provider=problem,
            granted=frozenset(range(1000)),
            traits=Traits(resend_window_s=self.window_s),
            make_request=request_of,
            price=A_RECORD if self.priced else None,
        )

    def reconcile(self) -> None:
        observed = self.observe()
        if self.run.phase is RunPhase.ENDED and starts_afresh(self.run, observed.job):
            self.run = afresh(self.run, fresh_run(seen(self.builder).metadata.uid))
            self.notes, self.rows, self.unbilled = Notes(), {}, {}
        self.notes = replace(self.notes, inflight=frozenset(self.inflight))
        decision = decide(self.run, self.notes, observed)
        self._check_decision(decision, observed)
        self._commit(decision.run)
        self.notes, self.wake_at = decision.notes, decision.wake_at
        for effect in decision.effects:
            if isinstance(effect, StopTasks):
                self.inflight = {k: v for k, v in self.inflight.items() if k[:5] != "task:"}
            elif not isinstance(effect, Announce):
                assert effect.id not in self.inflight, f"{effect.id} was started twice"
                self.inflight[effect.id] = (effect, self.now)
        self._check_view(decision)

    def tell(self, *outcomes: Outcome) -> None:
        setting = Setting(self.now, seen(self.builder).spec, TIMING, 0.5)
        run, notes = self.run, self.notes
        for outcome in outcomes:
            run, notes = absorb(run, notes, outcome, setting)
            lasting = not isinstance(outcome, LookedUp) or outcome.view is not None
            if lasting and outcome not in self.told:
                self.told.append(outcome)
        self.notes = notes
        self._commit(run)
        self.reconcile()

    def crash(self) -> None:
        """The process dies; create calls under way may still take hold."""
        for effect, since in self.inflight.values():
            if isinstance(effect, Submit):
                self._fly(effect, since)
        self.inflight, self.notes, self.told = {}, Notes(), []
        self.reconcile()

    def _commit(self, run: Run) -> None:
        found = journal_problems(run)
        if run.phase is not RunPhase.ADMITTING or not run.ordinal_floor:
            found += journal_step_problems(self.run, run)
        assert not found, found
        for shard in run.shards:
            self.rows.setdefault(
                shard.index, tuple(range(shard.index * ROWS, (shard.index + 1) * ROWS))
            )
        self.run = run

    # ------------------------------------------------------------ what must hold of decisions

    def _check_budget(self, decision: Decision, observed: Observed) -> None:
        """With what has just been decided nothing can cost more than the budget."""
        fresh = [e for e in decision.effects if isinstance(e, Submit) and e.fresh]
        budget = observed.spec.budget
        if budget is None or not fresh:
            return
        landed = {(b.shard, b.ordinal) for b in self.batches}
        may_land = [
            f
            for f in self.flying
            if self.now <= f.until
            and f.input_ref in self.inputs
            and (f.shard, f.ordinal) not in landed
        ]
        costs = sum(map(self._cost, self.batches))
        costs += sum(len(self.rows[e.shard]) for e in (*fresh, *may_land))
        assert costs <= float(budget.max_cost), f"{costs} is above the budget"

    def _cost(self, batch: Batch) -> int:
        """The answers of every other record have a token, those of the others none."""
        if not batch.state.is_over:
            return len(batch.rows)
        return sum(row % 2 for row in batch.billed)

    def _check_decision(self, decision: Decision, observed: Observed) -> None:
        self._check_budget(decision, observed)
        for effect in decision.effects:
            if isinstance(effect, CancelBatch):
                assert decision.run.cancel is not None
                assert decision.run.cancel.why is not CancelWhy.ORPHANED, "an orphan goes on"
            if not isinstance(effect, Submit):
                continue
            shard = decision.run.shards[effect.shard]
            last = shard.last
            assert last is not None
            assert last.ordinal == effect.ordinal, "only the newest ordinal is sent"
            assert last.request == effect.request, "the claimed request is sent unchanged"
            assert observed.job is not None, "nobody wants it"
            assert not observed.is_deleted, "it is being deleted"
            assert not observed.spec.suspend, "it is suspended"
            assert decision.run.cancel is None, "it is being cancelled"
            assert observed.provider is None, "the provider is another one"
            assert observed.has_finalizer, "the finalizer stands first"
            if effect.fresh:
                before = self.run.shards[effect.shard]
                assert before.state in {ShardState.QUEUED, ShardState.STAGED, ShardState.DROPPED}
                assert shard.state is ShardState.CLAIMED, "the claim stands in what is written"
                assert last.state is SubmissionState.CLAIMED
                assert last.ordinal > self.highest.get(effect.shard, 0), "ordinals rise for ever"
                assert last.input_ref in self.inputs, "every ordinal has its own upload"
                self.highest[effect.shard] = last.ordinal
            else:
                assert shard.state is ShardState.UNKNOWN
                latest = last.claimed_at + timedelta(seconds=self.window_s)
                assert self.now + timedelta(seconds=TIMING.submit_timeout_s) <= latest
                assert last.input_ref in self.inputs

    def _check_view(self, decision: Decision) -> None:
        if not self.is_there:
            return
        found = seen(self.builder)
        scene = Scene(
            found, self.run, self.notes, decision.problem, decision.held, self.now, TIMING
        )
        body = {**self.builder.build(), "status": encode(status_of(scene))}
        assert object_problems(body) == []

    # ------------------------------------------------------------ effects

    def perform(self, effect_id: str, how: str) -> None:
        """Do an effect; `how` is which way it goes: "well", or a failure of that kind of effect."""
        effect, since = self.inflight.pop(effect_id)
        if isinstance(effect, Submit):
            self.tell(SubmitAnswered(effect.shard, effect.ordinal, self._send(effect, since, how)))
            return
        if how in {"fails", "permanent", "changing"}:
            fault = _fault(effect, how)
            if isinstance(effect, StartTask):
                self.tell(TaskDone(effect.kind, effect.shard, effect.ordinal, fault))
            else:
                self.tell(EffectFailed(effect, fault))
            return
        outcomes = self._do(effect)
        if how == "fails late":
            self.tell(EffectFailed(effect, _fault(effect, how)))
        else:
            self.tell(*outcomes)

    def _do(self, effect: Effect) -> list[Outcome]:
        match effect:
            case StartTask():
                return self._task(effect)
            case LookUp():
                view = None if self.blind else self._find(effect.shard, effect.ordinal)
                readable = effect.fenced or (not self.blind and effect.input_ref in self.inputs)
                return [LookedUp(effect.shard, effect.ordinal, view, readable)]
            case DeleteInput():
                if not self.blind:  # absent is fine, in whatever account it was looked for
                    self.inputs.discard(effect.input_ref)
                return [InputDeleted(effect.shard, effect.ordinal)]
            case CancelBatch():
                return [
                    CancelAnswered(effect.shard, effect.batch_id, self._cancel(effect.batch_id))
                ]
            case SetFinalizer():
                if self.is_there:
                    self.finalizer = effect.present
                    self.held = self.held or effect.present
                    if not effect.present and self.deleting_since is not None:
                        self._go()
                return [FinalizerSet(effect.present)]
        raise AssertionError(effect)

    def _task(self, effect: StartTask) -> list[Outcome]:
        def done(result: Any) -> Outcome:
            return TaskDone(effect.kind, effect.shard, effect.ordinal, result)

        match effect.kind:
            case TaskKind.ADMIT:
                return [done(Admitted(SNAPSHOT))]
            case TaskKind.STAGE:
                first = len(self.run.shards)
                reports: list[Outcome] = [
                    ShardStaged(
                        Checkpoint(
                            shard_of(n, ShardState.STAGED, ROWS, output=ROWS),
                            Cursor(0, n, n, (n + 1) * ROWS, 0, "print"),
                        )
                    )
                    for n in range(first, self.shards)
                ]
                rows = self.shards * ROWS
                return [*reports, done(StageDone(Staged(rows, 0, rows, rows), SNAPSHOT))]
            case TaskKind.UPLOAD:
                self.serial += 1
                self.inputs.add(f"file-{self.serial}")
                return [done(Uploaded(f"file-{self.serial}"))]
            case TaskKind.COLLECT:
                return [done(ShardCollected(self._collect(effect.shard or 0)))]
            case TaskKind.POOL:
                return [done(self._pool(effect.sources))]
            case TaskKind.FINISH:
                self._check_answers()
                return [done(Finished(self._results(), may_go_on=effect.may_go_on))]
            case _:
                return [done(Cleaned())]

    def _collect(self, index: int) -> Collected:
        rows = self.rows[index]
        if index >= len(self.run.shards):  # the run ended meanwhile; the task has its own copy
            return Collected(failed=len(rows))
        last = self.run.shards[index].last
        assert last is not None
        if last.state in {SubmissionState.REFUSED, SubmissionState.VOID}:
            return Collected(failed=len(rows))
        batch = next(b for b in self.batches if b.id == last.batch_id)
        self.collected_batches.add(batch.id)
        left = tuple(r for r in rows if r not in batch.billed)
        told = Collected(answered=len(batch.billed), output_tokens=self._cost(batch))
        if not batch.state.may_leave_unbilled:
            return replace(told, failed=len(left))
        self.unbilled[index] = left
        return replace(told, unbilled=len(left), unbilled_code=batch.state.value)

    def _pool(self, sources: tuple[int, ...]) -> Pooled:
        rows = tuple(r for n in sources for r in self.unbilled[n])
        index = len(self.run.shards)
        self.rows[index] = rows
        made = shard_of(index, ShardState.STAGED, len(rows), output=len(rows))
        return Pooled((made,), sources)

    def _results(self) -> Results:
        answered = sum(s.collected.answered for s in self.run.shards if s.collected)
        total = self.shards * ROWS
        return Results(completed=answered, failed=total - answered)

    def _check_answers(self) -> None:
        """No answer that was paid for is lost, when the run writes its results."""
        paid = {b.id for b in self.batches if b.billed}
        assert paid <= self.collected_batches, "an answer that was paid for is not collected"

    # ------------------------------------------------------------ the provider

    def _send(self, effect: Submit, since: datetime, how: str) -> Any:
        ref = str(effect.request["input_file_id"])
        late = self.now > since + timedelta(seconds=TIMING.submit_timeout_s)
        if late or how == "unsent":
            return NotSent("OutputConflict", "not sent")
        match how:
            case "well":
                batch = self._land(effect.shard, effect.ordinal, ref)
                if batch is None:
                    return Refused(RefusalKind.INVALID, "400", "no such file")
                return Accepted(self.view(batch))
            case "lost":
                self._land(effect.shard, effect.ordinal, ref)
            case "hangs":
                self._fly(effect, since)
            case "quota" | "throttled" | "credentials" | "invalid":
                return Refused(RefusalKind(how.capitalize()), how, how)
        return OutcomeUnknown("no answer")

    def _fly(self, effect: Submit, since: datetime) -> None:
        until = since + timedelta(seconds=TIMING.submit_timeout_s)
        ref = str(effect.request["input_file_id"])
        self.flying.append(Flying(effect.shard, effect.ordinal, ref, until))

    def land(self, number: int) -> None:
        """A create call takes hold after all."""
        found = self.flying.pop(number)
        if self.now <= found.until:
            self._land(found.shard, found.ordinal, found.input_ref)

    def _land(self, shard: int, ordinal: int, ref: str) -> Batch | None:
        token = [b for b in self.batches if (b.shard, b.ordinal) == (shard, ordinal)]
        limit = timedelta(seconds=self.window_s)
        if token and self.now < token[0].created_at + limit:
            return token[0]
        if ref not in self.inputs:
            return None
        batch = Batch(
            id=f"batch-{len(self.batches)}",
            shard=shard,
            ordinal=ordinal,
            rows=self.rows[shard],
            input_ref=ref,
            created_at=self.now,
        )
        self.batches.append(batch)
        return batch

    def view(self, batch: Batch) -> BatchView:
        named = SubmissionID(
            self.run.tag, batch.shard, batch.ordinal, shard_of(batch.shard).sha256[:12]
        )
        over = batch.state.is_over
        return BatchView(
            id=batch.id,
            state=batch.state,
            submission=named,
            input_ref=batch.input_ref,
            created_at=batch.created_at,
            ended_at=self.now if over else None,
            completed=len(batch.billed),
            failure=batch.failure,
            files=("out",) if over else (),
        )

    def _find(self, shard: int, ordinal: int) -> BatchView | None:
        found = [b for b in self.batches if (b.shard, b.ordinal) == (shard, ordinal)]
        return self.view(found[0]) if found and self.is_listed(found[0]) else None

    def is_listed(self, batch: Batch) -> bool:
        return self.now >= batch.created_at + timedelta(seconds=LAG_S)

    def _cancel(self, batch_id: str) -> CancelOutcome:
        batch = next(b for b in self.batches if b.id == batch_id)
        if self.blind:
            return CancelOutcome.NOT_FOUND
        if batch.state.is_over:
            return CancelOutcome.ALREADY_OVER
        batch.state = BatchState.CANCELLING
        return CancelOutcome.ACCEPTED

    def end(self, batch: Batch, state: BatchState, part: int, failure: str) -> None:
        """A batch ends; `part` of its records were answered where the state leaves some out."""
        if batch.state is BatchState.CANCELLING and state is BatchState.FAILED:
            state = BatchState.CANCELLED
        batch.state = state
        if state is BatchState.COMPLETED:
            batch.billed = batch.rows
        elif state is BatchState.FAILED:
            quota, passing = failure == "quota", failure == "transient"
            processed = failure == "processed"
            batch.failure = BatchFailure(
                failure, failure, quota or processed, passing, nothing_processed=not processed
            )
            batch.billed = batch.rows[:part] if processed else ()
        else:
            batch.billed = batch.rows[: min(part, len(batch.rows))]
        for row in batch.billed:
            payers = [b.id for b in self.batches if row in b.billed]
            assert payers == [batch.id], f"record {row} was paid for in {payers}"

    def poll(self, *, denied: bool = False) -> None:
        """The poller sees the account's batches; some of them are denied now and then."""
        outcomes: list[Outcome] = []
        for batch in self.batches:
            if denied:
                outcomes.append(BatchMissing(batch.id))
            elif self.is_listed(batch):
                outcomes.append(BatchSeen(self.view(batch)))
        self.tell(*outcomes)

    # ------------------------------------------------------------ the object

    def change(self, **spec: Any) -> None:
        self.builder = self.builder.with_spec(**spec)
        self.reconcile()

    def delete(self) -> None:
        self.deleting_since = self.now
        if not self.finalizer:
            self._go()
        self.reconcile()

    def _go(self) -> None:
        """The object is gone: then its batches were cancelled, or over, or it took too long."""
        assert self.deleting_since is not None
        waited = (self.now - self.deleting_since).total_seconds()
        orphaned = self.builder.spec.get("deletionPolicy") == "Orphan"
        live = [b.id for b in self.batches if b.state is BatchState.IN_PROGRESS]
        excused = orphaned or waited >= TIMING.cancel_release_s or not self.held
        assert not live or excused, f"let go with {live} uncancelled"
        self.is_there, self.finalizer = False, False

    def create(self) -> None:
        self.lives += 1
        self.builder = job().stamped(uid=f"uid-{self.lives}")
        self.is_there, self.deleting_since = True, None
        self.finalizer = self.held = False
        self.reconcile()


def _fault(effect: Effect, how: str) -> TaskFault:
    kind = effect.kind if isinstance(effect, StartTask) else None
    if how == "permanent" and kind in {TaskKind.ADMIT, TaskKind.STAGE, TaskKind.UPLOAD}:
        return TaskFault(FaultKind.PERMANENT, "InputTooLarge", "it will never work")
    if how == "changing" and kind is TaskKind.STAGE:
        return TaskFault(FaultKind.RETRY, Reason.INPUT_CHANGING, "it changed")
    return TaskFault(FaultKind.RETRY, "ProviderUnavailable", "it broke")


def fresh_run(uid: str) -> Run:
    """A run that has just begun."""
    run = run_of(shards=0)
    return replace(run, owner=replace(run.owner, uid=uid))

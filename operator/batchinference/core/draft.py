"""What the steps of `decide` read and write: the observed world, and the decision being made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from batchinference.core.decisions import Question
from batchinference.core.effects import CancelBatch, DeleteInput, Effect, LookUp, StartTask
from batchinference.core.notes import Failure, Notes
from batchinference.core.problem import Problem
from batchinference.core.timing import Timing
from batchinference.model.batch import SubmissionID, Traits
from batchinference.model.job import BatchInferenceJob, JobSpec
from batchinference.model.price import Price
from batchinference.model.run import Run, RunPhase
from batchinference.model.work import FaultKind

RequestMaker = Callable[[Run, SubmissionID, str], Mapping[str, Any]]
_DEFAULT_TRAITS = Traits()
_CALLS = (LookUp, DeleteInput, CancelBatch)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything gathered before deciding.

    Attributes:
        job: the object that steers the run; None when there is none.
        spec: its spec, or the journal's last-seen one.
        is_deleted: the object is being deleted, or was seen to go.
        has_finalizer: ours, on the object.
        was_adopted: the run was found before what has just been heard of it.
        unfit: why the object's spec can't be acted on; None when it can.
        provider: why the provider can't be used for anything new; None when it can.
        fresh: the run as it would begin now, where its provider object leads elsewhere and the run
            has nothing yet where that led before.
        full: why the journal can take nothing new, "" while it can.
        granted: shards that the account gives a place.
        traits, make_request: of the run's provider; None while it can't be reached at all.
        resubmits_unknown: the provider object opts out of the halt (protocol 5.5).
        annotations: where people decide: the object's, and the journal's while something is asked.
        paused_provider: what to say of a provider object that somebody paused; "" otherwise.
        journal_namespace: where the journal is.
        price: what the run's model costs now; None where nobody says.
    """

    now: datetime
    timing: Timing
    spec: JobSpec
    job: BatchInferenceJob | None = None
    is_deleted: bool = False
    has_finalizer: bool = False
    was_adopted: bool = True
    unfit: Problem | None = None
    provider: Problem | None = None
    fresh: Run | None = None
    full: str = ""
    granted: frozenset[int] = frozenset()
    traits: Traits = _DEFAULT_TRAITS
    make_request: RequestMaker | None = None
    resubmits_unknown: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)
    paused_provider: str = ""
    journal_namespace: str = ""
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write, what to start after it is written, and when to look again.

    Attributes:
        problem: what is shown of what keeps the run from getting on.
        reasons: of all that does, shown or not.
        held: nothing of it may start: suspended, or without an object to answer for it.
        asking: the queued shards that would make use of a place now; no other is given one.
        paused: what to say of a pause that holds it; "" where there is none.
        asks_people: something waits for a decision by annotation.
    """

    run: Run
    notes: Notes
    effects: tuple[Effect, ...] = ()
    wake_at: datetime | None = None
    problem: Problem | None = None
    reasons: frozenset[str] = frozenset()
    held: bool = False
    asking: frozenset[int] = frozenset()
    paused: str = ""
    asks_people: bool = False


@dataclass(slots=True)
class Draft:
    """A decision in the making.

    Attributes:
        problems: what keeps the run from getting on; the first one is shown.
        asking: see `Decision`.
        held: suspended, or no object answers for the run.
        blocked: the finalizer is missing, or somebody must act: no place is asked for.
        paused: see `Decision`.
        questions: see `core.decisions`.
        unaffordable: the queued shards that the budget has nothing left for.
    """

    run: Run
    notes: Notes
    observed: Observed
    effects: list[Effect] = field(default_factory=list)
    wakes: list[datetime] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    asking: set[int] = field(default_factory=set)
    questions: list[Question] = field(default_factory=list)
    unaffordable: set[int] = field(default_factory=set)
    held: bool = False
    paused: str = ""
    blocked: bool = False

    @property
    def spec(self) -> JobSpec:
        """The job's spec."""
        return self.observed.spec

    @property
    def timing(self) -> Timing:
        """The protocol's waits."""
        return self.observed.timing

    def wake(self, at: datetime) -> None:
        """Look again then, at the latest."""
        self.wakes.append(at)

    def stall(self, reason: str, message: str, since: datetime | None = None) -> None:
        """A person must act, and until then nothing new is submitted."""
        self.blocked = True
        self.problems.append(Problem(reason, message, since or self.observed.now))

    def want(self, effect: Effect) -> bool:
        """Start the effect, unless it is under way or failed and has to wait."""
        if not self.may_start(effect) or effect.id in self.notes.inflight:
            return False
        self.effects.append(effect)
        return True

    def may_start(self, effect: Effect) -> bool:
        """Whether the effect is under way, or need not wait after a failure; if not, the draft says
        why and wakes then.
        """
        failure = self.notes.failures.get(effect.id)
        if failure is None:
            return True
        # Also while it is tried again, so that the condition does not flap.
        is_task = isinstance(effect, StartTask)
        persists = self._persists(failure) if is_task else self.is_unreachable(failure, effect)
        self.tell(failure, persists=persists)
        if effect.id in self.notes.inflight or self.observed.now >= failure.retry_at:
            return True
        self.wake(failure.retry_at)
        return False

    def provider_problem(self) -> bool:
        """Whether the provider can't be used for anything new; if so the draft says why."""
        problem = self.observed.provider
        if problem is None:
            return False
        self.problems.append(problem)
        self.wake(self.observed.now + timedelta(seconds=self.timing.reference_retry_s))
        return True

    def _persists(self, failure: Failure) -> bool:
        """Whether it should have passed by now. It may still; but a record that no attempt gets
        over never does, and nobody would ever hear of it.
        """
        return failure.fault.kind is FaultKind.RETRY and failure.count >= self.timing.told_after

    def is_unreachable(self, failure: Failure, effect: Effect | None = None) -> bool:
        """Whether a provider has been away for so long that a person should hear of it; if not yet,
        the draft wakes then. An outage of minutes is for the provider's own object to tell.
        """
        if effect is not None and not isinstance(effect, _CALLS):
            return False
        until = failure.since + timedelta(seconds=self.timing.unreachable_s)
        if self.observed.now < until:
            self.wake(until)
            return False
        return failure.fault.kind is FaultKind.RETRY

    def tell(self, failure: Failure, *, persists: bool = False) -> None:
        """Say what failed, if a person must act on it."""
        if persists or failure.fault.kind in {FaultKind.STALLED, FaultKind.PERMANENT}:
            pending = self.run.phase is RunPhase.ADMITTING
            fault = failure.fault
            self.problems.append(Problem(fault.reason, fault.message, failure.since, pending))

    def decision(self) -> Decision:
        """What was drafted."""
        grace = timedelta(seconds=self.timing.reference_grace_s)
        for problem in self.problems:
            if problem.has_grace and self.observed.now < problem.since + grace:
                self.wake(problem.since + grace)
        return Decision(
            run=self.run,
            notes=self.notes,
            effects=tuple(self.effects),
            wake_at=min(self.wakes, default=None),
            problem=self.problems[0] if self.problems else None,
            reasons=frozenset(problem.reason for problem in self.problems),
            held=self.held,
            asking=frozenset() if self.blocked else frozenset(self.asking),
            paused=self.paused,
            asks_people=bool(self.questions),
        )

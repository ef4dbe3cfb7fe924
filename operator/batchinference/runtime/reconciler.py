"""Snapshot, decide, write, start effects, show: one pass over one run.

Has gathered what `core.decide` needs, writes the journal with a precondition, and only then
starts the effects of the decision. A lost precondition means that somebody else wrote: read again,
fold the same outcomes into what stands there now, decide again.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from batchinference.clock import Clock, Randomness
from batchinference.core.backoff import backoff_s
from batchinference.core.begin import afresh, journaled_spec, starts_afresh
from batchinference.core.decide import decide, pause_of_job
from batchinference.core.draft import Decision
from batchinference.core.effects import Announce, LookUp, Search, SetFinalizer, StopTasks
from batchinference.core.folding import Folded, came_of, fold
from batchinference.core.notes import Notes
from batchinference.core.outcomes import BatchMissing, LookedUp, Outcome, TaskDone
from batchinference.core.problem import Problem
from batchinference.core.setting import Setting
from batchinference.core.view import is_final, shows_submission
from batchinference.errors import Fault, Superseded
from batchinference.model.job import BILLABLE, BatchInferenceJob
from batchinference.model.run import Run, RunPhase
from batchinference.model.work import TaskFault, TaskKind
from batchinference.ports import Metrics
from batchinference.runtime.accounts import Accounts
from batchinference.runtime.beginning import Beginning
from batchinference.runtime.effects import Effects
from batchinference.runtime.entry import Entry
from batchinference.runtime.journaling import Journaling
from batchinference.runtime.observing import Observing
from batchinference.runtime.queue import KeyedQueue
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.showing import Showing, log_unseen
from batchinference.runtime.store import Store, rests
from batchinference.runtime.strays import Strays

logger = logging.getLogger(__name__)

_LET_GO = SetFinalizer(present=False)
_HARMLESS = (LookUp, Search, Announce, StopTasks)
"""Effects that may be started from old knowledge: they ask, or stop our own workers, or say in an
Event what was seen, and nothing follows from that.
"""

_MOST_PASSES = 50
"""Decisions in a row before other keys get their turn."""


class Reconciler:
    """Brings runs forward."""

    def __init__(
        self,
        *,
        store: Store,
        entries: dict[str, Entry],
        journaling: Journaling,
        strays: Strays,
        accounts: Accounts,
        observing: Observing,
        beginning: Beginning,
        effects: Effects,
        showing: Showing,
        queue: KeyedQueue,
        clock: Clock,
        randomness: Randomness,
        settings: RuntimeSettings,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._entries = entries
        self._journaling = journaling
        self._strays = strays
        self._accounts = accounts
        self._observing = observing
        self._beginning = beginning
        self._effects = effects
        self._showing = showing
        self._queue = queue
        self._clock = clock
        self._randomness = randomness
        self._settings = settings
        self._metrics = metrics

    async def reconcile(self, key: str) -> None:
        """One pass; never raises. Passing failures bring the key back after a while."""
        entry = self._entries.setdefault(key, Entry(key))
        try:
            await self._pass(entry)
            entry.failures = 0
            self._forget(entry)
        except (Fault, Superseded) as fault:
            self._later(entry)
            logger.warning("Run %s: %s", key[:12], fault)
        except Exception:  # one broken run must not stop the others
            self._later(entry)
            self._metrics.count("reconcile_errors_total")
            logger.exception("Run %s can't be reconciled", key)

    def _later(self, entry: Entry) -> None:
        entry.failures += 1
        if entry.run is not None and entry.asking:
            # Whatever hinders it may do so for long: others may have its places meanwhile.
            entry.asking = frozenset()
            self._accounts.changed(entry.run.provider.account, entry.key)
        first, most = self._settings.retry_first_s, self._settings.retry_most_s
        jitter = self._randomness.random()
        self._queue.add_after(entry.key, backoff_s(entry.failures, first, most, jitter))

    def _forget(self, entry: Entry) -> None:
        """Keep nothing of a run that is over and whose objects, if any are left, say so: when
        something comes of it after all, its receipt is read again.
        """
        run, jobs = entry.run, self._store.jobs_of(entry.key)
        busy = entry.inflight or entry.mailbox or entry.in_doubt
        if busy or (run is not None and run.phase is not RunPhase.ENDED):
            return
        if all(map(rests, jobs)):
            self._entries.pop(entry.key, None)
            self._store.forget_run(entry.key, *([run.owner.uid] if run is not None else ()))

    async def _pass(self, entry: Entry) -> None:
        await self._let_others_go(entry.key)
        if entry.newer_schema:
            await self._journaling.find(entry)  # somebody may have put it right
            if entry.newer_schema:
                return
        for _ in range(_MOST_PASSES):
            job = self._store.steering(entry.key)
            if self._lacks_run(entry, job) and not await self._begin(entry, job):
                return
            in_doubt = entry.in_doubt or _is_behind(entry.run, job)
            if in_doubt or any(map(_may_be_behind, entry.mailbox)):
                await self._journaling.confirm(entry)
            decision = await self._decide_once(entry)
            settled = decision is not None and not entry.mailbox
            if settled and not self._lacks_run(entry, job):
                return
        self._queue.add(entry.key)

    async def _let_others_go(self, key: str) -> None:
        """Deleting one of several objects of a run cancels nothing, so nothing holds it back."""
        steering = self._store.steering(key)
        for job in self._store.jobs_of(key):
            if job is not steering and job.metadata.is_being_deleted:
                await self._strays.let_go(job)

    @staticmethod
    def _lacks_run(entry: Entry, job: BatchInferenceJob | None) -> bool:
        """Whether the object has no run yet, or only the remains of one that never submitted."""
        run = entry.run
        return run is None or (run.phase is RunPhase.ENDED and starts_afresh(run, job))

    # ---------------------------------------------------------------- before there is a run

    async def _begin(self, entry: Entry, job: BatchInferenceJob | None) -> bool:
        """Make the journal, or find it; whether there is a run now."""
        rest = entry.run is None and all(map(rests, self._store.jobs_of(entry.key)))
        if job is None or rest:
            # Nobody else may know of the journal of an object that has gone.
            return entry.in_doubt and await self._journaling.find(entry)
        if entry.run is None and await self._journaling.find(entry):
            return not self._lacks_run(entry, job) or await self._begin(entry, job)
        if entry.newer_schema:
            return False
        known_as = await self._journaling.known_as(entry, job)
        if known_as != entry.key:
            self._store.refile(entry.key, known_as)
            self._queue.add(known_as)
            return False
        leaving = job.metadata.is_being_deleted
        if leaving and (is_final(job.status) or not shows_submission(job.status)):
            await self._strays.let_go(job)
            return False
        problem = await self._observing.why_not_begin(job)
        entry.paused = pause_of_job(job)
        suspended = job.spec.suspend or bool(entry.paused)
        held = problem is None and suspended and not shows_submission(job.status)
        if problem is None and not held:
            try:
                await self._create(entry, job)
            except Fault as fault:
                problem = Problem(fault.reason, fault.message, self._clock.now())
                # It may stand although there was no answer: no end is shown that is over.
                had_run = entry.run is not None and await self._journaling.find(entry)
                if had_run and not self._lacks_run(entry, job):
                    return True
            else:
                return True
        entry.problem = _same_since(problem, entry.problem)
        await self._showing.show(entry, held=held)
        if leaving and entry.problem is not None:
            await self._strays.let_go_in_time(entry.key, job, entry.problem)
        if entry.problem is not None:
            wait = self._settings.reference_retry_s
            if entry.problem.has_grace:
                shown = (self._clock.now() - entry.problem.since).total_seconds()
                grace = self._settings.reference_grace_s - shown
                wait = min(wait, grace) if grace > 0 else wait
            self._queue.add_after(entry.key, wait)
        return False

    async def _create(self, entry: Entry, job: BatchInferenceJob) -> None:
        run = self._beginning.begun(job, entry.key)
        assert run is not None
        if entry.run is None:
            await self._beginning.confirm(job)
            await self._journaling.create(entry, run)
        elif not await self._journaling.write(entry, afresh(entry.run, run)):
            return
        entry.notes = Notes()
        entry.problem = None

    # ---------------------------------------------------------------- with a run

    async def _decide_once(self, entry: Entry) -> Decision | None:
        """One decision; None when another writer was first and it must be made again."""
        assert entry.run is not None
        observed = await self._observing.observe(entry, entry.run)
        decided_at = self._clock.elapsed()
        outcomes = entry.mailbox.take()
        before = entry.run
        entry.spec = observed.spec
        run, notes = entry.run, replace(entry.notes, inflight=frozenset(entry.inflight))
        if observed.job is not None and observed.job.metadata.uid:
            run = _with_spec(run, observed.job)
        setting = Setting(observed.now, observed.spec, self._settings, self._randomness.random())
        try:
            folded = fold(run, notes, outcomes, setting)
            decision = decide(folded.run, folded.notes, observed)
            is_ours = await self._is_ours(entry, decision)
        except Superseded:
            raise  # there is no run any more that they could be of
        except Exception:
            entry.mailbox.put_back(outcomes)
            raise
        if not is_ours:
            if entry.run.is_same_life(before):
                entry.mailbox.put_back(outcomes)
            return None
        self._tell_dropped(entry, folded)
        entry.notes = decision.notes
        for effect in decision.effects:
            if effect != _LET_GO:
                self._effects.start(entry, effect, decided_at)
        asks_anew = (decision.held, decision.asking) != (entry.held, entry.asking)
        entry.held, entry.asking = decision.held, decision.asking
        entry.paused, entry.asks_people = decision.paused, decision.asks_people
        if asks_anew or decision.run != before or any(map(_is_ended_upload, outcomes)):
            self._accounts.changed(decision.run.provider.account, entry.key)
        if observed.job is None:
            log_unseen(decision.run, decision.problem, entry.problem)
        entry.problem = _same_since(decision.problem, entry.problem)
        entry.reasons = decision.reasons
        if decision.wake_at is not None:
            wait = (decision.wake_at - self._clock.now()).total_seconds()
            self._queue.add_after(entry.key, max(wait, 0.001))
        if _same_object(observed.job, self._store.steering(entry.key)):
            await self._showing.show(entry, held=decision.held)
        if _LET_GO in decision.effects:
            # Only now: it changes the object, and would spoil the precondition of its status.
            self._effects.start(entry, _LET_GO, decided_at)
        return decision

    async def _is_ours(self, entry: Entry, decision: Decision) -> bool:
        """Whether the run is ours to go on with as decided; else it must be decided again, on what
        stands in the journal and with the same outcomes.
        """
        was_full = entry.full
        harmless = all(isinstance(effect, _HARMLESS) for effect in decision.effects)
        try:
            return await self._journaling.advance(entry, decision.run, confirmed=not harmless)
        except Fault:
            if entry.full and not was_full:
                return False  # what has happened fits; what was to follow does not
            raise

    def _tell_dropped(self, entry: Entry, folded: Folded) -> None:
        for one in folded.dropped:
            self._metrics.count("outcomes_dropped_total", kind=type(one.outcome).__name__)
            logger.error(
                "Run %s: what came of %s can't be folded in and is dropped",
                entry.key[:12],
                came_of(one.outcome),
                exc_info=one.error,
            )


def _is_behind(run: Run | None, job: BatchInferenceJob | None) -> bool:
    """Whether the object says of its run that it is over and we know nothing of that.

    Another operator, whose last moments these are, wrote the end: read it instead of denying it.
    """
    return run is not None and job is not None and not run.is_over and is_final(job.status)


def _may_be_behind(outcome: Outcome) -> bool:
    """A task that fails, an input or a batch that is not there: what was asked for may be of a
    journal that another operator has left behind.
    """
    if isinstance(outcome, TaskDone):
        return isinstance(outcome.result, TaskFault)
    if isinstance(outcome, LookedUp):
        return not outcome.readable
    return isinstance(outcome, BatchMissing)


def _is_ended_upload(outcome: Outcome) -> bool:
    return isinstance(outcome, TaskDone) and outcome.kind is TaskKind.UPLOAD


def _same_object(decided: BatchInferenceJob | None, now: BatchInferenceJob | None) -> bool:
    """Whether the decision was about the object that steers now; a newer one is decided anew."""
    return (decided and decided.metadata.uid) == (now and now.metadata.uid)


def _same_since(new: Problem | None, old: Problem | None) -> Problem | None:
    """A problem that goes on keeps the time since when it stands."""
    if new is not None and old is not None and new.reason == old.reason:
        return replace(new, since=min(new.since, old.since))
    return new


def _with_spec(run: Run, job: BatchInferenceJob) -> Run:
    """The journal's last-seen spec follows what may change; a receipt keeps what it has."""
    if run.is_over:
        return run
    seen = journaled_spec(job.spec)
    kept = {k: v for k, v in run.spec.items() if k in BILLABLE}
    merged = {**{k: v for k, v in seen.items() if k not in BILLABLE}, **kept}
    return run if merged == run.spec else replace(run, spec=merged)

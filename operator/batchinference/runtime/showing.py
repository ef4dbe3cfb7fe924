"""Shows a run on its objects: status and Events, only when something changed.

Numbers that change all the time are written at most every `progress_s`; everything else at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from batchinference.clock import Clock
from batchinference.core.begin import starts_afresh
from batchinference.core.notes import Notes
from batchinference.core.problem import Problem
from batchinference.core.view import (
    Scene,
    conditions_in,
    is_final,
    is_shown_elsewhere,
    status_of,
)
from batchinference.errors import Fault, Superseded
from batchinference.model.codec import encode
from batchinference.model.job import BatchInferenceJob
from batchinference.model.run import Run
from batchinference.model.status import Condition, ConditionType, JobStatus, Reason, State
from batchinference.ports import Event, Metrics, ObjectRef, Recorder
from batchinference.runtime.circuits import Circuits
from batchinference.runtime.entry import Entry
from batchinference.runtime.queue import KeyedQueue
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.status_writer import StatusWriter
from batchinference.runtime.store import Store, ref_of

logger = logging.getLogger(__name__)

_NUMBERS = frozenset({"progress", "requestCounts", "submissions", "usage", "cost"})
_SUPERSEDED_S = 0.5
_PASSING = {State.PENDING, State.STAGING, State.QUEUED, State.COLLECTING}
_PASSING_S = 1.0
"""A small job goes through these in less; nobody could read what it was."""


class Showing:
    """Writes what `core.view` says, and records what changed as Events."""

    def __init__(
        self,
        store: Store,
        writer: StatusWriter,
        recorder: Recorder,
        queue: KeyedQueue,
        clock: Clock,
        settings: RuntimeSettings,
        metrics: Metrics,
        installation: str,
        circuits: Circuits,
    ) -> None:
        self._metrics = metrics
        self._installation = installation
        self._others: set[str] = set()
        self._circuits = circuits
        self._store = store
        self._writer = writer
        self._recorder = recorder
        self._queue = queue
        self._clock = clock
        self._settings = settings

    async def show(self, entry: Entry, *, held: bool) -> None:
        """Bring the status of every object of the run up to date."""
        run = entry.run
        if run is not None and starts_afresh(run, self._store.steering(entry.key)):
            run = None  # what came of an earlier life is no news of this one
        steering = self._store.steering(entry.key)
        told = self._circuits.why_open(run.provider.account) if run and entry.queued else ""
        delay = (Reason.CIRCUIT_OPEN, told) if told else None
        for job in self._store.jobs_of(entry.key):
            if run is not None and not run.is_over and is_final(job.status):
                # Another operator wrote that end while we decided: it is read, and not denied.
                self._queue.add_after(entry.key, _SUPERSEDED_S)
                continue
            scene = Scene(
                job=job,
                run=run,
                notes=entry.notes,
                problem=entry.problem,
                held=held,
                now=self._clock.now(),
                timing=self._settings,
                installation=self._installation,
                steered_by=_name_of_other(steering, job),
                paused=entry.paused,
                delay=delay,
            )
            if not self._is_shown_elsewhere(scene):
                await self._write(entry, job, status_of(scene))

    def _is_shown_elsewhere(self, scene: Scene) -> bool:
        meta = scene.job.metadata
        found = is_shown_elsewhere(scene.job, scene.run, self._installation)
        if found and meta.uid not in self._others:
            self._others.add(meta.uid)
            logger.warning(
                "Job %s/%s is shown by installation %s, which holds its output place; this one "
                "(%s) leaves it alone. Let no two installations watch the same namespaces",
                meta.namespace,
                meta.name,
                scene.job.status.get("installation"),
                self._installation,
            )
        elif not found:
            self._others.discard(meta.uid)
        self._metrics.gauge("jobs_shown_elsewhere", len(self._others))
        return found

    async def _write(self, entry: Entry, job: BatchInferenceJob, status: JobStatus) -> None:
        new, old = encode(status), job.status
        left = self._left_to_pass(entry, status)
        if left > 0:
            self._queue.add_after(entry.key, left)
            return
        changed = _changed(new, old)
        if changed <= _NUMBERS and entry.written_at is not None:
            passed = (self._clock.now() - entry.written_at).total_seconds()
            if passed < self._settings.progress_s:
                if changed:
                    self._queue.add_after(entry.key, self._settings.progress_s - passed)
                return
        meta = job.metadata
        try:
            if await self._put(job, status):
                entry.written_at = self._clock.now()
        except Superseded:
            # The watch brings the newer object; look again in case it changes nothing for us.
            self._queue.add_after(entry.key, _SUPERSEDED_S)
        except Fault as fault:
            logger.warning("Status of %s/%s: %s", meta.namespace, meta.name, fault.message)
            self._queue.add_after(entry.key, self._settings.retry_first_s)

    def _left_to_pass(self, entry: Entry, status: JobStatus) -> float:
        """Seconds that a state which is often over in a moment is not shown yet."""
        if status.state not in _PASSING:
            entry.passing = None
            return 0.0
        now = self._clock.elapsed()
        if entry.passing is None or entry.passing[0] != status.state:
            entry.passing = (status.state, now)
        return entry.passing[1] + _PASSING_S - now

    async def show_stray(self, job: BatchInferenceJob, problem: Problem) -> None:
        """A job without a run that can be worked on says why; what it said of a run stands.

        Raises:
            Fault, Superseded: it was not written.
        """
        scene = Scene(
            job=job,
            run=None,
            notes=Notes(),
            problem=problem,
            held=False,
            now=self._clock.now(),
            timing=self._settings,
            installation=self._installation,
        )
        if not self._is_shown_elsewhere(scene):
            await self._put(job, status_of(scene))

    def _tell_shared(self, ref: ObjectRef, status: JobStatus, old: Mapping[str, Any]) -> None:
        """An Event for an object that has begun to mirror another one."""
        text = _said_shared(status.conditions)
        if text and not _said_shared(conditions_in(old).values()):
            self._recorder.record(Event(ref, Reason.SHARED_RUN, text))

    async def _put(self, job: BatchInferenceJob, status: JobStatus) -> bool:
        """Write the status and tell a change of state; whether anything was written.

        Raises:
            Fault, Superseded: it was not written.
        """
        meta, new, old = job.metadata, encode(status), job.status
        ref = ref_of(job)
        version = await self._writer.write(ref, new, old, meta.resource_version)
        if version is None:
            return False
        self._store.wrote_status(meta.uid, new, version)
        self._tell_shared(ref, status, old)
        if old.get("state") != status.state:
            event = _event(ref, status)
            self._recorder.record(event)
            logger.info(
                "Job %s/%s is %s: %s: %s",
                meta.namespace,
                meta.name,
                status.state,
                event.reason,
                event.message,
            )
        return True


def _said_shared(conditions: Iterable[Condition]) -> str:
    """What is said of the run that an object shares; "" where it shares none."""
    shared = (c.message for c in conditions if c.reason == Reason.SHARED_RUN)
    return next(shared, "")


def _name_of_other(steering: BatchInferenceJob | None, job: BatchInferenceJob) -> str:
    """The job that steers the run of this one, if it is another one."""
    if steering is None or steering.metadata.uid == job.metadata.uid:
        return ""
    return f"{steering.metadata.namespace}/{steering.metadata.name}"


def log_unseen(run: Run, problem: Problem | None, before: Problem | None) -> None:
    """What stalls a run without an object shows nowhere else."""
    if problem is None or (before is not None and before.message == problem.message):
        return
    logger.warning(
        "Run %s of %s/%s has no object any more and does not get on: %s: %s",
        run.key[:12],
        run.owner.namespace,
        run.owner.name,
        problem.reason,
        problem.message,
    )


def _changed(new: Mapping[str, Any], old: Mapping[str, Any]) -> set[str]:
    """Names of the members that differ."""
    return {name for name in {*new, *old} if new.get(name) != old.get(name)}


def _event(ref: ObjectRef, status: JobStatus) -> Event:
    """The change of state, in the words of the condition that says most about it."""
    told = {c.type: c for c in status.conditions if c.is_true}
    order = (
        ConditionType.FAILED,
        ConditionType.STALLED,
        ConditionType.COMPLETE,
        ConditionType.SUSPENDED,
        ConditionType.RECONCILING,
        ConditionType.SUBMITTED,
    )
    found = next((told[t] for t in order if t in told), None)
    warning = status.state in {State.FAILED, State.STALLED}
    submitted = [c.message for c in status.conditions if c.type == ConditionType.SUBMITTED]
    if submitted and status.state is State.QUEUED:
        return Event(ref, status.state.value, submitted[0])
    if found is None or status.state in {State.RUNNING, State.COLLECTING, State.CANCELLING}:
        text = status.progress or next(iter(submitted), status.state.value)
        return Event(ref, status.state.value, text, warning)
    return Event(ref, found.reason, found.message, warning)

"""Jobs that nothing can be decided about: which run they are of, or what its journal says, is not
to be read. They are shown, matched with a run as soon as that is possible, and let go.

A status names a run, and anybody who may write statuses may have written it: it is believed only
when the journal of that run says that this very object steers it (protocol 1.1). A journal of a
newer schema, or one that can't be read, is never written and nothing of it is done (protocol 2.4);
a newer operator may be at work, so its deleted objects are held as long as for any cancel.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta

from batchinference.clock import Clock
from batchinference.core.keys import is_run_key
from batchinference.core.problem import Problem
from batchinference.core.view import shows_submission
from batchinference.errors import Fault, NewerSchema, Superseded
from batchinference.model.job import BatchInferenceJob, parse_journaled_spec
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import Event, Journals, Kube, Recorder
from batchinference.runtime.entry import Entry
from batchinference.runtime.queue import KeyedQueue
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.showing import Showing
from batchinference.runtime.store import FINALIZER, STRAY, Store, Stray, ref_of

logger = logging.getLogger(__name__)

_NAMED_RUN_LOST = (
    "The status shows submissions of a run whose journal is gone, and the spec asks for another "
    "run now: nothing is submitted. Change the billable part of the spec back, restore the journal "
    "from a backup, or create the object anew with another `runID` and `output`"
)


class Strays:
    """Looks after objects without a run that can be worked on."""

    def __init__(
        self,
        *,
        store: Store,
        entries: Mapping[str, Entry],
        journals: Journals,
        kube: Kube,
        showing: Showing,
        recorder: Recorder,
        queue: KeyedQueue,
        clock: Clock,
        settings: RuntimeSettings,
    ) -> None:
        self._store = store
        self._entries = entries
        self._journals = journals
        self._kube = kube
        self._showing = showing
        self._recorder = recorder
        self._queue = queue
        self._clock = clock
        self._settings = settings

    # ---------------------------------------------------------------- whose is it

    async def look(self, uid: str) -> None:
        """Find out which run the object is of; else say why nothing happens. Never raises faults:
        passing ones bring the object back after a while.
        """
        stray = self._store.stray(uid)
        if stray is None:
            return
        try:
            await self._look(stray)
        except (Fault, Superseded) as fault:
            logger.warning("Object %s: %s", uid, fault)
            self._queue.add_after(STRAY + uid, self._settings.reference_retry_s)

    async def _look(self, stray: Stray) -> None:
        meta = stray.job.metadata
        if stray.is_foreign:
            await self.let_go(stray.job)
            return
        try:
            run = await self._run_of(stray)
        except NewerSchema as newer:
            await self._show_for_now(stray, self._unreadable(newer))
            return
        lost = run is None and not stray.flaw and shows_submission(stray.job.status)
        key = run.key if run is not None else next(iter(stray.keys), "")
        if lost:
            problem = Problem(Reason.JOURNAL_LOST, _NAMED_RUN_LOST, self._clock.now())
            await self._show_for_now(stray, problem)
        elif key:
            spec = parse_journaled_spec(run.spec) if run is not None else stray.job.spec
            for found in self._store.settle(meta.uid, key, spec):
                self._queue.add(found)
        elif meta.is_being_deleted:
            await self.let_go(stray.job)
        else:
            problem = Problem(Reason.INVALID_SPEC, stray.flaw, self._clock.now())
            await self._showing.show_stray(stray.job, problem)

    async def _show_for_now(self, stray: Stray, problem: Problem) -> None:
        """Show what somebody may put right, and look again."""
        await self._showing.show_stray(stray.job, problem)
        key = STRAY + stray.job.metadata.uid
        await self.let_go_in_time(key, stray.job, problem)
        self._queue.add_after(key, self._settings.retry_most_s)

    async def _run_of(self, stray: Stray) -> Run | None:
        """The run that has this object for its owner.

        Raises:
            NewerSchema: it may be the one that its status names; that can't be read.
        """
        meta = stray.job.metadata
        named = stray.job.status.get("runKey")
        if is_run_key(named):
            known = self._entries.get(named)
            if known is not None and _is_owner(known.run, stray.job):
                return known.run
            found = await self._journals.get(named)
            if found is not None and _is_owner(found[0], stray.job):
                return found[0]
            logger.warning(
                "The status of %s/%s names a run that is not its own: it is not believed",
                meta.namespace,
                meta.name,
            )
        # Whatever became of its status: a run that goes on knows whose it is.
        runs = (entry.run for entry in self._entries.values())
        return next((run for run in runs if _is_owner(run, stray.job)), None)

    # ---------------------------------------------------------------- what can't be read

    async def hold(self, entry: Entry, newer: NewerSchema) -> None:
        """The journal of the run can't be read: show that on its objects, and let them go in time
        when they are deleted.
        """
        entry.problem = self._unreadable(newer)
        await self._showing.show(entry, held=False)
        jobs = self._store.jobs_of(entry.key)
        for job in jobs:
            await self.let_go_in_time(entry.key, job, entry.problem)
        if jobs:  # somebody may put it right
            self._queue.add_after(entry.key, self._settings.retry_most_s)

    def _unreadable(self, newer: NewerSchema) -> Problem:
        text = f"{newer}. It is not touched, and nothing is done for its run"
        return Problem(newer.reason, text, self._clock.now())

    async def let_go_in_time(self, queue_key: str, job: BatchInferenceJob, why: Problem) -> None:
        """Hold a deleted object of which nothing can be cancelled as long as for any cancel."""
        asked_at = job.metadata.deletion_time
        if asked_at is None or FINALIZER not in job.metadata.finalizers:
            return
        until = asked_at + timedelta(seconds=self._settings.cancel_release_s)
        left = (until - self._clock.now()).total_seconds()
        if left > 0:
            self._queue.add_after(queue_key, left)
            return
        await self.let_go(job)
        text = f"Let the object go although its batches may go on: {why.message}"
        self._recorder.record(Event(ref_of(job), why.reason, text, warning=True))

    async def let_go(self, job: BatchInferenceJob) -> None:
        """Nothing of an object needs our finalizer (any more)."""
        if FINALIZER not in job.metadata.finalizers:
            return
        try:
            await self._kube.set_finalizer(ref_of(job), present=False)
        except Superseded:  # its name is another object's by now, so it went and nobody saw it
            for key in self._store.forget_gone(job.metadata.uid):
                self._queue.add(key)


def _is_owner(run: Run | None, job: BatchInferenceJob) -> bool:
    if run is None:
        return False
    owner, meta = run.owner, job.metadata
    return (owner.uid, owner.namespace, owner.name) == (meta.uid, meta.namespace, meta.name)

"""Deletes the objects of finished runs when their time has come (protocol 7.7).

The object alone: results, receipts and whatever else there is of the run stay. What a status says
of an end is held against the journal first, since whoever may write statuses may have written it.
"""

from __future__ import annotations

import logging

from batchinference.clock import Clock
from batchinference.core.expiry import expires_at, recreation_warning
from batchinference.errors import Fault, NewerSchema, Superseded
from batchinference.model.job import BatchInferenceJob
from batchinference.model.run import RunPhase
from batchinference.model.status import Reason
from batchinference.ports import Event, Journals, Kube, Metrics, Recorder
from batchinference.runtime.queue import KeyedQueue
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.store import Store, ref_of, rests

logger = logging.getLogger(__name__)


class Expiry:
    """Looks at the objects of one run after each pass over it."""

    def __init__(
        self,
        store: Store,
        journals: Journals,
        kube: Kube,
        recorder: Recorder,
        queue: KeyedQueue,
        clock: Clock,
        settings: RuntimeSettings,
        metrics: Metrics,
        installation: str,
    ) -> None:
        self._store = store
        self._journals = journals
        self._kube = kube
        self._recorder = recorder
        self._queue = queue
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._installation = installation
        self._warned: set[str] = set()

    async def look(self, key: str) -> None:
        """Delete what is due, and come back for what is not. Never raises faults."""
        for job in self._store.jobs_of(key):
            meta = job.metadata
            if job.spec.ttl_seconds_after_finished is None or meta.is_being_deleted:
                continue
            if job.status.get("installation") not in {None, "", self._installation}:
                continue  # whoever shows it has its receipt
            self._warn(job)
            due = expires_at(job) if rests(job) and not meta.is_paused else None
            if due is None:
                continue
            left = (due - self._clock.now()).total_seconds()
            if left > 0:
                self._queue.add_after(key, left)
                continue
            try:
                await self._delete(key, job)
            except Superseded:
                self._queue.add_after(key, self._settings.retry_first_s)
            except (Fault, NewerSchema) as fault:
                logger.warning("%s/%s is not deleted: %s", meta.namespace, meta.name, fault)
                self._queue.add_after(key, self._settings.retry_most_s)

    async def _delete(self, key: str, job: BatchInferenceJob) -> None:
        found = await self._journals.get(key)
        meta = job.metadata
        if found is None or found[0].phase is not RunPhase.ENDED:
            # The object may be all that is left to say that something was submitted.
            logger.warning(
                "%s/%s is not deleted: there is no receipt of its run", meta.namespace, meta.name
            )
            self._queue.add_after(key, self._settings.retry_most_s)
            return
        if await self._kube.delete_object(ref_of(job), meta.resource_version):
            self._metrics.count("expired_jobs_total")
            self._warned.discard(meta.uid)
            logger.info("%s/%s is deleted: its time is over", meta.namespace, meta.name)

    def _warn(self, job: BatchInferenceJob) -> None:
        """Once: the next object of that name is told anew."""
        uid, text = job.metadata.uid, recreation_warning(job)
        if text and uid not in self._warned:
            self._warned.add(uid)
            event = Event(ref_of(job), Reason.WILL_BE_RECREATED, text, warning=True)
            self._recorder.record(event)

"""Finds what the watch did not show (protocol 7.6): objects that went, and journals that another
process made.

A deletion is missed when the operator was down, or when a broken watch listed again. Suspects are
live runs without an object, and objects that the newest listing did not show; each is fetched by
name. It must not decide what a deletion means, only that there was one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, MutableMapping

from batchinference.clock import Clock
from batchinference.core.decisions import GONE, values
from batchinference.errors import Fault
from batchinference.model.job import KIND as JOB_KIND
from batchinference.model.metadata import GROUP
from batchinference.ports import Journals, Kube, Metrics, ObjectRef
from batchinference.runtime.entry import Entry
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.store import Store, ref_of

logger = logging.getLogger(__name__)

_DEFINITION = ObjectRef("CustomResourceDefinition", "", f"batchinferencejobs.{GROUP}")
_WINDOW_S = 600.0
_ALWAYS_ALLOWED = 3
_SHARE_ALLOWED = 0.1


class Sweeper:
    """Looks for missing objects every `sweep_s`.

    The brake: more missing objects at a time than max(3, 10 %) of the live runs look like a
    mistake (a wrong cluster, a restored backup), so none of them is believed until there are fewer,
    or somebody says of each, by an annotation on its journal, that it went on purpose.
    """

    def __init__(
        self,
        store: Store,
        entries: MutableMapping[str, Entry],
        journals: Journals,
        kube: Kube,
        look: Callable[[str], None],
        clock: Clock,
        settings: RuntimeSettings,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._entries = entries
        self._journals = journals
        self._kube = kube
        self._look = look
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._believed: deque[float] = deque()

    async def run(self) -> None:
        """Sweep for ever."""
        while True:
            await self._clock.sleep(self._settings.sweep_s)
            try:
                await self._find_journals()
                await self.sweep()
            except Fault as fault:
                logger.warning("What the watch did not show can't be looked for: %s", fault)

    async def _find_journals(self) -> None:
        """Another process may have begun runs of which no object is left to tell, or gone on with
        one that was over: while this one was stopped, or as it woke up itself.
        """
        async for key, version in self._journals.unended_versions():
            entry = self._entries.setdefault(key, Entry(key))
            if entry.version != version and not entry.newer_schema:
                entry.in_doubt = True
                self._look(key)

    async def sweep(self) -> None:
        """Look once.

        Raises:
            Stalled, Retry: the API server can't be asked now.
        """
        live = [e.run for e in self._entries.values() if e.run is not None and not e.run.is_over]
        expected = [r.owner for r in live if r.cancel is None and not self._store.jobs_of(r.key)]
        suspects = [ObjectRef(JOB_KIND, o.namespace, o.name, o.uid) for o in expected]
        suspects += [ref_of(job) for job in self._store.unlisted()]
        gone = [ref for ref in suspects if await self._is_gone(ref)]
        counted = [ref for ref in gone if not self._store.was_leaving(ref.uid)]
        stopped = self._brakes(len(counted), len(live))
        if stopped:
            counted = [ref for ref in counted if not await self._is_vouched_for(ref)]
            stopped = self._brakes(len(counted), len(live))
        self._metrics.gauge("sweeper_stopped", float(stopped))
        if stopped:
            names = ", ".join(f"{r.namespace}/{r.name} {r.uid}" for r in counted[:5])
            logger.error(
                "%d objects of %d live runs are missing (%s ...): too many to be believed at once. "
                "Their runs are followed and submit nothing new. If they were deleted on purpose, "
                "annotate each run's journal with %s=<uid of the object>",
                len(counted),
                len(live),
                names,
                GONE,
            )
            gone = [ref for ref in gone if ref not in counted]
        for ref in gone:
            logger.warning("%s/%s is gone: its run is ended", ref.namespace, ref.name)
            for key in self._store.forget_gone(ref.uid):
                self._look(key)
        for key, entry in self._entries.items():
            if entry.run is not None and any(ref.uid == entry.run.owner.uid for ref in gone):
                self._look(key)

    async def _is_gone(self, ref: ObjectRef) -> bool:
        """Whether the API server says so, with the kind and the namespace well and in place."""
        found = await self._kube.get(ref)
        if found is not None:
            for key in self._store.observe(JOB_KIND, "MODIFIED", found):
                self._look(key)
            return str(found.get("metadata", {}).get("uid", "")) != ref.uid
        for place in (_DEFINITION, ObjectRef("Namespace", "", ref.namespace)):
            held = await self._kube.get(place)
            if held is None or held.get("metadata", {}).get("deletionTimestamp"):
                return False
        return True

    async def _is_vouched_for(self, ref: ObjectRef) -> bool:
        """Whether somebody says that this very object went, and that its run is to end."""
        owned = (e for e in self._entries.values() if e.run and e.run.owner.uid == ref.uid)
        entry = next(owned, None)
        return entry is not None and ref.uid in values(
            await self._journals.annotations(entry.key), GONE
        )

    def _brakes(self, missing: int, live: int) -> bool:
        now = self._clock.elapsed()
        while self._believed and self._believed[0] < now - _WINDOW_S:
            self._believed.popleft()
        allowed = max(_ALWAYS_ALLOWED, int(live * _SHARE_ALLOWED))
        if missing + len(self._believed) > allowed:
            return missing > 0
        self._believed.extend([now] * missing)
        return False

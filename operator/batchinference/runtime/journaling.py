"""An entry and its journal, kept in step: read, written with its precondition, confirmed.

Two operators may be at work for a while, and a process that was stopped wakes up with old
knowledge: only one whose journal still stands goes on to the next step (protocol 2.4). It must not
know what the steps are.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchinference.clock import Clock
from batchinference.core.begin import keys_of
from batchinference.core.durability import must_stand
from batchinference.core.notes import Notes
from batchinference.errors import NewerSchema, Permanent, Superseded
from batchinference.model.job import BatchInferenceJob
from batchinference.model.run import Run
from batchinference.ports import Journals
from batchinference.runtime.accounts import Accounts
from batchinference.runtime.census import Census
from batchinference.runtime.entry import Entry
from batchinference.runtime.queue import KeyedQueue
from batchinference.runtime.strays import Strays

_AHEAD_S = 5.0
"""How long a run may be ahead of its journal: what a crash makes anew at most, besides tasks."""


class Journaling:
    """Reads and writes journals for entries.

    Every method raises `Stalled` or `Retry` when the API server can't be asked.
    """

    def __init__(
        self,
        journals: Journals,
        strays: Strays,
        accounts: Accounts,
        census: Census,
        queue: KeyedQueue,
        clock: Clock,
    ) -> None:
        self._journals = journals
        self._queue = queue
        self._clock = clock
        self._strays = strays
        self._accounts = accounts
        self._census = census

    async def find(self, entry: Entry) -> bool:
        """Read what stands there; False when there is nothing, or nothing that can be read."""
        try:
            found = await self._journals.get(entry.key)
        except NewerSchema as newer:
            self._forget(entry)
            entry.newer_schema = True
            await self._strays.hold(entry, newer)
            return False
        if found is None:
            self._forget(entry)
            return False
        entry.newer_schema = False
        _stands(entry, *found)
        # What stands there may ask for a place, or free one, without any decision of ours.
        self._accounts.changed(found[0].provider.account, entry.key)
        return True

    def _forget(self, entry: Entry) -> None:
        """There is no run to go on with; what came of its effects concerns nobody any more, and
        what it had of its account others may have.
        """
        before = entry.run
        entry.run = entry.stored = entry.write_by = None
        entry.newer_schema = entry.in_doubt = False
        entry.mailbox.clear()
        if before is not None:
            self._accounts.changed(before.provider.account, entry.key)

    async def known_as(self, entry: Entry, job: BatchInferenceJob) -> str:
        """The key of the run that the job is of: one that an earlier release gave it where there is
        a journal of that, whoever can read it.
        """
        newest, *older = keys_of(job)
        for key in older if entry.run is None and entry.key == newest else ():
            try:
                if await self._journals.get(key) is not None:
                    return key
            except NewerSchema:
                return key
        return entry.key

    async def create(self, entry: Entry, run: Run) -> None:
        """Make the journal of a run that has none.

        Raises:
            Superseded: there is one.
            Permanent: it would be too large.
        """
        entry.in_doubt = True
        _stands(entry, run, await self._journals.create(run))

    async def advance(self, entry: Entry, run: Run, *, confirmed: bool) -> bool:
        """Go on to that run; what need not stand in the journal yet is written a little later,
        with what comes after it. `confirmed`: as it may be that nothing is written now, make sure
        that the journal is still the one we know.

        Returns and raises as `write`.
        """
        assert entry.stored is not None
        if run != entry.stored and (must_stand(entry.stored, run) or self._is_late(entry)):
            return await self.write(entry, run)
        if confirmed and not await self.confirm(entry):
            return False
        entry.run = run
        if run == entry.stored:
            entry.write_by = None
            return True
        now = self._clock.elapsed()
        if entry.write_by is None:
            entry.write_by = now + _AHEAD_S
        self._queue.add_after(entry.key, entry.write_by - now)  # a pass takes the last one's place
        return True

    def _is_late(self, entry: Entry) -> bool:
        return entry.write_by is not None and self._clock.elapsed() >= entry.write_by

    async def write(self, entry: Entry, run: Run) -> bool:
        """Write the journal; False when another was first, and the entry has what stands there.

        Raises:
            Superseded: another was first, and nothing stands there that can be gone on with.
            Permanent: it would be too large; what was decided as if it could grow is to be
                decided again.
        """
        before = entry.run
        try:
            version = await self._put(entry, run)
        except Superseded:
            if await self.find(entry):
                return False
            raise
        if run.is_over and before is not None and not before.is_over:
            self._census.ended(run)
        _stands(entry, run, version)
        return True

    async def annotations(self, entry: Entry, job: BatchInferenceJob | None) -> Mapping[str, str]:
        """Where people decide: on the object, and on the journal while something is asked."""
        on_object = job.metadata.annotations if job is not None else {}
        if not entry.asks_people:
            return on_object
        return {**await self._journals.annotations(entry.key), **on_object}

    async def _put(self, entry: Entry, run: Run) -> str:
        """Write it; of a run that goes on to nothing new also beyond the limit."""
        try:
            version = await self._journals.write(run, entry.version)
        except Permanent as fault:
            was_known, entry.full = bool(entry.full), fault.message
            if not was_known:
                raise
            return await self._journals.write(run, entry.version, in_full=True)
        entry.full = ""
        return version

    async def confirm(self, entry: Entry) -> bool:
        """Whether the journal is still the one we know; as `write`, without a write."""
        if await self._journals.is_current(entry.key, entry.version):
            entry.in_doubt = False
            return True
        if await self.find(entry):
            return False
        raise Superseded(f"there is no journal of run {entry.key} to go on with")


def _stands(entry: Entry, run: Run, version: str) -> None:
    if entry.run is not None and not entry.run.is_same_life(run):
        # What came of the other life's effects is not true of this one, its claim above all.
        entry.mailbox.clear()
        entry.notes = Notes()
    entry.run = entry.stored = run
    entry.version, entry.write_by, entry.in_doubt = version, None, False

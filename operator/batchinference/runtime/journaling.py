"""An entry and its journal, kept in step: read, written with its precondition, confirmed.

Two operators may be at work for a while, and a process that was stopped wakes up with old
knowledge: only one whose journal still stands goes on to the next step (protocol 2.4). It must not
know what the steps are.
"""

from __future__ import annotations

from batchinference.errors import NewerSchema, Superseded
from batchinference.model.run import Run
from batchinference.ports import Journals
from batchinference.runtime.accounts import Accounts
from batchinference.runtime.census import Census
from batchinference.runtime.entry import Entry
from batchinference.runtime.strays import Strays


class Journaling:
    """Reads and writes journals for entries.

    Every method raises `Stalled` or `Retry` when the API server can't be asked.
    """

    def __init__(
        self, journals: Journals, strays: Strays, accounts: Accounts, census: Census
    ) -> None:
        self._journals = journals
        self._strays = strays
        self._accounts = accounts
        self._census = census

    async def find(self, entry: Entry) -> bool:
        """Read what stands there; False when there is nothing, or nothing that can be read."""
        try:
            found = await self._journals.get(entry.key)
        except NewerSchema as newer:
            _forget(entry)
            entry.newer_schema = True
            await self._strays.hold(entry, newer)
            return False
        if found is None:
            _forget(entry)
            return False
        entry.newer_schema = False
        entry.run, entry.version = found
        # What stands there may ask for a place, or free one, without any decision of ours.
        self._accounts.changed(entry.run.provider.account)
        return True

    async def create(self, entry: Entry, run: Run) -> None:
        """Make the journal of a run that has none.

        Raises:
            Superseded: there is one.
            Permanent: it would be too large.
        """
        entry.version = await self._journals.create(run)
        entry.run = run

    async def write(self, entry: Entry, run: Run) -> bool:
        """Write the journal; False when another was first, and the entry has what stands there.

        Raises:
            Superseded: another was first, and nothing stands there that can be gone on with.
            Permanent: it would be too large.
        """
        before = entry.run
        try:
            entry.version = await self._journals.write(run, entry.version)
        except Superseded:
            if await self.find(entry):
                return False
            raise
        if run.is_over and before is not None and not before.is_over:
            self._census.ended(run)
        entry.run = run
        return True

    async def confirm(self, entry: Entry) -> bool:
        """Whether the journal is still the one we know; as `write`, without a write."""
        if await self._journals.is_current(entry.key, entry.version):
            return True
        if await self.find(entry):
            return False
        raise Superseded(f"the journal of run {entry.key} is gone")


def _forget(entry: Entry) -> None:
    """There is no run to go on with; what came of its effects concerns nobody any more."""
    entry.run, entry.newer_schema = None, False
    entry.mailbox.clear()

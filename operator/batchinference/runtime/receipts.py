"""Deletes receipts when a retention is set and their time has come (protocol 2.5).

A receipt is what keeps a manifest that is applied again from being paid for again, so it stays
while there is an object that could be one of its run, and for ever where no retention is set.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from datetime import timedelta

from batchinference.clock import Clock
from batchinference.errors import Fault, Superseded
from batchinference.model.run import Ending, Run
from batchinference.ports import Journals
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.store import Store

logger = logging.getLogger(__name__)


class Receipts:
    """Looks through the receipts now and then."""

    def __init__(
        self,
        journals: Journals,
        store: Store,
        entries: Container[str],
        clock: Clock,
        settings: RuntimeSettings,
    ) -> None:
        self._journals = journals
        self._store = store
        self._entries = entries
        self._clock = clock
        self._settings = settings

    async def run(self) -> None:
        """Look now and then, for the process's life; only where a retention is set."""
        while True:
            await self._clock.sleep(self._settings.sweep_s)
            try:
                await self.look()
            except Fault as fault:
                logger.warning("Receipts can't be looked through: %s", fault)

    async def look(self) -> None:
        """Delete those that are due.

        Raises:
            Stalled, Retry: the API server can't be asked now.
        """
        until = self._clock.now() - timedelta(seconds=self._settings.receipts_kept_s)
        async for run, version in self._journals.ended():
            ended_at = run.completion_time or run.created_at
            if ended_at > until or run.key in self._entries or self._store.jobs_of(run.key):
                continue
            if _may_be_taken_up(run):
                continue
            try:
                await self._journals.delete(run.key, version)
            except Superseded:
                continue  # its object came back
            logger.info(
                "The receipt of run %s of %s/%s is deleted: it ended at %s",
                run.key[:12],
                run.owner.namespace,
                run.owner.name,
                ended_at.isoformat(),
            )


def _may_be_taken_up(run: Run) -> bool:
    """Whether its manifest says that the run may go on: without the receipt nothing would say that
    the time for that is over (protocol 7.4).
    """
    deleted = run.cancel is not None and run.cancel.is_by_deletion
    return deleted and run.verdict is not None and run.verdict.ending is Ending.CANCELLED

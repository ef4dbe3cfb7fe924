"""What an account holds of anybody's runs: which run tags its batches carry (protocol 2.6).

One index per client, since another server's word on a batch is not believed. It is built in the
background from one listing, as far back as a lost journal may reach, goes on where a page failed,
and is kept current by every listing that is made anyway. It holds tags and times only, so an
account full of foreign batches costs time, and no memory. Must not know what follows for a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batchinference.clock import Clock, Randomness
from batchinference.core.backoff import backoff_s
from batchinference.core.outcomes import Searched
from batchinference.errors import Fault, Retry, Stalled, Waiting
from batchinference.model.batch import BatchView
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.runtime.clients import Connected
from batchinference.runtime.following import MARGIN
from batchinference.runtime.listing import ListingCut, listing
from batchinference.runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)

REACH = timedelta(days=35)
"""How far back: providers keep answers for less."""

MOST_PAGES = 20_000
"""Pages of the listing: two million batches on OpenAI."""

MOST_TAGS = 200_000
"""Runs that an index tells apart; of one that has more it only says that there may be something."""

_TRIES = 5
"""Failures in a row at one place of the listing, after which it is begun anew."""


@dataclass(slots=True)
class Index:
    """The tags of one client's batches.

    Attributes:
        oldest: when the first known batch of each tag was made.
        looked: how many batches were looked at.
        named, unnamed: whether any of them said that it is of a run of somebody's, and whether any
            did not: foreign ones don't, nor do ours where the server drops what we attach.
        until: everything made before is in it; None while it is being built.
        complete: the listing came to its end, so absence says something.
        overflown: there were more tags than it holds.
        fault: why building it does not get on.
    """

    connected: Connected
    oldest: dict[str, datetime] = field(default_factory=dict)
    looked: int = 0
    named: bool = False
    unnamed: bool = False
    until: datetime | None = None
    complete: bool = False
    overflown: bool = False
    fault: Fault | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def add(self, views: Iterable[BatchView], now: datetime) -> None:
        """Take in what a listing showed."""
        for view in views:
            self.looked += 1
            if view.submission is None:
                self.unnamed = True
                continue
            self.named = True
            tag, at = view.submission.tag, view.created_at or now - REACH
            if tag in self.oldest:
                self.oldest[tag] = min(self.oldest[tag], at)
            elif len(self.oldest) < MOST_TAGS:
                self.oldest[tag] = at
            else:
                self.overflown = True

    def since(self, tag: str, now: datetime) -> datetime | None:
        """When the oldest batch of that tag was made, or may have been; None = there is none."""
        found = self.oldest.get(tag)
        return now - REACH if found is None and self.overflown else found

    @property
    def hides(self) -> bool:
        """Whether batches of ours may be among those that do not say whose they are."""
        traits = self.connected.client.traits
        if traits.keeps_names:
            return False
        return self.unnamed and not (self.named and traits.echoes_submission)


class Indexes:
    """The indexes of all clients.

    Args:
        ready: told the key of a client whose index can be asked from now on.
    """

    def __init__(
        self,
        ready: Callable[[str], None],
        clock: Clock,
        randomness: Randomness,
        settings: RuntimeSettings,
    ) -> None:
        self._ready = ready
        self._clock = clock
        self._randomness = randomness
        self._settings = settings
        self._indexes: dict[str, Index] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def prepare(self, connected: Connected) -> Index:
        """Have the client's index built, if it is not already."""
        found = self._indexes.get(connected.key)
        if found is None:
            found = self._indexes[connected.key] = Index(connected)
            self._tasks[connected.key] = asyncio.create_task(
                self._build(found), name=f"index {connected.key[:12]}"
            )
        return found

    def saw(self, connected: Connected, views: Iterable[BatchView]) -> None:
        """A listing or a create call showed these."""
        index = self._indexes.get(connected.key)
        if index is not None:
            index.add(views, self._clock.now())

    async def close(self) -> None:
        """End what is being built."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    # ---------------------------------------------------------------- building

    async def _build(self, index: Index) -> None:
        failures = 0
        while index.until is None:
            try:
                await self._list_all(index)
            except Exception as error:  # a run must not wait for ever for a defect
                known = isinstance(error, Fault)
                index.fault = error if isinstance(error, Fault) else None
                if not known:
                    logger.exception("The batches of %s can't be listed", _name(index))
                failures += 1
                await self._clock.sleep(self._wait(failures))
        self._ready(index.connected.key)

    async def _list_all(self, index: Index) -> None:
        """One listing from now to `REACH` ago, going on where a page failed."""
        begun = self._clock.now()
        client, since = index.connected.client, begun - REACH
        cursor: str | None = None
        failures, ended = 0, False
        for _ in range(MOST_PAGES):
            while True:
                try:
                    async with asyncio.timeout(self._settings.call_timeout_s):
                        page = await client.page(cursor, since)
                    break
                except (Fault, TimeoutError) as error:
                    failures += 1
                    index.fault = error if isinstance(error, Fault) else _silent(self._settings)
                    if failures % _TRIES == 0:
                        raise index.fault from error
                    await self._clock.sleep(self._wait(failures))
            failures, index.fault = 0, None
            index.add(page.batches, begun)
            cursor = page.cursor
            if cursor is None:
                ended = True
                break
        index.complete = ended and client.traits.lists_complete
        index.until = begun
        if not index.complete:
            logger.warning(
                "The batches of %s can't be listed to their end (%d were). A run whose journal is "
                "lost is found there only by its output claim or its object's status",
                _name(index),
                index.looked,
            )

    def _wait(self, failures: int) -> float:
        first, most = self._settings.retry_first_s, self._settings.retry_most_s
        return backoff_s(failures, first, most, self._randomness.random())

    # ---------------------------------------------------------------- asking

    async def search(self, run: Run, connected: Connected) -> Searched:
        """All that the provider has of the run, as far as it can tell.

        Raises:
            Waiting: the index is being built; it tells when it is ready.
            Stalled, Retry, TimeoutError: the provider can't be asked.
        """
        index = self.prepare(connected)
        if index.until is None:
            if isinstance(index.fault, Stalled):
                raise index.fault
            raise Waiting(Reason.LISTING_ACCOUNT, _being_built(index), self._settings.poll_s)
        async with index.lock:
            await self._refresh(index)
        now = self._clock.now()
        oldest = index.since(run.tag, now)
        expected = run.earlier is not None and run.earlier.expected
        if oldest is None and not expected:
            return Searched((), complete=index.complete)
        since = now - REACH
        if index.complete:
            since = min(t for t in (oldest, index.until) if t is not None) - MARGIN
        return await self._search(run, index, since)

    async def _refresh(self, index: Index) -> None:
        """Bring the index up to now, unless it nearly is."""
        assert index.until is not None
        now = self._clock.now()
        if not index.complete or now - index.until < timedelta(seconds=self._settings.poll_s):
            return
        client, timeout = index.connected.client, self._settings.call_timeout_s
        async for view in listing(client, index.until - MARGIN, timeout, MOST_PAGES):
            index.add((view,), now)
        index.until = now

    async def _search(self, run: Run, index: Index, since: datetime) -> Searched:
        client, timeout = index.connected.client, self._settings.call_timeout_s
        found: dict[str, BatchView] = {}
        complete = True
        try:
            async for view in listing(client, since, timeout, MOST_PAGES):
                index.add((view,), since)
                if _is_of(run, view):
                    found[view.id] = view
        except ListingCut as cut:
            logger.warning("Run %s: %s", run.key[:12], cut.message)
            complete = False
        for batch_id in run.earlier.shown if run.earlier else ():
            if batch_id in found:
                continue
            async with asyncio.timeout(timeout):
                shown = await client.get(batch_id)
            if shown is not None and _is_of(run, shown):
                found[batch_id] = shown
            else:
                complete = False
        complete = complete and client.traits.lists_complete and not index.hides
        return Searched(tuple(found.values()), complete)


def _is_of(run: Run, view: BatchView) -> bool:
    return view.submission is not None and view.submission.tag == run.tag


def _being_built(index: Index) -> str:
    text = (
        "The account's batches are being listed, in case that an earlier life of this run is among "
        f"them; {index.looked} so far"
    )
    return f"{text}. At the moment it fails: {index.fault.message}" if index.fault else text


def _silent(settings: RuntimeSettings) -> Retry:
    text = f"No answer within {settings.call_timeout_s:g} s"
    return Retry(Reason.PROVIDER_UNAVAILABLE, text)


def _name(index: Index) -> str:
    return index.connected.resolved.identity or "a provider"

"""What became of the batches of one account, asked in as few calls as possible.

By listing, down to the oldest batch that is looked for; a few live ones are asked one by one where
nothing else is looked for. A batch that a listing does not show is fetched by its id before
anything is believed. Must not know when to poll, nor who gets a place.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from batchinference.core.effects import ASKING, following
from batchinference.core.outcomes import BatchMissing, BatchSeen, Outcome, ProviderAsked
from batchinference.errors import Fault, Retry
from batchinference.model.batch import BatchView
from batchinference.model.run import RunPhase, Submission
from batchinference.model.status import Reason
from batchinference.model.work import TaskFault
from batchinference.runtime.clients import Clients, Connected
from batchinference.runtime.entry import Entry
from batchinference.runtime.listing import ListingCut, listing
from batchinference.runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)

MARGIN = timedelta(minutes=10)
"""How far a provider's clock may be off ours."""

_NEVER = datetime.max.replace(tzinfo=UTC)

Deliver = Callable[[str, Outcome], None]
"""Hand an outcome to a run and have it looked at."""

Listed = Callable[[Connected, BatchView], None]
"""A listing of that client showed that batch."""


def nobody(_connected: Connected, _view: BatchView) -> None:
    """Nobody else is told what a listing shows."""


@dataclass(slots=True)
class _Group:
    """What is looked for with one client.

    Attributes:
        runs: all whose provider this client asks. Another server's word on a batch that says to
            be of a run is not believed: what batches carry is no secret.
        live: runs by the id of the batch that they wait for.
        since: when the oldest of all that is looked for was claimed, by our own clock: what a
            provider says of a batch's age may be anything.
        missing: something that was given up is looked for, which only a listing can show.
    """

    connected: Connected
    runs: list[Entry] = field(default_factory=list)
    live: dict[str, Entry] = field(default_factory=dict)
    since: datetime = _NEVER
    missing: bool = False


class Following:
    """Asks providers and tells runs."""

    def __init__(
        self,
        clients: Clients,
        deliver: Deliver,
        settings: RuntimeSettings,
        listed: Listed = nobody,
    ) -> None:
        self._clients = clients
        self._deliver = deliver
        self._settings = settings
        self._listed = listed

    async def ask(self, entries: Iterable[Entry]) -> bool:
        """Ask once for all that these runs have at the provider, or may have; whether there was
        anybody to ask.

        Raises:
            Fault: of one of the clients; the others were asked all the same.
        """
        failed: Fault | None = None
        groups = await self._groups(entries)
        for group in groups.values():
            fault = await self._fault_of(group)
            failed = fault or failed
            for entry in group.runs:
                self._tell(entry, fault)
        if failed is not None:
            raise failed
        return bool(groups)

    async def touch(self, entries: Iterable[Entry]) -> bool:
        """Make one harmless call with the client of any of these runs; False when none has one.

        Raises:
            Fault: what came of it.
        """
        for entry in entries:
            if entry.run is None:
                continue
            try:
                connected = await self._clients.of_run(entry.run.provider)
            except Fault:
                continue
            try:
                async with asyncio.timeout(self._settings.call_timeout_s):
                    await connected.client.check()
            except TimeoutError:
                text = f"No answer within {self._settings.call_timeout_s:g} s"
                raise Retry(Reason.PROVIDER_UNAVAILABLE, text) from None
            return True
        return False

    async def _fault_of(self, group: _Group) -> Fault | None:
        """Ask with one client; why that failed. The others may have credentials that work."""
        try:
            await self._ask(group)
        except TimeoutError:
            text = f"No answer within {self._settings.call_timeout_s:g} s"
            return Retry(Reason.PROVIDER_UNAVAILABLE, text)
        except Fault as fault:
            self._heard(group, fault.reason)
            return fault
        except Exception:  # following must outlive whatever a provider answers
            logger.exception("What a provider answered can't be read")
            text = "The provider's answer can't be read; the operator's log has the details"
            return Retry(Reason.INTERNAL_ERROR, text)
        return None

    def _tell(self, entry: Entry, fault: Fault | None) -> None:
        """Have a run know whether its batches can be followed, when that is news."""
        known = entry.notes.failures.get(ASKING)
        if fault is None:
            if known is not None:
                self._deliver(entry.key, ProviderAsked(None))
            return
        told = TaskFault.of(fault)
        is_news = known is None or (known.fault.kind, known.fault.reason) != (
            told.kind,
            told.reason,
        )
        if is_news and live_batches(entry):
            self._deliver(entry.key, ProviderAsked(told))

    async def _groups(self, entries: Iterable[Entry]) -> dict[str, _Group]:
        groups: dict[str, _Group] = {}
        for entry in entries:
            live, missing = live_batches(entry), missing_batches(entry)
            if entry.run is None:
                continue
            try:
                connected = await self._clients.of_run(entry.run.provider)
            except Fault as fault:
                if live or missing:
                    logger.warning("Run %s can't be followed: %s", entry.key, fault.message)
                self._tell(entry, fault)
                continue
            group = groups.setdefault(connected.key, _Group(connected))
            group.runs.append(entry)
            group.live |= {made.batch_id: entry for made in live}
            group.missing |= bool(missing)
            group.since = min([group.since, *(made.claimed_at for made in (*live, *missing))])
        return {key: group for key, group in groups.items() if group.live or group.missing}

    def _heard(self, group: _Group, reason: str) -> None:
        for pin in [entry.run.provider for entry in group.runs[:1] if entry.run]:
            self._clients.heard(reason, pin.secrets_namespace, pin.settings)

    async def _ask(self, group: _Group) -> None:
        client = group.connected.client
        seen: set[str] = set()
        if len(group.live) > self._settings.poll_gets or group.missing:
            seen = await self._list(group)
        for batch_id, entry in group.live.items():
            if batch_id in seen:
                continue
            async with asyncio.timeout(self._settings.call_timeout_s):
                found = await client.get(batch_id)
            if found is None:
                self._deliver(entry.key, BatchMissing(batch_id))
            else:
                self._saw(entry, found, is_live=True)

    async def _list(self, group: _Group) -> set[str]:
        """Tell what a listing shows; returns the ids of live batches that were on it."""
        client, timeout = group.connected.client, self._settings.call_timeout_s
        names = _Names(group.runs)
        seen: dict[str, BatchView] = {}
        appeared: dict[str, tuple[BatchView, Entry]] = {}
        try:
            async for view in listing(client, group.since - MARGIN, timeout):
                # A batch may come twice: it moved to another page meanwhile, or pages overlap.
                self._listed(group.connected, view)
                if view.id in group.live:
                    seen[view.id] = view
                elif (named := names.owner(view)) is not None:
                    appeared[view.id] = (view, named)
        except ListingCut as cut:
            logger.warning("%s; batches that were not seen are asked one by one", cut.message)
        finally:
            for view in seen.values():
                self._saw(group.live[view.id], view, is_live=True)
            # Of two that say that they are the same submission, the older one comes first.
            for view, entry in sorted(appeared.values(), key=lambda found: age(found[0])):
                self._saw(entry, view, is_live=False)
        return set(seen)

    def _saw(self, entry: Entry, view: BatchView, *, is_live: bool) -> None:
        """Tell the run, if it does not know that already.

        An end is told again as long as the journal has the batch as live: what was seen of it may
        have come before the journal knew the batch. So is what was denied the last time.
        """
        is_news = (is_live and view.state.is_over) or following(view.id) in entry.notes.failures
        if is_news or entry.notes.views.get(view.id) != view:
            self._deliver(entry.key, BatchSeen(view))


class _Names:
    """Whose a batch is, of all runs: by their tags, and by inputs where a server echoes no tag."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._tags: dict[str, Entry] = {}
        self._inputs: dict[str, Entry] = {}
        for entry in entries:
            if entry.run is None:
                continue
            self._tags[entry.run.tag] = entry
            for shard in entry.run.shards:
                open_ones = shard.submissions[-1:] if shard.state.is_open else ()
                for made in (*shard.missing, *open_ones):
                    self._inputs[made.input_ref] = entry

    def owner(self, view: BatchView) -> Entry | None:
        """The run of a batch."""
        if view.submission is not None:
            return self._tags.get(view.submission.tag)
        return self._inputs.get(view.input_ref) if view.input_ref else None


def age(view: BatchView) -> tuple[datetime, str]:
    """Sorts batches from old to new, the same way each time."""
    return view.created_at or _NEVER, view.id


def live_batches(entry: Entry) -> list[Submission]:
    """What the provider works on for a run, as far as is known."""
    return [live for shard in entry.run.shards for live in shard.live] if entry.run else []


def missing_batches(entry: Entry) -> list[Submission]:
    """Given-up ordinals of a run that goes on: later listings go on matching (protocol 5.4)."""
    run = entry.run
    if run is None or run.phase is not RunPhase.RUNNING:
        return []
    return [gone for shard in run.shards for gone in shard.missing]

"""One actor per account: who gets a place, and what became of the batches.

Polling is list-based: pages newest first down to the oldest live batch, so that calls grow with
pages and not with jobs; a batch that a listing does not show is fetched by id before anything is
believed. Places are given by `core.admission` from everybody's demand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batchinference.clock import Clock, Randomness
from batchinference.core.admission import Demand, admit
from batchinference.core.backoff import backoff_s
from batchinference.core.effects import StartTask
from batchinference.core.keys import next_ordinal
from batchinference.core.outcomes import BatchMissing, BatchSeen, Outcome
from batchinference.errors import Fault, Retry
from batchinference.model.batch import BatchView
from batchinference.model.run import (
    Run,
    RunPhase,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from batchinference.model.status import Reason
from batchinference.model.work import TaskKind
from batchinference.ports import Metrics
from batchinference.runtime.clients import Clients, Connected
from batchinference.runtime.entry import Entry
from batchinference.runtime.listing import ListingCut, listing
from batchinference.runtime.providers import Numbers
from batchinference.runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)

_MARGIN = timedelta(minutes=10)
"""How far a provider's clock may be off ours."""

Deliver = Callable[[str, Outcome], None]
"""Hand an outcome to a run and have it looked at."""


@dataclass(frozen=True, slots=True)
class _Live:
    """A batch that is followed."""

    entry: Entry
    submission: Submission


@dataclass(slots=True)
class _Demands:
    """What the runs of an account want and have.

    Attributes:
        placed: shards that the provider has, or may have.
        asking: queued shards that would use a place now.
        uploading: queued shards whose input is on its way, with a place or not any more.
        uploaded: names of queued shards whose input is at the provider already.
        waiting: how many shards are queued and not held back by their job.
    """

    placed: list[Demand] = field(default_factory=list)
    asking: list[Demand] = field(default_factory=list)
    uploading: list[Demand] = field(default_factory=list)
    uploaded: set[tuple[str, int]] = field(default_factory=set)
    waiting: int = 0

    def add_queued(self, entry: Entry, run: Run, shard: Shard) -> None:
        """Count a queued shard in."""
        demand, ordinal = _demand(entry, run, shard), next_ordinal(run, shard)
        self.waiting += not entry.held
        if shard.index in entry.asking and not entry.newer_schema:
            self.asking.append(demand)
        if StartTask(TaskKind.UPLOAD, shard.index, ordinal).id in entry.inflight:
            self.uploading.append(demand)
        elif (shard.index, ordinal) in entry.notes.uploads:
            self.uploaded.add(demand.name)


@dataclass(slots=True)
class Account:
    """One account's actor.

    Attributes:
        granted: shards with a place whose claim is not written yet, as (run key, shard).
        served: when each namespace was given its newest place.
        failures: polls in a row that failed.
    """

    id: str
    granted: set[tuple[str, int]] = field(default_factory=set)
    served: dict[str, datetime] = field(default_factory=dict)
    failures: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    due: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Accounts:
    """All accounts. Reads the entries, tells runs what it found, and gives places."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        clients: Clients,
        deliver: Deliver,
        look: Callable[[str], None],
        clock: Clock,
        randomness: Randomness,
        settings: RuntimeSettings,
        metrics: Metrics,
    ) -> None:
        self._entries = entries
        self._clients = clients
        self._deliver = deliver
        self._look = look
        self._clock = clock
        self._randomness = randomness
        self._settings = settings
        self._metrics = metrics
        self._accounts: dict[str, Account] = {}

    def granted(self, account: str, run_key: str) -> frozenset[int]:
        """The shards of a run that may go now."""
        found = self._accounts.get(account)
        places = found.granted if found else ()
        return frozenset(shard for key, shard in places if key == run_key)

    def changed(self, account: str) -> None:
        """A run of the account has other shards in flight, or asking, than before."""
        found = self._accounts.get(account)
        if found is None:
            found = self._accounts[account] = Account(account)
            found.tasks = [
                asyncio.create_task(self._give_places(found), name=f"places {account}"),
                asyncio.create_task(self._poll(found), name=f"poll {account}"),
            ]
        found.changed.set()

    def poll_now(self, account: str) -> None:
        """Do not wait for the next poll."""
        found = self._accounts.get(account)
        if found is not None:
            found.due.set()

    def alive(self) -> bool:
        """Whether every actor still runs."""
        return not any(task.done() for a in self._accounts.values() for task in a.tasks)

    async def close(self) -> None:
        """End all actors."""
        tasks = [t for a in self._accounts.values() for t in a.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------- places

    async def _give_places(self, account: Account) -> None:
        while True:
            self._place(account)
            await account.changed.wait()
            account.changed.clear()

    def _place(self, account: Account) -> None:
        """Give what places there are. A shard that does not use its place any more loses it."""
        demands = self._demands(account.id)
        account.granted &= {d.name for d in demands.asking}
        granted = [d for d in demands.asking if d.name in account.granted]
        fresh = [d for d in demands.asking if d.name not in account.granted]
        unsent = [d for d in granted if d.name not in demands.uploaded]
        uploading = {d.name: d for d in (*unsent, *demands.uploading)}
        placed = [*demands.placed, *granted]
        for demand in admit(fresh, placed, uploading.values(), account.served):
            account.served[demand.namespace] = self._clock.now()
            account.granted.add(demand.name)
            self._look(demand.run_key)

    def _demands(self, account: str) -> _Demands:
        found = _Demands()
        for entry in self._of(account):
            if entry.run is None or entry.run.phase is not RunPhase.RUNNING:
                continue
            for shard in entry.run.shards:
                if shard.state is ShardState.QUEUED and entry.run.cancel is None:
                    found.add_queued(entry, entry.run, shard)
                elif shard.state.is_live:
                    found.placed.append(_demand(entry, entry.run, shard))
        return found

    def numbers(self, account: str) -> Numbers:
        """What the account has under way."""
        if account not in self._accounts:
            return Numbers()
        demands = self._demands(account)
        tokens = sum(d.tokens for d in demands.placed)
        return Numbers(len(demands.placed), demands.waiting, tokens)

    def _of(self, account: str) -> Iterable[Entry]:
        return [e for e in self._entries.values() if e.run and e.run.provider.account == account]

    # ---------------------------------------------------------------- following

    async def _poll(self, account: Account) -> None:
        while True:
            live = self._live(account)
            wait = self._settings.poll_s
            self._metrics.gauge("live_batches", len(live), account=account.id)
            if live:
                try:
                    await self._poll_once(live)
                    account.failures = 0
                    polled_at = self._clock.now().timestamp()
                    self._metrics.gauge(
                        "account_polled_timestamp_seconds", polled_at, account=account.id
                    )
                except Fault as fault:
                    wait = self._after_failure(account, wait)
                    logger.warning(
                        "Account %s can't be asked: %s: %s", account.id, fault.reason, fault.message
                    )
                except Exception:  # following must outlive whatever a provider answers
                    wait = self._after_failure(account, wait)
                    logger.exception("Account %s can't be asked", account.id)
            account.due.clear()
            try:
                async with asyncio.timeout(wait):
                    await account.due.wait()
            except TimeoutError:
                continue

    def _after_failure(self, account: Account, wait: float) -> float:
        """Seconds until the next poll."""
        account.failures += 1
        most = self._settings.retry_most_s
        return max(wait, backoff_s(account.failures, wait, most, self._randomness.random()))

    def _live(self, account: Account) -> list[_Live]:
        found = []
        for entry in self._of(account.id):
            assert entry.run is not None
            for shard in entry.run.shards:
                last = shard.last
                if shard.state is ShardState.SUBMITTED and last is not None:
                    found.append(_Live(entry, last))
        return found

    async def _poll_once(self, live: list[_Live]) -> None:
        groups: dict[str, tuple[Connected, list[_Live]]] = {}
        for one in live:
            assert one.entry.run is not None
            try:
                connected = await self._clients.of_run(one.entry.run.provider)
            except Fault as fault:
                logger.warning("Run %s can't be followed: %s", one.entry.key, fault.message)
                continue
            groups.setdefault(connected.key, (connected, []))[1].append(one)
        failed: Fault | None = None
        for connected, group in groups.values():
            try:
                await self._poll_group(connected, group)
            except TimeoutError:
                text = f"No answer within {self._settings.call_timeout_s:g} s"
                failed = Retry(Reason.PROVIDER_UNAVAILABLE, text)
            except Fault as fault:
                # The others of the account may have credentials that work.
                failed = fault
                pin = group[0].entry.run.provider if group[0].entry.run else None
                if fault.reason == Reason.CREDENTIALS_REJECTED and pin is not None:
                    self._clients.reject(pin.secrets_namespace, pin.settings)
        if failed is not None:
            raise failed

    async def _poll_group(self, connected: Connected, group: list[_Live]) -> None:
        wanted = {one.submission.batch_id: one.entry for one in group}
        seen: set[str] = set()
        if len(group) > self._settings.poll_gets or any(_has_fenced(o.entry) for o in group):
            # Our own clock: what a provider says of a batch's age may be anything.
            oldest = min(o.submission.claimed_at for o in group)
            timeout = self._settings.call_timeout_s
            try:
                async for view in listing(connected.client, oldest - _MARGIN, timeout):
                    entry = wanted.get(view.id) or self._named(view)
                    if entry is not None:
                        self._saw(entry, view, is_live=view.id in wanted)
                        seen.add(view.id)
            except ListingCut as cut:
                logger.warning("Account %s: %s", group[0].entry.key[:12], cut.message)
        for batch_id, entry in wanted.items():
            if batch_id in seen:
                continue
            async with asyncio.timeout(self._settings.call_timeout_s):
                found = await connected.client.get(batch_id)
            if found is None:
                self._deliver(entry.key, BatchMissing(batch_id))
            else:
                self._saw(entry, found, is_live=True)

    def _named(self, view: BatchView) -> Entry | None:
        """The run of a batch that carries one of our tags."""
        if view.submission is None:
            return None
        tag = view.submission.tag
        return next((e for e in self._entries.values() if e.run and e.run.tag == tag), None)

    def _saw(self, entry: Entry, view: BatchView, *, is_live: bool) -> None:
        """Tell the run, if it does not know that already.

        An end is told again as long as the journal has the batch as live: what was seen of it may
        have come before the journal knew the batch.
        """
        is_news = is_live and view.state.is_over
        if is_news or entry.notes.views.get(view.id) != view:
            self._deliver(entry.key, BatchSeen(view))


def _demand(entry: Entry, run: Run, shard: Shard) -> Demand:
    return Demand(
        run_key=run.key,
        shard=shard.index,
        namespace=run.owner.namespace,
        model=str(run.spec.get("model", "")),
        tokens=shard.tokens,
        priority=entry.spec.priority if entry.spec else 0,
        since=run.created_at,
        limits=run.limits,
    )


def _has_fenced(entry: Entry) -> bool:
    """Whether later listings must go on matching given-up ordinals (protocol 5.4)."""
    assert entry.run is not None
    return any(
        s.state is SubmissionState.FENCED for shard in entry.run.shards for s in shard.submissions
    )

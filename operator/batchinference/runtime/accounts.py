"""One actor per account: who gets a place, and when it is asked what became of the batches.

How it is asked is in `runtime.following`. Places are given by `core.admission` from everybody's
demand.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from batchinference.clock import Clock, Randomness
from batchinference.core.admission import Demand, admit
from batchinference.core.backoff import backoff_s
from batchinference.core.effects import StartTask
from batchinference.core.keys import next_ordinal
from batchinference.errors import Fault
from batchinference.model.run import (
    Run,
    RunPhase,
    Shard,
    ShardState,
)
from batchinference.model.status import Reason
from batchinference.model.work import TaskKind
from batchinference.ports import Metrics
from batchinference.runtime.circuits import Circuits
from batchinference.runtime.clients import Clients
from batchinference.runtime.entry import Entry
from batchinference.runtime.following import (
    Deliver,
    Following,
    Listed,
    live_batches,
    missing_batches,
    nobody,
)
from batchinference.runtime.providers import Numbers
from batchinference.runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Demands:
    """What the runs of an account want and have.

    Attributes:
        placed: shards that the provider has, or may have.
        asking: queued shards that would use a place now.
        uploading: queued shards whose input is on its way, with a place or not any more.
        uploaded: names of queued shards whose input is at the provider already.
    """

    placed: list[Demand] = field(default_factory=list)
    asking: list[Demand] = field(default_factory=list)
    uploading: list[Demand] = field(default_factory=list)
    uploaded: set[tuple[str, int]] = field(default_factory=set)

    def add_queued(self, entry: Entry, run: Run, shard: Shard) -> None:
        """Count a queued shard in."""
        asks = shard.index in entry.asking and not entry.newer_schema
        if not asks and not entry.inflight:
            return
        demand = _demand(entry, run, shard)
        if asks:
            self.asking.append(demand)
        if not entry.inflight and not entry.notes.uploads:
            return
        ordinal = next_ordinal(run, shard)
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
        circuits: Circuits,
        listed: Listed = nobody,
    ) -> None:
        self._entries = entries
        self._following = Following(clients, deliver, settings, listed)
        self._look = look
        self._clock = clock
        self._randomness = randomness
        self._settings = settings
        self._metrics = metrics
        self._circuits = circuits
        self._accounts: dict[str, Account] = {}
        circuits.on_change(self._circuit_changed)

    def granted(self, account: str, run_key: str) -> frozenset[int]:
        """The shards of a run that may go now: none while the provider fails, so that nothing is
        claimed that could not be sent.
        """
        if self._circuits.of(account).is_open:
            return frozenset()
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

    def _circuit_changed(self, account: str) -> None:
        """Have those looked at that wait, and end the waits that were for the provider alone."""
        is_open = self._circuits.of(account).is_open
        for entry in self._of(account):
            if not is_open:
                entry.notes = entry.notes.retry_now(Reason.CIRCUIT_OPEN)
            if entry.queued or entry.notes.failures:
                self._look(entry.key)
        self.changed(account)
        self.poll_now(account)

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
        granted = [d for d in demands.asking if d.name in account.granted]
        fresh = [d for d in demands.asking if d.name not in account.granted]
        account.granted = {d.name for d in granted}
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
        queued = sum(entry.queued for entry in self._of(account))
        return Numbers(len(demands.placed), queued, tokens)

    def _of(self, account: str) -> Iterable[Entry]:
        return [e for e in self._entries.values() if e.run and e.run.provider.account == account]

    # ---------------------------------------------------------------- following

    async def _poll(self, account: Account) -> None:
        while True:
            entries = list(self._of(account.id))
            live = sum(len(live_batches(entry)) for entry in entries)
            wait = self._settings.poll_s
            self._metrics.gauge("live_batches", live, account=account.id)
            is_open = self._circuits.of(account.id).is_open
            asks = live > 0 or any(missing_batches(entry) for entry in entries)
            # While the provider fails this is the one call that tries whether it is there again.
            if (asks or (is_open and entries)) and self._circuits.begin_probe(account.id):
                try:
                    wait = await self._ask(account, entries, wait, touch=not asks)
                finally:
                    self._circuits.end_probe(account.id)
            if self._circuits.of(account.id).is_open:
                wait = min(wait, self._circuits.wait_s(account.id))
            account.due.clear()
            try:
                async with asyncio.timeout(wait):
                    await account.due.wait()
            except TimeoutError:
                continue

    async def _ask(
        self, account: Account, entries: list[Entry], wait: float, *, touch: bool
    ) -> float:
        """Ask what became of the batches, or only whether anybody answers. Returns the seconds
        until the next poll.
        """
        try:
            ask = self._following.touch if touch else self._following.ask
            if not await ask(entries):
                return wait
        except Fault as fault:
            self._circuits.heard(account.id, fault)
            logger.warning(
                "Account %s can't be asked: %s: %s", account.id, fault.reason, fault.message
            )
            return max(self._after_failure(account, wait), fault.after_s or 0.0)
        except Exception:  # following must outlive whatever a provider answers
            logger.exception("Account %s can't be asked", account.id)
            return self._after_failure(account, wait)
        account.failures = 0
        self._circuits.answered(account.id)
        if not touch:
            self._metrics.count("account_polls_total", outcome="ok")
            polled_at = self._clock.now().timestamp()
            self._metrics.gauge("account_polled_timestamp_seconds", polled_at, account=account.id)
        return wait

    def _after_failure(self, account: Account, wait: float) -> float:
        """Seconds until the next poll."""
        account.failures += 1
        self._metrics.count("account_polls_total", outcome="failed")
        most = self._settings.retry_most_s
        return max(wait, backoff_s(account.failures, wait, most, self._randomness.random()))


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

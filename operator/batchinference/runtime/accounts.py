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
from batchinference.core.admission import admit
from batchinference.core.backoff import backoff_s
from batchinference.core.learning import Learned, refused, remembered
from batchinference.errors import Fault
from batchinference.model.status import Reason
from batchinference.ports import Metrics
from batchinference.runtime.circuits import Circuits
from batchinference.runtime.clients import Clients
from batchinference.runtime.demands import Book, Demands
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


_LEAST_S = 0.001
"""Of a wait until a limit rises, whose moment is rounded."""


@dataclass(slots=True)
class Account:
    """One account's actor.

    Attributes:
        granted: shards with a place whose claim is not written yet, as (run key, shard).
        served: when each namespace was given its newest place.
        learned: what refusals taught, by model.
        failures: polls in a row that failed.
    """

    id: str
    granted: set[tuple[str, int]] = field(default_factory=set)
    served: dict[str, datetime] = field(default_factory=dict)
    learned: dict[str, Learned] = field(default_factory=dict)
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
        self._demands = Demands(entries)
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

    def touched(self, key: str) -> None:
        """Something of the run may be another than before; who waits need not know at once."""
        self._demands.touched(key)

    def changed(self, account: str, key: str) -> None:
        """A run of the account has other shards in flight, or asking, than before."""
        self.touched(key)
        self._reckon(account)

    def _reckon(self, account: str) -> None:
        """Have the places of the account given anew."""
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
        self._reckon(account)
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
            try:
                async with asyncio.timeout(self._until_more(account)):
                    await account.changed.wait()
            except TimeoutError:
                continue
            account.changed.clear()

    def _until_more(self, account: Account) -> float | None:
        """Seconds until a limit that refusals taught rises; None where there is none."""
        now = self._clock.now()
        rises = [known.rises_at(now, self._settings) for known in account.learned.values()]
        return max((min(rises) - now).total_seconds(), _LEAST_S) if rises else None

    def _learned(self, account: Account, book: Book) -> Mapping[str, int]:
        """How many batches of a model may be there, where that is known. Refusals teach nothing
        where `quota_recover_s` is 0.
        """
        now, learned = self._clock.now(), account.learned
        teaching = book.refused if self._settings.quota_recover_s else ()
        for model in teaching:
            learned[model] = refused(learned.get(model), book.placed.models[model], now)
        book.refused.clear()
        account.learned = remembered(learned, now)
        return {model: known.limit(now, self._settings) for model, known in account.learned.items()}

    def _place(self, account: Account) -> None:
        """Give what places there are. A shard that does not use its place any more loses it."""
        book = self._demands.of(account.id)
        granted = [d for name in account.granted if (d := book.waiting.get(name)) is not None]
        account.granted = {d.name for d in granted}
        uploading = book.uploading(granted)
        learned = self._learned(account, book)
        turns = admit(book.waiting, book.placed, granted, uploading, account.served, learned)
        for demand in turns:
            account.served[demand.namespace] = self._clock.now()
            account.granted.add(demand.name)
            self._look(demand.run_key)

    def numbers(self, account: str) -> Numbers:
        """What the account has under way."""
        if account not in self._accounts:
            return Numbers()
        book = self._demands.of(account)
        return Numbers(book.placed.number, book.queued, book.placed.tokens)

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

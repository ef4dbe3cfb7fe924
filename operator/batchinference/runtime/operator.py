"""The runtime put together: feed in, effects out. Knows ports, not adapters.

`observe` is called by the watch for every event and only files it. Everything else happens in
tasks of this object: the queue's workers, one actor per account, one coroutine per effect.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from batchinference.clock import Clock, Randomness
from batchinference.core.effects import Search
from batchinference.core.outcomes import Outcome
from batchinference.ports import (
    Journals,
    Kube,
    Metrics,
    ProviderFactory,
    Recorder,
    TaskRunner,
)
from batchinference.ports.prices import Prices
from batchinference.runtime.accounts import Accounts
from batchinference.runtime.beginning import Beginning
from batchinference.runtime.census import Census
from batchinference.runtime.circuits import Circuits
from batchinference.runtime.clients import Clients
from batchinference.runtime.credentials import Credentials
from batchinference.runtime.effects import Effects
from batchinference.runtime.entry import Entry
from batchinference.runtime.expiry import Expiry
from batchinference.runtime.index import Indexes
from batchinference.runtime.journaling import Journaling
from batchinference.runtime.observing import Observing
from batchinference.runtime.pricing import Pricing
from batchinference.runtime.providers import Providers
from batchinference.runtime.queue import KeyedQueue
from batchinference.runtime.receipts import Receipts
from batchinference.runtime.reconciler import Reconciler
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.showing import Showing
from batchinference.runtime.status_writer import StatusWriter
from batchinference.runtime.store import PROVIDER, STRAY, Store
from batchinference.runtime.strays import Strays
from batchinference.runtime.sweeper import Sweeper

logger = logging.getLogger(__name__)


class Operator:
    """One operator process's runtime.

    Args:
        kube, journals, recorder, runner, factory, prices: the outside world, see `ports`.
        installation: see protocol 1.2.
        namespace: the operator's own, where journals and cluster providers' Secrets are.
        worker_connections: how workers reach the API server; handed to every task as it is.
        leads: whether this process may begin anything now; see `runtime.election`.
    """

    def __init__(
        self,
        *,
        kube: Kube,
        journals: Journals,
        recorder: Recorder,
        runner: TaskRunner,
        factory: ProviderFactory,
        prices: Prices,
        clock: Clock,
        randomness: Randomness,
        settings: RuntimeSettings,
        metrics: Metrics,
        installation: str,
        namespace: str,
        worker_connections: Mapping[str, Any],
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        self._journals = journals
        self._clock = clock
        self._settings = settings
        self._metrics = metrics
        self._entries: dict[str, Entry] = {}
        self._store = Store()
        self._queue = KeyedQueue(clock)
        credentials = Credentials(kube, clock, settings.reference_retry_s)
        self._clients = Clients(factory, credentials, settings.call_timeout_s)
        self._circuits = Circuits(clock, randomness, settings, metrics)
        self._indexes = Indexes(self._index_ready, clock, randomness, settings)
        self._accounts = Accounts(
            self._entries,
            self._clients,
            self._deliver,
            self._queue.add,
            clock,
            randomness,
            settings,
            metrics,
            self._circuits,
            lambda connected, view: self._indexes.saw(connected, (view,)),
        )
        writer = StatusWriter(kube, metrics, settings.status_writes)
        self._showing = Showing(
            self._store,
            writer,
            recorder,
            self._queue,
            clock,
            settings,
            metrics,
            installation,
            self._circuits,
        )
        self._providers = Providers(
            self._store,
            self._clients,
            kube,
            writer,
            recorder,
            self._accounts,
            clock,
            settings,
            namespace,
            installation,
            metrics,
            self._queue.add,
            self._indexes,
            self._circuits,
        )
        self._effects = Effects(
            store=self._store,
            journals=journals,
            clients=self._clients,
            indexes=self._indexes,
            accounts=self._accounts,
            circuits=self._circuits,
            kube=kube,
            recorder=recorder,
            runner=runner,
            clock=clock,
            settings=settings,
            metrics=metrics,
            connections=worker_connections,
            done=self._effect_done,
            deliver=self._deliver,
            entries=self._entries,
            leads=leads,
        )
        self._census = Census(self._entries, self._store, clock, metrics)
        self._strays = Strays(
            store=self._store,
            entries=self._entries,
            journals=journals,
            kube=kube,
            showing=self._showing,
            recorder=recorder,
            queue=self._queue,
            clock=clock,
            settings=settings,
        )
        journaling = Journaling(
            journals, self._strays, self._accounts, self._census, self._queue, clock
        )
        beginning = Beginning(
            self._providers,
            factory,
            self._store,
            kube,
            clock,
            installation=installation,
            namespace=namespace,
        )
        self._reconciler = Reconciler(
            store=self._store,
            entries=self._entries,
            journaling=journaling,
            strays=self._strays,
            accounts=self._accounts,
            observing=Observing(
                store=self._store,
                journaling=journaling,
                clients=self._clients,
                accounts=self._accounts,
                providers=self._providers,
                pricing=Pricing(self._providers, prices),
                beginning=beginning,
                clock=clock,
                settings=settings,
                namespace=namespace,
            ),
            beginning=beginning,
            effects=self._effects,
            showing=self._showing,
            queue=self._queue,
            clock=clock,
            randomness=randomness,
            settings=settings,
            metrics=metrics,
        )
        self._sweeper = Sweeper(
            self._store, self._entries, journals, kube, self._queue.add, clock, settings, metrics
        )
        self._receipts = Receipts(journals, self._store, self._entries, clock, settings)
        self._expiry = Expiry(
            self._store,
            journals,
            kube,
            recorder,
            self._queue,
            clock,
            settings,
            metrics,
            installation,
        )
        self._tasks: list[asyncio.Task[None]] = []

    # ---------------------------------------------------------------- the feed

    def observe(self, kind: str, event: str | None, body: Mapping[str, Any]) -> None:
        """Take in one watch event; before `start`, too, for a standby that gets warm. Does no I/O
        and never raises on what objects hold.
        """
        for key in sorted(self._store.observe(kind, event, body)):
            self._queue.add(key)

    # ---------------------------------------------------------------- life

    async def start(self) -> None:
        """Read the journals of what goes on, then begin to work.

        Raises:
            Stalled, Retry: the journals can't be read.
        """
        for key, run, version in await self._journals.unended():
            if run is None:
                continue  # found again, and reported, when its object is seen
            entry = self._entries.setdefault(key, Entry(key))
            entry.run = entry.stored = run
            entry.version = version
            self._queue.add(key)
            if not run.is_over:
                self._accounts.changed(run.provider.account, key)
        self._tasks.append(asyncio.create_task(self._queue.run_delays(), name="queue delays"))
        self._tasks.append(asyncio.create_task(self._sweeper.run(), name="sweeper"))
        if self._settings.receipts_kept_s > 0:
            self._tasks.append(asyncio.create_task(self._receipts.run(), name="receipts"))
        self._tasks.append(asyncio.create_task(self._census.run(), name="census"))
        for number in range(self._settings.reconcilers):
            self._tasks.append(asyncio.create_task(self._work(), name=f"reconciler {number}"))

    async def stop(self) -> None:
        """End all work at once: the journal has what the next process needs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._providers.close()
        await self._accounts.close()
        await self._effects.close()
        await self._indexes.close()
        await self._clients.close()

    def alive(self) -> bool:
        """Whether every worker and every account's actor still runs."""
        working = bool(self._tasks) and not any(task.done() for task in self._tasks)
        return working and self._accounts.alive()

    async def _work(self) -> None:
        while True:
            key = await self._queue.take()
            started = self._clock.elapsed()
            try:
                if key.startswith(PROVIDER):
                    await self._look_at_provider(key)
                elif key.startswith(STRAY):
                    await self._strays.look(key.removeprefix(STRAY))
                else:
                    await self._reconciler.reconcile(key)
                    self._accounts.touched(key)
                    await self._expiry.look(key)
            except Exception:  # the worker must outlive a broken object
                self._metrics.count("reconcile_errors_total")
                logger.exception("%s can't be worked on", key)
                self._queue.add_after(key, self._settings.retry_most_s)
            finally:
                self._queue.done(key)
                self._metrics.observe("reconcile_duration_seconds", self._clock.elapsed() - started)
                self._metrics.gauge("queue_depth", len(self._queue))

    async def _look_at_provider(self, key: str) -> None:
        wait, changed = await self._providers.look(key)
        if changed:
            for run_key in sorted(self._store.dependents(key)):
                entry = self._entries.get(run_key)
                if entry is not None:
                    entry.notes = entry.notes.retry_now()
                self._queue.add(run_key)
        if wait:
            self._queue.add_after(key, wait)

    def _index_ready(self, client: str) -> None:
        """Runs that wait for an account's index ask again."""
        del client  # which runs use it is not known without their Secrets; few wait at a time
        search = Search().id
        for key, entry in self._entries.items():
            if search in entry.notes.failures:
                entry.notes = entry.notes.without_failure(search)
                self._queue.add(key)

    # ---------------------------------------------------------------- outcomes

    def _deliver(self, run_key: str, outcome: Outcome) -> None:
        entry = self._entries.get(run_key)
        if entry is not None:
            entry.mailbox.put(outcome)
            self._queue.add(run_key)

    def _effect_done(self, entry: Entry, effect_id: str, outcome: Outcome | None) -> None:
        entry.inflight.discard(effect_id)
        self._accounts.touched(entry.key)
        if outcome is not None:
            entry.mailbox.put(outcome)
        self._queue.add(entry.key)

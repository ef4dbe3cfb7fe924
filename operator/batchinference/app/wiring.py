"""The composition root of the operator's process: ports meet adapters here and nowhere else.

Owns what is started in which order, and that everything is stopped once, in the reverse one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any

from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.events import KubeEvents
from batchinference.adapters.kube.journals import KubeJournals
from batchinference.adapters.kube.leases import KubeLease
from batchinference.adapters.kube.objects import KubeObjects
from batchinference.adapters.prices import LibraryPrices
from batchinference.adapters.workers import WorkerPool, inherited_environment
from batchinference.app import handlers
from batchinference.app.http import HTTPServer, LoopLag
from batchinference.app.kinds import until_served, wait_for_kinds
from batchinference.app.providers import Providers
from batchinference.app.settings import (
    Configuration,
    listen_address,
    own_namespace,
    spool_folder,
)
from batchinference.clock import Clock, SystemClock, system_randomness
from batchinference.core.keys import installation_id
from batchinference.errors import Retry, Stalled
from batchinference.model.codec import encode
from batchinference.runtime.election import Election
from batchinference.runtime.operator import Operator
from batchinference.telemetry.logs import hand_on
from batchinference.telemetry.metrics import PrometheusMetrics

log = logging.getLogger(__name__)

_TOKEN_EVERY_S = 60.0
_LEASE_CONNECTIONS = 2


class Assembly:
    """The operator's process, put together.

    Attributes:
        port: where health and metrics are, once started.
    """

    def __init__(self, configuration: Configuration, version: str) -> None:
        """Prepare it; nothing is started.

        Raises:
            InvalidObject: the operator's namespace is not known.
        """
        self._settings = configuration.settings
        self._runtime_settings = configuration.runtime
        self._namespace = own_namespace(configuration.settings)
        self._metrics = PrometheusMetrics(version)
        self._stack = AsyncExitStack()
        self._watched = self._watching = False
        self._operator: Operator | None = None
        self._pool_of_workers: WorkerPool | None = None
        self._client: KubeClient | None = None
        self._unwatched: tuple[str, ...] = ()
        self._election: Election | None = None
        self._candidacy: asyncio.Task[None] | None = None
        self._over: BaseException | None = None
        self._working = False
        self.port = 0

    async def start(self) -> None:
        """Start everything but the watches; where leaders are elected, the work begins later.

        Raises:
            Stalled, Retry: the port is taken, the API server can't be used, or our kinds are not
                served.
            OSError: the spool folder can't be made.
        """
        settings, clock = self._settings, SystemClock()
        await self._serve()
        client = await KubeClient.connect(
            settings.kubeconfig,
            max_connections=settings.kube.max_connections,
            timeout_s=settings.kube.timeout_seconds,
        )
        self._stack.push_async_callback(client.close)
        self._metrics.gauge("leading", 0)
        if settings.leader_election.enabled:
            await self._stand_for_election(clock)
        self._unwatched = await wait_for_kinds(client, handlers.KINDS)
        kube = KubeObjects(client)
        await self._demand_namespace(kube)
        installation = settings.installation_id or await self._installation(kube)
        log.info(
            "starting",
            extra={
                "server": client.host,
                "namespace": self._namespace,
                "watching": ", ".join(settings.watch_namespaces) or "all namespaces",
                "installation": installation,
            },
        )
        worker_connections = await self._worker_connections(client)
        recorder = KubeEvents(client, clock, socket.gethostname(), self._metrics)
        recorder.start()
        self._stack.push_async_callback(recorder.stop)
        pool = self._pool_of_workers = self._pool()
        self._stack.push_async_callback(pool.close)
        operator = Operator(
            kube=kube,
            journals=KubeJournals(client, self._namespace),
            recorder=recorder,
            runner=pool,
            factory=Providers(
                worker_connections, self._runtime_settings.submit_timeout_s, self._metrics
            ),
            prices=LibraryPrices(),
            clock=clock,
            randomness=system_randomness(),
            settings=self._runtime_settings,
            metrics=self._metrics,
            installation=installation,
            namespace=self._namespace,
            worker_connections=worker_connections,
            leads=self._election.leads if self._election is not None else lambda: True,
        )
        self._stack.push_async_callback(operator.stop)
        self._stack.push_async_callback(self._withdraw)
        self._operator = operator
        self._client = client
        if self._election is None:
            await self._begin()

    async def watch(self, stop: asyncio.Event) -> None:
        """Feed events until `stop` is set or a signal comes.

        Raises:
            Exception: the watches failed, another replica leads now, or kinds are served now that
                were not at the start; end the process, so that it is started again.
        """
        assert self._client is not None
        assert self._operator is not None
        client, namespaces = self._client, self._settings.watch_namespaces
        ended = asyncio.Event()

        async def cleanup() -> None:
            stop.set()  # after a signal kopf would wait some seconds for who waits for it
            try:
                await self.stop()
            finally:
                ended.set()

        registry = handlers.build_registry(
            self._counted(self._operator.observe),
            server=client.host,
            session=lambda: client.session(handlers.watch_connections(namespaces)),
            cleanup=cleanup,
        )
        self._watched = self._watching = True
        if self._election is not None:
            # Before kopf is: what is started since then it would end by itself.
            self._candidacy = asyncio.create_task(
                self._run_for(self._election, stop), name="candidacy"
            )
        if self._unwatched:
            self._background(lambda: self._wait_for_the_rest(stop), "kinds")
        try:
            await handlers.watch(registry, namespaces, stop, ended)
        finally:
            self._watching = False
        if self._over is not None:
            raise self._over

    async def _wait_for_the_rest(self, stop: asyncio.Event) -> None:
        """End the process once the kinds are served that it had to start without: kopf looks for
        what there is only at its start.
        """
        assert self._client is not None
        await until_served(self._client, self._unwatched)
        again = ", ".join(self._unwatched)
        self._over = Retry(
            "KindsServed", f"{again} are served now; this process ends, to start anew"
        )
        stop.set()

    def _lacking(self) -> Mapping[str, str]:
        """What the health check says beside "ok": definitions that are not there."""
        unserved = {*self._unwatched, *(self._client.unserved if self._client else ())}
        return {"unserved": ", ".join(sorted(unserved))} if unserved else {}

    async def stop(self) -> None:
        """Stop everything that was started; a second time does nothing."""
        stack = self._stack.pop_all()
        await stack.aclose()

    # ------------------------------------------------------------ leading

    async def _stand_for_election(self, clock: Clock) -> None:
        settings, election = self._settings, self._settings.leader_election
        # Its own connections: a renewal must not wait for whatever else is asked.
        client = await KubeClient.connect(
            settings.kubeconfig,
            max_connections=_LEASE_CONNECTIONS,
            timeout_s=settings.kube.timeout_seconds,
        )
        self._stack.push_async_callback(client.close)
        leases = KubeLease(client, self._namespace, election.lease_name)
        identity = f"{socket.gethostname()}_{uuid.uuid4()}"
        self._election = Election(leases, identity, election.terms, clock, system_randomness())
        # Only when nothing is at work any more: this is called after all that comes later.
        self._stack.push_async_callback(self._election.release)

    async def _run_for(self, election: Election, stop: asyncio.Event) -> None:
        """Wait for the lead and work for as long as it lasts; then the process ends."""
        try:
            await election.acquire()
            await _while(self._begin(), election.hold())
            self._over = Retry("LeaseLost", "Another replica may lead now; this process ends")
        except Exception as fault:  # noqa: BLE001 - raised where the process waits for its end
            self._over = fault
        self._metrics.gauge("leading", 0)
        if self._operator is not None:
            await self._operator.stop()
        stop.set()

    async def _withdraw(self) -> None:
        if self._candidacy is not None:
            self._candidacy.cancel()
            await asyncio.gather(self._candidacy, return_exceptions=True)

    async def _begin(self) -> None:
        """Begin to work."""
        assert self._operator is not None
        assert self._pool_of_workers is not None
        self._metrics.gauge("leading", 1)
        self._pool_of_workers.open()
        await self._operator.start()
        self._working = True

    def _role(self) -> Mapping[str, str]:
        if self._election is None:
            return {"role": "leading"}
        leads = self._election.leads()
        return {"role": "leading" if leads else "standby", "leader": self._election.leader}

    def _check_start(self) -> str:
        """A standby is ready when it sees the objects: then it may take over."""
        if not self._watching:
            return "the watches have not begun"
        leads = self._election is None or self._election.leads()
        return "the journals are being read" if leads and not self._working else ""

    # ------------------------------------------------------------ parts

    async def _demand_namespace(self, kube: KubeObjects) -> None:
        """Without its namespace the operator could write no journal, and would submit nothing.

        Raises:
            Stalled: there is no such namespace.
        """
        try:
            found = await kube.uid_of_namespace(self._namespace)
        except Stalled as denied:
            log.warning("whether namespace %s exists is not known: %s", self._namespace, denied)
            return
        if found is None:
            raise Stalled(
                "NamespaceNotFound",
                f"The operator's own namespace '{self._namespace}', where journals are kept, does "
                "not exist. Create it, or name the right one with --namespace or `namespace` in "
                "the settings.",
            )

    async def _installation(self, kube: KubeObjects) -> str:
        uid = await kube.uid_of_namespace("kube-system")
        if uid is None:
            raise Stalled(
                "NoInstallationID",
                "There is no namespace kube-system to take the installation's id from. Set "
                "`installationID` in the settings, to a value that no other cluster has.",
            )
        return installation_id(uid, self._namespace)

    async def _worker_connections(self, client: KubeClient) -> Mapping[str, Any]:
        """How workers reach the API server; kept current in place, since tokens expire."""
        shared: dict[str, Any] = encode(await client.connection())
        if "tokenFile" in shared:  # workers read it themselves
            return shared

        async def renew() -> None:
            while True:
                await asyncio.sleep(_TOKEN_EVERY_S)
                shared.update(encode(await client.connection()))

        self._background(renew, "worker token")
        return shared

    def _pool(self) -> WorkerPool:
        settings = self._settings
        environment = inherited_environment()
        hand_on(environment, settings.log.level, settings.log.format)
        return WorkerPool(
            spool_folder(settings.workers),
            workers=settings.workers.count,
            environment=environment,
            metrics=self._metrics,
        )

    async def _serve(self) -> None:
        """Health comes first: a process that waits for the API server is not to be restarted."""
        lag = LoopLag(lambda lag_s: self._metrics.gauge("loop_lag_seconds", lag_s))
        lag.start()
        self._stack.push_async_callback(lag.stop)
        checks = {
            "loop": lag.check,
            "feed": lambda: "the watches ended" if self._watched and not self._watching else "",
            "runtime": self._check_runtime,
        }
        http = HTTPServer(
            listen_address(self._settings.http),
            self._settings.http.port,
            checks,
            self._metrics.exposition,
            {"start": self._check_start},
            self._role,
            self._lacking,
        )
        self._stack.push_async_callback(http.stop)
        self.port = await http.start()

    def _check_runtime(self) -> str:
        if not self._working or self._operator is None or self._operator.alive():
            return ""
        return "a worker of the runtime ended"

    def _counted(self, feed: handlers.Feed) -> handlers.Feed:
        def counted(kind: str, event: str | None, body: Mapping[str, Any]) -> None:
            self._metrics.count("watch_events_total", kind=kind)
            feed(kind, event, body)

        return counted

    def _background(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        async def run() -> None:
            try:
                await work()
            except Exception:
                log.exception("%s failed", name)

        task = asyncio.get_running_loop().create_task(run(), name=name)

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        self._stack.push_async_callback(end)


async def _while(beginning: Coroutine[Any, Any, None], holding: Coroutine[Any, Any, None]) -> None:
    """Hold the lead, and begin to work meanwhile; returns when the lead is lost.

    Raises:
        Exception: the work could not begin.
    """
    hold, begin = asyncio.ensure_future(holding), asyncio.ensure_future(beginning)
    try:
        await asyncio.wait({hold, begin}, return_when=asyncio.FIRST_COMPLETED)
        if begin.done():
            begin.result()
        await hold
    finally:
        for task in (hold, begin):
            task.cancel()
        await asyncio.gather(hold, begin, return_exceptions=True)

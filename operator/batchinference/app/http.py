"""Health and metrics over HTTP. Asks nobody outside of the process: a restart mends neither a
provider nor the API server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from aiohttp import web

from batchinference.errors import Stalled
from batchinference.telemetry.metrics import CONTENT_TYPE

log = logging.getLogger(__name__)

LAG_LIMIT_S = 20.0
_BEAT_S = 1.0

Checks = Mapping[str, Callable[[], str]]
"""By name: what is wrong, "" when nothing is."""


class LoopLag:
    """How late the event loop is: what keeps everything else from running on time."""

    def __init__(self, told: Callable[[float], None]) -> None:
        """`told` hears the lag in seconds with every beat."""
        self._told = told
        self._lag_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._task = asyncio.get_running_loop().create_task(self._measure(), name="loop lag")

    async def stop(self) -> None:
        """End measuring."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def check(self) -> str:
        """What is wrong, "" when nothing is."""
        if self._lag_s > LAG_LIMIT_S:
            return f"the event loop was {self._lag_s:.1f} s late"
        return ""

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self._lag_s = max(0.0, loop.time() - due)
            self._told(self._lag_s)


class HTTPServer:
    """`/healthz`, `/readyz` and `/metrics`."""

    def __init__(
        self,
        address: str,
        port: int,
        checks: Checks,
        exposition: Callable[[], bytes],
        ready: Checks,
        role: Callable[[], Mapping[str, str]],
        lacking: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Prepare it.

        Args:
            address: where to listen.
            port: the same; 0 = any free one.
            checks: what health means.
            exposition: the metrics in the exposition format.
            ready: what readiness means, beside health.
            role: said with it: whether this replica leads, and who does.
            lacking: said with health: what the process lacks, where a restart mends nothing.
        """
        self._lacking = lacking
        self._ready_checks = ready
        self._role = role
        self._address = address
        self._port = port
        self._checks = checks
        self._exposition = exposition
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            Stalled: the port is taken, or not ours to take.
        """
        application = web.Application()
        application.router.add_get("/healthz", self._health)
        application.router.add_get("/readyz", self._ready)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._address, self._port).start()
        except OSError as fault:
            raise Stalled(
                "PortUnusable",
                f"Health and metrics can't be served: {fault.strerror}. If another operator runs "
                "on this machine, choose another port with `--port` or `http.port` (0 = any free "
                "one)",
            ) from fault
        port: int = self._runner.addresses[0][1]
        log.info("health and metrics on %s:%d", self._address, port)
        return port

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        return _answer(_wrong(self._checks), self._lacking())

    async def _ready(self, _: web.Request) -> web.Response:
        return _answer({**_wrong(self._checks), **_wrong(self._ready_checks)}, self._role())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._exposition(),
            headers={"Content-Type": CONTENT_TYPE},
        )


def _wrong(checks: Checks) -> dict[str, str]:
    return {name: said for name, check in checks.items() if (said := check())}


def _answer(wrong: Mapping[str, str], told: Mapping[str, str]) -> web.Response:
    said = {"status": "failing" if wrong else "ok", **told, **wrong}
    return web.json_response(said, status=503 if wrong else 200)

"""The feed: kopf as the informer and the host of the process. The only module that imports kopf.

One handler per kind passes every event on; it does no I/O, writes nothing and never raises. What
kopf offers beyond that (retries, patches, finalizers, timers) is not used: it costs writes, keeps
state in annotations, and sleeps inside of the workers that should bring the next event.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import kopf

from batchinference.adapters.kube.names import GROUP, RESOURCES, VERSION

log = logging.getLogger(__name__)

Feed = Callable[[str, str | None, Mapping[str, Any]], None]
"""Called with a kind, the event's type (None = from a listing) and the object as it is."""

KINDS = ("BatchInferenceJob", "InferenceProvider", "ClusterInferenceProvider")
"""The first is the one that nothing can be done without."""

UNUSED_FINALIZER = f"{GROUP}/kopf-unused"
"""Kopf takes the finalizer of its settings off every object it meets: never ours."""

_LOGIN_WINDOW_S = 600.0
_LOGIN_TRIES = 6
_KOPF_ENDS_S = 10.0  # it gives tasks that hang six


def build_registry(
    feed: Feed,
    *,
    server: str,
    session: Callable[[], aiohttp.ClientSession],
    cleanup: Callable[[], Awaitable[None]] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> kopf.OperatorRegistry:
    """Everything that kopf calls.

    Args:
        feed: hears of every event; what it raises is logged and dropped.
        server: URL of the API server.
        session: makes a bounded, authenticated session, at every login.
        cleanup: ends what runs beside kopf; awaited when kopf ends, as kopf cancels after a few
            seconds what was started since.
        clock: seconds, to see logins that repeat themselves.
    """
    registry = kopf.OperatorRegistry()
    for kind in KINDS:
        kopf.on.event(
            GROUP,
            VERSION,
            RESOURCES[kind].plural,
            id=f"feed-{kind.lower()}",
            registry=registry,
        )(observer(kind, feed))
    kopf.on.login(id="login", registry=registry)(login(server, session, clock))
    if cleanup is not None:
        ends = cleanup

        async def end(**_: Any) -> None:
            await ends()

        kopf.on.cleanup(id="cleanup", registry=registry, errors=kopf.ErrorsMode.PERMANENT)(end)
    return registry


def observer(kind: str, feed: Feed) -> Callable[..., Awaitable[None]]:
    """The handler of one kind's events."""

    async def observe(event: Mapping[str, Any], **_: Any) -> None:
        # The raw event: kopf's own view of the body would be walked and copied for nothing.
        try:
            feed(kind, event["type"], event["object"])
        except Exception:
            log.exception("an event of a %s was not understood", kind)

    return observe


def login(
    server: str, session: Callable[[], aiohttp.ClientSession], clock: Callable[[], float]
) -> Callable[..., Awaitable[kopf.AiohttpSession]]:
    """The login handler. Every session asks for the current token by itself, so a login after a
    rejected one waits longer each time, and in the end gives up: the process starts anew then.
    """
    logins: list[float] = []

    async def log_in(**_: Any) -> kopf.AiohttpSession:
        now = clock()
        logins[:] = [then for then in logins if now - then < _LOGIN_WINDOW_S]
        if len(logins) >= _LOGIN_TRIES:
            raise kopf.PermanentError(
                f"The API server rejected the credentials {len(logins)} times in a row"
            )
        if logins:
            await asyncio.sleep(2.0 ** len(logins) / 2)
        logins.append(now)
        return kopf.AiohttpSession(server=server, aiohttp_session=session())

    return log_in


def build_settings() -> kopf.OperatorSettings:
    """Kopf's settings."""
    settings = kopf.OperatorSettings()
    # Two operators are made safe by preconditions; peers of equal priority would both stand still.
    settings.peering.standalone = True
    # No watches of namespaces and definitions: less RBAC. Our kinds must be served by now.
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    # A worker per object that ends soon: at 10,000 objects the difference of 5 s is minutes.
    settings.queueing.idle_timeout = 0.5
    settings.queueing.worker_limit = None
    settings.queueing.exit_timeout = 2.0
    settings.watching.chunk_size = 500
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    # An API server, or a definition, that comes back is noticed within seconds.
    settings.networking.error_backoffs = (1, 1, 2, 3, 5)
    settings.persistence.finalizer = UNUSED_FINALIZER
    settings.process.ultimate_exiting_timeout = 60
    return settings


async def watch(
    registry: kopf.OperatorRegistry,
    namespaces: Sequence[str],
    stop: asyncio.Event,
    ended: asyncio.Event,
) -> None:
    """Watch until `stop` is set or a signal comes.

    Once `ended` is set, which means that all that ran beside kopf has ended, the process has
    seconds to live.

    Raises:
        Exception: kopf failed; the process must end, so that it is started again.
    """
    # An empty list is cluster-wide to us, and nothing at all to kopf.
    where: dict[str, Any] = (
        {"namespaces": list(namespaces)} if namespaces else {"clusterwide": True}
    )
    guard = asyncio.create_task(_end_at_last(ended))  # kopf cancels only what came after it
    try:
        await kopf.operator(registry=registry, settings=build_settings(), stop_flag=stop, **where)
    finally:
        guard.cancel()


async def _end_at_last(ended: asyncio.Event) -> None:
    """End the process when kopf does not. When one watch fails, the others may take their
    cancellation for a pause and go on, and kopf waits for them.
    """
    await ended.wait()
    await asyncio.sleep(_KOPF_ENDS_S)
    log.error("the watches do not end, so the process is ended")
    os._exit(1)


def watch_connections(namespaces: Sequence[str]) -> int:
    """Connections that the watches need: a stream for each kind and namespace, a few to list."""
    return len(KINDS) * max(1, len(namespaces)) + 4

"""Events: the `Recorder` port on events.k8s.io/v1.

Events are best effort: recording never blocks and never raises, a full queue drops, and a repeat of
the same sentence about the same object raises a counter instead of making a new Event.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchinference.adapters.kube.answers import Refusal
from batchinference.adapters.kube.client import MERGE_PATCH, KubeClient
from batchinference.adapters.kube.names import CONTROLLER, EVENTS, RESOURCES
from batchinference.clock import Clock
from batchinference.errors import BatchInferenceError
from batchinference.ports import Event, Metrics

log = logging.getLogger(__name__)

_QUEUE = 1000
_REMEMBERED = 4096
_QUIET_S = 300.0
_LIFETIME_S = 3000.0  # below the hour that an API server keeps Events
_NOTE_LIMIT = 1024  # of events.k8s.io/v1
_NAME_LIMIT = 200

_Key = tuple[str, str, str, str, str, str, str]


@dataclass(slots=True)
class _Series:
    """What was said once, and how often since.

    Attributes:
        name: of the Event object; "" while it is not created.
        count: how often it was recorded; told: how many of these the API server knows of.
        told_at: on `Clock.elapsed`.
    """

    key: _Key
    event: Event
    name: str = ""
    count: int = 0
    told: int = 0
    told_at: float = 0.0
    first: datetime | None = None
    last: datetime | None = None


class KubeEvents:
    """Implements `ports.Recorder`. `start` before use; `stop` writes what is left.

    The same (object, reason, message) is written at once the first time, then at most every five
    minutes, as a series with a count.
    """

    def __init__(
        self, client: KubeClient, clock: Clock, instance: str, metrics: Metrics | None = None
    ) -> None:
        """`instance` is the pod's name, for `reportingInstance`."""
        self._metrics = metrics
        self._client = client
        self._clock = clock
        self._instance = instance[:128] or CONTROLLER
        self._known: OrderedDict[_Key, _Series] = OrderedDict()
        self._queue: asyncio.Queue[_Series] = asyncio.Queue(_QUEUE)
        self._writer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write."""
        self._writer = asyncio.get_running_loop().create_task(self._write_all(), name="events")

    async def stop(self, within_s: float = 3.0) -> None:
        """Write what is queued and the counts that were held back, as far as time allows."""
        for series in self._known.values():
            if series.name and series.count > series.told:
                self._enqueue(series)
        try:
            async with asyncio.timeout(within_s):
                await self._queue.join()
        except TimeoutError:
            log.warning("%d events were not written in time", self._queue.qsize())
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)

    def record(self, event: Event) -> None:
        """See `ports.Recorder.record`."""
        about = event.about
        said = (event.reason, event.message, "Warning" if event.warning else "Normal")
        key = (about.kind, about.namespace, about.name, about.uid, *said)
        now = self._clock.elapsed()
        series = self._known.get(key)
        if series is None or (series.name and now - series.told_at > _LIFETIME_S):
            series = self._known[key] = _Series(key, event, first=self._clock.now())
        self._known.move_to_end(key)
        while len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        series.count += 1
        series.last = self._clock.now()
        if series.count == 1 or (series.name and now - series.told_at > _QUIET_S):
            series.told_at = now
            self._enqueue(series)

    def _enqueue(self, series: _Series) -> None:
        try:
            self._queue.put_nowait(series)
        except asyncio.QueueFull:
            if self._metrics is not None:
                self._metrics.count("events_dropped_total")

    async def _write_all(self) -> None:
        while True:
            series = await self._queue.get()
            try:
                await self._tell(series)
            except Refusal as refusal:
                # A namespace that is going away refuses them; RBAC may too. Nobody waits for them.
                log.debug("an event was refused: %s", refusal)
            except BatchInferenceError as fault:
                log.debug("an event was not written: %s", fault)
            except Exception:
                log.exception("an event was not written")
            finally:
                if not series.name and self._known.get(series.key) is series:
                    del self._known[series.key]  # the next one of its kind is a first one again
                self._queue.task_done()

    async def _tell(self, series: _Series) -> None:
        count, last = series.count, series.last
        namespace = series.event.about.namespace or "default"
        if series.name:
            body: dict[str, Any] = {"series": _series(count, last)}
            path = EVENTS.path(namespace, series.name)
            try:
                await self._client.call("PATCH", path, body=body, content_type=MERGE_PATCH)
            except Refusal as refusal:
                if refusal.code != 404:
                    raise
                series.name = ""  # expired meanwhile
        if not series.name:
            body = self._manifest(series, namespace)
            if count > 1:
                body["series"] = _series(count, last)
            await self._client.call("POST", EVENTS.path(namespace), body=body)
            series.name = str(body["metadata"]["name"])
        series.told = count

    def _manifest(self, series: _Series, namespace: str) -> dict[str, Any]:
        event = series.event
        about = event.about
        kind = RESOURCES.get(about.kind)
        regarding = {
            "apiVersion": kind.api_version if kind else "",
            "kind": about.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        }
        note = event.message
        if len(note.encode()) > _NOTE_LIMIT:
            note = note.encode()[: _NOTE_LIMIT - 3].decode(errors="ignore") + "…"
        name = f"{about.name[:_NAME_LIMIT].rstrip('.-')}.{secrets.token_hex(8)}"
        return {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": _micro(series.first),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": event.action,
            "reason": event.reason,
            "regarding": {member: value for member, value in regarding.items() if value},
            "note": note,
            "type": "Warning" if event.warning else "Normal",
        }


def _series(count: int, last: datetime | None) -> dict[str, Any]:
    return {"count": count, "lastObservedTime": _micro(last)}


def _micro(time: datetime | None) -> str | None:
    # A MicroTime has six digits, always.
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if time else None

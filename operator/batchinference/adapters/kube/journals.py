"""The journals' store: one ConfigMap per run in the operator's namespace.

Owns names, labels, size and the precondition of every write. The content is `model.run`'s; this
module knows its schema number and its phase, the latter for the label alone.

A write is a PUT with the resourceVersion that was read. Labels and annotations that people put on a
journal (decisions on runs without an object) are carried along, so that they survive our writes.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from batchinference.adapters.kube.answers import Refusal
from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.names import (
    CONFIG_MAPS,
    FIELD_MANAGER,
    JOB_ANNOTATION,
    JOURNAL_LABEL,
    MANAGED_BY,
    METADATA,
    PHASE_ANNOTATION,
    UID_ANNOTATION,
)
from batchinference.core.keys import journal_name
from batchinference.errors import (
    InvalidObject,
    NewerSchema,
    Permanent,
    Superseded,
    Unreadable,
)
from batchinference.model.codec import decode, encode
from batchinference.model.job import parse_journaled_spec
from batchinference.model.run import SCHEMA, Run, RunPhase
from batchinference.model.sharing import shared
from batchinference.model.status import Reason

log = logging.getLogger(__name__)

PLAIN_LIMIT = 32 * 1024
"""Bytes of JSON up to which a journal stays readable with kubectl."""

STORED_LIMIT = 512 * 1024
"""Bytes that a journal may take while its run goes on to anything new."""

RESERVE_LIMIT = 960 * 1024
"""Bytes that it may take to keep what has happened; the API server stops at 1 MiB."""

_PLAIN = "journal"
_COMPRESSED = "journal.json.zlib"
_PAGE = 250
_UNENDED = f"{JOURNAL_LABEL},{JOURNAL_LABEL}!=ended"
_OURS = {MANAGED_BY, JOURNAL_LABEL, JOB_ANNOTATION, UID_ANNOTATION, PHASE_ANNOTATION}


class KubeJournals:
    """Implements `ports.Journals`. A call that RBAC forbids raises `Stalled` AccessDenied."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        # Labels and annotations that are not ours, of journals that have any, as last read. They
        # can't change without the resourceVersion, so a write that goes through carries the newest.
        self._foreign: dict[str, tuple[dict[str, str], dict[str, str]]] = {}

    async def unended(self) -> Sequence[tuple[str, Run | None, str]]:
        """See `ports.Journals.unended`. One that can't be read is reported like one of a newer
        schema: nothing may be written over it.
        """
        found: dict[str, tuple[str, Run | None, str]] = {}
        async for key, item in self._listed(_UNENDED):
            self._remember(key, item)
            try:
                found[key] = (key, _content(key, item), _version(item))
            except NewerSchema as fault:
                log.warning("journal is not touched: %s", fault, extra={"run": key})
                found[key] = (key, None, _version(item))
        return list(found.values())

    async def unended_versions(self) -> AsyncIterator[tuple[str, str]]:
        """See `ports.Journals.unended_versions`."""
        async for key, item in self._listed(_UNENDED, METADATA.format("PartialObjectMetadataList")):
            yield key, _version(item)

    async def ended(self) -> AsyncIterator[tuple[Run, str]]:
        """See `ports.Journals.ended`."""
        async for key, item in self._listed(f"{JOURNAL_LABEL}=ended"):
            try:
                yield _content(key, item), _version(item)
            except NewerSchema:
                continue

    async def _listed(
        self, selector: str, accept: str = "application/json"
    ) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
        """Journals by label; some of them twice where the listing had to begin again."""
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        path = CONFIG_MAPS.path(self._namespace)
        while True:
            try:
                page = await self._client.call("GET", path, query=query, accept=accept)
            except Refusal as refusal:
                if refusal.code == 410 and "continue" in query:  # compacted meanwhile: begin again
                    del query["continue"]
                    continue
                raise refusal.fault() from refusal
            for item in page["items"] or ():
                yield item["metadata"]["name"].removeprefix(journal_name("")), item
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token
            await asyncio.sleep(0)  # thousands of journals must not hold up the loop

    async def get(self, key: str) -> tuple[Run, str] | None:
        """See `ports.Journals.get`."""
        item = await self._read(key)
        return None if item is None else (_content(key, item), _version(item))

    async def is_current(self, key: str, version: str) -> bool:
        """See `ports.Journals.is_current`."""
        item = await self._read(key)
        return item is not None and _version(item) == version

    async def annotations(self, key: str) -> Mapping[str, str]:
        """See `ports.Journals.annotations`."""
        item = await self._read(key)
        return {} if item is None else dict(item["metadata"].get("annotations") or {})

    async def create(self, run: Run) -> str:
        """See `ports.Journals.create`."""
        path = CONFIG_MAPS.path(self._namespace)
        return await self._write("POST", path, run, {}, STORED_LIMIT)

    async def write(self, run: Run, version: str, *, in_full: bool = False) -> str:
        """See `ports.Journals.write`. A journal that is gone raises `Superseded` too."""
        path = CONFIG_MAPS.path(self._namespace, journal_name(run.key))
        limit = RESERVE_LIMIT if in_full else STORED_LIMIT
        return await self._write("PUT", path, run, {"resourceVersion": version}, limit)

    async def delete(self, key: str, version: str) -> None:
        """See `ports.Journals.delete`."""
        name = journal_name(key)
        body = {"preconditions": {"resourceVersion": version}}
        try:
            await self._client.call("DELETE", CONFIG_MAPS.path(self._namespace, name), body=body)
        except Refusal as refusal:
            if refusal.is_missing(name):
                return
            if refusal.code == 409:
                raise Superseded(f"the journal of {key} changed meanwhile") from refusal
            raise refusal.fault() from refusal
        self._foreign.pop(key, None)

    async def _write(
        self, method: str, path: str, run: Run, metadata: Mapping[str, Any], limit: int
    ) -> str:
        labels, annotations = self._foreign.get(run.key, ({}, {})) if metadata else ({}, {})
        body = {
            "apiVersion": CONFIG_MAPS.api_version,
            "kind": CONFIG_MAPS.kind,
            "metadata": {
                **metadata,
                "name": journal_name(run.key),
                "labels": {**labels, **_labels(run)},
                "annotations": {**annotations, **_annotations(run)},
            },
            **await _stored(run, limit),
        }
        try:
            answer = await self._client.call(method, path, body=body)
        except Refusal as refusal:
            if refusal.code == 409 or refusal.is_missing(journal_name(run.key)):
                raise Superseded(f"the journal of run {run.key} was written by another") from None
            raise refusal.fault() from refusal
        self._remember(run.key, answer)
        return _version(answer)

    def _remember(self, key: str, item: Mapping[str, Any]) -> None:
        metadata = item["metadata"]
        labels, annotations = (
            {name: text for name, text in (metadata.get(member) or {}).items() if name not in _OURS}
            for member in ("labels", "annotations")
        )
        self._foreign.pop(key, None)
        if labels or annotations:
            self._foreign[key] = (labels, annotations)

    async def _read(self, key: str) -> dict[str, Any] | None:
        name = journal_name(key)
        try:
            item = await self._client.call("GET", CONFIG_MAPS.path(self._namespace, name))
        except Refusal as refusal:
            if refusal.is_missing(name):
                return None
            raise refusal.fault() from refusal
        self._remember(key, item)
        return item


def _labels(run: Run) -> dict[str, str]:
    states = {RunPhase.ENDED: "ended", RunPhase.PARKED: "parked"}
    return {MANAGED_BY: FIELD_MANAGER, JOURNAL_LABEL: states.get(run.phase, "live")}


def _annotations(run: Run) -> dict[str, str]:
    job = f"{run.owner.namespace}/{run.owner.name}"
    return {
        JOB_ANNOTATION: job,
        UID_ANNOTATION: run.owner.uid,
        PHASE_ANNOTATION: run.phase.value,
    }


async def _stored(run: Run, limit: int) -> dict[str, Any]:
    """The ConfigMap's data member.

    Raises:
        Permanent: `JournalTooLarge`.
    """
    plain = msgspec.json.encode(encode(run))
    if len(plain) <= PLAIN_LIMIT:
        return {"data": {_PLAIN: plain.decode()}}
    compressed = await asyncio.to_thread(zlib.compress, plain)
    if len(compressed) >= limit:
        raise Permanent(
            Reason.JOURNAL_TOO_LARGE,
            f"The journal of this run would take {len(compressed)} bytes with "
            f"{len(run.shards)} shards; at most {limit - 1} are possible. Split the input "
            "into several jobs, or raise the records per batch of the provider.",
        )
    return {"binaryData": {_COMPRESSED: base64.b64encode(compressed).decode()}}


def _content(key: str, item: Mapping[str, Any]) -> Run:
    """The run in a ConfigMap.

    Raises:
        NewerSchema: it was written by a newer operator.
        Unreadable: it makes no sense.
    """
    plain = (item.get("data") or {}).get(_PLAIN)
    packed = (item.get("binaryData") or {}).get(_COMPRESSED)
    try:
        if plain is not None:
            value = msgspec.json.decode(plain)
        elif packed is not None:
            value = msgspec.json.decode(zlib.decompress(base64.b64decode(packed)))
        else:
            raise Unreadable(f"The journal of run {key} has no content that this version knows")
    except (ValueError, zlib.error) as fault:
        raise Unreadable(f"The journal of run {key} can't be read: {fault}") from fault
    value = shared(value)
    schema = value.get("schema", SCHEMA) if isinstance(value, dict) else SCHEMA
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerSchema(
            f"The journal of run {key} has schema {schema}, this operator knows {SCHEMA}"
        )
    try:
        run = decode(Run, value)
        parse_journaled_spec(run.spec)
    except InvalidObject as fault:
        raise Unreadable(f"The journal of run {key} can't be read: {fault}") from fault
    return run


def _version(item: Mapping[str, Any]) -> str:
    return str(item["metadata"]["resourceVersion"])

"""Our objects, Secrets and namespaces: the `Kube` port on the real API server.

Owns the preconditions of writes. What is written, and when, is decided above.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from batchinference.adapters.kube.answers import UNAVAILABLE, Refusal
from batchinference.adapters.kube.client import JSON_PATCH, MERGE_PATCH, KubeClient
from batchinference.adapters.kube.names import (
    CONFIG_MAPS,
    FINALIZER,
    NAMESPACES,
    SECRETS,
    Resource,
    resource,
)
from batchinference.errors import Retry, Superseded
from batchinference.ports import ObjectRef

_FINALIZER_TRIES = 5


class KubeObjects:
    """Implements `ports.Kube`.

    Besides what the port says, every call raises `Stalled` AccessDenied when RBAC forbids it,
    `Retry` when the API server did not answer, `Permanent` when it refuses the request as such.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client

    async def get(self, ref: ObjectRef) -> Mapping[str, Any] | None:
        """See `ports.Kube.get`. A 404 that does not name the object is `Retry`: the kind itself
        may be gone, which says nothing of the object.
        """
        return await self._read(resource(ref), ref.namespace, ref.name)

    async def patch_status(
        self, ref: ObjectRef, status: Mapping[str, Any], resource_version: str
    ) -> str | None:
        """See `ports.Kube.patch_status`.

        A JSON patch, because a merge patch would keep the members inside of an object that the new
        value leaves out, and because the API server ignores a `metadata.uid` in a merge patch of a
        status. A changed resourceVersion is answered with 409, a failed `test` with 422.
        """
        operations: list[dict[str, Any]] = [
            _set("/metadata/resourceVersion", resource_version, op="replace")
        ]
        if ref.uid:
            operations.insert(0, _set("/metadata/uid", ref.uid, op="test"))
        for member, value in status.items():
            path = f"/status/{_escaped(member)}"
            operations.append(_set(path, value))
            if value is None:  # added first, so that the removal of an absent member is no error
                operations.append({"op": "remove", "path": path})
        path = resource(ref).path(ref.namespace, ref.name, "status")
        try:
            answer = await self._client.call(
                "PATCH", path, body=operations, content_type=JSON_PATCH
            )
        except Refusal as refusal:
            if refusal.is_missing(ref.name):
                return None
            if refusal.code == 409:
                raise Superseded(f"{ref.kind} {ref.namespace}/{ref.name} changed") from None
            if _is_failed_patch(refusal):
                return await self._patch_without_status(ref, status, resource_version)
            raise refusal.fault() from refusal
        return _version(answer)

    async def _patch_without_status(
        self, ref: ObjectRef, status: Mapping[str, Any], resource_version: str
    ) -> str | None:
        """A JSON patch did not apply: the object is another one, or has no status at all."""
        now = await self.get(ref)
        if now is None:
            return None
        metadata = now["metadata"]
        same = metadata["resourceVersion"] == resource_version and _is(ref, metadata)
        if not same or "status" in now:
            raise Superseded(f"{ref.kind} {ref.namespace}/{ref.name} is another object now")
        body = {"metadata": {"resourceVersion": resource_version}, "status": dict(status)}
        path = resource(ref).path(ref.namespace, ref.name, "status")
        try:
            answer = await self._client.call("PATCH", path, body=body, content_type=MERGE_PATCH)
        except Refusal as refusal:
            if refusal.code in {404, 409}:
                raise Superseded(f"{ref.kind} {ref.namespace}/{ref.name} changed") from None
            raise refusal.fault() from refusal
        return _version(answer)

    async def set_finalizer(self, ref: ObjectRef, present: bool) -> Mapping[str, Any] | None:
        """See `ports.Kube.set_finalizer`. Adding raises `Superseded` too when the object is being
        deleted: then it is too late for a finalizer.
        """
        kind = resource(ref)
        for _ in range(_FINALIZER_TRIES):
            now = await self._read(kind, ref.namespace, ref.name)
            if now is None:
                return None
            metadata = now["metadata"]
            if not _is(ref, metadata):
                raise Superseded(f"{ref.kind} {ref.namespace}/{ref.name} is another object now")
            finalizers = list(metadata.get("finalizers") or ())
            if (FINALIZER in finalizers) is present:
                return now
            if present and metadata.get("deletionTimestamp"):
                raise Superseded(f"{ref.kind} {ref.namespace}/{ref.name} is being deleted")
            operations = [
                _set("/metadata/uid", metadata["uid"], op="test"),
                _set("/metadata/resourceVersion", metadata["resourceVersion"], op="test"),
                *_finalizer_operations(finalizers, present=present),
            ]
            try:
                answer = await self._client.call(
                    "PATCH",
                    kind.path(ref.namespace, ref.name),
                    body=operations,
                    content_type=JSON_PATCH,
                )
            except Refusal as refusal:
                if refusal.is_missing(ref.name):
                    return None
                # 422 with details: the object began to be deleted between our read and our write.
                if refusal.code in {409, 422}:
                    continue
                raise refusal.fault() from refusal
            return dict(answer)
        raise Retry(
            UNAVAILABLE,
            f"The finalizer of {ref.kind} {ref.namespace}/{ref.name} could not be changed: the "
            f"object changed {_FINALIZER_TRIES} times in between",
        )

    async def delete_object(self, ref: ObjectRef, resource_version: str) -> bool:
        """See `ports.Kube.delete_object`."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": ref.uid, "resourceVersion": resource_version},
            "propagationPolicy": "Background",
        }
        try:
            path = resource(ref).path(ref.namespace, ref.name)
            await self._client.call("DELETE", path, body=body)
        except Refusal as refusal:
            if refusal.is_missing(ref.name):
                return False
            if refusal.code == 409:
                raise Superseded(f"{ref.kind} {ref.namespace}/{ref.name} changed") from None
            raise refusal.fault() from refusal
        return True

    async def secret(self, namespace: str, name: str) -> Mapping[str, str] | None:
        """See `ports.Kube.secret`. Values that are not UTF-8 are left out: ours are text."""
        found = await self._read(SECRETS, namespace, name)
        if found is None:
            return None
        values = {}
        for key, encoded in (found.get("data") or {}).items():
            try:
                values[key] = base64.b64decode(encoded).decode()
            except ValueError:
                continue
        return values

    async def namespace_labels(self, name: str) -> Mapping[str, str] | None:
        """See `ports.Kube.namespace_labels`."""
        found = await self._read(NAMESPACES, "", name)
        return None if found is None else dict(found["metadata"].get("labels") or {})

    async def config_map_exists(self, namespace: str, name: str, key: str) -> bool:
        """See `ports.Kube.config_map_exists`."""
        found = await self._read(CONFIG_MAPS, namespace, name)
        if found is None:
            return False
        return key in (found.get("data") or {}) or key in (found.get("binaryData") or {})

    async def uid_of_namespace(self, name: str) -> str | None:
        """The uid of a namespace, None when there is no such namespace."""
        found = await self._read(NAMESPACES, "", name)
        return None if found is None else str(found["metadata"]["uid"])

    async def _read(self, kind: Resource, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            return await self._client.call("GET", kind.path(namespace, name))
        except Refusal as refusal:
            if refusal.is_missing(name):
                return None
            raise refusal.fault() from refusal


def _finalizer_operations(finalizers: list[str], *, present: bool) -> list[dict[str, Any]]:
    if not present:
        path = f"/metadata/finalizers/{finalizers.index(FINALIZER)}"
        return [_set(path, FINALIZER, op="test"), {"op": "remove", "path": path}]
    if finalizers:
        return [_set("/metadata/finalizers/-", FINALIZER)]
    return [_set("/metadata/finalizers", [FINALIZER])]


def _set(path: str, value: Any, op: str = "add") -> dict[str, Any]:
    return {"op": op, "path": path, "value": value}


def _escaped(member: str) -> str:
    return member.replace("~", "~0").replace("/", "~1")


def _is_failed_patch(refusal: Refusal) -> bool:
    # An object that the schema refuses is named in the details, a patch that does not apply is not.
    return refusal.code == 422 and not refusal.details


def _is(ref: ObjectRef, metadata: Mapping[str, Any]) -> bool:
    return not ref.uid or metadata["uid"] == ref.uid


def _version(answer: Mapping[str, Any]) -> str:
    return str(answer["metadata"]["resourceVersion"])

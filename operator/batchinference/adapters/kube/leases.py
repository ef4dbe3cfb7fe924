"""A Lease of coordination.k8s.io/v1, as the election needs it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from batchinference.adapters.kube.answers import Refusal
from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.names import FIELD_MANAGER, LEASES, MANAGED_BY
from batchinference.errors import Superseded
from batchinference.ports.election import Lease

_MICRO = "%Y-%m-%dT%H:%M:%S.%fZ"  # a MicroTime has six digits, always


class KubeLease:
    """Implements `ports.election.Leases` on one object.

    Give it a client of its own: a renewal must not wait for whatever else is asked.
    """

    def __init__(self, client: KubeClient, namespace: str, name: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name

    async def read(self) -> Lease | None:
        """See `ports.election.Leases.read`."""
        try:
            item = await self._client.call("GET", LEASES.path(self._namespace, self._name))
        except Refusal as refusal:
            if refusal.is_missing(self._name):
                return None
            raise refusal.fault() from refusal
        return _lease(item)

    async def write(self, lease: Lease) -> str:
        """See `ports.election.Leases.write`."""
        metadata: dict[str, Any] = {"name": self._name, "labels": {MANAGED_BY: FIELD_MANAGER}}
        method, path = "POST", LEASES.path(self._namespace)
        if lease.version:
            metadata["resourceVersion"] = lease.version
            method, path = "PUT", LEASES.path(self._namespace, self._name)
        body = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata,
            "spec": _spec(lease),
        }
        try:
            written = await self._client.call(method, path, body=body)
        except Refusal as refusal:
            if refusal.code == 409 or refusal.is_missing(self._name):
                raise Superseded(f"the lease {self._name} was written by another") from None
            raise refusal.fault() from refusal
        return str(written["metadata"]["resourceVersion"])


def _spec(lease: Lease) -> dict[str, Any]:
    return {
        "holderIdentity": lease.holder,
        "leaseDurationSeconds": lease.duration_s,
        "acquireTime": lease.acquired and lease.acquired.strftime(_MICRO),
        "renewTime": lease.renewed and lease.renewed.strftime(_MICRO),
        "leaseTransitions": lease.transitions,
    }


def _lease(item: Mapping[str, Any]) -> Lease:
    spec = item.get("spec") or {}
    return Lease(
        holder=str(spec.get("holderIdentity") or ""),
        duration_s=int(spec.get("leaseDurationSeconds") or 0),
        acquired=_time(spec.get("acquireTime")),
        renewed=_time(spec.get("renewTime")),
        transitions=int(spec.get("leaseTransitions") or 0),
        version=str(item["metadata"]["resourceVersion"]),
    )


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) else None

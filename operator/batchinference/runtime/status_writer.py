"""The one writer of statuses: only on change, version-checked, never more than a few at once.

Works on plain JSON: what is to stand there, and what stands there. It must not know conditions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from batchinference.errors import Fault, Superseded
from batchinference.ports import Kube, Metrics, ObjectRef


def changed_members(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What the port needs to make `new` of `old`: members are replaced whole, None removes."""
    patch: dict[str, Any] = {k: None for k in old if k not in new and old[k] is not None}
    patch.update({name: value for name, value in new.items() if old.get(name) != value})
    return patch


class StatusWriter:
    """Writes statuses through the `Kube` port."""

    def __init__(self, kube: Kube, metrics: Metrics, at_once: int) -> None:
        self._kube = kube
        self._metrics = metrics
        self._slots = asyncio.Semaphore(at_once)

    async def write(
        self, ref: ObjectRef, new: Mapping[str, Any], old: Mapping[str, Any], version: str
    ) -> str | None:
        """Make the status `new` where it was `old` at `version`.

        Returns the new version, or None when nothing was written: no change, or the object is gone.

        Raises:
            Superseded: the object has changed meanwhile.
            Fault: the API server can't be asked now, or refuses.
        """
        patch = changed_members(old, new)
        if not patch:
            return None
        async with self._slots:
            try:
                written = await self._kube.patch_status(ref, patch, version)
            except Superseded:
                self._metrics.count("status_writes_total", outcome="superseded")
                raise
            except Fault:
                self._metrics.count("status_writes_total", outcome="failed")
                raise
        self._metrics.count("status_writes_total", outcome="written" if written else "gone")
        return written

"""A task's ports out of a run and its connections: the composition root of the data plane.

Runs in worker processes, and for the claim check in a thread of the operator. Knows which adapter
serves what, and no policy.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from batchinference.adapters.bedrock import BedrockData
from batchinference.adapters.kube.blocking import ConfigMaps
from batchinference.adapters.kube.config_map_input import ConfigMapInput
from batchinference.adapters.kube.config_map_place import PART_BYTES as CONFIG_MAP_PART_BYTES
from batchinference.adapters.kube.config_map_place import ConfigMapPlace
from batchinference.adapters.kube.config_map_store import ConfigMapStore
from batchinference.adapters.kube.config_map_uri import SCHEME as CONFIG_MAP
from batchinference.adapters.kube.connection import KubeConnection
from batchinference.adapters.openai_batch import OpenAIData
from batchinference.adapters.s3 import S3Store
from batchinference.errors import Stalled
from batchinference.model.codec import decode
from batchinference.model.provider import ProviderKind
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.model.work import Task
from batchinference.ports import BatchData, ObjectStore, ResultPlace
from batchinference.tasks.admit import claim_of
from batchinference.tasks.finish import result_format
from batchinference.tasks.places import PrefixPlace
from batchinference.tasks.sources import input_source
from batchinference.tasks.workbench import PART_BYTES, Workbench

_KEPT = 8


class Connections:
    """What a run is connected with. No call is made before one is asked for; `close` when done.

    May be used by several threads.
    """

    def __init__(
        self,
        run: Run,
        settings: Mapping[str, Any],
        secrets: Mapping[str, Mapping[str, str]],
        kube: KubeConnection,
    ) -> None:
        """Make a run's clients.

        Raises:
            Stalled: the settings or the Secrets can't be used.
        """
        own = run.provider.kind == ProviderKind.CLUSTER_INFERENCE_PROVIDER
        self._settings = settings
        self._secrets = secrets
        self._openai: OpenAIData | None = None
        self.config_maps = ConfigMaps(kube)
        self.s3: S3Store | None = None
        if "s3" in settings.get("storage", {}):
            self.s3 = S3Store(settings, secrets, own_identity=own)

    def store(self, uri: str) -> ObjectStore:
        """The store that serves a URI.

        Raises:
            Stalled: it is in S3, and the provider names no storage.
        """
        return ConfigMapStore(self.config_maps) if uri.startswith(CONFIG_MAP) else self.bucket(uri)

    def bucket(self, uri: str) -> S3Store:
        """The object store. Raises as `store`."""
        if self.s3 is None:
            raise Stalled(
                Reason.STORAGE_MISSING,
                f"The provider has no `spec.storage.s3`, so {uri} can't be reached",
            )
        return self.s3

    def data(self, run: Run) -> BatchData:
        """The provider's bulk data.

        Raises:
            Stalled: a kind of provider that takes no batches.
        """
        if "openAI" in self._settings:
            if self._openai is None:
                self._openai = OpenAIData(self._settings, self._secrets)
            return self._openai
        if "bedrock" in self._settings:
            return BedrockData(self.bucket(run.staging.uri), model=str(run.spec.get("model", "")))
        raise no_batches(self._settings)

    def place(self, run: Run) -> ResultPlace:
        """The run's output place. Raises as `store`."""
        if run.output.is_config_map:
            job = f"{run.owner.namespace}/{run.owner.name}"
            return ConfigMapPlace(self.config_maps, run.output.uri, claim_of(run), job)
        suffix = result_format(run).value.lower()
        return PrefixPlace(self.bucket(run.output.uri), run.output.uri, suffix)

    def close(self) -> None:
        """Release connections."""
        self.config_maps.close()
        if self._openai is not None:
            self._openai.close()


def kube_connection(worker_connections: Mapping[str, Any]) -> KubeConnection:
    """The API server's connection in a task's connections.

    Raises:
        InvalidObject: it is none.
    """
    return decode(KubeConnection, worker_connections, "connections.kube")


def workbench(task: Task, connections: Connections, spool: Path) -> Workbench:
    """The ports of one task.

    Raises:
        Stalled: the task names a place for which there is no connection.
    """
    run = task.run
    spec_input = run.spec.get("input") or {}
    tiny = run.output.is_config_map
    return Workbench(
        source=input_source(
            spec_input,
            inline=task.inline,
            namespace=run.owner.namespace,
            store=connections.s3,
            config_maps=ConfigMapInput(connections.config_maps),
            spool=spool,
            has_rows="promptTemplate" in run.spec,
        ),
        staging=connections.store(run.staging.uri),
        output=connections.place(run),
        data=connections.data(run),
        spool=spool,
        part_bytes=CONFIG_MAP_PART_BYTES if tiny else PART_BYTES,
        template=task.template,
    )


class ConnectionsCache:
    """The connections of the last few providers, so that a warm process makes no client anew."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Connections] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self,
        run: Run,
        settings: Mapping[str, Any],
        secrets: Mapping[str, Mapping[str, str]],
        kube: Mapping[str, Any],
    ) -> Connections:
        """A run's connections; `kube` as tasks carry it.

        Raises:
            Stalled: the settings or the Secrets can't be used.
            InvalidObject: `kube` is no connection.
        """
        parts = [run.provider.kind, settings, secrets, kube]
        form = msgspec.json.encode(parts, order="deterministic")
        key = hashlib.sha256(form).hexdigest()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = Connections(run, settings, secrets, kube_connection(kube))
            self._kept.move_to_end(key)
            if len(self._kept) > _KEPT:
                _, oldest = self._kept.popitem(last=False)
                oldest.close()
            return self._kept[key]


def no_batches(settings: Mapping[str, Any]) -> Stalled:
    """The fault of a provider without batches of its own."""
    named = next((name for name in ("langChain",) if name in settings), "of no known kind")
    return Stalled(
        Reason.NOT_IMPLEMENTED,
        f"The provider is {named}; this version of the operator runs openAI and bedrock. "
        "Use one of these.",
    )

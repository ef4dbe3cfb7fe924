"""The operator's settings: what may stand in the settings file, its defaults, and its errors.

Read by the codec, so that a mistake is told with the path of the field. Secrets do not belong here:
the chart keeps the file in a ConfigMap.
"""

from __future__ import annotations

import os
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode, wire_name
from batchinference.runtime.election import Terms
from batchinference.runtime.settings import RuntimeSettings
from batchinference.telemetry.logs import FORMATS, LEVELS

_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_RUNTIME = "runtime"


@dataclass(frozen=True, slots=True)
class HTTPSettings:
    """Health and metrics.

    Attributes:
        address: where to listen; "" = every address in a pod, 127.0.0.1 elsewhere.
        port: 0 = any free one, logged at start.
    """

    address: str = ""
    port: int = 8080


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how: see `telemetry.logs`."""

    level: str = "info"
    format: str = "json"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """The worker processes.

    Attributes:
        count: how many; one of them stays free of long tasks when there are several.
        spool: folder on local disk for the bytes of the shards in work; "" = under the temporary
            folder.
    """

    count: int = 2
    spool: str = ""


@dataclass(frozen=True, slots=True)
class KubeSettings:
    """The API server.

    Attributes:
        max_connections: for reads and writes; watches have their own.
        timeout_seconds: for one call.
    """

    max_connections: int = 16
    timeout_seconds: int = 30


@dataclass(frozen=True, slots=True)
class ElectionSettings:
    """Which of several replicas leads.

    Attributes:
        enabled: off, this process leads from its start on.
        lease_name: of the Lease in the operator's namespace.
        lease_seconds, renew_deadline_seconds, retry_period_seconds: see `runtime.election.Terms`.
    """

    enabled: bool = False
    lease_name: str = "batch-inference-operator"
    lease_seconds: int = 10
    renew_deadline_seconds: int = 7
    retry_period_seconds: int = 2

    @property
    def terms(self) -> Terms:
        """The election's waits."""
        return Terms(self.lease_seconds, self.renew_deadline_seconds, self.retry_period_seconds)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set.

    Attributes:
        namespace: the operator's own, where journals are; "" = the pod's.
        watch_namespaces: whose jobs are run; empty = all. Cluster-wide providers are of the
            cluster and always watched.
        kubeconfig: a path; "" = the pod's ServiceAccount, outside of a pod kubectl's kubeconfig.
        installation_id: instead of one made of the uid of kube-system and our namespace.
        shutdown_seconds: how long a stop may take; below the pod's grace period.
    """

    namespace: str = ""
    watch_namespaces: tuple[str, ...] = ()
    kubeconfig: str = ""
    installation_id: str = ""
    shutdown_seconds: int = 25
    http: HTTPSettings = field(default_factory=HTTPSettings)
    log: LogSettings = field(default_factory=LogSettings)
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    kube: KubeSettings = field(default_factory=KubeSettings)
    leader_election: ElectionSettings = field(default_factory=ElectionSettings)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings, and those of the runtime, which the file has under `runtime`."""

    settings: Settings = field(default_factory=Settings)
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)


def load(path: Path | None) -> Configuration:
    """The settings in a YAML file; without one, the defaults.

    Raises:
        InvalidObject: a field is wrong, with its path; or the file is no YAML.
        OSError: the file can't be read.
    """
    if path is None:
        return Configuration()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as fault:
        raise InvalidObject("", f"is not YAML: {fault}") from None
    return parse({} if document is None else document)


def parse(document: Any) -> Configuration:
    """The settings in a document. Raises as `load`."""
    if not isinstance(document, Mapping):
        raise InvalidObject("", "must be an object, such as `workers: {count: 2}`")
    given = dict(document)
    runtime = _runtime(given.pop(_RUNTIME, None))
    settings = decode(Settings, given)
    _check(settings)
    return Configuration(settings, runtime)


def own_namespace(settings: Settings) -> str:
    """The operator's namespace: the setting, else the pod's.

    Raises:
        InvalidObject: neither is known.
    """
    if settings.namespace:
        return settings.namespace
    if named := os.environ.get("POD_NAMESPACE"):
        return named
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        raise InvalidObject(
            "namespace", "must be set outside of a pod: here, or with --namespace"
        ) from None


def in_pod() -> bool:
    """Whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def listen_address(settings: HTTPSettings) -> str:
    """Where health and metrics are served."""
    if settings.address:
        return settings.address
    return "0.0.0.0" if in_pod() else "127.0.0.1"  # noqa: S104 - the kubelet asks the pod's address


def spool_folder(settings: WorkerSettings) -> Path:
    """Where tasks keep their files."""
    if settings.spool:
        return Path(settings.spool)
    return Path(tempfile.gettempdir()) / f"batch-inference-operator-{os.getpid()}"


def _check(settings: Settings) -> None:
    for path, held, least, most in (
        ("http.port", settings.http.port, 0, 65535),
        ("workers.count", settings.workers.count, 1, 64),
        ("kube.maxConnections", settings.kube.max_connections, 1, 1000),
        ("kube.timeoutSeconds", settings.kube.timeout_seconds, 1, 600),
        ("shutdownSeconds", settings.shutdown_seconds, 1, 3600),
    ):
        if not least <= held <= most:
            raise InvalidObject(path, f"must be between {least} and {most}")
    for path, word, words in (
        ("log.level", settings.log.level, LEVELS),
        ("log.format", settings.log.format, FORMATS),
    ):
        if word not in words:
            raise InvalidObject(path, "must be one of " + ", ".join(f"'{w}'" for w in words))
    if settings.workers.spool and not Path(settings.workers.spool).is_absolute():
        raise InvalidObject("workers.spool", "must be an absolute path")
    if flaw := settings.leader_election.terms.flaw:
        raise InvalidObject("leaderElection", flaw)
    if not settings.leader_election.lease_name:
        raise InvalidObject("leaderElection.leaseName", "must be the name of a Lease")
    for number, namespace in enumerate(settings.watch_namespaces):
        if not namespace or any(sign in namespace for sign in "*?!,/ "):
            path = f"watchNamespaces[{number}]"
            raise InvalidObject(path, "must be the name of one namespace; patterns are not known")


def _runtime(given: Any) -> RuntimeSettings:
    """The runtime's settings. Seconds may be fractions, which the codec does not know."""
    if given is None:
        return RuntimeSettings()
    if not isinstance(given, Mapping):
        raise InvalidObject(_RUNTIME, "must be an object")
    hints = typing.get_type_hints(RuntimeSettings)
    names = {runtime_name(f.name): f.name for f in fields(RuntimeSettings)}
    found: dict[str, Any] = {}
    for key, value in given.items():
        path = f"{_RUNTIME}.{key}"
        if key not in names:
            raise InvalidObject(path, "is not a known field")
        seconds = hints[names[key]] is float
        kinds = (int, float) if seconds else (int,)
        if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
            must = "a number of seconds, 0 or more" if seconds else "a whole number, 0 or more"
            raise InvalidObject(path, f"must be {must}")
        found[names[key]] = float(value) if seconds else value
    settings = replace(RuntimeSettings(), **found)
    if settings.settle_s <= settings.submit_timeout_s:
        path = f"{_RUNTIME}.{runtime_name('settle_s')}"
        least = runtime_name("submit_timeout_s")
        raise InvalidObject(
            path, f"must be more than `{_RUNTIME}.{least}`: a batch may appear late"
        )
    return settings


def runtime_name(name: str) -> str:
    """The name of a runtime setting in the file: `poll_s` is `pollSeconds`."""
    for made in fields(RuntimeSettings):
        if made.name == name:
            plain = wire_name(made)
            return f"{plain.removesuffix('S')}Seconds" if name.endswith("_s") else plain
    raise KeyError(name)

"""Everything at once, for the demo and the cluster tests: control plane, chart, sandbox, operator.

The operator runs as a process of this machine, under the ServiceAccount and the roles that the
chart made and with the settings that the chart wrote; only the pod is missing, since there is no
kubelet. Providers and Secrets that point at the sandbox are made per namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.request import urlopen

import boto3
import yaml
from botocore.config import Config

from control_plane import ControlPlane
from processes import Port, Program

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "batch-inference-operator"
RELEASE = "batch-inference-operator"
OPERATOR_NAMESPACE = "batch-inference-operator"
BUCKET = "team-data"

FAST: Mapping[str, Any] = {
    "submitTimeoutSeconds": 5,
    "settleSeconds": 6,
    "referenceGraceSeconds": 3,
    "referenceRetrySeconds": 1,
    "retryFirstSeconds": 0.2,
    "retryMostSeconds": 2,
    "quotaFirstSeconds": 0.5,
    "quotaMostSeconds": 2,
    "pollSeconds": 0.5,
    "providerCheckSeconds": 30,
    "providerRetrySeconds": 1,
    "progressSeconds": 0.5,
    "callTimeoutSeconds": 10,
    "cancelReleaseSeconds": 8,
}
"""Runtime settings for a sandbox whose batches take seconds instead of hours."""

T = TypeVar("T")


class NotInTime(AssertionError):
    """Something that was waited for did not happen."""


def wait_for(what: str, look: Callable[[], T | None], timeout_s: float = 120.0) -> T:
    """Look until there is something true to see.

    Raises:
        NotInTime: it did not happen within `timeout_s`.
    """
    until = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > until:
            raise NotInTime(f"{what}: not within {timeout_s:g} s (last seen: {found!r})")
        time.sleep(0.05)


@dataclass(slots=True)
class Stack:
    """The running whole. Make it with `Stack.start`."""

    control_plane: ControlPlane
    folder: Path
    sandbox: Mapping[str, Any]
    sandbox_process: Program | None
    settings: Mapping[str, Any]
    values: Mapping[str, Any] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    ports: list[Port] = field(default_factory=list)

    @classmethod
    def start(
        cls,
        control_plane: ControlPlane,
        *,
        settings: Mapping[str, Any] | None = None,
        values: Mapping[str, Any] | None = None,
        sandbox_options: Sequence[str] = (),
        beside: Stack | None = None,
        say: Callable[[str], None] = lambda _text: None,
    ) -> Self:
        """Start the sandbox and install the chart on a running control plane.

        Args:
            control_plane: where.
            settings: of the runtime, beside `FAST`.
            values: of the chart, beside the settings.
            sandbox_options: for its command line.
            beside: another stack, whose sandbox is used: two clusters with one account.
            say: told what happens.
        """
        folder = Path(mkdtemp(prefix="bio-"))
        if beside is not None:
            process, told = None, beside.sandbox
        else:
            process, told = cls._start_sandbox(folder, sandbox_options, say)
        stack = cls(
            control_plane, folder, told, process, {**FAST, **(settings or {})}, values or {}
        )
        say("the chart, with helm")
        try:
            stack.install_chart()
        except BaseException:
            stack.stop()
            raise
        return stack

    @staticmethod
    def _start_sandbox(
        folder: Path, options: Sequence[str], say: Callable[[str], None]
    ) -> tuple[Program, Mapping[str, Any]]:
        say("the sandbox: OpenAI, Bedrock and S3 on this machine")
        ready = folder / "sandbox.json"
        command = [
            *(sys.executable, "-m", "batchinference.sandbox", "--port", "0", "--s3-port", "0"),
            *("--s3-bucket", BUCKET, "--ready-file", str(ready), *options),
        ]
        process = Program("sandbox", command, folder)
        process.start()
        wait_for("the sandbox", lambda: ready.exists() or not process.running, 180)
        if not process.running:
            raise process.failure("did not start")
        told: dict[str, Any] = json.loads(ready.read_text())
        return process, told

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the operators and an own sandbox; the control plane is somebody else's."""
        for operator in self.operators:
            operator.stop()
        if self.sandbox_process is not None:
            self.sandbox_process.stop()
        for port in self.ports:
            port.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---------------------------------------------------------------- chart and operator

    def install_chart(self) -> None:
        """Install or upgrade the chart with this stack's settings."""
        values = self.folder / "values.yaml"
        values.write_text(
            yaml.safe_dump({**self.values, "settings": {"runtime": dict(self.settings)}})
        )
        self.control_plane.helm(
            *("upgrade", "--install", RELEASE, str(CHART), "--namespace", OPERATOR_NAMESPACE),
            *("--create-namespace", "--values", str(values)),
        )
        wait_for("the kinds to be served", self._serves_our_kinds)

    def _serves_our_kinds(self) -> bool:
        """Whether discovery shows them: a definition that was just made is not served at once."""
        found = self.control_plane.read(_OURS) or {"resources": []}
        served = {resource["name"] for resource in found["resources"]}
        return {plural for base, plural in _PLURALS.values() if base == _OURS} <= served

    def start_operator(self, name: str = "operator", *, wrapper: Sequence[str] = ()) -> Operator:
        """Start one operator process as the chart's ServiceAccount, with the chart's settings.

        Args:
            name: of the process and its files; its workers' is the folder `spool-<name>`.
            wrapper: a command that becomes the one that it is given as its last arguments.
        """
        kubeconfig = self.control_plane.service_account_kubeconfig(OPERATOR_NAMESPACE, RELEASE)
        chart_settings = self.control_plane.kubectl(
            *("get", "configmap", f"{RELEASE}-settings", "--namespace", OPERATOR_NAMESPACE),
            *("--output", "jsonpath={.data.settings\\.yaml}"),
        ).stdout
        port = Port()
        self.ports.append(port)
        local = {
            **(yaml.safe_load(chart_settings) or {}),
            "http": {"address": "127.0.0.1", "port": port.number},
            "workers": {"count": 2, "spool": str(self.folder / f"spool-{name}")},
            "log": {"format": "text"},
        }
        settings = self.folder / f"{name}.yaml"
        settings.write_text(yaml.safe_dump(local))
        command = [
            *wrapper,
            *(sys.executable, "-m", "batchinference.app.main", "run"),
            *("--settings", str(settings), "--kubeconfig", str(kubeconfig)),
            *("--namespace", OPERATOR_NAMESPACE),
        ]
        operator = Operator(name, command, self.folder, port.number)
        operator.start()
        self.operators.append(operator)
        self.wait_until_healthy(operator)
        return operator

    def wait_until_healthy(self, operator: Operator) -> None:
        """Wait for its health check."""
        wait_for(operator.name, lambda: operator.is_healthy() or not operator.running, 180)
        if not operator.running:
            raise operator.failure("did not start")

    # ---------------------------------------------------------------- what jobs need

    def s3(self) -> Any:
        """A client of the sandbox's object store."""
        return boto3.client(
            "s3",
            endpoint_url=self.sandbox["s3URL"],
            region_name="us-east-1",
            aws_access_key_id="sandbox",
            aws_secret_access_key="sandbox",
            config=Config(s3={"addressing_style": "path"}),
        )

    def providers(self, namespace: str, **changes: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Secrets and providers `openai` and `bedrock` that point at the sandbox.

        `changes` are members that replace those of a provider's spec, by its name.
        """
        storage = {
            "s3": {
                "endpointURL": self.sandbox["s3URL"],
                "region": "us-east-1",
                "credentialsSecretRef": {"name": "aws"},
                "allowedPrefixes": [
                    f"s3://{BUCKET}/inputs/",
                    f"s3://{BUCKET}/results/${{namespace}}/",
                ],
            },
        }
        openai = {
            "openAI": {
                "baseURL": self.sandbox["openaiBaseURL"],
                "apiKeySecretRef": {"name": "openai", "key": "api-key"},
            },
            "storage": {**storage, "stagingURI": f"s3://{BUCKET}/staging/openai/{namespace}/"},
        }
        bedrock = {
            "bedrock": {
                "region": "us-east-1",
                "endpointURL": self.sandbox["bedrockURL"],
                "serviceRoleARN": "arn:aws:iam::123456789012:role/BedrockBatchRole",
                "credentialsSecretRef": {"name": "aws"},
            },
            "storage": {**storage, "stagingURI": f"s3://{BUCKET}/staging/bedrock/{namespace}/"},
        }
        return [
            _secret(namespace, "openai", {"api-key": "sandbox-key"}),
            _secret(
                namespace,
                "aws",
                {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "sandbox"},
            ),
            _provider(namespace, "openai", {**openai, **changes.get("openai", {})}),
            _provider(namespace, "bedrock", {**bedrock, **changes.get("bedrock", {})}),
        ]

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """`kubectl apply` these objects."""
        self.control_plane.kubectl(
            "apply", "--filename", "-", stdin=yaml.safe_dump_all([dict(o) for o in objects])
        )

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """The object, or None. The kinds are those of `_PLURALS`."""
        base, plural = _PLURALS[kind]
        within = f"/namespaces/{namespace}" if namespace else ""
        return self.control_plane.read(f"{base}{within}/{plural}/{name}")

    def events(self, name: str, namespace: str) -> list[dict[str, Any]]:
        """The Events about an object of that name, oldest first."""
        path = f"apis/events.k8s.io/v1/namespaces/{namespace}/events"
        found = self.control_plane.read(path) or {}
        about = [e for e in found.get("items", []) if e["regarding"]["name"] == name]
        return sorted(about, key=lambda e: e["metadata"]["creationTimestamp"])


class Operator(Program):
    """One operator process; its health endpoint is at `port`."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, port: int) -> None:
        super().__init__(name, list(command), folder)
        self.port = port

    def is_healthy(self) -> bool:
        """Whether its health check says so."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def health(self) -> dict[str, str]:
        """What its health check says.

        Raises:
            OSError: it does not answer, or not that it is healthy.
        """
        with urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
            said: dict[str, str] = json.load(answer)
        return said

    def children(self) -> list[int]:
        """The process ids of its workers."""
        return _children(self.pid)

    def kill_all(self) -> None:
        """`kill -9` of the operator and its worker processes."""
        children = self.children()
        self.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in task.read_text().split()]
    return found


_OURS = "apis/batchinference.dev/v1alpha1"
_PLURALS = {
    "batchinferencejob": (_OURS, "batchinferencejobs"),
    "inferenceprovider": (_OURS, "inferenceproviders"),
    "configmap": ("api/v1", "configmaps"),
    "lease": ("apis/coordination.k8s.io/v1", "leases"),
    "namespace": ("api/v1", "namespaces"),
}


def _secret(namespace: str, name: str, values: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": dict(values),
    }


def _provider(namespace: str, name: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "batchinference.dev/v1alpha1",
        "kind": "InferenceProvider",
        "metadata": {"name": name, "namespace": namespace},
        "spec": dict(spec),
    }

"""The operator's process on the real API server: how it starts, says how it is, and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchinference.adapters.kube import names
from batchinference.adapters.kube.client import KubeClient
from batchinference.app.kinds import wait_for_kinds
from batchinference.errors import Stalled
from control_plane import ControlPlane
from stack import wait_for

_CRDS = Path(__file__).parents[2] / "crds"


class Process:
    """A started operator; its log lines are read from a file."""

    def __init__(self, control_plane: ControlPlane, namespace: str, folder: Path) -> None:
        self.log = folder / "operator.log"
        command = [sys.executable, "-m", "batchinference.app.main", "run", "--port", "0"]
        command += ["--kubeconfig", str(control_plane.kubeconfig), "--namespace", namespace]
        # No proxy of the environment may come between us and 127.0.0.1.
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env=environment)

    def lines(self) -> list[dict[str, Any]]:
        text = self.log.read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def said(self, what: str) -> str:
        """The first message with these words, as soon as there is one."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for line in self.lines():
                if what in line["message"]:
                    return str(line["message"])
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def get(self, path: str) -> tuple[int, str]:
        address = self.said("health and metrics on").rpartition(" ")[2]
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read().decode()

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in listed.read_text().split()]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Any]:
    processes: list[Process] = []

    def start(control_plane: ControlPlane, namespace: str) -> Process:
        processes.append(Process(control_plane, namespace, tmp_path))
        return processes[-1]

    yield start
    for one in processes:
        one.process.kill()
        one.process.wait()


def with_kinds(control_plane: ControlPlane) -> ControlPlane:
    control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(_CRDS))
    control_plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(_CRDS))
    return control_plane


def test_it_watches_says_so_and_ends_soon_when_told(
    control_plane: ControlPlane, namespace: str, started: Any
) -> None:
    operator = started(with_kinds(control_plane), namespace)
    operator.said("Initial authentication has finished")
    assert operator.get("/healthz") == (200, '{"status": "ok"}')
    assert "batchinference_build_info" in operator.get("/metrics")[1]
    workers = operator.children()
    assert len(workers) == 2
    begun = time.monotonic()
    operator.process.send_signal(signal.SIGTERM)
    assert operator.process.wait(30) == 0
    assert time.monotonic() - begun < 10
    assert not any(Path(f"/proc/{pid}/fd").exists() for pid in workers)


def test_it_outlives_an_api_server_that_stays_away_and_hears_of_what_comes_after(
    own_control_plane: Any, started: Any
) -> None:
    own = with_kinds(own_control_plane())
    own.kubectl("create", "namespace", "bio")
    operator = started(own, "bio")
    create_provider(own, "before")
    wait_for("the first provider to be tried", lambda: tried(own, "before"))
    own.kill_apiserver()
    operator.said("will retry")
    own.start_apiserver()
    create_provider(own, "after")
    wait_for("the second provider to be tried", lambda: tried(own, "after"))
    assert operator.process.poll() is None
    assert operator.get("/healthz")[0] == 200


def create_provider(control_plane: ControlPlane, name: str) -> None:
    manifest = {
        "apiVersion": "batchinference.dev/v1alpha1",
        "kind": "InferenceProvider",
        "metadata": {"name": name, "namespace": "bio"},
        "spec": {"openAI": {"baseURL": "http://127.0.0.1:9/v1"}},
    }
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))


def tried(control_plane: ControlPlane, name: str) -> bool:
    """Whether the operator has said of the provider how it is."""
    found = control_plane.kubectl("get", "inferenceprovider", name, "-n", "bio", "-o", "json")
    return bool(json.loads(found.stdout).get("status", {}).get("conditions"))


def test_without_a_namespace_it_says_how_to_give_one(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "POD_NAMESPACE"}
    ended = subprocess.run(
        [sys.executable, "-m", "batchinference.app.main", "run"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "namespace: must be set" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_kinds_that_are_not_served_are_named(
    control_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(with_kinds, control_plane)
    missing = names.Resource("/apis/batchinference.dev/v1alpha1", "schedules", "Schedule")
    monkeypatch.setitem(names.RESOURCES, "Schedule", missing)
    client = await KubeClient.connect(str(control_plane.kubeconfig))
    try:
        await wait_for_kinds(client, ("BatchInferenceJob",), within_s=0)
        with pytest.raises(Stalled, match=r"schedules.*CustomResourceDefinitions"):
            await wait_for_kinds(client, ("BatchInferenceJob", "Schedule"), within_s=0)
    finally:
        await client.close()

"""A real Kubernetes control plane on this machine, for development, the demo and tests.

Owns how etcd, the API server and the controller manager are started, restarted and stopped, when
they count as ready, and the commands that reach them. It must not know the operator or its
resources. There is no kubelet: pods are created and stay Pending.

On the command line::

    python hack/control_plane.py ensure            # fetch or build the programs
    python hack/control_plane.py run               # start, print KUBECONFIG, run until Ctrl-C
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from binaries import KUBERNETES_VERSION, Binaries, BinaryUnavailable, ensure, say
from configuration import Configuration
from downloads import ChecksumMismatch
from processes import Program, StartFailed

_READY_TIMEOUT_S = 300.0
_POLL_S = 0.05
_ATTEMPTS = 3  # of a start whose port was taken in between
_COMMAND_TIMEOUT_S = 300.0


class CommandFailed(RuntimeError):
    """kubectl or helm ended with an error; the message holds what it said."""

    def __init__(self, completed: subprocess.CompletedProcess[str]) -> None:
        command = shlex.join(str(part) for part in completed.args)
        super().__init__(f"{command}\nended with {completed.returncode}:\n{completed.stderr}")
        self.completed = completed


class ControlPlane:
    """A running control plane; a context manager that stops it.

    Attributes:
        folder: data, logs (``<program>.log``), certificates and kubeconfigs; removed by `stop`.
        kubeconfig: path of the administrator's kubeconfig.
        ca_file: path of the certificate that the API server's own is verified against.
        admin_token: bearer token of a member of system:masters.
        audit_log: path of the audit log (JSON lines, level Metadata), None unless asked for.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self.folder = configuration.folder
        self.url = configuration.url
        self.ca_file = configuration.ca_file
        self.kubeconfig = configuration.kubeconfig
        self.admin_token = configuration.admin_token
        self.audit_log = configuration.audit_log
        folder = self.folder
        self.etcd = Program("etcd", configuration.etcd_command(), folder)
        self.apiserver = Program("kube-apiserver", configuration.apiserver_command(), folder)
        self.controller_manager = Program(
            "kube-controller-manager", configuration.manager_command(), folder
        )

    @classmethod
    def start(
        cls,
        emulated_version: str | None = None,
        *,
        binaries: Binaries | None = None,
        audit: bool = False,
    ) -> Self:
        """Start a control plane and wait until it is ready.

        Args:
            emulated_version: an older minor version to behave as, such as "1.34".
            binaries: the programs; looked up, downloaded or built when not given.
            audit: whether to write every request to `audit_log`.

        Raises:
            BinaryUnavailable: a program is missing and cannot be had from here.
            StartFailed: a program did not become ready; the message holds the end of its log.
        """
        programs = binaries or ensure()
        for attempt in range(1, _ATTEMPTS + 1):
            control_plane = cls(Configuration(programs, emulated_version, audit=audit))
            try:
                control_plane._start_all()
            except BaseException as fault:
                control_plane.stop()
                if attempt == _ATTEMPTS or "address already in use" not in str(fault):
                    raise
                say("a port was taken in between; trying again with others")
            else:
                return control_plane
        raise AssertionError("the last attempt returns or raises")

    def stop(self) -> None:
        """Stop everything in order, wait for the ends, give back ports and folder."""
        for program in (self.controller_manager, self.apiserver, self.etcd):
            program.stop()
        self._configuration.release_ports()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # ---- faults, for tests: same data and same ports afterwards

    def stop_apiserver(self) -> None:
        """Stop the API server gracefully."""
        self.apiserver.stop()

    def kill_apiserver(self) -> None:
        """Kill the API server (SIGKILL); its port refuses connections until it is restarted."""
        self.apiserver.kill()

    def start_apiserver(self) -> None:
        """Start a stopped or killed API server and wait until it is ready."""
        self.apiserver.start()
        self._wait_for(self.apiserver, self._apiserver_ready)

    def restart_apiserver(self) -> None:
        """Stop and start the API server, and wait until it is ready."""
        self.stop_apiserver()
        self.start_apiserver()

    def kill_etcd(self) -> None:
        """Kill etcd (SIGKILL); the API server stays up and answers with errors."""
        self.etcd.kill()

    def start_etcd(self) -> None:
        """Start a stopped or killed etcd and wait until it is ready."""
        self.etcd.start()
        self._wait_for(self.etcd, self._etcd_ready)

    def restart_etcd(self) -> None:
        """Stop and start etcd, and wait until the API server is ready again."""
        self.etcd.stop()
        self.start_etcd()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until the API server is ready, which needs etcd."""
        self._wait_for(self.apiserver, self._apiserver_ready)

    def restart_controller_manager(self) -> None:
        """Stop and start the controller manager, and wait until it is healthy."""
        self.controller_manager.stop()
        self.controller_manager.start()
        self._wait_for(self.controller_manager, self._manager_ready)

    # ---- use

    def kubectl(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl as the administrator, or with another kubeconfig.

        Raises:
            CommandFailed: it ended with an error and `check` is set.
        """
        # A cache of its own: discovery must not outlive this server, whose port may be reused.
        command = [
            str(self._configuration.binaries.kubectl),
            f"--cache-dir={self.folder / 'kubectl-cache'}",
        ]
        return self._run([*command, *arguments], stdin, check, kubeconfig)

    def helm(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run Helm as the administrator, or with another kubeconfig.

        Raises:
            CommandFailed: it ended with an error and `check` is set.
            BinaryUnavailable: Helm is not installed.
        """
        return self._run([str(find_helm()), *arguments], stdin, check, kubeconfig)

    def read(self, path: str) -> dict[str, Any] | None:
        """What the API server has at a path, asked as the administrator; None where nothing is.

        Quicker than kubectl, for those who ask often.

        Raises:
            urllib.error.URLError: it does not answer, or with an error other than 404.
        """
        try:
            with self._open(f"{self.url}/{path}", self.ca_file) as response:
                found: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    return None
            raise
        return found

    def service_account_kubeconfig(
        self, namespace: str, name: str, *, duration: str = "12h"
    ) -> Path:
        """Write a kubeconfig with a fresh token of an existing ServiceAccount.

        Raises:
            CommandFailed: there is no such ServiceAccount.
        """
        token = self.kubectl(
            "create", "token", name, f"--namespace={namespace}", f"--duration={duration}"
        ).stdout.strip()
        path = self.folder / f"{namespace}.{name}.{secrets.token_hex(4)}.kubeconfig"
        self._configuration.write_kubeconfig(path, f"{namespace}:{name}", token, namespace)
        return path

    def environment(self, kubeconfig: Path | None = None) -> dict[str, str]:
        """This process's environment with KUBECONFIG and Helm's folders set to this server's."""
        helm = {
            f"HELM_{name}_HOME": str(self.folder / "helm" / name.lower())
            for name in ("CACHE", "CONFIG", "DATA")
        }
        return {**os.environ, **helm, "KUBECONFIG": str(kubeconfig or self.kubeconfig)}

    # ---- readiness and commands

    def _start_all(self) -> None:
        self.start_etcd()
        self.start_apiserver()
        self.controller_manager.start()
        self._wait_for(self.controller_manager, self._manager_ready)
        # Pods and tokens in `default` need it, and its presence shows that the controllers work.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait_for(
            self.controller_manager, lambda: self._answers(self.url + account, self.ca_file)
        )

    def _etcd_ready(self) -> bool:
        return self._answers(f"{self._configuration.etcd_url}/readyz", None)

    def _apiserver_ready(self) -> bool:
        return self._answers(f"{self.url}/readyz", self.ca_file)

    def _manager_ready(self) -> bool:
        url = f"{self._configuration.manager_url}/healthz"
        return self._answers(url, self._configuration.manager_ca_file)

    def _answers(self, url: str, ca_file: Path | None) -> bool:
        try:
            with self._open(url, ca_file) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False  # also while the server has not written its certificate yet

    def _open(self, url: str, ca_file: Path | None) -> Any:
        context = None if ca_file is None else ssl.create_default_context(cafile=ca_file)
        request = urllib.request.Request(url)
        request.add_header("Authorization", f"Bearer {self.admin_token}")
        # No proxy of the environment may come between us and 127.0.0.1.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        return opener.open(request, timeout=5)

    def _wait_for(self, program: Program, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not ready():
            if not program.running:
                raise program.failure("did not start")
            if time.monotonic() > deadline:
                raise program.failure(f"was not ready within {_READY_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)

    def _run(
        self, command: list[str], stdin: str | None, check: bool, kubeconfig: Path | None
    ) -> subprocess.CompletedProcess[str]:
        completed = subprocess.run(
            command,
            input=stdin,
            env=self.environment(kubeconfig),
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
        if check and completed.returncode != 0:
            raise CommandFailed(completed)
        return completed


def find_helm() -> Path:
    """The Helm of this Python environment (package helm-binary), else the one on PATH.

    Raises:
        BinaryUnavailable: there is none.
    """
    beside = Path(sysconfig.get_path("scripts")) / "helm"
    if beside.is_file():
        return beside
    if (on_path := shutil.which("helm")) is not None:
        return Path(on_path)
    raise BinaryUnavailable(
        "Helm is missing. Install the project's tools (dependency group `tools`) into this Python "
        "environment, or put helm on PATH."
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="control_plane.py", description="A local Kubernetes control plane."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ensure", help="fetch or build the programs and print their paths as JSON")
    run = commands.add_parser("run", help="start, print KUBECONFIG, run until Ctrl-C")
    run.add_argument("--emulated-version", metavar="MINOR", help="behave as an older one: 1.34")
    arguments = parser.parse_args()
    try:
        binaries = ensure()
        if arguments.command == "ensure":
            paths = {name: str(getattr(binaries, name)) for name in Binaries.__slots__}
            print(json.dumps(paths, indent=2))
        else:
            _run_until_interrupted(binaries, arguments.emulated_version)
    except (BinaryUnavailable, ChecksumMismatch, StartFailed) as fault:
        sys.exit(f"[control-plane] {fault}")


def _run_until_interrupted(binaries: Binaries, emulated_version: str | None) -> None:
    # A terminal that closes and `kill` must stop the programs in order too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    with contextlib.suppress(KeyboardInterrupt):
        started = time.monotonic()
        with ControlPlane.start(emulated_version, binaries=binaries) as control_plane:
            say(f"Kubernetes {KUBERNETES_VERSION} ready in {time.monotonic() - started:.1f} s")
            say(f"logs in {control_plane.folder}; Ctrl-C stops it")
            print(f"export KUBECONFIG={shlex.quote(str(control_plane.kubeconfig))}")
            print(f"export PATH={shlex.quote(str(binaries.kubectl.parent))}:$PATH", flush=True)
            signal.pause()


if __name__ == "__main__":
    main()

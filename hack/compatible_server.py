"""A batch server that somebody else wrote: AIBrix, installed from the package index and started.

Owns the pin, the virtual environment in the user's cache and the process. Nothing of it enters the
project's own environment: AIBrix pins old versions of what we use in new ones. It knows nothing of
the tests that talk to the server, nor of the model behind it.

    python hack/compatible_server.py ensure                       # the environment's interpreter
    python hack/compatible_server.py run --model-url http://127.0.0.1:8000
    python hack/compatible_server.py lock                         # after a change of aibrix.in
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from processes import Port, Program

NAME = "aibrix"
VERSION = "0.8.0"

_ROOT = Path(__file__).resolve().parent.parent
_PINS = _ROOT / "tests" / "compatible"
LOCK = _PINS / "aibrix.lock"
_SERVICE = _PINS / "aibrix_service.py"
_INSTALL_TIMEOUT_S = 600.0
_START_TIMEOUT_S = 90.0  # importing it takes 5 s of an idle core, more of a busy one
_LOOK_TIMEOUT_S = 5.0


class ServerUnavailable(RuntimeError):
    """The server could not be installed; the message holds the installer's last words."""


def say(message: str) -> None:
    """Tell the person at the terminal; standard output stays free for what scripts read."""
    print(f"[compatible-server] {message}", file=sys.stderr, flush=True)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that keeps the pinned version's virtual environment."""
    root = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    project = Path(root) / "batch-inference-operator"
    return project / "compatible-server" / f"{NAME}-{VERSION}"


def ensure() -> Path:
    """Install what is missing; the interpreter of the server's virtual environment.

    Raises:
        ServerUnavailable: the installer is missing or failed.
    """
    folder = cache_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    python = folder / "bin" / "python"
    with _alone(folder.with_name(f"{folder.name}.lock")):
        ready = folder / ".ready"
        wanted = _fingerprint()
        if python.exists() and ready.is_file() and ready.read_text() == wanted:
            return python
        began = time.monotonic()
        say(f"installing {NAME} {VERSION} into {folder}")
        _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
        target = ("--python", str(python))
        _uv("pip", "sync", "--quiet", *target, "--require-hashes", str(LOCK))
        ready.write_text(wanted)
        say(f"installed in {time.monotonic() - began:.0f} s")
    return python


def compile_lock() -> None:
    """Compile the hashed lock file from `aibrix.in`, for every supported Python."""
    _uv(
        *("pip", "compile", "--quiet", "--universal", "--python-version", "3.11"),
        *("--generate-hashes", "--no-header", "--no-emit-index-url"),
        *(str(LOCK.with_suffix(".in")), "--output-file", str(LOCK)),
    )


class CompatibleServer:
    """The running server. Make it with `start`; it keeps its port and its data over a restart.

    Attributes:
        base_url: what a provider's `spec.openAI.baseURL` is set to.
        program: its process; kill and start it at will.
    """

    def __init__(self, python: Path, folder: Path, model_url: str) -> None:
        self._port = Port()
        self.base_url = f"http://127.0.0.1:{self._port}/v1"
        command = [
            *(str(python), str(_SERVICE), "--port", str(self._port)),
            *("--model-url", model_url, "--folder", str(folder)),
        ]
        self.program = Program(NAME, command, folder)

    @classmethod
    def start(cls, folder: Path, model_url: str) -> Self:
        """Install it if need be and start it; it answers when this returns.

        Args:
            folder: an existing folder for its files, batches and logs.
            model_url: origin of an OpenAI-compatible model server, without `/v1`.

        Raises:
            ServerUnavailable: it could not be installed.
            StartFailed: it ended or does not answer.
        """
        server = cls(ensure(), folder, model_url)
        try:
            server.program.start()
            server.wait_until_it_answers()
        except BaseException:
            server.stop()
            raise
        return server

    def wait_until_it_answers(self) -> None:
        """Wait for the listing that the operator's own check asks for.

        Raises:
            StartFailed: it ended or does not answer.
        """
        until = time.monotonic() + _START_TIMEOUT_S
        while not self._answers():
            if not self.program.running:
                raise self.program.failure("did not start")
            if time.monotonic() > until:
                raise self.program.failure(f"does not answer after {_START_TIMEOUT_S:g} s")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop it and give the port back."""
        self.program.stop()
        self._port.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            url = f"{self.base_url}/batches?limit=1"
            with urllib.request.urlopen(url, timeout=_LOOK_TIMEOUT_S) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            return False


# ---------------------------------------------------------------- installing


def _fingerprint() -> str:
    """What the environment was made from: another lock or interpreter makes it anew."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return f"{version} {hashlib.sha256(LOCK.read_bytes()).hexdigest()}\n"


def _uv(*arguments: str) -> None:
    found = _ROOT / ".tools" / "bin" / "uv"
    uv = str(found) if found.exists() else shutil.which("uv")
    if uv is None:
        raise ServerUnavailable("uv, the package installer, is missing: run `make tools`.")
    try:
        done = subprocess.run(
            [uv, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise ServerUnavailable(
            f"`uv {arguments[0]}` was not done after {_INSTALL_TIMEOUT_S:g} s."
        ) from error
    if done.returncode:
        raise ServerUnavailable(
            f"{NAME} {VERSION} could not be installed (`uv {arguments[0]}` ended with "
            f"{done.returncode}):\n{done.stderr[-2000:]}"
        )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two test runs at once must not fill one environment."""
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="An independent OpenAI-compatible batch server.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ensure", help="install it; prints the interpreter")
    commands.add_parser("lock", help="compile the lock file")
    run = commands.add_parser("run", help="start it and wait for Ctrl-C; prints the base URL")
    run.add_argument("--model-url", required=True, help="origin of the model server, without /v1")
    options = parser.parse_args(argv)
    if options.command == "ensure":
        print(ensure())
    elif options.command == "lock":
        compile_lock()
    else:
        with (
            TemporaryDirectory(prefix="compatible-") as folder,
            CompatibleServer.start(Path(folder), options.model_url) as server,
            contextlib.suppress(KeyboardInterrupt),
        ):
            print(server.base_url, flush=True)
            while server.program.running:
                time.sleep(0.5)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Child processes for the control plane: their ports, their logs, their ends.

Owns starting a program so that it dies with this process, and stopping it by its process id. Knows
nothing of what the programs do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_WRAPPER = Path(__file__).resolve().with_name("die_with_parent.py")
_LOG_TAIL_LINES = 25
# etcd and the API server hold their end back for many seconds while clients watch. What they have
# acknowledged is safe by then: the API server keeps nothing, etcd has written it.
_STOP_TIMEOUT_S = 3.0

# The kernel counts the *thread* that started a child as its parent: a child started from a thread
# of a pool would die with that thread. One thread that lives as long as this process starts all.
_STARTER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="control-plane-starter")


def dying_with_us() -> tuple[str, ...]:
    """The beginning of a command line whose program the kernel kills when this process is gone.

    A program that changes its credentials, as one does that enters a user namespace, loses that;
    so what it starts has to begin with this again.
    """
    return (sys.executable, "-I", "-S", str(_WRAPPER), str(os.getpid()))


class StartFailed(RuntimeError):
    """A program ended or did not become ready; the message holds the end of its log."""


class Port:
    """A free TCP port of 127.0.0.1 that stays ours while the program behind it is restarted.

    On Linux the reserving socket is kept: it does not listen, so the program can bind beside it,
    and no other process or outgoing connection is given the port.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self._socket.close()

    def __str__(self) -> str:
        return str(self.number)

    def release(self) -> None:
        """Give the port back."""
        self._socket.close()


class Program:
    """One program that can be started, killed and started again with the same arguments."""

    def __init__(self, name: str, command: list[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: the program is not started.
        """
        if self._process is None:
            raise RuntimeError(f"{self.name} is not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; its output is appended to the log."""
        if self.running:
            raise RuntimeError(f"{self.name} is running already, process {self.pid}")
        self._process = _STARTER.submit(self._spawn).result()

    def stop(self) -> None:
        """Ask the process to end, kill it when it does not, and wait until it has ended."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process without warning (SIGKILL) and wait until it has ended."""
        self._end(signal.SIGKILL)

    def failure(self, what: str) -> StartFailed:
        """An error that says what went wrong, with the end of the log."""
        state = "is running" if self.running else f"ended with {self._returncode()}"
        return StartFailed(f"{self.name} {what} ({state}). The end of its log:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last lines of the log."""
        if not self.log.is_file():
            return "(no log)"
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*dying_with_us(), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C at the terminal is for us: we stop the programs in the right order.
                start_new_session=True,
            )

    def _end(self, with_signal: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(with_signal)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _returncode(self) -> int | None:
        return None if self._process is None else self._process.returncode

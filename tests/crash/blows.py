"""How each thing is done to the processes, the network and the disk of a stack.

A blow says whether it happened: what is not there can't be killed. Outages last for some blows,
so that things are killed during them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from crash.books import Tally
from crash.jobs import PATIENCE_S
from processes import dying_with_us
from stack import Operator, Stack, wait_for
from team import Team

_SPOOL_BYTES = 8 << 20
_CREATES = {"openai": "batches.create", "bedrock": "CreateModelInvocationJob"}
_ANSWER_S = 0.2
"""How long the answer to a create call is held back: kills often fall in between."""

_DECK = {
    "operator with its workers": 5,
    "operator": 4,
    "worker": 6,
    "API server": 2,
    "etcd": 1,
    "operator stopped for a while": 1,
    "provider that fails": 1,
    "provider whose answers are lost": 1,
    "S3 that fails": 1,
    "full disk": 1,
}
"""How often each kind comes in one round of all of them, in an order by chance."""

_BESIDE = {
    "operator stopped for a while",
    "provider that fails",
    "provider whose answers are lost",
    "S3 that fails",
    "full disk",
}


class Blows:
    """Strikes one stack with one operator."""

    def __init__(self, stack: Stack, team: Team, luck: random.Random, tally: Tally) -> None:
        """Start the operator, with a small disk of its own where this machine allows that."""
        self._stack = stack
        self._team = team
        self._luck = luck
        self._tally = tally
        self._pause = threading.Event()
        self._deck: list[str] = []
        self._kinds = dict(_DECK)
        self._outages: dict[str, int] = {}
        self._orphans: set[int] = set()
        spool = stack.folder / "spool-operator"
        spool.mkdir()
        self._spool = spool
        wrapper: tuple[str, ...] = ()
        if may_mount():
            mount = f"mount -t tmpfs -o size={_SPOOL_BYTES} tmpfs '{spool}' && exec \"$@\""
            wrapper = (*_unshare(), "/bin/sh", "-c", mount, "sh", *dying_with_us())
        else:
            del self._kinds["full disk"]
            tally.without.append("full disk: users may mount nothing on this system")
        self.operator: Operator = stack.start_operator(wrapper=wrapper)
        self._set_faults()

    @property
    def calm(self) -> bool:
        """Whether no outage lasts."""
        return not self._outages

    def strike(self) -> str:
        """Do the next thing; its kind, "" when it could not be done."""
        if not self._deck:
            self._deck = [kind for kind, n in self._kinds.items() for _ in range(n)]
            self._luck.shuffle(self._deck)
        kind = self._deck.pop()
        if not self._do(kind):
            return ""
        (self._tally.beside if kind in _BESIDE else self._tally.kills)[kind] += 1
        for outage in list(self._outages):
            self._outages[outage] -= 1
            if self._outages[outage] < 0:
                self._end(outage)
        return kind

    def at_random(self, least_s: float, most_s: float) -> None:
        """Let time pass: the moment of the next blow is to be any."""
        self._pause.wait(self._luck.uniform(least_s, most_s))

    def see_to_the_operator(self, *, healthy: bool) -> None:
        """Start it where it has ended, and perhaps see that it gets healthy."""
        if not self.operator.running:
            self.operator.start()
        if healthy:
            wait_for("a healthy operator", self._is_healthy, PATIENCE_S)

    def _is_healthy(self) -> bool:
        """Look, and do what the kubelet does where it has ended."""
        if not self.operator.running:
            self.operator.start()
        return self.operator.is_healthy()

    def heal(self) -> None:
        """End all outages, and see that the operator runs and what it left does not."""
        for outage in list(self._outages):
            self._end(outage)
        self._team.control.clear_faults()
        self.see_to_the_operator(healthy=True)
        wait_for("workers without their operator to end", lambda: not self._alive(self._orphans))

    # ---------------------------------------------------------------- processes

    def _do(self, kind: str) -> bool:
        plane = self._stack.control_plane
        do: dict[str, Callable[[], bool]] = {
            "operator with its workers": lambda: self._kill_operator(workers=True),
            "operator": lambda: self._kill_operator(workers=False),
            "worker": self._kill_worker,
            "API server": lambda: self._restart(plane.kill_apiserver, plane.start_apiserver),
            "etcd": lambda: self._restart(plane.kill_etcd, plane.start_etcd),
            "operator stopped for a while": self._stop_for_a_while,
            "full disk": self._fill,
        }
        return do.get(kind, lambda: self._begin(kind))()

    def _kill_operator(self, *, workers: bool) -> bool:
        if not self.operator.running:
            return False
        if workers:
            self.operator.kill_all()
        else:
            self._orphans |= set(self.operator.children())
            self.operator.kill()
        return True

    def _kill_worker(self) -> bool:
        workers = self.operator.children() if self.operator.running else []
        if not workers:
            return False
        with suppress(ProcessLookupError):
            os.kill(self._luck.choice(workers), signal.SIGKILL)
        return True

    def _stop_for_a_while(self) -> bool:
        if not self.operator.running:
            return False
        os.kill(self.operator.pid, signal.SIGSTOP)
        self.at_random(1.0, 8.0)
        os.kill(self.operator.pid, signal.SIGCONT)
        return True

    def _restart(self, kill: Callable[[], None], start: Callable[[], None]) -> bool:
        kill()
        self.at_random(0.0, 2.0)
        start()
        self._stack.control_plane.wait_until_ready()
        return True

    @staticmethod
    def _alive(pids: set[int]) -> set[int]:
        """Those of them that are worker processes still."""
        found = set()
        for pid in pids:
            with suppress(OSError):
                if b"batchinference.app.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.add(pid)
        return found

    # ---------------------------------------------------------------- outages

    def _begin(self, outage: str) -> bool:
        if outage.startswith("provider"):
            outage = f"{outage}: {self._luck.choice(list(_CREATES))}"
        self._outages[outage] = self._luck.randint(1, 3)
        self._set_faults()
        return True

    def _end(self, outage: str) -> None:
        del self._outages[outage]
        if outage == "full disk":
            with suppress(OSError):  # a new operator has a new disk
                self._ballast().unlink()
        self._set_faults()

    def _set_faults(self) -> None:
        """Put the faults of all outages in force; the oldest rule that hits wins."""
        control = self._team.control
        control.clear_faults()
        for outage in self._outages:
            kind, _, provider = outage.partition(": ")
            if kind == "provider that fails":
                control.fault(provider, "error", status=503, times=None)
            elif kind == "provider whose answers are lost":
                control.fault(provider, "lose_response", _CREATES[provider], times=None)
            elif kind == "S3 that fails":
                control.fault("s3", "error", status=503, times=None)
        for provider, create in _CREATES.items():
            control.fault(provider, "delay", create, seconds=_ANSWER_S, when="after", times=None)

    def _fill(self) -> bool:
        """Fill the disk that the workers spool to."""
        if not self.operator.running:
            return False
        try:
            with self._ballast().open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(1 << 16)):
                    pass
        except OSError:
            return False  # it was just starting, or ended
        self._outages["full disk"] = self._luck.randint(1, 3)
        return True

    def _ballast(self) -> Path:
        return Path(f"/proc/{self.operator.pid}/root{self._spool}/ballast")


def may_mount() -> bool:
    """Whether a user may mount a small file system of their own here."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    tried = [*_unshare(), "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(tried, capture_output=True, check=False, timeout=10).returncode == 0


def _unshare() -> tuple[str, ...]:
    """The beginning of a command line that enters a user and a mount namespace of its own."""
    return (shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount")

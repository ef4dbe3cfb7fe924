"""Where the programs of the control plane come from: kept, downloaded or built.

Owns the pinned versions, the order of look-up, the cache and its lock. Knows nothing of how the
programs are started. Every program is looked up by itself, in this order:

1. ``KUBEBUILDER_ASSETS``, the folder that Go projects and setup-envtest use as well;
2. the cache, ``$XDG_CACHE_HOME/batch-inference-operator/control-plane/<version>/``;
3. the official binaries (``downloads.py``), checked against their published checksums;
4. a build from the Go module registry with the pins of ``hack/kubernetes`` and ``hack/etcd``.

What was taken is always said, on standard error.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import downloads

KUBERNETES_VERSION = "1.37.2"
ETCD_VERSION = "3.6.16"

_HERE = Path(__file__).resolve().parent
_PROGRESS_EVERY_S = 10.0
_LOCK_POLL_S = 0.2
_KUBERNETES_PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kubectl")
PROGRAMS = ("etcd", *_KUBERNETES_PROGRAMS)

_MAJOR, _MINOR, _ = KUBERNETES_VERSION.split(".")
# Without these the server calls itself v0.0.0-master, and kubectl, Helm and a chart's kubeVersion
# draw the wrong conclusions.
_VERSION_FLAGS = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in (
        ("gitVersion", f"v{KUBERNETES_VERSION}"),
        ("gitMajor", _MAJOR),
        ("gitMinor", _MINOR),
        ("gitTreeState", "clean"),
    )
)


class BinaryUnavailable(RuntimeError):
    """A program could be neither found, downloaded nor built; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Binaries:
    """The programs of one control plane, all of the same Kubernetes minor version."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kubectl: Path


def say(message: str) -> None:
    """Tell the person at the terminal; standard output stays free for what scripts read."""
    print(f"[control-plane] {message}", file=sys.stderr, flush=True)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that keeps downloaded and built programs of the pinned version."""
    root = environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "batch-inference-operator" / "control-plane" / KUBERNETES_VERSION


def ensure(environ: Mapping[str, str] = os.environ) -> Binaries:
    """Find every program, downloading or building what is missing.

    Raises:
        BinaryUnavailable: a program is missing and there is no way to get it from here.
    """
    found = _from_assets(environ)
    cache = cache_folder(environ)
    found |= _from_cache(cache, [name for name in PROGRAMS if name not in found])
    if missing := [name for name in PROGRAMS if name not in found]:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / ".lock"):
            for abandoned in cache.glob(".*-*"):  # by a process that was killed
                shutil.rmtree(abandoned)
            # Another process may have brought them while this one waited for the lock.
            found |= _from_cache(cache, missing)
            if missing := [name for name in PROGRAMS if name not in found]:
                found |= _download(cache, missing)
            for name in PROGRAMS:
                if name not in found:
                    found[name] = _build(cache, name, environ)
    return Binaries(
        etcd=found["etcd"],
        kube_apiserver=found["kube-apiserver"],
        kube_controller_manager=found["kube-controller-manager"],
        kubectl=found["kubectl"],
    )


def _from_assets(environ: Mapping[str, str]) -> dict[str, Path]:
    folder = environ.get("KUBEBUILDER_ASSETS")
    if not folder:
        return {}
    found = {name: Path(folder) / name for name in PROGRAMS if (Path(folder) / name).is_file()}
    missing = [name for name in PROGRAMS if name not in found]
    minors = {name: _minor(path) for name, path in found.items() if name != "etcd"}
    if "kube-apiserver" not in found:
        raise BinaryUnavailable(
            f"KUBEBUILDER_ASSETS={folder} holds no kube-apiserver. Point it at a folder with "
            f"{', '.join(PROGRAMS)}, or unset it to use the project's own."
        )
    if len(set(minors.values())) > 1:
        raise BinaryUnavailable(
            f"KUBEBUILDER_ASSETS={folder} mixes Kubernetes minor versions: "
            + ", ".join(f"{name} {minor}" for name, minor in sorted(minors.items()))
        )
    needs_kubernetes = [name for name in missing if name in _KUBERNETES_PROGRAMS]
    if needs_kubernetes and minors["kube-apiserver"] != f"{_MAJOR}.{_MINOR}":
        raise BinaryUnavailable(
            f"KUBEBUILDER_ASSETS={folder} holds Kubernetes {minors['kube-apiserver']} but no "
            f"{', '.join(needs_kubernetes)}, and the project's own are of {_MAJOR}.{_MINOR}, which "
            "must not be mixed. Put the missing programs of the same version there, or unset it."
        )
    say(f"{', '.join(found)}: from KUBEBUILDER_ASSETS={folder}")
    return found


def _from_cache(cache: Path, names: list[str]) -> dict[str, Path]:
    found = {name: cache / name for name in names if (cache / name).is_file()}
    if found:
        say(f"{', '.join(found)}: from the cache {cache}")
    return found


def _download(cache: Path, names: list[str]) -> dict[str, Path]:
    version = downloads.ARCHIVE_VERSION
    say(f"{', '.join(names)}: looking for the official binaries of Kubernetes {version}")
    try:
        found = downloads.fetch(names, cache, say)
    except downloads.Unreachable as fault:
        say(f"official binaries not available ({fault})")
        return _from_cache(cache, names)  # some may have come before the fault
    if found:
        say(f"{', '.join(found)}: official binaries, checksums verified, kept in {cache}")
    return found


def _build(cache: Path, name: str, environ: Mapping[str, str]) -> Path:
    go = shutil.which("go", path=environ.get("PATH"))
    if go is None:
        raise BinaryUnavailable(
            f"{name} is neither in KUBEBUILDER_ASSETS nor in {cache}, the official binaries could "
            "not be downloaded, and there is no Go to build it. Do one of these: install Go 1.26 "
            "or newer (https://go.dev/dl) and run this again; go on-line and run this again; or "
            f"copy {', '.join(PROGRAMS)} of Kubernetes {_MAJOR}.{_MINOR} (etcd {ETCD_VERSION}) "
            "into a folder and set KUBEBUILDER_ASSETS to it."
        )
    module, package = (
        ("etcd", "go.etcd.io/etcd/server/v3")
        if name == "etcd"
        else ("kubernetes", f"k8s.io/kubernetes/cmd/{name}")
    )
    flags = "-s -w" if name == "etcd" else f"-s -w {_VERSION_FLAGS}"
    say(f"{name}: building from the Go module registry (the first build of all takes ~10 minutes)")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as scratch:
        target = Path(scratch) / name
        # -v names each package as it is compiled: that is the progress.
        command = [go, "build", "-v", "-mod=readonly", "-buildvcs=false", "-trimpath"]
        command += ["-ldflags", flags, "-o", str(target), package]
        environ = {**environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        tail = _run_showing_progress(name, command, _HERE / module, environ)
        if tail is not None:
            raise BinaryUnavailable(
                f"building {name} failed. Go said:\n{tail}\nThe build needs Go 1.26 or newer and a "
                "reachable module proxy (GOPROXY), 3 GB of memory and 7 GB of disk. Otherwise set "
                f"KUBEBUILDER_ASSETS to a folder with {', '.join(PROGRAMS)}."
            )
        kept = target.replace(cache / name)
    say(f"{name}: built in {time.monotonic() - started:.0f} s, kept in {cache}")
    return kept


def _run_showing_progress(
    name: str, command: list[str], folder: Path, environ: Mapping[str, str]
) -> str | None:
    """Run a build; return None when it succeeded, else the end of what it said."""
    lines: list[str] = []
    started = time.monotonic()
    with subprocess.Popen(
        command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=_collect, args=(process.stderr, lines), daemon=True)
        reader.start()
        try:
            while True:
                try:
                    code = process.wait(timeout=_PROGRESS_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - started
                    say(f"{name}: {len(lines)} packages compiled, {elapsed:.0f} s")
        except BaseException:
            process.terminate()
            raise
        reader.join()
    return None if code == 0 else "".join(lines[-30:])


def _collect(stream: IO[str], lines: list[str]) -> None:
    lines.extend(stream)


def _minor(program: Path) -> str:
    arguments = ["version", "--client"] if program.name == "kubectl" else ["--version"]
    said = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    match = re.search(r"v(\d+\.\d+)\.", said.stdout)
    if match is None:
        raise BinaryUnavailable(
            f"{program} does not tell its version: {said.stderr or said.stdout}"
        )
    return match.group(1)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that the kernel releases when this process ends, however it ends."""
    with path.open("w") as lock:
        started = speaks = time.monotonic()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= speaks:
                    elapsed = speaks - started
                    say(f"another process is bringing the programs; waiting, {elapsed:.0f} s")
                    speaks += _PROGRESS_EVERY_S
                time.sleep(_LOCK_POLL_S)
        yield

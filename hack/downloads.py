"""The official binaries: the envtest archive, and what it does not carry from the release bucket.

Owns where they are published and the rule that nothing is kept whose checksum does not match.
Knows nothing of the cache's layout or of other ways to get a program. The checksums come over TLS
from the publisher's index, so a damaged or swapped archive is refused.
"""

from __future__ import annotations

import hashlib
import http.client
import platform
import shutil
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml

# The newest archive of the pinned minor version; envtest does not follow every patch release.
ARCHIVE_VERSION = "1.37.0"
INDEX_URL = (
    "https://raw.githubusercontent.com/kubernetes-sigs/controller-tools/v0.22.0/"
    "envtest-releases.yaml"
)
RELEASES_URL = "https://dl.k8s.io/release"

_IN_ARCHIVE = ("etcd", "kube-apiserver", "kubectl")
_REACH_TIMEOUT_S = 6.0  # an off-line machine must fall through to the build without delay
_STALL_TIMEOUT_S = 30.0
_PROGRESS_EVERY_S = 5.0
_CHUNK_BYTES = 1 << 20

_FAULTS = (urllib.error.URLError, http.client.HTTPException, OSError)


class Unreachable(Exception):
    """The official binaries cannot be had from here; building is the next way."""


class ChecksumMismatch(RuntimeError):
    """What came is not what was published; nothing of it was kept."""


def fetch(
    names: list[str],
    folder: Path,
    say: Callable[[str], None],
    *,
    index_url: str = INDEX_URL,
    releases_url: str = RELEASES_URL,
) -> dict[str, Path]:
    """Download programs into a folder; what is not published for this machine is left out.

    Raises:
        Unreachable: no connection, or nothing is published for this version.
        ChecksumMismatch: a download differs from its published checksum.
    """
    system, machine = _platform()
    archive = f"envtest-v{ARCHIVE_VERSION}-{system}-{machine}.tar.gz"
    try:
        index = yaml.safe_load(_read_within(index_url, _REACH_TIMEOUT_S))
        entry = index["releases"][f"v{ARCHIVE_VERSION}"][archive]
        url, checksum = str(entry["selfLink"]), str(entry["hash"])
    except (KeyError, TypeError, yaml.YAMLError) as fault:
        raise Unreachable(f"{index_url} does not list {archive}") from fault
    found: dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
        try:
            if from_archive := [name for name in names if name in _IN_ARCHIVE]:
                packed = Path(scratch) / archive
                _download(url, packed, checksum, say)
                for program in _unpack(packed, from_archive, Path(scratch)):
                    found[program.name] = _keep(program, folder)
            # Server programs are published for Linux alone.
            for name in [name for name in names if name not in _IN_ARCHIVE and system == "linux"]:
                url = f"{releases_url}/v{ARCHIVE_VERSION}/bin/{system}/{machine}/{name}"
                published = _read_within(f"{url}.sha512", _STALL_TIMEOUT_S).decode().split()[0]
                _download(url, Path(scratch) / name, published, say)
                found[name] = _keep(Path(scratch) / name, folder)
        except _FAULTS as fault:
            raise Unreachable(f"{url}: {fault}") from fault
    return found


def _platform() -> tuple[str, str]:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return sys.platform, machine


def _read_within(url: str, seconds: float) -> bytes:
    """Read a small page; name look-up and connecting count, which socket timeouts do not cover."""
    answer: list[bytes | Exception] = []

    def read() -> None:
        try:
            with urllib.request.urlopen(url, timeout=seconds) as response:
                answer.append(response.read())
        except _FAULTS as fault:
            answer.append(fault)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(seconds)
    if not answer:
        raise Unreachable(f"{url}: no answer within {seconds:.0f} s")
    if isinstance(answer[0], Exception):
        raise Unreachable(f"{url}: {answer[0]}") from answer[0]
    return answer[0]


def _download(url: str, target: Path, sha512: str, say: Callable[[str], None]) -> None:
    digest, received, started = hashlib.sha512(), 0, time.monotonic()
    spoke = started
    with (
        urllib.request.urlopen(url, timeout=_STALL_TIMEOUT_S) as response,
        target.open("wb") as file,
    ):
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if time.monotonic() - spoke >= _PROGRESS_EVERY_S:
                spoke = time.monotonic()
                say(f"{target.name}: {received >> 20} MiB, {spoke - started:.0f} s")
    if digest.hexdigest() != sha512:
        raise ChecksumMismatch(
            f"{url}: SHA-512 is {digest.hexdigest()}, published is {sha512}. Nothing was kept. "
            "A proxy in between may have changed it; try again or set KUBEBUILDER_ASSETS."
        )


def _unpack(archive: Path, names: list[str], folder: Path) -> list[Path]:
    programs: list[Path] = []
    with tarfile.open(archive) as packed:
        for member in packed:
            name = Path(member.name).name
            content = packed.extractfile(member) if name in names else None
            if content is not None:
                with (folder / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
                programs.append(folder / name)
    return programs


def _keep(program: Path, folder: Path) -> Path:
    program.chmod(0o755)
    return program.replace(folder / program.name)

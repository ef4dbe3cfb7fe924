"""Where the control plane's programs come from, with a stand-in for Go and for the publisher."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

import binaries
import downloads

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "#!/bin/sh\necho Kubernetes v{version}.0\necho {name}\n"
# A proxy that refuses connections stands for being off-line.
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}
GO = """#!/bin/sh
# Writes the program that `go build -o` was asked for, and that it was asked.
echo "$@" >> "$GO_LOG"
while [ "$1" != "-o" ]; do shift; done
echo package >&2
printf '#!/bin/sh\\n' > "$2"
chmod +x "$2"
exit "${GO_EXIT:-0}"
"""


def place(folder: Path, *names: str, version: str = "1.37") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        program = folder / name
        program.write_text(SCRIPT.format(name=name, version=version))
        program.chmod(0o755)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An off-line machine with an empty cache, and without Go."""
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": "/nowhere", **OFFLINE}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)


def with_go(environment: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(GO)
    go.chmod(0o755)
    path = f"{go.parent}:/usr/bin:/bin"
    return {**environment, "PATH": path, "GO_LOG": str(tmp_path / "go.log")}


def ensure(environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "hack" / "control_plane.py"), "ensure"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_complete_assets_folder_is_taken_before_everything_else(
    environment, tmp_path, capsys
) -> None:
    assets = place(tmp_path / "assets", *binaries.PROGRAMS, version="1.36")
    place(binaries.cache_folder(environment), *binaries.PROGRAMS)
    found = binaries.ensure({**environment, "KUBEBUILDER_ASSETS": str(assets)})
    assert found.kube_controller_manager == assets / "kube-controller-manager"
    assert found.kubectl == assets / "kubectl"
    assert f"KUBEBUILDER_ASSETS={assets}" in capsys.readouterr().err


def test_what_an_assets_folder_of_the_same_minor_lacks_comes_from_the_cache(
    environment, tmp_path, capsys
) -> None:
    assets = place(tmp_path / "assets", "etcd", "kube-apiserver", "kubectl")
    cache = place(binaries.cache_folder(environment), *binaries.PROGRAMS)
    found = binaries.ensure({**environment, "KUBEBUILDER_ASSETS": str(assets)})
    assert found.kube_apiserver == assets / "kube-apiserver"
    assert found.kube_controller_manager == cache / "kube-controller-manager"
    assert f"kube-controller-manager: from the cache {cache}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        pytest.param({}, "holds no kube-apiserver", id="an empty folder"),
        pytest.param(
            {"kube-apiserver": "1.36", "etcd": "3.6", "kubectl": "1.36"},
            "holds Kubernetes 1.36 but no kube-controller-manager",
            id="our controller manager must not meet another minor's server",
        ),
        pytest.param(
            {"kube-apiserver": "1.37", "kubectl": "1.33"},
            r"mixes Kubernetes minor versions: kube-apiserver 1\.37, kubectl 1\.33",
            id="programs that do not belong together",
        ),
    ],
)
def test_an_assets_folder_that_cannot_work_is_refused(
    environment, tmp_path, programs, said
) -> None:
    assets = place(tmp_path / "assets")
    for name, version in programs.items():
        place(assets, name, version=version)
    with pytest.raises(binaries.BinaryUnavailable, match=said):
        binaries.ensure({**environment, "KUBEBUILDER_ASSETS": str(assets)})


@pytest.mark.usefixtures("offline")
def test_without_network_and_go_the_error_says_what_to_do(environment, capsys) -> None:
    with pytest.raises(binaries.BinaryUnavailable) as caught:
        binaries.ensure(environment)
    for way_out in ("install Go 1.26", "go on-line", "set KUBEBUILDER_ASSETS"):
        assert way_out in str(caught.value)
    assert "official binaries not available" in capsys.readouterr().err


def test_a_build_is_kept_and_used_again(environment, tmp_path) -> None:
    environment = with_go(environment, tmp_path)
    for _ in range(2):
        with ensure(environment) as process:
            printed, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
    paths = json.loads(printed)
    assert paths["etcd"] == str(binaries.cache_folder(environment) / "etcd")
    assert "etcd, kube-apiserver, kube-controller-manager, kubectl: from the cache" in said
    built = (tmp_path / "go.log").read_text().splitlines()
    assert len(built) == len(binaries.PROGRAMS)
    assert all("-mod=readonly" in line for line in built)
    of_server = next(line for line in built if line.endswith("cmd/kube-apiserver"))
    assert "version.gitVersion=v1.37.2" in of_server


def test_two_processes_at_once_build_once(environment, tmp_path) -> None:
    environment = with_go(environment, tmp_path)
    with ensure(environment) as one, ensure(environment) as other:
        for process in (one, other):
            _, said = process.communicate(timeout=60)
            assert process.returncode == 0, said
    assert len((tmp_path / "go.log").read_text().splitlines()) == len(binaries.PROGRAMS)


def test_a_failed_build_keeps_nothing_and_shows_what_go_said(environment, tmp_path) -> None:
    environment = with_go(environment, tmp_path)
    with ensure({**environment, "GO_EXIT": "1"}) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "building etcd failed. Go said:\npackage\n" in said
    assert "Traceback" not in said
    left = [path.name for path in binaries.cache_folder(environment).iterdir()]
    assert left == [".lock"]


def test_what_a_killed_build_left_behind_is_cleared(environment, tmp_path) -> None:
    environment = with_go(environment, tmp_path)
    place(binaries.cache_folder(environment) / ".etcd-abandoned", "etcd")
    with ensure(environment) as process:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    kept = {path.name for path in binaries.cache_folder(environment).iterdir()}
    assert kept == {".lock", *binaries.PROGRAMS}


# ---- the official binaries


class Publisher(BaseHTTPRequestHandler):
    pages: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        content = self.pages.get(self.path)
        self.send_response(404 if content is None else 200)
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def publisher() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    system = f"{sys.platform}-{machine}"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("etcd", "kube-apiserver", "kubectl", "README.md"):
            member = tarfile.TarInfo(f"controller-tools/envtest/{name}")
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    name = f"envtest-v{downloads.ARCHIVE_VERSION}-{system}.tar.gz"
    sha512 = hashlib.sha512(packed.getvalue()).hexdigest()
    entry = {name: {"hash": sha512, "selfLink": f"{url}/{name}"}}
    manager = f"/v{downloads.ARCHIVE_VERSION}/bin/{sys.platform}/{machine}/kube-controller-manager"
    Publisher.pages = {
        "/index.yaml": json.dumps({"releases": {f"v{downloads.ARCHIVE_VERSION}": entry}}).encode(),
        f"/{name}": packed.getvalue(),
        manager: b"manager",
        f"{manager}.sha512": hashlib.sha512(b"manager").hexdigest().encode(),
    }
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(url: str, folder: Path, *names: str) -> dict[str, Path]:
    return downloads.fetch(
        list(names), folder, print, index_url=f"{url}/index.yaml", releases_url=url
    )


@pytest.mark.skipif(sys.platform != "linux", reason="server programs are published for Linux alone")
def test_official_binaries_are_unpacked_and_executable(publisher, tmp_path) -> None:
    found = fetch(publisher, tmp_path, *binaries.PROGRAMS)
    assert set(found) == set(binaries.PROGRAMS)
    assert (tmp_path / "kubectl").read_text() == "kubectl"
    assert (tmp_path / "kube-controller-manager").read_text() == "manager"
    assert all(os.access(path, os.X_OK) for path in found.values())
    assert {path.name for path in tmp_path.iterdir()} == set(binaries.PROGRAMS)


def test_a_download_that_was_changed_is_refused_and_not_kept(publisher, tmp_path) -> None:
    for path in Publisher.pages:
        if path.endswith(".tar.gz"):
            Publisher.pages[path] += b"!"
    with pytest.raises(downloads.ChecksumMismatch, match="Nothing was kept"):
        fetch(publisher, tmp_path, "etcd")
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_not_published_falls_through(publisher, tmp_path) -> None:
    Publisher.pages["/index.yaml"] = b"{releases: {}}"
    with pytest.raises(downloads.Unreachable, match="does not list envtest-"):
        fetch(publisher, tmp_path, "etcd")


def test_an_archive_that_is_gone_falls_through(publisher, tmp_path) -> None:
    for path in [path for path in Publisher.pages if path.endswith(".tar.gz")]:
        del Publisher.pages[path]
    with pytest.raises(downloads.Unreachable, match="404"):
        fetch(publisher, tmp_path, "etcd")


@pytest.mark.skipif(sys.platform != "linux", reason="server programs are published for Linux alone")
def test_what_came_before_a_fault_is_not_built_again(
    publisher, environment, tmp_path, monkeypatch
) -> None:
    for path in [path for path in Publisher.pages if path.endswith("kube-controller-manager")]:
        del Publisher.pages[path]
    official = downloads.fetch

    def from_here(names: list[str], folder: Path, say: Callable[[str], None]) -> dict[str, Path]:
        index = f"{publisher}/index.yaml"
        return official(names, folder, say, index_url=index, releases_url=publisher)

    monkeypatch.setattr(downloads, "fetch", from_here)
    environment = with_go(environment, tmp_path)
    found = binaries.ensure(environment)
    assert found.kube_apiserver.read_text() == "kube-apiserver"
    assert len((tmp_path / "go.log").read_text().splitlines()) == 1

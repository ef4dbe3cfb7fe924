"""The pinned server: what is installed is what was meant, and nothing that was swapped."""

from __future__ import annotations

import re

import compatible_server


def test_the_lock_holds_the_pinned_version_and_a_checksum_for_every_package() -> None:
    lock = compatible_server.LOCK.read_text()
    pins = re.split(r"^(?=\S+==)", lock, flags=re.MULTILINE)[1:]
    assert any(
        pin.startswith(f"{compatible_server.NAME}=={compatible_server.VERSION} ") for pin in pins
    )
    assert all("--hash=sha256:" in pin for pin in pins)


def test_another_lock_makes_the_environment_anew(monkeypatch, tmp_path) -> None:
    before = compatible_server._fingerprint()
    changed = tmp_path / "aibrix.lock"
    changed.write_text(compatible_server.LOCK.read_text() + "# another\n")
    monkeypatch.setattr(compatible_server, "LOCK", changed)
    assert compatible_server._fingerprint() != before


def test_the_environment_is_kept_in_the_users_cache() -> None:
    folder = compatible_server.cache_folder({"XDG_CACHE_HOME": "/cache"})
    name = f"{compatible_server.NAME}-{compatible_server.VERSION}"
    assert folder.parts[1:] == ("cache", "batch-inference-operator", "compatible-server", name)

"""The settings file: what it may hold, and how mistakes are told."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from batchinference.app.settings import (
    Configuration,
    HTTPSettings,
    Settings,
    WorkerSettings,
    listen_address,
    load,
    own_namespace,
    parse,
    runtime_name,
    spool_folder,
)
from batchinference.errors import InvalidObject
from batchinference.runtime.settings import RuntimeSettings


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    for text in ("", "{}", "# nothing set\n"):
        (tmp_path / "settings.yaml").write_text(text)
        assert load(tmp_path / "settings.yaml") == Configuration()
    assert load(None) == Configuration()


def test_everything_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("""
namespace: bio
watchNamespaces: [ml, search]
kubeconfig: /etc/kube
installationID: cluster-1
shutdownSeconds: 40
http: {address: 127.0.0.1, port: 9090}
log: {level: debug, format: text}
workers: {count: 4, spool: /spool}
kube: {maxConnections: 32, timeoutSeconds: 10}
runtime: {pollSeconds: 5, settleSeconds: 0.25, submitTimeoutSeconds: 0.1, reconcilers: 4}
""")
    found = load(tmp_path / "settings.yaml")
    settings = found.settings
    assert settings.namespace == "bio"
    assert settings.watch_namespaces == ("ml", "search")
    assert settings.installation_id == "cluster-1"
    assert (settings.http.port, settings.workers.count) == (9090, 4)
    assert settings.kube.max_connections == 32
    assert (found.runtime.poll_s, found.runtime.settle_s) == (5.0, 0.25)
    assert found.runtime.reconcilers == 4
    assert found.runtime.poll_gets == RuntimeSettings().poll_gets


@pytest.mark.parametrize(
    ("document", "path", "said", "reason"),
    [
        ({"worker": {}}, "worker", "not a known field", "a misspelt section"),
        ({"workers": {"cuont": 1}}, "workers.cuont", "not a known field", "a misspelt field"),
        ({"workers": {"count": "2"}}, "workers.count", "whole number", "a string for a number"),
        ({"workers": {"count": 0}}, "workers.count", "between 1 and 64", "no worker at all"),
        ({"workers": {"spool": "here"}}, "workers.spool", "absolute", "it depends on the folder"),
        ({"http": {"port": 70000}}, "http.port", "between 0 and 65535", "no such port"),
        ({"log": {"level": "loud"}}, "log.level", "'warning'", "no such level"),
        ({"watchNamespaces": "ml"}, "watchNamespaces", "a list", "a name instead of a list"),
        ({"watchNamespaces": ["a", 5]}, "watchNamespaces[1]", "a string", "a number for a name"),
        ({"watchNamespaces": ["team-*"]}, "watchNamespaces[0]", "patterns", "a pattern"),
        ({"runtime": {"pollSecs": 5}}, "runtime.pollSecs", "not a known field", "misspelt"),
        ({"runtime": {"pollSeconds": "5s"}}, "runtime.pollSeconds", "seconds", "a unit"),
        ({"runtime": {"pollSeconds": -1}}, "runtime.pollSeconds", "0 or more", "negative"),
        ({"runtime": {"pollSeconds": True}}, "runtime.pollSeconds", "seconds", "true is no number"),
        ({"runtime": {"reconcilers": 1.5}}, "runtime.reconcilers", "whole number", "half a worker"),
        ({"runtime": []}, "runtime", "an object", "a list"),
        (["workers"], "", "an object", "the whole file is a list"),
    ],
)
def test_a_mistake_is_told_with_its_path(document: Any, path: str, said: str, reason: str) -> None:
    with pytest.raises(InvalidObject) as wrong:
        parse(document)
    assert wrong.value.path == path, reason
    assert said in wrong.value.message, reason


def test_a_file_that_is_no_yaml_says_where(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("workers: {count: 2")
    with pytest.raises(InvalidObject, match="line 1"):
        load(tmp_path / "settings.yaml")


def test_every_runtime_setting_has_a_name_of_its_own() -> None:
    names = [runtime_name(f.name) for f in fields(RuntimeSettings)]
    assert len(set(names)) == len(names)
    assert runtime_name("poll_s") == "pollSeconds"
    assert runtime_name("max_staging_passes") == "maxStagingPasses"
    made = parse({"runtime": {**dict.fromkeys(names, 7), "settleSeconds": 8}}).runtime
    assert made.settle_s == 8
    assert all(getattr(made, f.name) in {7, 8} for f in fields(RuntimeSettings))


def test_a_batch_must_be_given_longer_to_appear_than_a_create_call_may_take() -> None:
    with pytest.raises(InvalidObject, match="submitTimeoutSeconds"):
        parse({"runtime": {"settleSeconds": 5, "submitTimeoutSeconds": 5}})


def test_the_namespace_is_the_pods_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POD_NAMESPACE", "of-the-pod")
    assert own_namespace(Settings()) == "of-the-pod"
    assert own_namespace(Settings(namespace="set")) == "set"
    monkeypatch.delenv("POD_NAMESPACE")
    with pytest.raises(InvalidObject, match="--namespace"):
        own_namespace(Settings())


def test_only_in_a_pod_everybody_may_ask_for_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert listen_address(HTTPSettings()) == "127.0.0.1"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert listen_address(HTTPSettings()) == "0.0.0.0"
    assert listen_address(HTTPSettings(address="::1")) == "::1"


def test_the_spool_is_where_it_is_set() -> None:
    assert spool_folder(WorkerSettings(spool="/spool")) == Path("/spool")
    assert spool_folder(WorkerSettings()).is_absolute()

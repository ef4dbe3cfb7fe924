"""The manifests of docs/how-to/gitops.md: the server takes them, and they are the runs they say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from batchinference.core.begin import key_of
from batchinference.model.job import parse_job
from control_plane import find_helm
from stack import ROOT, Stack
from team import Team

PAGE = (ROOT / "docs" / "how-to" / "gitops.md").read_text()
KIND = "BatchInferenceJob"
COMMIT, LATER = "4f2a91c0d1e2f3a4b5c6", "9f8e7d6c5b4a39281706"


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def named(name: str) -> str:
    """The block of code that begins with the name of its file."""
    (found,) = [b for b in (*fenced("yaml"), *fenced("gotemplate")) if b.startswith(f"# {name}\n")]
    return found


def jobs(text: str) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(text) if d and d.get("kind") == KIND]


PLAIN = [block for block in fenced("yaml") if jobs(block)]


def accepted(team: Team, text: str) -> list[dict[str, Any]]:
    """What a real API server makes of the manifests, in a dry run; it stores nothing."""
    documents = [d for d in yaml.safe_load_all(text) if d]
    for document in documents:
        document["metadata"]["namespace"] = team.namespace
    said = team.stack.control_plane.kubectl(
        *("create", "--dry-run=server", "--validate=strict", "--output=yaml", "--filename", "-"),
        stdin=yaml.safe_dump_all(documents),
    ).stdout
    found = jobs(said) or [d for d in yaml.safe_load(said)["items"] if d["kind"] == KIND]
    assert found
    return found


def key(manifest: dict[str, Any]) -> str:
    """The identity of the run that a manifest asks for."""
    manifest["metadata"].setdefault("name", "of-the-server")
    return key_of(parse_job(manifest))


def rendered(
    folder: Path, template: str, *values: str, version: str = "1.0.0", data: str = "{}"
) -> str:
    """The template of the page, by real Helm."""
    (folder / "templates").mkdir(exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    chart = {"apiVersion": "v2", "name": "tickets", "version": version}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(chart))
    (folder / "data" / "tickets.jsonl").write_text(data)
    (folder / template).write_text(named(template))
    command = [find_helm(), "template", "tickets", folder, "--namespace", "ml"]
    sets = [part for value in values for part in ("--set-string", value)]
    made = subprocess.run([*command, *sets], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.fixture(autouse=True)
def _uses(stack: Stack) -> None:
    """The definitions are the chart's."""
    assert stack.control_plane.read("apis/batchinference.dev/v1alpha1")


@pytest.mark.parametrize("block", PLAIN, ids=[jobs(b)[0]["metadata"]["name"] for b in PLAIN])
def test_the_server_takes_every_plain_manifest(team: Team, block: str) -> None:
    for manifest in accepted(team, block):
        assert manifest["metadata"]["name"]


def test_plain_manifests_are_runs_of_their_own() -> None:
    keys = [key(manifest) for block in PLAIN for manifest in jobs(block)]
    assert len(keys) == len(set(keys)) >= 3


def test_a_chart_is_one_run_per_commit(team: Team, tmp_path: Path) -> None:
    template = "templates/per-commit.yaml"
    (once,) = accepted(team, rendered(tmp_path, template, f"revision={COMMIT}"))
    (again,) = accepted(team, rendered(tmp_path, template, f"revision={COMMIT}"))
    (later,) = accepted(team, rendered(tmp_path, template, f"revision={LATER}"))
    assert once["metadata"]["name"] == "tickets-4f2a91c0d1e2"
    assert key(once) == key(again) != key(later)
    assert later["metadata"]["name"] != once["metadata"]["name"]
    # As Flux names the version of a chart from Git.
    (flux,) = jobs(rendered(tmp_path, template, version=f"1.0.0+{COMMIT[:12]}"))
    assert flux["metadata"]["name"] == "tickets-4f2a91c0d1e2"


def test_a_hook_is_one_run_per_commit_under_names_of_the_server(team: Team, tmp_path: Path) -> None:
    template = "templates/hook.yaml"
    (once,) = accepted(team, rendered(tmp_path, template, f"revision={COMMIT}"))
    (again,) = accepted(team, rendered(tmp_path, template, f"revision={COMMIT}"))
    (later,) = accepted(team, rendered(tmp_path, template, f"revision={LATER}"))
    assert len({job["metadata"]["name"] for job in (once, again, later)}) == 3
    assert key(once) == key(again) != key(later)


def test_a_kustomization_changes_name_and_run(team: Team, tmp_path: Path) -> None:
    (tmp_path / "tickets.yaml").write_text(named("tickets.yaml"))
    (tmp_path / "kustomization.yaml").write_text(named("kustomization.yaml"))
    made = team.stack.control_plane.kubectl("kustomize", str(tmp_path)).stdout
    (job,) = accepted(team, made)
    assert job["metadata"]["name"] == "tickets-4f2a91c"
    assert job["spec"]["runID"] == "4f2a91c"
    assert job["spec"]["providerRef"]["name"] == "openai"
    (plain,) = jobs(named("tickets.yaml"))
    assert key(job) != key(plain)


def test_a_chart_that_hashes_its_data_is_one_run_per_content(team: Team, tmp_path: Path) -> None:
    template = "templates/by-content.yaml"
    (once,) = accepted(team, rendered(tmp_path, template, data='{"a": 1}\n'))
    (again,) = accepted(team, rendered(tmp_path, template, data='{"a": 1}\n', version="1.0.1"))
    (later,) = accepted(team, rendered(tmp_path, template, data='{"a": 2}\n'))
    assert key(once) == key(again) != key(later)
    assert once["metadata"]["name"] == once["spec"]["input"]["configMapKeyRef"]["name"]


def test_every_template_of_the_page_is_tested() -> None:
    names = set(re.findall(r"^# (templates/\S+|\S+\.yaml)$", PAGE, flags=re.MULTILINE))
    assert names == {
        *("tickets.yaml", "kustomization.yaml", "templates/per-commit.yaml"),
        *("templates/hook.yaml", "templates/by-content.yaml"),
    }

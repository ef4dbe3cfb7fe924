"""How Helm and the hooks of a sync bring the pair's jobs into the cluster."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from cluster.pair import SHARDS, Pair
from stack import wait_for


def hooks(pair: Pair, run_id: str) -> list[dict[str, Any]]:
    """Both jobs as hooks of a sync, which get a new name each time."""
    made = copy.deepcopy(pair.manifests)
    for manifest in made:
        meta = manifest["metadata"]
        meta["generateName"] = f"{meta.pop('name')}-"
        meta["annotations"] = {"argocd.argoproj.io/hook": "PostSync"}
        if run_id:
            manifest["spec"]["runID"] = run_id
    return made


def create(pair: Pair, run_id: str) -> list[str]:
    """Create the hooks; their names."""
    said = pair.kubectl("create", "--output", "name", manifests=hooks(pair, run_id))
    return [line.partition("/")[2] for line in said.split()]


def wait_until_live(pair: Pair, names: list[str]) -> None:
    """Until the provider works on every shard of these hooks."""
    for name in names:
        wait_for(f"{name} live", lambda name=name: _states(pair, name) == ["InProgress"] * SHARDS)


def _states(pair: Pair, name: str) -> list[str]:
    return [s["state"] for s in pair.team.status(name).get("submissions", [])]


class Release:
    """A Helm release that holds both jobs, and a ConfigMap to change."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.plane, self.namespace = pair.team.stack.control_plane, pair.team.namespace
        self.chart = folder / "jobs"
        (self.chart / "templates").mkdir(parents=True)
        chart = {"apiVersion": "v2", "name": "jobs", "version": "1.0.0"}
        (self.chart / "Chart.yaml").write_text(yaml.safe_dump(chart))
        (self.chart / "values.yaml").write_text(yaml.safe_dump({"jobs": pair.manifests}))
        (self.chart / "templates" / "all.yaml").write_text(_TEMPLATE)

    def helm(self, verb: str, revision: str = "", *, note: str = "") -> None:
        what = [revision] if revision else [str(self.chart), "--set", f"note={note}"]
        self.plane.helm(verb, "jobs", *what, "--namespace", self.namespace)


_TEMPLATE = """
apiVersion: v1
kind: ConfigMap
metadata: {name: note}
data: {note: {{ .Values.note | quote }}}
{{- range .Values.jobs }}
---
{{ toYaml . }}
{{- end }}
"""

"""The CRDs of `crds/` as data: where the fields are, and manifests checked as the server would.

CEL is not evaluated here; `tests/cluster/test_crds.py` does that on a real API server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
FILES = {
    "BatchInferenceJob": "batchinferencejobs.yaml",
    "InferenceProvider": "inferenceproviders.yaml",
    "ClusterInferenceProvider": "clusterinferenceproviders.yaml",
}
KINDS = tuple(FILES)


@cache
def crd(kind: str) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    return yaml.safe_load((ROOT / "crds" / FILES[kind]).read_text())


def version(kind: str) -> dict[str, Any]:
    """Its only version."""
    [found] = crd(kind)["spec"]["versions"]
    return found


def schema(kind: str, *members: str) -> dict[str, Any]:
    """The schema of the object, or of a member of it."""
    node = version(kind)["schema"]["openAPIV3Schema"]
    for member in members:
        node = node["properties"][member]
    return node


@dataclass(frozen=True)
class Node:
    """A schema with its field path: `spec.limits.models[].name`, `spec.parameters.extra{}`."""

    path: str
    schema: dict[str, Any]

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        prefix = f"{self.path}." if self.path else ""
        for name, child in self.schema.get("properties", {}).items():
            yield from Node(prefix + name, child).walk()
        for suffix, key in (("[]", "items"), ("{}", "additionalProperties")):
            if key in self.schema:
                yield from Node(self.path + suffix, self.schema[key]).walk()


def nodes(kind: str) -> list[Node]:
    """Every field of a kind; what belongs to every Kubernetes object is left out."""
    standard = {"", "apiVersion", "kind", "metadata"}
    return [node for node in Node("", schema(kind)).walk() if node.path not in standard]


def field_paths(kind: str) -> list[str]:
    """Every field as a user writes it: without items and values of lists and maps."""
    return [
        node.path.replace("[]", "").replace("{}", "")
        for node in nodes(kind)
        if not node.path.endswith(("[]", "{}"))
    ]


def problems(manifest: dict[str, Any]) -> list[str]:
    """What the schema of its kind says against a manifest, unknown fields included."""
    validator = jsonschema.Draft202012Validator(_strict(schema(manifest["kind"])))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def problems_at(node: dict[str, Any], value: Any) -> list[str]:
    """What one node of a schema says against a value."""
    validator = jsonschema.Draft202012Validator(_strict(node))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def _strict(node: dict[str, Any]) -> dict[str, Any]:
    """The node in standard JSON Schema, with unknown members refused where they would be pruned."""
    kept = {k: v for k, v in node.items() if not k.startswith("x-") and k != "format"}
    if "properties" in node:
        kept["properties"] = {k: _strict(v) for k, v in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            kept["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            kept[key] = _strict(node[key])
    return kept

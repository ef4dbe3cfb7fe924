"""Small jobs on both providers, some of which are always alive.

Three kinds in turn: OpenAI and Bedrock with data in S3, and OpenAI with all of it in ConfigMaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stack import Stack, wait_for
from team import Team, chat, jsonl

NAMESPACE = "crash"
PATIENCE_S = 300.0
"""How long anything is waited for: machines that run this may be slow."""

_LIMITS = {"maxRecordsPerBatch": 20, "minRecordsPerBatch": 1, "maxActiveBatches": 12}
_WITHOUT_STORAGE = "openai-tiny"
_RECORDS, _TINY_RECORDS = 60, 12


@dataclass(frozen=True, slots=True)
class Given:
    """One job that was applied.

    Attributes:
        tiny: its input and its results are in ConfigMaps.
    """

    name: str
    provider: str
    records: int
    shards: int
    tiny: bool = False


class Jobs:
    """Keeps so many of them alive."""

    def __init__(self, stack: Stack, at_once: int) -> None:
        """Make the namespace and its providers."""
        stack.control_plane.kubectl("create", "namespace", NAMESPACE)
        self.team = Team(stack, NAMESPACE)
        self.given: list[Given] = []
        self._ended: set[str] = set()
        self._at_once = at_once
        objects = stack.providers(
            NAMESPACE, openai={"limits": _LIMITS}, bedrock={"limits": _LIMITS}
        )
        tiny = next(o for o in objects if o["metadata"]["name"] == "openai" and "spec" in o)
        spec = {k: v for k, v in tiny["spec"].items() if k != "storage"}
        metadata = {"name": _WITHOUT_STORAGE, "namespace": NAMESPACE}
        stack.apply(*objects, {**tiny, "metadata": metadata, "spec": spec})

    def keep_alive(self) -> None:
        """Apply as many new ones as have ended."""
        wait_for("the API server to list jobs", self._look, PATIENCE_S)
        missing = self._at_once - (len(self.given) - len(self._ended))
        made = [self._next(len(self.given) + n) for n in range(missing)]
        if made:
            manifests = [manifest for _, manifest in made]
            wait_for("the API server to take jobs", lambda: self._apply(manifests), PATIENCE_S)
            self.given += [given for given, _ in made]

    def wait_for_the_end(self) -> list[str]:
        """Wait until all have ended; the names of those that did not."""

        def all_ended() -> bool:
            return self._look() and len(self._ended) == len(self.given)

        try:
            wait_for("the ends of all jobs", all_ended, PATIENCE_S)
        except AssertionError:
            return sorted({g.name for g in self.given} - self._ended)
        return []

    def _look(self) -> bool:
        """See who has ended; whether the API server could be asked."""
        path = f"apis/batchinference.dev/v1alpha1/namespaces/{NAMESPACE}/batchinferencejobs"
        try:
            listed = self.team.stack.control_plane.read(path)
        except OSError:
            return False
        for body in (listed or {}).get("items", ()):
            conditions = body.get("status", {}).get("conditions", ())
            ends = {c["type"] for c in conditions if c["status"] == "True"}
            if ends & {"Complete", "Failed"} and "finalizers" not in body["metadata"]:
                self._ended.add(body["metadata"]["name"])
        return listed is not None

    def _apply(self, manifests: list[Mapping[str, Any]]) -> bool:
        try:
            self.team.apply(*manifests)
        except RuntimeError:
            return False  # etcd elects its leader, or the API server reads its caches
        return True

    def _next(self, number: int) -> tuple[Given, dict[str, Any]]:
        name = f"job-{number:04}"
        kind = number % 3
        tiny = kind == 2
        records = _TINY_RECORDS if tiny else _RECORDS
        shards = -(-records // _LIMITS["maxRecordsPerBatch"])
        provider = ("openai", "bedrock", _WITHOUT_STORAGE)[kind]
        lines = jsonl(chat(f"r{n}", f"Say {n} of {name}") for n in range(records))
        spec: dict[str, Any]
        if tiny:
            spec = {"input": {"inline": lines.decode()}, "output": {"configMap": {"name": name}}}
        else:
            spec = {"input": {"s3": {"uri": self.team.put(f"{name}.jsonl", lines)}}}
        manifest = self.team.job(name, provider="bedrock" if kind == 1 else "openai", **spec)
        manifest["spec"]["providerRef"] = {"name": provider}
        return Given(name, provider, records, shards, tiny), manifest

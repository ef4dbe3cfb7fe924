"""The real tasks on a store in memory: what a worker process does, with its deaths and faults.

A task runs at one moment of virtual time. It dies, or finds the storage out of order, between any
two of its operations; what it did until then stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from batchinference.errors import Retry
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.model.work import Task, TaskKind, TaskReport, TaskResult
from batchinference.ports import ResolvedProvider
from batchinference.tasks.admit import claim_of
from batchinference.tasks.places import PrefixPlace
from batchinference.tasks.run import perform
from batchinference.tasks.sources import input_source
from batchinference.tasks.workbench import Workbench
from fakes.provider import FakeBatchData, flavour_of
from fakes.runner import WorkerDied
from fakes.server import ProviderServer
from fakes.stores import MemoryStore
from fakes.world import World

PART_BYTES = 600
"""So small that results come in several parts."""


class Workers:
    """Performs tasks.

    Attributes:
        store: everybody's objects: inputs, staging, outputs.
        death_rate: how often a task dies, and how often the storage refuses, per task.
        is_over: whether the run of that key has ended.
        claimed_late: keys of runs for which a task that had slept claimed the output place when
            they had ended without a submission already: no store can refuse that.
        staged_late: likewise, for which such a task may have written to staging.
    """

    def __init__(
        self,
        world: World,
        server_of: Callable[[Run], ProviderServer],
        spool: Path,
        death_rate: float,
    ) -> None:
        self.store = MemoryStore(chunk=64)
        self.death_rate = death_rate
        self.is_over: Callable[[str], bool] = lambda _key: False
        self.claimed_late: set[str] = set()
        self.staged_late: set[str] = set()
        self._world = world
        self._server_of = server_of
        self._spool = spool

    def perform(self, task: Task, report: Callable[[TaskReport], None]) -> TaskResult:
        """See `fakes.runner.Perform`."""
        run, settings = task.run, task.connections["provider"]["settings"]
        if self.is_over(run.key) and task.kind not in {TaskKind.CLEAN, TaskKind.RELEASE}:
            late = self.claimed_late if task.kind is TaskKind.ADMIT else self.staged_late
            late.add(run.key)
        data = FakeBatchData(
            self._server_of(run), self._world.clock.now(), flavour=flavour_of(settings)
        )
        job_input = {"inline": task.inline} if task.inline else run.spec["input"]
        source = input_source(
            job_input,
            inline=task.inline,
            namespace=run.owner.namespace,
            store=self.store,
            config_maps=None,
        )
        bench = Workbench(
            source=source,
            staging=self.store,
            output=PrefixPlace(self.store, run.output.uri),
            data=data,
            spool=self._spool,
            part_bytes=PART_BYTES,
        )
        self.store.before = self._fate()
        try:
            return perform(task, bench, report)
        finally:
            self.store.before = None

    def _fate(self) -> Callable[[str, str], None]:
        """What the task will meet: a death or a refusal after so many operations, or neither."""
        world = self._world
        doomed = world.chance(self.death_rate)
        left = int(world.random.random() * 40) if doomed else -1
        dies = world.chance(0.5)

        def before(operation: str, uri: str) -> None:
            nonlocal left
            if operation in {"put", "commit", "delete", "delete_prefix", "copy"}:
                world.crash_point(f"store.{operation}", "before")
            left -= 1
            if left == 0:
                world.trace(f"{'worker dies' if dies else 'storage fails'} at {operation} {uri}")
                if dies:
                    raise WorkerDied
                raise Retry(Reason.STAGING_UNAVAILABLE, f"{operation}: 503")

        return before

    def holds_claim(self, run: Run, _resolved: ResolvedProvider) -> bool:
        """See `ports.ProviderFactory.holds_claim`."""
        return PrefixPlace(self.store, run.output.uri).holds(claim_of(run))

    def taken_by(self, run: Run, _resolved: ResolvedProvider) -> str:
        """See `ports.ProviderFactory.taken_by`."""
        return PrefixPlace(self.store, run.output.uri).taken_by(claim_of(run))

    # ---------------------------------------------------------------- what a person sees

    def put_input(self, uri: str, name: str, contents: list[str]) -> None:
        """Write an input of so many records; a record "bad" is not JSON."""
        lines = [
            "not JSON" if text == "bad" else json.dumps(_request(f"{name}-{n}", text))
            for n, text in enumerate(contents)
        ]
        self.store.objects[uri] = "\n".join(lines).encode() + b"\n"

    def results(self, output: str, kind: str = "results") -> list[dict[str, Any]] | None:
        """The results (or errors) that the manifest lists, in order; None without a manifest."""
        manifest = self.manifest(output)
        if manifest is None:
            return None
        found = []
        for part in manifest.get(kind, []):
            found += [json.loads(line) for line in self.store.objects[part["uri"]].splitlines()]
        return found

    def manifest(self, output: str) -> Mapping[str, Any] | None:
        """The manifest, if it stands."""
        data = self.store.objects.get(f"{output}manifest.json")
        return json.loads(data) if data is not None else None

    def has_later_claim(self, run: Run) -> bool:
        """Whether the output place is claimed for a later life of the run, as far as it says."""
        return PrefixPlace(self.store, run.output.uri).has_later(claim_of(run))

    def leftovers(self, run: Run) -> list[str]:
        """What of an ended run is still in staging."""
        return [u for u in self.store.under("s3://staging/") if f"/{run.key}/" in u]


def _request(custom_id: str, content: str) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": content}]},
    }

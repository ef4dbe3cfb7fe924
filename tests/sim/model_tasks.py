"""A small model of the tasks, for plays of the runtime without the data plane."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from batchinference.model.run import (
    Collected,
    Cursor,
    InputSnapshot,
    Results,
    Run,
    Shard,
    ShardState,
    Staged,
)
from batchinference.model.work import (
    Admitted,
    Checkpoint,
    Cleaned,
    Finished,
    Holder,
    Pooled,
    ShardCollected,
    StageDone,
    Task,
    TaskKind,
    TaskReport,
    TaskResult,
    Uploaded,
)
from fakes.server import ProviderServer

Report = Callable[[TaskReport], None]


@dataclass
class Storage:
    """Everything that the tasks keep: inputs, claims, staging, results."""

    inputs: dict[str, list[str]] = field(default_factory=dict)
    claims: dict[str, tuple[str, str]] = field(default_factory=dict)
    shards: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    answers: dict[tuple[str, int], dict[int, dict[str, Any]]] = field(default_factory=dict)
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


class ModelTasks:
    """Does tasks on `Storage` and a provider's server."""

    def __init__(
        self,
        storage: Storage,
        server_of: Callable[[Run], ProviderServer],
        now: Callable[[], datetime],
        die: Callable[[], None],
    ) -> None:
        self._storage = storage
        self._server_of = server_of
        self._now = now
        self._die = die

    def perform(self, task: Task, report: Report) -> TaskResult:
        work = {
            TaskKind.ADMIT: self._admit,
            TaskKind.STAGE: self._stage,
            TaskKind.UPLOAD: self._upload,
            TaskKind.COLLECT: self._collect,
            TaskKind.POOL: self._pool,
            TaskKind.FINISH: self._finish,
            TaskKind.CLEAN: self._clean,
            TaskKind.RELEASE: self._release,
        }[task.kind]
        self._die()
        result = work(task, report)
        self._die()
        return result

    def _records(self, run: Run) -> list[str]:
        return self._storage.inputs[run.owner.name]

    def _snapshot(self, run: Run) -> InputSnapshot:
        found = self._records(run)
        return InputSnapshot(
            run.owner.name, 1, len(found), hashlib.sha256(str(found).encode()).hexdigest()
        )

    def _admit(self, task: Task, _report: Report) -> TaskResult:
        run = task.run
        held = self._storage.claims.setdefault(run.output.uri, (run.key, run.installation))
        holder = None if held == (run.key, run.installation) else Holder(held[0], "", held[1])
        return Admitted(self._snapshot(run), holder)

    def _stage(self, task: Task, report: Report) -> TaskResult:
        run, records = task.run, self._records(task.run)
        most = run.limits.max_records_per_batch
        row = run.cursor.row if run.cursor else 0
        index = len(run.shards)
        bad = run.cursor.bad if run.cursor else 0
        held: list[int] = []
        while row < len(records):
            if records[row].startswith("bad"):
                bad += 1
            else:
                held.append(row)
            row += 1
            good_left = [r for r in records[row:] if not r.startswith("bad")]
            full = len(held) == most and (
                not good_left or len(good_left) >= run.limits.min_records_per_batch
            )
            if held and (full or (not good_left and row == len(records))):
                shard = self._shard(run, index, held)
                report(Checkpoint(shard, Cursor(0, row, row, row, bad)))
                self._die()
                index, held = index + 1, []
        return StageDone(Staged(len(records), bad, len(records), 10), self._snapshot(run))

    def _shard(self, run: Run, index: int, rows: list[int]) -> Shard:
        known = self._storage.shards.setdefault((run.key, index), list(rows))
        assert known == rows, "staging must be deterministic"
        digest = hashlib.sha256(f"{run.key} {rows}".encode()).hexdigest()
        return Shard(
            index=index,
            state=ShardState.STAGED,
            rows=len(rows),
            first_row=rows[0],
            last_row=rows[-1],
            size=100,
            tokens=10,
            sha256=digest,
        )

    def _upload(self, task: Task, _report: Report) -> TaskResult:
        run, n = task.run, task.shard
        assert n is not None
        records = self._records(run)
        lines = [
            json.dumps({"custom_id": f"r{row}", "body": {"messages": [{"content": records[row]}]}})
            for row in self._storage.shards[run.key, n]
        ]
        data = "\n".join(lines).encode()
        server = self._server_of(run)
        if "openAI" in run.provider.settings:
            return Uploaded(server.upload(data, self._now(), f"-{run.key[:6]}"))
        place = f"{run.staging.uri}input/{n}/{task.ordinal}/"
        return Uploaded(server.store_at(place, data, self._now()))

    def _collect(self, task: Task, _report: Report) -> TaskResult:
        run = task.run
        assert task.shard is not None
        shard = run.shards[task.shard]
        last = shard.last
        assert last is not None
        server = self._server_of(run)
        found: dict[int, dict[str, Any]] = {}
        gone = False
        for name in last.files:
            batch = server.batches[name.removeprefix("out:")]
            gone = gone or batch.files_gone
            for line in [] if batch.files_gone else server.result_lines(batch, self._now()):
                entry = json.loads(line)
                if not entry.get("unbilled"):
                    found[int(entry["custom_id"][1:])] = entry
        counts = {"answered": 0, "failed": 0, "unbilled": 0, "lost": 0}
        nothing = last.failure is not None and last.failure.nothing_processed
        may = nothing or (last.batch_state is not None and last.batch_state.may_leave_unbilled)
        kept: dict[int, dict[str, Any]] = {}
        for row in self._storage.shards[run.key, task.shard]:
            line = found.get(row)
            if line is not None:
                ok = line["response"]["status_code"] == 200
                counts["answered" if ok else "failed"] += 1
                kept[row] = {**line, "row": row, "error": None if ok else {"code": "refused"}}
            elif may and not gone:
                counts["unbilled"] += 1
                kept[row] = {"row": row, "error": {"code": "unbilled"}}
            else:
                counts["lost"] += 1
                kept[row] = {"row": row, "error": {"code": "AnswerLost"}}
        self._storage.answers[run.key, task.shard] = kept
        code = ""
        if counts["unbilled"]:
            code = "BatchCancelled" if last.cancel_accepted_at else "BatchExpired"
        return ShardCollected(Collected(**counts, unbilled_code=code))

    def _pool(self, task: Task, _report: Report) -> TaskResult:
        run = task.run
        rows = sorted(
            row
            for n in task.sources
            for row, line in self._storage.answers[run.key, n].items()
            if (line["error"] or {}).get("code") == "unbilled"
        )
        if len(rows) < run.limits.min_records_per_batch:
            return Pooled((), task.sources)
        most, index, made = run.limits.max_records_per_batch, len(run.shards), []
        while rows:
            left = len(rows) - most
            take = most if left <= 0 or left >= run.limits.min_records_per_batch else len(rows)
            part, rows = rows[:take], rows[take:]
            self._storage.shards.pop((run.key, index), None)
            made.append(self._shard(run, index, part))
            index += 1
        return Pooled(tuple(made), task.sources)

    def _finish(self, task: Task, _report: Report) -> TaskResult:
        run = task.run
        lines: dict[int, dict[str, Any]] = {}
        for row, content in enumerate(self._records(run)):
            code = "BadRecord" if content.startswith("bad") else "NotSubmitted"
            lines[row] = {"row": row, "error": {"code": code}}
        for shard in run.shards:
            for row, line in self._storage.answers.get((run.key, shard.index), {}).items():
                lines[row] = line
        ordered = [lines[row] for row in sorted(lines)]
        self._storage.results[run.output.uri] = ordered
        done = sum(line["error"] is None for line in ordered)
        expired = sum(
            (line["error"] or {}).get("code") in {"unbilled", "NotSubmitted"} for line in ordered
        )
        return Finished(
            Results(
                manifest_uri=f"{run.output.uri}manifest.json",
                completed=done,
                failed=len(ordered) - done - expired,
                expired=expired,
            )
        )

    def _clean(self, task: Task, _report: Report) -> TaskResult:
        run, server = task.run, self._server_of(task.run)
        for ref in list(server.files):
            if ref.endswith(f"-{run.key[:6]}") or ref.startswith(run.staging.uri):
                server.delete_file(ref, self._now())
        for kept in (self._storage.shards, self._storage.answers):
            for where in [w for w in kept if w[0] == run.key]:
                del kept[where]  # type: ignore[attr-defined]
        return Cleaned()

    def _release(self, task: Task, report: Report) -> TaskResult:
        run = task.run
        if self._storage.claims.get(run.output.uri) == (run.key, run.installation):
            del self._storage.claims[run.output.uri]
        return self._clean(task, report)

"""A run on fakes, and the steps of its life that tests take by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchinference.model.batch import BatchFailure, BatchState, Limits
from batchinference.model.run import (
    Owner,
    Place,
    ProviderPin,
    Run,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from batchinference.model.work import (
    Checkpoint,
    Finished,
    Pooled,
    ShardCollected,
    StageDone,
    Task,
    TaskKind,
    TaskReport,
    TaskResult,
)
from batchinference.ports import BatchData
from batchinference.tasks.admit import claim_of
from batchinference.tasks.collect import GONE_AFTER_S
from batchinference.tasks.places import PrefixPlace
from batchinference.tasks.run import perform
from batchinference.tasks.sources import StoreSource
from batchinference.tasks.workbench import PART_BYTES, InputSource, Workbench
from fakes.data import BodyData
from fakes.stores import MemoryStore

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
INPUT = "s3://data/in/rows.jsonl"
OUTPUT = "s3://data/out/run/"
STAGING = "s3://data/.staging/install/key/"

GENEROUS = Limits(50_000, 200 << 20, 1 << 20)


def limits(
    records: int = 50_000,
    size: int = 200 << 20,
    record: int = 1 << 20,
    minimum: int = 1,
    tokens: int | None = None,
) -> Limits:
    return Limits(records, size, record, minimum, max_enqueued_tokens=tokens)


def make_run(limits: Limits = GENEROUS, *, bedrock: bool = False, **spec: Any) -> Run:
    settings = {"bedrock": {}} if bedrock else {"openAI": {}}
    return Run(
        key="key0123456789abcdef",
        tag="tag0123",
        installation="install",
        owner=Owner("ml", "triage", "uid"),
        spec={"model": "m", "operation": "ChatCompletions", **spec},
        provider=ProviderPin("InferenceProvider", "p", "ml", settings, "ml", "account"),
        limits=limits,
        output=Place(OUTPUT),
        staging=Place(STAGING),
        created_at=NOW,
    )


def request(custom_id: Any, text: str = "hello", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": [{"role": "user", "content": text}], **body},
    }


def jsonl(items: Iterable[Any]) -> bytes:
    return b"".join(
        (item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items
    )


def answer(row: int, text: str = "fine", tokens: tuple[int, int] = (3, 2)) -> dict[str, Any]:
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    body = {"choices": [{"message": {"content": f"{text} {row}"}}], "usage": usage}
    return {
        "id": f"batch_req_{row}",
        "custom_id": f"r{row:010d}",
        "response": {"status_code": 200, "request_id": f"req{row}", "body": body},
        "error": None,
    }


def refused(row: int) -> dict[str, Any]:
    body = {"error": {"message": "bad", "code": "context_length_exceeded"}}
    return {
        "custom_id": f"r{row:010d}",
        "response": {"status_code": 400, "request_id": "", "body": body},
        "error": None,
    }


def expired(row: int) -> dict[str, Any]:
    error = {"code": "batch_expired", "message": "too late"}
    return {"custom_id": f"r{row:010d}", "response": None, "error": error}


@dataclass
class Desk:
    """One run and everything around it; steps change `run` as the operator would."""

    spool: Path
    run: Run = field(default_factory=make_run)
    store: MemoryStore = field(default_factory=MemoryStore)
    data: BatchData = field(default_factory=BodyData)
    source: InputSource | None = None
    part_bytes: int = PART_BYTES
    suffix: str = "jsonl"
    reports: list[TaskReport] = field(default_factory=list)

    def put_input(self, data: bytes, uri: str = INPUT) -> None:
        self.store.objects[uri] = data

    def bench(self) -> Workbench:
        return Workbench(
            self.source or StoreSource(self.store, INPUT),
            self.store,
            PrefixPlace(self.store, OUTPUT, self.suffix),
            self.data,
            self.spool,
            self.part_bytes,
        )

    def perform(self, kind: TaskKind, **fields: Any) -> TaskResult:
        return perform(Task(kind, self.run, **fields), self.bench(), self.hear)

    def hear(self, report: TaskReport) -> None:
        self.reports.append(report)
        if isinstance(report, Checkpoint):
            self.run = replace(
                self.run, shards=(*self.run.shards, report.shard), cursor=report.cursor
            )

    # ------------------------------------------------------------ the steps of a life

    def claim(self) -> None:
        assert PrefixPlace(self.store, OUTPUT).claim(claim_of(self.run)) is None

    def stage(self) -> StageDone:
        result = self.perform(TaskKind.STAGE)
        assert isinstance(result, StageDone), result
        self.run = replace(self.run, staged=result.staged, input=result.snapshot)
        return result

    def end(
        self,
        shard: int,
        state: BatchState | None = BatchState.COMPLETED,
        files: Mapping[str, bytes | None] | None = None,
        *,
        submission: SubmissionState = SubmissionState.ENDED,
        failure: BatchFailure | None = None,
    ) -> None:
        """The shard's batch is over; a file of None is gone at the provider."""
        files = files or {}
        self.data.files.update({n: d for n, d in files.items() if d is not None})  # type: ignore[attr-defined]
        ended = Submission(
            ordinal=1,
            state=submission,
            request={},
            input_ref="file",
            claimed_at=NOW,
            submit_by=NOW,
            batch_id=f"batch_{shard}",
            ended_at=NOW,
            batch_state=state,
            files=tuple(files),
            failure=failure,
        )
        changed = replace(self.run.shards[shard], state=ShardState.ENDED, submissions=(ended,))
        self.run = self.run.with_shard(changed)

    def collect(self, shard: int) -> Shard:
        result = self.perform(TaskKind.COLLECT, shard=shard, ordinal=1, failing_s=GONE_AFTER_S)
        assert isinstance(result, ShardCollected), result
        changed = replace(
            self.run.shards[shard], state=ShardState.COLLECTED, collected=result.collected
        )
        self.run = self.run.with_shard(changed)
        return changed

    def answer_all(self, shard: int) -> Shard:
        """Every record of the shard is answered, the last one first."""
        rows = self.rows_of(shard)
        self.end(shard, files={f"out-{shard}": jsonl(answer(r) for r in reversed(rows))})
        return self.collect(shard)

    def pool(self, *sources: int) -> Pooled:
        result = self.perform(TaskKind.POOL, sources=sources)
        assert isinstance(result, Pooled), result
        if result.shards:
            shards = [
                replace(s, pooled=True) if s.index in result.sources else s for s in self.run.shards
            ]
            self.run = replace(self.run, shards=(*shards, *result.shards))
        return result

    def finish(self) -> Finished:
        """Finish, with the claim that admission made."""
        if f"{OUTPUT}_run.json" not in self.store.objects:
            self.claim()
        result = self.perform(TaskKind.FINISH)
        assert isinstance(result, Finished), result
        return result

    # ------------------------------------------------------------ looking

    def rows_of(self, shard: int) -> list[int]:
        lines = self.store.objects[f"{STAGING}shards/{shard:05d}.jsonl"].splitlines()
        return [
            int((json.loads(line).get("custom_id") or json.loads(line)["recordId"])[1:])
            for line in lines
        ]

    def results(self, kind: str = "results") -> list[dict[str, Any]]:
        parts = self.store.under(f"{OUTPUT}{kind}/")
        return [json.loads(line) for data in parts.values() for line in data.split(b"\n") if line]

    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.objects[f"{OUTPUT}manifest.json"])
        return found

    def staged(self) -> dict[str, bytes]:
        return self.store.under(STAGING)

    def checkpoints(self) -> Sequence[Checkpoint]:
        return [r for r in self.reports if isinstance(r, Checkpoint)]

"""One run from input to manifest in its own process, on a store of files; prints what it took.

    python life.py FOLDER MEGABYTES RECORD_BYTES

FOLDER holds everything. Used by the memory test, and by hand for figures.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

sys.path.insert(0, str(Path(__file__).parents[2]))

from batchinference.model.batch import BatchState
from batchinference.model.run import ShardState, Submission, SubmissionState
from batchinference.model.work import (
    Checkpoint,
    Finished,
    ShardCollected,
    StageDone,
    Task,
    TaskKind,
    TaskReport,
)
from batchinference.ports import ObjectInfo, ResultLine
from batchinference.tasks.admit import claim_of
from batchinference.tasks.places import PrefixPlace
from batchinference.tasks.run import perform
from batchinference.tasks.sources import StoreSource
from batchinference.tasks.workbench import Workbench
from fakes.data import BodyData
from unit.tasks.desk import INPUT, NOW, OUTPUT, STAGING, limits, make_run

CHUNK = 1 << 20


@dataclass
class FolderStore:
    """Just enough of an ObjectStore on plain files to see what memory a task takes."""

    folder: Path

    def path(self, uri: str) -> Path:
        return self.folder / uri.removeprefix("s3://").replace("/", "%")

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        path = self.path(uri)
        return ObjectInfo(uri, path.stat().st_size, "e") if path.exists() else None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(())

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        with self.path(info.uri).open("rb") as file:
            file.seek(start)
            while data := file.read(CHUNK):
                yield data

    def get(self, uri: str, limit: int = 1 << 20) -> bytes | None:
        path = self.path(uri)
        return path.read_bytes() if path.exists() else None

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        self.path(uri).write_bytes(data)
        return True

    def delete(self, uri: str) -> None:
        self.path(uri).unlink(missing_ok=True)

    def writer(self, uri: str) -> FolderWriter:
        return FolderWriter(uri, self.path(uri).open("wb"))


@dataclass
class FolderWriter:
    uri: str
    file: BinaryIO

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def commit(self) -> ObjectInfo:
        self.file.close()
        return ObjectInfo(self.uri, 0, "e")

    def abort(self) -> None:
        self.file.close()


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Line(msgspec.Struct):
    custom_id: str
    response: _Response


_decode = msgspec.json.Decoder(_Line).decode


@dataclass
class EchoData(BodyData):
    """Answers with the prompt, row by row from the staged shards: nothing is held."""

    store: Any = None

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        for name in files:
            with self.store.path(f"{STAGING}shards/{name}.jsonl").open("rb") as shard:
                for line in shard:
                    asked = msgspec.json.decode(line)
                    body = {"choices": [asked["body"]["messages"][0]], "usage": {}}
                    response = {"status_code": 200, "request_id": "q", "body": body}
                    answer = {"custom_id": asked["custom_id"], "response": response, "error": None}
                    yield msgspec.json.encode(answer) + b"\n"

    def decode(self, line: bytes) -> ResultLine:
        found = _decode(line)
        return ResultLine(found.custom_id, 200, found.response.request_id, found.response.body)


def write_input(path: Path, size: int, record: int) -> int:
    """About `size` bytes of records; how many."""
    text = "lorem ipsum dolor sit amet " * (max(record - 150, 1) // 27)
    count = 0
    with path.open("wb") as file:
        while file.tell() < size:
            body = {"model": "m", "messages": [{"role": "user", "content": f"{text}{count}"}]}
            line = {"custom_id": f"ticket-{count}", "method": "POST", "url": "/v1/chat/completions"}
            file.write(json.dumps({**line, "body": body}).encode() + b"\n")
            count += 1
    return count


def baseline(path: Path) -> float:
    """The bare loop that staging is measured against."""
    start = time.perf_counter()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
    return time.perf_counter() - start


def resident_mb() -> int:
    # Not ru_maxrss: that starts at what the parent had when it forked this process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def main() -> None:
    folder, size, record = Path(sys.argv[1]), int(sys.argv[2]) << 20, int(sys.argv[3])
    store = FolderStore(folder)
    rows = write_input(store.path(INPUT), size, record)
    data = EchoData(store=store)
    run = make_run(limits(size=64 << 20))
    took: dict[str, float] = {"baseline": min(baseline(store.path(INPUT)) for _ in range(3))}

    def hear(report: TaskReport) -> None:
        nonlocal run
        if isinstance(report, Checkpoint):
            run = replace(run, shards=(*run.shards, report.shard), cursor=report.cursor)

    def do(kind: TaskKind, **fields: Any) -> Any:
        bench = Workbench(
            StoreSource(store, INPUT),  # type: ignore[arg-type]
            store,  # type: ignore[arg-type]
            PrefixPlace(store, OUTPUT),  # type: ignore[arg-type]
            data,
            folder / "spool",
        )
        start = time.perf_counter()
        result = perform(Task(kind, run, **fields), bench, hear)
        took[kind.value] = took.get(kind.value, 0.0) + time.perf_counter() - start
        return result

    before = resident_mb()
    assert isinstance(do(TaskKind.STAGE), StageDone)
    peaks = {"before": before, "stage": resident_mb()}
    for shard in run.shards:
        ended = Submission(
            1, SubmissionState.ENDED, {}, "", NOW, NOW,
            batch_state=BatchState.COMPLETED, files=(f"{shard.index:05d}",),
        )  # fmt: skip
        run = run.with_shard(replace(shard, state=ShardState.ENDED, submissions=(ended,)))
        result = do(TaskKind.COLLECT, shard=shard.index, ordinal=1)
        assert isinstance(result, ShardCollected), result
        done = replace(
            run.shards[shard.index], state=ShardState.COLLECTED, collected=result.collected
        )
        run = run.with_shard(done)
    peaks["collect"] = resident_mb()
    assert PrefixPlace(store, OUTPUT).claim(claim_of(run)) is None  # type: ignore[arg-type]
    result = do(TaskKind.FINISH)
    assert isinstance(result, Finished), result
    assert result.results.completed == rows
    peaks["finish"] = resident_mb()
    print(json.dumps({"rows": rows, "shards": len(run.shards), "peak_mb": peaks, "took_s": took}))


if __name__ == "__main__":
    main()

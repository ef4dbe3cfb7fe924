"""The data plane's figures, in a process of their own: speed against bare loops, and peak memory.

    python data_plane.py speed FOLDER MEGABYTES
    python data_plane.py peak FOLDER MEGABYTES

Prints one JSON object; FOLDER must be empty and is not tidied up. Tasks run as a worker runs them,
with the adapters' own encoding and decoding; only the network is replaced, by files. Knows no
targets.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from batchinference.adapters.bedrock.data import BedrockData
from batchinference.adapters.openai_batch.data import OpenAIData
from batchinference.model.batch import BatchState, Limits
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
    ShardCollected,
    StageDone,
    Task,
    TaskKind,
    TaskReport,
)
from batchinference.ports import BatchData, ObjectInfo
from batchinference.tasks.admit import claim_of
from batchinference.tasks.places import PrefixPlace
from batchinference.tasks.run import perform
from batchinference.tasks.sources import StoreSource
from batchinference.tasks.workbench import Workbench

ROUNDS = 3
CHUNK_BYTES = 1 << 20
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(10_000, 100 << 20, 1 << 20)
"""Several shards already at tens of megabytes, so that splitting is in the figures."""

WORDS = (
    "customer reports that the invoice of last month was charged twice and asks for a refund "
    "before the card is billed again; the order was placed on a phone and never confirmed. "
)


# ---------------------------------------------------------------- storage


@dataclass(frozen=True, slots=True)
class FolderStore:
    """An `ports.ObjectStore` over a local folder. Without `keeps_shards` the lines of shards go
    nowhere, as if they were uploaded: what that takes is the network's.
    """

    folder: Path
    keeps_shards: bool = True

    def path(self, uri: str) -> Path:
        return self.folder / uri.removeprefix("s3://")

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        del version
        path = self.path(uri)
        if not path.is_file():
            return None
        found = path.stat()
        return ObjectInfo(uri, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}")

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for path in sorted(self.path(prefix).rglob("*")):
            info = self.head(f"s3://{path.relative_to(self.folder)}")
            if info is not None:
                yield info

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        with self.path(info.uri).open("rb") as file:
            file.seek(start)
            while data := file.read(CHUNK_BYTES):
                yield data

    def get(self, uri: str, limit: int = 1 << 20) -> bytes | None:
        del limit
        path = self.path(uri)
        return path.read_bytes() if path.is_file() else None

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        if only_if_absent and self.path(uri).exists():
            return False
        writer = self.writer(uri)
        writer.write(data)
        writer.commit()
        return True

    def writer(self, uri: str) -> FolderWriter | NowhereWriter:
        path = self.path(uri)
        if not self.keeps_shards and "/shards/" in uri and uri.endswith(".jsonl"):
            return NowhereWriter(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Some file systems write a file to the disk when it replaces another: not our time to pay.
        path.unlink(missing_ok=True)
        return FolderWriter(self, uri, path.with_name(f"{path.name}.partial").open("wb"))

    def copy(self, source: str, target: str) -> None:
        raise NotImplementedError  # nothing is uploaded here

    def delete(self, uri: str) -> None:
        self.path(uri).unlink(missing_ok=True)

    def delete_prefix(self, prefix: str) -> None:
        for info in list(self.list(prefix)):
            self.delete(info.uri)


@dataclass(frozen=True, slots=True)
class FolderWriter:
    store: FolderStore
    uri: str
    file: BinaryIO

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def commit(self) -> ObjectInfo:
        self.file.close()
        Path(self.file.name).replace(self.store.path(self.uri))
        info = self.store.head(self.uri)
        assert info is not None
        return info

    def abort(self) -> None:
        self.file.close()
        Path(self.file.name).unlink(missing_ok=True)


@dataclass(slots=True)
class NowhereWriter:
    uri: str
    size: int = 0

    def write(self, data: bytes) -> None:
        self.size += len(data)

    def commit(self) -> ObjectInfo:
        return ObjectInfo(self.uri, self.size, "")

    def abort(self) -> None:
        self.size = 0


# ---------------------------------------------------------------- requests and answers


def write_requests(path: Path, size: int, words: str) -> int:
    """About `size` bytes of chat requests of 0.4 to 1.6 KB, as `json.dumps` writes them or, where
    `words` are not ASCII, as UTF-8; how many.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    system = {"role": "system", "content": "You triage support tickets. Answer with one word."}
    count = written = 0
    with path.open("wb") as file:
        while written < size:
            text = f"Ticket {count}: {words * (1 + count % 8)}"
            body = {
                "model": "gpt-4.1-mini",
                "messages": [system, {"role": "user", "content": text}],
                "max_tokens": 64,
            }
            line = {
                "custom_id": f"ticket-{count}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            written += file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def answers(shard: Shard) -> Iterator[bytes]:
    """The result file of an OpenAI batch, no line where its request was: the worst order to join."""
    stride = 7919  # a prime, so that every row comes once
    while not shard.rows % stride:
        stride += 2
    for number in range(shard.rows):
        row = shard.first_row + number * stride % shard.rows
        text = WORDS * (1 + row % 3)
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": f"{row}: {text}", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
        usage = {"prompt_tokens": 180, "completion_tokens": 60, "total_tokens": 240}
        body = {
            "id": f"chatcmpl-{row:024d}",
            "object": "chat.completion",
            "created": 1767225600,
            "model": "gpt-4.1-mini-2025-04-14",
            "choices": [choice],
            "usage": usage,
            "system_fingerprint": "fp_0123456789",
        }
        response = {"status_code": 200, "request_id": f"req_{row:024d}", "body": body}
        line = {"id": f"batch_req_{row:024d}", "custom_id": f"r{row:010d}", "response": response}
        yield json.dumps({**line, "error": None}).encode() + b"\n"


def converse_answers(shard: Shard, staged: Path) -> Iterator[bytes]:
    """The result file of a Bedrock job: every line repeats its request."""
    with staged.open("rb") as file:
        for line in file:
            message = {"role": "assistant", "content": [{"text": WORDS * (1 + shard.index % 3)}]}
            output = {
                "output": {"message": message},
                "stopReason": "end_turn",
                "usage": {"inputTokens": 180, "outputTokens": 60, "totalTokens": 240},
                "metrics": {"latencyMs": 512},
            }
            yield json.dumps({**json.loads(line), "modelOutput": output}).encode() + b"\n"


class LocalOpenAI(OpenAIData):
    """The OpenAI adapter, with the download replaced."""

    def __init__(self, download: Callable[[str], Iterator[bytes]]) -> None:
        super().__init__({"openAI": {"baseURL": "http://127.0.0.1:9/v1"}}, {})
        self._download = download

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        for name in files:
            yield from self._download(name)


def chunked(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines in chunks of a download's size."""
    held = bytearray()
    for line in lines:
        held += line
        if len(held) >= CHUNK_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


# ---------------------------------------------------------------- a run


class Life:
    """One run, from its input to its manifest."""

    def __init__(self, folder: Path, name: str, provider: str) -> None:
        self.store = FolderStore(folder)
        self.input = f"s3://data/{name}.jsonl"
        self.staging = f"s3://staging/{name}-{provider}/"
        self.output = f"s3://results/{name}-{provider}/"
        self.folder = folder
        self.provider = provider
        self.data: BatchData = BedrockData(self.store, model="amazon.nova-lite-v1:0")
        if provider == "openAI":
            self.data = LocalOpenAI(self._download)
        self.new = Run(
            key="key0123456789abcdef",
            tag="tag0123",
            installation="bench",
            owner=Owner("ml", "bench", "uid"),
            spec={"model": "gpt-4.1-mini", "operation": "ChatCompletions"},
            provider=ProviderPin("InferenceProvider", "p", "ml", {provider: {}}, "ml", "account"),
            limits=LIMITS,
            output=Place(self.output),
            staging=Place(self.staging),
            created_at=NOW,
        )
        self.run = self.ended = self.new

    def _download(self, name: str) -> Iterator[bytes]:
        info = self.store.head(name)
        if info is not None:
            return self.store.read(info)
        return chunked(answers(self.run.shards[int(name)]))

    def _perform(self, kind: TaskKind, **fields: Any) -> Any:
        bench = Workbench(
            StoreSource(self.store, self.input),
            self.store,
            PrefixPlace(self.store, self.output),
            self.data,
            self.folder / "spool",
        )
        return perform(Task(kind, self.run, **fields), bench, self._hear)

    def _hear(self, report: TaskReport) -> None:
        if isinstance(report, Checkpoint):
            shards = (*self.run.shards, report.shard)
            self.run = replace(self.run, shards=shards, cursor=report.cursor)

    def stage(self, *, keeps: bool = True) -> None:
        self.run = self.new
        self.store = replace(self.store, keeps_shards=keeps)
        result = self._perform(TaskKind.STAGE)
        self.store = replace(self.store, keeps_shards=True)
        assert isinstance(result, StageDone), result
        assert not result.staged.bad, result
        self.run = replace(self.run, staged=result.staged, input=result.snapshot)

    def staged(self, shard: Shard) -> Path:
        return self.store.path(f"{self.staging}shards/{shard.index:05d}.jsonl")

    def result_file(self, shard: Shard) -> str:
        """What the ended batch says its results are; Bedrock says a folder."""
        if self.provider == "openAI":
            return f"s3://answers/{self.provider}/{shard.index:05d}.jsonl"
        return f"s3://answers/{self.provider}/{shard.index:05d}/"

    def write_answers(self) -> list[Path]:
        """The result files of all shards, outside of what is timed."""
        paths = []
        for shard in self.run.shards:
            uri = self.result_file(shard)
            lines = answers(shard)
            if uri.endswith("/"):
                uri, lines = f"{uri}records.jsonl.out", converse_answers(shard, self.staged(shard))
            path = self.store.path(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.writelines(lines)
            paths.append(path)
        return paths

    def end(self, *, made_up: bool = False) -> None:
        """All batches are over; with `made_up` answers that stand in no file."""
        for shard in self.run.shards:
            files = (str(shard.index) if made_up else self.result_file(shard),)
            ended = Submission(
                1, SubmissionState.ENDED, {}, "", NOW, NOW,
                batch_state=BatchState.COMPLETED, files=files,
            )  # fmt: skip
            self.run = self.run.with_shard(
                replace(shard, state=ShardState.ENDED, submissions=(ended,))
            )
        self.ended = self.run

    def collect(self) -> None:
        """Collect all of the ended batches, as if nothing of them were in staging."""
        self.store.delete_prefix(f"{self.staging}answers/")
        self.run = self.ended
        for shard in self.ended.shards:
            result = self._perform(TaskKind.COLLECT, shard=shard.index, ordinal=1)
            assert isinstance(result, ShardCollected), result
            assert result.collected.answered == shard.rows, result
            done = replace(shard, state=ShardState.COLLECTED, collected=result.collected)
            self.run = self.run.with_shard(done)

    def claim(self) -> None:
        assert PrefixPlace(self.store, self.output).claim(claim_of(self.run)) is None

    def finish(self) -> None:
        """Write the results of a claimed place; every record must have its answer there."""
        result = self._perform(TaskKind.FINISH)
        assert isinstance(result, Finished), result
        assert self.run.staged is not None
        assert result.results.completed == self.run.staged.rows, result


# ---------------------------------------------------------------- figures


def bare_loop(path: Path) -> None:
    digest = sha256()
    with path.open("rb") as file:
        for line in file:
            digest.update(line)


def decode_encode(*paths: Path) -> None:
    decode, encode = msgspec.json.Decoder().decode, msgspec.json.Encoder().encode
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                encode(decode(line))


def against(baseline: Callable[[], None], work: Callable[[], None], size: int) -> dict[str, float]:
    """Throughput of both, the best of the rounds, taken in turns.

    By CPU time, in MB per second: other programs share the cores. Files come out of the page cache
    for both. By the clock on the wall, for comparison, as `wall` and `wallBaseline`.
    """
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        for name, wall, call in (
            ("baseline", "wallBaseline", baseline),
            ("value", "wall", work),
        ):
            start, start_wall = time.process_time(), time.perf_counter()
            call()
            for key, took in (
                (name, time.process_time() - start),
                (wall, time.perf_counter() - start_wall),
            ):
                best[key] = max(best.get(key, 0.0), size / took / 1e6)
    return best


def total(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths)


def speed(folder: Path, megabytes: int) -> dict[str, Any]:
    """MB/s of every step and of its baseline."""
    figures: dict[str, Any] = {}
    mixed = WORDS.replace("invoice", "Überweisung").replace("asks", "請求")
    for name, words in (("ascii", WORDS), ("utf8", mixed)):
        life = Life(folder, name, "openAI")
        path = life.store.path(life.input)
        figures["rows"] = write_requests(path, megabytes << 20, words)
        loop = partial(bare_loop, path)
        stage = partial(life.stage, keeps=False)
        figures[f"stage-openai-{name}"] = against(loop, stage, path.stat().st_size)

    bedrock = Life(folder, "ascii", "bedrock")
    path = bedrock.store.path(bedrock.input)
    once = partial(decode_encode, path)
    stage = partial(bedrock.stage, keeps=False)
    figures["stage-bedrock"] = against(once, stage, path.stat().st_size)
    bedrock.stage()
    openai = Life(folder, "ascii", "openAI")
    openai.stage()
    for life in (openai, bedrock):
        files = life.write_answers()
        life.end()
        name = f"collect-{life.provider.lower()}"
        figures[name] = against(partial(decode_encode, *files), life.collect, total(files))
    files = [openai.store.path(openai.result_file(shard)) for shard in openai.run.shards]
    openai.claim()
    figures["finish-openai"] = against(partial(decode_encode, *files), openai.finish, total(files))
    return figures


def peak_mib() -> float:
    """The most this process had in memory. Not ru_maxrss: that is inherited from the parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak(folder: Path, megabytes: int) -> dict[str, Any]:
    """MiB at the most, after imports and after each step."""
    life = Life(folder, "ascii", "openAI")
    rows = write_requests(life.store.path(life.input), megabytes << 20, WORDS)
    figures: dict[str, Any] = {"rows": rows, "before": peak_mib()}
    life.stage()
    figures["stage"] = peak_mib()
    life.end(made_up=True)
    life.collect()
    figures["collect"] = peak_mib()
    life.claim()
    life.finish()
    figures["finish"] = peak_mib()
    return figures


def main() -> None:
    what, folder, megabytes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    print(json.dumps((speed if what == "speed" else peak)(folder, megabytes)))


if __name__ == "__main__":
    main()

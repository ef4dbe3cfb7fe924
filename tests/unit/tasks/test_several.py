"""Records that go to the provider as several: each text is a row, each record one result."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.model.batch import BatchState
from batchinference.model.work import TaskFault, TaskKind
from batchinference.records import codes
from batchinference.records.several import Part, combined
from fakes.data import SeveralData
from fakes.stores import Crash, MemoryStore
from unit.tasks.desk import STAGING, Desk, expired, jsonl, limits, make_run, refused

TEXTS = st.lists(st.text(max_size=6), max_size=7)


def asked(custom_id: str, *texts: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "body": {"input": list(texts), **body}}


def embedded(row: int, tokens: int = 3) -> dict[str, Any]:
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [row, 0.5]}],
        "model": "titan",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return {
        "custom_id": f"r{row:010d}",
        "response": {"status_code": 200, "request_id": "", "body": body},
        "error": None,
    }


def desk(path: Path, records: int = 50_000, minimum: int = 1, chunk: int = 1 << 16) -> Desk:
    run = make_run(limits(records, minimum=minimum), operation="Embeddings")
    return Desk(path, run, MemoryStore(chunk), SeveralData())


def lines_of(found: Desk) -> list[dict[str, Any]]:
    shards = found.store.under(f"{STAGING}shards/")
    return [
        json.loads(line)
        for name, data in sorted(shards.items())
        if name.endswith(".jsonl")
        for line in data.splitlines()
    ]


def answer(found: Desk, results: Iterable[dict[str, Any]]) -> None:
    known = {r["custom_id"]: r for r in results}
    for shard in range(len(found.run.shards)):
        rows = [known[f"r{row:010d}"] for row in found.rows_of(shard)]
        found.end(shard, BatchState.EXPIRED, {f"out-{shard}": jsonl(reversed(rows))})
        found.collect(shard)


@settings(max_examples=60, deadline=None)
@given(
    records=st.lists(TEXTS, max_size=8),
    most=st.integers(2, 5),
    minimum=st.integers(1, 2),
    chunk=st.integers(1, 200),
)
def test_a_pass_resumed_in_the_middle_of_a_record_leaves_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[list[str]],
    most: int,
    minimum: int,
    chunk: int,
) -> None:
    def make() -> Desk:
        found = desk(tmp_path_factory.getbasetemp(), most, minimum, chunk)
        found.put_input(jsonl(asked(f"t{n}", *texts) for n, texts in enumerate(records)) or b"\n")
        return found

    whole = make()
    done = whole.stage()
    assert done.staged.records == len(records)
    assert done.staged.bad == records.count([])
    assert [line["text"] for line in lines_of(whole)] == [t for texts in records for t in texts]
    checkpoints = whole.checkpoints()
    for stop in range(len(checkpoints)):
        resumed = make()

        def crash_later(operation: str, uri: str, at: int = stop) -> None:
            if operation == "commit" and f"/{at + 1:05d}" in uri:
                raise Crash

        resumed.store.before = crash_later
        with suppress(Crash):
            resumed.perform(TaskKind.STAGE)
        resumed.store.before = None
        assert resumed.stage() == done
        assert resumed.staged() == whole.staged()
        assert resumed.checkpoints() == checkpoints


def test_the_texts_of_a_record_come_back_as_one_answer_in_their_order(tmp_path: Path) -> None:
    found = desk(tmp_path, records=3)
    found.put_input(jsonl([asked("a", "1"), asked("b", "2", "3", "4"), asked("c", "5")]))
    done = found.stage()
    assert (done.staged.rows, done.staged.records) == (5, 3)
    assert [s.rows for s in found.run.shards] == [3, 2], "a record lies in two shards"
    answer(found, map(embedded, range(5)))
    found.finish()
    first, second, third = found.results()
    assert [r["custom_id"] for r in (first, second, third)] == ["a", "b", "c"]
    assert [r["row"] for r in (first, second, third)] == [0, 1, 2]
    body = second["response"]["body"]
    assert [(d["index"], d["embedding"]) for d in body["data"]] == [
        (0, [1, 0.5]),
        (1, [2, 0.5]),
        (2, [3, 0.5]),
    ]
    assert body["usage"] == {"prompt_tokens": 9, "total_tokens": 9}
    assert third["response"]["body"]["data"][0]["embedding"] == [4, 0.5]
    counts = found.manifest()["counts"]
    assert (counts["total"], counts["completed"], counts["failed"]) == (3, 3, 0)


FAILS: list[tuple[Sequence[dict[str, Any]], str, str, int, str]] = [
    ([refused(0), embedded(1)], "HTTP400", "failed", 207, "one of them"),
    ([embedded(0), expired(1)], codes.BATCH_EXPIRED, "expired", 207, "one was not processed"),
    ([refused(0), refused(1)], "HTTP400", "failed", 400, "all of them"),
    ([expired(0), expired(1)], codes.BATCH_EXPIRED, "expired", 0, "none was processed"),
    ([refused(0), expired(1)], "HTTP400", "failed", 400, "each differently"),
]


@pytest.mark.parametrize(("said", "code", "count", "status", "reason"), FAILS)
def test_a_record_fails_with_its_texts_and_keeps_what_was_answered(
    tmp_path: Path,
    said: Sequence[dict[str, Any]],
    code: str,
    count: str,
    status: int,
    reason: str,
) -> None:
    found = desk(tmp_path)
    found.put_input(jsonl([asked("a", "1", "2")]))
    found.stage()
    answer(found, said)
    found.finish()
    (line,) = found.results()
    assert line == found.results("errors")[0]
    assert line["error"]["code"] == code, reason
    assert line["error"]["message"].startswith("text ")
    response = line["response"]
    assert (response["status_code"] if response else 0) == status, reason
    if status == 207:
        (kept,) = response["body"]["data"]
        answered = next(
            n for n, r in enumerate(said) if r["response"] and "data" in r["response"]["body"]
        )
        assert (kept["index"], kept["embedding"]) == (answered, [answered, 0.5])
    counts = found.manifest()["counts"]
    assert (counts["total"], counts[count], counts["completed"]) == (1, 1, 0), reason


def test_only_the_texts_without_an_answer_go_again(tmp_path: Path) -> None:
    found = desk(tmp_path)
    found.put_input(jsonl([asked("a", "1", "2"), asked("b", "3")]))
    found.stage()
    answer(found, [embedded(0), expired(1), embedded(2)])
    pooled = found.pool(0)
    assert found.rows_of(pooled.shards[0].index) == [1]
    found.end(1, files={"again": jsonl([embedded(1)])})
    found.collect(1)
    found.finish()
    assert [r["error"] for r in found.results()] == [None, None]
    assert len(found.results()[0]["response"]["body"]["data"]) == 2


def test_a_second_record_of_the_same_id_is_refused_and_no_text_of_one_record(
    tmp_path: Path,
) -> None:
    found = desk(tmp_path, records=2)
    found.put_input(jsonl([asked("a", "1", "2", "3"), asked("a", "4", "5"), asked("b")]))
    done = found.stage()
    assert [(b.line, b.code) for b in done.staged.first_bad] == [
        (2, codes.DUPLICATE_ID),
        (3, "UnsupportedContent"),
    ]
    assert (done.staged.records, done.staged.rows, done.staged.bad) == (3, 5, 2)


def test_an_answer_of_another_form_is_no_record(tmp_path: Path) -> None:
    found = desk(tmp_path)
    found.put_input(jsonl([asked("a", "1", "2")]))
    found.stage()
    odd = embedded(1)
    odd["response"]["body"]["data"] *= 2
    answer(found, [embedded(0), odd])
    found.claim()
    result = found.perform(TaskKind.FINISH)
    assert isinstance(result, TaskFault)
    assert "2 embeddings" in result.message


def test_an_answer_without_a_response_is_told() -> None:
    with pytest.raises(ValueError, match="no response"):
        combined(0, [Part(True, b'"response":null,"error":null,"row":0}')])

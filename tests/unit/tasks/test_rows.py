"""Tables and rows through the staging pass, and what is told of them."""

from __future__ import annotations

import gzip
import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from batchinference.errors import Permanent, Stalled
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskFault, TaskKind
from batchinference.records import codes
from batchinference.tasks.sources import InlineSource, Reading, StoreSource, input_source
from batchinference.tasks.workbench import Workbench
from fakes.stores import Crash, MemoryStore
from unit.tasks.desk import STAGING, Desk, limits, make_run

TEMPLATE = {"prompt": "Say {{ text }}", "idField": "id"}


class Table(Desk):
    """A desk whose input is rows."""

    template: dict[str, Any] | None = TEMPLATE

    def bench(self) -> Workbench:
        return replace(super().bench(), template=self.template)


def desk(path: Path, uri: str, *, records: int = 50_000, chunk: int = 1 << 16) -> Table:
    run = make_run(limits(records), promptTemplate={"missingField": "Fail"})
    found = Table(path, run, MemoryStore(chunk))
    found.source = StoreSource(found.store, uri, reading=Reading(None, path, True))
    return found


def prompts(found: Desk) -> list[str]:
    shards = found.store.under(f"{STAGING}shards/")
    return [
        json.loads(line)["body"]["messages"][0]["content"]
        for name, data in sorted(shards.items())
        if name.endswith(".jsonl")
        for line in data.splitlines()
    ]


def table() -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.table({"id": ["a", "b"], "text": ["one", "two"]}), out)
    return out.getvalue()


CSV = b"id,text\na,one\nb,two\n"
JSONL = b'{"id": "a", "text": "one"}\n{"id": "b", "text": "two"}\n'
KINDS = [
    ("rows.csv", CSV),
    ("rows.csv.gz", gzip.compress(CSV)),
    ("rows.csv.zst", zstandard.compress(CSV)),
    ("rows.jsonl", JSONL),
    ("rows.jsonl.gz", gzip.compress(JSONL)),
    ("rows.parquet", table()),
    ("rows.parquet.zst", zstandard.compress(table())),
]


@pytest.mark.parametrize(("name", "data"), KINDS, ids=[k[0] for k in KINDS])
def test_rows_of_every_kind_become_the_same_requests(
    tmp_path: Path, name: str, data: bytes
) -> None:
    uri = f"s3://data/in/{name}"
    found = desk(tmp_path, uri)
    found.put_input(data, uri)
    done = found.stage()
    assert (done.staged.rows, done.staged.bad) == (2, 0)
    assert prompts(found) == ["Say one", "Say two"]
    rows = found.store.objects[f"{STAGING}rows/00000.jsonl"]
    assert rows == b'"a"\n"b"\n'


def test_a_prefix_may_hold_several_kinds(tmp_path: Path) -> None:
    found = desk(tmp_path, "s3://data/in/")
    found.put_input(CSV, "s3://data/in/1.csv")
    found.put_input(b'{"id": "c", "text": "three"}\n', "s3://data/in/2.jsonl")
    found.stage()
    assert prompts(found) == ["Say one", "Say two", "Say three"]


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(max_size=8), max_size=12),
    records=st.integers(1, 4),
    chunk=st.integers(1, 60),
    is_packed=st.booleans(),
)
def test_a_pass_resumed_after_any_shard_leaves_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    records: int,
    chunk: int,
    is_packed: bool,
) -> None:
    import csv

    out = io.StringIO(newline="")
    lines = [["id", "text"], *([str(n), text] for n, text in enumerate(texts))]
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows(lines)
    data = out.getvalue().encode(errors="replace")
    uri = "s3://data/in/rows.csv" + (".gz" if is_packed else "")

    def make() -> Table:
        found = desk(tmp_path_factory.getbasetemp(), uri, records=records, chunk=chunk)
        found.put_input(gzip.compress(data, mtime=0) if is_packed else data, uri)
        return found

    whole = make()
    done = whole.stage()
    assert done.staged.rows == len(texts)
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


def test_bad_rows_are_told_by_the_row_and_bad_lines_by_the_line(tmp_path: Path) -> None:
    uri = "s3://data/in/rows.csv"
    found = desk(tmp_path, uri)
    found.put_input(b'id,text\na,"x\ny"\n\nb\n,z\na,again\n', uri)
    done = found.stage()
    assert [(b.place, b.code) for b in done.staged.first_bad] == [
        (f"{uri} row 2", codes.WRONG_FIELDS),
        (f"{uri} row 3", codes.MISSING_FIELD),
        (f"{uri} row 4", codes.DUPLICATE_ID),
    ]
    found.end(0, files={})
    found.collect(0)
    found.finish()
    said = [
        r["error"]["message"]
        for r in found.results("errors")
        if r["error"]["code"] != codes.ANSWER_LOST
    ]
    assert [text.partition(":")[2].partition(":")[0] for text in said] == [
        f"//data/in/rows.csv row {n}" for n in (2, 3, 4)
    ]
    lines = desk(tmp_path, "s3://data/in/rows.jsonl")
    lines.put_input(b"[]\n", "s3://data/in/rows.jsonl")
    assert lines.stage().staged.first_bad[0].place == "s3://data/in/rows.jsonl line 1"


def test_a_template_that_is_not_known_any_more_is_not_found(tmp_path: Path) -> None:
    found = desk(tmp_path, "s3://data/in/rows.csv")
    found.template = None
    found.put_input(CSV, "s3://data/in/rows.csv")
    result = found.perform(TaskKind.STAGE)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.INPUT_NOT_FOUND)


@pytest.mark.parametrize(
    ("data", "template", "reason"),
    [
        (b"id\xff\n", TEMPLATE, Reason.INPUT_UNREADABLE),
        (CSV, {"prompt": "{{ text"}, Reason.INVALID_SPEC),
    ],
)
def test_what_no_row_gets_over_ends_the_pass(
    tmp_path: Path, data: bytes, template: dict[str, Any], reason: str
) -> None:
    found = desk(tmp_path, "s3://data/in/rows.csv")
    found.template = template
    found.put_input(data, "s3://data/in/rows.csv")
    result = found.perform(TaskKind.STAGE)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.PERMANENT, reason)


def test_inline_text_is_a_table_where_the_job_says_so() -> None:
    source = input_source(
        {"format": "CSV"},
        inline=CSV.decode(),
        namespace="ml",
        store=None,
        config_maps=None,
        has_rows=True,
    )
    (info,) = source.objects()
    assert source.is_table(info)
    assert b"".join(source.read(info)) == b'{"id":"a","text":"one"}\n{"id":"b","text":"two"}\n'
    assert b"".join(source.read(info, 24)) == b'{"id":"b","text":"two"}\n'
    with pytest.raises(Permanent, match="promptTemplate"):
        InlineSource(CSV.decode(), Reading(source.reading.stated)).objects()
    with pytest.raises(Stalled):
        InlineSource(None).objects()

"""Results as Parquet, and both formats read by what people read them with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
from pyarrow import parquet

from batchinference.records import codes
from unit.tasks.desk import OUTPUT, Desk, answer, jsonl, limits, make_run, refused, request

ROWS = 60
MEMBERS = [
    "row",
    "id",
    "custom_id",
    "status_code",
    "request_id",
    "body",
    "error_code",
    "error_message",
]


def finished(path: Path, kind: str, part_bytes: int = 1 << 20) -> Desk:
    output = {"s3": {"uri": OUTPUT}, **({"format": "Parquet"} if kind == "parquet" else {})}
    found = Desk(path, make_run(limits(25), output=output), part_bytes=part_bytes, suffix=kind)
    found.claim()
    found.put_input(jsonl([*(request(f"t{n} \u2028") for n in range(ROWS - 1)), b"broken"]))
    found.stage()
    for shard in range(len(found.run.shards)):
        rows = found.rows_of(shard)
        lines = [refused(n) if n % 10 == 3 else answer(n, "f\u00fcr") for n in reversed(rows)]
        found.end(shard, files={f"out-{shard}": jsonl(lines)})
        found.collect(shard)
    found.finish()
    return found


def kept(found: Desk, folder: Path) -> Path:
    """The output place as files."""
    for uri, data in found.store.under(OUTPUT).items():
        file = folder / uri.removeprefix(OUTPUT)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def test_every_row_is_there_in_order_with_what_the_lines_say(tmp_path: Path) -> None:
    lines = finished(tmp_path / "a", "jsonl").results()
    found = finished(tmp_path / "b", "parquet")
    folder = kept(found, tmp_path / "out")
    table = parquet.read_table(folder / "results" / "part-00000.parquet")
    assert table.schema.names == MEMBERS
    rows = table.to_pylist()
    assert len(rows) == ROWS
    for line, row in zip(lines, rows, strict=True):
        response, error = line["response"] or {}, line["error"] or {}
        assert row["row"] == line["row"]
        assert (row["id"], row["custom_id"]) == (line["id"], line["custom_id"])
        assert row["status_code"] == response.get("status_code")
        assert (json.loads(row["body"]) if row["body"] else None) == response.get("body")
        assert (row["error_code"], row["error_message"]) == (
            error.get("code"),
            error.get("message"),
        )
    failed = parquet.read_table(folder / "errors" / "part-00000.parquet").to_pylist()
    assert failed == [row for row in rows if row["error_code"]]


def test_the_manifest_lists_the_parts_and_their_format(tmp_path: Path) -> None:
    found = finished(tmp_path, "parquet", part_bytes=4_000)
    manifest = found.manifest()
    assert manifest["format"] == "Parquet"
    assert len(manifest["results"]) > 1
    assert sum(part["rows"] for part in manifest["results"]) == ROWS
    for part in [*manifest["results"], *manifest["errors"]]:
        data = found.store.objects[part["uri"]]
        assert part["uri"].endswith(".parquet")
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part["bytes"], part["sha256"])


def test_the_same_run_leaves_the_same_bytes(tmp_path: Path) -> None:
    one, other = (finished(tmp_path / name, "parquet").store.under(OUTPUT) for name in "ab")
    assert one == other
    again = finished(tmp_path / "c", "parquet")
    before = dict(again.store.objects)
    again.finish()
    assert again.store.objects == before


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_duckdb_and_pandas_read_results_without_help(tmp_path: Path, kind: str) -> None:
    folder = kept(finished(tmp_path / "run", kind, part_bytes=4_000), tmp_path / "out")
    parts = str(folder / "results" / f"*.{kind}")
    code = "error_code" if kind == "parquet" else "error.code"
    counted = duckdb.sql(f"select count(*), count({code}) from '{parts}'").fetchall()
    assert counted == [(ROWS, 7)]
    ids = duckdb.sql(f"select custom_id from '{parts}' order by \"row\" limit 2").fetchall()
    assert ids == [("t0 \u2028",), ("t1 \u2028",)]
    files = sorted((folder / "results").iterdir())
    frames = [
        pd.read_parquet(file) if kind == "parquet" else pd.read_json(file, lines=True)
        for file in files
    ]
    frame: Any = pd.concat(frames)
    assert list(frame["row"]) == list(range(ROWS))
    errors = (
        frame["error_code"]
        if kind == "parquet"
        else frame["error"].map(lambda e: (e or {}).get("code") if isinstance(e, dict) else None)
    )
    assert list(errors.dropna().unique()) == ["HTTP400", codes.INVALID_JSON]

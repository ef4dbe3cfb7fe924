"""What input objects hold, as lines of JSON: packed or not, tables or not, hostile or not."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from batchinference.errors import Permanent
from batchinference.model.job import InputFormat
from batchinference.model.status import Reason
from batchinference.records.formats.compression import (
    MAX_WINDOW,
    Bounds,
    refuse_packed,
    unpacked,
)
from batchinference.records.formats.csv_rows import MAX_FIELD, csv_lines
from batchinference.records.formats.naming import Compression, encoding_of
from batchinference.records.formats.parquet_rows import parquet_lines

GZIP, ZSTD = Compression.GZIP, Compression.ZSTD


def cut(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def zst(data: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def rows(chunks: Iterable[bytes]) -> list[Any]:
    return [json.loads(line) for line in b"".join(chunks).splitlines()]


def refused(chunks: Iterator[bytes]) -> str:
    with pytest.raises(Permanent) as told:
        for _ in chunks:
            pass
    assert told.value.reason == Reason.INPUT_UNREADABLE
    return told.value.message


# ---------------------------------------------------------------- names

NAMES = [
    ("a.jsonl", None, InputFormat.JSONL, Compression.NONE),
    ("a", None, InputFormat.JSONL, Compression.NONE),
    ("a.CSV", None, InputFormat.CSV, Compression.NONE),
    ("a.csv.gz", None, InputFormat.CSV, GZIP),
    ("a.parquet", None, InputFormat.PARQUET, Compression.NONE),
    ("a.jsonl.ZST", None, InputFormat.JSONL, ZSTD),
    ("a.csv.gz", InputFormat.JSONL, InputFormat.JSONL, GZIP),
    ("a.dat", InputFormat.PARQUET, InputFormat.PARQUET, Compression.NONE),
]


@pytest.mark.parametrize(("name", "stated", "kind", "compression"), NAMES)
def test_what_an_object_holds_is_told_by_the_job_and_by_its_name(
    name: str, stated: InputFormat | None, kind: InputFormat, compression: Compression
) -> None:
    found = encoding_of(name, stated)
    assert (found.format, found.compression) == (kind, compression)


# ---------------------------------------------------------------- packed


@given(
    parts=st.lists(st.binary(max_size=3_000), min_size=1, max_size=3),
    size=st.integers(1, 700),
    compression=st.sampled_from([GZIP, ZSTD]),
)
def test_what_was_packed_comes_back_whole(
    parts: list[bytes], size: int, compression: Compression
) -> None:
    packed = b"".join((gzip.compress if compression is GZIP else zst)(part) for part in parts)
    found = unpacked(cut(packed, size), compression, "a", len(packed))
    assert b"".join(found) == b"".join(parts)


TEXT = b"some text that is packed " * 400
DAMAGED = [
    (GZIP, b"", "ends in the middle", "an empty object"),
    (GZIP, gzip.compress(TEXT)[:-20], "ends in the middle", "cut short"),
    (GZIP, TEXT, "not valid gzip", "not packed at all"),
    (GZIP, gzip.compress(TEXT)[:20] + b"\xff" * 200, "not valid gzip", "overwritten"),
    (GZIP, gzip.compress(TEXT) + b"rest", "behind its first part", "something else behind it"),
    (GZIP, gzip.compress(TEXT)[:-8] + b"\1" * 8, "not valid gzip", "another checksum"),
    (ZSTD, b"", "ends in the middle", "an empty object"),
    (ZSTD, zst(TEXT)[:-5], "ends in the middle", "cut short"),
    (ZSTD, TEXT, "not valid zstd", "not packed at all"),
]


@pytest.mark.parametrize(("compression", "data", "said", "reason"), DAMAGED)
def test_what_is_not_packed_like_that_is_told(
    compression: Compression, data: bytes, said: str, reason: str
) -> None:
    message = refused(unpacked(cut(data, 50), compression, "s3://b/a", len(data)))
    assert said in message, reason
    assert "s3://b/a" in message


def test_zeros_behind_a_gzip_member_are_padding() -> None:
    packed = gzip.compress(TEXT) + b"\0" * 512
    assert b"".join(unpacked(cut(packed, 100), GZIP, "a", len(packed))) == TEXT


def test_a_zstd_window_that_takes_too_much_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters)
    out = io.BytesIO()
    with packer.stream_writer(out, closefd=False) as writer:
        writer.write(b"x" * (MAX_WINDOW * 5))
    assert "window" in refused(unpacked(cut(out.getvalue(), 100), ZSTD, "a", len(out.getvalue())))


@pytest.mark.parametrize("compression", [GZIP, ZSTD])
def test_a_bomb_is_put_out(compression: Compression) -> None:
    data = bytes(8 << 20)
    packed = zlib.compress(data, 9, wbits=31) if compression is GZIP else zst(data)
    bounds = Bounds(most=4 << 20, free=1 << 20)
    made: list[int] = []
    pieces = unpacked([packed], compression, "a", len(packed), bounds)
    with pytest.raises(Permanent) as told:
        made.extend(map(len, pieces))
    assert told.value.reason == Reason.TOO_LARGE
    assert sum(made) <= 4 << 20


@pytest.mark.parametrize("packed", [gzip.compress(b"a"), zst(b"a")])
def test_packed_text_that_is_not_called_so_is_told(packed: bytes) -> None:
    assert "packed once" in refused(refuse_packed([b"", packed], "a.csv"))


# ---------------------------------------------------------------- CSV

CSV: list[tuple[bytes, list[dict[str, str]], str]] = [
    (b"a,b\n1,2\n", [{"a": "1", "b": "2"}], "the plainest"),
    (b"a,b\r\n1,2\r\n3,4", [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], "CRLF, no final newline"),
    (b"\xef\xbb\xbfa\n1\n", [{"a": "1"}], "a BOM"),
    (b'a\n"x,""y""\nz"\n', [{"a": 'x,"y"\nz'}], "quotes, commas and newlines in quotes"),
    ("a\nx\u2028y\x0bz\x85\n".encode(), [{"a": "x\u2028y\x0bz\x85"}], "no line ends to CSV"),
    (b"a\nx\x00y\n", [{"a": "x\x00y"}], "NUL"),
    (b"a,b\n,\n", [{"a": "", "b": ""}], "empty values"),
    (b"\n\na\n\n1\n\n", [{"a": "1"}], "blank lines"),
    (b"a\n", [], "a header alone"),
    (b"a b,\xc3\xbc\n1,2\n", [{"a b": "1", "\u00fc": "2"}], "any names"),
]


@pytest.mark.parametrize(("data", "want", "reason"), CSV)
@pytest.mark.parametrize("size", [1, 3, 1 << 20])
def test_csv(data: bytes, want: list[dict[str, str]], reason: str, size: int) -> None:
    assert rows(csv_lines(cut(data, size), "a.csv")) == want, reason


def test_a_row_with_other_fields_than_the_header_is_told_apart_and_costs_no_other() -> None:
    found = rows(csv_lines([b"a,b\n1\n1,2,3\n1,2\n"], "a.csv"))
    assert found == [["ragged row", 1, 2], ["ragged row", 3, 2], {"a": "1", "b": "2"}]


UNREADABLE_CSV = [
    (b"", "is empty", "nothing at all"),
    (b"a,,b\n", "column 2 has no name", "an empty name"),
    (b"a,b,a\n", "column 3", "the same name twice"),
    (b'a\n1\n"x"y\n', "behind row 1", "text behind a quote"),
    (b'a\n"x\n', "behind row 0", "a quote that never ends"),
    (b"a\n\xff\n", "not UTF-8", "another encoding"),
    (b"a\n\xc3", "not UTF-8", "half a character at the end"),
    ("a\n1\n".encode("utf-16"), "not UTF-8", "UTF-16"),
    (b"x" * (MAX_FIELD + 2), "a line of more than", "one line without an end"),
]


@pytest.mark.parametrize(("data", "said", "reason"), UNREADABLE_CSV)
def test_what_is_no_csv_is_told(data: bytes, said: str, reason: str) -> None:
    assert said in refused(csv_lines(cut(data, 1 << 20), "a.csv")), reason


@given(
    st.lists(st.lists(st.text(max_size=6), min_size=2, max_size=2), max_size=6),
    st.integers(1, 40),
)
def test_what_python_writes_as_csv_is_read_back(table: list[list[str]], size: int) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *table])
    data = out.getvalue().encode(errors="replace")
    want = [[t.encode(errors="replace").decode() for t in row] for row in table]
    found = rows(csv_lines(cut(data, size), "a.csv"))
    assert [[row["a"], row["b"]] for row in found] == want


# ---------------------------------------------------------------- Parquet


def written(path: Path, table: pa.Table, **options: Any) -> Path:
    file = path / "a.parquet"
    parquet.write_table(table, file, **options)
    return file


def test_parquet_values_are_json_values(tmp_path: Path) -> None:
    when = dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC)
    columns: dict[str, tuple[Any, pa.DataType, Any]] = {
        "int": (2**60, pa.int64(), 2**60),
        "text": ("\u2028 ü", pa.string(), "\u2028 ü"),
        "large": ("x", pa.large_string(), "x"),
        "bool": (True, pa.bool_(), True),
        "float": (0.5, pa.float64(), 0.5),
        "decimal": (Decimal("12.50"), pa.decimal128(9, 2), "12.50"),
        "date": (when.date(), pa.date32(), "2026-01-02"),
        "time": (when, pa.timestamp("us", tz="UTC"), "2026-01-02T03:04:05.000006Z"),
        "nanos": (when.replace(tzinfo=None), pa.timestamp("ns"), "2026-01-02T03:04:05.000006"),
        "bytes": (b"hi", pa.binary(), "aGk="),
        "list": ([1, None], pa.list_(pa.int32()), [1, None]),
        "struct": ({"a": 1, "b": None}, pa.struct({"a": pa.int8(), "b": pa.int8()}), {"a": 1}),
        "category": ("c", pa.dictionary(pa.int8(), pa.string()), "c"),
    }
    arrays = {name: pa.array([value], kind) for name, (value, kind, _) in columns.items()}
    (row,) = rows(parquet_lines(written(tmp_path, pa.table(arrays)), "a"))
    assert row == {name: want for name, (_, _, want) in columns.items()}


def test_what_json_does_not_have_is_absent(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([None, math.nan, math.inf], pa.float64()), "b": [1, 2, 3]})
    assert rows(parquet_lines(written(tmp_path, table), "a")) == [{"b": 1}, {"b": 2}, {"b": 3}]


def test_many_row_groups_are_read_in_order(tmp_path: Path) -> None:
    table = pa.table({"n": range(5_000)})
    file = written(tmp_path, table, row_group_size=700, compression="zstd")
    assert [row["n"] for row in rows(parquet_lines(file, "a"))] == list(range(5_000))


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(40) + b"PAR1", b"a,b\n1,2\n"])
def test_what_is_no_parquet_is_told(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.parquet"
    file.write_bytes(data)
    assert "can't be read as Parquet" in refused(parquet_lines(file, "s3://b/a.parquet"))

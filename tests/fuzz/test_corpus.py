"""The corpus, a table of hostile inputs, and short random ones, through every target."""

from __future__ import annotations

import gzip
import io
import json

import pyarrow as pa
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from fuzz import corpus
from fuzz.targets import TARGETS

_BODY = b'{"messages":[{"role":"user","content":%b}]}'
_LINE = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":%b}'


def _line(content: bytes) -> bytes:
    return _LINE % (_BODY % content)


def _parquet() -> bytes:
    out = io.BytesIO()
    columns = {"id": ["a", None], "n": [1, 2], "list": [[1], []], "b": [b"x", b"\xff"]}
    parquet.write_table(pa.table(columns), out, compression="zstd")
    return out.getvalue()


HOSTILE = [
    _line(b'"hello"'),
    _BODY % b'"hello"',
    "{\u2028\u2029\x85}".encode(),
    _line('"a\u2028b"'.encode()),
    b"\xef\xbb\xbf" + _line(b'"with a BOM"'),
    _line(b'"NUL \x00"'),
    _line(b'"NUL \\u0000"'),
    _line(b'"half a pair \\ud800"'),
    _line(b'"not UTF-8 \xff\xfe"'),
    b'{"custom_id":"a","custom_id":"b","body":{}}',
    b'{"custom_id":"a","body":{"messages":[],"messages":[1]}}',
    _line(b"NaN"),
    _line(b"1e999"),
    _line(b"9" * 400),
    _line(b"-" + b"9" * 400 + b"." + b"9" * 400),
    _line(b'"CRLF"') + b"\r",
    b"[" * 5_000,
    b'{"a":' * 5_000,
    _LINE % (b"[" * 2_000 + b"]" * 2_000),
    b'"' + b"\\" * 1_001,
    b"",
    b"null",
    b"{}",
    b'{"recordId":"a","modelInput":{"s3Location":{"uri":"s3://other/x"}}}',
    (
        b'{"recordId":"r0000000001","modelOutput":{"output":{"message":{"role":"assistant",'
        b'"content":[{"text":"hi"}]}},"stopReason":"end_turn","usage":{"inputTokens":1}}}'
    ),
    b'{"recordId":"r0000000001","error":{"errorCode":"400","errorMessage":"bad"}}',
    (
        b'{"custom_id":"r0000000001","response":{"status_code":200,"request_id":"x","body":'
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}},"error":null}'
    ),
    b'{"custom_id":"r0000000001","response":null,"error":{"code":"batch_expired"}}',
    json.dumps({"custom_id": "x" * 70_000, "body": {}}).encode(),
    b'id,text,"a ""b"""\r\n1,"x\ny",\n2\n',
    b'{"id": 1.50, "text": "x", "list": [null, {"a": 1}], "image": "s3://a/b"}',
    b"{% for x in (1..9) %}{{ x | json }}{% endfor %}{{ a | default: 'b' }}",
    gzip.compress(b"a,b\n1,2\n", mtime=0) * 2,
    zstandard.compress(b"a,b\n1,2\n"),
    gzip.compress(bytes(1 << 20), mtime=0),
    _parquet(),
]
"""Where the fuzzer begins, besides the corpus."""


@pytest.mark.parametrize("name", TARGETS)
def test_everything_that_was_worth_keeping_passes(name: str) -> None:
    inputs = corpus.read(name)
    assert inputs, "run `make fuzz`"
    for data in [*inputs, *HOSTILE]:
        TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_random_bytes_pass(name: str) -> None:
    @given(st.binary(max_size=300))
    @example(b"")
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()


def test_a_corpus_comes_back_as_it_was_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(corpus, "FOLDER", tmp_path)
    corpus.write("any", [b"b\n", b"a", b"a"])
    assert corpus.read("any") == [b"a", b"b\n"]
    corpus.unpack(corpus.read("any"), tmp_path / "files")
    assert sorted(corpus.pack(tmp_path / "files")) == [b"a", b"b\n"]
    assert corpus.read("another") == []

"""What is fuzzed: functions of bytes that must come to an end without an error of an unknown kind.

Each target checks what its subject promises, not only that nothing is raised: an assertion that
fails is a finding as a crash is. They are called by the fuzzer and, with the corpus, by the tests.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batchinference.adapters.bedrock import lines as bedrock
from batchinference.adapters.openai_batch import results as openai
from batchinference.errors import Permanent
from batchinference.model.job import MissingField, Operation, PromptTemplate
from batchinference.ports import ResultLine
from batchinference.records.formats.compression import Bounds, unpacked
from batchinference.records.formats.csv_rows import csv_lines
from batchinference.records.formats.naming import Compression
from batchinference.records.formats.parquet_rows import parquet_lines
from batchinference.records.lines import BOM, Block, Oversized, blocks, plain_lines
from batchinference.records.locations import check_locations
from batchinference.records.parameters import Default
from batchinference.records.refusal import BadLine, UnsupportedRequest
from batchinference.records.request import RequestReader, Rules, decode_body
from batchinference.records.result import answer_tail, error_tail, result_line
from batchinference.records.rowtable import bad_row
from batchinference.records.several import Part, combined
from batchinference.records.template import Template
from batchinference.records.translate import converse, converse_answers
from fuzz import bodies

Target = Callable[[bytes], None]

MESSAGE_BYTES = 4_000
"""No message of ours about a record is longer, whatever the record is."""

_MODEL = "model-1"
_URL = "/v1/chat/completions"
_READERS = [
    RequestReader(Rules(_MODEL, _URL, required="messages")),
    RequestReader(
        Rules(
            _MODEL,
            _URL,
            required="messages",
            defaults=(
                Default(("max_completion_tokens", "max_tokens"), 16),
                Default(("temperature",), 0),
            ),
            native=True,
            places=("s3://data/ml/",),
            closed=("s3://data/ml/.staging/",),
        )
    ),
    RequestReader(Rules(_MODEL, _URL)),
]


def request(data: bytes) -> None:
    """An input line: a record whose pieces are JSON, or a verdict; both ways of reading agree."""
    line = data.split(b"\n")[0]
    for reader in _READERS:
        found = None
        try:
            found = reader.read(line)
        except BadLine as bad:
            _check_verdict(bad)
        else:
            _check_json(found.custom_id, found.body)
            if not found.native:
                with suppress(BadLine):
                    assert decode_body(found.body).get("model") == _MODEL
        many = reader.read_usual(line + b"\n", is_ascii=line.isascii())
        if many is not None:
            assert found is not None, "the fast way took what the thorough one refuses"
            assert many.ids == [found.custom_id]
            (rest,) = many.rests
            assert many.front + bytes(rest) == found.body + b"}\n"


def split_lines(data: bytes) -> None:
    """Lines of any chunks are those of the whole, but for those that are too long."""
    if len(data) < 2:
        return
    size, most, data = data[0] + 1, data[1], data[2:]
    chunks = [data[at : at + size] for at in range(0, len(data), size)]
    found: list[Block] = list(blocks(chunks, most))
    lines = [line for block in found for line in block.lines]
    text = data.removeprefix(BOM)
    wanted = text.split(b"\n")
    if not wanted[-1]:
        wanted.pop()
    assert [len(line) for line in lines] == [len(line) for line in wanted]
    for line, whole in zip(lines, wanted, strict=True):
        assert isinstance(line, Oversized) == (len(whole) > most)
        assert isinstance(line, Oversized) or line == whole
    plain = data.split(b"\n")
    assert list(plain_lines(chunks)) == (plain if plain[-1] else plain[:-1])


def drawn(strategy: st.SearchStrategy[Any]) -> Callable[[Callable[[Any], None]], Target]:
    """A target whose subject is drawn by the bytes."""

    def target(check: Callable[[Any], None]) -> Target:
        quiet = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
        fuzz_one = given(strategy)(quiet(check)).hypothesis.fuzz_one_input  # type: ignore[attr-defined]

        def run(data: bytes) -> None:
            fuzz_one(data)

        return run

    return target


@drawn(bodies.CHATS)
def chat_to_converse(body: dict[str, Any]) -> None:
    """A chat request as Converse takes it, or the option that it can't do."""
    try:
        encoded = converse.encode(body)
    except UnsupportedRequest as refused:
        _check_message(refused.message)
        return
    json.loads(msgspec.json.encode(encoded))
    assert encoded["messages"][0]["role"] == "user"
    roles = [turn["role"] for turn in encoded["messages"]]
    assert all(one != other for one, other in itertools.pairwise(roles))


@drawn(bodies.ANSWERS)
def converse_answer(output: dict[str, Any]) -> None:
    """An answer of Converse as a chat completion, or an error that the caller knows."""
    try:
        body, asked, taken = converse_answers.decode(output, _MODEL)
    except (KeyError, TypeError, ValueError, AttributeError):
        return  # what `adapters.bedrock.lines` makes a failed record of
    assert asked >= 0
    assert taken >= 0
    json.loads(msgspec.json.encode(body))


def bedrock_line(data: bytes) -> None:
    """A line of Bedrock's results is a result, whatever it is."""
    _check_result(bedrock.result(data.split(b"\n")[0], _MODEL))


def openai_line(data: bytes) -> None:
    """The same of OpenAI's and its look-alikes'."""
    _check_result(openai.result(data.split(b"\n")[0]))


def locations(data: bytes) -> None:
    """The S3 locations of a native line are looked at, or it is refused."""
    with suppress(ValueError, RecursionError):
        json.loads(data)
        try:
            check_locations(data, ("s3://data/ml/",), b"null", ("s3://data/ml/.staging/",))
        except BadLine as bad:
            _check_verdict(bad)


def several(data: bytes) -> None:
    """Tails of result lines as one answer; those are ours, but what answers hold is not."""
    parts = [Part(tail[:1] == b"A", tail[1:]) for tail in data.split(b"\n")]
    with suppress(ValueError):
        line = result_line(b"tag", 7, b'"a"', combined(7, parts))
        assert json.loads(line)["row"] == 7


def row_table(data: bytes) -> None:
    """An entry of the row table is a user's id or a bad record."""
    with suppress(msgspec.MsgspecError, UnicodeError, RecursionError):
        bad_row(data)


def unpacking(data: bytes) -> None:
    """Packed bytes, in chunks as they come, are unpacked within bounds or refused."""
    bounds = Bounds(most=4 << 20, ratio=50, free=1 << 16)
    for compression in (Compression.GZIP, Compression.ZSTD):
        made = 0
        with suppress(Permanent):
            for piece in unpacked(_chunks(data), compression, "object", len(data), bounds):
                made += len(piece)
        assert made <= bounds.allowed(len(data))


def csv_table(data: bytes) -> None:
    """A CSV file is lines of JSON with the header's names, or refused."""
    with suppress(Permanent):
        for line in b"".join(csv_lines(_chunks(data), "object")).splitlines():
            row = json.loads(line)
            assert isinstance(row, dict | list)


def parquet_table(data: bytes) -> None:
    """A Parquet file is lines of JSON, or refused."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(data)
        file.flush()
        with suppress(Permanent):
            for chunk in parquet_lines(Path(file.name), "object"):
                for line in chunk.splitlines():
                    assert isinstance(json.loads(line), dict)


_TEMPLATES = [
    Template(
        PromptTemplate(
            system="{% if a %}{{ a | upcase }}{% endif %}",
            prompt="{{ text }} {% for x in list %}{{ x | json }}{% endfor %}",
            id_field="id",
            image_url_field="image",
            missing_field=missing,
        ),
        Operation.CHAT_COMPLETIONS,
    )
    for missing in MissingField
]


def rows(data: bytes) -> None:
    """A line as a row: a body that is JSON, or a verdict."""
    for template in _TEMPLATES:
        try:
            custom_id, body = template.request(data, 7)
        except BadLine as bad:
            _check_verdict(bad)
            continue
        _check_json(custom_id, msgspec.json.encode(body))


def templates(data: bytes) -> None:
    """A text is a template that comes to an end, or is refused without being quoted."""
    text = data.decode(errors="replace")
    try:
        made = Template(PromptTemplate(prompt=text or "p"), Operation.CHAT_COMPLETIONS)
        made.request(b'{"a": "b", "list": [1, {"x": 2}], "n": 1.5}', 0)
    except Permanent as refused:
        _check_message(refused.message)
    except BadLine as bad:
        _check_verdict(bad)


def _chunks(data: bytes) -> Iterator[bytes]:
    size = 1 + len(data) % 97
    for at in range(0, len(data), size):
        yield data[at : at + size]


TARGETS: Mapping[str, Target] = {
    "request": request,
    "lines": split_lines,
    "converse": chat_to_converse,
    "converse-answer": converse_answer,
    "bedrock-line": bedrock_line,
    "openai-line": openai_line,
    "locations": locations,
    "several": several,
    "row-table": row_table,
    "unpacking": unpacking,
    "csv": csv_table,
    "parquet": parquet_table,
    "rows": rows,
    "templates": templates,
}


# ---------------------------------------------------------------- what all of them promise


def _check_message(message: str) -> None:
    assert 0 < len(message) < MESSAGE_BYTES


def _check_verdict(bad: BadLine) -> None:
    assert bad.code.isalnum()
    _check_message(bad.message)
    _check_json(bad.custom_id)


def _check_json(*texts: bytes) -> None:
    for text in texts:
        json.loads(text)


def _check_result(found: ResultLine) -> None:
    assert found.input_tokens >= 0
    assert found.output_tokens >= 0
    assert found.is_answer or found.error_code
    if found.is_answer:
        assert found.wire_id or not found.unbilled
        tail = answer_tail(7, found.status_code, found.request_id, found.body)
    else:
        tail = error_tail(
            7,
            found.error_code,
            found.error_message,
            status_code=found.status_code,
            request_id=found.request_id,
            body=found.body,
        )
    assert b"\n" not in tail or isinstance(found.body, msgspec.Raw)

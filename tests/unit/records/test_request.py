"""What is a record and what is not: every kind of broken line has a code, and none crashes."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.errors import InvalidObject
from batchinference.model.job import (
    JSONSchema,
    Operation,
    Parameters,
    ResponseFormat,
    ResponseFormatType,
)
from batchinference.records import codes
from batchinference.records.parameters import Default, defaults
from batchinference.records.refusal import BadLine
from batchinference.records.request import RequestReader, Rules, decode_body
from batchinference.records.tokens import IMAGE_TOKENS, estimate
from batchinference.records.wire import row_of, wire_id

URL = "/v1/chat/completions"
RULES = Rules("m", URL, "messages")
NATIVE = Rules("m", URL, "messages", native=True)
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
LINE = {"custom_id": "a", "method": "POST", "url": URL, "body": BODY}


def line(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in {**LINE, **changes}.items() if v is not ...}).encode()


def body(**changes: Any) -> bytes:
    return line(body={k: v for k, v in {**BODY, **changes}.items() if v is not ...})


BAD: list[tuple[str, bytes, str, str]] = [
    ("not JSON at all", b"hello", codes.INVALID_JSON, "not JSON"),
    ("cut short", line()[:-3], codes.INVALID_JSON, "not JSON"),
    ("two values", line() + b" 1", codes.INVALID_JSON, "not JSON"),
    ("NaN is not JSON", body(temperature=float("nan")), codes.INVALID_JSON, "not JSON"),
    ("nor is Infinity", body(temperature=float("inf")), codes.INVALID_JSON, "not JSON"),
    ("trailing commas", b'{"custom_id":"a","body":{},}', codes.INVALID_JSON, "not JSON"),
    ("a NUL", b"\0", codes.INVALID_JSON, "not JSON"),
    ("a NUL inside a text", line().replace(b"hi", b"h\0i"), codes.INVALID_JSON, "not JSON"),
    ("a raw tab inside the id", line().replace(b'"a"', b'"a\tb"'), codes.INVALID_JSON, "not JSON"),
    ("a lone surrogate", line().replace(b"hi", b"\\ud800"), codes.INVALID_JSON, "not JSON"),
    ("a BOM inside a file", b"\xef\xbb\xbf" + line(), codes.INVALID_JSON, "not JSON"),
    ("not UTF-8", line().replace(b"hi", b"h\xffi"), codes.INVALID_ENCODING, "UTF-8"),
    ("an encoded surrogate", line().replace(b"hi", b"\xed\xa0\x80"), codes.INVALID_ENCODING, "UTF"),
    ("a list", b"[1]", codes.NOT_AN_OBJECT, "object"),
    ("a text", b'"x"', codes.NOT_AN_OBJECT, "object"),
    ("null", b"null", codes.NOT_AN_OBJECT, "object"),
    ("a nesting bomb", b'{"a":' * 200_000, codes.TOO_DEEP, "deep"),
    ("a nesting bomb in the body", line().replace(b'"hi"', b"[" * 100_000 + b"]" * 100_000),
     codes.TOO_DEEP, "deep"),
    ("no id", line(custom_id=...), codes.MISSING_FIELD, "custom_id"),
    ("an id that is a number", line(custom_id=7), codes.WRONG_TYPE, "custom_id"),
    ("an id that is null", line(custom_id=None), codes.WRONG_TYPE, "custom_id"),
    ("no body", line(body=...), codes.MISSING_FIELD, "body"),
    ("a body that is a text", line(body="x"), codes.WRONG_TYPE, "body"),
    ("a body that is null", line(body=None), codes.WRONG_TYPE, "body"),
    ("another method", line(method="GET"), codes.WRONG_METHOD, "POST"),
    ("a method that is a number", line(method=1), codes.WRONG_TYPE, "method"),
    ("another operation", line(url="/v1/embeddings"), codes.WRONG_URL, URL),
    ("a full address", line(url="https://evil.example/v1/chat/completions"), codes.WRONG_URL, URL),
    ("an id twice", b'{"custom_id":"b",' + line()[1:], codes.DUPLICATE_KEY, "twice"),
    ("a body twice", line()[:-1] + b',"body":{"model":"m","messages":[]}}',
     codes.DUPLICATE_KEY, "twice"),
    ("a stream", body(stream=True), codes.STREAMING_UNSUPPORTED, "stream"),
    ("a stream of another type", body(stream="yes"), codes.WRONG_TYPE, "stream"),
    ("another model", body(model="gpt-x"), codes.MODEL_MISMATCH, "'m'"),
    ("a model that is a number", body(model=3), codes.WRONG_TYPE, "model"),
    ("no messages", body(messages=...), codes.MISSING_FIELD, "messages"),
    ("messages that are a text", body(messages="hi"), codes.WRONG_TYPE, "messages"),
    ("another provider's line", b'{"recordId":"a","modelInput":{}}', codes.PROVIDER_MISMATCH, "Bed"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "data", "code", "word"), BAD, ids=[b[0] for b in BAD])
def test_a_bad_line_gets_a_clear_code(reason: str, data: bytes, code: str, word: str) -> None:
    for is_ascii in {False, data.isascii()}:
        with pytest.raises(BadLine) as bad:
            RequestReader(RULES).read(data, is_ascii)
        assert bad.value.code == code, reason
        assert word in bad.value.message, reason


@pytest.mark.parametrize("code", [c for r, _, c, _ in BAD])
def test_every_code_is_in_the_table_of_codes(code: str) -> None:
    assert f"    {code}  " in (codes.__doc__ or "")


def test_a_bad_line_never_quotes_the_prompt() -> None:
    for _, data, _, _ in BAD:
        with pytest.raises(BadLine) as bad:
            RequestReader(RULES).read(data.replace(b'"hi"', b'"SECRET"'))
        assert "SECRET" not in bad.value.message


def test_a_legible_id_is_kept_with_what_is_wrong() -> None:
    for data in (body(model="x"), body(stream=True), line(method="GET"), body(messages=3)):
        with pytest.raises(BadLine) as bad:
            RequestReader(RULES).read(data)
        assert bad.value.custom_id == b'"a"'


GOOD: list[tuple[str, bytes]] = [
    ("as documented", line()),
    ("as other languages write it", json.dumps(LINE, separators=(",", ":")).encode()),
    ("with a carriage return", line() + b"\r"),
    ("with blanks around", b"  " + line() + b"\t "),
    ("in another order", json.dumps(dict(reversed(LINE.items()))).encode()),
    ("without method and url", line(method=..., url=...)),
    ("without method", line(method=...)),
    ("with the short url", line(url="/chat/completions")),
    ("with unknown keys beside it", line(priority=3, note={"body": 1})),
    ("with null for method", line(method=None)),
    ("with stream false", body(stream=False)),
    ("with stream null", body(stream=None)),
]


@pytest.mark.parametrize(("reason", "data"), GOOD, ids=[g[0] for g in GOOD])
def test_a_good_line_is_read_however_it_is_written(reason: str, data: bytes) -> None:
    found = RequestReader(RULES).read(data)
    assert found.custom_id == b'"a"', reason
    assert json.loads(found.body)["messages"] == BODY["messages"]
    assert json.loads(found.body)["model"] == "m"
    assert not found.native


def test_the_body_is_passed_on_byte_by_byte() -> None:
    odd = b'{"model":"m",  "messages":[ ], "seed":123456789012345678901234567890, "x":1.00e+2}'
    data = b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":' + odd + b"}"
    assert RequestReader(RULES).read(data).body == odd


@pytest.mark.parametrize("model", [..., None])
def test_a_body_without_a_model_gets_the_jobs(model: Any) -> None:
    found = RequestReader(RULES).read(body(model=model))
    pairs = json.loads(found.body, object_pairs_hook=list)
    assert [k for k, _ in pairs].count("model") == 1
    assert dict(pairs)["model"] == "m"


def test_one_string_in_two_spellings_is_one_id() -> None:
    plain = RequestReader(RULES).read(line(custom_id="aé/"))
    spelled = RequestReader(RULES).read(line(custom_id="X").replace(b'"X"', b'"\\u0061\\u00e9\\/"'))
    assert json.loads(plain.custom_id) == json.loads(spelled.custom_id)
    utf8 = json.dumps({**LINE, "custom_id": "aé/"}, ensure_ascii=False).encode()
    assert RequestReader(RULES).read(utf8).custom_id == spelled.custom_id == plain.custom_id


@pytest.mark.parametrize(
    "custom_id", ["", "a" * 5000, 'q"uote', "tab\t", "line\nbreak", "\u2028", "日本"]
)
def test_any_json_string_is_an_id(custom_id: str) -> None:
    assert json.loads(RequestReader(RULES).read(line(custom_id=custom_id)).custom_id) == custom_id


def test_a_native_line_keeps_its_input_untouched() -> None:
    data = b'{"recordId":"x","modelInput":{ "a": 1.00, "stream": true }}'
    found = RequestReader(NATIVE).read(data)
    assert (found.custom_id, found.body, found.native) == (
        b'"x"',
        b'{ "a": 1.00, "stream": true }',
        True,
    )
    assert RequestReader(NATIVE).read(b'{"modelInput":{}}').custom_id == b"null"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"recordId":3,"modelInput":{}}', codes.WRONG_TYPE),
        (b'{"recordId":"a","modelInput":[]}', codes.WRONG_TYPE),
        (b'{"recordId":"a","recordId":"b","modelInput":{}}', codes.DUPLICATE_KEY),
        (b'{"recordId":"a"}', codes.MISSING_FIELD),
    ],
)
def test_a_native_line_has_rules_too(data: bytes, code: str) -> None:
    with pytest.raises(BadLine) as bad:
        RequestReader(NATIVE).read(data)
    assert bad.value.code == code


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    for rules in (RULES, NATIVE):
        with suppress(BadLine):
            json.loads(RequestReader(rules).read(data).custom_id)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["custom_id", "method", "url", "body", "recordId", "modelInput", "x"]),
        json_values | st.just(BODY) | st.just("a") | st.just("POST") | st.just(URL),
    ),
    st.booleans(),
)
def test_what_is_accepted_is_json_with_the_jobs_model(value: dict[str, Any], compact: bool) -> None:
    data = json.dumps(value, separators=(",", ":") if compact else None).encode()
    try:
        found = RequestReader(RULES).read(data)
    except BadLine:
        return
    parsed = json.loads(found.body)
    assert parsed["model"] == "m"
    assert isinstance(parsed["messages"], list)
    assert json.loads(found.custom_id) == value["custom_id"]


# ---------------------------------------------------------------- parameters


def test_parameters_are_defaults_under_the_records_own() -> None:
    rules = Rules(
        "m", URL, "messages",
        (Default(("max_completion_tokens", "max_tokens"), 9), Default(("temperature",), 0)),
    )  # fmt: skip
    reader = RequestReader(rules)
    assert json.loads(reader.read(line()).body) == {
        **BODY, "max_completion_tokens": 9, "temperature": 0,
    }  # fmt: skip
    own = json.loads(reader.read(body(max_tokens=1, temperature=None)).body)
    assert own == {**BODY, "max_tokens": 1, "temperature": None}
    bare = json.loads(reader.read(body(model=..., temperature=1)).body)
    assert bare == {**BODY, "max_completion_tokens": 9, "temperature": 1}


SCHEMA = ResponseFormat(
    ResponseFormatType.JSON_SCHEMA, JSONSchema("n", {"type": "object"}, "d", strict=True)
)


@pytest.mark.parametrize(
    ("operation", "parameters", "want"),
    [
        (Operation.CHAT_COMPLETIONS,
         Parameters(256, "0", "0.5", ("END",), ResponseFormat(ResponseFormatType.JSON_OBJECT), {"b": 1, "a": 2}),
         {"max_completion_tokens": 256, "temperature": 0, "top_p": 0.5, "stop": ["END"],
          "response_format": {"type": "json_object"}, "a": 2, "b": 1}),
        (Operation.CHAT_COMPLETIONS, Parameters(response_format=SCHEMA),
         {"response_format": {"type": "json_schema", "json_schema": {
             "name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"}}}),
        (Operation.RESPONSES, Parameters(5, response_format=SCHEMA),
         {"max_output_tokens": 5, "text": {"format": {"type": "json_schema",
             "name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"}}}),
        (Operation.COMPLETIONS, Parameters(5, stop=("x",)), {"max_tokens": 5, "stop": ["x"]}),
        (Operation.EMBEDDINGS, Parameters(extra={"dimensions": 256}), {"dimensions": 256}),
        (Operation.EMBEDDINGS, Parameters(), {}),
    ],
)  # fmt: skip
def test_parameters_have_the_operations_own_names(
    operation: Operation, parameters: Parameters, want: dict[str, Any]
) -> None:
    found = defaults(parameters, operation)
    assert {d.names[0]: d.value for d in found} == want
    assert list(want) == [d.names[0] for d in found], "in a stable order"


@pytest.mark.parametrize(
    ("operation", "parameters", "path"),
    [
        (Operation.EMBEDDINGS, Parameters(5), "spec.parameters.maxOutputTokens"),
        (Operation.EMBEDDINGS, Parameters(temperature="0"), "spec.parameters.temperature"),
        (Operation.RESPONSES, Parameters(stop=("x",)), "spec.parameters.stop"),
        (Operation.COMPLETIONS, Parameters(response_format=SCHEMA), "spec.parameters.responseFormat"),
        (Operation.CHAT_COMPLETIONS, Parameters(temperature="hot"), "spec.parameters.temperature"),
        (Operation.CHAT_COMPLETIONS, Parameters(extra={"stream": True}), "spec.parameters.extra.stream"),
        (Operation.CHAT_COMPLETIONS,
         Parameters(response_format=ResponseFormat(ResponseFormatType.JSON_SCHEMA)),
         "spec.parameters.responseFormat.jsonSchema"),
    ],
)  # fmt: skip
def test_a_parameter_that_an_operation_lacks_is_named(
    operation: Operation, parameters: Parameters, path: str
) -> None:
    with pytest.raises(InvalidObject) as invalid:
        defaults(parameters, operation)
    assert invalid.value.path == path


# ---------------------------------------------------------------- small things


def test_a_number_beyond_doubles_can_be_passed_on_but_not_translated() -> None:
    found = RequestReader(RULES).read(body().replace(b'"hi"', b"1e999"))
    assert b"1e999" in found.body
    with pytest.raises(BadLine) as bad:
        decode_body(found.body, found.custom_id)
    assert bad.value.code == codes.NUMBER_OUT_OF_RANGE


@given(st.integers(0, 10**10 - 1))
def test_wire_ids_come_back_as_rows(row: int) -> None:
    assert row_of(wire_id(row)) == row


@pytest.mark.parametrize("wire", ["", "r", "x0000000001", "r00000000001", "r１", "r-1", "r1 "])
def test_ids_that_we_never_made_are_no_rows(wire: str) -> None:
    assert row_of(wire) is None


def test_an_inlined_image_is_not_counted_by_its_bytes() -> None:
    text = b'{"messages":[{"content":"' + b"word " * 1000 + b'"}]}'
    image = b'{"url":"data:image/png;base64,' + b"A" * 400_000 + b'"}'
    assert estimate(text) == pytest.approx(1250, rel=0.05)
    assert estimate(image) < 2 * IMAGE_TOKENS
    assert estimate(b"") == 1

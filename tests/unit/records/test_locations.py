"""A record names no S3 location that its job could not name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.records import codes
from batchinference.records.locations import check_locations
from batchinference.records.refusal import BadLine
from batchinference.records.request import RequestReader, Rules

PLACES = ("s3://data/ml/",)


def refused(model_input: bytes, places: tuple[str, ...] = PLACES) -> BadLine | None:
    try:
        check_locations(model_input, places, b'"me"')
    except BadLine as bad:
        return bad
    return None


def at(uri: Any) -> dict[str, Any]:
    """A picture as Converse takes it."""
    source = {"s3Location": {"uri": uri, "bucketOwner": "123456789012"}}
    picture = {"image": {"format": "png", "source": source}}
    return {"messages": [{"role": "user", "content": [{"text": "What is this?"}, picture]}]}


PATH = "`modelInput.messages[0].content[1].image.source.s3Location.uri`"
URIS = [
    ("s3://data/ml/cat.png", True, "inside"),
    ("s3://data/ml/a b/ä+=.png", True, "any text"),
    ("s3://data/qa/cat.png", False, "another namespace"),
    ("s3://data2/ml/cat.png", False, "another bucket"),
    ("s3://data/ml", False, "not a segment further"),
    ("s3://data/ml/../qa/cat.png", False, "dotted segments"),
    ("s3://data/ml/./cat.png", False, "dotted segments"),
    ("s3://data/ml//cat.png", False, "empty segments"),
    ("s3://data/ml/%2e%2e/qa/cat.png", False, "percent-encoding"),
    ("s3://data/ml/..\\qa", False, "backslashes"),
    ("s3://data/ml/a\nb", False, "control characters"),
    ("S3://data/ml/cat.png", False, "another scheme"),
    ("s3a://data/ml/cat.png", False, "another scheme"),
    ("s3:/data/ml/cat.png", False, "no scheme"),
    (" s3://data/ml/cat.png", False, "no scheme"),
    ("https://data.s3.amazonaws.com/ml/cat.png", False, "another scheme"),
    ("file:///etc/passwd", False, "another scheme"),
    ("arn:aws:s3:::data/ml/cat.png", False, "another scheme"),
    ("data/ml/cat.png", False, "no scheme"),
    ("", False, "nothing"),
    (7, False, "no text"),
]


@pytest.mark.parametrize(("uri", "fine", "reason"), URIS)
def test_what_a_location_may_be(uri: Any, fine: bool, reason: str) -> None:
    bad = refused(json.dumps(at(uri)).encode())
    assert (bad is None) is fine, reason
    if bad is not None:
        assert (bad.code, bad.custom_id) == (codes.LOCATION_NOT_ALLOWED, b'"me"')
        assert bad.message.startswith(PATH), bad.message
        quoted = bad.message.removeprefix(PATH).replace("'s3://data/ml/'", "")
        assert not uri or str(uri) not in quoted, "the record is not quoted"


EVIL = "s3://evil/x"
SHAPES = [
    (b'{"mediaSource":{"s3Location":{"uri":"s3://evil/x"}}}', ".mediaSource.s3Location.uri"),
    (b'{"mediaSource":{"s3Location":"s3://evil/x"}}', ".mediaSource.s3Location"),
    (b'{"S3LOCATION":{"URI":"http://evil/x"}}', ".S3LOCATION.URI"),
    (b'{"s3_location":{"uri":"http://evil/x"}}', ".s3_location.uri"),
    (b'{"s3Uri":"evil/x"}', ".s3Uri"),
    (b'{"s3_uri":"evil/x"}', ".s3_uri"),
    (b'{"a":[1,[{"s3Url":"x"}]]}', ".a[1][0].s3Url"),
    (b'{"video":{"uri":"s3://evil/x"}}', ".video.uri"),
    (b'{"whatever":["s3://data/ml/x","s3://evil/x"]}', ".whatever[1]"),
    (b'{"whatever":" S3N://evil/x "}', ".whatever"),
    (rb'{"s3Location":{"uri":"s3:\/\/evil\/x"}}', ".s3Location.uri"),
    (rb'{"video":"s3:\/\/evil\/x"}', ".video"),
    (rb'{"\u0073\u0033Uri":"evil/x"}', ".s3Uri"),
    (rb'{"video":"\u0053\u0033\u003a//evil/x"}', ".video"),
    (
        b'{"s3Location":{"uri":"s3://evil/x","uri":"s3://data/ml/x"}}',
        ".s3Location.uri",
    ),
    (
        b'{"s3Location":{"uri":"s3://evil/x"},"s3Location":{"uri":"s3://data/ml/x"}}',
        ".s3Location.uri",
    ),
    (
        b'{"s3Location":{"uri":"s3://data/ml/x"},"s3Location":{"uri":"s3://evil/x"}}',
        ".s3Location.uri",
    ),
]


@pytest.mark.parametrize(("model_input", "path"), SHAPES)
def test_a_location_is_found_wherever_and_however_it_is_written(
    model_input: bytes, path: str
) -> None:
    bad = refused(model_input)
    assert bad is not None
    assert f"`modelInput{path}`" in bad.message


INNOCENT = [
    (b'{"messages":[{"content":[{"text":"s3://evil/x"}]}]}', "a text"),
    (b'{"messages":[{"role":"user","content":"s3://evil/x"}]}', "a text"),
    (b'{"prompt":"s3://evil/x"}', "a text"),
    (b'{"inputText":"s3://evil/x"}', "a text"),
    (b'{"question":"s3://evil/x is broken, why?"}', "a sentence"),
    (b'{"note":"s3: cheap"}', "a sentence"),
    (b'{"tools":[{"input_schema":{"properties":{"s3Uri":{"type":"string"}}}}]}', "a schema"),
    (b'{"url":"https://example.com/x"}', "not in S3, and nobody fetches it"),
    (b'{"s3Location":{"bucketOwner":"123456789012"}}', "no location"),
    (b'{"s3Location":{"uri":"s3://data/ml/x"},"seed":1e999,"n":' + b"9" * 5000 + b"}", "numbers"),
]


@pytest.mark.parametrize(("model_input", "reason"), INNOCENT)
def test_what_is_no_location_is_let_through(model_input: bytes, reason: str) -> None:
    assert refused(model_input) is None, reason


def test_no_places_allow_nothing() -> None:
    bad = refused(json.dumps(at("s3://data/ml/cat.png")).encode(), places=())
    assert bad is not None
    assert "provider allows this namespace: nothing" in bad.message


def test_depth_is_bounded() -> None:
    deep = b'{"a":' * 200_000 + b'"s3://evil/x"' + b"}" * 200_000
    bad = refused(deep)
    assert bad is not None
    assert bad.code == codes.TOO_DEEP


def test_a_line_is_refused_by_its_reader() -> None:
    reader = RequestReader(Rules("m", "/v1/chat/completions", native=True, places=PLACES))
    line = b'{"recordId":"a","modelInput":%b}'
    fine = json.dumps(at("s3://data/ml/cat.png")).encode()
    assert reader.read(line % fine).body == fine
    with pytest.raises(BadLine) as bad:
        reader.read(line % json.dumps(at("s3://data/qa/cat.png")).encode())
    assert (bad.value.code, bad.value.custom_id) == (codes.LOCATION_NOT_ALLOWED, b'"a"')


# ---------------------------------------------------------------- whatever is around it

names = st.sampled_from(["a", "image", "source", "uri", "text", "s3", "content", "ä", "s3Uri:"])
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)
keys = st.text(alphabet="abc./%\\\x00 -", max_size=12)


def escaped(text: str, which: list[bool]) -> str:
    """The JSON with some ASCII letters of its strings written as escapes."""
    out, in_string, skip = [], False, 0
    for n, c in enumerate(text):
        if skip:
            skip -= 1
        elif c == "\\":
            skip = 5 if text[n + 1] == "u" else 1
        elif c == '"':
            in_string = not in_string
        elif in_string and c.isascii() and which[n % len(which)]:
            out.append(f"\\u{ord(c):04x}")
            continue
        out.append(c)
    return "".join(out)


@given(
    tree=trees,
    path=st.lists(names | st.integers(0, 2), max_size=5),
    key=keys,
    bucket=st.sampled_from(["data/ml/", "data/", "evil/ml/"]),
    which=st.lists(st.booleans(), min_size=1, max_size=7),
)
def test_a_location_passes_only_inside_of_the_places(
    tree: Any, path: list[str | int], key: str, bucket: str, which: list[bool]
) -> None:
    uri = f"s3://{bucket}{key}"
    whole: Any = {"s3Location": {"uri": uri}, "more": tree}
    for step in reversed(path):
        whole = [tree] * step + [whole] if isinstance(step, int) else {"more": tree, step: whole}
    written = escaped(json.dumps({"x": whole}), which).encode()
    assert json.loads(written) == {"x": whole}, "the test writes what it means"
    if refused(written) is not None:
        return
    assert uri.startswith(PLACES[0])
    inner = uri.removeprefix(PLACES[0]).removesuffix("/")
    assert not inner or not {"", ".", ".."} & set(inner.split("/"))
    assert not set(uri) & {"%", "\\", "\x00"}


@given(trees)
def test_what_has_no_location_is_never_refused(tree: Any) -> None:
    text = json.dumps({"x": tree})
    if "s3" not in text.casefold():
        assert refused(text.encode()) is None


CLOSED = [
    ("s3://data/ml/.staging/inst/k/answers/0.jsonl", "another run's answers"),
    ("s3://data/ml/.staging/inst/", "all of it"),
]


@pytest.mark.parametrize(("uri", "reason"), CLOSED)
def test_a_record_does_not_name_what_the_operator_keeps_of_runs(uri: str, reason: str) -> None:
    closed = ("s3://data/ml/.staging/inst/",)
    with pytest.raises(BadLine, match="where the operator keeps") as bad:
        check_locations(json.dumps(at(uri)).encode(), PLACES, b'"me"', closed)
    assert bad.value.code == codes.LOCATION_NOT_ALLOWED, reason
    beside = json.dumps(at("s3://data/ml/.staging/other")).encode()
    check_locations(beside, PLACES, b'"me"', closed)

"""Rows and a template as request bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.errors import Permanent
from batchinference.model.job import MissingField, Operation, PromptTemplate
from batchinference.model.status import Reason
from batchinference.records import codes
from batchinference.records.refusal import BadLine
from batchinference.records.template import Template

CHAT = Operation.CHAT_COMPLETIONS


def made(row: Any, operation: Operation = CHAT, **template: Any) -> tuple[bytes, dict[str, Any]]:
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    return Template(PromptTemplate(**template), operation).request(line, 7)


def prompt(row: Any, text: str, missing: MissingField = MissingField.FAIL) -> str:
    _, body = made(row, prompt=text, missing_field=missing)
    content: str = body["messages"][0]["content"]
    return content


RENDERED: list[tuple[str, Any, str, str]] = [
    ("Hello {{ name }}", {"name": "Ann"}, "Hello Ann", "a field"),
    ("{{ a.b.c }}", {"a": {"b": {"c": 1}}}, "1", "a nested one"),
    ("{{ ['my field'] }}", {"my field": "x"}, "x", "a name with a blank"),
    ("{{ n }}", b'{"n": 12.50}', "12.50", "a number as it was written"),
    ("{{ n }}", {"n": 2**53 + 1}, str(2**53 + 1), "a large one"),
    ("{{ t }} {{ f }}", {"t": True, "f": False}, "true false", "truth"),
    ("{{ tags | json }}", {"tags": ["a", {"b": 1}]}, '["a", {"b": 1}]', "a list as JSON"),
    ("{% for t in tags %}[{{ t }}]{% endfor %}", {"tags": ["a", "b"]}, "[a][b]", "a loop"),
    ("{{ x | default: 'none' }}", {"y": 1}, "none", "a default"),
    ("{% if a == 'x' %}yes{% else %}no{% endif %}", {"a": "x"}, "yes", "a condition"),
    ("{{ a }}", {"a": "{{ b }}"}, "{{ b }}", "a value is no template"),
    ("{{ a }}", {"a": "<b>&\u2028"}, "<b>&\u2028", "nothing is escaped"),
    ("no fields", {}, "no fields", "a text alone"),
]


@pytest.mark.parametrize(("text", "row", "want", "reason"), RENDERED)
def test_texts_are_made_of_fields(text: str, row: Any, want: str, reason: str) -> None:
    assert prompt(row, text) == want, reason


@pytest.mark.parametrize("row", [{}, {"a": None}, {"b": 1}])
def test_a_missing_field_fails_the_row_or_is_empty(row: dict[str, Any]) -> None:
    with pytest.raises(BadLine) as bad:
        prompt(row, "x{{ a }}")
    assert bad.value.code == codes.MISSING_FIELD
    assert "'a'" in bad.value.message
    assert prompt(row, "x{{ a }}", MissingField.EMPTY) == "x"


BODIES: list[tuple[Operation, dict[str, Any], dict[str, Any]]] = [
    (
        CHAT,
        {"system": "s {{ a }}", "prompt": "p {{ a }}"},
        {
            "messages": [
                {"role": "system", "content": "s 1"},
                {"role": "user", "content": "p 1"},
            ]
        },
    ),
    (
        CHAT,
        {"prompt": "p", "image_url_field": "i"},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "p"},
                        {"type": "image_url", "image_url": {"url": "https://example.com/i.png"}},
                    ],
                }
            ]
        },
    ),
    (
        Operation.RESPONSES,
        {"system": "s", "prompt": "p {{ a }}"},
        {"instructions": "s", "input": "p 1"},
    ),
    (
        Operation.RESPONSES,
        {"prompt": "p", "image_url_field": "i"},
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "p"},
                        {
                            "type": "input_image",
                            "detail": "auto",
                            "image_url": "https://example.com/i.png",
                        },
                    ],
                }
            ]
        },
    ),
    (Operation.COMPLETIONS, {"prompt": "p {{ a }}"}, {"prompt": "p 1"}),
    (Operation.EMBEDDINGS, {"input": "t {{ a }}"}, {"input": "t 1"}),
]


@pytest.mark.parametrize(("operation", "template", "want"), BODIES)
def test_each_operation_has_its_body(
    operation: Operation, template: dict[str, Any], want: dict[str, Any]
) -> None:
    row = {"a": 1, "i": "https://example.com/i.png"}
    assert made(row, operation, **template) == (b'"7"', want)


IDS: list[tuple[str, Any, bytes | None]] = [
    ("id", {"id": "t-1"}, b'"t-1"'),
    ("id", {"id": 7}, b'"7"'),
    ("id", b'{"id": 1.50}', b'"1.50"'),
    ("a.id", {"a": {"id": "x"}}, b'"x"'),
    ("a.id", {"a.id": "y"}, b'"y"'),
    ("id", {"id": ""}, None),
    ("id", {"id": None}, None),
    ("id", {"id": True}, None),
    ("id", {"id": ["x"]}, None),
    ("id", {}, None),
]


@pytest.mark.parametrize(("field", "row", "want"), IDS)
def test_a_field_is_the_id(field: str, row: Any, want: bytes | None) -> None:
    if want is not None:
        assert made(row, prompt="p", id_field=field)[0] == want
        return
    with pytest.raises(BadLine) as bad:
        made(row, prompt="p", id_field=field)
    assert (bad.value.code, field in bad.value.message) == (codes.MISSING_FIELD, True)


def test_a_row_without_its_image_fails_or_has_none() -> None:
    with pytest.raises(BadLine) as bad:
        made({"id": "x"}, prompt="p", image_url_field="i", id_field="id")
    assert (bad.value.code, bad.value.custom_id) == (codes.MISSING_FIELD, b'"x"')
    _, body = made({}, prompt="p", image_url_field="i", missing_field=MissingField.EMPTY)
    assert body["messages"][0]["content"] == "p"


BAD_ROWS: list[tuple[bytes, str, str]] = [
    (b"[1, 2]", codes.NOT_AN_OBJECT, "a list"),
    (b'"text"', codes.NOT_AN_OBJECT, "a text"),
    (b'["ragged row", 3, 2]', codes.WRONG_FIELDS, "what the CSV reader says of a row"),
    (b"{", codes.INVALID_JSON, "cut"),
    (b'{"a": NaN}', codes.INVALID_JSON, "NaN"),
    (b'{"a": "\xff"}', codes.INVALID_ENCODING, "not UTF-8"),
    (b'{"a": ' + b"[" * 5_000, codes.TOO_DEEP, "deep"),
    (b'{"a": "\\ud800"}', codes.INVALID_JSON, "half a character"),
]


@pytest.mark.parametrize(("line", "code", "reason"), BAD_ROWS)
def test_what_is_no_row_is_told(line: bytes, code: str, reason: str) -> None:
    with pytest.raises(BadLine) as bad:
        made(line, prompt="p")
    assert bad.value.code == code, reason


NO_TEMPLATES: list[tuple[Operation, dict[str, str], str]] = [
    (CHAT, {"prompt": "secret {{ a"}, "prompt"),
    (CHAT, {"prompt": "secret {% nothing %}"}, "prompt"),
    (CHAT, {"prompt": "p", "system": "secret {% if %}"}, "system"),
    (CHAT, {"prompt": "secret {% include 'x' %}"}, "prompt"),
    (CHAT, {"prompt": "secret {% render 'x' %}"}, "prompt"),
    (Operation.EMBEDDINGS, {"input": "secret {{ | }}"}, "input"),
    (Operation.COMPLETIONS, {"prompt": "p", "system": "secret"}, "system"),
    (Operation.COMPLETIONS, {"prompt": "p", "image_url_field": "i"}, "imageURLField"),
]


@pytest.mark.parametrize(("operation", "template", "part"), NO_TEMPLATES)
def test_what_is_no_template_is_told_by_its_field_and_not_quoted(
    operation: Operation, template: dict[str, str], part: str
) -> None:
    with pytest.raises(Permanent) as told:
        Template(PromptTemplate(**template), operation)
    assert told.value.reason == Reason.INVALID_SPEC
    assert told.value.message.startswith(f"spec.promptTemplate.{part}: ")
    assert "secret" not in told.value.message


COSTLY: list[tuple[str, str]] = [
    (
        "{% for a in (1..1000) %}{% for b in (1..1000) %}x{% endfor %}{% endfor %}",
        codes.LINE_TOO_LONG,
    ),
    ("{% for a in (1..99999) %}{{ t }}{% endfor %}", codes.LINE_TOO_LONG),
    ("{{ t | nofilter }}", codes.TEMPLATE_FAILED),
    ("{{ 1 | divided_by: 0 }}", codes.TEMPLATE_FAILED),
]


@pytest.mark.parametrize(("text", "code"), COSTLY)
def test_what_costs_too_much_or_fails_is_the_rows_own_error(text: str, code: str) -> None:
    with pytest.raises(BadLine) as bad:
        prompt({"t": "x" * 1_000}, text)
    assert bad.value.code == code
    assert "xxx" not in bad.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
TEXTS = st.lists(
    st.sampled_from(
        [
            "{{",
            "}}",
            "{%",
            "%}",
            " a ",
            "if",
            "for",
            "in",
            "endif",
            "endfor",
            "|",
            "json",
            "'",
            ".",
            "x",
        ]
    ),
    max_size=8,
).map(" ".join)


@given(TEXTS, JSON, st.sampled_from(MissingField))
def test_nothing_but_verdicts_comes_of_any_template_and_any_row(
    text: str, row: Any, missing: MissingField
) -> None:
    try:
        _, body = made(
            {"a": row} if not isinstance(row, dict) else row,
            prompt=text or "p",
            missing_field=missing,
        )
    except (BadLine, Permanent):
        return
    json.dumps(body)

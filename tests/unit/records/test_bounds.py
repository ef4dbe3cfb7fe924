"""How many tokens an answer may have, as its request says; nothing that is not said is made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.model.job import Operation, Parameters
from batchinference.records.bounds import MEMBERS, MOST, native_bound
from batchinference.records.parameters import REQUIRED, URLS, Default, defaults
from batchinference.records.request import RequestReader, Rules

CHAT, TEXT = Operation.CHAT_COMPLETIONS, Operation.COMPLETIONS
LIMITED = Parameters(max_output_tokens=50)
TWICE = Parameters(max_output_tokens=50, extra={"n": 2})


def reader(operation: Operation = CHAT, parameters: Parameters | None = None) -> RequestReader:
    return RequestReader(
        Rules(
            "m",
            URLS[operation],
            REQUIRED[operation],
            defaults(parameters or Parameters(), operation),
            native=True,
            bounds=MEMBERS[operation],
        )
    )


def line_of(operation: Operation, **body: Any) -> bytes:
    content = {"messages": []} if operation is CHAT else {"input": "a"}
    content = {"prompt": "a"} if operation is TEXT else content
    whole = {"model": "m", **content, **body}
    line = {"custom_id": "a", "method": "POST", "url": URLS[operation], "body": whole}
    return json.dumps(line).encode()


BOUNDS: list[tuple[str, Operation, Parameters | None, dict[str, Any], int]] = [
    ("its own", CHAT, None, {"max_completion_tokens": 7}, 7),
    ("under the older name", CHAT, None, {"max_tokens": 7}, 7),
    ("the newer name counts", CHAT, None, {"max_tokens": 9, "max_completion_tokens": 7}, 7),
    ("of several answers", CHAT, None, {"max_tokens": 7, "n": 3}, 21),
    ("one is no more", CHAT, None, {"max_tokens": 7, "n": 1}, 7),
    ("null is one", CHAT, None, {"max_tokens": 7, "n": None}, 7),
    ("nothing said", CHAT, None, {}, 0),
    ("null says nothing", CHAT, None, {"max_tokens": None}, 0),
    ("a text is no number", CHAT, None, {"max_tokens": "7"}, 0),
    ("without a bound, on some servers", CHAT, None, {"max_tokens": -1}, 0),
    ("none", CHAT, None, {"max_tokens": 0}, 0),
    ("a fraction", CHAT, None, {"max_tokens": 7.5}, 0),
    ("a number of answers that is none", CHAT, None, {"max_tokens": 7, "n": "many"}, 0),
    ("more than can be told", CHAT, None, {"max_tokens": MOST, "n": 2}, 0),
    ("the job's", CHAT, LIMITED, {}, 50),
    ("the record's own before the job's", CHAT, LIMITED, {"max_tokens": 7}, 7),
    ("it says null, and gets no default", CHAT, LIMITED, {"max_tokens": None}, 0),
    ("the job's, of several answers", CHAT, LIMITED, {"n": 2}, 100),
    ("the job asks for several", CHAT, TWICE, {}, 100),
    ("of each record's own", CHAT, Parameters(extra={"n": 2}), {"max_tokens": 7}, 14),
    ("the job's by the provider's name", CHAT, Parameters(extra={"max_tokens": 9}), {}, 9),
    ("the best of several is paid for with all", TEXT, None, {"max_tokens": 7, "best_of": 4}, 28),
    ("the larger number", TEXT, None, {"max_tokens": 7, "n": 2, "best_of": 4}, 28),
    ("an answer for each prompt", TEXT, LIMITED, {"prompt": ["a", "b", "c"]}, 150),
    ("one prompt in tokens", TEXT, LIMITED, {"prompt": [1, 2, 3]}, 50),
    ("prompts in tokens", TEXT, LIMITED, {"prompt": [[1], [2, 3]]}, 100),
    ("no prompt", TEXT, LIMITED, {"prompt": []}, 0),
    ("of a response", Operation.RESPONSES, None, {"max_output_tokens": 7}, 7),
    ("the job's, of a response", Operation.RESPONSES, LIMITED, {}, 50),
    ("another operation's member", Operation.RESPONSES, None, {"max_tokens": 7}, 0),
    ("vectors are no tokens", Operation.EMBEDDINGS, None, {}, 0),
]


@pytest.mark.parametrize(
    ("reason", "operation", "parameters", "body", "want"), BOUNDS, ids=[b[0] for b in BOUNDS]
)
def test_what_bounds_an_answer(reason, operation, parameters, body, want) -> None:
    line = line_of(operation, **body)
    assert reader(operation, parameters).read(line).output == want, reason
    usual = reader(operation, parameters).read_usual(line + b"\n", True)
    if usual is not None:
        assert list(usual.outputs) == [want], "in bulk it is the same"


def test_a_request_made_of_a_row_has_the_job_s_bound() -> None:
    made = reader(parameters=LIMITED).complete(b'"a"', b'{"messages":[]}')
    assert made.output == 50


def test_usual_records_say_it_in_bulk() -> None:
    lines = [line_of(CHAT, max_tokens=7), line_of(CHAT), line_of(CHAT, max_completion_tokens=9)]
    usual = reader().read_usual(b"\n".join([*lines, b""]), True)
    assert usual is not None
    assert list(usual.outputs) == [7, 0, 9]
    same = reader(parameters=LIMITED).read_usual(
        line_of(CHAT) + b"\n" + line_of(CHAT) + b"\n", True
    )
    assert same is not None
    assert list(same.outputs) == [50, 50]


VALUES = st.sampled_from(
    [None, 0, 1, 2, 7, -1, "7", 1.5, [1], True, 1 << 24, (1 << 24) + 1, 1 << 40]
)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n"]), VALUES),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from([None, LIMITED, TWICE, Parameters(extra={"n": 2})]),
)
def test_many_at_once_are_bounded_as_one_by_one(bodies, parameters) -> None:
    lines = [line_of(CHAT, **body) for body in bodies]
    usual = reader(parameters=parameters).read_usual(b"\n".join([*lines, b""]), True)
    if usual is not None:
        single = reader(parameters=parameters)
        assert list(usual.outputs) == [single.read(line).output for line in lines]


NATIVE: list[tuple[str, Any, int]] = [
    ("Anthropic", {"max_tokens": 7}, 7),
    ("Converse and Nova", {"inferenceConfig": {"maxTokens": 7}}, 7),
    ("Nova's other spelling", {"inferenceConfig": {"max_new_tokens": 7}}, 7),
    ("Titan", {"textGenerationConfig": {"maxTokenCount": 7}}, 7),
    ("Llama", {"max_gen_len": 7}, 7),
    ("OpenAI's open models", {"max_completion_tokens": 7}, 7),
    ("several of Cohere's", {"max_tokens": 7, "num_generations": 3}, 21),
    ("the larger of two", {"max_tokens": 7, "inferenceConfig": {"maxTokens": 9}}, 9),
    ("nothing", {"messages": []}, 0),
    ("no number", {"max_tokens": "7"}, 0),
    ("true is no number", {"max_tokens": True}, 0),
    ("one that is none besides", {"max_tokens": 7, "max_gen_len": "x"}, 0),
    ("no object where one should be", {"inferenceConfig": [1]}, 0),
    ("too many to tell", {"max_tokens": MOST, "n": 2}, 0),
]


@pytest.mark.parametrize(("reason", "body", "want"), NATIVE, ids=[n[0] for n in NATIVE])
def test_what_bounds_an_answer_in_bedrocks_own_formats(reason, body, want) -> None:
    text = json.dumps(body).encode()
    assert native_bound(text) == want, reason
    line = b'{"recordId":"a","modelInput":%b}' % text
    assert reader().read(line).output == want


def test_deep_input_of_another_format_has_no_bound() -> None:
    assert native_bound(b'{"inferenceConfig":{"maxTokens":' + b"[" * 100_000) == 0


def test_a_default_that_is_no_bound_is_none() -> None:
    unbounded = (Default(("max_tokens", "max_completion_tokens"), "many"),)
    rules = Rules("m", URLS[CHAT], "messages", unbounded, bounds=MEMBERS[CHAT])
    assert RequestReader(rules).read(line_of(CHAT)).output == 0

"""Chat completions to Converse and back, by table."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.records import codes
from batchinference.records.refusal import BadLine, UnsupportedRequest
from batchinference.records.request import decode_body
from batchinference.records.translate import converse, converse_answers

USER = {"role": "user", "content": "hi"}
PNG = "data:image/png;base64,aGVsbG8="


def chat(**body: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [USER], **body}


TRANSLATED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "the plainest request has messages alone",
        chat(),
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
    ),
    (
        "system and developer texts are merged, wherever they stand",
        chat(
            messages=[
                {"role": "system", "content": "a"},
                USER,
                {"role": "developer", "content": [{"type": "text", "text": "b"}]},
            ]
        ),
        {
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "system": [{"text": "a"}, {"text": "b"}],
        },
    ),
    (
        "turns must alternate, so consecutive messages of one role become one",
        chat(messages=[USER, USER, {"role": "assistant", "content": "yo"}, USER]),
        {
            "messages": [
                {"role": "user", "content": [{"text": "hi"}, {"text": "hi"}]},
                {"role": "assistant", "content": [{"text": "yo"}]},
                {"role": "user", "content": [{"text": "hi"}]},
            ]
        },
    ),
    (
        "an inlined image keeps its base64, and jpg is called jpeg",
        chat(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what?"},
                        {"type": "image_url", "image_url": {"url": PNG}},
                        {"type": "image_url", "image_url": {"url": PNG.replace("png", "jpg")}},
                    ],
                }
            ]
        ),
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"text": "what?"},
                        {"image": {"format": "png", "source": {"bytes": "aGVsbG8="}}},
                        {"image": {"format": "jpeg", "source": {"bytes": "aGVsbG8="}}},
                    ],
                }
            ]
        },
    ),
    (
        "blank texts are refused by Converse and are left out",
        chat(messages=[{"role": "system", "content": " "}, USER]),
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
    ),
    (
        "every sampling option has its place, and one stop text becomes a list",
        chat(max_tokens=5, temperature=0, top_p=0.5, stop="END"),
        {
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "inferenceConfig": {
                "maxTokens": 5,
                "temperature": 0,
                "topP": 0.5,
                "stopSequences": ["END"],
            },
        },
    ),
    (
        "the newer name of the token limit wins over the older one",
        chat(max_tokens=5, max_completion_tokens=7),
        {
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "inferenceConfig": {"maxTokens": 7},
        },
    ),
    (
        "a JSON schema travels as JSON text",
        chat(
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "n", "strict": True, "schema": {"type": "object"}},
            }
        ),
        {
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "outputConfig": {
                "textFormat": {
                    "type": "json_schema",
                    "structure": {"jsonSchema": {"schema": '{"type":"object"}', "name": "n"}},
                }
            },
        },
    ),
    (
        "there is no JSON mode, so it is asked for",
        chat(response_format={"type": "json_object"}),
        {
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "system": [{"text": converse.JSON_INSTRUCTION}],
        },
    ),
    (
        "what asks for nothing is left out",
        chat(
            n=1,
            logprobs=False,
            tools=[],
            tool_choice="auto",
            presence_penalty=0.0,
            stop=[],
            user="u",
            metadata={"a": "b"},
            seed=3,
            stream=False,
            whatever=None,
            response_format={"type": "text"},
        ),
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
    ),
    (
        "a model's own options get through by Bedrock's name",
        chat(additionalModelRequestFields={"top_k": 5}),
        {
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "additionalModelRequestFields": {"top_k": 5},
        },
    ),
]


@pytest.mark.parametrize(("reason", "body", "want"), TRANSLATED, ids=[t[0] for t in TRANSLATED])
def test_a_chat_request_becomes_a_converse_request(
    reason: str, body: dict[str, Any], want: dict[str, Any]
) -> None:
    assert converse.encode(body) == want, reason


def part(**fields: Any) -> dict[str, Any]:
    return chat(messages=[{"role": "user", "content": [fields]}])


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        "a role that is no text",
        chat(messages=[{"role": ["user"], "content": "hi"}]),
        codes.UNSUPPORTED_CONTENT,
        "messages[0].role",
    ),
    (
        "a part of a type that is no text",
        chat(messages=[{"role": "user", "content": [{"type": {}}]}]),
        codes.UNSUPPORTED_CONTENT,
        "messages[0].content[0]",
    ),
    ("several answers", chat(n=2), codes.UNSUPPORTED_OPTION, "`body.n`"),
    ("true is not one", chat(n=True), codes.UNSUPPORTED_OPTION, "`body.n`"),
    ("tools", chat(tools=[{"type": "function"}]), codes.UNSUPPORTED_OPTION, "`body.tools`"),
    ("forced tools", chat(tool_choice="required"), codes.UNSUPPORTED_OPTION, "tool_choice"),
    ("log probabilities", chat(logprobs=True), codes.UNSUPPORTED_OPTION, "logprobs"),
    ("OpenAI's hot half", chat(temperature=1.2), codes.UNSUPPORTED_OPTION, "temperature"),
    ("a text for a number", chat(temperature="0"), codes.UNSUPPORTED_OPTION, "temperature"),
    ("no tokens", chat(max_tokens=0), codes.UNSUPPORTED_OPTION, "max_tokens"),
    ("penalties", chat(frequency_penalty=0.5), codes.UNSUPPORTED_OPTION, "frequency_penalty"),
    ("biases", chat(logit_bias={"1": 5}), codes.UNSUPPORTED_OPTION, "logit_bias"),
    ("unknown options", chat(top_k=5), codes.UNSUPPORTED_OPTION, "`body.top_k`"),
    ("a stop that is no text", chat(stop=[1]), codes.UNSUPPORTED_OPTION, "stop"),
    ("no such form", chat(response_format={"type": "xml"}), codes.UNSUPPORTED_OPTION, "format"),
    ("a form without schema", chat(response_format={"type": "json_schema"}),
     codes.UNSUPPORTED_OPTION, "json_schema"),
    ("tool results", chat(messages=[USER, {"role": "tool", "content": "x"}]),
     codes.UNSUPPORTED_OPTION, "messages[1].role"),
    ("tool calls", chat(messages=[USER, {"role": "assistant", "tool_calls": [{}]}]),
     codes.UNSUPPORTED_OPTION, "messages[1].tool_calls"),
    ("no messages", chat(messages=[]), codes.UNSUPPORTED_CONTENT, "`body.messages`"),
    ("a message that is a text", chat(messages=["x"]), codes.UNSUPPORTED_CONTENT, "messages[0]"),
    ("nobody's message", chat(messages=[{"content": "x"}]), codes.UNSUPPORTED_CONTENT, "role"),
    ("nothing said", chat(messages=[{"role": "user", "content": ""}]),
     codes.UNSUPPORTED_CONTENT, "messages[0]"),
    ("the assistant first", chat(messages=[{"role": "assistant", "content": "x"}, USER]),
     codes.UNSUPPORTED_CONTENT, "user message before"),
    ("the system alone", chat(messages=[{"role": "system", "content": "x"}]),
     codes.UNSUPPORTED_CONTENT, "user message before"),
    ("URLs are not fetched", part(type="image_url", image_url={"url": "https://x/y.png"}),
     codes.UNSUPPORTED_CONTENT, "not fetched"),
    ("broken base64", part(type="image_url", image_url={"url": PNG + "!"}),
     codes.UNSUPPORTED_CONTENT, "base64"),
    ("an image of the system", chat(messages=[
        {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}, USER]),
     codes.UNSUPPORTED_CONTENT, "system"),
    ("sound", part(type="input_audio", input_audio={}), codes.UNSUPPORTED_CONTENT, "input_audio"),
    ("a number for content", chat(messages=[{"role": "user", "content": 3}]),
     codes.UNSUPPORTED_CONTENT, "content"),
    ("a part that is no object", chat(messages=[{"role": "user", "content": [3]}]),
     codes.UNSUPPORTED_CONTENT, "content[0]"),
    ("a text that is none", part(type="text", text=3), codes.UNSUPPORTED_CONTENT, "text"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "body", "code", "word"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_converse_cannot_do_is_refused_by_name(
    reason: str, body: dict[str, Any], code: str, word: str
) -> None:
    with pytest.raises(UnsupportedRequest) as refused:
        converse.encode(body)
    assert refused.value.code == code, reason
    assert word in refused.value.message, reason


def output(content: list[Any], stop: str = "end_turn", **usage: int) -> dict[str, Any]:
    return {
        "output": {"message": {"role": "assistant", "content": content}},
        "stopReason": stop,
        "usage": usage,
    }


names = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "refusal",
        "image_url",
        "url",
        "tool_calls",
        "audio",
        "json_schema",
        "schema",
        "name",
        "description",
    ]
)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["user", "system", "assistant", "text", "image_url", "json_schema", PNG])
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=8,
)
turns = st.fixed_dictionaries({"role": leaves | trees, "content": trees})
options = st.sampled_from(
    [*converse._NEUTRAL, *converse.CONFIG, "response_format", "additionalModelRequestFields", "x"]
)


@given(
    messages=st.lists(turns | trees, max_size=3) | trees,
    more=st.dictionaries(options, trees, max_size=4),
)
def test_whatever_a_body_holds_is_translated_or_refused(
    messages: Any, more: dict[str, Any]
) -> None:
    body = json.dumps({"messages": messages, **more}).encode()
    try:
        encoded = converse.encode(decode_body(body))
    except (UnsupportedRequest, BadLine):
        return  # one bad record; anything else would keep the whole run from being staged
    assert msgspec.json.encode(encoded)


def test_an_answer_becomes_a_chat_completion_with_its_tokens() -> None:
    found, given, taken = converse_answers.decode(
        output(
            [{"reasoningContent": {"text": "hm"}}, {"text": "a", "toolUse": None}, {"text": "b"}],
            inputTokens=3,
            outputTokens=2,
            cacheReadInputTokens=5,
            cacheWriteInputTokens=1,
        ),
        "m",
    )
    assert (given, taken) == (9, 2)
    assert found["object"] == "chat.completion"
    assert found["model"] == "m"
    assert found["choices"][0]["message"]["content"] == "ab"
    assert found["choices"][0]["finish_reason"] == "stop"
    assert found["usage"] == {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 5},
    }


@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("content_filtered", "content_filter"),
        ("guardrail_intervened", "content_filter"),
        ("malformed_model_output", "stop"),
        ("a_word_of_next_year", "stop"),
    ],
)
def test_stop_reasons_become_finish_reasons_and_stay_visible(raw: str, want: str) -> None:
    found, _, _ = converse_answers.decode(output([{"text": "x"}], raw), "m")
    assert found["choices"][0]["finish_reason"] == want
    assert found["choices"][0]["stop_reason"] == raw


def test_tool_use_in_an_answer_becomes_a_tool_call() -> None:
    use = {"toolUseId": "t", "name": "f", "input": {"a": 1}}
    found, _, _ = converse_answers.decode(output([{"toolUse": use}], "tool_use"), "m")
    message = found["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    ]


def test_an_answer_without_a_message_is_none() -> None:
    with pytest.raises(ValueError, match="no message"):
        converse_answers.decode({"output": {}}, "m")

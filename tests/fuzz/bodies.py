"""Requests and answers as a strategy: the fuzzer's bytes decide what is drawn, so that it reaches
behind the parser. Every member that any API knows may be there, with a value that it should have or
with any.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-2, 2),
    st.sampled_from([0.5, 1.0, 1e308, -0.0, 2**53 + 1, 10**30]),
    st.floats(allow_nan=False, allow_infinity=False),
)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "",
            " ",
            "\u2028",
            "\x00",
            "user",
            "data:image/png;base64,aGk=",
            "data:image/svg+xml;base64,aGk=",
            "s3://data/ml/cat.png",
            "s3://other/cat.jpg",
            "https://example.com/cat.png",
            '{"a": 1}',
            "<reasoning>so</reasoning>yes",
        ]
    ),
)
NAMES = st.sampled_from(
    [
        "type",
        "text",
        "image_url",
        "url",
        "function",
        "name",
        "description",
        "parameters",
        "arguments",
        "id",
        "json_schema",
        "schema",
        "strict",
        "role",
        "content",
        "tool_call_id",
        "tool_calls",
        "refusal",
        "detail",
        "format",
        "source",
        "bytes",
        "output",
        "message",
        "stopReason",
        "stop_reason",
        "usage",
        "inputTokens",
        "outputTokens",
        "input_tokens",
        "output_tokens",
        "prompt_tokens",
        "completion_tokens",
        "cacheReadInputTokens",
        "toolUse",
        "toolUseId",
        "input",
        "choices",
        "index",
        "finish_reason",
        "embedding",
        "embeddings",
        "inputTextTokenCount",
        "generation",
        "prompt_token_count",
        "generation_token_count",
        "outputs",
        "results",
        "outputText",
        "reasoningContent",
        "thinking",
        "error",
        "embeddingsByType",
        "float",
    ]
)
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(NAMES, TEXTS), inner, max_size=4),
    ),
    max_leaves=12,
)

_PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}),
    st.fixed_dictionaries(
        {"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": TEXTS})}
    ),
    ANY,
)
_CALLS = st.fixed_dictionaries(
    {
        "id": TEXTS,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": TEXTS, "arguments": TEXTS}),
    }
)
_MESSAGES = st.one_of(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "?"]),
            "content": st.one_of(TEXTS, st.lists(_PARTS, max_size=3), st.none()),
        },
        optional={
            "tool_calls": st.lists(st.one_of(_CALLS, ANY), max_size=2),
            "tool_call_id": TEXTS,
            "name": TEXTS,
            "refusal": TEXTS,
        },
    ),
    ANY,
)
_TOOLS = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": TEXTS}, optional={"parameters": ANY}),
    }
)
_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": NUMBERS,
    "max_completion_tokens": NUMBERS,
    "temperature": NUMBERS,
    "top_p": NUMBERS,
    "top_k": NUMBERS,
    "n": NUMBERS,
    "seed": NUMBERS,
    "stop": st.one_of(TEXTS, st.lists(TEXTS, max_size=3)),
    "stream": st.booleans(),
    "tools": st.lists(st.one_of(_TOOLS, ANY), max_size=2),
    "tool_choice": st.one_of(st.sampled_from(["none", "auto", "required"]), ANY),
    "response_format": st.one_of(
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(["text", "json_object", "json_schema"]),
                "json_schema": st.fixed_dictionaries({"name": TEXTS, "schema": ANY}),
            }
        ),
        ANY,
    ),
    "reasoning_effort": TEXTS,
    "logprobs": st.booleans(),
    "user": TEXTS,
    "additionalModelRequestFields": ANY,
    "dimensions": NUMBERS,
    "encoding_format": st.one_of(st.sampled_from(["float", "base64"]), ANY),
    "unknown": ANY,
}

CHATS = st.fixed_dictionaries(
    {"messages": st.one_of(st.lists(_MESSAGES, max_size=4), ANY)},
    optional={name: st.one_of(value, ANY) for name, value in _OPTIONS.items()},
)
"""Bodies of chat requests, most of them nearly right."""

EMBEDDINGS = st.fixed_dictionaries(
    {"input": st.one_of(TEXTS, st.lists(TEXTS, max_size=4), ANY)},
    optional={
        name: st.one_of(_OPTIONS[name], ANY)
        for name in ("dimensions", "encoding_format", "user", "unknown")
    },
)
"""Bodies of embeddings requests."""

_BLOCKS = st.one_of(
    st.fixed_dictionaries({"text": TEXTS}, optional={"type": st.just("text"), "toolUse": ANY}),
    st.fixed_dictionaries({"reasoningContent": ANY}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": TEXTS, "name": TEXTS, "input": ANY}),
    ANY,
)
_USAGE = st.one_of(st.dictionaries(NAMES, st.one_of(st.integers(-5, 10**12), ANY), max_size=4), ANY)
_BLOCK_LISTS = st.lists(_BLOCKS, max_size=3)
_CHOICES = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {
                "message": st.fixed_dictionaries({"content": st.one_of(TEXTS, ANY)}),
                "finish_reason": TEXTS,
            }
        ),
        ANY,
    ),
    max_size=2,
)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "output": st.one_of(
            st.fixed_dictionaries({"message": st.fixed_dictionaries({"content": _BLOCK_LISTS})}),
            ANY,
        ),
        "content": st.one_of(_BLOCK_LISTS, ANY),
        "choices": st.one_of(_CHOICES, ANY),
        "outputs": st.one_of(st.lists(st.fixed_dictionaries({"text": TEXTS}), max_size=2), ANY),
        "generation": st.one_of(TEXTS, ANY),
        "embedding": st.one_of(st.lists(NUMBERS, max_size=3), ANY),
        "embeddings": st.one_of(st.lists(st.lists(NUMBERS, max_size=2), max_size=2), ANY),
        "usage": _USAGE,
        "stopReason": TEXTS,
        "stop_reason": st.one_of(st.sampled_from(["end_turn", "max_tokens", "?"]), ANY),
        "inputTextTokenCount": st.one_of(NUMBERS, ANY),
    },
)
"""Answers of models on Bedrock, of every family at once."""

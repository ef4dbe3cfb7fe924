"""Converse answers as chat completions. Pure.

Answers of the shape that they should have are parsed by type, which is several times as fast; what
is of another shape, and calls of tools, are looked at as Python values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "refusal": "content_filter",
}


def decode(model_output: Mapping[str, Any], model: str) -> tuple[dict[str, Any], int, int]:
    """A Converse response as a chat completion, with its input and output tokens.

    Members with null are as good as absent: Converse spells out every alternative. Reasoning blocks
    are left out. A stop reason that is not known counts as `stop`; the model's own word is kept in
    the choice as `stop_reason`.

    Raises:
        ValueError: it has no message.
    """
    message = (model_output.get("output") or {}).get("message")
    if not isinstance(message, Mapping):
        raise ValueError("the answer has no message")  # noqa: TRY004 - the value, not a type error
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.get("content") or ():
        if block.get("text") is not None:
            texts.append(block["text"])
        elif block.get("toolUse") is not None:
            calls.append(_tool_call(block["toolUse"]))
    usage = model_output.get("usage") or {}
    used = _usage(
        _first(usage, "inputTokens"),
        _first(usage, "outputTokens"),
        _first(usage, "cacheReadInputTokens", "cacheReadInputTokenCount"),
        _first(usage, "cacheWriteInputTokens", "cacheWriteInputTokenCount"),
    )
    return _completion(texts, calls, model_output.get("stopReason") or "", used, model)


class _Block(msgspec.Struct, gc=False):
    text: str | None = None
    tool_use: msgspec.Raw | None = msgspec.field(default=None, name="toolUse")


class _Message(msgspec.Struct, gc=False):
    content: list[_Block] | None = None


class _Output(msgspec.Struct, gc=False):
    message: _Message


class _Tokens(msgspec.Struct, gc=False, rename="camel"):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_read_input_token_count: int | None = None
    cache_write_input_tokens: int | None = None
    cache_write_input_token_count: int | None = None


_NO_TOKENS = _Tokens()


class Answer(msgspec.Struct, gc=False, rename="camel"):
    """A Converse response of the shape that it should have, for parsers."""

    output: _Output
    stop_reason: str | None = None
    usage: _Tokens | None = None


def decode_answer(answer: Answer, model: str) -> tuple[dict[str, Any], int, int] | None:
    """As `decode`, several times as fast; None for what it leaves to that: calls of tools."""
    texts: list[str] = []
    for block in answer.output.message.content or ():
        if block.text is not None:
            texts.append(block.text)
        elif block.tool_use is not None:
            return None
    usage = answer.usage or _NO_TOKENS
    used = _usage(
        _most(usage.input_tokens),
        _most(usage.output_tokens),
        _most(usage.cache_read_input_tokens) or _most(usage.cache_read_input_token_count),
        _most(usage.cache_write_input_tokens) or _most(usage.cache_write_input_token_count),
    )
    return _completion(texts, [], answer.stop_reason or "", used, model)


def _completion(
    texts: list[str],
    calls: list[dict[str, Any]],
    stop_reason: str,
    used: tuple[dict[str, Any], int, int],
    model: str,
) -> tuple[dict[str, Any], int, int]:
    answer: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None}
    if not calls and answer["content"] is None:
        answer["content"] = ""
    if calls:
        answer["tool_calls"] = calls
    answer["refusal"] = None
    usage, given, taken = used
    body = {
        "id": "chatcmpl-bedrock",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": answer,
                "finish_reason": _FINISH_REASONS.get(stop_reason, "stop"),
                "stop_reason": stop_reason,
                "logprobs": None,
            }
        ],
        "usage": usage,
    }
    return body, given, taken


def _tool_call(use: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(use.get("input") or {}, separators=(",", ":"), ensure_ascii=False)
    return {
        "id": use.get("toolUseId") or "",
        "type": "function",
        "function": {"name": use.get("name") or "", "arguments": arguments},
    }


def _usage(given: int, taken: int, read: int, written: int) -> tuple[dict[str, Any], int, int]:
    """Tokens as OpenAI counts them: what came from a cache is part of the prompt."""
    given += read + written
    shown: dict[str, Any] = {
        "prompt_tokens": given,
        "completion_tokens": taken,
        "total_tokens": given + taken,
    }
    if read:
        shown["prompt_tokens_details"] = {"cached_tokens": read}
    return shown, given, taken


def _most(value: int | None) -> int:
    return value if value is not None and value > 0 else 0


def _first(usage: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0

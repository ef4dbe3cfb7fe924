"""Chat completions as Bedrock Converse bodies. Pure. The way back is in `converse_answers`.

What Converse can't do in a batch is refused by name, per record, before anything is paid. Members
that change nothing about the answer (`user`, `metadata`, ...) and best-effort ones (`seed`) are
left out silently; members at their neutral value (`n: 1`) too. URLs are never fetched: images must
be inlined.

    request                           Converse
    system, developer messages        system: [{text}], merged, wherever they stand
    user, assistant messages          messages, consecutive ones of one role merged
    text, refusal parts               {text}; blank ones are left out
    image_url part with a data: URI   {image: {format, source: {bytes}}}
    max_completion_tokens, max_tokens inferenceConfig.maxTokens
    temperature (0 to 1), top_p       inferenceConfig.temperature, topP
    stop                              inferenceConfig.stopSequences, always a list
    response_format json_schema       outputConfig.textFormat
    response_format json_object       an instruction behind the system texts: there is no such mode
    additionalModelRequestFields      as it is: how a model's own options get through
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from batchinference.records import codes
from batchinference.records.refusal import UnsupportedRequest

JSON_INSTRUCTION = "Answer with one valid JSON object and nothing else."

_LEFT_OUT = frozenset(
    {
        "metadata",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "seed",
        "service_tier",
        "store",
        "stream_options",
        "user",
    }
)

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "stream": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": (),
    "web_search_options": (),
}
"""Members that Converse batches don't have, and the values that ask for nothing, as null does."""

_DATA_URI = re.compile(r"data:image/(png|jpeg|jpg|gif|webp);base64,", re.IGNORECASE)

_SYSTEM = frozenset({"system", "developer"})
_TURNS = frozenset({"user", "assistant"})
_ROLES = "must be system, developer, user or assistant"


def encode(body: Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion request as a Converse request without its modelId.

    Raises:
        UnsupportedRequest: an option or a content that can't be had this way.
    """
    found: dict[str, Any] = {}
    system, messages = _conversation(body.get("messages"))
    for name, value in body.items():
        if name == "messages" or name in _LEFT_OUT or value is None:
            continue
        if name in _NEUTRAL:
            if not any(
                value == neutral and _same_kind(value, neutral) for neutral in _NEUTRAL[name]
            ):
                raise _option(name, "is not possible in a Bedrock Converse batch")
        elif name in CONFIG:
            continue
        elif name == "response_format":
            system += _response_format(value, found)
        elif name == "additionalModelRequestFields":
            found[name] = _object(name, value)
        else:
            raise _option(name, "is not an option that is known to work with Bedrock Converse")
    encoded: dict[str, Any] = {"messages": messages}
    if system:
        encoded["system"] = system
    if config := inference_config(body):
        encoded["inferenceConfig"] = config
    encoded.update(found)
    return encoded


# ---------------------------------------------------------------- messages


def _conversation(messages: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system texts, and the turns, which begin with the user's and alternate."""
    if not isinstance(messages, list) or not messages:
        raise _content("messages", "must be a list that is not empty")
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        if type(message) is not dict:
            raise _content(f"messages[{number}]", "must be an object")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            raise _content(f"messages[{number}].role", _ROLES)
        if role in _TURNS:
            if len(message) > 2 or content is None:  # more than the role and the content
                _check_members(message, number)
                content = message.get("refusal") if content is None else content
            blocks = _blocks(content, number)
            if not blocks:
                raise _content(f"messages[{number}]", "has no content")
            if turns and turns[-1]["role"] == role:
                turns[-1]["content"] += blocks
            else:
                turns.append({"role": role, "content": blocks})
        elif role in _SYSTEM:
            blocks = _blocks(content, number)
            if not isinstance(content, str) and any("text" not in block for block in blocks):
                raise _content(f"messages[{number}]", "has an image in a system message")
            system += blocks
        elif role in {"tool", "function"}:
            at = f"messages[{number}].role"
            raise _option(at, f"'{role}' is not possible in a Bedrock Converse batch")
        else:
            raise _content(f"messages[{number}].role", _ROLES)
    if not turns or turns[0]["role"] != "user":
        raise _content("messages", "must have a user message before any of the assistant's")
    return system, turns


def _check_members(message: Mapping[str, Any], number: int) -> None:
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            at = f"messages[{number}].{name}"
            raise _option(at, "is not possible in a Bedrock Converse batch")


def _blocks(content: Any, message: int) -> list[dict[str, Any]]:
    """Content as blocks. Blank texts are left out: Converse refuses them."""
    if content is None:
        return []
    if isinstance(content, str):
        return [{"text": content}] if content and not content.isspace() else []
    if not isinstance(content, list):
        raise _content(f"messages[{message}].content", "must be a text or a list of parts")
    blocks: list[dict[str, Any]] = []
    for number, part in enumerate(content):
        where = f"messages[{message}].content[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        kind = kind if isinstance(kind, str) else ""
        if kind in {"text", "refusal"}:
            text = part.get(kind)
            if not isinstance(text, str):
                raise _content(f"{where}.{kind}", "must be a text")
            if text.strip():
                blocks.append({"text": text})
        elif kind == "image_url":
            blocks.append(_image(part.get("image_url"), where))
        else:
            shown = f"'{kind}'" if 0 < len(kind) < 32 else "of that type"
            raise _content(where, f"a part {shown} is not possible in a Bedrock Converse batch")
    return blocks


def _image(image: Any, at: str) -> dict[str, Any]:
    url = image.get("url") if isinstance(image, Mapping) else image
    start = _DATA_URI.match(url) if isinstance(url, str) else None
    if start is None or not isinstance(url, str):
        raise _content(
            f"{at}.image_url",
            "must be a data: URI with a base64 png, jpeg, gif or webp image; URLs are not fetched",
        )
    data = url[start.end() :]
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise _content(f"{at}.image_url", "is not valid base64") from None
    kind = start[1].lower()
    return {"image": {"format": "jpeg" if kind == "jpg" else kind, "source": {"bytes": data}}}


# ---------------------------------------------------------------- options


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _option(name, "must be a whole number from 1")
    return value


def _fraction(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise _option(name, "must be a number from 0 to 1 with Bedrock")
    return value


def _texts(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise _option(name, "must be a text or a list of texts")
    return texts


CONFIG: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "max_completion_tokens": ("maxTokens", _count),
    "max_tokens": ("maxTokens", _count),
    "temperature": ("temperature", _fraction),
    "top_p": ("topP", _fraction),
    "stop": ("stopSequences", _texts),
}
"""Members of `inferenceConfig` by OpenAI's names; of two for the same the first counts."""


def inference_config(body: Mapping[str, Any]) -> dict[str, Any]:
    """The `inferenceConfig` that a body's members ask for, in an order of its own.

    Raises:
        UnsupportedRequest: a value that can't be had this way.
    """
    config: dict[str, Any] = {}
    for name, (member, convert) in CONFIG.items():
        value = body.get(name)
        if value is not None and (converted := convert(name, value)) != []:
            config.setdefault(member, converted)
    return config


def _response_format(value: Any, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Put the wanted form into the request; the texts that the system part needs for it."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return []
    if kind == "json_object":
        return [{"text": JSON_INSTRUCTION}]
    if kind != "json_schema":
        raise _option("response_format", "must be of type text, json_object or json_schema")
    wanted = _object("response_format.json_schema", value.get("json_schema"))
    schema = _object("response_format.json_schema.schema", wanted.get("schema"))
    inner = {"schema": json.dumps(schema, separators=(",", ":"), ensure_ascii=False)}
    for name in ("name", "description"):
        text = wanted.get(name)
        if isinstance(text, str) and text:
            inner[name] = text
    structure = {"jsonSchema": inner}
    found["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": structure}}
    return []


def _object(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _option(name, "must be an object")
    return value


def _same_kind(value: Any, neutral: Any) -> bool:
    """False is not 0 here: `n: true` asks for something else than `n: 1`."""
    return isinstance(value, bool) is isinstance(neutral, bool)


def _option(name: str, why: str) -> UnsupportedRequest:
    shown = name if len(name) <= 64 else f"{name[:63]}…"
    return UnsupportedRequest(codes.UNSUPPORTED_OPTION, f"`body.{shown}` {why}")


def _content(name: str, why: str) -> UnsupportedRequest:
    return UnsupportedRequest(codes.UNSUPPORTED_CONTENT, f"`body.{name}` {why}")

"""Requests held against the types of OpenAI's own SDK.

Owns the translation from a failed type check to OpenAI's words. Must not know files, batches
or answers. Loading the types takes a second, so plain requests are passed without them
(`openai_endpoints`).
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, get_type_hints

from openai.types import (
    batch_create_params,
    completion_create_params,
    embedding_create_params,
    moderation_create_params,
)
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionFunctionMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionToolMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from pydantic import TypeAdapter, ValidationError

from .refusals import Refusal

_REQUESTS: dict[str, Any] = {
    "batch": batch_create_params.BatchCreateParams,
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsNonStreaming,
    "/v1/completions": completion_create_params.CompletionCreateParamsNonStreaming,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
    "/v1/moderations": moderation_create_params.ModerationCreateParams,
    "/v1/responses": response_create_params.ResponseCreateParamsNonStreaming,
}
_MESSAGES: dict[str, Any] = {
    "assistant": ChatCompletionAssistantMessageParam,
    "developer": ChatCompletionDeveloperMessageParam,
    "function": ChatCompletionFunctionMessageParam,
    "system": ChatCompletionSystemMessageParam,
    "tool": ChatCompletionToolMessageParam,
    "user": ChatCompletionUserMessageParam,
}
_TYPE_NAMES = {
    "str": "string",
    "int": "integer",
    "float": "decimal",
    "bool": "boolean",
    "dict": "object",
    "list": "array",
    "NoneType": "null",
}
_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "float_type": "a decimal",
    "bool_type": "a boolean",
    "dict_type": "an object",
    "list_type": "an array",
    "iterable_type": "an array",
}
_NUMBERS = {  # the bounds that the types do not say
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_tokens": (1, None),
    "max_completion_tokens": (1, None),
    "max_output_tokens": (1, None),
    "n": (1, 128),
    "top_logprobs": (0, 20),
    "dimensions": (1, None),
}


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


@cache
def _fields(name: str) -> frozenset[str]:
    return frozenset(get_type_hints(_REQUESTS[name]))


def check(name: str, body: Mapping[str, Any]) -> None:
    """Hold a request body against the SDK's type of that endpoint (or of `batch`).

    Raises:
        Refusal: status 400, in OpenAI's words, naming the first parameter that is wrong.
    """
    for key in body:
        if key not in _fields(name) and key != "stream":
            raise Refusal(400, f"Unknown parameter: '{key}'.", "unknown_parameter", key)
    given = dict(body)
    if name == "/v1/chat/completions" and given.get("messages"):
        _check_messages(given["messages"])  # by role, for clearer words than a union's
        given["messages"] = []
    _check_shape(_REQUESTS[name], given, "")
    for key, (low, high) in _NUMBERS.items():
        value = body.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            check_range(key, value, low, high)
    if name == "/v1/chat/completions" and not body["messages"]:
        _check_messages(body["messages"])


def check_range(key: str, value: float, low: float, high: float | None) -> None:
    """Refuse a number outside its bounds, as OpenAI words it."""
    kind = "integer" if isinstance(value, int) else "decimal"
    if value < low:
        raise Refusal(
            400,
            f"Invalid '{key}': {kind} below minimum value. Expected a value >= {low}, "
            f"but got {value} instead.",
            f"{kind}_below_min_value",
            key,
        )
    if high is not None and value > high:
        raise Refusal(
            400,
            f"Invalid '{key}': {kind} above maximum value. Expected a value <= {high}, "
            f"but got {value} instead.",
            f"{kind}_above_max_value",
            key,
        )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        raise _wrong_type("messages", "an array", messages)
    if not messages:
        raise Refusal(
            400,
            "Invalid 'messages': empty array. Expected an array with minimum length 1, "
            "but got an empty array instead.",
            "empty_array",
            "messages",
        )
    for position, message in enumerate(messages):
        at = f"messages[{position}]"
        if not isinstance(message, dict):
            raise _wrong_type(at, "an object", message)
        role = message.get("role")
        if role not in _MESSAGES:
            supported = ", ".join(f"'{known}'" for known in sorted(_MESSAGES))
            raise Refusal(
                400,
                f"Invalid value: '{role}'. Supported values are: {supported}.",
                "invalid_value",
                f"{at}.role",
            )
        _check_shape(_MESSAGES[role], message, at)


def _check_shape(shape: Any, value: Any, at: str) -> None:
    try:
        checked = _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        raise _in_openai_words(error, at) from error
    _check_members(checked, at)


def _check_members(value: Any, at: str) -> None:
    """Walk a checked value to its end: pydantic checks members of an Iterable only when read."""
    if isinstance(value, Mapping):
        for key, member in value.items():
            _check_members(member, f"{at}.{key}" if at else key)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        try:
            members = list(value)
        except ValidationError as error:
            raise _in_openai_words(error, at) from error
        for index, member in enumerate(members):
            _check_members(member, f"{at}[{index}]")


def _in_openai_words(error: ValidationError, at: str) -> Refusal:
    # A union reports every branch; the deepest complaint is about the branch that was meant.
    first = max(error.errors(), key=lambda entry: len(entry["loc"]))
    param = at
    for step in first["loc"]:
        if isinstance(step, int):
            param += f"[{step}]"
        elif step[:1].islower() and "[" not in step:  # other steps are names of Python types
            param += f".{step}" if param else step
    if first["type"] == "missing":
        return Refusal(
            400, f"Missing required parameter: '{param}'.", "missing_required_parameter", param
        )
    if first["type"] == "literal_error":
        supported = first["ctx"]["expected"].replace(" or ", ", ")
        return Refusal(
            400,
            f"Invalid value: '{first['input']}'. Supported values are: {supported}.",
            "invalid_value",
            param,
        )
    return _wrong_type(param, _EXPECTED.get(first["type"], "another type"), first["input"])


def _wrong_type(param: str, expected: str, value: Any) -> Refusal:
    got = _TYPE_NAMES.get(type(value).__name__, type(value).__name__)
    article = "an" if got[0] in "aeiou" else "a"
    return Refusal(
        400,
        f"Invalid type for '{param}': expected {expected}, but got {article} {got} instead.",
        "invalid_type",
        param,
    )

"""A job's `parameters` as members of a request body. Owns the names that each operation has.

They are defaults: a record that has the member itself, under any of its names, keeps its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from batchinference.errors import InvalidObject
from batchinference.model.job import Operation, Parameters, ResponseFormat, ResponseFormatType

URLS = {
    Operation.CHAT_COMPLETIONS: "/v1/chat/completions",
    Operation.EMBEDDINGS: "/v1/embeddings",
    Operation.COMPLETIONS: "/v1/completions",
    Operation.RESPONSES: "/v1/responses",
}
"""What `url` says in a batch input line, per operation."""

REQUIRED = {
    Operation.CHAT_COMPLETIONS: "messages",
    Operation.EMBEDDINGS: "input",
    Operation.COMPLETIONS: "",
    Operation.RESPONSES: "",
}
"""The member without which a body is surely wrong; "" where the API has a way without any."""

_MAX_TOKENS = {
    Operation.CHAT_COMPLETIONS: "max_completion_tokens",
    Operation.COMPLETIONS: "max_tokens",
    Operation.RESPONSES: "max_output_tokens",
}

_OTHER_NAMES = {
    "max_completion_tokens": ("max_tokens",),
    "max_tokens": ("max_completion_tokens",),
}


@dataclass(frozen=True, slots=True)
class Default:
    """One member that a body gets when it has none of `names`; the first of them is its name."""

    names: tuple[str, ...]
    value: Any


def defaults(parameters: Parameters, operation: Operation) -> tuple[Default, ...]:
    """The members, in a stable order.

    Raises:
        InvalidObject: a parameter that this operation does not have.
    """
    members: dict[str, Any] = {}
    if parameters.max_output_tokens is not None:
        name = _named(_MAX_TOKENS.get(operation), "maxOutputTokens", operation)
        members[name] = parameters.max_output_tokens
    sampling = {} if operation is Operation.EMBEDDINGS else {"temperature", "top_p"}
    for field, name, text in (
        ("temperature", "temperature", parameters.temperature),
        ("topP", "top_p", parameters.top_p),
    ):
        if text:
            known = name if name in sampling else None
            members[_named(known, field, operation)] = _number(text, field)
    if parameters.stop:
        known = "stop" if operation in _HAS_STOP else None
        members[_named(known, "stop", operation)] = list(parameters.stop)
    if parameters.response_format is not None:
        name, value = _response_format(parameters.response_format, operation)
        members[name] = value
    for name in sorted(parameters.extra):
        if name in _RESERVED:
            raise InvalidObject(
                f"spec.parameters.extra.{name}", "comes from the job or its records; remove it"
            )
        members[name] = parameters.extra[name]
    return tuple(
        Default((name, *_OTHER_NAMES.get(name, ())), value) for name, value in members.items()
    )


_RESERVED = {"model", "messages", "prompt", "input", "stream", "stream_options"}
_HAS_STOP = {Operation.CHAT_COMPLETIONS, Operation.COMPLETIONS}


def _named(name: str | None, field: str, operation: Operation) -> str:
    if name is None:
        raise InvalidObject(
            f"spec.parameters.{field}", f"operation {operation.value} does not have it; remove it"
        )
    return name


def _number(text: str, field: str) -> float | int:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidObject(f"spec.parameters.{field}", f"must be a decimal number, is '{text}'")
    return value


def _response_format(wanted: ResponseFormat, operation: Operation) -> tuple[str, Any]:
    schema = wanted.json_schema
    if wanted.type is ResponseFormatType.JSON_SCHEMA and schema is None:
        raise InvalidObject("spec.parameters.responseFormat.jsonSchema", "must be set")
    inner: dict[str, Any] = {}
    if schema is not None:
        inner = {"name": schema.name, "schema": schema.schema, "strict": schema.strict}
        if schema.description:
            inner["description"] = schema.description
    kind = {
        ResponseFormatType.TEXT: "text",
        ResponseFormatType.JSON_OBJECT: "json_object",
        ResponseFormatType.JSON_SCHEMA: "json_schema",
    }[wanted.type]
    if operation is Operation.CHAT_COMPLETIONS:
        return "response_format", {"type": kind, **({"json_schema": inner} if inner else {})}
    if operation is Operation.RESPONSES:
        return "text", {"format": {"type": kind, **inner}}
    return _named(None, "responseFormat", operation), None

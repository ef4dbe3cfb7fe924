"""The lines of result files, in the shapes that servers write them, as canonical results.

Pure. Never raises: a line that can't be read is one answer less, not an end. The usual answer is
passed on byte by byte (`msgspec.Raw`); everything else is looked at as Python values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from batchinference.adapters.openai_batch.view import count, shorten, text
from batchinference.ports import ResultLine
from batchinference.records import codes

UNBILLED = {"batch_expired": codes.BATCH_EXPIRED, "batch_cancelled": codes.BATCH_CANCELLED}
"""Codes of lines without a response that say that the record was never executed, and ours."""

UNREADABLE = "UnreadableLine"
"""Code of a line that is no record's; its id is empty, so it is nobody's answer."""


class _Response(msgspec.Struct, gc=False):
    status_code: int
    body: msgspec.Raw
    request_id: str | None = None


class _Answer(msgspec.Struct, gc=False):
    custom_id: str
    response: _Response


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class _Body(msgspec.Struct, gc=False):
    usage: _Usage | None = None


_NOTHING = _Usage()
_EMPTY = len("{}")

_decode = msgspec.json.Decoder().decode
_answer = msgspec.json.Decoder(_Answer).decode
_used = msgspec.json.Decoder(_Body).decode


def result(line: bytes) -> ResultLine:
    """One line of an output or an error file.

    An answer is a response of 2xx with a body, whichever file it stands in and whatever `error`
    holds: servers disagree on the latter.
    """
    return _usual(line) or _any(line)


def _usual(line: bytes) -> ResultLine | None:
    """The answer as OpenAI writes it; None for everything else."""
    try:
        found = _answer(line)
        response = found.response
        body, status = response.body, response.status_code
        used = _used(body).usage or _NOTHING  # whatever is no object fails here
        if not 200 <= status < 300 or memoryview(body).nbytes == _EMPTY:
            return None
        if not line.isascii():
            line.decode()  # a raw body is not checked by the parser
    except (msgspec.MsgspecError, UnicodeError, RecursionError, TypeError):
        return None
    return ResultLine(
        found.custom_id,
        status,
        response.request_id or "",
        body,
        "",
        "",
        False,
        max(0, used.prompt_tokens or used.input_tokens or 0),
        max(0, used.completion_tokens or used.output_tokens or 0),
    )


def _any(line: bytes) -> ResultLine:
    try:
        found = _decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return ResultLine("", 0, error_code=UNREADABLE, error_message=shorten(str(error)))
    if not isinstance(found, dict):
        return ResultLine("", 0, error_code=UNREADABLE, error_message="not a JSON object")
    wire_id = text(found.get("custom_id"))
    response = found.get("response")
    if not isinstance(response, Mapping):
        return _never_answered(wire_id, found.get("error"))
    status = count(response.get("status_code"))
    body = _body(response.get("body"))
    request_id = text(response.get("request_id"))
    if 200 <= status < 300 and body:
        given, taken = usage(body)
        return ResultLine(
            wire_id, status, request_id, body, input_tokens=given, output_tokens=taken
        )
    inner = body.get("error") if isinstance(body, Mapping) else None
    code, message = _said(inner or found.get("error"))
    return ResultLine(
        wire_id,
        status,
        request_id,
        body,
        error_code=code or codes.PROVIDER_ERROR,
        error_message=message or ("" if body else "the response has no body"),
        # Refused before the model saw it, and OpenAI charges nothing for a 4xx.
        unbilled=status == 429,
    )


def _never_answered(wire_id: str, error: Any) -> ResultLine:
    code, message = _said(error)
    return ResultLine(
        wire_id,
        0,
        error_code=UNBILLED.get(code) or code or codes.PROVIDER_ERROR,
        error_message=message or "the provider gave neither a response nor an error",
        unbilled=code in UNBILLED,
    )


def _said(error: Any) -> tuple[str, str]:
    if not isinstance(error, Mapping):
        return "", shorten(text(error))
    code = text(error.get("code")) or text(error.get("type"))
    return code, text(error.get("message"))


def _body(body: Any) -> Any:
    """The body; some servers give it as a string of JSON."""
    if not isinstance(body, str):
        return body
    try:
        return _decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return body


def usage(body: Any) -> tuple[int, int]:
    """Input and output tokens that an answer names, by either of OpenAI's two spellings."""
    found = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(found, Mapping):
        return 0, 0
    given = found.get("prompt_tokens", found.get("input_tokens"))
    taken = found.get("completion_tokens", found.get("output_tokens"))
    return count(given), count(taken)

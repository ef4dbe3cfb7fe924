"""The lines of Bedrock's result files as canonical results.

Pure. Never raises: a line that can't be read is one answer less, not an end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from batchinference.ports import ResultLine
from batchinference.records import codes
from batchinference.records.translate import converse_answers

UNREADABLE = "UnreadableLine"
"""Code of a line that is no record's; its id is empty, so it is nobody's answer."""

_MESSAGE_LIMIT = 2000
_INPUT = ("inputTokens", "input_tokens", "prompt_tokens")
_OUTPUT = ("outputTokens", "output_tokens", "completion_tokens")


class _Line(msgspec.Struct, gc=False):
    """A line without the echoed request, which may be large and is not looked at."""

    record_id: Any = msgspec.field(default="", name="recordId")
    model_output: Any = msgspec.field(default=None, name="modelOutput")
    error: Any = None


class _Usual(msgspec.Struct, gc=False):
    """An answer of Converse as it should be."""

    model_output: converse_answers.Answer = msgspec.field(name="modelOutput")
    record_id: str = msgspec.field(default="", name="recordId")
    error: None = None


_decode = msgspec.json.Decoder(_Line).decode
_usual = msgspec.json.Decoder(_Usual).decode


def result(line: bytes, model: str) -> ResultLine:
    """One line of a `.jsonl.out` file.

    Args:
        line: the line.
        model: the job's model, for the answer's body.
    """
    return _converse_text(line, model) or _any(line, model)


def _converse_text(line: bytes, model: str) -> ResultLine | None:
    """The answer of most lines; None for everything else."""
    try:
        found = _usual(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    decoded = converse_answers.decode_answer(found.model_output, model)
    if decoded is None:
        return None
    body, given, taken = decoded
    return ResultLine(found.record_id, 200, "", body, "", "", False, given, taken)


def _any(line: bytes, model: str) -> ResultLine:
    try:
        found = _decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        return ResultLine("", 0, error_code=UNREADABLE, error_message=str(error)[:200])
    wire_id = found.record_id if isinstance(found.record_id, str) else ""
    output = without_nulls(found.model_output)
    if isinstance(output, Mapping) and output and not found.error:
        return _answer(wire_id, output, model)
    return _error(wire_id, found.error)


def _answer(wire_id: str, output: Mapping[str, Any], model: str) -> ResultLine:
    if isinstance(output.get("output"), Mapping) and "message" in output["output"]:
        try:
            body, given, taken = converse_answers.decode(output, model)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return ResultLine(
                wire_id,
                200,
                body=output,
                error_code=codes.PROVIDER_ERROR,
                error_message=f"the answer has another shape than Converse's: {error!r}"[:200],
            )
        return ResultLine(wire_id, 200, body=body, input_tokens=given, output_tokens=taken)
    given, taken = _native_usage(output)
    return ResultLine(wire_id, 200, body=output, input_tokens=given, output_tokens=taken)


def _error(wire_id: str, error: Any) -> ResultLine:
    if not isinstance(error, Mapping):
        message = str(error or "the provider gave neither an answer nor an error")
        return ResultLine(
            wire_id, 0, error_code=codes.PROVIDER_ERROR, error_message=message[:_MESSAGE_LIMIT]
        )
    said = error.get("errorCode")
    status = int(said) if isinstance(said, int) or (isinstance(said, str) and said.isdigit()) else 0
    code = said if isinstance(said, str) and said and not said.isdigit() else codes.PROVIDER_ERROR
    message = str(error.get("errorMessage") or "")[:_MESSAGE_LIMIT]
    expired = error.get("expired") in {True, "true"}
    return ResultLine(
        wire_id,
        status if 400 <= status < 600 else 0,
        body=dict(error),
        error_code=codes.BATCH_EXPIRED if expired else code,
        error_message=message,
        unbilled=expired,
    )


def without_nulls(value: Any) -> Any:
    """The value without members that are null: Converse answers spell out every alternative."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _native_usage(output: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens in the words of the models' own formats; 0 where they say nothing."""
    usage = output.get("usage")
    if isinstance(usage, Mapping):
        return _first(usage, _INPUT), _first(usage, _OUTPUT)
    given = _first(output, ("prompt_token_count", "inputTextTokenCount"))
    return given, _first(output, ("generation_token_count",))


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        value = found.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return max(0, value)
    return 0

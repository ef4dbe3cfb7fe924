"""Rows and a template as canonical request bodies. Owns what a `promptTemplate` may say.

Texts are Liquid templates: a language without code, files or network, whose loops and output are
bounded. `{{ field }}`, `{{ nested.field }}` and `{{ ["a field with blanks"] }}` stand for the row's
values, `{{ tags | json }}` for a list or an object as JSON. A member that is null is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import msgspec
from liquid import BoundTemplate, Environment, StrictDefaultUndefined, Undefined
from liquid.exceptions import LiquidError, ResourceLimitError, UndefinedError
from liquid.extra import JSON

from batchinference.errors import Permanent
from batchinference.model.job import MissingField, Operation, PromptTemplate
from batchinference.model.status import Reason
from batchinference.records import codes
from batchinference.records.formats.csv_rows import Ragged
from batchinference.records.refusal import BadLine

FIELD = "spec.promptTemplate"

_WITHOUT = ("include", "render")
"""Tags that would read other templates."""


class _Bounded(Environment):
    """Liquid, with limits that no sensible prompt comes near."""

    loop_iteration_limit = 100_000
    output_stream_limit = 16 << 20
    local_namespace_limit = 1 << 20
    context_depth_limit = 30
    block_nesting_limit = 50


class Template:
    """Makes bodies of rows."""

    def __init__(self, template: PromptTemplate, operation: Operation) -> None:
        """Compile the texts.

        Raises:
            Permanent: `InvalidSpec`: a text is no template, or the operation has no such part.
        """
        self._environment = _Bounded(
            undefined=StrictDefaultUndefined
            if template.missing_field is MissingField.FAIL
            else Undefined
        )
        for tag in _WITHOUT:
            self._environment.tags.pop(tag, None)
        self._environment.add_filter("json", JSON())
        self._system = self._compiled(template.system, "system")
        self._prompt = self._compiled(template.prompt, "prompt")
        self._input = self._compiled(template.input, "input")
        self._id_field = template.id_field
        self._image_field = template.image_url_field
        self._fails = template.missing_field is MissingField.FAIL
        self._make = _MAKERS[operation]
        if operation is Operation.COMPLETIONS:
            for part, is_set in (
                ("system", template.system),
                ("imageURLField", template.image_url_field),
            ):
                if is_set:
                    raise _invalid(part, "operation Completions does not have it; remove it")

    def _compiled(self, text: str, part: str) -> BoundTemplate | None:
        if not text:
            return None
        try:
            found = self._environment.from_string(text)
        except LiquidError as error:
            raise _invalid(part, f"is no template: {_said(error)}") from None
        return found

    def request(self, line: bytes, number: int) -> tuple[bytes, dict[str, Any]]:
        """The user's id as JSON text, and the body of a row, a JSON object.

        Args:
            line: the row, without its newline.
            number: the record's, from 0: its id where the template names none.

        Raises:
            BadLine: it is no row, or lacks something that the template names.
        """
        row = _row(line)
        custom_id = self._id_of(row) if self._id_field else b'"%d"' % number
        try:
            texts = {
                name: self._rendered(template, row)
                for name, template in (
                    ("system", self._system),
                    ("prompt", self._prompt),
                    ("input", self._input),
                )
                if template is not None
            }
        except BadLine as bad:
            raise BadLine(bad.code, bad.message, custom_id) from None
        if self._image_field:
            image = _found(row, self._image_field)
            if isinstance(image, str) and image:
                texts["image"] = image
            elif self._fails:
                raise BadLine(
                    codes.MISSING_FIELD, f"the row has no text in '{self._image_field}'", custom_id
                )
        return custom_id, self._make(texts)

    def _rendered(self, template: BoundTemplate, row: Mapping[str, Any]) -> str:
        try:
            return template.render(**row)
        except UndefinedError as error:
            raise BadLine(
                codes.MISSING_FIELD, f"the row lacks what the template names: {_said(error)}"
            ) from None
        except ResourceLimitError:
            message = "the template makes too much of this row: too many turns, or too long a text"
            raise BadLine(codes.LINE_TOO_LONG, message) from None
        except (LiquidError, ArithmeticError, RecursionError) as error:
            said = _said(error) if isinstance(error, LiquidError) else type(error).__name__
            raise BadLine(codes.TEMPLATE_FAILED, f"the template can't be applied: {said}") from None

    def _id_of(self, row: Mapping[str, Any]) -> bytes:
        value = _found(row, self._id_field)
        if isinstance(value, bool) or not isinstance(value, str | int | Decimal) or value == "":
            raise BadLine(
                codes.MISSING_FIELD, f"the row has no text or number in '{self._id_field}'"
            )
        return msgspec.json.encode(str(value))


_decode = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode
_ragged = msgspec.json.Decoder(Ragged).decode


def _row(line: bytes) -> dict[str, Any]:
    try:
        line.decode()
        row: dict[str, Any] = _without_nulls(_decode(line))
    except UnicodeError:
        raise BadLine(codes.INVALID_ENCODING, "the line is not valid UTF-8") from None
    except RecursionError:
        raise BadLine(codes.TOO_DEEP, "objects and lists are nested too deeply") from None
    except msgspec.ValidationError:
        raise _refused(line) from None
    except msgspec.MsgspecError as error:
        raise BadLine(codes.INVALID_JSON, f"the line is not JSON: {error}") from None
    return row


def _refused(line: bytes) -> BadLine:
    """What is wrong with JSON that is no row."""
    try:
        found = _ragged(line)
    except (msgspec.MsgspecError, RecursionError):
        if line.lstrip()[:1] == b"{":
            message = "the row has a number that is out of range"
            return BadLine(codes.NUMBER_OUT_OF_RANGE, message)
        return BadLine(codes.NOT_AN_OBJECT, "a row must be a JSON object")
    message = f"the row has {found.fields} fields, and the header names {found.header}"
    return BadLine(codes.WRONG_FIELDS, message)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _found(row: Mapping[str, Any], path: str) -> Any:
    """A field by its name, or by a path of names."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _said(error: LiquidError) -> str:
    """Liquid's own words without the template, which is a prompt."""
    return str(error.args[0]) if error.args else type(error).__name__


def _invalid(part: str, why: str) -> Permanent:
    return Permanent(Reason.INVALID_SPEC, f"{FIELD}.{part}: {why}")


# ---------------------------------------------------------------- bodies


def _chat(texts: Mapping[str, str]) -> dict[str, Any]:
    content: Any = texts["prompt"]
    if "image" in texts:
        content = [
            {"type": "text", "text": content},
            {"type": "image_url", "image_url": {"url": texts["image"]}},
        ]
    messages = [{"role": "user", "content": content}]
    if "system" in texts:
        messages.insert(0, {"role": "system", "content": texts["system"]})
    return {"messages": messages}


def _response(texts: Mapping[str, str]) -> dict[str, Any]:
    given: Any = texts["prompt"]
    if "image" in texts:
        parts = [
            {"type": "input_text", "text": given},
            {"type": "input_image", "detail": "auto", "image_url": texts["image"]},
        ]
        given = [{"role": "user", "content": parts}]
    body = {"input": given}
    return {"instructions": texts["system"], **body} if "system" in texts else body


_MAKERS: dict[Operation, Callable[[Mapping[str, str]], dict[str, Any]]] = {
    Operation.CHAT_COMPLETIONS: _chat,
    Operation.RESPONSES: _response,
    Operation.COMPLETIONS: lambda texts: {"prompt": texts["prompt"]},
    Operation.EMBEDDINGS: lambda texts: {"input": texts["input"]},
}

"""One input line, checked and made complete. Owns what a canonical request is.

A line is an OpenAI batch input line (`custom_id`, `method`, `url`, `body`; method and url may be
left out), or a Bedrock-native one (`recordId`, `modelInput`). The body's bytes are passed on as
they stand, so numbers and texts reach the provider exactly as written; what the job adds (model,
default parameters) is put in front.

Depth: what the JSON parser refuses as too deep (about a thousand levels) is a bad record. A key
that stands twice in the line itself is refused; inside a body it is the provider's business.
It knows nothing of files, rows or providers' limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from batchinference.records import bounds, codes
from batchinference.records.body_types import Shape, body_names, body_type, shapes
from batchinference.records.locations import check_locations
from batchinference.records.parameters import Default
from batchinference.records.refusal import BadLine

_NONE = msgspec.Raw(b"")
_BRACE = 0x7D
_DEEP = "objects and lists are nested too deeply"


class _Envelope(msgspec.Struct, gc=False):
    custom_id: msgspec.Raw = _NONE
    method: str | None = None
    url: str | None = None
    body: msgspec.Raw = _NONE
    record_id: msgspec.Raw = msgspec.field(default=_NONE, name="recordId")
    model_input: msgspec.Raw = msgspec.field(default=_NONE, name="modelInput")


class Request(msgspec.Struct, gc=False):
    """A checked record (a msgspec struct, for the speed of making it).

    Attributes:
        custom_id: the user's id as JSON text; b"null" for a native line without `recordId`.
        body: the complete body, or the untouched modelInput, as JSON text.
        native: the body is the provider's own.
        output: the most tokens of its answer, 0 where it has no bound.
    """

    custom_id: bytes
    body: bytes
    native: bool = False
    output: int = 0


BEHIND_BODY = b"}\n"
"""What a usual line has behind its body."""


class Usual(NamedTuple):
    """Checked records of consecutive lines.

    Attributes:
        ids: the users' ids as JSON text.
        rests: the rest of each line from the body on: body, closing brace, newline.
        front: belongs in front of each body, which lacks its own opening brace then.
        bodies: of `Rules.body`'s type; empty where it is not the type of all of them.
        outputs: the most tokens of each answer, 0 where it has no bound.
    """

    ids: list[bytes]
    rests: list[memoryview]
    front: bytes
    bodies: list[Any]
    outputs: Sequence[int] = ()


_UNBOUNDED = bounds.Members()


@dataclass(frozen=True, slots=True)
class Rules:
    """What records are held to.

    Attributes:
        model: the job's model; a body may repeat it, not differ.
        url: the operation's path.
        required: a member that every body must have, "" for none.
        defaults: the job's parameters.
        native: lines in Bedrock's own format are welcome.
        places: S3 prefixes that such a line may name.
        closed: prefixes in these that it may not.
        body: the type of the bodies that a translator is quick with, None where there is none.
        bounds: the members that bound an answer.
    """

    model: str
    url: str
    required: str = ""
    defaults: Sequence[Default] = ()
    native: bool = False
    places: Sequence[str] = ()
    closed: Sequence[str] = ()
    body: type[msgspec.Struct] | None = None
    bounds: bounds.Members = _UNBOUNDED


_TRIES = 8
"""Blocks in a row without bodies of the quick type after which it is not tried any more."""


class RequestReader:
    """Reads lines by one set of rules."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._envelope = msgspec.json.Decoder(_Envelope).decode
        self._urls = (rules.url, rules.url.removeprefix("/v1"))
        self._model_member = b'"model":' + msgspec.json.encode(rules.model)
        names = {name: index for index, name in enumerate(body_names(rules))}
        self._bounding = [(name, f"m{names[name]}") for name in rules.bounds.names]
        self._defaults = [
            (
                [f"m{names[name]}" for name in default.names],
                msgspec.json.encode(default.names[0]) + b":" + msgspec.json.encode(default.value),
            )
            for default in rules.defaults
        ]
        self._body = msgspec.json.Decoder(body_type(names, rules.required)).decode
        self._usual = _usual_line(rules.url)
        members = [member for _, member in self._defaults]
        self._shapes = shapes(rules, self._model_member, members)
        self._outputs = bounds.usual(
            rules.bounds, rules.defaults, {name: f"m{index}" for name, index in names.items()}
        )
        self._quick: list[Shape] = []
        if rules.body is not None:
            self._quick = shapes(rules, self._model_member, members, rules.body)
            self._quick_outputs = bounds.usual(
                rules.bounds, rules.defaults, {name: name for name in rules.bounds.limits}
            )
        self._in_vain = 0
        whole = len('{"custom_id":,"method":"POST","url":"","body":}')
        short = len('{"custom_id":,"body":}')
        # What a line has around its values when it has each key once: compact, and with the
        # blanks that Python's json puts after commas and colons.
        self._overheads = frozenset({(4, whole), (4, whole + 7), (0, short), (0, short + 3)})

    def read_usual(self, data: bytes, is_ascii: bool) -> Usual | None:
        """All lines of a block at about three times the speed of `read`; None unless every one is
        written as the examples show it and in order, and as long as the block ends in a newline.

        Such a line is matched up to its body and parsed once, from there on: that it is JSON with
        these keys and no other, and that the body is in order, follows from both. Whether bodies
        name the model is the same throughout most files, so the last way is tried first.
        """
        try:
            if not is_ascii:
                data.decode()
        except UnicodeError:
            return None
        if self._quick and self._in_vain < _TRIES:
            read = self._of_shapes(self._quick, data)
            if read is not None:
                self._in_vain = 0
                return read._replace(outputs=self._quick_outputs(read.bodies))
            self._in_vain += 1
        read = self._of_shapes(self._shapes, data)
        return read and read._replace(bodies=[], outputs=self._outputs(read.bodies))

    def _of_shapes(self, known: list[Shape], data: bytes) -> Usual | None:
        for _ in known:
            found = Usual([], [], known[0][1], [])
            try:
                is_whole = self._match_all(known[0], data, found)
            except (msgspec.MsgspecError, RecursionError):
                if found.ids:
                    return None
                known.reverse()  # the first line alone tells which one it is
            else:
                return found if is_whole else None
        return None

    def _match_all(self, shape: Shape, data: bytes, found: Usual) -> bool:
        """Read lines up to the first that is not usual; whether there was none."""
        add_id, add_rest, add_body = found.ids.append, found.rests.append, found.bodies.append
        match, find_newline = self._usual, data.find
        decode, front = shape
        skipped = 1 if front else 0  # the body's own brace is in the front
        view = memoryview(data)
        at, end = 0, len(data)
        while at < end:
            newline = find_newline(b"\n", at)
            usual = match(data, at, newline)
            if usual is None or data[newline - 1] != _BRACE:
                return False
            start = usual.end()
            add_body(decode(view[start : newline - 1]))
            add_id(usual[1])
            add_rest(view[start + skipped : newline + 1])
            at = newline + 1
        return True

    def read(self, line: bytes, is_ascii: bool = False) -> Request:
        """The record of a line that is not blank.

        Args:
            line: without its newline; a carriage return at its end is white space.
            is_ascii: whoever split the lines knows that no byte is above 127.

        Raises:
            BadLine: what is wrong with it.
        """
        try:
            if not is_ascii:
                line.decode()
            envelope = self._envelope(line)
        except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
            raise _explain(line, error) from None
        custom_id = bytes(envelope.custom_id)
        body = bytes(envelope.body)
        if not body:
            return self._without_body(line, envelope)
        if custom_id[:1] != b'"':
            what = "must be a string" if custom_id else "is missing; every record needs one"
            code = codes.WRONG_TYPE if custom_id else codes.MISSING_FIELD
            raise BadLine(code, f"`custom_id` {what}")
        method, url = envelope.method, envelope.url
        around = len(line) - len(custom_id) - len(body) - len(url or "")
        custom_id = _same_text(custom_id)
        if (len(method or ""), around) not in self._overheads:
            _refuse_twice(line, custom_id)
        if method is not None and method != "POST":
            raise BadLine(codes.WRONG_METHOD, "`method` must be POST", custom_id)
        if url is not None and url not in self._urls:
            raise BadLine(
                codes.WRONG_URL, f"`url` must be {self._urls[0]}, the job's operation", custom_id
            )
        try:
            checked = self._body(body)
        except msgspec.ValidationError as error:
            raise BadLine(codes.WRONG_TYPE, _in_body(error), custom_id) from None
        except RecursionError:
            raise BadLine(codes.TOO_DEEP, _DEEP, custom_id) from None
        return self._checked(checked, body, custom_id)

    def _checked(self, checked: Any, body: bytes, custom_id: bytes) -> Request:
        whole = self._complete(checked, body, custom_id)
        said = [(name, getattr(checked, attribute)) for name, attribute in self._bounding]
        known = {name: bytes(text) for name, text in said if text is not msgspec.UNSET}
        output = bounds.bound(self._rules.bounds, known, self._rules.defaults)
        return Request(custom_id, whole, output=output)

    def complete(self, custom_id: bytes, body: bytes) -> Request:
        """The record of a body that was made here, as JSON text.

        Raises:
            BadLine: the job's defaults don't fit it.
        """
        return self._checked(self._body(body), body, custom_id)

    def _complete(self, checked: Any, body: bytes, custom_id: bytes) -> bytes:
        """The body with the model and the defaults that it lacks in front."""
        rules = self._rules
        if checked.stream:
            raise BadLine(
                codes.STREAMING_UNSUPPORTED, "`body.stream` is true: a batch can't", custom_id
            )
        added: list[bytes] = []
        model = checked.model
        if model != rules.model:
            if model is None:
                body = _without_member(body, "model")
                added.append(self._model_member)
            elif model is msgspec.UNSET:
                added.append(self._model_member)
            else:
                raise BadLine(
                    codes.MODEL_MISMATCH,
                    f"`body.model` must be the job's model {rules.model!r}, or left out",
                    custom_id,
                )
        if rules.required and checked.required is msgspec.UNSET:
            raise BadLine(codes.MISSING_FIELD, f"`body.{rules.required}` is missing", custom_id)
        for attributes, member in self._defaults:
            if all(getattr(checked, name) is msgspec.UNSET for name in attributes):
                added.append(member)
        if not added:
            return body
        comma = b"" if body[1:].lstrip()[:1] == b"}" else b","
        return b"{" + b",".join(added) + comma + body[1:]

    def _without_body(self, line: bytes, envelope: _Envelope) -> Request:
        model_input = bytes(envelope.model_input)
        custom_id = bytes(envelope.record_id) or bytes(envelope.custom_id)
        custom_id = _same_text(custom_id)
        if not model_input:
            known = custom_id if custom_id[:1] == b'"' else b"null"
            raise BadLine(codes.MISSING_FIELD, "`body` is missing", known)
        if not self._rules.native:
            raise BadLine(
                codes.PROVIDER_MISMATCH,
                "`modelInput` is Bedrock's own format; this provider takes `body`",
                custom_id if custom_id[:1] == b'"' else b"null",
            )
        if custom_id and custom_id[:1] != b'"':
            raise BadLine(codes.WRONG_TYPE, "`recordId` must be a string")
        if model_input[:1] != b"{":
            raise BadLine(codes.WRONG_TYPE, "`modelInput` must be an object", custom_id or b"null")
        _refuse_twice(line, custom_id or b"null")
        rules = self._rules
        check_locations(model_input, rules.places, custom_id or b"null", rules.closed)
        output = bounds.native_bound(model_input)
        return Request(custom_id or b"null", model_input, native=True, output=output)


def decode_body(body: bytes | memoryview, custom_id: bytes = b"null") -> dict[str, Any]:
    """A body as Python values, for providers whose requests are translated.

    Raises:
        BadLine: it has a number that can't be held exactly enough.
    """
    try:
        value: dict[str, Any] = msgspec.json.decode(body)
    except RecursionError:
        raise BadLine(codes.TOO_DEEP, _DEEP, custom_id) from None
    except msgspec.ValidationError:
        raise BadLine(
            codes.NUMBER_OUT_OF_RANGE, "the body has a number that is out of range", custom_id
        ) from None
    return value


def _usual_line(url: str) -> Callable[[bytes, int, int], re.Match[bytes] | None]:
    """Matches the line that every example shows, up to its body; group 1 is the id."""
    blank = rb" ?"
    pattern = (
        rb'\{"custom_id":%b("[^"\\\x00-\x1f]*"),%b"method":%b"POST",%b"url":%b"%b",%b"body":%b'
    )
    blanks = [blank] * 5
    return re.compile(pattern % (*blanks, re.escape(url.encode()), blank, blank)).match


def _same_text(custom_id: bytes) -> bytes:
    """The id in one spelling: escapes in JSON text can write the same string in several ways."""
    if custom_id[:1] == b'"' and b"\\" in custom_id:
        return msgspec.json.encode(msgspec.json.decode(custom_id))
    return custom_id


def _without_member(body: bytes, name: str) -> bytes:
    members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    del members[name]
    return msgspec.json.encode(members)


# ---------------------------------------------------------------- what is wrong


def _explain(line: bytes, error: Exception) -> BadLine:
    """The verdict on a line that could not be read as a record at all."""
    if isinstance(error, UnicodeError):
        return BadLine(codes.INVALID_ENCODING, "the line is not valid UTF-8")
    if isinstance(error, RecursionError):
        return BadLine(codes.TOO_DEEP, _DEEP)
    if isinstance(error, msgspec.ValidationError):
        if line.lstrip()[:1] != b"{":
            return BadLine(codes.NOT_AN_OBJECT, "the line must be a JSON object")
        return BadLine(codes.WRONG_TYPE, str(error).replace("`$.", "`"))
    return BadLine(codes.INVALID_JSON, f"the line is not JSON: {error}")


def _in_body(error: msgspec.ValidationError) -> str:
    text = str(error)
    return text.replace("`$.", "`body.") if "`$." in text else f"{text} - at `body`"


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written."""


def _refuse_twice(line: bytes, custom_id: bytes) -> None:
    """Refuse a line that has one of its keys twice."""
    try:
        pairs = json.loads(line, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):  # an integer of more digits than Python reads
        return
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise BadLine(codes.DUPLICATE_KEY, "the line has a key twice", custom_id)
        seen.add(key)

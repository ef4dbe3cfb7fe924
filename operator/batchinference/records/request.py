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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import msgspec

from batchinference.records import codes
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
    """

    custom_id: bytes
    body: bytes
    native: bool = False


BEHIND_BODY = b"}\n"
"""What a usual line has behind its body."""


class Usual(NamedTuple):
    """Checked records of consecutive lines.

    Attributes:
        ids: the users' ids as JSON text.
        rests: the rest of each line from the body on: body, closing brace, newline.
        front: belongs in front of each body, which lacks its own opening brace then.
        bodies: of `Rules.body`'s type; empty where it is not the type of all of them.
    """

    ids: list[bytes]
    rests: list[memoryview]
    front: bytes
    bodies: list[Any]


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
    """

    model: str
    url: str
    required: str = ""
    defaults: Sequence[Default] = ()
    native: bool = False
    places: Sequence[str] = ()
    closed: Sequence[str] = ()
    body: type[msgspec.Struct] | None = None


class RequestReader:
    """Reads lines by one set of rules."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._envelope = msgspec.json.Decoder(_Envelope).decode
        self._urls = (rules.url, rules.url.removeprefix("/v1"))
        self._model_member = b'"model":' + msgspec.json.encode(rules.model)
        names = {name: index for index, name in enumerate(_body_names(rules))}
        self._defaults = [
            (
                [f"m{names[name]}" for name in default.names],
                msgspec.json.encode(default.names[0]) + b":" + msgspec.json.encode(default.value),
            )
            for default in rules.defaults
        ]
        self._body = msgspec.json.Decoder(_body_type(names, rules.required)).decode
        self._usual = _usual_line(rules.url)
        members = [member for _, member in self._defaults]
        self._shapes = _shapes(rules, self._model_member, members)
        self._quick = []
        if rules.body is not None:
            self._quick = _shapes(rules, self._model_member, members, rules.body)
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
            found = self._of_shapes(self._quick, data, keeps=True)
            if found is not None:
                self._in_vain = 0
                return found
            self._in_vain += 1
        return self._of_shapes(self._shapes, data, keeps=False)

    def _of_shapes(self, shapes: list[_Shape], data: bytes, *, keeps: bool) -> Usual | None:
        for _ in shapes:
            found = Usual([], [], shapes[0][1], [])
            try:
                is_whole = self._match_all(shapes[0], data, found, keeps=keeps)
            except (msgspec.MsgspecError, RecursionError):
                if found.ids:
                    return None
                shapes.reverse()  # the first line alone tells which one it is
            else:
                return found if is_whole else None
        return None

    def _match_all(self, shape: _Shape, data: bytes, found: Usual, *, keeps: bool) -> bool:
        """Read lines up to the first that is not usual; whether there was none."""
        add_id, add_rest, keep = found.ids.append, found.rests.append, found.bodies.append
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
            body = decode(view[start : newline - 1])
            if keeps:
                keep(body)
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
        return Request(custom_id, self._complete(checked, body, custom_id))

    def complete(self, custom_id: bytes, body: bytes) -> Request:
        """The record of a body that was made here, as JSON text.

        Raises:
            BadLine: the job's defaults don't fit it.
        """
        return Request(custom_id, self._complete(self._body(body), body, custom_id))

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
        return Request(custom_id or b"null", model_input, native=True)


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


# ---------------------------------------------------------------- the body's type


def _body_names(rules: Rules) -> list[str]:
    names = dict.fromkeys(name for default in rules.defaults for name in default.names)
    return list(names)


_REQUIRED_TYPES: dict[str, Any] = {"messages": list[msgspec.Raw]}


def _body_type(names: Mapping[str, int], required: str) -> type[msgspec.Struct]:
    """A struct that looks at `model`, `stream` and the members that are asked for."""
    fields: list[tuple[str, Any, Any]] = [
        ("model", str | None | msgspec.UnsetType, msgspec.UNSET),
        ("stream", bool | None, None),
    ]
    rename = {f"m{index}": name for name, index in names.items()}
    if required:
        rename["required"] = required
    whole = msgspec.Raw | msgspec.UnsetType
    kinds = {"required": _REQUIRED_TYPES.get(required, msgspec.Raw) | msgspec.UnsetType}
    fields += [(name, kinds.get(name, whole), msgspec.UNSET) for name in rename]
    return msgspec.defstruct("Body", fields, rename=rename, gc=False)


_Shape = tuple[Callable[[memoryview], Any], bytes]

_TRIES = 8
"""Blocks in a row without bodies of the quick type after which it is not tried any more."""


def _shapes(
    rules: Rules,
    model_member: bytes,
    members: list[bytes],
    body: type[msgspec.Struct] = msgspec.Struct,
) -> list[_Shape]:
    """The two usual bodies, with the job's model and without any: what parses them, failing on
    everything else, and what goes in front of their first member. `body` has the other members.
    """
    absent = Literal["\0 no body has this"]
    own = set(body.__struct_encode_fields__)
    fields: list[Any] = [("model", Literal[rules.model])]
    if rules.required and rules.required not in own:
        fields.append(("required", _REQUIRED_TYPES.get(rules.required, msgspec.Raw)))
    fields.append(("stream", None, None))
    # A member of the body's own type is the same field, with another type.
    names = {name if name in own else f"m{n}": name for n, name in enumerate(_body_names(rules))}
    fields += [(attribute, absent, None) for attribute in names]
    rename = {**names, "required": rules.required or "required"}
    found: list[_Shape] = []
    for has_model in (True, False):
        if not has_model:
            fields = [*fields[1:], ("model", absent, None)]
        added = [*members] if has_model else [model_member, *members]
        if not has_model and not rules.required:
            break  # a body may be empty then, and nothing can be put in front of nothing
        shape = msgspec.defstruct(
            "Usual", fields, bases=(body,), rename=rename, gc=False, kw_only=True
        )
        front = b"{" + b",".join(added) + b"," if added else b""
        found.append((msgspec.json.Decoder(shape).decode, front))
    return found


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

"""Frozen dataclasses <-> plain JSON values, by type hints alone.

Owns the wire names (camelCase with acronyms in capitals, as the CRDs spell them) and the field
paths in errors. Knows no kind of object: manifests, statuses and the journal use it alike, so a
field is declared once, as a Python type hint, and nowhere else.

Understood: str, int, bool, StrEnum, datetime, Any (JSON as it is), dataclasses, `X | None`,
`tuple[X, ...]` and `Mapping[str, X]`. Floats are refused: money and ratios are decimal strings.
Types that contain themselves are not understood; nothing here needs them.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast

from batchinference.errors import InvalidObject

T = TypeVar("T")

_ACRONYMS = {"ai": "AI", "arn": "ARN", "id": "ID", "ids": "IDs", "uri": "URI", "url": "URL"}
_WIRE = "wire"
_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")

_Decode = Callable[[Any, str, bool], Any]
_Encode = Callable[[Any], Any]


def wire(name: str) -> dict[str, str]:
    """Field metadata for a wire name that the spelling rule does not give."""
    return {_WIRE: name}


def wire_name(field: Field[Any]) -> str:
    """The name of a dataclass field in JSON: `kms_key_id` is `kmsKeyID`."""
    if _WIRE in field.metadata:
        return str(field.metadata[_WIRE])
    first, *rest = field.name.split("_")
    return first + "".join(_ACRONYMS.get(word, word.capitalize()) for word in rest)


def decode(cls: type[T], value: Any, path: str = "", *, ignore_unknown: bool = False) -> T:
    """Build a `cls` from a JSON value.

    Absent and null members take their defaults. `path` is where the value stands in its document,
    for messages. `ignore_unknown` is for objects from the API server, whose CRD may be newer.

    Raises:
        InvalidObject: a wrong type, an unknown enum value, a missing or an unknown member.
        TypeError: a type hint is none of those this module understands.
    """
    hint: Any = cls  # mypy does not take a type[T] for hashable
    return cast("T", _decoder(hint)(value, path, ignore_unknown))


def encode(value: Any) -> Any:
    """The JSON value of a dataclass, or of anything that a field of one may hold.

    Members that are None or equal to their defaults are left out, so `decode` gives them back.

    Raises:
        ValueError: a datetime without a zone.
        TypeError: a type hint is none of those this module understands.
    """
    hint: Any = type(value)
    return _encoder(hint)(value)


def encode_time(value: datetime) -> str:
    """RFC 3339 in UTC with a Z; fractions only where there are any.

    Raises:
        ValueError: the datetime has no zone.
    """
    if value.tzinfo is None:
        raise ValueError(f"{value!r} has no time zone")
    return value.astimezone(UTC).isoformat().removesuffix("+00:00") + "Z"


def decode_time(value: Any, path: str = "") -> datetime:
    """The UTC datetime of an RFC 3339 string.

    Raises:
        InvalidObject: it is none.
    """
    if isinstance(value, str) and _TIME.fullmatch(value):
        # The pattern lets a 31st of February pass, and `fromisoformat` takes more than RFC 3339.
        with suppress(ValueError, OverflowError):
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
    raise InvalidObject(path, "must be a time such as '2026-01-31T12:00:00Z'")


# ------------------------------------------------------------------ one decoder per type, cached


@cache
def _decoder(hint: Any) -> _Decode:
    if hint is Any:
        return lambda value, _path, _ignore: value
    if hint is datetime:
        return lambda value, path, _ignore: decode_time(value, path)
    if hint in _SCALARS:
        return _scalar(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _choice(hint)
    if is_dataclass(hint):
        return _record(hint)
    inner = _optional(hint)
    if inner is not None:
        return _nullable(_decoder(inner))
    container, item = _container(hint)
    return _items(_decoder(item)) if container is tuple else _entries(_decoder(item))


_SCALARS = {str: "a string", int: "a whole number", bool: "true or false"}


def _scalar(kind: type) -> _Decode:
    must = f"must be {_SCALARS[kind]}"

    def scalar(value: Any, path: str, _ignore: bool) -> Any:
        # type() and not isinstance(): True is an int to Python, and not to JSON.
        if type(value) is not kind:
            raise InvalidObject(path, must)
        return value

    return scalar


def _choice(kind: type[StrEnum]) -> _Decode:
    members = {member.value: member for member in kind}
    must = "must be one of " + ", ".join(f"'{name}'" for name in members)

    def choice(value: Any, path: str, _ignore: bool) -> Any:
        try:
            return members[value]
        except (KeyError, TypeError):  # TypeError: a list or an object
            raise InvalidObject(path, must) from None

    return choice


def _nullable(one: _Decode) -> _Decode:
    return lambda value, path, ignore: None if value is None else one(value, path, ignore)


def _items(one: _Decode) -> _Decode:
    def items(value: Any, path: str, ignore: bool) -> Any:
        if not isinstance(value, list | tuple):
            raise InvalidObject(path, "must be a list")
        return tuple(one(item, f"{path}[{n}]", ignore) for n, item in enumerate(value))

    return items


def _entries(one: _Decode) -> _Decode:
    def entries(value: Any, path: str, ignore: bool) -> Any:
        return {
            key: one(item, _at(path, key), ignore) for key, item in _object(value, path).items()
        }

    return entries


@dataclass(frozen=True, slots=True)
class _Member:
    """A field of a dataclass as it stands on the wire."""

    name: str
    wire: str
    hint: Any
    required: bool
    default: Callable[[], Any]


@cache
def _members(cls: Any) -> tuple[_Member, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        _Member(
            name=f.name,
            wire=wire_name(f),
            hint=hints[f.name],
            required=f.default is MISSING and f.default_factory is MISSING,
            default=_default(f),
        )
        for f in fields(cls)
    )


def _default(field: Field[Any]) -> Callable[[], Any]:
    if field.default_factory is not MISSING:
        return field.default_factory
    return lambda: field.default


def _record(cls: Any) -> _Decode:
    members = {member.wire: (member.name, _decoder(member.hint)) for member in _members(cls)}
    required = [(member.name, member.wire) for member in _members(cls) if member.required]

    def record(value: Any, path: str, ignore: bool) -> Any:
        given = {}
        for key, item in _object(value, path).items():
            if key not in members:
                if ignore:
                    continue
                raise InvalidObject(_at(path, key), "is not a known field")
            if item is not None:
                name, one = members[key]
                given[name] = one(item, f"{path}.{key}" if path else key, ignore)
        for name, wire in required:
            if name not in given:
                raise InvalidObject(_at(path, wire), "must be set")
        return cls(**given)

    return record


# ------------------------------------------------------------------ one encoder per type, cached


@cache
def _encoder(hint: Any) -> _Encode:
    if hint is Any or hint in _SCALARS or hint is type(None):
        return lambda value: value
    if hint is datetime:
        return encode_time
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return lambda value: value.value
    if is_dataclass(hint):
        return _leave_out_defaults(hint)
    inner = _optional(hint)
    if inner is not None:
        some = _encoder(inner)
        return lambda value: None if value is None else some(value)
    container, item = _container(hint)
    each = _encoder(item)
    if container is tuple:
        return lambda value: [each(one) for one in value]
    return lambda value: {key: each(one) for key, one in value.items()}


def _leave_out_defaults(cls: Any) -> _Encode:
    # A default is only compared with here, so one of each is enough.
    members = [
        (m.name, m.wire, m.required, None if m.required else m.default(), _encoder(m.hint))
        for m in _members(cls)
    ]

    def record(value: Any) -> dict[str, Any]:
        out = {}
        for name, wire, required, default, one in members:
            item = getattr(value, name)
            if required or (item is not None and item != default):
                out[wire] = one(item)
        return out

    return record


# ------------------------------------------------------------------ shapes of type hints


def _optional(hint: Any) -> Any:
    """X of `X | None`, else None."""
    if typing.get_origin(hint) not in {types.UnionType, typing.Union}:
        return None
    inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return inner[0] if len(inner) == 1 else None


def _container(hint: Any) -> tuple[type, Any]:
    """The container and its item of `tuple[X, ...]` and `Mapping[str, X]`; bare ones hold Any."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in {tuple, list} and (not args or args[1:] in {(), (Ellipsis,)}):
        return tuple, args[0] if args else Any
    if origin in {Mapping, dict} and (not args or args[0] is str):
        return dict, args[1] if args else Any
    raise TypeError(f"no codec for {hint!r}")


def _object(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidObject(path, "must be an object")
    for key in value:
        if not isinstance(key, str):
            raise InvalidObject(path, f"must have strings as keys, and {key!r} is none")
    return cast("Mapping[str, Any]", value)


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key

"""The types that bodies are parsed by: only what has to be looked at is read.

Owns how a usual body differs from one that needs a closer look. What is wrong with a body is not
said here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from batchinference.records import bounds

if TYPE_CHECKING:
    from batchinference.records.request import Rules


def body_names(rules: Rules) -> list[str]:
    """The members that are looked at besides `model` and `stream`, each once."""
    names = [*default_names(rules), *rules.bounds.names]
    return list(dict.fromkeys(names))


def default_names(rules: Rules) -> list[str]:
    """The names under which a body may have what it would get otherwise."""
    return [name for default in rules.defaults for name in default.names]


_REQUIRED_TYPES: dict[str, Any] = {"messages": list[msgspec.Raw]}


def body_type(names: Mapping[str, int], required: str) -> type[msgspec.Struct]:
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


Shape = tuple[Callable[[memoryview], Any], bytes]


def shapes(
    rules: Rules,
    model_member: bytes,
    members: list[bytes],
    body: type[msgspec.Struct] = msgspec.Struct,
) -> list[Shape]:
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
    names = {name if name in own else f"m{n}": name for n, name in enumerate(body_names(rules))}
    given = set(default_names(rules))
    for attribute, name in names.items():
        if name in given:
            fields.append((attribute, absent, None))
        elif body is msgspec.Struct:
            fields.append((attribute, bounds.usual_type(rules.bounds, name), None))
    rename = {**names, "required": rules.required or "required"}
    found: list[Shape] = []
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

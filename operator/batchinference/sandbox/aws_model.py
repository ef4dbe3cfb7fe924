"""Requests held against AWS's own service model, with what botocore leaves to the service.

botocore checks required members and types before it sends; patterns, maxima and enums are the
service's to check, so here they are checked. Must not know jobs or HTTP.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from botocore.loaders import Loader

_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "map": (dict,),
    "structure": (dict,),
    "blob": (str,),
    "timestamp": (str, int, float),
}


class WrongType(Exception):
    """A member has another JSON type than the model says (AWS: SerializationException)."""


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """The shapes of one AWS service."""

    shapes: dict[str, Any]

    def problems(self, shape_name: str, value: Any) -> list[str]:
        """List what is wrong with a value, in the words AWS uses; empty when it is right.

        Raises:
            WrongType: a JSON type is wrong, so the rest cannot be read.
        """
        found: list[str] = []
        self._walk(shape_name, value, "", found)
        return found

    def _walk(self, shape_name: str, value: Any, at: str, found: list[str]) -> None:
        shape = self.shapes[shape_name]
        kind: str = shape["type"]
        if shape.get("document"):
            return
        fits = isinstance(value, _PYTHON_TYPES[kind])
        if not fits or (isinstance(value, bool) and kind != "boolean"):
            raise WrongType(f"{at or 'request body'}: expected {kind}, got {type(value).__name__}")
        match kind:
            case "structure":
                self._structure(shape, value, at, found)
            case "list":
                self._bounds(shape, value, at, found)
                for index, member in enumerate(value, start=1):
                    self._walk(shape["member"]["shape"], member, f"{at}.{index}.member", found)
            case "map":
                self._bounds(shape, value, at, found)
                for key, member in value.items():
                    self._walk(shape["value"]["shape"], member, f"{at}.{key}", found)
            case "string":
                self._string(shape, value, at, found)
            case "integer" | "long" | "float" | "double":
                self._bounds(shape, value, at, found)
            case "timestamp":
                _timestamp(value, at, found)

    def _structure(self, shape: Any, value: dict[str, Any], at: str, found: list[str]) -> None:
        prefix = f"{at}." if at else ""
        found.extend(
            _constraint(None, prefix + name, "Member must not be null")
            for name in shape.get("required", ())
            if value.get(name) is None
        )
        present = [name for name in shape["members"] if value.get(name) is not None]
        if shape.get("union") and len(present) != 1:
            found.append(_constraint(value, at, "Member must have exactly one member set"))
        for name in present:
            self._walk(shape["members"][name]["shape"], value[name], prefix + name, found)

    def _string(self, shape: Any, value: str, at: str, found: list[str]) -> None:
        self._bounds(shape, value, at, found)
        if "pattern" in shape and not _compiled(shape["pattern"]).fullmatch(value):
            text = f"Member must satisfy regular expression pattern: {shape['pattern']}"
            found.append(_constraint(value, at, text))
        if "enum" in shape and value not in shape["enum"]:
            text = f"Member must satisfy enum value set: [{', '.join(shape['enum'])}]"
            found.append(_constraint(value, at, text))

    @staticmethod
    def _bounds(shape: Any, value: Any, at: str, found: list[str]) -> None:
        is_number = isinstance(value, int | float)
        size = value if is_number else len(value)
        noun = "value" if is_number else "length"
        if "min" in shape and size < shape["min"]:
            text = f"Member must have {noun} greater than or equal to {shape['min']}"
            found.append(_constraint(value, at, text))
        if "max" in shape and size > shape["max"]:
            text = f"Member must have {noun} less than or equal to {shape['max']}"
            found.append(_constraint(value, at, text))


def validation_text(problems: list[str]) -> str:
    """Join problems into the message of a ValidationException."""
    plural = "error" if len(problems) == 1 else "errors"
    return f"{len(problems)} validation {plural} detected: {'; '.join(problems)}"


@cache
def load(service: str) -> ServiceModel:
    """Load the model of a service that botocore ships."""
    return ServiceModel(Loader().load_service_model(service, "service-2")["shapes"])


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(f"(?:{pattern})")


def _constraint(value: Any, at: str, text: str) -> str:
    shown = "null" if value is None else f"'{value}'"
    where = f"'{at}'" if value is None else f"at '{at}'"
    if value is None:
        return f"Value at {where} failed to satisfy constraint: {text}"
    return f"Value {shown} {where} failed to satisfy constraint: {text}"


def _timestamp(value: Any, at: str, found: list[str]) -> None:
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            found.append(_constraint(value, at, "Member must be an ISO 8601 timestamp"))

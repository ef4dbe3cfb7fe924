"""Parsed JSON of thousands of objects that say nearly the same, held with each string once."""

from __future__ import annotations

import sys
from typing import Any

_DEEPEST = 20


def shared(value: Any, depth: int = _DEEPEST) -> Any:
    """An equal value whose strings are the same objects as those of all values made here; what is
    nested deeper than `depth` stays as it is.

    For what is kept as long as its object lives: member names and the words of a status take more
    memory than what tells one object from another.
    """
    if type(value) is str:
        return sys.intern(value)
    if not depth:
        return value
    if isinstance(value, dict):
        return {shared(name): shared(member, depth - 1) for name, member in value.items()}
    if isinstance(value, list):
        return [shared(member, depth - 1) for member in value]
    return value

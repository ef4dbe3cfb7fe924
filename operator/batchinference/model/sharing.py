"""Parsed JSON of thousands of objects that say nearly the same, held with each string once."""

from __future__ import annotations

from typing import Any

_DEEPEST = 20
_MOST = 10_000
"""Strings that are known at a time. Not `sys.intern`: Python 3.12 never lets go of what that has
seen, and most strings of a status are seen once.
"""

_known: dict[str, str] = {}


def shared(value: Any, depth: int = _DEEPEST) -> Any:
    """An equal value whose strings are, where they were met before, the same objects as then; what
    is nested deeper than `depth` stays as it is.

    For what is kept as long as its object lives: member names and the words of a status take more
    memory than what tells one object from another.
    """
    if type(value) is str:
        return _one(value)
    if not depth:
        return value
    if isinstance(value, dict):
        return {shared(name): shared(member, depth - 1) for name, member in value.items()}
    if isinstance(value, list):
        return [shared(member, depth - 1) for member in value]
    return value


def _one(text: str) -> str:
    if len(_known) >= _MOST:
        _known.clear()  # what is common is soon there again
    return _known.setdefault(text, text)

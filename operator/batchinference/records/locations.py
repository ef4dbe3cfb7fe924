"""S3 locations inside of records: which values are some, and which of them a record may name.

Only a provider's own format has them; what it means by them is the provider's business, which reads
them with a role that may read more than the job may. So everything that may be one must lie in
what the job's provider object allows, and read one way only. Nothing is fetched here.

Taken for a location: what stands under `s3Location` (itself, or its `uri`) and `s3Uri`, whatever it
is; and every other string that is an S3 URI as a whole, besides those that are texts by their name.
A member that stands twice counts twice: parsers differ in which one they take.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from batchinference.core.locations import is_inside, oddity, what_is_allowed
from batchinference.records import codes
from batchinference.records.refusal import BadLine

_MAYBE = re.compile(rb"s3[an]?:|s3_?location|s3_?ur[il]|\\u00[2-7]", re.IGNORECASE).search
"""Finds something in every record that has a location; the last one is an escaped ASCII letter."""

_URI = re.compile(r"\s*s3[an]?:/\S*\s*", re.IGNORECASE).fullmatch
_HOLDERS = {"s3location", "s3uri", "s3url"}
_TEXTS = {"text", "content", "prompt", "inputText", "system"}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written."""


_Path = tuple[Any, ...]
"""The name of a member or the index of an item, behind the path of what holds it."""


def check_locations(
    model_input: bytes,
    places: Sequence[str],
    custom_id: bytes = b"null",
    closed: Sequence[str] = (),
) -> None:
    """Refuse a record that names a location outside of the places, or in one that is closed.

    Raises:
        BadLine: with the path of the member; the location itself is not told, it is of the record.
    """
    if _MAYBE(model_input) is None:
        return
    try:
        whole = json.loads(model_input, object_pairs_hook=_Pairs, parse_int=str, parse_float=str)
    except RecursionError:
        message = "objects and lists are nested too deeply"
        raise BadLine(codes.TOO_DEEP, message, custom_id) from None
    for path, value in _locations(whole):
        problem = oddity(value)
        if not problem and not is_inside(value, places):
            problem = what_is_allowed(places)
        if not problem and is_inside(value, closed):
            problem = "lies where the operator keeps the data of runs"
        if problem:
            raise BadLine(
                codes.LOCATION_NOT_ALLOWED, f"`modelInput{_shown(path)}` {problem}", custom_id
            )


def _locations(whole: Any) -> Iterator[tuple[_Path, str]]:
    """What is a location, in the order of the record. Without recursion: depth is the user's."""
    waiting: list[tuple[_Path, Any]] = [((), whole)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _Pairs):
            waiting += [((path, name), member) for name, member in reversed(value)]
        elif isinstance(value, list):
            waiting += [((path, n), value[n]) for n in reversed(range(len(value)))]
        elif isinstance(value, str) and _is_location(path, value):
            yield path, value


def _is_location(path: _Path, value: str) -> bool:
    holder, name = path or ((), None)
    if _names_s3(name) or (_names_s3(holder and holder[1]) and _folded(name) == "uri"):
        return True
    return _URI(value) is not None and name not in _TEXTS


def _names_s3(name: Any) -> bool:
    return _folded(name).replace("_", "") in _HOLDERS


def _folded(name: Any) -> str:
    return name.casefold() if isinstance(name, str) else ""


def _shown(path: _Path) -> str:
    """The path as it is written in messages, such as `.content[0].uri`."""
    steps: list[str] = []
    while path:
        path, step = path
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step}")
    return "".join(reversed(steps))

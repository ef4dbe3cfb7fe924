"""Why a job does not get on, as a value: what the Stalled and Reconciling conditions say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from batchinference.model.codec import encode


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that stops a job until a person, or time, changes it.

    Attributes:
        since: when this process first met it.
        has_grace: it may pass by itself, as when a reference appears: Reconciling for a while, then
            Stalled.
        is_untold: it is what every start of a process begins with: of a run that waits in a queue
            this is no news, unless it lasts.
    """

    reason: str
    message: str
    since: datetime
    has_grace: bool = False
    is_untold: bool = False


def not_implemented(spec: Any, paths: Iterable[str]) -> str:
    """What this version cannot act on, and what to do.

    Args:
        spec: the spec as a dataclass.
        paths: of the fields, such as `spec.input.format`. Values that are not single words or
            numbers are not told: they may hold prompts.
    """
    whole = {"spec": encode(spec)}
    told = " and ".join(_with_value(whole, path) for path in paths)
    return (
        f"This version cannot act on {told}. Remove the field or give it another value; where it "
        "cannot change after creation, delete the object and create it anew"
    )


def _with_value(whole: Mapping[str, Any], path: str) -> str:
    held: Any = whole
    for name in path.split("."):
        held = held.get(name) if isinstance(held, Mapping) else None
    return f"`{path}`" if held is None or isinstance(held, Mapping) else f"`{path}: {held}`"

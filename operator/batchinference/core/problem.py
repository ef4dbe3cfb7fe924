"""Why a job does not get on, as a value: what the Stalled and Reconciling conditions say."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that stops a job until a person, or time, changes it.

    Attributes:
        since: when this process first met it.
        is_reference: a reference that may appear by itself: Reconciling for a while, then Stalled.
    """

    reason: str
    message: str
    since: datetime
    is_reference: bool = False

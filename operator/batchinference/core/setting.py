"""What folding an outcome needs besides the outcome."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from batchinference.core.timing import Timing
from batchinference.model.job import JobSpec


@dataclass(frozen=True, slots=True)
class Setting:
    """What folding needs besides the outcome: when it is, the job's policies, the waits."""

    now: datetime
    spec: JobSpec
    timing: Timing
    jitter: float = 0.5

"""How the sandbox's providers behave: durations, limits and variants, changeable while it runs.

Owns the names and defaults. Must not know who reads them.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

import msgspec

Settings = TypeVar("Settings", "OpenAISettings", "BedrockSettings")


class UnknownSetting(ValueError):
    """A setting was named that does not exist, or given a value of a wrong type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAISettings:
    """OpenAI's behaviour. Times in seconds."""

    # how long a batch stays in each state
    validating_s: float = 0.05
    in_progress_s: float = 0.3
    finalizing_s: float = 0.05
    cancelling_s: float = 0.1
    expire_after_s: float = 86_400.0
    # what is done of a batch that is cancelled or expires; None = as far as time went
    partial_ratio: float | None = None
    cancelled_lines: bool = False  # unreached records of a cancelled batch get batch_cancelled
    cancel_race: Literal["cancelled", "completed"] = "cancelled"  # cancel while finalizing
    # consistency
    list_lag_s: float = 0.0  # a new batch stays out of lists for so long
    file_lag_s: float = 0.0  # a new file is not found by batches for so long
    enqueued_lag_s: float = 0.0  # tokens of an ended batch still count for so long
    # limits
    max_requests: int = 50_000
    max_batch_file_bytes: int = 200_000_000
    max_enqueued_tokens: dict[str, int] = field(default_factory=dict)  # by model; "*" = any
    batches_per_hour: int = 2_000_000
    requests_per_s: float | None = None
    retry_after_s: float = 1.0
    # variants seen on compatible servers
    absent_file_ids: Literal["null", "missing", "empty"] = "null"
    empty_files: Literal["never", "error", "both"] = "never"  # 0-byte files of ended batches
    echo_metadata: bool = True
    usage: bool = True
    body_as_string: bool = False
    error_style: Literal["body", "error"] = "body"
    # order and pace
    shuffle: bool = True
    seed: int = 0
    live_latency_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BedrockSettings:
    """Bedrock's behaviour. Times in seconds."""

    submitted_s: float = 0.05
    validating_s: float = 0.05
    scheduled_s: float = 0.05
    in_progress_s: float = 0.3
    stopping_s: float = 0.1
    expire_after_s: float | None = None  # None = the job's timeoutDurationInHours
    partial_ratio: float | None = None
    unreached: Literal["absent", "expired-line"] = "absent"
    stopped_manifest: bool = True
    list_lag_s: float = 0.0
    min_records: int = 100
    max_records: int = 50_000
    max_records_per_file: int = 50_000
    max_file_bytes: int = 1 << 30
    max_job_bytes: int = 5 << 30
    max_active_jobs: int = 20  # per model
    requests_per_s: float | None = None
    retry_after_s: float = 1.0
    page_size: int = 100  # of lists without maxResults
    code_as_string: bool = False
    converse_nulls: bool = False
    shuffle: bool = True
    seed: int = 0


@dataclass(slots=True)
class InForce:
    """The settings in force; shared, so that a change is seen everywhere at once."""

    openai: OpenAISettings = field(default_factory=OpenAISettings)
    bedrock: BedrockSettings = field(default_factory=BedrockSettings)


def change(current: Settings, changes: dict[str, Any]) -> Settings:
    """Return the settings with some of them changed.

    Raises:
        UnknownSetting: a name does not exist or a value has the wrong type; nothing changes.
    """
    known = {one.name for one in fields(current)}
    for name in changes:
        if name not in known:
            raise UnknownSetting(f"{name}: there is no such setting; known: {sorted(known)}")
    try:
        return msgspec.convert({**asdict(current), **changes}, type(current))
    except msgspec.ValidationError as error:
        raise UnknownSetting(str(error)) from error

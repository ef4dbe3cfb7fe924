"""The provider's object, in one vocabulary for every provider, and what a call to it can answer.

Adapters translate into these; everything above them reads nothing else. Owns no policy: whether a
record may be sent again is decided in `core`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from batchinference.model.status import Reason


class BatchState(StrEnum):
    """Where a batch stands. An unknown word of a provider is UNKNOWN: treated as still running."""

    VALIDATING = "Validating"
    IN_PROGRESS = "InProgress"
    FINALIZING = "Finalizing"
    CANCELLING = "Cancelling"
    UNKNOWN = "Unknown"
    COMPLETED = "Completed"
    PARTIAL = "PartiallyCompleted"
    FAILED = "Failed"
    EXPIRED = "Expired"
    CANCELLED = "Cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more."""
        return self in _OVER

    @property
    def may_leave_unbilled(self) -> bool:
        """Whether records absent from completely read files were not billed (protocol 6.1)."""
        return self in {BatchState.PARTIAL, BatchState.EXPIRED, BatchState.CANCELLED}


_OVER = {
    BatchState.COMPLETED,
    BatchState.PARTIAL,
    BatchState.FAILED,
    BatchState.EXPIRED,
    BatchState.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class SubmissionID:
    """What every batch carries, so that the provider can be asked (protocol 1.3)."""

    tag: str
    shard: int
    ordinal: int
    content_hash: str


class BatchLimit(StrEnum):
    """What a batch can have too much of."""

    RECORDS = "Records"
    BYTES = "Bytes"
    TOKENS = "Tokens"


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """Why a batch failed as a whole.

    Attributes:
        code: the provider's machine word, "" where it has none.
        message: the provider's sentence, shortened, free of record contents.
        quota: a limit of the account was hit: put back, not a failed attempt.
        billing: the provider wants to be paid first: likewise, until somebody has paid.
        transient: the same input may pass at another time (an upload not visible yet).
        nothing_processed: it failed in validation, so nothing was billed.
        exceeds: it is larger than the provider takes: the same records may pass in smaller batches.
        most: the limit that it hit, where the provider names it; of a quota the enqueued tokens.
    """

    code: str
    message: str
    quota: bool = False
    billing: bool = False
    transient: bool = False
    nothing_processed: bool = True
    exceeds: BatchLimit | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class BatchView:
    """A batch as last seen.

    Attributes:
        id: the provider's id (OpenAI batch id, Bedrock job ARN).
        submission: which submission it says it is; None for a batch that is not ours, or where
            the provider does not echo metadata.
        raw_state: the provider's own word, for people.
        total, completed, failed: records, as far as the provider counts them; may lag or be wrong.
        files: what to read for results, in the adapter's words (file ids, S3 prefixes).
        lacks_answers: it counts answered records and does not name their file (yet), whatever else
            it names.
    """

    id: str
    state: BatchState
    raw_state: str = ""
    submission: SubmissionID | None = None
    input_ref: str = ""
    created_at: datetime | None = None
    ended_at: datetime | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    files: tuple[str, ...] = ()
    lacks_answers: bool = False
    failure: BatchFailure | None = None

    @property
    def is_void(self) -> bool:
        """Whether it failed with nothing processed, so that nothing of it was billed."""
        failed = self.state is BatchState.FAILED and not self.completed
        return failed and self.failure is not None and self.failure.nothing_processed


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in the provider's order. `cursor` None: nothing needed is left."""

    batches: tuple[BatchView, ...]
    cursor: str | None = None


# ---- what came of a create call: exactly one of four, never an exception


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider has it."""

    batch: BatchView


class RefusalKind(StrEnum):
    """What a certain refusal means for the shard."""

    QUOTA = "Quota"  # put back, later
    THROTTLED = "Throttled"  # put back, soon
    BILLING = "Billing"  # a person must pay; put back, tried again slowly
    CREDENTIALS = "Credentials"  # a person must act; nothing was accepted
    TOO_LARGE = "TooLarge"  # the same records may pass in smaller batches
    INVALID = "Invalid"  # the request is wrong: final for this shard


@dataclass(frozen=True, slots=True)
class Refused:
    """Refused for certain: nothing was accepted.

    Attributes:
        exceeds, most: of one that is too large; see `BatchFailure`.
    """

    kind: RefusalKind
    code: str
    message: str
    retry_after_s: float | None = None
    exceeds: BatchLimit | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    """It may or may not have been accepted."""

    message: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """The create call was certainly not sent: too late, or the output claim is not ours."""

    reason: str
    message: str


TOO_LATE = NotSent(Reason.PROVIDER_UNAVAILABLE, "Too late for this claim's deadline")

SubmitOutcome = Accepted | Refused | OutcomeUnknown | NotSent


class CancelOutcome(StrEnum):
    """What became of a cancel call."""

    ACCEPTED = "Accepted"
    ALREADY_OVER = "AlreadyOver"
    NOT_FOUND = "NotFound"


@dataclass(frozen=True, slots=True)
class Account:
    """What the provider's quotas count against (protocol 1.5), as a real call told it.

    Attributes:
        id: stable over key rotation; readable, e.g. `bedrock/123456789012/us-east-1`.
    """

    id: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """The provider's limits with the overrides of the provider object applied, pinned when staging
    starts. None = no limit known.
    """

    max_records_per_batch: int
    max_bytes_per_batch: int
    max_bytes_per_record: int
    min_records_per_batch: int = 1
    max_active_batches: int | None = None
    max_enqueued_tokens: int | None = None
    max_concurrent_uploads: int = 2


@dataclass(frozen=True, slots=True)
class Traits:
    """What a provider can be asked, and for how long.

    Attributes:
        echoes_submission: listings show which submission a batch is.
        resend_window_s: how long after the claim the same create request may be repeated without
            making a second batch (Bedrock's clientRequestToken); 0 = never.
        keeps_names: what a batch carries can't get lost, since it is its name.
        lists_complete: an exhausted listing shows every batch of the account.
    """

    echoes_submission: bool = True
    resend_window_s: float = 0.0
    lists_complete: bool = True
    keeps_names: bool = False

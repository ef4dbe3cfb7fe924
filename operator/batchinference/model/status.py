"""What a job's status says: conditions, their reasons, the shown states. The first file to read.

Reasons are constants because they are part of the API: users match on them. This module owns the
words and the shape; `core.view` decides which of them hold, `runtime.status_writer` writes them.
It must not know providers' words or Kubernetes clients.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum


class State(StrEnum):
    """The one word shown in `kubectl get`. Derived; no logic reads it back."""

    PENDING = "Pending"
    SUSPENDED = "Suspended"
    STAGING = "Staging"
    QUEUED = "Queued"
    RUNNING = "Running"
    COLLECTING = "Collecting"
    CANCELLING = "Cancelling"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    STALLED = "Stalled"


class ConditionType(StrEnum):
    """The conditions of a job. `Ready` is not among them: kstatus would read a queue as failure."""

    SUBMITTED = "Submitted"
    COMPLETE = "Complete"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason:
    """Machine reasons of conditions and Events, by what they are about."""

    # progress
    PENDING = "Pending"
    STAGING = "Staging"
    QUEUED = "Queued"
    RUNNING = "Running"
    COLLECTING = "Collecting"
    CANCELLING = "Cancelling"
    NOT_SUBMITTED = "NotSubmitted"
    SUBMITTED = "SubmissionAccepted"
    ADOPTED = "AdoptedPreviousRun"
    SHARED_RUN = "SharedRun"
    SUSPENDED = "Suspended"
    NOT_SUSPENDED = "NotSuspended"
    ALREADY_SUBMITTED = "AlreadySubmitted"
    PAUSED = "Paused"
    WILL_BE_RECREATED = "WillBeRecreated"
    # ends
    SUCCEEDED = "Succeeded"
    PARTIAL = "SucceededWithFailures"
    TOLERANCE_EXCEEDED = "ToleranceExceeded"
    BAD_RECORDS = "BadRecords"
    EMPTY_INPUT = "EmptyInput"
    BELOW_MINIMUM = "BelowProviderMinimum"
    TOO_LARGE = "InputTooLarge"
    INPUT_CHANGING = "InputChanging"
    INPUT_UNREADABLE = "InputUnreadable"
    REFUSED = "ProviderRefused"
    BATCH_FAILED = "BatchFailed"
    BATCH_TOO_LARGE = "BatchTooLarge"
    CANCELLED = "Cancelled"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    # a person must act
    INVALID_SPEC = "InvalidSpec"
    NOT_IMPLEMENTED = "NotImplemented"
    UNSUPPORTED = "UnsupportedOperation"
    PROVIDER_NOT_FOUND = "ProviderNotFound"
    PROVIDER_NOT_READY = "ProviderNotReady"
    PROVIDER_STUCK = "ProviderStuck"
    PROVIDER_CHANGED = "ProviderChanged"
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
    CREDENTIALS_GONE = "CredentialsGone"
    CREDENTIALS_REJECTED = "CredentialsRejected"
    ACCESS_DENIED = "AccessDenied"
    BILLING = "BillingRequired"
    LOCATION_NOT_ALLOWED = "LocationNotAllowed"
    STORAGE_MISSING = "StorageMissing"
    INPUT_NOT_FOUND = "InputNotFound"
    BUCKET_NOT_FOUND = "BucketNotFound"
    OUTPUT_CONFLICT = "OutputConflict"
    HELD_ELSEWHERE = "HeldElsewhere"
    OUTPUT_UNAVAILABLE = "OutputUnavailable"
    STAGING_UNAVAILABLE = "StagingUnavailable"
    SPEC_CHANGED = "SpecChanged"
    ACCOUNT_CHANGED = "AccountChanged"
    OUTCOME_UNKNOWN = "OutcomeUnknown"
    BATCH_NOT_FOUND = "BatchNotFound"
    DUPLICATE_SUBMISSION = "DuplicateSubmission"
    DECIDED = "DecidedByAnnotation"
    DECISION_IGNORED = "DecisionIgnored"
    JOURNAL_LOST = "JournalLost"
    JOURNAL_TOO_LARGE = "JournalTooLarge"
    NEWER_SCHEMA = "JournalOfNewerOperator"
    UNREADABLE_JOURNAL = "JournalUnreadable"
    ENDPOINT_UNREACHABLE = "EndpointUnreachable"
    # money
    BUDGET_EXCEEDED = "BudgetExceeded"
    BUDGET_CURRENCY = "BudgetCurrencyDiffers"
    PRICE_UNKNOWN = "PriceUnknown"
    UNBOUNDED_OUTPUT = "UnboundedOutput"
    # passing
    PROVIDER_UNAVAILABLE = "ProviderUnavailable"
    CIRCUIT_OPEN = "CircuitOpen"
    ANSWERING = "Answering"
    QUOTA_WAIT = "QuotaWait"
    LISTING_ACCOUNT = "ListingAccount"
    WORKER_LOST = "WorkerLost"
    DISK_FULL = "DiskFull"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    OBJECT_CHANGING = "ObjectChanging"
    API_SERVER_UNAVAILABLE = "APIServerUnavailable"
    API_SERVER_REFUSED = "APIServerRefused"
    # a defect of ours
    INTERNAL_ERROR = "InternalError"
    RESULTS_INCONSISTENT = "ResultsInconsistent"
    # provider objects
    READY = "Ready"


MESSAGE_LIMIT = 2048
"""Characters of a condition message that are kept; the schema allows more than any of ours."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of the Kubernetes API conventions."""

    type: str
    status: str
    reason: str
    message: str
    observed_generation: int
    last_transition_time: datetime

    @property
    def is_true(self) -> bool:
        """Whether the status is "True"; a condition's presence says nothing."""
        return self.status == "True"


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Records of the run: completed has an answer, failed an error, expired ran out of time."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class ShardCounts:
    """Shards of the run by where they are."""

    total: int = 0
    queued: int = 0
    running: int = 0
    finished: int = 0


@dataclass(frozen=True, slots=True)
class SubmissionView:
    """One submission, for people; the journal has all of them."""

    shard: int
    ordinal: int
    state: str
    batch_id: str = ""


@dataclass(frozen=True, slots=True)
class ConfigMapRef:
    """A ConfigMap of the job's own namespace."""

    name: str


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the results are, once the manifest stands."""

    results_uri: str = ""
    errors_uri: str = ""
    manifest_uri: str = ""
    config_map_ref: ConfigMapRef | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as decimal strings: totals may pass 2^53."""

    input_tokens: str = ""
    output_tokens: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """Money as decimal strings; `estimated` is a bound."""

    currency: str = ""
    estimated: str = ""
    actual: str = ""
    on_demand: str = ""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The whole status of a BatchInferenceJob, a view that can be rebuilt from the journal.

    Attributes:
        installation: whose run holds the output place; "" as long as none does.
    """

    observed_generation: int
    state: State
    conditions: tuple[Condition, ...]
    run_key: str = ""
    start_time: datetime | None = None
    completion_time: datetime | None = None
    progress: str = ""
    request_counts: RequestCounts | None = None
    shards: ShardCounts | None = None
    submissions: tuple[SubmissionView, ...] = ()
    usage: Usage | None = None
    cost: Cost | None = None
    outputs: Outputs | None = None
    installation: str = ""


def settled(new: Condition, old: Condition | None) -> Condition:
    """The new condition, with the old transition time where the status did not change."""
    message = new.message
    if len(message) > MESSAGE_LIMIT:
        message = message[: MESSAGE_LIMIT - 1] + "…"
    kept = old.last_transition_time if old and old.status == new.status else None
    return replace(new, message=message, last_transition_time=kept or new.last_transition_time)

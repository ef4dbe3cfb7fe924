"""A run and its shards: the journal's content, frozen.

One run is one execution of a billable spec. It has a key, outlives Kubernetes objects, and is the
one durable truth. Everything here is written to the journal as it stands, so it holds no prompts,
answers or credentials, and every field added later needs a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from batchinference.model.batch import Limits
from batchinference.model.earlier import Earlier
from batchinference.model.price import Price
from batchinference.model.staging import Cursor, InputSnapshot, Staged

# A journal's content is asked of this module, whatever it is made of.
from batchinference.model.submission import Settlement as Settlement  # noqa: PLC0414
from batchinference.model.submission import Submission as Submission  # noqa: PLC0414
from batchinference.model.submission import SubmissionState as SubmissionState  # noqa: PLC0414

SCHEMA = 1
"""Version of this content. A journal with a higher one is never written."""

KEY_VERSION = 1
"""Version of the canonical form behind run keys."""

ENCODER = 2
"""Version of the bytes that staging makes from an input."""

MAX_SHARDS = 500


class RunPhase(StrEnum):
    """Where a run stands; `core.transitions.RUN` has the arrows."""

    ADMITTING = "Admitting"  # claim the output place, first look at the input
    STAGING = "Staging"
    RUNNING = "Running"  # shards are queued, submitted, followed, collected
    FINISHING = "Finishing"  # everything collected; parts and manifest are written
    CLEANING = "Cleaning"  # the manifest stands, or nothing was ever submitted
    PARKED = "Parked"  # cancelled by deletion; may go on when the object comes back
    ENDED = "Ended"  # a receipt


class ShardState(StrEnum):
    """Where a shard stands; `core.transitions.SHARD` has the arrows."""

    STAGED = "Staged"  # encoded and stored, not asking for a place yet
    QUEUED = "Queued"  # asks the account for a place
    CLAIMED = "Claimed"  # the journal says that a create call may be under way
    UNKNOWN = "Unknown"  # it may or may not have been accepted
    FENCING = "Fencing"  # its input is being deleted so that it can't be accepted late
    SUBMITTED = "Submitted"  # the provider has it
    ENDED = "Ended"  # the batch is over, its answers are not collected
    COLLECTED = "Collected"  # every record of it has an answer, an error, or is known unbilled
    DROPPED = "Dropped"  # never goes to the provider (again); its records are unbilled
    REGROUPED = "Regrouped"  # never goes as it is; its records go on in other shards

    @property
    def is_live(self) -> bool:
        """Whether the provider may hold a batch for it: it takes one of the account's places."""
        return self in _LIVE

    @property
    def is_open(self) -> bool:
        """Whether it is not known if the provider has its newest submission."""
        return self in _OPEN

    @property
    def is_settled(self) -> bool:
        """Whether nothing more happens to it."""
        return self in _SETTLED


_OPEN = {ShardState.CLAIMED, ShardState.UNKNOWN, ShardState.FENCING}
_LIVE = {*_OPEN, ShardState.SUBMITTED}
_SETTLED = {ShardState.COLLECTED, ShardState.DROPPED, ShardState.REGROUPED}


@dataclass(frozen=True, slots=True)
class Collected:
    """What came of a shard, counted from its records and not from the provider's counters.

    Attributes:
        answered: records with a successful answer.
        failed: records with an error that is final (the provider processed them).
        unbilled: records that were certainly not billed and lack an answer.
        lost: records that may have been billed and whose answer is gone (`AnswerLost`).
        input_tokens, output_tokens: as the answers say.
        unbilled_code: the stable error code of the unbilled ones, should they not go again.
        ignored: lines of the result files that were foreign, doubled or illegible.
    """

    answered: int = 0
    failed: int = 0
    unbilled: int = 0
    lost: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unbilled_code: str = ""
    ignored: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """A set of records that goes to the provider as one batch.

    Attributes:
        rows: how many; which ones is in the shard's index in staging, it need not be a range.
        attempt: how often its records went to the provider, this time included; a put-back for
            quota is not an attempt.
        submissions: by ordinal; all but the newest are settled.
        late: batches of this shard that came to light when nobody reckoned with them any more:
            of an ordinal that was given up, or a second one of the same ordinal.
        sources: of a shard of pooled records: where they come from.
        known_late: how many late batches those had when the records were pooled.
        collected: also while the shard goes on with a late batch: what it had before.
        pooled: its unbilled records, or all of a regrouped one, went on into a later shard.
        not_before: a refused shard waits until then.
        put_backs: how often it was put back: refused for the time being, or accepted and void.
        output: the most tokens of all its answers, by its requests; None where one has no bound.
        longest: the estimate of its longest record's tokens; 0 where it was not counted.
        unsent_code: of one that is dropped: the stable error code of its records, where there is a
            reason of its own.
    """

    index: int
    state: ShardState
    rows: int
    first_row: int
    last_row: int
    size: int
    tokens: int
    sha256: str
    attempt: int = 1
    submissions: tuple[Submission, ...] = ()
    late: tuple[Submission, ...] = ()
    sources: tuple[int, ...] = ()
    known_late: int = 0
    collected: Collected | None = None
    pooled: bool = False
    not_before: datetime | None = None
    put_backs: int = 0
    output: int | None = None
    longest: int = 0
    unsent_code: str = ""

    @property
    def last(self) -> Submission | None:
        """The newest submission."""
        return self.submissions[-1] if self.submissions else None

    def with_last(self, **changes: Any) -> Shard:
        """The shard with its newest submission changed."""
        changed = replace(self.submissions[-1], **changes)
        return replace(self, submissions=(*self.submissions[:-1], changed))

    @property
    def made(self) -> tuple[Submission, ...]:
        """All submissions, late batches included."""
        return (*self.submissions, *self.late)

    @property
    def live(self) -> tuple[Submission, ...]:
        """Those whose batch the provider works on, as far as is known."""
        return tuple(s for s in self.made if s.state is SubmissionState.ACCEPTED)

    def batch(self, batch_id: str) -> Submission | None:
        """The submission that has this batch."""
        return next((s for s in self.made if s.batch_id == batch_id), None)

    def with_batch(self, batch_id: str, **changes: Any) -> Shard:
        """The shard with the submission that has this batch changed."""
        return self.with_batches({batch_id: changes})

    def with_batches(self, changes: Mapping[str, Mapping[str, Any]]) -> Shard:
        """The shard with the submissions changed that have these batches."""

        def changed(made: tuple[Submission, ...]) -> tuple[Submission, ...]:
            return tuple(
                replace(s, **changes[s.batch_id]) if s.batch_id in changes else s for s in made
            )

        return replace(self, submissions=changed(self.submissions), late=changed(self.late))

    @property
    def is_doubled(self) -> bool:
        """Whether a batch of it appeared late: others may have answers to the same records."""
        return bool(self.late) or any(s.fenced_at and s.batch_id for s in self.submissions)

    @property
    def missing(self) -> tuple[Submission, ...]:
        """Given up, and no batch of them has appeared so far."""
        appeared = {s.ordinal for s in self.late}
        return tuple(s for s in self.submissions if s.is_given_up and s.ordinal not in appeared)

    @property
    def was_accepted(self) -> bool:
        """Whether any submission was accepted or might have been."""
        return any(s.state not in _NOT_ACCEPTED for s in self.made)


_NOT_ACCEPTED = {SubmissionState.REFUSED}


@dataclass(frozen=True, slots=True)
class Owner:
    """The object that steers the run."""

    namespace: str
    name: str
    uid: str
    generate_name: str = ""


@dataclass(frozen=True, slots=True)
class ProviderPin:
    """The provider as it was when the run was admitted; look-up, follow and cancel use this.

    Attributes:
        settings: the provider's spec as the API server has it; it names Secrets, never holds them.
        secrets_namespace: where its Secrets are read.
        account: see `Account.id`.
    """

    kind: str
    name: str
    namespace: str
    settings: Mapping[str, Any]
    secrets_namespace: str
    account: str


@dataclass(frozen=True, slots=True)
class Place:
    """A place for data: `uri` is s3://bucket/prefix/ or configmap://namespace/name."""

    uri: str
    claimed: bool = False

    @property
    def is_config_map(self) -> bool:
        """Whether it is a place without object storage."""
        return self.uri.startswith("configmap://")


class CancelWhy(StrEnum):
    """Why a run is being cancelled."""

    DELETED = "Deleted"
    ORPHANED = "Orphaned"  # deleted with deletionPolicy Orphan: nothing is cancelled
    DESIRED = "DesiredState"
    DEADLINE = "DeadlineExceeded"


@dataclass(frozen=True, slots=True)
class Cancel:
    """The run is being cancelled."""

    why: CancelWhy
    at: datetime

    @property
    def is_by_deletion(self) -> bool:
        """Whether its object was deleted: then the run may be taken up again (protocol 7.4)."""
        return self.why in {CancelWhy.DELETED, CancelWhy.ORPHANED}


class Ending(StrEnum):
    """How a run ended."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The run's own end, decided before or with its shards."""

    ending: Ending
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Results:
    """What was left in the output place, as the manifest says.

    Attributes:
        currency, cost, on_demand_cost: decimal strings; "" where the model has no price.
        estimated: what it was to cost at most; "" where that was not known.
    """

    results_uri: str = ""
    errors_uri: str = ""
    manifest_uri: str = ""
    config_map: str = ""
    completed: int = 0
    failed: int = 0
    expired: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    currency: str = ""
    cost: str = ""
    on_demand_cost: str = ""
    estimated: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """The journal of one run.

    Attributes:
        spec: the job's spec as last seen, inline input and prompt texts left out.
        limits: as pinned when staging began, and lowered where the provider refused a batch as too
            large.
        ordinal_floor: ordinals of an earlier life of this key; new ones start above it.
        ordinal_found: the same for ordinals that the provider showed when the journal was rebuilt,
            of submissions that may be among the shards'.
        taken_from: the installation of which somebody said that it gives this very run up.
        earlier: None where there is no life to look for, or no more.
        adopted: an object came back and found it.
        submitted: of a receipt, whose shards are gone: something was accepted.
        parked_s: seconds that it was parked, before an object came back.
        left: staging places that the run has left; passes over the input may have begun there.
        price: of its model; fixed from when the results are written, and not in a receipt.
    """

    key: str
    tag: str
    installation: str
    owner: Owner
    spec: Mapping[str, Any]
    provider: ProviderPin
    limits: Limits
    output: Place
    staging: Place
    created_at: datetime
    phase: RunPhase = RunPhase.ADMITTING
    schema: int = SCHEMA
    key_version: int = KEY_VERSION
    encoder: int = ENCODER
    input: InputSnapshot | None = None
    cursor: Cursor | None = None
    staged: Staged | None = None
    passes: int = 0
    shards: tuple[Shard, ...] = ()
    cancel: Cancel | None = None
    verdict: Verdict | None = None
    results: Results | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
    ordinal_floor: int = 0
    ordinal_found: int = 0
    taken_from: str = ""
    earlier: Earlier | None = None
    adopted: bool = False
    submitted: bool = False
    parked_s: int = 0
    left: tuple[str, ...] = ()
    price: Price | None = None

    def with_shard(self, shard: Shard) -> Run:
        """The run with that shard in place of the one of the same index."""
        shards = list(self.shards)
        shards[shard.index] = shard
        return replace(self, shards=tuple(shards))

    @property
    def was_submitted(self) -> bool:
        """Whether any submission was accepted or might have been."""
        return self.submitted or any(s.was_accepted for s in self.shards)

    def was_submitted_besides(self, shard: Shard) -> bool:
        """Whether any other shard, or an earlier ordinal of this one, was accepted."""
        earlier = replace(shard, submissions=(*shard.submissions[:-1], *shard.late))
        return earlier.was_accepted or any(
            s.was_accepted for s in self.shards if s.index != shard.index
        )

    @property
    def may_have_more(self) -> bool:
        """Whether the provider has batches of this run, for all that is known, that the journal
        does not have: then neither is it over nor may anything of it be removed.
        """
        return self.earlier is not None and self.earlier.expected and self.earlier.asking

    def is_same_life(self, other: Run) -> bool:
        """Whether both are of one beginning: a run that ended unsubmitted may start afresh."""
        return self.created_at == other.created_at

    @property
    def is_over(self) -> bool:
        """Whether the run reached its end (cleaning up may be left)."""
        return self.phase in {RunPhase.CLEANING, RunPhase.PARKED, RunPhase.ENDED}

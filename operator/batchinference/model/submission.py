"""One try to hand a shard to the provider: a part of the journal, like all of `model.run`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from batchinference.model.batch import BatchFailure, BatchState


class SubmissionState(StrEnum):
    """What is known of one submission."""

    CLAIMED = "Claimed"
    ACCEPTED = "Accepted"
    REFUSED = "Refused"
    VOID = "Void"  # accepted, then failed with nothing processed: billed nothing
    FENCED = "Fenced"  # given up after fencing; a batch of it that appears later is a late one
    ENDED = "Ended"


class Settlement(StrEnum):
    """What somebody decided about a submission of which nobody could know."""

    RESUBMIT = "Resubmit"  # it was not accepted
    GIVE_UP = "GiveUp"  # its answers are not waited for, and it is never sent again


@dataclass(frozen=True, slots=True)
class Submission:
    """One try to hand a shard to the provider (protocol 4).

    Attributes:
        request: the complete create request; a repeat sends it unchanged.
        input_ref: the uploaded file id or S3 URI, of this ordinal alone.
        submit_by: when the create call must be over.
        attempted: an earlier create call of this ordinal went unanswered, so that a refusal no
            longer proves anything.
        collected: of a late batch: its answers are among the shard's.
        input_deleted: of one that was refused or void: its input is not at the provider any more.
        settled, settled_at: by a person, or by the provider object's policy.
        answered: records that the provider counts as answered, once the batch is over; None where
            it was not noted.
    """

    ordinal: int
    state: SubmissionState
    request: Mapping[str, Any]
    input_ref: str
    claimed_at: datetime
    submit_by: datetime
    attempted: bool = False
    batch_id: str = ""
    accepted_at: datetime | None = None
    ended_at: datetime | None = None
    batch_state: BatchState | None = None
    files: tuple[str, ...] = ()
    failure: BatchFailure | None = None
    fenced_at: datetime | None = None
    cancel_accepted_at: datetime | None = None
    collected: bool = False
    input_deleted: bool = False
    settled: Settlement | None = None
    settled_at: datetime | None = None
    answered: int | None = None

    @property
    def is_given_up(self) -> bool:
        """Whether a batch of it would be a surprise: fenced, or written off unseen."""
        unseen = self.settled is Settlement.GIVE_UP and not self.batch_id
        return self.state is SubmissionState.FENCED or unseen

"""What a run is said to wait for, the first reason that applies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.effects import ASKING
from batchinference.core.notes import Notes
from batchinference.core.waiting import waiting_for
from batchinference.model.batch import BatchFailure
from batchinference.model.run import Cancel, CancelWhy, ShardState
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind
from builders import limits, shard_of, submission_of
from unit.core.given import NOW, failing, in_state, run_with

QUEUED = run_with(in_state(ShardState.QUEUED))
QUOTA = replace(
    submission_of(), failure=BatchFailure("token_limit_exceeded", "Too many.", quota=True)
)
REFUSED = run_with(replace(shard_of(0), state=ShardState.QUEUED, submissions=(QUOTA,)))
DELAY = (Reason.PROVIDER_UNAVAILABLE, "api.example.com can't be reached")
THROTTLED = failing("submit:0", FaultKind.WAITING, Reason.QUOTA_WAIT)
SILENT = failing(ASKING, FaultKind.WAITING, Reason.PROVIDER_UNAVAILABLE)


@pytest.mark.parametrize(
    ("run", "notes", "delay", "reason"),
    [
        (REFUSED, THROTTLED, DELAY, Reason.PROVIDER_UNAVAILABLE),
        (REFUSED, THROTTLED, None, Reason.QUOTA_WAIT),
        (None, THROTTLED, None, Reason.QUOTA_WAIT),
        (REFUSED, Notes(), None, Reason.QUOTA_WAIT),
        (QUEUED, Notes(), None, Reason.QUEUED),
        (QUEUED, SILENT, None, Reason.QUEUED),
        (run_with(in_state(ShardState.SUBMITTED)), Notes(), None, None),
        (replace(QUEUED, cancel=Cancel(CancelWhy.DELETED, NOW)), Notes(), None, None),
        (None, Notes(), None, None),
    ],
)
def test_the_first_reason_that_applies_is_told(run, notes, delay, reason):
    told = waiting_for(run, notes, delay)
    assert (told[0] if told else None) == reason


def test_a_quota_that_failed_a_batch_is_told_in_the_providers_words():
    _, message = waiting_for(REFUSED, Notes(), None)
    assert "for 1 of the shards (token_limit_exceeded: Too many)" in message


def test_the_limits_that_bound_the_queue_are_named():
    bound = replace(QUEUED, limits=limits(max_active_batches=3, max_enqueued_tokens=900))
    _, message = waiting_for(bound, Notes(), None)
    assert "within maxActiveBatches 3 and maxEnqueuedTokens 900" in message

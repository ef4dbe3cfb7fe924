"""The one vocabulary for providers' batches."""

from __future__ import annotations

import pytest

from batchinference.model.batch import BatchFailure, BatchState, Limits, Traits

STATES = [
    (BatchState.VALIDATING, False, False, "it goes on"),
    (BatchState.IN_PROGRESS, False, False, "it goes on"),
    (BatchState.FINALIZING, False, False, "it goes on"),
    (BatchState.CANCELLING, False, False, "it goes on"),
    (BatchState.UNKNOWN, False, False, "an unknown word is treated as still running"),
    (BatchState.COMPLETED, True, False, "what is missing from it is lost, not unbilled"),
    (BatchState.PARTIAL, True, True, "protocol 6.1"),
    (BatchState.FAILED, True, False, "unless it says that nothing was processed"),
    (BatchState.EXPIRED, True, True, "protocol 6.1"),
    (BatchState.CANCELLED, True, True, "protocol 6.1"),
]


@pytest.mark.parametrize(("state", "over", "unbilled", "reason"), STATES)
def test_what_a_batch_state_means(state, over, unbilled, reason) -> None:
    assert state.is_over is over, reason
    assert state.may_leave_unbilled is unbilled, reason


def test_every_state_is_in_the_table() -> None:
    assert {row[0] for row in STATES} == set(BatchState)


def test_defaults_are_the_careful_ones() -> None:
    assert Traits().resend_window_s == 0, "no repeats unless a provider says so"
    failure = BatchFailure("c", "m")
    assert (failure.quota, failure.transient) == (False, False), "nothing goes again by default"
    assert Limits(1, 1, 1).max_active_batches is None, "no limit is known"

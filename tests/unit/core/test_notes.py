"""What one process knows: failures and when to try again, absences, uploads; and backoff."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.backoff import backoff_s
from batchinference.core.notes import Notes
from batchinference.model.work import FaultKind, TaskFault
from unit.core.given import NOW, TIMING, after, failing

BACKOFF = [
    (1, 2.0, "the first failure waits the first time"),
    (2, 4.0, "doubling"),
    (5, 32.0, "doubling"),
    (9, 300.0, "the ceiling"),
    (10_000, 300.0, "the ceiling, without overflow"),
    (0, 2.0, "no failure is like the first"),
]


@pytest.mark.parametrize(("failures", "seconds", "reason"), BACKOFF)
def test_backoff(failures, seconds, reason) -> None:
    assert backoff_s(failures, 2.0, 300.0) == seconds, reason


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_jitter_spreads_by_a_quarter(failures, jitter) -> None:
    middle = backoff_s(failures, 2.0, 300.0, 0.5)
    assert 0.75 * middle <= backoff_s(failures, 2.0, 300.0, jitter) <= 1.25 * middle


WAITS = [
    (FaultKind.RETRY, None, 1, TIMING.retry_first_s, "soon"),
    (FaultKind.RETRY, None, 3, TIMING.retry_first_s * 4, "then later"),
    (FaultKind.WAITING, None, 1, TIMING.retry_first_s, "soon"),
    (FaultKind.STALLED, None, 5, TIMING.reference_retry_s, "people take their time"),
    (FaultKind.PERMANENT, None, 1, TIMING.reference_retry_s, "people take their time"),
    (FaultKind.RETRY, 17.0, 4, 17.0, "the fault says how long"),
    (FaultKind.STALLED, 0.5, 1, 0.5, "the fault says how long"),
]


@pytest.mark.parametrize(("kind", "after_s", "times", "wait", "reason"), WAITS)
def test_when_a_failed_effect_is_tried_again(kind, after_s, times, wait, reason) -> None:
    notes = Notes()
    for number in range(times):
        fault = TaskFault(kind, "Why", "m", after_s)
        notes = notes.with_failure("x", fault, after(number), TIMING, 0.5)
    failure = notes.failures["x"]
    assert failure.retry_at == after(times - 1 + wait), reason
    assert (failure.count, failure.since) == (times, NOW)


def test_something_new_outside_makes_everything_due() -> None:
    notes = failing("a", notes=failing("b")).retry_now()
    assert all(f.retry_at <= NOW for f in notes.failures.values())
    assert {f.count for f in notes.failures.values()} == {1}, "but is not forgotten"


def test_what_waited_for_one_reason_is_due_and_the_rest_is_not() -> None:
    notes = failing("a", reason="CircuitOpen", notes=failing("b"))
    after_it = notes.retry_now("CircuitOpen").failures
    assert after_it["a"].retry_at == NOW
    assert after_it["b"] == notes.failures["b"]


def test_notes_of_one_thing_leave_the_others_alone() -> None:
    notes = failing("a", notes=failing("b")).without_failure("a", "c")
    assert set(notes.failures) == {"b"}
    notes = notes.with_absence((0, 1), NOW, readable=True).with_absence((0, 2), NOW, readable=True)
    assert set(notes.without_looks((0, 1)).looks) == {(0, 2)}
    notes = notes.with_upload((0, 1), "f").with_upload((0, 2), "g")
    assert notes.uploads == {(0, 1): "f", (0, 2): "g"}

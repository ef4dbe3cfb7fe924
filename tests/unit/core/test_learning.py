"""What refusals teach about the quotas of an account."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.learning import Learned, refused, remembered
from batchinference.core.timing import Timing
from unit.core.given import NOW, after

WAITS = Timing(quota_first_s=60.0, quota_most_s=900.0, quota_recover_s=300.0)


@pytest.mark.parametrize("there", [7, 1, 0])
def test_a_refusal_lowers_the_limit_to_what_is_there_at_once(there: int) -> None:
    assert refused(None, there, NOW).limit(NOW, WAITS) == there


@pytest.mark.parametrize(
    ("seconds", "limit", "rises_in"),
    [(0, 4, 300), (299, 4, 1), (300, 5, 300), (1000, 7, 200), (3000, 14, 300)],
)
def test_it_recovers_slowly(seconds: float, limit: int, rises_in: float) -> None:
    known, now = Learned(4, NOW), after(seconds)
    assert known.limit(now, WAITS) == limit
    assert known.rises_at(now, WAITS) == now + timedelta(seconds=rises_in)


def test_where_none_was_there_one_is_tried_ever_later() -> None:
    known, waits = None, []
    for _ in range(6):
        known = refused(known, 0, NOW)
        waits.append((known.rises_at(NOW, WAITS) - NOW).total_seconds())
    assert waits == [60, 120, 240, 480, 900, 900]
    assert known is not None
    assert known.limit(after(899), WAITS) == 0
    assert known.limit(after(900), WAITS) == 1
    assert known.limit(after(1200), WAITS) == 2
    assert refused(known, 3, NOW).in_vain == 0, "it has taken some"


@given(st.integers(0, 50), st.integers(0, 9), st.floats(0, 1e6), st.floats(1, 1e4))
def test_it_rises_when_it_says_and_by_one(
    there: int, in_vain: int, seconds: float, recover_s: float
) -> None:
    timing = replace(WAITS, quota_recover_s=recover_s)
    known, now = Learned(there, NOW, in_vain), after(seconds)
    rises_at = known.rises_at(now, timing)
    assert now < rises_at + timedelta(milliseconds=1)
    later = rises_at + timedelta(milliseconds=1)
    assert known.limit(later, timing) == known.limit(now, timing) + 1


def test_what_is_a_day_old_is_forgotten() -> None:
    learned = {"old": Learned(2, NOW), "young": Learned(9, after(1))}
    assert remembered(learned, after(86400)) == {"young": learned["young"]}

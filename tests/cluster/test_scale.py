"""Many live jobs on the real control plane: what a start costs, in calls and writes."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest

import scale
from stack import Stack

JOBS = 150


@pytest.mark.slow
def test_a_start_with_many_live_jobs_writes_and_creates_nothing_and_polls_by_pages(
    own_control_plane: Any,
) -> None:
    plane = own_control_plane(audit=True)
    with Stack.start(plane, settings={"pollSeconds": 5, "progressSeconds": 30}) as stack:
        cost = scale.measure(stack, JOBS, idle_s=11, say=print)
    assert (cost.writes, cost.creates, cost.gets) == (0, 0, 0)
    assert cost.pages <= ceil(JOBS / scale.PAGE) + 1
    assert cost.following_cpu_s < 15
    assert cost.rss_mib < 250

"""A short crash campaign; `make test-crash` plays the long one."""

from __future__ import annotations

import pytest

import binaries
from control_plane import ControlPlane
from crash.campaign import SANDBOX, Campaign
from stack import Stack

KILLS = 20


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_pay_nothing_twice(
    programs: binaries.Binaries, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        ControlPlane.start(binaries=programs) as plane,
        Stack.start(plane, sandbox_options=SANDBOX) as stack,
    ):
        tally = Campaign(stack, seed=1).play(KILLS)
    with capsys.disabled():
        print("", *tally.lines(), sep="\n")
    assert tally.problems == []
    assert tally.kills.total() >= KILLS
    assert tally.records_in == tally.records_out == tally.billed
    assert tally.expected == tally.accepted

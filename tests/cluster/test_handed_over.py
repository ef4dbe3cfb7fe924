"""Two clusters with one account and one output place: a live run is handed over (protocol 3.3)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

import binaries
from batchinference.model.status import Reason
from cluster.pair import Pair
from control_plane import ControlPlane
from stack import Stack, wait_for
from team import Team


@pytest.fixture
def second(programs: binaries.Binaries, stack: Stack, pair: Pair) -> Iterator[Pair]:
    """The same two jobs in a namespace of the same name of a second cluster."""
    with (
        ControlPlane.start(binaries=programs) as plane,
        Stack.start(plane, beside=stack) as running,
    ):
        running.start_operator()
        plane.kubectl("create", "namespace", pair.team.namespace)
        yield Pair(Team(running, pair.team.namespace))


def test_a_live_run_is_handed_over_and_its_old_holder_keeps_its_hands_off(
    pair: Pair, second: Pair
) -> None:
    pair.run_live()
    creates = pair.creates()
    second.apply()
    for name in second.names:
        stalled = second.team.wait_condition(name, "Stalled")
        assert stalled["reason"] == Reason.HELD_ELSEWHERE
        typed = re.search(
            r"kubectl annotate (\S+) -n \S+ --overwrite (\S+=[^`\s]+)", stalled["message"]
        )
        assert typed is not None, stalled["message"]
        second.team.kubectl("annotate", typed[1], "--overwrite", typed[2])
    for name in second.names:
        wait_for(
            f"{name} adopted",
            lambda name=name: (
                second.team.condition(name, "Submitted").get("reason") == Reason.ADOPTED
            ),
        )
    # The first one would cancel now; but the run is not its own any more.
    pair.team.kubectl("delete", "bij", *pair.names, "--wait=false")
    second.tags = dict(pair.tags)
    second.team.control.release()
    for name in second.names:
        second.team.wait_condition(name, "Complete", 90)
    assert pair.creates() == creates
    for name in pair.names:
        assert set(pair.cancels(name)) == {0}
    second.check_paid_once()

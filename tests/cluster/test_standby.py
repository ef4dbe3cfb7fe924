"""Two replicas on the real control plane: one leads, the other takes over when it dies or goes."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.request import urlopen

import pytest

from stack import OPERATOR_NAMESPACE, RELEASE, Operator, Stack, wait_for
from team import CHAT_MODEL, Team, chat, jsonl

TAKE_OVER_S = 15.0
"""What the documentation promises after a `kill -9`."""


def role(operator: Operator) -> str:
    try:
        with urlopen(f"http://127.0.0.1:{operator.port}/readyz", timeout=2) as answer:
            return str(json.load(answer)["role"])
    except OSError:
        return ""


def metric(operator: Operator, name: str) -> float:
    with urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    found = [line.rsplit(" ", 1)[1] for line in lines if line.split("{")[0].split(" ")[0] == name]
    return sum(map(float, found))


def seconds_until(what: str, look: Any, within_s: float) -> float:
    began = time.monotonic()
    wait_for(what, look, within_s)
    return time.monotonic() - began


def give(team: Team, name: str) -> None:
    uri = team.put(f"{name}.jsonl", jsonl([chat("a", f"{name} says hello")]))
    team.apply(team.job(name, model=CHAT_MODEL, input={"s3": {"uri": uri}}))


@pytest.mark.slow
def test_a_standby_takes_over_from_a_leader_that_dies_and_from_one_that_goes(
    own_control_plane: Any,
) -> None:
    plane = own_control_plane()
    plane.kubectl("create", "namespace", "ml")
    quick = ("--set", "openai.in_progress_s=2")
    with Stack.start(plane, values={"replicaCount": 2}, sandbox_options=quick) as stack:
        team = Team(stack, "ml")
        stack.apply(*stack.providers("ml"))
        first = stack.start_operator("first")
        wait_for("a leader", lambda: role(first) == "leading")
        second = stack.start_operator("second")
        wait_for("a standby", lambda: role(second) == "standby")
        give(team, "before")
        team.wait_state("before", "Running")
        assert metric(first, "batchinference_leading") == 1
        assert metric(second, "batchinference_leading") == 0
        assert metric(second, "batchinference_provider_requests_total") == 0
        assert metric(second, "batchinference_status_writes_total") == 0
        assert metric(second, "batchinference_watch_events_total") > 0, "it is warm"

        give(team, "during")
        first.kill_all()
        took = seconds_until("a take-over", lambda: role(second) == "leading", TAKE_OVER_S)
        give(team, "after")
        for name in ("before", "during", "after"):
            team.wait_state(name, "Succeeded")
            assert set(team.accepted(team.tag(name)).values()) == {1}, name
        print(f"\ntake-over after kill -9: {took:.1f} s")

        # A rolling upgrade: the new replica stands by, the old leader is told to go.
        stack.values = {"replicaCount": 2, "podLabels": {"rolled": "yes"}}
        stack.install_chart()
        third = stack.start_operator("third")
        wait_for("a standby", lambda: role(third) == "standby")
        give(team, "rolled")
        second.stop()
        took = seconds_until("a hand-over", lambda: role(third) == "leading", 5)
        print(f"hand-over after SIGTERM: {took:.1f} s")
        team.wait_state("rolled", "Succeeded")
        assert set(team.accepted(team.tag("rolled")).values()) == {1}
        lease = stack.get("lease", RELEASE, OPERATOR_NAMESPACE)
        assert lease is not None
        assert lease["spec"]["leaseTransitions"] == 2
        third.stop()
        lease = stack.get("lease", RELEASE, OPERATOR_NAMESPACE)
        assert lease is not None
        assert lease["spec"].get("holderIdentity", "") == "", "released"

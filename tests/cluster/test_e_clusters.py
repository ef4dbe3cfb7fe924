"""Namespaces that go, and a cluster whose definitions do not check anything: E9 and E15."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

import binaries
from batchinference.model.status import Reason
from cluster.pair import SHARDS, Pair
from control_plane import ControlPlane
from stack import ROOT, Stack, wait_for
from team import Team

CRDS = ROOT / "crds"


@pytest.fixture(scope="module")
def second_stack(programs: binaries.Binaries, stack: Stack) -> Iterator[Stack]:
    """A cluster with an operator, on the first one's accounts."""
    with (
        ControlPlane.start(binaries=programs) as plane,
        Stack.start(plane, beside=stack) as running,
    ):
        running.start_operator()
        yield running


@pytest.fixture
def second(second_stack: Stack, pair: Pair) -> Iterator[Pair]:
    """The same two jobs in a namespace of the same name of the second cluster."""
    plane, name = second_stack.control_plane, pair.team.namespace
    plane.kubectl("create", "namespace", name)
    second = Pair(Team(second_stack, name))
    yield second
    second.team.control.release()
    second.team.delete_jobs()
    plane.kubectl("delete", "namespace", name, "--wait=false")


def test_e9_without_the_validation_an_edit_of_what_is_paid_for_stalls(second: Pair) -> None:
    second.run_live()
    creates = second.creates()
    with_validation(second, present=False)
    try:
        second.patch({"spec": {"parameters": {"maxOutputTokens": 7}}})
        for name in second.names:
            stalled = second.team.wait_condition(name, "Stalled")
            assert stalled["reason"] == Reason.SPEC_CHANGED
        second.patch({"spec": {"parameters": None}})
        before = second.let_finish()
        second.patch({"spec": {"parameters": {"maxOutputTokens": 7}}})
        for name in second.names:
            wait_for("a look at the edit", lambda name=name: looked(second, name))
            second.check_same(name, before)
    finally:
        with_validation(second, present=True)
    assert second.creates() == creates
    second.check_paid_once()


def looked(pair: Pair, name: str) -> bool:
    found = pair.get(name)
    return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])


def with_validation(pair: Pair, *, present: bool) -> None:
    """Put the definition of jobs in place, with its rules or without any."""
    definition = yaml.safe_load((CRDS / "batchinferencejobs.yaml").read_text())
    if not present:
        definition = without_rules(definition)
    plane = pair.team.stack.control_plane
    plane.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--filename", "-"),
        stdin=yaml.safe_dump(definition),
    )


def without_rules(value: object) -> object:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k != "x-kubernetes-validations"}
        return {k: without_rules(v) for k, v in kept.items()}
    return [without_rules(v) for v in value] if isinstance(value, list) else value


def test_e15_a_namespace_is_deleted_and_made_again_in_the_middle_of_a_run(pair: Pair) -> None:
    pair.run_live()
    team, plane = pair.team, pair.team.stack.control_plane
    plane.kubectl("delete", "secrets", "--all", "--namespace", team.namespace)
    plane.kubectl("delete", "namespace", team.namespace, "--timeout=120s")
    for name in pair.names:
        assert pair.cancels(name) == [1] * SHARDS
    plane.kubectl("create", "namespace", team.namespace)
    pair.apply_providers()
    pair.apply()
    pair.let_finish()
    pair.check_paid_once(submissions=None)


def test_e15_a_namespace_with_finished_jobs_is_deleted_and_made_again(pair: Pair) -> None:
    before = pair.run_to_the_end()
    creates = pair.creates()
    team, plane = pair.team, pair.team.stack.control_plane
    plane.kubectl("delete", "namespace", team.namespace, "--timeout=120s")
    plane.kubectl("create", "namespace", team.namespace)
    pair.apply_providers()
    pair.apply()
    pair.check_found(before)
    assert pair.creates() == creates
    assert json.loads(team.kubectl("get", "bij", "--output", "json"))["items"]
    pair.check_paid_once()

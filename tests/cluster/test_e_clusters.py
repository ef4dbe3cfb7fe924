"""A second cluster with the same Git, and definitions and namespaces that go: E8, E9, E14, E15.

The second cluster has the first one's providers and its object store, but journals of its own.
"""

from __future__ import annotations

import json
import re
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
JOBS = "batchinferencejobs.batchinference.dev"
PROVIDERS = "inferenceproviders"


@pytest.fixture(scope="module")
def second_stack(programs: binaries.Binaries, stack: Stack) -> Iterator[Stack]:
    """A second cluster with an operator, on the first one's accounts and object store."""
    with (
        ControlPlane.start(binaries=programs) as plane,
        Stack.start(plane, beside=stack) as running,
    ):
        running.start_operator()
        yield running


@pytest.fixture
def second(second_stack: Stack, pair: Pair) -> Iterator[Pair]:
    """The pair's jobs, in a namespace of the same name of the second cluster."""
    plane, name = second_stack.control_plane, pair.team.namespace
    plane.kubectl("create", "namespace", name)
    second = Pair(Team(second_stack, name))
    yield second
    second.team.control.release()
    second.team.delete_jobs()
    plane.kubectl("delete", "namespace", name, "--wait=false")


def test_e8_a_second_cluster_finds_a_finished_run_in_its_place(pair: Pair, second: Pair) -> None:
    before = pair.run_to_the_end()
    creates = pair.creates()
    second.uids = dict.fromkeys(second.names, "")
    second.apply()
    second.check_found(before, by_manifest=True)
    assert pair.creates() == creates
    pair.check_paid_once()
    # And what the second does with its objects is no matter of the first.
    second.delete()
    pair.delete()
    pair.apply()
    pair.check_found(before)
    assert pair.creates() == creates


def test_e8_a_second_cluster_waits_while_the_first_one_runs(pair: Pair, second: Pair) -> None:
    pair.run_live()
    creates = pair.creates()
    second.apply()
    for name in second.names:
        stalled = second.team.wait_condition(name, "Stalled")
        assert stalled["reason"] == Reason.HELD_ELSEWHERE
    before = pair.let_finish()
    second.uids = dict.fromkeys(second.names, "")
    second.check_found(before, by_manifest=True)
    assert pair.creates() == creates
    pair.check_paid_once()


def test_e8_a_live_run_is_handed_over_and_its_old_holder_keeps_its_hands_off(
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
    before = second.wait_for_the_end()
    second.delete()
    second.apply()
    second.check_found(before)
    # The first one has nothing to do with it any more, whatever it is given.
    pair.team.kubectl("wait", "bij", *pair.names, "--for=delete", "--timeout=120s")
    pair.apply()
    for name in pair.names:
        stalled = pair.team.wait_condition(name, "Stalled")
        assert (stalled["reason"], "handed over" in stalled["message"]) == ("HeldElsewhere", True)
    assert pair.creates() == creates


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


@pytest.mark.parametrize("phase", ["finished", "live", "live, and no operator runs"])
def test_e14_definitions_are_removed_and_installed_again(second: Pair, phase: str) -> None:
    before = second.run_to_the_end() if phase == "finished" else None
    if before is None:
        second.run_live()
    creates = second.creates()
    stack = second.team.stack
    (operator,) = stack.operators
    if phase == "live, and no operator runs":
        operator.stop()
        # Nothing holds the definitions of providers: they go before that of jobs.
        stack.control_plane.kubectl("delete", "--filename", str(CRDS), "--wait=false")
        wait_for("the definitions of providers gone", lambda: definitions(second) == {JOBS})
        operator.start()
        stack.wait_until_healthy(operator)
        wait_for("all definitions gone", lambda: not definitions(second))
    else:
        stack.control_plane.kubectl("delete", "--filename", str(CRDS), "--timeout=120s")
        assert operator.running
    wait_for("it said", lambda: PROVIDERS in operator.health().get("unserved", ""))
    if before is None:
        for name in second.names:
            assert second.cancels(name) == [1] * SHARDS
    install_again(second)
    if before is not None:
        second.check_found(before)
        assert second.creates() == creates
        second.check_paid_once()
    else:
        second.let_finish()
        second.check_paid_once(submissions=None)
        assert all(n == 1 for name in second.names for n in second.cancels(name)[:SHARDS])
    wait_for("all kinds served", lambda: operator.health() == {"status": "ok"})


def definitions(pair: Pair) -> set[str]:
    """The names of our definitions that are there."""
    path = "apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    found = pair.team.stack.control_plane.read(path)
    assert found is not None
    return {item["metadata"]["name"] for item in found["items"]}


def install_again(pair: Pair) -> None:
    """Install the definitions with the chart, then providers and jobs from their manifests."""
    stack = pair.team.stack
    (operator,) = stack.operators
    stack.install_chart()
    plane = stack.control_plane
    plane.kubectl("wait", "--for=condition=Established", "--timeout=120s", "--filename", str(CRDS))
    pair.apply_providers()
    pair.apply()

    def look() -> bool:
        if not operator.running:  # what the kubelet does
            operator.start()
        return all(pair.team.status(name).get("runKey") for name in pair.names)

    wait_for("the jobs looked at", look)


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


def test_e9_an_edit_of_what_is_paid_for_stalls_without_a_journal(second: Pair) -> None:
    second.run_live()
    creates = second.creates()
    with_validation(second, present=False)
    try:
        second.delete_journals()
        second.patch({"spec": {"parameters": {"maxOutputTokens": 7}}})
        for name in second.names:
            stalled = second.team.wait_condition(name, "Stalled")
            # As it was missed already or not; neither submits anything.
            assert stalled["reason"] in {Reason.SPEC_CHANGED, Reason.JOURNAL_LOST}
        second.patch({"spec": {"parameters": None}})
        before = second.let_finish()
        second.delete_journals()
        second.patch({"spec": {"parameters": {"maxOutputTokens": 7}}})
        for name in second.names:
            wait_for("a look at the edit", lambda name=name: looked(second, name))
            second.check_same(name, before)
    finally:
        with_validation(second, present=True)
    assert second.creates() == creates
    second.check_paid_once()


@pytest.mark.parametrize("phase", ["finished", "live", "live, and no operator runs"])
def test_e14_definitions_come_back_and_the_journals_do_not(second: Pair, phase: str) -> None:
    before = second.run_to_the_end() if phase == "finished" else None
    if before is None:
        second.run_live()
    creates = second.creates()
    stack = second.team.stack
    (operator,) = stack.operators
    if phase == "live, and no operator runs":
        operator.stop()
        second.delete_journals()
        # Neither journals nor providers are left to cancel by: what was submitted goes on.
        stack.control_plane.kubectl("delete", "--filename", str(CRDS), "--wait=false")
        operator.start()
        stack.wait_until_healthy(operator)
        wait_for("all definitions gone", lambda: not definitions(second))
    else:
        stack.control_plane.kubectl("delete", "--filename", str(CRDS), "--timeout=120s")
        second.delete_journals()
    install_again(second)
    if before is not None:
        second.check_found(before, by_manifest=True)
        assert second.creates() == creates
        second.check_paid_once()
    else:
        second.let_finish()
        second.check_paid_once(submissions=None)
        assert max(n for name in second.names for n in second.cancels(name)) <= 1


def test_e15_a_namespace_comes_back_and_its_journals_do_not(pair: Pair) -> None:
    pair.run_live()
    anew(pair)
    before = pair.let_finish()
    pair.check_paid_once(submissions=None)
    creates = pair.creates()
    anew(pair)
    pair.check_found(before, by_manifest=True)
    assert pair.creates() == creates


def anew(pair: Pair) -> None:
    """Delete the namespace, its Secrets first, and the journals; make it again from Git."""
    team, plane = pair.team, pair.team.stack.control_plane
    plane.kubectl("delete", "secrets", "--all", "--namespace", team.namespace)
    plane.kubectl("delete", "namespace", team.namespace, "--timeout=120s")
    pair.delete_journals()
    plane.kubectl("create", "namespace", team.namespace)
    pair.apply_providers()
    pair.apply()

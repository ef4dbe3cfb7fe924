"""What is expected of a job-like operator, around money and deletion."""

from __future__ import annotations

import json
from typing import Any

from cluster.pair import SHARDS, Pair
from stack import wait_for

CREATES = (("openai", "batches.create"), ("bedrock", "CreateModelInvocationJob"))


def restart(pair: Pair) -> None:
    operator = pair.team.stack.operators[0]
    operator.kill_all()
    operator.start()
    pair.team.stack.wait_until_healthy(operator)


def versions(pair: Pair) -> dict[str, str]:
    """The versions of both objects and of their journals."""
    found = {name: pair.get(name)["metadata"]["resourceVersion"] for name in pair.names}
    for name in pair.names:
        journal = pair.team.journal(name)
        assert journal is not None
        found[f"journal of {name}"] = journal["metadata"]["resourceVersion"]
    return found


def polls(pair: Pair) -> int:
    calls = pair.team.control.state()["calls"]
    listed = ("batches.list", "batches.retrieve")
    aws = ("ListModelInvocationJobs", "GetModelInvocationJob")
    openai = [calls.get("openai", {}).get(call, 0) for call in listed]
    bedrock = [calls.get("bedrock", {}).get(call, 0) for call in aws]
    return min(sum(openai), sum(bedrock))


def test_a_restart_in_the_middle_of_a_run_writes_nothing(pair: Pair) -> None:
    pair.run_live()
    creates = pair.creates()
    before = versions(pair)
    restart(pair)
    seen = polls(pair)
    wait_for("the batches asked for", lambda: polls(pair) > seen + 3)
    assert versions(pair) == before
    assert pair.creates() == creates
    pair.let_finish()
    before = versions(pair)
    restart(pair)
    # The operator looks at objects in the order in which it sees them: the newer one comes last.
    pair.team.apply(pair.team.job("later", suspend=True, input={"inline": "{}"}))
    pair.team.wait_condition("later", "Suspended")
    assert versions(pair) == before
    pair.check_paid_once()


def test_a_job_that_is_created_suspended_makes_no_call_and_is_deleted_at_once(pair: Pair) -> None:
    for manifest in pair.manifests:
        manifest["spec"]["suspend"] = True
    before = pair.team.control.state()["calls"]
    pair.apply()
    for name in pair.names:
        pair.team.wait_condition(name, "Suspended")
    pair.delete()
    after = pair.team.control.state()["calls"]
    for provider, call in (*CREATES, ("openai", "files.create")):
        assert after[provider].get(call, 0) == before[provider].get(call, 0)
    assert pair.team.keys(f"s3://team-data/results/{pair.team.namespace}/") == []


def test_orphaning_cancels_nothing_and_the_object_that_comes_back_follows(pair: Pair) -> None:
    pair.run_live()
    pair.patch({"spec": {"deletionPolicy": "Orphan"}})
    pair.delete()
    for name in pair.names:
        assert pair.cancels(name) == [0] * SHARDS
    pair.apply()
    pair.let_finish()
    pair.check_paid_once()


def test_an_orphaned_run_is_collected_without_its_object(pair: Pair) -> None:
    pair.run_live()
    pair.patch({"spec": {"deletionPolicy": "Orphan"}})
    pair.delete()
    pair.team.control.release()
    for name in pair.names:
        place = f"s3://team-data/results/{pair.team.namespace}/{name}/"
        wait_for("the manifest", lambda place=place: f"{place}manifest.json" in keys(pair, place))
        assert pair.cancels(name) == [0] * SHARDS
    pair.check_paid_once()


def keys(pair: Pair, place: str) -> list[str]:
    return pair.team.keys(place)


def test_a_finished_job_is_deleted_while_no_operator_runs_and_its_results_stay(pair: Pair) -> None:
    before = pair.run_to_the_end()
    operator = pair.team.stack.operators[0]
    operator.kill_all()
    pair.delete()
    assert all(pair.team.get(name) is None for name in pair.names)
    pair.check_paid_once()
    operator.start()
    pair.team.stack.wait_until_healthy(operator)
    pair.apply()
    pair.check_found(before)


def test_the_operator_writes_statuses_and_its_finalizer_and_nothing_else(pair: Pair) -> None:
    """What an Argo CD application with default settings would find OutOfSync."""
    pair.run_live()
    allowed: list[dict[str, Any]] = []
    for name in pair.names:
        shown = pair.team.kubectl("get", "bij", name, "--output=json", "--show-managed-fields")
        for entry in json.loads(shown)["metadata"]["managedFields"]:
            if not entry["manager"].startswith("kubectl"):
                allowed.append(entry["fieldsV1"])
                assert set(entry["fieldsV1"]) <= {"f:status", "f:metadata"}
                assert set(entry["fieldsV1"].get("f:metadata", {})) <= {"f:finalizers"}
    assert len(allowed) >= 4
    pair.let_finish()

"""Deletion where what it needs has gone first: the object goes in time, and no answer is lost."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from stack import BUCKET, OPERATOR_NAMESPACE, Stack, wait_for
from team import Team, chat, jsonl

RECORDS = 4
NAME = "leaving"
CANCELS = {"openai": "batches.cancel", "bedrock": "StopModelInvocationJob"}
IN_TIME_S = 25
"""`cancelReleaseSeconds` of the stack is 8; the rest is for a slow machine."""


@pytest.fixture
def own_team(stack: Stack) -> Iterator[Team]:
    """A namespace that the test may take apart."""
    operator = stack.operators[0]
    if not operator.running:
        operator.start()
        stack.wait_until_healthy(operator)
    name = f"leaving-{secrets.token_hex(4)}"
    stack.control_plane.kubectl("create", "namespace", name)
    team = Team(stack, name)
    team.control.settings(bedrock={"min_records": 1})
    small = {"limits": {"minRecordsPerBatch": 1}}
    stack.apply(*stack.providers(name, openai=small, bedrock=small))
    yield team
    team.control.clear_faults()
    team.control.release()
    stack.control_plane.kubectl("delete", "namespace", name, "--wait=false", check=False)


def begin(team: Team, provider: str) -> str:
    """A job whose batch the provider works on; its run's tag."""
    team.control.hold(provider)
    uri = team.put("in.jsonl", jsonl(chat(f"r{n}", f"Say {n}") for n in range(RECORDS)))
    team.apply(team.job(NAME, provider=provider, input={"s3": {"uri": uri}}))
    team.wait_state(NAME, "Running")
    tag = team.tag(NAME)
    assert sum(team.accepted(tag).values()) == 1
    return tag


def journal(team: Team, key: str) -> dict[str, Any]:
    found = team.stack.get("configmap", f"run-{key}", OPERATOR_NAMESPACE)
    assert found is not None
    return found


def wait_gone(team: Team) -> None:
    wait_for("the object gone", lambda: team.get(NAME) is None, IN_TIME_S)


def wait_collected(team: Team, tag: str) -> None:
    """Cancelled at the provider, and every record of it has its line in the results."""
    wait_for("the end of the batch", lambda: ended(team, tag), 40)
    wait_manifest(team, tag)


def wait_manifest(team: Team, tag: str) -> None:
    prefix = f"s3://{BUCKET}/results/{team.namespace}/{NAME}/"
    uri = f"{prefix}manifest.json"
    wait_for("the manifest", lambda: uri in team.keys(prefix), 40)
    assert team.manifest(NAME)["counts"]["total"] == RECORDS
    assert sum(team.accepted(tag).values()) == 1, "nothing was sent again"


def ended(team: Team, tag: str) -> bool:
    states = [str(made.get("status")) for _, made in team.submissions(tag)]
    return bool(states) and all(s in {"cancelled", "Stopped"} for s in states)


@pytest.mark.parametrize("provider", ["openai", "bedrock"])
@pytest.mark.parametrize("first", ["secrets", "provider"])
def test_what_the_job_needs_is_deleted_first(own_team: Team, provider: str, first: str) -> None:
    """The credentials that the operator has in memory, and the pinned settings, serve."""
    team = own_team
    tag = begin(team, provider)
    if first == "secrets":
        team.kubectl("delete", "secret", "--all")
    else:
        team.kubectl("delete", "inferenceprovider", provider)
    team.kubectl("delete", "bij", NAME, "--wait=false")
    wait_gone(team)
    team.control.release(provider)
    wait_collected(team, tag)


@pytest.mark.parametrize("provider", ["openai", "bedrock"])
def test_a_provider_that_is_down_holds_the_object_for_a_while_only(
    own_team: Team, provider: str
) -> None:
    team = own_team
    tag = begin(team, provider)
    team.control.fault(provider, "error", CANCELS[provider], status=503, times=None)
    team.kubectl("delete", "bij", NAME, "--wait=false")
    wait_gone(team)
    assert not ended(team, tag)
    events = json.loads(team.kubectl("get", "events", "--output=json"))["items"]
    assert any("not confirmed cancelled" in event["message"] for event in events)
    team.control.clear_faults()
    team.control.release(provider)
    wait_manifest(team, tag)


def test_an_operator_without_credentials_lets_go_and_goes_on_when_they_are_back(
    own_team: Team,
) -> None:
    team = own_team
    tag = begin(team, "openai")
    key = team.status(NAME)["runKey"]
    operator = team.stack.operators[0]
    operator.stop()
    team.kubectl("delete", "secret", "--all")
    team.kubectl("delete", "bij", NAME, "--wait=false")
    operator.start()
    team.stack.wait_until_healthy(operator)
    wait_gone(team)
    assert not ended(team, tag)
    assert journal(team, key)["metadata"]["labels"]["batchinference.dev/journal"] == "live"
    team.apply(*team.stack.providers(team.namespace))
    team.control.release("openai")
    wait_for(
        "the end of the run",
        lambda: journal(team, key)["metadata"]["labels"]["batchinference.dev/journal"] != "live",
        40,
    )
    assert team.manifest(NAME)["counts"]["total"] == RECORDS


@pytest.mark.parametrize("provider", ["openai", "bedrock"])
def test_a_namespace_that_is_deleted_goes_and_its_run_comes_home(
    own_team: Team, provider: str
) -> None:
    team = own_team
    tag = begin(team, provider)
    team.stack.control_plane.kubectl("delete", "namespace", team.namespace, "--wait=false")
    wait_gone(team)
    wait_for(
        "the namespace gone",
        lambda: team.stack.get("namespace", team.namespace, "") is None,
        60,
    )
    team.control.release(provider)
    wait_collected(team, tag)

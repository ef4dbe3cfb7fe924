"""Bad input: the condition, reason and message that a person can act on; nothing is paid."""

from __future__ import annotations

from typing import Any

import pytest

from stack import wait_for
from team import Team, chat, jsonl

GOOD = [chat(f"r{n}", f"Say {n}") for n in range(3)]


def _job(team: Team, data: bytes, **spec: Any) -> dict[str, Any]:
    return team.job("bad", input={"s3": {"uri": team.put("bad.jsonl", data)}}, **spec)


@pytest.mark.parametrize(
    ("data", "reason", "told"),
    [
        pytest.param(
            jsonl(GOOD) + b'{"custom_id": "x", \n',
            "BadRecords",
            ["line 4", "InvalidJSON"],
            id="cut",
        ),
        pytest.param(jsonl(GOOD) + b"[1, 2]\n", "BadRecords", ["line 4", "NotAnObject"], id="list"),
        pytest.param(
            jsonl([*GOOD, chat("r1", "Again")]), "BadRecords", ["line 4", "DuplicateID"], id="twice"
        ),
        pytest.param(
            jsonl([chat("s", "Say", stream=True), *GOOD]),
            "BadRecords",
            ["line 1", "stream"],
            id="stream",
        ),
        pytest.param(b"", "EmptyInput", ["no records"], id="empty"),
        pytest.param(b"\n\n", "EmptyInput", ["no records"], id="blank"),
    ],
)
def test_a_bad_file_fails_before_anything_is_paid(
    team: Team, data: bytes, reason: str, told: list[str]
) -> None:
    team.apply(_job(team, data))
    failed = team.wait_condition("bad", "Failed")
    assert failed["reason"] == reason
    for word in told:
        assert word in failed["message"]
    assert not team.accepted(team.tag("bad"))
    prefix = f"s3://team-data/results/{team.namespace}/bad/"
    wait_for("the claim on the output place to be removed", lambda: not team.keys(prefix))


def test_a_mended_file_runs_when_the_object_is_created_again(team: Team) -> None:
    team.apply(_job(team, b"not JSON\n"))
    team.wait_condition("bad", "Failed")
    team.kubectl("delete", "bij", "bad", "--timeout=30s")
    team.apply(_job(team, jsonl(GOOD)))
    team.wait_condition("bad", "Complete")


def test_bad_records_within_the_tolerance_are_reported_and_the_others_run(team: Team) -> None:
    team.apply(_job(team, jsonl(GOOD) + b"nonsense\n", successPolicy={"maxFailedRecords": 1}))
    complete = team.wait_condition("bad", "Complete")
    assert complete["reason"] == "SucceededWithFailures"
    manifest = team.manifest("bad")
    assert (manifest["counts"]["completed"], manifest["counts"]["failed"]) == (3, 1)
    errors = team.read(manifest["errors"][0]["uri"])
    assert b"InvalidJSON" in errors
    assert b"line 4" in errors or b'"line":4' in errors


def test_a_missing_bucket_stalls_and_says_which(team: Team) -> None:
    wider = {"storage": _storage(team, "s3://no-such-bucket/")}
    team.apply(*team.stack.providers(team.namespace, openai=wider))
    team.apply(team.job("bad", input={"s3": {"uri": "s3://no-such-bucket/x.jsonl"}}))
    stalled = team.wait_condition("bad", "Stalled")
    assert stalled["reason"] == "BucketNotFound"
    assert "no-such-bucket" in stalled["message"]


def _storage(team: Team, prefix: str) -> dict[str, Any]:
    objects = team.stack.providers(team.namespace)
    spec = next(o["spec"] for o in objects if o["metadata"]["name"] == "openai" and "spec" in o)
    spec["storage"]["s3"]["allowedPrefixes"].append(prefix)
    storage: dict[str, Any] = spec["storage"]
    return storage


def test_a_missing_object_stalls_and_heals_when_it_appears(team: Team) -> None:
    uri = f"s3://team-data/inputs/{team.namespace}/late.jsonl"
    team.apply(team.job("late", input={"s3": {"uri": uri}}))
    stalled = team.wait_condition("late", "Stalled")
    assert stalled["reason"] == "InputNotFound"
    assert uri in stalled["message"]
    team.put("late.jsonl", jsonl(GOOD))
    team.wait_condition("late", "Complete")


def test_an_input_outside_of_the_allowed_prefixes_is_refused(team: Team) -> None:
    team.apply(team.job("bad", input={"s3": {"uri": "s3://team-data/elsewhere/x.jsonl"}}))
    stalled = team.wait_condition("bad", "Stalled")
    assert stalled["reason"] == "LocationNotAllowed"
    assert "spec.input.s3.uri" in stalled["message"]


def _key(value: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "openai"},
        "stringData": {"api-key": value},
    }


def _named(team: Team, secret: dict[str, Any]) -> dict[str, Any]:
    return {**secret, "metadata": {"name": "openai", "namespace": team.namespace}}


def test_a_wrong_key_stalls_and_heals_when_it_is_mended(team: Team) -> None:
    team.apply(_named(team, _key("sk-wrong")))
    team.kubectl("delete", "inferenceprovider", "openai")
    team.apply(*(o for o in team.stack.providers(team.namespace) if o["kind"] != "Secret"))
    team.apply(_job(team, jsonl(GOOD)))
    stalled = team.wait_condition("bad", "Stalled")
    assert stalled["reason"] == "CredentialsRejected"
    assert "sk-wrong" not in stalled["message"]
    provider = team.stack.get("inferenceprovider", "openai", team.namespace)
    assert provider is not None
    ready = provider["status"]["conditions"][0]
    assert (ready["type"], ready["status"], ready["reason"]) == (
        "Ready",
        "False",
        "CredentialsRejected",
    )
    team.apply(_named(team, _key("sandbox-key")))
    team.wait_condition("bad", "Complete")


def test_a_missing_secret_stalls_and_heals_when_it_appears(team: Team) -> None:
    team.kubectl("delete", "secret", "openai")
    team.kubectl("delete", "inferenceprovider", "openai")
    team.apply(*(o for o in team.stack.providers(team.namespace) if o["kind"] != "Secret"))
    team.apply(_job(team, jsonl(GOOD)))
    stalled = team.wait_condition("bad", "Stalled")
    assert stalled["reason"] == "SecretNotFound"
    assert f"{team.namespace}/openai" in stalled["message"]
    team.apply(_named(team, _key("sandbox-key")))
    team.wait_condition("bad", "Complete")


def test_a_missing_provider_is_pending_then_stalls_and_heals(team: Team) -> None:
    team.kubectl("delete", "inferenceprovider", "openai")
    team.apply(_job(team, jsonl(GOOD)))
    team.wait_condition("bad", "Reconciling")
    assert team.status("bad")["state"] == "Pending"
    stalled = team.wait_condition("bad", "Stalled")
    assert stalled["reason"] == "ProviderNotFound"
    assert team.condition("bad", "Reconciling")["status"] == "False"
    team.apply(*team.stack.providers(team.namespace))
    team.wait_condition("bad", "Complete")


def test_an_output_place_in_use_is_not_touched(team: Team) -> None:
    team.apply(_job(team, jsonl(GOOD)))
    team.wait_condition("bad", "Complete")
    before = team.read(f"s3://team-data/results/{team.namespace}/bad/manifest.json")
    other = team.job("other", input={"s3": {"uri": team.put("o.jsonl", jsonl(GOOD))}})
    other["spec"]["output"]["s3"]["uri"] = f"s3://team-data/results/{team.namespace}/bad/"
    team.apply(other)
    stalled = team.wait_condition("other", "Stalled")
    assert stalled["reason"] == "OutputConflict"
    assert "/bad" in stalled["message"]
    assert team.read(f"s3://team-data/results/{team.namespace}/bad/manifest.json") == before
    assert not team.accepted(team.tag("other"))


def test_a_config_map_that_is_not_ours_is_never_overwritten(team: Team) -> None:
    team.kubectl("create", "configmap", "mine", "--from-literal=a=b")
    team.apply(
        team.job(
            "bad",
            input={"inline": jsonl(GOOD).decode()},
            output={"configMap": {"name": "mine"}},
        )
    )
    stalled = team.wait_condition("bad", "Stalled")
    assert stalled["reason"] == "OutputConflict"
    found = team.stack.get("configmap", "mine", team.namespace)
    assert found is not None
    assert found["data"] == {"a": "b"}


def test_provisioned_throughput_is_refused_with_the_alternative(team: Team) -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abcdefghijkl"
    uri = team.put("p.jsonl", jsonl(chat(f"r{n}", "Say") for n in range(120)))
    team.apply(team.job("bad", provider="bedrock", input={"s3": {"uri": uri}}, model=arn))
    failed = team.wait_condition("bad", "Failed")
    assert failed["reason"] == "ProviderRefused"
    assert "provisioned" in failed["message"]
    assert "inference profile" in failed["message"]
    assert not team.accepted(team.tag("bad"))

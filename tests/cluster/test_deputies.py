"""Tenants against the operator on a real API server, where roles decide what they may touch."""

from __future__ import annotations

import json
import secrets
from typing import Any

import pytest

from batchinference.core.begin import key_of
from batchinference.model.job import parse_job
from stack import BUCKET, OPERATOR_NAMESPACE
from team import Team, chat, jsonl

TENANT = "mallory"

INLINE = {"inline": jsonl(chat(f"id-{n}", f"Say number {n}") for n in range(3)).decode()}


@pytest.fixture
def tenant(team: Team) -> str:
    """A person with Kubernetes' own `edit` in the team's namespace, and nothing elsewhere."""
    binding = ("create", "rolebinding", "tenant", "--clusterrole=edit", f"--user={TENANT}")
    team.kubectl(*binding)
    return TENANT


@pytest.mark.parametrize(
    ("verb", "what", "namespace", "fine", "reason"),
    [
        ("create", "configmaps", "", True, "else the others would say nothing"),
        ("create", "configmaps", OPERATOR_NAMESPACE, False, "a forged journal"),
        ("update", "configmaps", OPERATOR_NAMESPACE, False, "a changed journal"),
        ("get", "configmaps", OPERATOR_NAMESPACE, False, "others' journals"),
        ("get", "secrets", OPERATOR_NAMESPACE, False, "the cluster providers' credentials"),
        ("create", "inferenceproviders.batchinference.dev", "", False, "an endpoint of their own"),
        ("create", "clusterinferenceproviders.batchinference.dev", "", False, "for everybody"),
        ("patch", "batchinferencejobs.batchinference.dev/status", "", False, "a forged status"),
        ("patch", "inferenceproviders.batchinference.dev/status", "", False, "a forged readiness"),
    ],
)
def test_what_a_tenant_may_touch(
    team: Team, tenant: str, verb: str, what: str, namespace: str, fine: bool, reason: str
) -> None:
    resource, _, subresource = what.partition("/")
    more = [f"--subresource={subresource}"] if subresource else []
    place = ("--namespace", namespace or team.namespace)
    answer = team.stack.control_plane.kubectl(
        *("auth", "can-i", verb, resource, *more, *place, f"--as={tenant}"), check=False
    )
    assert answer.stdout.split()[:1] == ["yes" if fine else "no"], reason


def test_a_journal_in_a_tenants_namespace_is_none(team: Team) -> None:
    team.apply(team.job("honest", input=INLINE))
    team.wait_condition("honest", "Complete")
    real = team.journal("honest")
    assert real is not None
    aimed = team.job("aimed", input=INLINE)
    key = key_of(parse_job(aimed))
    forged: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"run-{key}",
            "namespace": team.namespace,
            "labels": real["metadata"].get("labels", {}),
            "annotations": real["metadata"].get("annotations", {}),
        },
        **{kind: real[kind] for kind in ("data", "binaryData") if kind in real},
    }
    team.apply(forged, aimed)
    team.wait_condition("aimed", "Complete")
    assert team.status("aimed")["runKey"] == key
    assert team.manifest("aimed")["counts"]["completed"] == 3
    assert set(team.accepted(team.tag("aimed")).values()) == {1}, "it ran, and once"
    left = team.stack.get("configmap", f"run-{key}", team.namespace)
    assert left is not None
    assert left.get("data") == forged.get("data")


def test_results_are_not_written_over_a_foreign_config_map(team: Team) -> None:
    mine = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "settings", "namespace": team.namespace},
        "data": {"results.jsonl": "of somebody else"},
    }
    job = team.job("grabby", input=INLINE, output={"configMap": {"name": "settings"}})
    team.apply(mine, job)
    stalled = team.wait_condition("grabby", "Stalled")
    assert stalled["reason"] == "OutputConflict"
    left = team.stack.get("configmap", "settings", team.namespace)
    assert left is not None
    assert left["data"] == mine["data"]
    assert team.accepted(team.tag("grabby")) == {}


def test_results_are_not_written_over_foreign_objects(team: Team) -> None:
    prefix = f"results/{team.namespace}/grabby/"
    foreign = {f"{prefix}results/part-00000.jsonl": b"of somebody else"}
    for key, data in foreign.items():
        team.s3.put_object(Bucket=BUCKET, Key=key, Body=data)
    team.apply(team.job("grabby", input=INLINE))
    stalled = team.wait_condition("grabby", "Stalled")
    assert stalled["reason"] == "OutputConflict"
    assert {uri: team.read(f"s3://{BUCKET}/{uri}") for uri in foreign} == foreign
    assert team.keys(f"s3://{BUCKET}/{prefix}") == [f"s3://{BUCKET}/{uri}" for uri in foreign]
    assert team.accepted(team.tag("grabby")) == {}


def test_a_secret_of_another_namespace_is_not_read(team: Team) -> None:
    name = f"victim-{secrets.token_hex(4)}"
    plane = team.stack.control_plane
    plane.kubectl("create", "namespace", name)
    plane.kubectl("create", "secret", "generic", "theirs", "--from-literal=api-key=k", "-n", name)
    provider = next(
        o
        for o in team.stack.providers(team.namespace)
        if o["kind"] == "InferenceProvider" and o["metadata"]["name"] == "openai"
    )
    provider["metadata"]["name"] = "theft"
    provider["spec"]["openAI"]["apiKeySecretRef"] = {"name": "theirs", "key": "api-key"}
    team.apply(provider)
    wait = ("wait", "inferenceprovider/theft", "--for=condition=Ready=False", "--timeout=60s")
    team.kubectl(*wait)
    found = json.loads(team.kubectl("get", "inferenceprovider", "theft", "--output=json"))
    ready = next(c for c in found["status"]["conditions"] if c["type"] == "Ready")
    assert ready["reason"] == "SecretNotFound"
    provider["spec"]["openAI"]["apiKeySecretRef"]["name"] = f"../{name}/secrets/theirs"
    plane.kubectl("delete", "inferenceprovider", "theft", "-n", team.namespace)
    refused = plane.kubectl("apply", "-f", "-", stdin=json.dumps(provider), check=False)
    assert refused.returncode != 0
    assert "apiKeySecretRef" in refused.stderr
    plane.kubectl("delete", "namespace", name, "--wait=false")

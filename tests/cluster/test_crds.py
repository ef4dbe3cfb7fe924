"""The CRDs on a real API server: what it takes, what it refuses, and what users see.

A control plane of its own for each version: other tests install the CRDs with Helm, which does not
take over what it finds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from binaries import Binaries
from cluster.crd_cases import JOB, OPENAI, Case, merged
from cluster.crd_edit_cases import ALLOWED, FORBIDDEN
from cluster.crd_job_cases import JOBS
from cluster.crd_provider_cases import CLUSTER_ONLY, NAMESPACED_ONLY, PROVIDERS
from cluster.crd_server import API_VERSION, NAMESPACE, Server, job
from contract.crds import FILES, KINDS, ROOT, crd, nodes
from control_plane import CommandFailed, ControlPlane


@pytest.fixture(scope="module", params=[None, "1.34"], ids=["newest", "oldest"])
def server(programs: Binaries, request: pytest.FixtureRequest) -> Iterator[Server]:
    with ControlPlane.start(request.param, binaries=programs) as plane:
        plane.kubectl("create", "namespace", NAMESPACE)
        for file in FILES.values():
            plane.kubectl("apply", "-f", str(ROOT / "crds" / file))
        plane.kubectl("wait", "crd", "--all", "--for=condition=Established", "--timeout=60s")
        running = Server(plane)
        yield running
        running.close()


# ---------------------------------------------------------------- the CRDs themselves


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_takes_the_crd_without_a_complaint(server: Server, kind: str) -> None:
    name = crd(kind)["metadata"]["name"]
    found = json.loads(server.plane.kubectl("get", "crd", name, "-o", "json").stdout)
    conditions = {c["type"]: c["status"] for c in found["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_crd_can_be_applied_again_without_a_change(server: Server, kind: str) -> None:
    said = server.plane.kubectl("apply", "-f", str(ROOT / "crds" / FILES[kind])).stdout
    assert said.strip().endswith("unchanged"), "nothing is normalised away, so Argo CD sees no diff"


# ---------------------------------------------------------------- what is taken, what is refused


def judged(server: Server, kind: str, base: dict[str, Any], case: Case) -> None:
    manifest = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": merged({"name": "case"}, case.metadata or {}),
        "spec": merged(case.base or base, case.change),
    }
    code, answer = server.send("POST", kind, body=manifest)
    if case.says is None:
        assert code == 201, answer["message"]
    else:
        assert code in {400, 422}, "it was taken"
        assert case.says in answer["message"]


@pytest.mark.parametrize("case", JOBS, ids=lambda case: case.name)
def test_a_job_with(server: Server, case: Case) -> None:
    judged(server, "BatchInferenceJob", JOB, case)


@pytest.mark.parametrize("case", PROVIDERS + NAMESPACED_ONLY, ids=lambda case: case.name)
def test_a_provider_with(server: Server, case: Case) -> None:
    judged(server, "InferenceProvider", OPENAI, case)


@pytest.mark.parametrize("case", PROVIDERS + CLUSTER_ONLY, ids=lambda case: case.name)
def test_a_cluster_provider_with(server: Server, case: Case) -> None:
    judged(server, "ClusterInferenceProvider", OPENAI, case)


def test_every_rule_refuses_at_least_one_case() -> None:
    cases = [*JOBS, *PROVIDERS, *NAMESPACED_ONLY, *CLUSTER_ONLY]
    untried = [
        f"{kind} {node.path}: {rule['message']}"
        for kind in KINDS
        for node in nodes(kind)
        for rule in node.schema.get("x-kubernetes-validations", [])
        if "oldSelf" not in rule["rule"]
        and not any(case.says and case.says in rule["message"] for case in cases)
    ]
    assert untried == []


# ---------------------------------------------------------------- what may change


@pytest.mark.parametrize(
    ("base", "patch", "field"), [row[1:] for row in FORBIDDEN], ids=[row[0] for row in FORBIDDEN]
)
def test_no_way_to_change_to(
    server: Server, base: dict[str, Any], patch: dict[str, Any], field: str
) -> None:
    name = server.create(base)
    code, answer = server.send("PATCH", "BatchInferenceJob", name, {"spec": patch})
    assert code == 422, "it was taken"
    causes = answer["details"]["causes"]
    assert {"FieldValueForbidden"} == {cause["reason"] for cause in causes}
    assert [f"spec.{field}"] == [cause["field"] for cause in causes]
    if field != "managedBy":
        assert "`runID`" in answer["message"], "says how to run again"


@pytest.mark.parametrize(
    ("base", "patch"), [row[1:] for row in ALLOWED], ids=[row[0] for row in ALLOWED]
)
def test_a_change_is_taken(server: Server, base: dict[str, Any], patch: dict[str, Any]) -> None:
    name = server.create(base)
    code, answer = server.send("PATCH", "BatchInferenceJob", name, {"spec": patch})
    assert code == 200, answer["message"]


def test_every_immutable_field_is_tried() -> None:
    rules = crd("BatchInferenceJob")["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    rules = rules["properties"]["spec"]["x-kubernetes-validations"]
    immutable = {rule["fieldPath"].strip(".") for rule in rules if "oldSelf" in rule["rule"]}
    assert {row[3] for row in FORBIDDEN} == immutable


def test_a_provider_may_change_and_even_become_another(server: Server) -> None:
    manifest = job("changing", OPENAI) | {"kind": "InferenceProvider"}
    assert server.send("POST", "InferenceProvider", body=manifest, dry_run=False)[0] == 201
    patch = {"spec": {"openAI": None, "langChain": {"modelProvider": "openai"}}}
    assert server.send("PATCH", "InferenceProvider", "changing", patch)[0] == 200


def test_the_stored_object_shows_what_will_happen(server: Server) -> None:
    found = server.get(server.create(JOB))
    assert found["spec"] == merged(
        JOB,
        {
            "providerRef": {"kind": "InferenceProvider"},
            "output": {"format": "JSONL"},
            "outputPolicy": "Fail",
            "desiredState": "Active",
            "suspend": False,
            "retryPolicy": {"maxAttempts": 3},
            "priority": 0,
            "deletionPolicy": "Cancel",
        },
    )
    assert found["status"] == {"observedGeneration": -1}, "kstatus: nobody has looked at it"


# ---------------------------------------------------------------- status


STATUS = {
    "observedGeneration": 1,
    "state": "Running",
    "progress": "3/8",
    "runKey": "k1",
    "startTime": "2026-01-01T00:00:00Z",
    "requestCounts": {"total": 8, "completed": 2, "failed": 1},
    "submissions": [
        {"shard": 1, "ordinal": 1, "batchID": "batch_new", "state": "Accepted"},
        {"shard": 0, "ordinal": 1, "batchID": "batch_old", "state": "Ended"},
    ],
    "conditions": [
        {
            "type": "Stalled",
            "status": "False",
            "reason": "QuotaWait",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 1,
        }
    ],
}


def test_spec_and_status_have_writers_of_their_own(server: Server) -> None:
    name = server.create(JOB)
    whole = {"spec": {"priority": 1}, "status": STATUS}
    code, found = server.send("PATCH", "BatchInferenceJob", name, whole, dry_run=False)
    assert (code, found["status"]) == (200, {"observedGeneration": -1})
    assert found["metadata"]["generation"] == 2
    whole = {"spec": {"priority": 2}, "status": STATUS}
    code, found = server.send("PATCH", "BatchInferenceJob", f"{name}/status", whole, dry_run=False)
    assert (code, found["status"]["state"], found["spec"]["priority"]) == (200, "Running", 1)
    assert found["metadata"]["generation"] == 2, "a status is no change of what is wanted"


def test_a_user_who_may_edit_jobs_may_not_write_their_status(server: Server) -> None:
    kubectl, jobs = server.plane.kubectl, "batchinferencejobs.batchinference.dev"
    kubectl("create", "role", "editor", "-n", NAMESPACE, "--verb=get,patch", f"--resource={jobs}")
    kubectl("create", "rolebinding", "editor", "-n", NAMESPACE, "--role=editor", "--user=jane")
    name = server.create(JOB)
    patch = {"spec": {"suspend": True}}
    assert server.send("PATCH", "BatchInferenceJob", name, patch, user="jane")[0] == 200
    patch = {"status": {"state": "Succeeded"}}
    code, _ = server.send("PATCH", "BatchInferenceJob", f"{name}/status", patch, user="jane")
    assert code == 403


def test_the_status_of_a_newer_operator_survives(server: Server) -> None:
    name = server.create(JOB)
    newer = {
        "state": "Hibernating",
        "forecast": {"cost": "1"},
        "cost": {"actual": "1", "tax": "0.2"},
    }
    code, found = server.send(
        "PATCH", "BatchInferenceJob", f"{name}/status", {"status": newer}, dry_run=False
    )
    assert code == 200
    assert found["status"] == {"observedGeneration": -1} | newer


def test_one_submission_stands_in_the_status_once(server: Server) -> None:
    name = server.create(JOB)
    twice = {"status": {"submissions": [{"shard": 0, "ordinal": 1}] * 2}}
    code, answer = server.send("PATCH", "BatchInferenceJob", f"{name}/status", twice)
    assert (code, "Duplicate value" in answer["message"]) == (422, True)


# ---------------------------------------------------------------- kubectl


def test_every_example_is_taken(server: Server) -> None:
    files = sorted((ROOT / "examples").rglob("*.yaml"))
    said = server.plane.kubectl(
        "apply", "-n", NAMESPACE, "--dry-run=server", "--validate=strict",
        *(argument for file in files for argument in ("-f", str(file))),
    ).stdout.splitlines()  # fmt: skip
    documents = [one for file in files for one in yaml.safe_load_all(file.read_text())]
    assert len(said) == len(documents)


@pytest.mark.parametrize("kind", KINDS)
def test_kubectl_explains_every_field(server: Server, kind: str) -> None:
    plural = crd(kind)["spec"]["names"]["plural"]
    tree = server.plane.kubectl("explain", plural, "--recursive").stdout
    for node in nodes(kind):
        name = node.path.rstrip("[]{}").rsplit(".", 1)[-1]
        assert f"{name}\t" in tree
    for path in (
        "spec",
        *([f"spec.{name}" for name in ("input.s3.uri",)] if "Job" in kind else []),
    ):
        page = " ".join(server.plane.kubectl("explain", f"{plural}.{path}").stdout.split())
        [node] = [node for node in nodes(kind) if node.path == path]
        assert node.schema["description"] in page


def test_columns_show_state_and_progress_and_wide_ones_the_batch(server: Server) -> None:
    name = server.create(JOB)
    server.send("PATCH", "BatchInferenceJob", f"{name}/status", {"status": STATUS}, dry_run=False)
    header, row = server.plane.kubectl("get", "bij", name, "-n", NAMESPACE).stdout.splitlines()
    assert header.split() == ["NAME", "STATE", "PROVIDER", "MODEL", "PROGRESS", "AGE"]
    assert row.split()[:5] == [name, "Running", "openai", "gpt-4.1-mini", "3/8"]
    header, row = server.plane.kubectl(
        "get", "bij", name, "-n", NAMESPACE, "-o", "wide"
    ).stdout.splitlines()
    columns = ["EXTERNAL-ID", "STARTED", "COMPLETED", "FAILED-REQS", "REASON", "AGE"]
    assert header.split()[5:] == columns
    assert "batch_new" in row
    assert row[header.index("FAILED-REQS") :].split()[0] == "1"
    assert row[header.index("REASON") :].split()[0] == "QuotaWait"


def test_providers_show_whether_they_are_ready(server: Server) -> None:
    manifest = {"apiVersion": API_VERSION, "kind": "ClusterInferenceProvider"}
    manifest |= {"metadata": {"name": "shared"}, "spec": OPENAI}
    server.send("POST", "ClusterInferenceProvider", body=manifest, dry_run=False)
    ready = STATUS["conditions"][0] | {"type": "Ready", "status": "True", "reason": "Ready"}
    status = {"conditions": [ready], "activeBatches": 3, "queuedShards": 12, "account": "a"}
    server.send(
        "PATCH", "ClusterInferenceProvider", "shared/status", {"status": status}, dry_run=False
    )
    header, row = server.plane.kubectl("get", "cbip").stdout.splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "ACTIVE", "QUEUED", "AGE"]
    assert row.split()[:5] == ["shared", "True", "Ready", "3", "12"]


def test_field_selectors_find_jobs_by_state_and_model(server: Server) -> None:
    wanted, other = server.create(JOB | {"model": "selected"}), server.create(JOB)
    patch = {"status": {"state": "Failed"}}
    server.send("PATCH", "BatchInferenceJob", f"{wanted}/status", patch, dry_run=False)

    def names(selector: str) -> list[str]:
        return server.plane.kubectl(
            "get", "bij", "-n", NAMESPACE, "-o", "name", "--field-selector", selector
        ).stdout.split()

    assert names("status.state=Failed") == [f"batchinferencejob.batchinference.dev/{wanted}"]
    assert names("spec.model=selected,spec.suspend=false") == names("status.state=Failed")
    assert not any(other in name for name in names("spec.model=selected"))


def test_the_category_lists_all_kinds(server: Server) -> None:
    server.create(JOB)
    said = server.plane.kubectl("get", "batchinference", "-n", NAMESPACE, "-o", "name").stdout
    assert "batchinferencejob.batchinference.dev/" in said


def test_an_unknown_field_is_refused_by_kubectl_and_pruned_without_its_check(
    server: Server,
) -> None:
    manifest = json.dumps(job("unknown", JOB | {"suspended": True}))
    with pytest.raises(CommandFailed, match=r'unknown field "spec.suspended"'):
        server.plane.kubectl("apply", "-f", "-", stdin=manifest)
    server.plane.kubectl("apply", "--validate=ignore", "-f", "-", stdin=manifest)
    assert "suspended" not in server.get("unknown")["spec"]


def test_applying_the_same_manifest_again_changes_nothing(server: Server) -> None:
    manifest = (ROOT / "examples" / "jobs" / "tickets-openai-s3.yaml").read_text()

    def generation() -> int:
        return server.get("tickets")["metadata"]["generation"]

    for arguments in (
        ("apply", "-f", "-"),
        ("apply", "-f", "-"),
        ("replace", "-f", "-"),
        ("apply", "--server-side", "--force-conflicts", "-f", "-"),
    ):
        server.plane.kubectl(*arguments, "-n", NAMESPACE, stdin=manifest)
        assert generation() == 1, arguments


def test_an_edit_of_what_is_paid_for_names_the_way_out(server: Server) -> None:
    name = server.create(JOB)
    with pytest.raises(CommandFailed, match="create the job with another `runID` or another name"):
        server.plane.kubectl(
            "patch", "bij", name, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"model":"x"}}'
        )

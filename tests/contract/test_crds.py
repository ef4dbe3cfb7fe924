"""The CRDs and the model say the same: names, required fields, enums, defaults, both ways."""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.errors import InvalidObject
from batchinference.model import job as jobs
from batchinference.model import provider as providers
from batchinference.model.codec import encode, wire_name
from batchinference.model.metadata import API_VERSION
from batchinference.model.status import (
    MESSAGE_LIMIT,
    Condition,
    ConditionType,
    ConfigMapRef,
    Cost,
    JobStatus,
    Outputs,
    RequestCounts,
    ShardCounts,
    State,
    SubmissionView,
    Usage,
)
from contract.crds import KINDS, ROOT, Node, problems, problems_at, schema

SPECS = {
    "BatchInferenceJob": jobs.JobSpec,
    "InferenceProvider": providers.ProviderSpec,
    "ClusterInferenceProvider": providers.ClusterProviderSpec,
}
STATUSES = {
    "BatchInferenceJob": JobStatus,
    "InferenceProvider": providers.ProviderStatus,
    "ClusterInferenceProvider": providers.ProviderStatus,
}
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
MANIFESTS = [
    pytest.param(manifest, id=f"{path.relative_to(ROOT)}:{manifest['kind']}")
    for path in EXAMPLES
    for manifest in yaml.safe_load_all(path.read_text())
    if manifest["apiVersion"] == API_VERSION
]

every_manifest = pytest.mark.parametrize("manifest", MANIFESTS)


# ---------------------------------------------------------------- schema <-> dataclasses


def differences(path: str, node: dict[str, Any], hint: Any, *, is_open: bool) -> list[str]:
    """Where a schema and a type hint disagree. An open schema accepts more than we write."""
    if typing.get_origin(hint) is types.UnionType:
        [hint] = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
    if dataclasses.is_dataclass(hint):
        return members(path, node, hint, is_open=is_open)
    if hint is Any:
        return said(path, "free", node.get("x-kubernetes-preserve-unknown-fields"), True)
    if hint is datetime:
        return said(path, "format", node.get("format"), "date-time")
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if is_open:
            return said(path, "type", node["type"], "string")
        return said(path, "enum", node.get("enum"), [member.value for member in hint])
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        return said(path, "type", node["type"], "array") + differences(
            f"{path}[]", node["items"], item, is_open=is_open
        )
    if typing.get_origin(hint) is Mapping:
        value = typing.get_args(hint)[1]
        return differences(f"{path}{{}}", node["additionalProperties"], value, is_open=is_open)
    want = {str: "string", int: "integer", bool: "boolean"}[hint]
    return said(path, "type", node["type"], want)


def members(path: str, node: dict[str, Any], kind: Any, *, is_open: bool) -> list[str]:
    hints = typing.get_type_hints(kind)
    fields = {wire_name(field): field for field in dataclasses.fields(kind)}
    found = said(path, "fields", sorted(node["properties"]), sorted(fields))
    required = {name for name, field in fields.items() if is_required(field)}
    if is_open:
        # Nothing we write may lack what the schema demands.
        found += said(path, "required", set(node.get("required", [])) - required, set())
    else:
        found += said(path, "required", set(node.get("required", [])), required)
    for name in node["properties"].keys() & fields.keys():
        child, field = node["properties"][name], fields[name]
        found += differences(f"{path}.{name}", child, hints[field.name], is_open=is_open)
        if not is_open and not is_required(field):
            found += said(f"{path}.{name}", "default", child.get("default"), default_of(field))
    return found


def is_required(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default on the wire; what means "unset" in the model has none there."""
    value = field.default
    if value is dataclasses.MISSING or value in (None, "", ()):
        return None
    if isinstance(value, jobs.RetryPolicy):
        return {}  # an empty object is there, so that the default inside it shows
    return None if dataclasses.is_dataclass(value) else encode(value)


def said(path: str, what: str, crd: Any, model: Any) -> list[str]:
    return [] if crd == model else [f"{path}: {what}: the CRD has {crd}, the model {model}"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_spec_and_the_model_have_the_same_fields_and_defaults(kind: str) -> None:
    assert differences("spec", schema(kind, "spec"), SPECS[kind], is_open=False) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_declares_every_field_that_the_model_writes(kind: str) -> None:
    assert differences("status", schema(kind, "status"), STATUSES[kind], is_open=True) == []


def test_the_comparison_notices_a_difference() -> None:
    node = copy.deepcopy(schema("BatchInferenceJob", "spec"))
    del node["properties"]["suspend"]
    node["properties"]["operation"]["enum"].append("Videos")
    node["properties"]["priority"]["default"] = 1
    node["required"].append("runID")
    found = differences("spec", node, jobs.JobSpec, is_open=False)
    assert len(found) == 4
    assert sorted(one.split(":")[0] for one in found) == [
        "spec",
        "spec",
        "spec.operation",
        "spec.priority",
    ]


def test_an_inline_input_is_bounded_in_bytes_as_in_characters() -> None:
    inline = schema("BatchInferenceJob", "spec", "input", "inline")
    assert inline["maxLength"] == 32 * 1024
    assert f"<= {32 * 1024}" in inline["x-kubernetes-validations"][0]["rule"]


def test_messages_that_the_model_cuts_fit_into_the_crd() -> None:
    message = schema("BatchInferenceJob", "status", "conditions")["items"]["properties"]["message"]
    assert message["maxLength"] >= MESSAGE_LIMIT


# ---------------------------------------------------------------- what is paid for


def test_billable_fields_stand_first_and_are_the_immutable_ones() -> None:
    spec = schema("BatchInferenceJob", "spec")
    assert tuple(spec["properties"])[: len(jobs.BILLABLE)] == jobs.BILLABLE
    rules = [r for r in spec["x-kubernetes-validations"] if "oldSelf" in r["rule"]]
    immutable = [rule["fieldPath"].removeprefix(".") for rule in rules]
    assert immutable == [*jobs.BILLABLE, "managedBy", "desiredState"]
    for rule in rules[: len(jobs.BILLABLE)]:
        assert "`runID`" in rule["message"], "says how to run again"


# ---------------------------------------------------------------- the kinds among themselves


def without(node: Any, path: str, *gone: str) -> Any:
    """A schema without descriptions, and without the rules that tell the two kinds apart."""
    if isinstance(node, list):
        return [without(item, path, *gone) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {k: without(v, f"{path}.{k}", *gone) for k, v in node.items() if k not in gone}
    if isinstance(kept.get("description"), str):
        del kept["description"]
    rules = kept.pop("x-kubernetes-validations", [])
    rules = [rule for rule in rules if rule["rule"] != "has(self.credentialsSecretRef)"]
    return kept | ({"x-kubernetes-validations": rules} if rules else {})


@pytest.mark.parametrize("part", ["spec", "status"])
def test_the_two_provider_kinds_differ_in_credentials_and_namespaces_only(part: str) -> None:
    ours = without(schema("InferenceProvider", part), part)
    theirs = without(schema("ClusterInferenceProvider", part), part, "allowedNamespaces")
    assert ours == theirs


def test_only_the_namespaced_kind_demands_credentials_of_its_own() -> None:
    def demanded(kind: str) -> list[str]:
        return [
            node.path
            for node in Node("", schema(kind)).walk()
            for rule in node.schema.get("x-kubernetes-validations", [])
            if rule["rule"] == "has(self.credentialsSecretRef)"
        ]

    assert demanded("InferenceProvider") == ["spec.bedrock", "spec.storage.s3"]
    assert demanded("ClusterInferenceProvider") == []


# ---------------------------------------------------------------- examples


def test_there_are_examples_of_every_kind() -> None:
    assert {param.values[0]["kind"] for param in MANIFESTS} == set(KINDS)


def parse(manifest: dict[str, Any]) -> Any:
    read = jobs.parse_job if manifest["kind"] == jobs.KIND else providers.parse_provider
    return read(manifest, ignore_unknown=False)


@every_manifest
def test_every_example_passes_schema_and_model(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []
    assert parse(manifest).metadata.name == manifest["metadata"]["name"]


@every_manifest
def test_every_example_is_implemented(manifest: dict[str, Any]) -> None:
    found = parse(manifest)
    if manifest["kind"] != jobs.KIND:
        assert providers.not_implemented_fields(found.spec) == ()


@every_manifest
def test_an_unknown_field_is_refused_by_both(manifest: dict[str, Any]) -> None:
    manifest = copy.deepcopy(manifest)
    manifest["spec"]["suspended"] = True
    assert "'suspended' was unexpected" in problems(manifest)[0]
    with pytest.raises(InvalidObject, match=r"spec\.suspended: is not a known field"):
        parse(manifest)


def test_the_first_example_has_the_job_of_the_jobs_folder() -> None:
    folder = ROOT / "examples"
    *_, whole = yaml.safe_load_all((folder / "inline-openai.yaml").read_text())
    assert whole == yaml.safe_load((folder / "jobs" / "inline-openai.yaml").read_text())


def test_jobs_and_providers_of_the_folders_fit_each_other() -> None:
    def of(folder: str) -> list[dict[str, Any]]:
        return [
            yaml.safe_load(path.read_text())
            for path in sorted((ROOT / "examples" / folder).glob("*.yaml"))
        ]

    known = {manifest["metadata"]["name"] for manifest in of("providers")}
    for manifest in of("jobs"):
        assert manifest["spec"]["providerRef"]["name"] in known
        assert "namespace" not in manifest["metadata"], "they go where their provider is"


# ---------------------------------------------------------------- statuses


text = st.text(max_size=100)
times = st.datetimes(timezones=st.just(UTC))
numbers = st.integers(min_value=0, max_value=10**9)
conditions = st.builds(
    Condition,
    type=st.sampled_from(ConditionType),
    status=st.sampled_from(["True", "False", "Unknown"]),
    reason=st.from_regex(r"[A-Z][A-Za-z]{0,60}", fullmatch=True),
    message=st.text(max_size=MESSAGE_LIMIT),
    observed_generation=numbers,
    last_transition_time=times,
)
submissions = st.builds(
    SubmissionView, shard=numbers, ordinal=numbers, state=st.text(max_size=40), batch_id=text
)
statuses = st.builds(
    JobStatus,
    observed_generation=st.integers(min_value=-1, max_value=10**9),
    state=st.sampled_from(State),
    conditions=st.lists(conditions, max_size=6).map(tuple),
    run_key=st.text(max_size=64),
    start_time=st.none() | times,
    completion_time=st.none() | times,
    progress=st.from_regex(r"[0-9]{1,9}/[0-9]{1,9}", fullmatch=True),
    request_counts=st.none() | st.builds(RequestCounts, numbers, numbers, numbers, numbers),
    shards=st.none() | st.builds(ShardCounts, numbers, numbers, numbers, numbers),
    submissions=st.lists(submissions, max_size=20).map(tuple),
    usage=st.none() | st.builds(Usage, numbers.map(str), numbers.map(str)),
    cost=st.none() | st.builds(Cost, st.just("USD"), numbers.map(str), numbers.map(str)),
    outputs=st.none()
    | st.builds(Outputs, text, text, text, st.none() | st.builds(ConfigMapRef, text)),
)


@given(statuses)
@settings(max_examples=50)
def test_every_status_that_we_write_passes_the_schema(status: JobStatus) -> None:
    assert problems_at(schema("BatchInferenceJob", "status"), encode(status)) == []


@given(
    st.builds(
        providers.ProviderStatus,
        observed_generation=numbers,
        conditions=st.lists(conditions, max_size=2).map(tuple),
        active_batches=numbers,
        queued_shards=numbers,
        enqueued_tokens=numbers.map(str),
        account=text,
    )
)
@settings(max_examples=25)
def test_every_provider_status_that_we_write_passes_the_schema(
    status: providers.ProviderStatus,
) -> None:
    for kind in ("InferenceProvider", "ClusterInferenceProvider"):
        assert problems_at(schema(kind, "status"), encode(status)) == []


def test_a_status_of_a_newer_operator_passes_too() -> None:
    newer = {
        "observedGeneration": 1,
        "state": "Hibernating",
        "forecast": {"cost": "1"},
        "cost": {"tax": "1"},
        "submissions": [{"shard": 0, "ordinal": 1, "state": "Dreaming"}],
    }
    assert problems_at(schema("BatchInferenceJob", "status"), newer) == []

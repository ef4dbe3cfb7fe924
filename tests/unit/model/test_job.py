"""Jobs as the model reads them."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode, encode
from batchinference.model.job import (
    BILLABLE,
    DesiredState,
    JobSpec,
    JSONSchema,
    Operation,
    Parameters,
    ResponseFormat,
    parse_job,
    parse_journaled_spec,
    parse_spec,
    unsupported_operation,
)
from batchinference.model.metadata import parse_metadata
from batchinference.model.provider import BedrockProvider, OpenAIProvider, ProviderSpec

OPENAI = ProviderSpec(open_ai=OpenAIProvider())
BEDROCK = ProviderSpec(bedrock=BedrockProvider("us-east-1", "arn:aws:iam::123456789012:role/r"))


def spec(**members: Any) -> dict[str, Any]:
    minimal = {
        "providerRef": {"name": "openai"},
        "model": "gpt-4.1-mini",
        "operation": "ChatCompletions",
        "input": {"inline": "{}"},
        "output": {"configMap": {"name": "out"}},
    }
    return minimal | members


free_json = st.dictionaries(st.text(), st.recursive(st.integers() | st.text(), st.lists))


def every_field(kind: type, **strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Values of a dataclass with the optional fields drawn too, which `builds` leaves alone."""
    return st.builds(kind, **({f.name: ... for f in fields(kind)} | strategies))


job_specs = every_field(
    JobSpec,
    parameters=every_field(
        Parameters,
        response_format=st.none()
        | every_field(ResponseFormat, json_schema=every_field(JSONSchema, schema=free_json)),
        extra=free_json,
    ),
)


@given(job_specs)
def test_every_spec_survives_the_codec(given_spec: JobSpec) -> None:
    assert decode(JobSpec, encode(given_spec), "spec") == given_spec


def test_a_job_is_read_with_its_metadata_spec_and_status() -> None:
    job = parse_job(
        {
            "metadata": {
                "name": "triage",
                "namespace": "ml",
                "uid": "u",
                "generation": 2,
                "resourceVersion": "7",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "finalizers": ["batchinference.dev/cancel"],
                "annotations": {"a": "b"},
                "managedFields": [],
                "labels": {"x": "y"},
            },
            "spec": spec(suspend=True, desiredState="Cancelled"),
            "status": {"state": "Queued"},
        }
    )
    assert job.metadata.creation_time == datetime(2026, 1, 1, tzinfo=UTC)
    assert job.metadata.finalizers == ("batchinference.dev/cancel",)
    assert (job.metadata.name, job.metadata.namespace, job.metadata.generation) == (
        "triage",
        "ml",
        2,
    )
    assert not job.metadata.is_being_deleted
    assert job.spec.suspend
    assert job.spec.desired_state is DesiredState.CANCELLED
    assert job.status == {"state": "Queued"}


def test_an_object_being_deleted_says_so() -> None:
    metadata = parse_metadata({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    assert metadata.is_being_deleted


def test_a_manifest_without_status_or_metadata_is_read_too() -> None:
    job = parse_job({"spec": spec(), "status": None})
    assert (job.metadata.name, job.status) == ("", {})


def test_a_member_of_a_newer_crd_is_ignored_unless_it_is_to_be_checked() -> None:
    manifest = {"spec": spec(newer=1)}
    assert parse_job(manifest).spec == parse_spec(spec())
    with pytest.raises(InvalidObject, match=r"spec\.newer: is not a known field"):
        parse_job(manifest, ignore_unknown=False)


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"input": {}}, "spec.input"),
        ({"input": {"inline": "{}", "s3": {"uri": "s3://b/k"}}}, "spec.input"),
        ({"input": {"inline": "{}", "configMapKeyRef": {"name": "a", "key": "b"}}}, "spec.input"),
        ({"output": {}}, "spec.output"),
        ({"output": {"configMap": {"name": "o"}, "s3": {"uri": "s3://b/p/"}}}, "spec.output"),
    ],
)
def test_unions_must_have_one_member(members: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidObject, match="must have exactly one of") as caught:
        parse_spec(spec(**members))
    assert caught.value.path == path


def test_the_billable_part_holds_the_billable_fields_without_defaults() -> None:
    full = parse_spec(
        spec(
            runID="7",
            parameters={"temperature": "0"},
            promptTemplate={"prompt": "{{ text }}", "missingField": "Fail"},
            suspend=True,
            priority=5,
        )
    )
    billable = full.billable()
    assert list(billable) == [name for name in encode(full) if name in BILLABLE]
    assert set(billable) == set(BILLABLE)
    assert billable["providerRef"] == {"name": "openai"}
    assert billable["promptTemplate"] == {"prompt": "{{ text }}"}


@pytest.mark.parametrize(
    ("operation", "provider", "is_told"),
    [
        ("ChatCompletions", OPENAI, False),
        ("Embeddings", OPENAI, False),
        ("Completions", OPENAI, False),
        ("Responses", OPENAI, False),
        ("ChatCompletions", BEDROCK, False),
        ("Embeddings", BEDROCK, True),
        ("Completions", BEDROCK, True),
        ("Responses", BEDROCK, True),
    ],
)
def test_an_operation_that_a_provider_does_not_have_is_told_with_what_it_has(
    operation: str, provider: ProviderSpec, is_told: bool
) -> None:
    said = unsupported_operation(Operation(operation), provider)
    assert bool(said) is is_told
    assert not said or (f"`spec.operation: {operation}`" in said and "ChatCompletions" in said)


def test_a_journaled_spec_needs_neither_input_nor_output() -> None:
    kept = {name: spec()[name] for name in ("providerRef", "model", "operation")}
    assert parse_journaled_spec(kept).model == "gpt-4.1-mini"
    with pytest.raises(InvalidObject, match=r"spec\.operation"):
        parse_journaled_spec({**kept, "operation": "FineTuning"})

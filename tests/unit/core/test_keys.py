"""Who a run is: the canonical form, held by golden hashes, and the names made of it."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.begin import key_of
from batchinference.core.keys import (
    FORMS,
    installation_id,
    is_run_key,
    next_ordinal,
    output_uri,
    run_keys,
    run_tag,
    staging_uri,
    submission_id,
)
from batchinference.model.job import BILLABLE, parse_job, parse_spec
from batchinference.model.run import KEY_VERSION, SubmissionState
from builders import job, run_of, shard_of, submission_of

PLAIN = job()
FULL = job("full", "qa").with_spec(
    providerRef={"kind": "ClusterInferenceProvider", "name": "shared"},
    operation="Embeddings",
    input={"s3": {"uri": "s3://data/qa/in.jsonl", "versionID": "v7"}, "format": "JSONL"},
    promptTemplate={"system": "Be brief.", "prompt": "Say {{ word }}", "idField": "id"},
    parameters={
        "maxOutputTokens": 256,
        "temperature": "0",
        "stop": ["END", ""],
        "responseFormat": {
            "type": "JSONSchema",
            "jsonSchema": {"name": "a", "schema": {"properties": {"x": {}}}},
        },
        "extra": {"seed": 0, "user": "", "nested": {}},
    },
    output={"s3": {"uri": "s3://data/qa/out/"}, "format": "Parquet"},
    runID="2026-01",
)

GOLDEN = [
    (PLAIN, "a5113b68491fe67dbbb6beac2b2c1a40820703b3", "the least that a job can say"),
    (FULL, "9b93ca6c3f2268311dfdd6fbd2ad9469a140d2b6", "everything that is billable"),
    (
        replace(PLAIN, metadata={"generateName": "triage-"}),
        "17b1b8cf8179586ce08b09868941ffcab59e52be",
        "by its prefix",
    ),
]


def test_the_newest_form_is_the_one_that_journals_name() -> None:
    assert max(FORMS) == KEY_VERSION
    assert list(run_keys("ml", "x", "", parse_job(job().build()).spec).values()) == sorted(
        FORMS, reverse=True
    )


def key(builder):
    return key_of(parse_job(builder.build()))


@pytest.mark.parametrize(("builder", "golden", "reason"), GOLDEN)
def test_run_keys_never_change(builder, golden, reason) -> None:
    """A changed hash pays for every run again: raise KEY_VERSION and look up the old keys too."""
    assert key(builder) == golden, reason


def test_the_canonical_form_is_this_text() -> None:
    form = (
        '{"name":"triage","namespace":"ml","spec":{'
        '"input":{"s3":{"uri":"s3://data/ml/in/triage.jsonl"}},'
        '"model":"gpt-4.1-mini","operation":"ChatCompletions",'
        '"output":{"s3":{"uri":"s3://data/ml/out/triage/"}},'
        '"providerRef":{"name":"openai"}},"version":1}'
    )
    assert key(PLAIN) == hashlib.sha256(form.encode()).hexdigest()[:40]


SAME = [
    (PLAIN.stamped(uid="1"), PLAIN.stamped(uid="2"), "the uid is not part of it"),
    (PLAIN.with_spec(runID=""), PLAIN, "an empty runID"),
    (PLAIN.with_spec(parameters={}), PLAIN, "empty parameters"),
    (PLAIN.with_spec(parameters={"extra": {}, "stop": []}), PLAIN, "empty members"),
    (PLAIN.with_spec(promptTemplate=None), PLAIN, "null"),
    (PLAIN.provider("openai", "InferenceProvider"), PLAIN, "a default written out"),
    (PLAIN.with_spec(providerRef={"name": "openai"}), PLAIN, "a default left out"),
    (PLAIN.suspended(), PLAIN, "suspend is not billable"),
    (PLAIN.cancelled(), PLAIN, "desiredState is not billable"),
    (PLAIN.with_spec(priority=5, managedBy="x"), PLAIN, "nor are these"),
    (PLAIN.attempts(1).tolerating(percent=5).orphaning(), PLAIN, "nor are policies"),
    (
        replace(FULL, name="triage-x7k", metadata={"generateName": "triage-"}),
        replace(FULL, name="triage-b2p", metadata={"generateName": "triage-"}),
        "a generated name counts by its prefix",
    ),
]


@pytest.mark.parametrize(("one", "other", "reason"), SAME)
def test_the_same_run(one, other, reason) -> None:
    assert key(one) == key(other), reason


def schema(properties):
    described = {"name": "a", "schema": {"type": "object", "properties": properties}}
    return PLAIN.with_spec(
        parameters={"responseFormat": {"type": "JSONSchema", "jsonSchema": described}}
    )


OTHER = [
    (replace(PLAIN, name="other"), PLAIN, "the name"),
    (replace(PLAIN, namespace="qa"), PLAIN, "the namespace"),
    (PLAIN.run_id("2"), PLAIN, "runID"),
    (replace(PLAIN, metadata={"generateName": "triage"}), PLAIN, "a prefix is no name"),
    (PLAIN.provider("openai", "ClusterInferenceProvider"), PLAIN, "another kind of provider"),
    (PLAIN.with_spec(model="gpt-4.1"), PLAIN, "the model"),
    (PLAIN.with_spec(operation="Embeddings"), PLAIN, "the operation"),
    (PLAIN.reading("s3://data/ml/in/other.jsonl"), PLAIN, "the input"),
    (PLAIN.writing("s3://data/ml/out/other/"), PLAIN, "the output"),
    (PLAIN.inline("{}\n"), PLAIN.inline("{}"), "the inline text, byte by byte"),
    (
        PLAIN.with_spec(parameters={"extra": {"seed": 0}}),
        PLAIN.with_spec(parameters={"extra": {"seed": False}}),
        "zero is not false",
    ),
    (
        PLAIN.with_spec(parameters={"extra": {"user": ""}}),
        PLAIN,
        "an empty value in `extra` is sent",
    ),
    (
        PLAIN.with_spec(parameters={"extra": {"a": {"b": None}}}),
        PLAIN.with_spec(parameters={"extra": {"a": {}}}),
        "so is a null",
    ),
    (schema({"extra": {}}), schema({}), "an empty subschema allows anything"),
    (schema({"a": {}}), schema({"b": {}}), "an empty subschema allows anything"),
    (
        PLAIN.with_spec(parameters={"stop": ["a", ""]}),
        PLAIN.with_spec(parameters={"stop": ["a"]}),
        "positions in lists mean something",
    ),
]


@pytest.mark.parametrize(("one", "other", "reason"), OTHER)
def test_another_run(one, other, reason) -> None:
    assert key(one) != key(other), reason


def test_every_billable_field_is_in_one_of_the_tables() -> None:
    spec = FULL.build()["spec"]
    for name in BILLABLE:
        assert name in spec


leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3)
free = st.dictionaries(
    st.text(min_size=1, max_size=3),
    st.recursive(
        leaves, lambda c: st.lists(c, max_size=2) | st.dictionaries(st.text(), c, max_size=2)
    ),
    min_size=1,
    max_size=3,
)


def shuffled(value):
    if isinstance(value, dict):
        return {k: shuffled(value[k]) for k in reversed(list(value))}
    return [shuffled(v) for v in value] if isinstance(value, list) else value


@given(free, free)
def test_extra_counts_by_content_and_not_by_order(one, other) -> None:
    first = key(PLAIN.with_spec(parameters={"extra": one}))
    assert first == key(PLAIN.with_spec(parameters={"extra": shuffled(copy.deepcopy(one))}))
    different = repr(shuffled_all(one)) != repr(shuffled_all(other))
    assert (first != key(PLAIN.with_spec(parameters={"extra": other}))) == different


def shuffled_all(value):
    if isinstance(value, dict):
        return {k: shuffled_all(value[k]) for k in sorted(value)}
    return [shuffled_all(v) for v in value] if isinstance(value, list) else value


def test_keys_tags_and_names_have_their_lengths_and_alphabet() -> None:
    found = key(PLAIN)
    assert len(found) == 40
    tag = run_tag("installation-1", found)
    assert len(tag) == 20
    assert set(found + tag) <= set("0123456789abcdef"), "legal in every provider's names"
    assert run_tag("installation-2", found) != tag, "two clusters are told apart"
    assert run_tag("installation-1", found[::-1]) != tag


def test_namespace_and_name_do_not_run_into_each_other() -> None:
    spec = parse_spec(PLAIN.build()["spec"])
    assert set(run_keys("a-b", "c", "", spec)) != set(run_keys("a", "b-c", "", spec))
    assert set(run_keys("ab", "c", "", spec)) != set(run_keys("a", "bc", "", spec))


def test_what_a_batch_carries_names_run_shard_ordinal_and_content() -> None:
    run = run_of(shards=2)
    named = submission_id(run, run.shards[1], 4)
    assert (named.tag, named.shard, named.ordinal) == (run.tag, 1, 4)
    assert run.shards[1].sha256.startswith(named.content_hash)
    assert named.content_hash != submission_id(run, run.shards[0], 4).content_hash


ORDINALS = [
    ((), 0, 1, "the first"),
    ((), 7, 8, "above an earlier life"),
    ((submission_of(3),), 0, 4, "above the newest"),
    ((submission_of(9, SubmissionState.REFUSED),), 7, 10, "a refusal has used its ordinal"),
]


@pytest.mark.parametrize(("submissions", "floor", "ordinal", "reason"), ORDINALS)
def test_ordinals_rise(submissions, floor, ordinal, reason) -> None:
    run = run_of(ordinal_floor=floor)
    assert next_ordinal(run, shard_of(0, submissions=submissions)) == ordinal, reason


def test_places_are_made_of_names() -> None:
    assert staging_uri("s3://b/s/", "inst", "key") == "s3://b/s/inst/key/"
    assert staging_uri("s3://b/s", "inst", "key") == "s3://b/s/inst/key/"
    template = "s3://b/${namespace}/${name}/${runID}/${runKey}/${other}/"
    made = output_uri(template, namespace="ml", name="t", run_id="r", key="k")
    assert made == "s3://b/ml/t/r/k/${other}/"
    smuggled = output_uri("${runID}", namespace="ml", name="t", run_id="${runKey}", key="k")
    assert smuggled == "${runKey}", "a value is no variable"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "absent"),
        (7, "no text"),
        ("", "empty"),
        ("../secrets/x", "a path"),
        ("A" * 40, "not hexadecimal digits in lower case"),
        ("a" * 41, "too long"),
        ("a" * 40 + "\n", "a line"),
    ],
)
def test_what_is_no_run_key(text, reason) -> None:
    assert not is_run_key(text), reason


def test_a_run_key_has_the_form_of_one() -> None:
    assert is_run_key(key_of(parse_job(job().build())))


def test_an_installation_is_a_cluster_and_a_namespace() -> None:
    here = installation_id("uid-1", "batch-inference")
    assert here == installation_id("uid-1", "batch-inference"), "after every restart"
    assert here != installation_id("uid-2", "batch-inference"), "another cluster"
    assert here != installation_id("uid-1", "elsewhere"), "another operator of the cluster"
    assert installation_id("a", "bc") != installation_id("ab", "c")

"""Names, places and create requests for Bedrock, held to AWS's own description of the call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from batchinference.adapters.bedrock import BedrockProvider, default_limits
from batchinference.adapters.bedrock.names import (
    input_uri,
    job_name,
    output_uri,
    request_token,
    submission_of,
)
from batchinference.adapters.bedrock.request import create_request, violations
from batchinference.errors import Permanent
from batchinference.model.batch import Limits, SubmissionID
from batchinference.model.run import Owner, Place, Run
from builders import anytime, run_of

from .golden import assert_golden
from .stub import Answer, Stub

SUBMISSION = SubmissionID("0123456789abcdef0123", 7, 2, "00c0ffee00c0")
ARN = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/abcdefghijkl"
ROLE = "arn:aws:iam::123456789012:role/BedrockBatch"
NOVA = "amazon.nova-lite-v1:0"
KEYS = {"AWS_ACCESS_KEY_ID": "OWN", "AWS_SECRET_ACCESS_KEY": "own-secret"}


def run_with(model: str = NOVA, staging: str = "s3://bucket/staging/run/", **bedrock: Any) -> Run:
    run = run_of()
    settings = {"bedrock": {"region": "us-east-1", "serviceRoleARN": ROLE, **bedrock}}
    return replace(
        run,
        spec={**run.spec, "model": model},
        provider=replace(run.provider, settings=settings),
        staging=Place(staging),
    )


def request(run: Run, submission: SubmissionID = SUBMISSION) -> dict[str, Any]:
    return create_request(run, submission, input_uri(run, submission))


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("namespace", "name", "want"),
    [
        ("ml", "triage", "ml-triage-0123456789abcdef0123-s7-o2-00c0ffee00c0"),
        (
            "machine-learning",
            "ticket-triage.weekly",
            "machine-learning-tic-0123456789abcdef0123-s7-o2-00c0ffee00c0",
        ),
        ("a-------------------", "b", "a-b-0123456789abcdef0123-s7-o2-00c0ffee00c0"),
        ("--", "--", "job-0123456789abcdef0123-s7-o2-00c0ffee00c0"),
    ],
)
def test_a_job_name_begins_with_what_people_know(namespace: str, name: str, want: str) -> None:
    assert job_name(Owner(namespace, name, "uid"), SUBMISSION) == want


@pytest.mark.parametrize("namespace", ["ml", "a" * 63, "1-2.3"])
@pytest.mark.parametrize("name", ["x", "generated-", "b" * 253])
@pytest.mark.parametrize(("shard", "ordinal"), [(0, 1), (499, 99), (99_999, 9_999)])
def test_a_job_name_fits_and_gives_its_submission_back(
    namespace: str, name: str, shard: int, ordinal: int
) -> None:
    submission = SubmissionID("f" * 20, shard, ordinal, "0123456789ab")
    made = job_name(Owner(namespace, name, "uid"), submission)
    assert len(made) <= 63
    assert submission_of(made) == submission
    run = replace(run_with(), owner=Owner(namespace, name, "uid"))
    assert request(run, submission)["jobName"] == made


@pytest.mark.parametrize(
    "name", ["", "nightly", "ml-triage-0123-s1-o2", "x-tag-sA-o1-00", "ml-triage-tag-s1-o1-XYZ"]
)
def test_a_foreign_job_is_nobodys(name: str) -> None:
    assert submission_of(name) is None


def test_a_token_is_of_one_submission_alone() -> None:
    others = [
        SUBMISSION,
        replace(SUBMISSION, tag="1123456789abcdef0123"),
        replace(SUBMISSION, shard=72, ordinal=2),
        replace(SUBMISSION, shard=7, ordinal=22),
        replace(SUBMISSION, content_hash="10c0ffee00c0"),
    ]
    tokens = [request_token(one) for one in others]
    assert len(set(tokens)) == len(tokens)
    assert all(len(token) == 64 and token.isalnum() for token in tokens)
    # Released: a change would make a repeated call a second, billed job.
    assert tokens[0] == "2d90103b33174c5ab57253a0cfc081eed986f1425482362ef6280ed6e6d72000"


def test_input_and_output_of_ordinals_never_meet() -> None:
    run = run_with()
    assert input_uri(run, SUBMISSION) == "s3://bucket/staging/run/submit/00007-2/records.jsonl"
    assert output_uri(run, SUBMISSION) == "s3://bucket/staging/run/out/00007-2/"


# ---------------------------------------------------------------- requests


@asynccontextmanager
async def client(stub: Stub, **bedrock: Any) -> AsyncIterator[BedrockProvider]:
    settings = {
        "bedrock": {
            "region": "us-east-1",
            "serviceRoleARN": ROLE,
            "endpointURL": stub.url,
            "credentialsSecretRef": {"name": "aws"},
            **bedrock,
        }
    }
    provider = BedrockProvider(settings, {"bedrock": KEYS}, NoStore())
    try:
        yield provider
    finally:
        await provider.close()


class NoStore:
    """Create requests touch no storage."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


GOLDEN = [
    ("bedrock-create", {}),
    (
        "bedrock-create-everything",
        {
            "kmsKeyID": "alias/results",
            "bucketOwner": "123456789012",
            "vpcConfig": {"subnetIDs": ["subnet-1", "subnet-2"], "securityGroupIDs": ["sg-1"]},
            "tags": [{"key": "team", "value": "ml"}, {"key": "empty", "value": ""}],
            "timeoutHours": 72,
        },
    ),
]


@pytest.mark.parametrize(("name", "bedrock"), GOLDEN, ids=[g[0] for g in GOLDEN])
async def test_the_wire_bytes_of_a_create_call(name: str, bedrock: dict[str, Any]) -> None:
    with Stub(lambda _asked: Answer({"jobArn": ARN})) as stub:
        async with client(stub, **bedrock) as provider:
            run = run_with(**bedrock)
            await provider.submit(
                provider.create_request(run, SUBMISSION, input_uri(run, SUBMISSION)), anytime
            )
    (asked,) = stub.asked
    signer = asked.headers["authorization"].split("/")
    shown = [f"{asked.method} {asked.path}", f"signed for {signer[2]} {signer[3]}"]
    assert_golden(f"{name}.http", "\n".join([*shown, "", asked.body.decode(), ""]))


def test_native_records_invoke_the_model_and_others_converse() -> None:
    run = run_with()
    assert request(run)["modelInvocationType"] == "Converse"
    assert run.staged is not None
    native = replace(run, staged=replace(run.staged, native=True))
    assert request(native)["modelInvocationType"] == "InvokeModel"


def test_an_operation_that_is_not_translated_is_refused_by_name() -> None:
    run = run_with()
    run = replace(run, spec={**run.spec, "operation": "Embeddings"})
    with pytest.raises(Permanent, match=r"spec\.operation") as refused:
        request(run)
    assert refused.value.reason == "NotImplemented"


OF = "arn:aws:bedrock:us-east-1"
MODELS = [
    ("anthropic.claude-3-5-sonnet-20240620-v1:0", None, "a bare id"),
    ("us.anthropic.claude-sonnet-4-20250514-v1:0", None, "a cross-region profile"),
    (f"{OF}::foundation-model/{NOVA}", None, "a foundation model's ARN"),
    (f"{OF}:123456789012:inference-profile/us.{NOVA}", None, "a profile's ARN"),
    (f"{OF}:123456789012:application-inference-profile/abc", None, "an application's profile"),
    (
        f"{OF}:123456789012:custom-model/amazon.titan/abcdefghijkl",
        None,
        "a custom model",
    ),
    (f"{OF}:123456789012:provisioned-model/abc", "provisioned throughput", "not batched"),
    (f"{OF}:123456789012:imported-model/abc", "imported models", "not batched"),
    (f"{OF}:123456789012:custom-model-deployment/abc", "custom model itself", "not batched"),
    (f"{OF}:123456789012:prompt-router/abc", "prompt routers", "not batched"),
    (f"{OF}:123456789012:default-prompt-router/x", "prompt routers", "not batched"),
    ("", "modelId must have 1 to 2048", "nothing"),
    ("gpt 4", "modelId has a form", "a space"),
    ("m" * 3000, "modelId must have 1 to 2048", "too long"),
]


@pytest.mark.parametrize(("model", "told", "reason"), MODELS)
def test_a_model_that_batch_cannot_address_is_refused_before_it_costs(
    model: str, told: str | None, reason: str
) -> None:
    if told is None:
        assert request(run_with(model))["modelId"] == model, reason
        return
    with pytest.raises(Permanent, match=told) as refused:
        request(run_with(model))
    assert refused.value.reason == "ProviderRefused"


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (run_with(staging="s3://bucket/dt=2026/"), "s3Uri has a form"),
        (run_with(staging="s3://bucket/a b/"), "s3Uri has a form"),
        (run_with(staging=f"s3://bucket/{'x' * 1100}/"), "s3Uri must have 1 to 1024"),
        (run_with(serviceRoleARN="arn:aws:iam::1:role/x"), "roleArn has a form"),
        (run_with(timeoutHours=999), "timeoutDurationInHours must have 24 to 168, and has 999"),
        (run_with(timeoutHours=2), "timeoutDurationInHours must have 24 to 168, and has 2"),
        (run_with(bucketOwner="12"), "s3BucketOwner"),
        (run_with(kmsKeyID="no key!"), "s3EncryptionKeyId has a form"),
        (run_with(tags=[{"key": "a#b", "value": ""}]), r"tags\[0\]\.key has a form"),
        (
            run_with(vpcConfig={"subnetIDs": [], "securityGroupIDs": ["sg-1"]}),
            "subnetIds must have 1 to 16 entries, and has 0",
        ),
    ],
)
def test_what_botocore_lets_through_is_refused_with_the_fields_name(run: Run, told: str) -> None:
    with pytest.raises(Permanent, match=told) as refused:
        request(run)
    assert refused.value.reason == "ProviderRefused"


def test_an_input_of_another_ordinal_is_refused() -> None:
    run = run_with()
    with pytest.raises(Permanent, match="not of ordinal 2"):
        create_request(run, SUBMISSION, input_uri(run, replace(SUBMISSION, ordinal=1)))


def test_unknown_and_missing_members_are_violations() -> None:
    good = request(run_with())
    assert list(violations(good)) == []
    assert list(violations({**good, "color": "red"})) == ["color is unknown"]
    assert list(violations({**good, "modelInvocationType": "Chat"})) == [
        "modelInvocationType must be one of InvokeModel, Converse, and is 'Chat'"
    ]
    del good["roleArn"]
    assert list(violations(good)) == ["roleArn is missing"]


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limits", "model", "want", "reason"),
    [
        ({}, NOVA, Limits(50_000, 10**9, 25_000_000, 100, 20), "what AWS publishes"),
        (
            {},
            "meta.llama4-scout-17b-instruct-v1:0",
            Limits(50_000, 10**9, 25_000_000, 50, 20),
            "a model with a smaller minimum",
        ),
        (
            {"minRecordsPerBatch": 10, "models": [{"name": NOVA, "maxActiveBatches": 3}]},
            NOVA,
            Limits(50_000, 10**9, 25_000_000, 10, 3),
            "the provider's own and the model's",
        ),
    ],
)
def test_limits_are_the_published_ones_with_the_providers_own(
    limits: dict[str, Any], model: str, want: Limits, reason: str
) -> None:
    assert default_limits({"limits": limits}, model, "ChatCompletions") == want, reason

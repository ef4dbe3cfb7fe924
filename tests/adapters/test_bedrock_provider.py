"""The Bedrock control plane over HTTP: what the answers are taken for, and who is asked."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import pytest

from batchinference.adapters import aws as cloud
from batchinference.adapters.bedrock import BedrockProvider
from batchinference.adapters.bedrock.provider import view as job_view
from batchinference.errors import Retry, Stalled
from batchinference.model.batch import (
    Accepted,
    BatchLimit,
    BatchState,
    CancelOutcome,
    OutcomeUnknown,
    RefusalKind,
    Refused,
)
from builders import anytime

from .stub import Answer, Asked, Stub
from .test_bedrock_request import ARN, KEYS, ROLE, SUBMISSION, NoStore, request, run_with

XML = {"Content-Type": "text/xml"}
NAME = "ml-triage-0123456789abcdef0123-s7-o2-00c0ffee00c0"


def refused(code: str, message: str = "no", status: int = 400) -> Answer:
    return Answer({"message": message}, status, {"x-amzn-ErrorType": code})


@asynccontextmanager
async def client(
    stub: Stub, *, secrets: Any = None, **options: Any
) -> AsyncIterator[BedrockProvider]:
    spec = {
        "bedrock": {
            "region": "us-east-1",
            "serviceRoleARN": ROLE,
            "endpointURL": stub.url,
            "credentialsSecretRef": {"name": "aws"},
            **options.pop("bedrock", {}),
        },
        **options.pop("spec", {}),
    }
    secrets = {"bedrock": KEYS} if secrets is None else secrets
    provider = BedrockProvider(spec, secrets, NoStore(), **options)
    try:
        yield provider
    finally:
        await provider.close()


# ---------------------------------------------------------------- create


async def test_an_accepted_job_is_the_one_that_was_sent() -> None:
    wanted = request(run_with())
    with Stub(lambda _asked: Answer({"jobArn": ARN})) as stub:
        async with client(stub) as provider:
            outcome = await provider.submit(wanted, anytime)
    assert isinstance(outcome, Accepted)
    assert outcome.batch.id == ARN
    assert outcome.batch.state is BatchState.VALIDATING
    assert outcome.batch.submission == SUBMISSION
    assert outcome.batch.input_ref == wanted["inputDataConfig"]["s3InputDataConfig"]["s3Uri"]
    assert stub.asked[0].json == wanted, "the request goes out unchanged"


REFUSALS = [
    (refused("ValidationException"), RefusalKind.INVALID, "a wrong request"),
    (refused("ResourceNotFoundException", status=404), RefusalKind.INVALID, "no such model"),
    (
        refused("ValidationException", "You are not authorized; open a support case"),
        RefusalKind.CREDENTIALS,
        "the account has no batch yet: a person must act",
    ),
    (refused("AccessDeniedException", status=403), RefusalKind.CREDENTIALS, "iam:PassRole"),
    (
        refused("AccessDeniedException", "INVALID_PAYMENT_INSTRUMENT: a card", status=403),
        RefusalKind.BILLING,
        "the AWS account has no means of payment",
    ),
    (refused("UnrecognizedClientException"), RefusalKind.CREDENTIALS, "an unknown key"),
    (refused("ExpiredTokenException"), RefusalKind.CREDENTIALS, "old temporary credentials"),
    (refused("InvalidSignatureException"), RefusalKind.CREDENTIALS, "a wrong secret"),
    (refused("ServiceQuotaExceededException"), RefusalKind.QUOTA, "all places taken"),
    (refused("ThrottlingException", status=429), RefusalKind.THROTTLED, "too many calls"),
]


@pytest.mark.parametrize(("answer", "kind", "reason"), REFUSALS)
async def test_a_certain_no_is_a_refusal(answer: Answer, kind: RefusalKind, reason: str) -> None:
    with Stub(lambda _asked: answer) as stub:
        async with client(stub) as provider:
            outcome = await provider.submit(request(run_with()), anytime)
    assert isinstance(outcome, Refused), reason
    assert outcome.kind is kind, reason
    assert len(stub.asked) == 1, "a create call is never repeated"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refused("ConflictException"), "perhaps with what an earlier call made"),
        (refused("InternalServerException", status=500), "it broke, before or after"),
        (refused("ServiceUnavailableException", status=503), "it broke, before or after"),
        (Answer(b"<html>", 502), "a proxy's page"),
        (refused("RequestTimeout", status=408), "a time-out of the server"),
        (Answer(drop=True), "the connection broke"),
        (Answer({"jobArn": ARN}, cut=5), "the answer broke off"),
        (Answer({}), "an answer without a job"),
    ],
)
async def test_everything_else_is_an_unknown_outcome(answer: Answer, reason: str) -> None:
    with Stub(lambda _asked: answer) as stub:
        async with client(stub) as provider:
            outcome = await provider.submit(request(run_with()), anytime)
    assert isinstance(outcome, OutcomeUnknown), reason
    assert len(stub.asked) == 1, "a create call is never repeated"


async def test_a_create_call_without_an_answer_in_time_is_unknown() -> None:
    gate = threading.Event()
    with Stub(lambda _asked: Answer({"jobArn": ARN}, gate=gate)) as stub:
        async with client(stub, submit_timeout_s=0.2) as provider:
            outcome = await provider.submit(request(run_with()), anytime)
            gate.set()
    assert isinstance(outcome, OutcomeUnknown)


async def test_a_connection_that_never_came_about_is_a_refusal() -> None:
    with Stub(lambda _asked: Answer()) as stub:
        pass
    async with client(stub) as provider:
        outcome = await provider.submit(request(run_with()), anytime)
    assert isinstance(outcome, Refused)
    assert (outcome.kind, outcome.code) == (RefusalKind.THROTTLED, "connect")


# ---------------------------------------------------------------- jobs as AWS tells them

JOB = {
    "jobArn": ARN,
    "jobName": NAME,
    "modelId": "m",
    "roleArn": ROLE,
    "submitTime": datetime(2026, 1, 1, tzinfo=UTC),
    "inputDataConfig": {"s3InputDataConfig": {"s3Uri": "s3://b/submit/00007-2/records.jsonl"}},
    "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://b/out/00007-2/"}},
}
OUT = "s3://b/out/00007-2/abcdefghijkl/"
COUNTS = {"totalRecordCount": 9, "processedRecordCount": 5, "successRecordCount": 4}
VIEWS: list[tuple[str, dict[str, Any], BatchState, tuple[str, ...]]] = [
    ("accepted", {"status": "Submitted"}, BatchState.VALIDATING, ()),
    ("being checked", {"status": "Validating"}, BatchState.VALIDATING, ()),
    ("queued for capacity", {"status": "Scheduled"}, BatchState.VALIDATING, ()),
    ("running", {"status": "InProgress", **COUNTS}, BatchState.IN_PROGRESS, ()),
    ("all processed", {"status": "Completed", **COUNTS}, BatchState.COMPLETED, (OUT,)),
    ("ran out of time", {"status": "PartiallyCompleted"}, BatchState.PARTIAL, (OUT,)),
    ("never started", {"status": "Expired"}, BatchState.EXPIRED, ()),
    ("being stopped", {"status": "Stopping"}, BatchState.CANCELLING, ()),
    ("stopped half way", {"status": "Stopped", **COUNTS}, BatchState.CANCELLED, (OUT,)),
    ("stopped early", {"status": "Stopped"}, BatchState.CANCELLED, (f"maybe:{OUT}",)),
    ("refused at once", {"status": "Failed", "totalRecordCount": 0}, BatchState.FAILED, ()),
    ("failed, nobody counted", {"status": "Failed"}, BatchState.FAILED, (f"maybe:{OUT}",)),
    ("failed on the way", {"status": "Failed", **COUNTS}, BatchState.FAILED, (f"maybe:{OUT}",)),
    ("a new word", {"status": "Dreaming"}, BatchState.UNKNOWN, ()),
    ("no word", {}, BatchState.UNKNOWN, ()),
]


@pytest.mark.parametrize(("reason", "given", "state", "files"), VIEWS, ids=[v[0] for v in VIEWS])
def test_states_and_files(
    reason: str, given: dict[str, Any], state: BatchState, files: tuple[str, ...]
) -> None:
    seen = job_view({**JOB, **given})
    assert (seen.state, seen.files) == (state, files), reason
    assert seen.submission == SUBMISSION


def test_an_output_uri_without_its_slash_leads_to_the_same_folder() -> None:
    bare = {"s3OutputDataConfig": {"s3Uri": "s3://b/out/00007-2"}}
    assert job_view({**JOB, "status": "Completed", "outputDataConfig": bare}).files == (OUT,)


def test_counters_that_were_not_measured_are_not_believed() -> None:
    counts = {"processedRecordCount": 0, "successRecordCount": 3, "errorRecordCount": 2}
    seen = job_view({**JOB, "status": "Failed", **counts})
    assert (seen.completed, seen.failed) == (0, 0)


FAILURES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "The file contains less records (3) than the required minimum of: 100",
        {},
        {"code": "MinimumRecords", "quota": False, "nothing_processed": True},
    ),
    (
        "could not validate GetObject permissions to access Amazon S3 bucket",
        {},
        {"code": "Permissions", "nothing_processed": True},
    ),
    ("Quota for batch inference jobs exceeded", {}, {"code": "Quota", "quota": True}),
    (
        "The file contains more records (60000) than the allowed maximum of: 50000",
        {},
        {"exceeds": BatchLimit.RECORDS, "most": 50_000, "quota": False, "nothing_processed": True},
    ),
    (
        "The input file size exceeds the quota of 1 GB",
        {},
        {"exceeds": BatchLimit.BYTES, "most": None, "quota": False},
    ),
    ("Internal server error, try again", {}, {"code": "ServiceFault", "transient": True}),
    ("something new", {}, {"code": "", "quota": False, "transient": False}),
    ("something new", COUNTS, {"nothing_processed": False}),
    ("something new", {"totalRecordCount": 9}, {"nothing_processed": False}),
    ("Internal server error", {}, {"transient": True, "nothing_processed": False}),
    ("Too many requests", {}, {"code": "Quota", "nothing_processed": False}),
    ("", {}, {"message": "", "nothing_processed": False}),
    ("", {"totalRecordCount": 0}, {"message": "", "nothing_processed": True}),
]


@pytest.mark.parametrize(("message", "counts", "want"), FAILURES)
def test_failures_are_known_by_their_sentences(
    message: str, counts: dict[str, Any], want: dict[str, Any]
) -> None:
    failure = job_view({**JOB, "status": "Failed", "message": message, **counts}).failure
    assert {name: getattr(failure, name) for name in want} == want


# ---------------------------------------------------------------- calls


async def test_a_listing_is_newest_first_and_keeps_to_its_question() -> None:
    wire = {k: v for k, v in JOB.items() if k != "submitTime"}
    pages = [
        {"invocationJobSummaries": [{**wire, "status": "InProgress"}], "nextToken": "more"},
        {"invocationJobSummaries": [], "nextToken": "and more"},
        {"invocationJobSummaries": [{**wire, "jobName": "foreign", "status": "Completed"}]},
    ]
    since = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with Stub(lambda _asked: Answer(pages.pop(0))) as stub:
        async with client(stub) as provider:
            first = await provider.page(None, since)
            second = await provider.page(first.cursor, None)
            third = await provider.page(second.cursor, None)
    assert [view.submission for view in first.batches] == [SUBMISSION]
    assert second.batches == ()
    assert [view.submission for view in third.batches] == [None]
    assert third.cursor is None
    assert [asked.query.get("nextToken") for asked in stub.asked] == [None, "more", "and more"]
    for asked in stub.asked:
        assert asked.query["sortBy"] == "CreationTime"
        assert asked.query["sortOrder"] == "Descending"
        assert asked.query["submitTimeAfter"] == "2026-01-01T12:00:00Z"


async def test_a_page_that_repeats_itself_is_no_listing() -> None:
    with Stub(lambda _asked: Answer({"nextToken": "same"})) as stub:
        async with client(stub) as provider:
            page = await provider.page(None, None)
            with pytest.raises(Retry, match="repeats"):
                await provider.page(page.cursor, None)


STOPS: list[tuple[str, Answer, CancelOutcome | type[Exception]]] = [
    ("accepted", Answer({}), CancelOutcome.ACCEPTED),
    (
        "over",
        refused("ValidationException", "The job can't be stopped. State was: Completed"),
        CancelOutcome.ALREADY_OVER,
    ),
    ("over", refused("ConflictException"), CancelOutcome.ALREADY_OVER),
    ("unknown", refused("ResourceNotFoundException", status=404), CancelOutcome.NOT_FOUND),
    ("not a stop's refusal", refused("ValidationException", "malformed identifier"), Retry),
    ("not allowed", refused("AccessDeniedException", status=403), Stalled),
]


@pytest.mark.parametrize(("reason", "answer", "want"), STOPS)
async def test_a_stop_says_what_became_of_it(reason: str, answer: Answer, want: Any) -> None:
    with Stub(lambda _asked: answer) as stub:
        async with client(stub) as provider:
            if isinstance(want, CancelOutcome):
                assert await provider.cancel(ARN) is want, reason
            else:
                with pytest.raises(want):
                    await provider.cancel(ARN)


# ---------------------------------------------------------------- who is asked

IDENTITY = (
    b"<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::111122223333:user/u"
    b"</Arn><UserId>u</UserId><Account>111122223333</Account></GetCallerIdentityResult>"
    b"</GetCallerIdentityResponse>"
)
ASSUMED = (
    b"<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>TAKEN</AccessKeyId>"
    b"<SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>"
    b"<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials><AssumedRoleUser>"
    b"<Arn>arn:aws:sts::444455556666:assumed-role/r/s</Arn><AssumedRoleId>i:s</AssumedRoleId>"
    b"</AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>"
)


def account_server(asked: Asked) -> Answer:
    if asked.path != "/":
        return Answer({"invocationJobSummaries": [], "jobArn": ARN})
    action = parse_qs(asked.body.decode())["Action"][0]
    return Answer(ASSUMED if action == "AssumeRole" else IDENTITY, headers=XML)


def signers(stub: Stub) -> list[str]:
    found = [re.search(r"Credential=([^/]+)/", a.headers["authorization"]) for a in stub.asked]
    return [match[1] for match in found if match]


async def test_nothing_of_the_environment_is_used(poisoned: Callable[[], None]) -> None:
    poisoned()
    with Stub(account_server) as stub:
        async with client(stub) as provider:
            account = await provider.check()
            host = stub.url.removeprefix("http://")
            assert account.id == f"bedrock/{host}/111122223333/us-east-1", "AWS did not say so"
            await provider.submit(request(run_with()), anytime)
    assert set(signers(stub)) == {"OWN"}
    for asked in stub.asked:
        assert "/us-east-1/" in asked.headers["authorization"]
        assert "x-amz-security-token" not in asked.headers


async def test_a_role_is_taken_before_any_call(poisoned: Callable[[], None]) -> None:
    poisoned()
    role = {"assumeRoleARN": "arn:aws:iam::444455556666:role/batch", "externalID": "ext-1"}
    with Stub(account_server) as stub:
        async with client(stub, bedrock=role) as provider:
            await provider.check()
            await provider.page(None, None)
    assert signers(stub) == ["OWN", "TAKEN", "TAKEN", "TAKEN"]
    form = parse_qs(stub.asked[0].body.decode())
    assert form["RoleArn"] == [role["assumeRoleARN"]]
    assert form["ExternalId"] == ["ext-1"]
    assert stub.asked[1].headers["x-amz-security-token"] == "t"


async def test_a_role_that_may_not_be_taken_stalls() -> None:
    denied = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    role = {"assumeRoleARN": "arn:aws:iam::444455556666:role/batch"}
    with Stub(lambda _asked: Answer(denied, 403, XML)) as stub:
        async with client(stub, bedrock=role) as provider:
            with pytest.raises(Stalled) as stalled:
                await provider.check()
            outcome = await provider.submit(request(run_with()), anytime)
    assert stalled.value.reason == "AccessDenied"
    assert isinstance(outcome, Refused)
    assert outcome.kind is RefusalKind.CREDENTIALS


async def test_the_own_identity_is_the_default_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "POD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "POD")
    with Stub(account_server) as stub:
        own = {"credentialsSecretRef": None}
        async with client(stub, bedrock=own, secrets={}, own_identity=True) as provider:
            await provider.check()
    assert set(signers(stub)) == {"POD"}


@pytest.mark.parametrize(
    ("spec", "secrets", "told"),
    [
        ({}, {}, "spec.bedrock"),
        ({"bedrock": {"region": "r"}}, {}, "serviceRoleARN"),
        ({"bedrock": {"region": "r", "serviceRoleARN": ROLE}}, {}, "own identity"),
        (
            {
                "bedrock": {
                    "region": "r",
                    "serviceRoleARN": ROLE,
                    "credentialsSecretRef": {"name": "aws"},
                }
            },
            {"bedrock": {"AWS_SECRET_ACCESS_KEY": "hidden-value"}},
            "has no AWS_ACCESS_KEY_ID",
        ),
    ],
)
def test_settings_that_cannot_be_used_say_which_field(
    spec: dict[str, Any], secrets: dict[str, Any], told: str
) -> None:
    with pytest.raises(Stalled, match=told) as stalled:
        BedrockProvider(spec, secrets, NoStore())
    assert "hidden-value" not in str(stalled.value)


@pytest.mark.parametrize(
    ("endpoint", "sts", "reason"),
    [
        ("", "", "AWS itself"),
        ("https://vpce-1.bedrock.us-east-1.vpce.amazonaws.com", "", "serves Bedrock alone"),
        ("https://bedrock.cn-north-1.amazonaws.com.cn", "", "serves Bedrock alone"),
        ("http://127.0.0.1:4010", "http://127.0.0.1:4010", "a stand-in serves both"),
        ("https://evilamazonaws.com", "https://evilamazonaws.com", "not AWS"),
    ],
)
def test_where_sts_is(endpoint: str, sts: str, reason: str) -> None:
    assert cloud.sts_endpoint(endpoint) == sts, reason


def test_sessions_share_the_descriptions_of_aws() -> None:
    # Each copy is some ten megabytes, and there may be a client per provider object.
    keys = cloud.Credentials("id", "secret")
    loaders = {
        id(cloud.session(given, "us-east-1")._session.get_component("data_loader"))
        for given in (keys, keys, None)
    }
    assert len(loaders) == 1

"""Faults on demand, seen by the real SDKs."""

from __future__ import annotations

import time

import httpx2
import openai as sdk
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from batchinference.sandbox import ControlError
from sandbox.sandbox_requests import (
    CHAT,
    chat_lines,
    converse_records,
    ended,
    job_ended,
    job_request,
    jsonl,
    put_input,
    submit,
)

DROPPED = (ConnectionClosedError, EndpointConnectionError)


@pytest.fixture
def uri(s3) -> str:
    return put_input(s3, converse_records(5), "faults/in.jsonl")


def upload(openai):
    return openai.files.create(file=("in.jsonl", jsonl(chat_lines(2))), purpose="batch")


def test_a_lost_response_is_an_accepted_batch(openai, control):
    control.fault("openai", "lose_response", "batches.create")
    with pytest.raises(sdk.APIConnectionError):
        submit(openai, chat_lines(2), metadata={"run": "x", "ordinal": "1"})
    [submission] = control.submissions("openai")
    assert submission["metadata"] == {"run": "x", "ordinal": "1"}
    [found] = openai.batches.list()
    assert found.id == submission["id"]
    assert ended(openai, found).status == "completed"
    submit(openai, chat_lines(2))  # the fault acted once


def test_a_dropped_request_is_not_accepted(openai, control):
    file = upload(openai)
    control.fault("openai", "drop_request", "batches.create")
    with pytest.raises(sdk.APIConnectionError):
        openai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert control.submissions("openai") == []


def test_an_upload_can_be_lost_and_dropped_too(openai, control):
    control.fault("openai", "lose_response", "files.create", match="in.jsonl")
    with pytest.raises(sdk.APIConnectionError):
        upload(openai)
    assert len(openai.files.list().data) == 1
    control.fault("openai", "drop_request", "files.create")
    with pytest.raises(sdk.APIConnectionError):
        upload(openai)
    assert len(openai.files.list().data) == 1


@pytest.mark.parametrize(("commit", "accepted"), [(False, 0), (True, 1)])
def test_an_error_comes_before_or_after_the_commit(openai, control, commit, accepted):
    file = upload(openai)
    control.fault("openai", "error", "batches.create", status=500, commit=commit)
    with pytest.raises(sdk.InternalServerError):
        openai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert len(control.submissions("openai")) == accepted


def test_an_error_has_the_given_status_code_words_and_headers(openai, control):
    control.fault(
        "openai", "error", "batches.list", status=429, code="slow_down", message="Not so fast.",
        headers={"retry-after": "7"}, times=2, skip=1,
    )  # fmt: skip
    openai.batches.list()
    for _ in range(2):
        with pytest.raises(sdk.RateLimitError, match="Not so fast") as limited:
            openai.batches.list()
        assert limited.value.code == "slow_down"
        assert limited.value.response.headers["retry-after"] == "7"
    openai.batches.list()
    assert control.state(brief=True)["faults"][0]["hits"] == 2


def test_a_rule_hits_only_calls_that_match(openai, control):
    control.fault("openai", "error", "batches.create", match='"run": "b"', times=None)
    submit(openai, chat_lines(1), metadata={"run": "a"})
    control.fault("openai", "error", "batches.retrieve", match="other-run", status=503)
    batch = submit(openai, chat_lines(1), metadata={"run": "other-run"})
    with pytest.raises(sdk.InternalServerError):
        openai.batches.retrieve(batch.id)
    control.clear_faults()
    assert control.state(brief=True)["faults"] == []


@pytest.mark.parametrize(("when", "accepted"), [("before", 0), ("after", 1)])
def test_a_delay_stands_before_or_after_the_commit(openai, control, when, accepted):
    file = upload(openai)
    control.fault("openai", "delay", "batches.create", seconds=2, when=when)
    with pytest.raises(sdk.APITimeoutError):
        openai.with_options(timeout=0.3).batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h"
        )
    assert len(control.submissions("openai")) == accepted


def test_a_truncated_file_ends_before_its_announced_length(openai, control):
    lines = jsonl(chat_lines(5_000))
    file = openai.files.create(file=("in.jsonl", lines), purpose="batch")
    control.fault("openai", "truncate", "files.content", keep_ratio=0.25)
    pieces: list[bytes] = []
    with (
        openai.files.with_streaming_response.content(file.id) as response,
        pytest.raises(httpx2.RemoteProtocolError),
    ):
        pieces.extend(response.iter_bytes())
    got = b"".join(pieces)
    assert 0 < len(got) <= len(lines) // 4
    assert lines.startswith(got)
    assert openai.files.content(file.id).read() == lines


def test_a_quota_fault_accepts_the_batch_and_fails_it(openai, control):
    control.fault("openai", "quota", "batches.create")
    batch = ended(openai, submit(openai, chat_lines(5)))
    assert batch.status == "failed"
    assert batch.errors.data[0].code == "token_limit_exceeded"
    assert ended(openai, submit(openai, chat_lines(5))).status == "completed"


def test_a_fail_fault_names_its_own_code(openai, control):
    control.fault("openai", "fail", "batches.create", code="billing_hard_limit_reached")
    batch = ended(openai, submit(openai, chat_lines(5)))
    assert batch.errors.data[0].code == "billing_hard_limit_reached"


def test_a_lost_answer_of_bedrock_is_an_accepted_job_that_its_token_finds(bedrock, uri, control):
    request = job_request("lost", uri, clientRequestToken="token-1")
    control.fault("bedrock", "lose_response", "CreateModelInvocationJob", match="lost")
    with pytest.raises(DROPPED):
        bedrock.create_model_invocation_job(**request)
    [submission] = control.submissions("bedrock")
    assert bedrock.create_model_invocation_job(**request)["jobArn"] == submission["arn"]
    assert len(control.submissions("bedrock")) == 1


def test_a_dropped_request_of_bedrock_is_no_job(bedrock, uri, control):
    control.fault("bedrock", "drop_request", "CreateModelInvocationJob")
    with pytest.raises(DROPPED):
        bedrock.create_model_invocation_job(**job_request("dropped", uri))
    assert control.submissions("bedrock") == []


@pytest.mark.parametrize(
    ("members", "code", "status"),
    [
        ({"status": 429}, "ThrottlingException", 429),
        ({"status": 500}, "InternalServerException", 500),
        ({"status": 503}, "ServiceUnavailableException", 503),
        ({"status": 403}, "AccessDeniedException", 403),
        ({"status": 400, "code": "ConflictException"}, "ConflictException", 400),
    ],
)
def test_errors_of_bedrock_carry_their_type(bedrock, control, members, code, status):
    control.fault("bedrock", "error", "ListModelInvocationJobs", **members)
    with pytest.raises(ClientError) as refused:
        bedrock.list_model_invocation_jobs()
    assert refused.value.response["Error"]["Code"] == code
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    bedrock.list_model_invocation_jobs()


def test_quota_and_fail_faults_of_bedrock(bedrock, uri, control):
    control.fault("bedrock", "quota", "CreateModelInvocationJob")
    with pytest.raises(ClientError) as refused:
        bedrock.create_model_invocation_job(**job_request("quota", uri))
    assert refused.value.response["Error"]["Code"] == "ServiceQuotaExceededException"
    control.fault("bedrock", "fail", "CreateModelInvocationJob", message="No luck today.")
    arn = bedrock.create_model_invocation_job(**job_request("quota", uri))["jobArn"]
    job = job_ended(bedrock, arn)
    assert (job["status"], job["message"]) == ("Failed", "No luck today.")


def test_bedrock_is_throttled(bedrock, control):
    control.settings(bedrock={"requests_per_s": 1})
    bedrock.list_model_invocation_jobs()
    with pytest.raises(ClientError) as refused:
        bedrock.list_model_invocation_jobs()
    assert refused.value.response["Error"]["Code"] == "ThrottlingException"


def test_s3_reads_can_be_cut_and_refused(s3, control):
    data = jsonl(chat_lines(2_000))
    s3.put_object(Bucket="team-data", Key="cut.jsonl", Body=data)
    control.fault("s3", "truncate", "GetObject", match="cut.jsonl", keep_bytes=1000)
    body = s3.get_object(Bucket="team-data", Key="cut.jsonl")["Body"]
    with pytest.raises((IncompleteReadError, ResponseStreamingError)):
        body.read()
    body.close()
    control.fault("s3", "error", "GetObject", status=503)
    with pytest.raises(ClientError) as refused:
        s3.get_object(Bucket="team-data", Key="cut.jsonl")
    assert refused.value.response["Error"]["Code"] == "SlowDown"
    assert s3.get_object(Bucket="team-data", Key="cut.jsonl")["Body"].read() == data


def test_s3_writes_can_be_lost_and_dropped(s3, control):
    control.fault("s3", "lose_response", "PutObject", match="lost")
    with pytest.raises(DROPPED):
        s3.put_object(Bucket="team-data", Key="lost", Body=b"x")
    assert s3.get_object(Bucket="team-data", Key="lost")["Body"].read() == b"x"
    control.fault("s3", "drop_request", "PutObject")
    with pytest.raises(DROPPED):
        s3.put_object(Bucket="team-data", Key="dropped", Body=b"x")
    with pytest.raises(ClientError):
        s3.head_object(Bucket="team-data", Key="dropped")
    control.fault("s3", "error", "PutObject", status=500, commit=True)
    with pytest.raises(ClientError):
        s3.put_object(Bucket="team-data", Key="done-anyway", Body=b"x")
    s3.head_object(Bucket="team-data", Key="done-anyway")


def test_s3_can_be_slow(sandbox, s3, control):
    control.fault("s3", "delay", "HeadBucket", seconds=0.3)
    begun = time.monotonic()
    s3.head_bucket(Bucket="team-data")
    assert time.monotonic() - begun >= 0.3


def test_only_one_of_many_conditional_writes_wins(s3):
    from concurrent.futures import ThreadPoolExecutor

    def write(number: int) -> bool:
        try:
            s3.put_object(
                Bucket="team-data", Key="claims/one", Body=str(number).encode(), IfNoneMatch="*"
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(write, range(16))) == 1


def test_calls_are_counted_by_operation(openai, bedrock, s3, uri, control):
    submit(openai, chat_lines(1))
    bedrock.list_model_invocation_jobs()
    counted = control.state(brief=True)["calls"]
    assert counted["openai"] == {"files.create": 1, "batches.create": 1}
    assert counted["bedrock"] == {"ListModelInvocationJobs": 1}
    assert counted["s3"] == {"PutObject": 1}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"kind": "explode", "provider": "openai"}, "Invalid enum"),
        ({"kind": "error", "provider": "azure"}, "Invalid enum"),
        ({"kind": "error", "provider": "openai", "often": 3}, "often"),
        ({"kind": "error", "provider": "s3", "often": 3}, "often"),
    ],
)
def test_rules_that_make_no_sense_are_refused(control, rule, words):
    with pytest.raises(ControlError, match=words):
        control.fault(**rule)


def test_settings_that_do_not_exist_are_refused_and_change_nothing(control):
    with pytest.raises(ControlError, match="no such setting"):
        control.settings(openai={"in_progress_s": 9}, bedrock={"speed": 1})
    with pytest.raises(ControlError, match=r"bedrock|int"):
        control.settings(openai={"in_progress_s": 9}, bedrock={"min_records": "many"})
    assert control.state(brief=True)["settings"]["openai"]["in_progress_s"] == 0.05


def test_reset_forgets_everything_and_goes_back_to_the_settings_of_the_start(openai, control):
    control.hold()
    control.settings(openai={"in_progress_s": 9})
    control.fault("openai", "error", "batches.list", times=None)
    submit(openai, chat_lines(1))
    control.reset()
    state = control.state()
    assert state["openai"] == {"submissions": [], "files": []}
    assert (state["holds"], state["faults"], state["calls"]["s3"]) == ([], [], {})
    assert state["settings"]["openai"]["in_progress_s"] == 0.05
    assert list(openai.batches.list()) == []


def test_waiting_for_what_never_comes_says_what_stands(control):
    with pytest.raises(TimeoutError, match="counts"):
        control.wait_for(lambda state: False, timeout_s=0.05)


def test_read_timeouts_are_real(sandbox, control):
    from sandbox.conftest import aws

    control.fault("bedrock", "delay", "ListModelInvocationJobs", seconds=2)
    client = aws(sandbox, "bedrock", read_timeout=0.2)
    with pytest.raises(ReadTimeoutError):
        client.list_model_invocation_jobs()
    client.close()

from __future__ import annotations

import pytest
from botocore.exceptions import ClientError

from sandbox.conftest import aws
from sandbox.sandbox_requests import (
    CLAUDE,
    NOVA,
    converse_records,
    job_ended,
    job_lines,
    job_request,
    jsonl,
    manifest,
    put_input,
    until,
)


@pytest.fixture
def uri(s3) -> str:
    return put_input(s3, converse_records(10), "in/in.jsonl")


def refusal(call, **members):
    with pytest.raises(ClientError) as refused:
        call(**members)
    answer = refused.value.response
    return answer["Error"]["Code"], answer["Error"]["Message"], answer["ResponseMetadata"]


def status_of(bedrock, arn):
    return bedrock.get_model_invocation_job(jobIdentifier=arn)["status"]


def test_a_job_reads_its_input_from_s3_and_writes_output_and_manifest(bedrock, s3, uri):
    answer = bedrock.create_model_invocation_job(
        **job_request("first", uri, tags=[{"key": "run", "value": "x"}])
    )
    arn = answer["jobArn"]
    assert len(arn.rpartition("/")[2]) == 12
    job = job_ended(bedrock, arn)
    assert job["status"] == "Completed"
    assert (job["totalRecordCount"], job["successRecordCount"]) == (10, 10)
    assert (job["processedRecordCount"], job["errorRecordCount"]) == (10, 0)
    assert job["endTime"] >= job["submitTime"]
    assert job["timeoutDurationInHours"] == 24
    lines = job_lines(s3, arn)
    ids = [line["recordId"] for line in lines]
    assert sorted(ids) == [f"r{number:010d}" for number in range(10)]
    assert ids != sorted(ids)
    line = next(line for line in lines if line["recordId"] == "r0000000003")
    assert line["modelInput"] == converse_records(10)[3]["modelInput"]
    assert line["modelOutput"]["output"]["message"]["content"] == [{"text": "Summary: hello 3"}]
    assert line["modelOutput"]["usage"]["inputTokens"] == 2
    assert manifest(s3, arn) == {
        "totalRecordCount": 10,
        "processedRecordCount": 10,
        "successRecordCount": 10,
        "errorRecordCount": 0,
        "inputTokenCount": 20,
        "outputTokenCount": 30,
    }


def test_a_job_passes_through_every_state_and_counts_nothing_before_it_runs(bedrock, uri, control):
    control.hold("bedrock", "Scheduled")
    arn = bedrock.create_model_invocation_job(**job_request("states", uri))["jobArn"]
    until(lambda: status_of(bedrock, arn), lambda status: status == "Scheduled")
    job = bedrock.get_model_invocation_job(jobIdentifier=arn)
    assert job["totalRecordCount"] == 0
    control.release()
    job_ended(bedrock, arn)
    history = control.submissions("bedrock")[0]["history"]
    assert [entry["status"] for entry in history] == [
        "Submitted",
        "Validating",
        "Scheduled",
        "InProgress",
        "Completed",
    ]


def test_a_folder_means_every_jsonl_file_below_it(bedrock, s3):
    put_input(s3, converse_records(3), "folder/a.jsonl")
    put_input(s3, converse_records(4), "folder/deep/b.jsonl")
    s3.put_object(Bucket="team-data", Key="folder/readme.txt", Body=b"not a record")
    request = job_request("folder", "s3://team-data/folder/")
    arn = bedrock.create_model_invocation_job(**request)["jobArn"]
    assert job_ended(bedrock, arn)["totalRecordCount"] == 7
    assert len(job_lines(s3, arn, "a.jsonl")) == 3
    assert len(job_lines(s3, arn, "deep/b.jsonl")) == 4


def test_records_without_an_id_get_one_of_eleven_letters_and_digits(bedrock, s3):
    records = [{"modelInput": record["modelInput"]} for record in converse_records(3)]
    uri = put_input(s3, records, "no-ids/in.jsonl")
    arn = bedrock.create_model_invocation_job(**job_request("no-ids", uri))["jobArn"]
    job_ended(bedrock, arn)
    ids = {line["recordId"] for line in job_lines(s3, arn)}
    assert len(ids) == 3
    assert all(len(one) == 11 and one.isalnum() for one in ids)


def test_a_job_whose_every_record_fails_is_completed(bedrock, s3):
    records = [{"recordId": f"r{n}", "modelInput": {"prompt": "hello"}} for n in range(4)]
    uri = put_input(s3, records, "bad/in.jsonl")
    arn = bedrock.create_model_invocation_job(**job_request("bad", uri))["jobArn"]
    job = job_ended(bedrock, arn)
    assert (job["status"], job["errorRecordCount"]) == ("Completed", 4)
    assert all(line["error"]["errorCode"] == 400 for line in job_lines(s3, arn))


def test_the_same_token_returns_the_same_job_and_counts_one_submission(bedrock, uri, control):
    request = job_request("token", uri, clientRequestToken="run-1-shard-0-1")
    first = bedrock.create_model_invocation_job(**request)["jobArn"]
    assert bedrock.create_model_invocation_job(**request)["jobArn"] == first
    [submission] = control.submissions("bedrock")
    assert (submission["clientRequestToken"], submission["replays"]) == ("run-1-shard-0-1", 1)
    job_ended(bedrock, first)
    assert bedrock.create_model_invocation_job(**request)["jobArn"] == first


def test_the_same_name_with_another_token_conflicts(bedrock, uri):
    bedrock.create_model_invocation_job(**job_request("twice", uri))
    code, text, meta = refusal(
        bedrock.create_model_invocation_job, **job_request("twice", uri, clientRequestToken="b")
    )
    assert (code, meta["HTTPStatusCode"]) == ("ConflictException", 400)
    assert "currently in use" in text


def test_stop_keeps_what_was_done(bedrock, s3, uri, control):
    control.hold("bedrock")
    arn = bedrock.create_model_invocation_job(**job_request("stop", uri))["jobArn"]
    until(
        lambda: bedrock.get_model_invocation_job(jobIdentifier=arn),
        lambda job: job["processedRecordCount"] == 5,
    )
    control.hold("bedrock", "Stopping")
    bedrock.stop_model_invocation_job(jobIdentifier=arn)
    until(lambda: status_of(bedrock, arn), lambda status: status == "Stopping")
    assert refusal(bedrock.stop_model_invocation_job, jobIdentifier=arn)[0] == "ConflictException"
    control.release()
    job = job_ended(bedrock, arn)
    assert (job["status"], job["successRecordCount"]) == ("Stopped", 5)
    assert len(job_lines(s3, arn)) == 5
    assert manifest(s3, arn)["processedRecordCount"] == 5
    assert control.submissions("bedrock")[0]["cancels"] == 1


@pytest.mark.parametrize("state", ["Submitted", "Validating", "Scheduled"])
def test_stop_before_the_run_leaves_no_output(bedrock, s3, uri, control, state):
    control.hold("bedrock", state)
    arn = bedrock.create_model_invocation_job(**job_request(f"early-{state}", uri))["jobArn"]
    until(lambda: status_of(bedrock, arn), lambda status: status == state)
    bedrock.stop_model_invocation_job(jobIdentifier=arn[-12:])
    assert job_ended(bedrock, arn)["status"] == "Stopped"
    listed = s3.list_objects_v2(Bucket="team-data", Prefix=f"out/{arn[-12:]}/")
    assert listed["KeyCount"] == 0


def test_stop_of_an_ended_job_says_how_it_ended(bedrock, uri):
    arn = bedrock.create_model_invocation_job(**job_request("late-stop", uri))["jobArn"]
    job_ended(bedrock, arn)
    code, text, _ = refusal(bedrock.stop_model_invocation_job, jobIdentifier=arn)
    assert code == "ValidationException"
    assert "State was: Completed" in text


@pytest.mark.parametrize(
    ("state", "end"), [("Scheduled", "Expired"), ("InProgress", "PartiallyCompleted")]
)
def test_a_job_that_runs_out_of_time_keeps_what_was_done(bedrock, s3, uri, control, state, end):
    control.hold("bedrock", state)
    arn = bedrock.create_model_invocation_job(
        **job_request(f"time-{state}", uri, timeoutDurationInHours=48)
    )["jobArn"]
    until(lambda: status_of(bedrock, arn), lambda status: status == state)
    control.advance(25 * 3600)
    assert status_of(bedrock, arn) == state
    control.advance(24 * 3600)
    assert job_ended(bedrock, arn)["status"] == end
    if end == "PartiallyCompleted":
        assert len(job_lines(s3, arn)) == 5


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("jobName", "under_score", "pattern"),
        ("jobName", "x" * 64, "too long"),
        ("roleArn", "arn:aws:iam::12:role/x", "no account number"),
        ("modelId", "bad model", "pattern"),
        ("clientRequestToken", "ends-", "must not end in a hyphen"),
        ("modelInvocationType", "Chat", "enum"),
        ("timeoutDurationInHours", 169, "too long"),
        ("tags", [{"key": "bad?", "value": "x"}], "pattern in a list"),
        ("inputDataConfig", {"s3InputDataConfig": {"s3Uri": "s3://b/dt=2026/x.jsonl"}}, "pattern"),
        ("inputDataConfig", {"s3InputDataConfig": {"s3Uri": "s3://bucket/x", "s3InputFormat": "CSV"}},
         "enum in a structure"),
        ("outputDataConfig", {"s3OutputDataConfig": {"s3Uri": "s3://bucket/a//b"}}, "pattern"),
        ("vpcConfig", {"subnetIds": ["s"] * 17, "securityGroupIds": ["g"]}, "too many"),
    ],
)  # fmt: skip
def test_what_botocore_lets_pass_the_service_refuses(bedrock, uri, control, name, value, reason):
    code, text, meta = refusal(
        bedrock.create_model_invocation_job, **job_request("fine", uri, **{name: value})
    )
    assert (code, meta["HTTPStatusCode"]) == ("ValidationException", 400), reason
    assert text.startswith("1 validation error detected: "), reason
    assert name in text, reason
    assert control.submissions("bedrock") == []


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("amazon.no-such-model-v1:0", "model identifier is invalid"),
        ("acme.brain-v1:0", "model identifier is invalid"),
        ("cohere.command-r-v1:0", "does not support batch"),
        ("amazon.titan-text-express-v1", "does not support batch"),
        (CLAUDE.removeprefix("us."), "inference profile"),
    ],
)
def test_models_that_cannot_be_batched_are_refused_at_creation(bedrock, uri, model, text):
    code, said, _ = refusal(
        bedrock.create_model_invocation_job, **job_request("model", uri, modelId=model)
    )
    assert code == "ValidationException"
    assert text in said
    assert model in said or "identifier" in said


def test_a_role_of_another_account_is_refused(bedrock, uri):
    code, _, meta = refusal(
        bedrock.create_model_invocation_job,
        **job_request("role", uri, roleArn="arn:aws:iam::999999999999:role/x"),
    )
    assert (code, meta["HTTPStatusCode"]) == ("AccessDeniedException", 403)


@pytest.mark.parametrize(
    ("key", "content", "settings", "text", "reason"),
    [
        ("v/few.jsonl", jsonl(converse_records(99)), {"min_records": 100},
         "contains less records (99) than the required minimum of: 100", "too few"),
        ("v/many.jsonl", jsonl(converse_records(5)), {"max_records": 4},
         "contains more records (5)", "too many"),
        ("v/per-file.jsonl", jsonl(converse_records(5)), {"max_records_per_file": 4},
         "per file", "too many in a file"),
        ("v/big.jsonl", jsonl(converse_records(5)), {"max_file_bytes": 10}, "10", "file too big"),
        ("v/job.jsonl", jsonl(converse_records(5)), {"max_job_bytes": 10}, "10", "job too big"),
        ("v/bad.jsonl", jsonl([*converse_records(5), b"{nonsense"]), {}, "line 6", "not JSON"),
        ("v/shape.jsonl", jsonl([*converse_records(5), {"x": 1}]), {}, "modelInput", "no body"),
        ("v/text/in.txt", jsonl(converse_records(5)), {}, ".jsonl", "no .jsonl file"),
    ],
)  # fmt: skip
def test_bad_input_fails_the_job_after_creation(
    bedrock, s3, control, key, content, settings, text, reason
):
    control.settings(bedrock=settings)
    s3.put_object(Bucket="team-data", Key=key, Body=content)
    uri = f"s3://team-data/{key}" if key.endswith(".jsonl") else "s3://team-data/v/text/"
    arn = bedrock.create_model_invocation_job(**job_request("bad-input", uri))["jobArn"]
    job = job_ended(bedrock, arn)
    assert job["status"] == "Failed", reason
    assert text in job["message"], reason
    assert (job["totalRecordCount"], job["successRecordCount"]) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "action"),
    [
        ({"inputDataConfig": {"s3InputDataConfig": {"s3Uri": "s3://nowhere/in.jsonl"}}}, "GetObject"),
        ({"inputDataConfig": {"s3InputDataConfig": {"s3Uri": "s3://team-data/none.jsonl"}}},
         "GetObject"),
        ({"outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://nowhere/out/"}}}, "PutObject"),
        ({"outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://team-data/out/",
          "s3BucketOwner": "999999999999"}}}, "PutObject"),
    ],
)  # fmt: skip
def test_a_bucket_that_cannot_be_reached_fails_the_job(bedrock, uri, changes, action):
    arn = bedrock.create_model_invocation_job(**job_request("bucket", uri, **changes))["jobArn"]
    job = job_ended(bedrock, arn)
    assert job["status"] == "Failed"
    assert f"Could not validate {action} permissions" in job["message"]


def test_lists_filter_sort_and_page(bedrock, uri, control):
    arns = [
        bedrock.create_model_invocation_job(**job_request(f"team-{n}", uri))["jobArn"]
        for n in range(5)
    ]
    for arn in arns:
        job_ended(bedrock, arn)
    control.hold("bedrock")
    live = bedrock.create_model_invocation_job(**job_request("other-9", uri))["jobArn"]
    until(lambda: status_of(bedrock, live), lambda status: status == "InProgress")

    def listed(**query):
        pages = bedrock.get_paginator("list_model_invocation_jobs").paginate(**query)
        return [job["jobArn"] for page in pages for job in page["invocationJobSummaries"]]

    newest_first = [live, *reversed(arns)]
    assert listed(sortBy="CreationTime", sortOrder="Descending") == newest_first
    assert listed(sortBy="CreationTime", sortOrder="Ascending") == newest_first[::-1]
    assert listed(maxResults=2, sortBy="CreationTime", sortOrder="Descending") == newest_first
    assert listed(nameContains="team", sortOrder="Ascending") == arns
    assert listed(statusEquals="InProgress") == [live]
    middle = bedrock.get_model_invocation_job(jobIdentifier=arns[2])["submitTime"]
    assert set(listed(submitTimeAfter=middle)) == {*arns[3:], live}
    assert set(listed(submitTimeBefore=middle)) == set(arns[:2])
    page = bedrock.list_model_invocation_jobs(maxResults=1)
    assert page["nextToken"]
    summary = page["invocationJobSummaries"][0]
    assert summary["clientRequestToken"]
    assert summary["totalRecordCount"] == 10


@pytest.mark.parametrize(
    "query",
    [{"maxResults": 1001}, {"statusEquals": "Done"}, {"nextToken": "nonsense"},
     {"sortBy": "Name"}, {"nameContains": "a_b"}],
)  # fmt: skip
def test_wrong_list_queries_are_refused(bedrock, query):
    assert refusal(bedrock.list_model_invocation_jobs, **query)[0] == "ValidationException"


def test_a_new_job_is_missing_from_lists_while_they_lag(bedrock, uri, control):
    control.settings(bedrock={"list_lag_s": 60})
    arn = bedrock.create_model_invocation_job(**job_request("lag", uri))["jobArn"]
    assert bedrock.get_model_invocation_job(jobIdentifier=arn)["jobArn"] == arn
    assert bedrock.list_model_invocation_jobs()["invocationJobSummaries"] == []
    control.advance(61)
    assert len(bedrock.list_model_invocation_jobs()["invocationJobSummaries"]) == 1


def test_jobs_belong_to_an_account_and_a_region(sandbox, bedrock, uri):
    arn = bedrock.create_model_invocation_job(**job_request("mine", uri))["jobArn"]
    for stranger in (
        aws(sandbox, "bedrock", "neighbour"),
        aws(sandbox, "bedrock", region="eu-west-1"),
    ):
        assert stranger.list_model_invocation_jobs()["invocationJobSummaries"] == []
        code, _, meta = refusal(stranger.get_model_invocation_job, jobIdentifier=arn)
        assert (code, meta["HTTPStatusCode"]) == ("ResourceNotFoundException", 404)
        stranger.close()


def test_malformed_and_unknown_identifiers_differ(bedrock):
    assert refusal(bedrock.get_model_invocation_job, jobIdentifier="No!")[0] == (
        "ValidationException"
    )
    assert refusal(bedrock.get_model_invocation_job, jobIdentifier="a" * 12)[0] == (
        "ResourceNotFoundException"
    )


def test_job_slots_of_a_model_are_limited(bedrock, uri, control):
    control.settings(bedrock={"max_active_jobs": 1})
    control.hold("bedrock")
    first = bedrock.create_model_invocation_job(**job_request("slot-1", uri))["jobArn"]
    code, text, meta = refusal(bedrock.create_model_invocation_job, **job_request("slot-2", uri))
    assert (code, meta["HTTPStatusCode"]) == ("ServiceQuotaExceededException", 400)
    assert NOVA in text
    other = job_request("slot-3", uri, modelId="us.amazon.nova-micro-v1:0")
    bedrock.create_model_invocation_job(**other)
    control.release()
    job_ended(bedrock, first)
    bedrock.create_model_invocation_job(**job_request("slot-2", uri))


def test_a_foreign_access_key_is_refused_everywhere(sandbox):
    for service, call, code in (
        ("bedrock", "list_model_invocation_jobs", "UnrecognizedClientException"),
        ("sts", "get_caller_identity", "InvalidClientTokenId"),
        ("s3", "list_buckets", "InvalidAccessKeyId"),
    ):
        client = aws(sandbox, service, "stranger")
        found, _, meta = refusal(getattr(client, call))
        assert (found, meta["HTTPStatusCode"]) == (code, 403)
        client.close()


def test_sts_tells_the_account_and_lends_roles(sandbox):
    sts = aws(sandbox, "sts", "neighbour")
    assert sts.get_caller_identity()["Account"] == "210987654321"
    lent = sts.assume_role(RoleArn="arn:aws:iam::111122223333:role/team", RoleSessionName="session")
    assumed = aws(sandbox, "sts", lent["Credentials"]["AccessKeyId"])
    assert assumed.get_caller_identity()["Account"] == "111122223333"
    sts.close()
    assumed.close()


def test_a_large_job_is_answered_in_another_process(bedrock, s3):
    uri = put_input(s3, converse_records(12_000), "large/in.jsonl")
    arn = bedrock.create_model_invocation_job(**job_request("large", uri))["jobArn"]
    assert job_ended(bedrock, arn)["successRecordCount"] == 12_000
    assert len(job_lines(s3, arn)) == 12_000

"""Magic words in prompts, through the whole of a batch."""

from __future__ import annotations

import json

import pytest

from sandbox.sandbox_requests import (
    chat_lines,
    converse_records,
    job_ended,
    job_lines,
    job_request,
    lines_of,
    manifest,
    put_input,
    raw_lines,
    run,
)


def test_expire_ends_the_batch_expired_with_everything_else_done(openai):
    batch = run(openai, chat_lines(5, "SANDBOX:expire"))
    assert batch.status == "expired"
    assert len(lines_of(openai, batch.output_file_id)) == 4
    [line] = lines_of(openai, batch.error_file_id)
    assert (line["custom_id"], line["error"]["code"]) == ("r0", "batch_expired")


def test_once_acts_in_the_first_batch_that_carries_the_prompt_only(openai):
    lines = chat_lines(2, "SANDBOX:expire-once")
    assert run(openai, lines).status == "expired"
    lines[0]["custom_id"] = "another-id"
    assert run(openai, lines).status == "completed"
    assert run(openai, chat_lines(2, "SANDBOX:expire-once, please")).status == "expired"


def test_missing_leaves_no_line_though_the_counts_say_completed(openai):
    batch = run(openai, chat_lines(5, "SANDBOX:missing"))
    assert batch.status == "completed"
    assert batch.request_counts.completed == 5
    assert len(lines_of(openai, batch.output_file_id)) == 4


@pytest.mark.parametrize(("word", "error"), [("broken-json", json.JSONDecodeError),
                                             ("broken-utf8", UnicodeDecodeError)])  # fmt: skip
def test_broken_lines_are_broken_and_alone_so(openai, word, error):
    batch = run(openai, chat_lines(5, f"SANDBOX:{word}"))
    broken = 0
    for line in raw_lines(openai, batch.output_file_id):
        try:
            json.loads(line.decode())
        except error:
            broken += 1
    assert broken == 1


def test_status_0_has_neither_error_nor_body(openai):
    batch = run(openai, chat_lines(1, "SANDBOX:status-0"))
    [line] = lines_of(openai, batch.error_file_id)
    assert line["error"] is None
    assert line["response"] == {"status_code": 0, "request_id": "", "body": {}}


def test_duplicate_and_stranger_add_lines(openai):
    batch = run(openai, chat_lines(2, "SANDBOX:duplicate", "SANDBOX:stranger"))
    ids = sorted(line["custom_id"] for line in lines_of(openai, batch.output_file_id))
    assert ids[:3] == ["r0", "r0", "r1"]
    assert ids[3].startswith("stranger-")


@pytest.mark.parametrize(
    ("word", "words", "finish"),
    [("length", 2, "length"), ("empty", 0, "stop"), ("filter", 0, "content_filter"),
     ("long-300", 300, "stop")],
)  # fmt: skip
def test_answers_take_the_form_asked_for(openai, word, words, finish):
    batch = run(openai, chat_lines(1, f"one two SANDBOX:{word}"))
    [line] = lines_of(openai, batch.output_file_id)
    choice = line["response"]["body"]["choices"][0]
    assert len(choice["message"]["content"].split()) == words
    assert choice["finish_reason"] == finish


def test_max_tokens_cuts_an_answer(openai):
    [line] = chat_lines(1, "one two three four five")
    line["body"]["max_tokens"] = 3
    batch = run(openai, [line])
    [answered] = lines_of(openai, batch.output_file_id)
    choice = answered["response"]["body"]["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Summary: one two", "length")


def test_the_words_work_in_bedrock_records_too(bedrock, s3):
    texts = [f"SANDBOX:{word}" for word in ("error-429", "missing", "length", "duplicate")]
    uri = put_input(s3, converse_records(8, *texts), "spells/in.jsonl")
    arn = bedrock.create_model_invocation_job(**job_request("spells", uri))["jobArn"]
    job = job_ended(bedrock, arn)
    assert (job["status"], job["errorRecordCount"]) == ("Completed", 1)
    lines = job_lines(s3, arn)
    by_id: dict[str, list[dict[str, object]]] = {}
    for line in lines:
        by_id.setdefault(line["recordId"], []).append(line)
    assert by_id["r0000000000"][0]["error"]["errorCode"] == 429
    assert "r0000000001" not in by_id
    assert by_id["r0000000002"][0]["modelOutput"]["stopReason"] == "max_tokens"
    assert len(by_id["r0000000003"]) == 2


@pytest.mark.parametrize("unreached", ["absent", "expired-line"])
def test_expire_ends_a_job_partially_completed(bedrock, s3, control, unreached):
    control.settings(bedrock={"unreached": unreached})
    uri = put_input(s3, converse_records(5, "SANDBOX:expire"), "partial/in.jsonl")
    arn = bedrock.create_model_invocation_job(**job_request("partial", uri))["jobArn"]
    assert job_ended(bedrock, arn)["status"] == "PartiallyCompleted"
    lines = job_lines(s3, arn)
    if unreached == "absent":
        assert len(lines) == 4
    else:
        [line] = [line for line in lines if "error" in line]
        assert line["recordId"] == "r0000000000"
        assert line["error"]["expired"] is True
    assert manifest(s3, arn)["processedRecordCount"] == 4

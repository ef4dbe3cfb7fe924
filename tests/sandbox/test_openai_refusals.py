"""What OpenAI refuses: on the call, and later in validation."""

from __future__ import annotations

from typing import Any

import openai as sdk
import pytest

from sandbox.sandbox_requests import CHAT, chat_line, chat_lines, ended, jsonl, run, submit


def test_a_wrong_key_gets_the_real_401(sandbox):
    with (
        sdk.OpenAI(api_key="sk-wrong-key", base_url=sandbox.openai_base_url) as client,
        pytest.raises(sdk.AuthenticationError) as refused,
    ):
        client.batches.list()
    assert refused.value.code == "invalid_api_key"
    assert refused.value.type == "invalid_request_error"
    assert "Incorrect API key provided: sk-w" in refused.value.message
    assert "wrong" not in refused.value.message


@pytest.mark.parametrize(
    ("content", "name", "reason"),
    [
        (b"", "in.jsonl", "empty"),
        (b"hello\nworld\n", "in.jsonl", "no line is JSON"),
        (b"[1]\n", "in.jsonl", "no line is an object"),
        (jsonl([chat_line()]), "in.txt", "not called .jsonl"),
    ],
)
def test_a_file_that_is_no_jsonl_is_refused_at_upload(openai, content, name, reason):
    with pytest.raises(sdk.BadRequestError) as refused:
        openai.files.create(file=(name, content), purpose="batch")
    assert refused.value.param == "file", reason


def test_a_file_above_the_limit_is_refused_at_upload(openai, control):
    control.settings(openai={"max_batch_file_bytes": 100})
    with pytest.raises(sdk.BadRequestError, match="100 at most"):
        openai.files.create(file=("in.jsonl", jsonl(chat_lines(5))), purpose="batch")


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"purpose": "fun"}, "purpose", "unknown purpose"),
        ({"purpose": "batch", "expires_after": {"anchor": "created_at", "seconds": 60}},
         "expires_after.seconds", "shorter than an hour"),
        ({"purpose": "batch", "expires_after": {"anchor": "now", "seconds": 3600}},
         "expires_after.anchor", "unknown anchor"),
    ],
)  # fmt: skip
def test_wrong_upload_fields_are_named(openai, fields: Any, param, reason):
    with pytest.raises(sdk.BadRequestError) as refused:
        openai.files.create(file=("in.jsonl", jsonl(chat_lines(1))), **fields)
    assert refused.value.param == param, reason


@pytest.mark.parametrize(
    ("changes", "code", "param", "reason"),
    [
        ({"endpoint": "/v1/nonsense"}, "invalid_value", "endpoint", "unknown endpoint"),
        ({"completion_window": "7d"}, "invalid_value", "completion_window", "only 24h"),
        ({"metadata": {"k": 1}}, "invalid_type", "metadata.k", "a number as value"),
        ({"metadata": {"k": "v" * 513}}, "string_above_max_length", "metadata.k", "value too long"),
        ({"metadata": {"k" * 65: "v"}}, "string_above_max_length", "metadata." + "k" * 65,
         "key too long"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "object_above_max_properties", "metadata",
         "too many pairs"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "invalid_value",
         "output_expires_after.seconds", "shorter than an hour"),
        ({"extra_body": {"priority": "high"}}, "unknown_parameter", "priority", "no such member"),
    ],
)  # fmt: skip
def test_a_wrong_create_is_refused_on_the_call(openai, control, changes, code, param, reason):
    request = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    with pytest.raises(sdk.BadRequestError) as refused:
        openai.batches.create(**{**request, **changes})
    assert (refused.value.code, refused.value.param) == (code, param), reason
    assert control.submissions("openai") == []


@pytest.mark.parametrize("name", ["input_file_id", "endpoint", "completion_window"])
def test_a_missing_create_parameter_is_named(openai, name):
    request = {"input_file_id": "file-x", "endpoint": CHAT, "completion_window": "24h"}
    del request[name]
    with pytest.raises(sdk.BadRequestError) as refused:
        openai.post("/batches", body=request, cast_to=object)
    assert (refused.value.code, refused.value.param) == ("missing_required_parameter", name)


def test_unknown_ids_and_cursors_and_late_cancels_are_refused(openai):
    with pytest.raises(sdk.NotFoundError):
        openai.batches.retrieve("batch_none")
    with pytest.raises(sdk.NotFoundError):
        openai.batches.cancel("batch_none")
    with pytest.raises(sdk.BadRequestError):
        openai.batches.list(after="batch_none")
    with pytest.raises(sdk.BadRequestError, match="maximum value"):
        openai.batches.list(limit=101)
    with pytest.raises(sdk.BadRequestError, match="minimum value"):
        openai.files.list(limit=0)
    over = run(openai, chat_lines(1))
    with pytest.raises(sdk.ConflictError, match="Cannot cancel a batch with status"):
        openai.batches.cancel(over.id)


def _body(**changes: Any) -> dict[str, Any]:
    return {**chat_line()["body"], **changes}


@pytest.mark.parametrize(
    ("bad", "code", "param", "reason"),
    [
        (b"{nonsense", "invalid_json_line", None, "not JSON"),
        (b"", "invalid_json_line", None, "an empty line in the middle"),
        (b"[]", "invalid_json_line", None, "not an object"),
        (chat_line(custom_id=None), "missing_required_parameter", "custom_id", "no custom_id"),
        (chat_line(method=None), "missing_required_parameter", "method", "no method"),
        (chat_line(url=None), "missing_required_parameter", "url", "no url"),
        (chat_line(body=None), "missing_required_parameter", "body", "no body"),
        (chat_line(method="GET"), "invalid_method", "method", "only POST"),
        (chat_line(url="/v1/responses"), "invalid_url", "url", "another endpoint's url"),
        (chat_line("first"), "duplicate_custom_id", "custom_id", "an id twice"),
        (chat_line(body=_body(model="gpt-4o")), "mismatched_model", "body.model", "two models"),
        (chat_line(body=_body(model="no-such-model")), "model_not_found", "body.model",
         "unknown model"),
        (chat_line(body=_body(stream=True)), "streaming_unsupported", "body.stream", "streaming"),
        (chat_line(body=_body(model=None)), "invalid_request", "body.model", "no model"),
        (chat_line(body=_body(messages=None)), "invalid_request", "body.messages", "no messages"),
    ],
)  # fmt: skip
def test_a_bad_line_fails_the_batch_in_validation(openai, control, bad, code, param, reason):
    accepted = submit(openai, [chat_line("first"), bad, chat_line("last")])
    assert accepted.status == "validating"
    batch = ended(openai, accepted)
    assert batch.status == "failed", reason
    [problem] = batch.errors.data
    assert (problem.code, problem.param, problem.line) == (code, param, 2), reason
    assert problem.message
    assert batch.output_file_id is None
    assert batch.request_counts.total == 0
    assert control.submissions("openai")[0]["errors"] == [code]


def test_every_bad_line_has_its_entry(openai):
    batch = run(openai, [chat_line("a"), b"{", chat_line("b", url="/v1/x"), chat_line("a")])
    assert [(entry.line, entry.code) for entry in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "invalid_url"),
        (4, "duplicate_custom_id"),
    ]


def test_a_batch_with_an_unknown_file_is_accepted_and_fails(openai):
    batch = openai.batches.create(input_file_id="file-none", endpoint=CHAT, completion_window="24h")
    over = ended(openai, batch)
    assert (over.errors.data[0].code, over.errors.data[0].param) == ("invalid_request", "file_id")


def test_a_file_that_is_not_visible_yet_makes_the_batch_fail(openai, control):
    control.settings(openai={"file_lag_s": 60})
    assert run(openai, chat_lines(1)).errors.data[0].param == "file_id"


def test_too_many_requests_or_embedding_inputs_fail_the_batch(openai, control):
    control.settings(openai={"max_requests": 3})
    assert run(openai, chat_lines(4)).errors.data[0].code == "too_many_tasks"
    line = {
        "custom_id": "r1",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "text-embedding-3-small", "input": ["a", "b", "c", "d"]},
    }
    assert run(openai, [line], "/v1/embeddings").errors.data[0].code == "too_many_tasks"


def test_the_limit_of_fifty_thousand_requests_is_the_real_one(openai):
    line = jsonl([chat_line("same")])
    file = openai.files.create(file=("in.jsonl", line * 50_001), purpose="batch")
    batch = openai.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert ended(openai, batch).errors.data[0].code == "too_many_tasks"


def test_a_full_queue_fails_the_batch_until_tokens_are_free_again(openai, control):
    control.settings(openai={"max_enqueued_tokens": {"gpt-4.1-mini": 25}, "enqueued_lag_s": 60})
    control.hold("openai")
    first = submit(openai, chat_lines(10))  # two tokens each
    refused = run(openai, chat_lines(10))
    assert refused.status == "failed"
    [problem] = refused.errors.data
    assert problem.code == "token_limit_exceeded"
    assert (problem.line, problem.param) == (None, None)
    assert problem.message.startswith("Enqueued token limit reached for gpt-4.1-mini")
    assert "25 enqueued tokens" in problem.message
    control.release()
    assert ended(openai, first).status == "completed"
    assert run(openai, chat_lines(10)).status == "failed"  # the counter clears late
    control.advance(61)
    assert run(openai, chat_lines(10)).status == "completed"


def test_calls_are_throttled_with_retry_after(openai, control):
    control.settings(openai={"requests_per_s": 1, "retry_after_s": 3})
    openai.batches.list()
    with pytest.raises(sdk.RateLimitError) as limited:
        openai.batches.list()
    assert limited.value.response.headers["retry-after"] == "3"
    control.advance(1)
    openai.batches.list()


def test_creations_per_hour_are_limited(openai, control):
    control.settings(openai={"batches_per_hour": 1})
    submit(openai, chat_lines(1))
    with pytest.raises(sdk.RateLimitError):
        submit(openai, chat_lines(1))
    control.advance(3601)
    submit(openai, chat_lines(1))

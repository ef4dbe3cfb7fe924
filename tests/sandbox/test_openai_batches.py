from __future__ import annotations

import io
import json
from typing import Any

import openai as sdk
import pytest

from sandbox.sandbox_requests import (
    CHAT,
    chat_line,
    chat_lines,
    ended,
    jsonl,
    lines_of,
    raw_lines,
    run,
    submit,
    until,
)


def test_a_batch_runs_to_completion_and_answers_every_record_in_another_order(openai):
    batch = run(openai, chat_lines(50), metadata={"run": "x"})
    assert batch.status == "completed"
    assert batch.metadata == {"run": "x"}
    assert (batch.request_counts.total, batch.request_counts.completed) == (50, 50)
    assert batch.error_file_id is None
    lines = lines_of(openai, batch.output_file_id)
    ids = [line["custom_id"] for line in lines]
    assert sorted(ids) == sorted(f"r{number}" for number in range(50))
    assert ids != [f"r{number}" for number in range(50)]
    first = next(line for line in lines if line["custom_id"] == "r7")
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    answer = first["response"]["body"]
    assert answer["choices"][0]["message"]["content"] == "Summary: hello 7"
    assert answer["usage"]["prompt_tokens"] == 2
    assert batch.usage.input_tokens == 100
    assert batch.usage.output_tokens == 150


def test_a_batch_passes_through_every_state_and_counts_nothing_while_validating(openai, control):
    control.hold("openai", "validating")
    batch = submit(openai, chat_lines(4))
    assert batch.status == "validating"
    assert batch.request_counts.total == 0
    control.release()
    ended(openai, batch)
    history = control.submissions("openai")[0]["history"]
    assert [entry["status"] for entry in history] == [
        "validating",
        "in_progress",
        "finalizing",
        "completed",
    ]


def test_counts_never_fall_on_the_way_to_the_end(openai, control):
    control.hold("openai", "in_progress")
    batch = submit(openai, chat_lines(10))
    until(lambda: openai.batches.retrieve(batch.id), lambda now: now.request_counts.completed == 5)
    control.hold("openai", "cancelling")
    openai.batches.cancel(batch.id)
    until(lambda: openai.batches.retrieve(batch.id), lambda now: now.status == "cancelling")
    assert openai.batches.retrieve(batch.id).request_counts.completed == 5
    control.release()
    assert ended(openai, batch).request_counts.completed == 5


def test_a_held_batch_stands_half_way_and_ends_when_released(openai, control):
    control.hold("openai")
    batch = submit(openai, chat_lines(10))
    seen = until(
        lambda: openai.batches.retrieve(batch.id), lambda now: now.request_counts.completed == 5
    )
    assert seen.status == "in_progress"
    assert seen.request_counts.total == 10
    assert seen.output_file_id is None
    control.release("openai")
    assert ended(openai, batch).request_counts.completed == 10


def test_a_cancelled_batch_drains_and_keeps_what_was_done(openai, control):
    control.hold("openai")
    batch = submit(openai, chat_lines(10))
    until(lambda: openai.batches.retrieve(batch.id), lambda now: now.request_counts.completed == 5)
    assert openai.batches.cancel(batch.id).status == "cancelling"
    over = ended(openai, batch)
    assert over.status == "cancelled"
    assert over.cancelled_at is not None
    assert len(lines_of(openai, over.output_file_id)) == 5
    assert over.error_file_id is None
    assert openai.batches.cancel(batch.id).status == "cancelled"
    assert control.submissions("openai")[0]["cancels"] == 2


def test_a_batch_cancelled_before_it_ran_has_no_results(openai, control):
    control.hold("openai", "validating")
    batch = submit(openai, chat_lines(10))
    openai.batches.cancel(batch.id)
    over = ended(openai, batch)
    assert over.status == "cancelled"
    assert over.output_file_id is None


def test_unreached_records_of_a_cancelled_batch_get_a_line_where_the_server_writes_them(
    openai, control
):
    control.settings(openai={"cancelled_lines": True, "partial_ratio": 0.3})
    control.hold("openai")
    batch = submit(openai, chat_lines(10))
    until(lambda: openai.batches.retrieve(batch.id), lambda now: now.status == "in_progress")
    openai.batches.cancel(batch.id)
    over = ended(openai, batch)
    assert len(lines_of(openai, over.output_file_id)) == 3
    errors = lines_of(openai, over.error_file_id)
    assert [line["error"]["code"] for line in errors] == ["batch_cancelled"] * 7


def test_a_cancel_that_comes_too_late_may_end_completed(openai, control):
    control.settings(openai={"cancel_race": "completed"})
    control.hold("openai", "finalizing")
    batch = submit(openai, chat_lines(3))
    until(lambda: openai.batches.retrieve(batch.id), lambda now: now.status == "finalizing")
    openai.batches.cancel(batch.id)
    over = ended(openai, batch)
    assert over.status == "completed"
    assert over.cancelling_at is not None
    assert len(lines_of(openai, over.output_file_id)) == 3


@pytest.mark.parametrize("how", ["clock", "control"])
def test_an_expired_batch_has_what_was_done_and_says_of_the_rest_that_it_expired(
    openai, control, how
):
    control.hold("openai")
    batch = submit(openai, chat_lines(10))
    until(lambda: openai.batches.retrieve(batch.id), lambda now: now.request_counts.completed == 5)
    if how == "clock":
        control.advance(86_401)
    else:
        assert control.expire("openai", batch.id) == [batch.id]
    over = ended(openai, batch)
    assert over.status == "expired"
    assert len(lines_of(openai, over.output_file_id)) == 5
    errors = lines_of(openai, over.error_file_id)
    assert len(errors) == 5
    assert all(line["response"] is None for line in errors)
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}


def test_a_batch_whose_every_record_fails_is_completed_with_only_an_error_file(openai):
    batch = run(openai, chat_lines(2, "SANDBOX:error-400", "SANDBOX:error-500"))
    assert batch.status == "completed"
    assert batch.output_file_id is None
    assert batch.request_counts.failed == 2
    lines = lines_of(openai, batch.error_file_id)
    assert sorted(line["response"]["status_code"] for line in lines) == [400, 500]
    assert all(line["error"] is None for line in lines)
    assert all(line["response"]["body"]["error"]["message"] for line in lines)


@pytest.mark.parametrize(
    ("body", "status", "param", "reason"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages[0].role", "unknown role"),
        ({"temperature": 9}, 400, "temperature", "out of bounds"),
        ({"max_tokens": "many"}, 400, "max_tokens", "a string for a number"),
        ({"frobnicate": 1}, 400, "frobnicate", "no such parameter"),
        ({"messages": []}, 400, "messages", "nothing to answer"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400,
         "messages[0].content[0].text", "a part without its text"),
    ],
)  # fmt: skip
def test_a_record_the_endpoint_refuses_fails_alone(openai, body, status, param, reason):
    line = chat_line("bad")
    line["body"] = {**line["body"], **body}
    batch = run(openai, [line, chat_line("good")])
    assert batch.status == "completed", reason
    [refused] = lines_of(openai, batch.error_file_id)
    assert refused["custom_id"] == "bad"
    assert refused["response"]["status_code"] == status
    assert refused["response"]["body"]["error"]["param"] == param, reason
    assert len(lines_of(openai, batch.output_file_id)) == 1


def test_rich_requests_pass_the_check_against_the_sdk_types(openai):
    line = chat_line()
    line["body"] |= {
        "messages": [
            {"role": "system", "content": "You triage."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "a bug in billing"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                ],
            },
        ],
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "triage",
                "schema": {
                    "type": "object",
                    "properties": {
                        "team": {"enum": ["sales", "billing"]},
                        "urgency": {"type": "integer", "minimum": 1, "maximum": 3},
                    },
                },
            },
        },
        "seed": 7,
        "max_completion_tokens": 50,
    }
    batch = run(openai, [line])
    [answered] = lines_of(openai, batch.output_file_id)
    content = json.loads(answered["response"]["body"]["choices"][0]["message"]["content"])
    assert content["team"] == "billing"
    assert 1 <= content["urgency"] <= 3


@pytest.mark.parametrize(
    ("endpoint", "body", "path"),
    [
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "a"}, ("data", 0)),
        ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "a"}, ("choices", 0)),
        ("/v1/responses", {"model": "gpt-4.1", "input": "a"}, ("output", 1)),
        ("/v1/moderations", {"model": "omni-moderation-latest", "input": "a"}, ("results", 0)),
    ],
)
def test_the_other_endpoints_answer_too(openai, endpoint, body, path):
    line = {"custom_id": "r1", "method": "POST", "url": endpoint, "body": body}
    batch = run(openai, [line], endpoint)
    assert batch.status == "completed", batch.errors
    [answered] = lines_of(openai, batch.output_file_id)
    assert answered["response"]["body"][path[0]][path[1]]


def test_lists_go_newest_first_in_pages_and_stay_in_the_project(openai, sandbox):
    batches = [submit(openai, chat_lines(1), metadata={"n": str(n)}) for n in range(5)]
    newest_first = [batch.id for batch in reversed(batches)]
    page = openai.batches.list(limit=2)
    assert [batch.id for batch in page.data] == newest_first[:2]
    assert page.has_more
    assert [batch.id for batch in openai.batches.list(limit=2)] == newest_first
    with sdk.OpenAI(api_key="other-key", base_url=sandbox.openai_base_url, max_retries=0) as other:
        assert list(other.batches.list()) == []
        with pytest.raises(sdk.NotFoundError):
            other.batches.retrieve(batches[0].id)
        with pytest.raises(sdk.NotFoundError):
            other.files.retrieve(batches[0].input_file_id)
    with sdk.OpenAI(api_key="same-project", base_url=sandbox.openai_base_url) as same:
        assert len(list(same.batches.list())) == 5


def test_a_new_batch_is_missing_from_lists_while_they_lag_though_get_finds_it(openai, control):
    control.settings(openai={"list_lag_s": 60})
    batch = submit(openai, chat_lines(1))
    assert openai.batches.retrieve(batch.id).id == batch.id
    assert list(openai.batches.list()) == []
    control.advance(61)
    assert [one.id for one in openai.batches.list()] == [batch.id]


def test_files_are_stored_listed_read_and_deleted(openai):
    kept = [
        openai.files.create(file=(f"{name}.jsonl", jsonl(chat_lines(2))), purpose="batch")
        for name in "abc"
    ]
    other = openai.files.create(file=("notes.txt", b"plain"), purpose="user_data")
    assert other.expires_at is None
    assert kept[0].expires_at == kept[0].created_at + 30 * 86_400
    listed = [file.id for file in openai.files.list(purpose="batch", order="asc", limit=2)]
    assert listed == [file.id for file in kept]
    assert openai.files.list().data[0].id == other.id
    assert openai.files.content(kept[0].id).read() == jsonl(chat_lines(2))
    assert openai.files.delete(kept[0].id).deleted
    for call in (openai.files.retrieve, openai.files.content, openai.files.delete):
        with pytest.raises(sdk.NotFoundError):
            call(kept[0].id)


def test_files_expire(openai, control):
    file = openai.files.create(
        file=("in.jsonl", jsonl(chat_lines(1))),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert file.expires_at == file.created_at + 3600
    control.advance(3601)
    with pytest.raises(sdk.NotFoundError):
        openai.files.retrieve(file.id)


def test_a_streamed_upload_arrives_whole(openai):
    data = jsonl(chat_lines(20_000))
    file = openai.files.create(file=("big.jsonl", io.BytesIO(data)), purpose="batch")
    assert file.bytes == len(data)
    with openai.files.with_streaming_response.content(file.id) as response:
        assert int(response.headers["content-length"]) == len(data)
        assert b"".join(response.iter_bytes()) == data


def test_a_large_batch_is_answered_in_another_process_while_calls_are_served(openai, control):
    lines = chat_lines(20_000)
    batch = submit(openai, lines)
    over = ended(openai, batch)
    assert over.request_counts.completed == 20_000
    assert len(raw_lines(openai, over.output_file_id)) == 20_000
    assert control.submissions("openai")[0]["records"] == 20_000


def test_deleting_the_input_of_a_running_batch_does_not_stop_it(openai, control):
    control.hold("openai")
    batch = submit(openai, chat_lines(2))
    until(lambda: openai.batches.retrieve(batch.id), lambda now: now.status == "in_progress")
    openai.files.delete(batch.input_file_id)
    control.release()
    assert ended(openai, batch).status == "completed"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"absent_file_ids": "null"}, {"output_file_id": None, "error_file_id": None}),
        ({"absent_file_ids": "empty"}, {"output_file_id": "", "error_file_id": ""}),
        ({"absent_file_ids": "missing"}, {}),
    ],
)
def test_absent_file_ids_take_the_form_of_the_chosen_server(openai, control, settings, expected):
    control.settings(openai=settings)
    control.hold("openai")
    shown = submit(openai, chat_lines(1)).to_dict()
    found = {key: shown[key] for key in ("output_file_id", "error_file_id") if key in shown}
    assert found == expected


def test_the_variants_of_compatible_servers(openai, control):
    control.settings(
        openai={
            "empty_files": "error",
            "body_as_string": True,
            "echo_metadata": False,
            "usage": False,
            "error_style": "error",
        }
    )
    batch = run(openai, chat_lines(2), metadata={"run": "x"})
    assert openai.files.content(batch.error_file_id).read() == b""
    assert batch.metadata is None
    assert batch.usage is None
    body = lines_of(openai, batch.output_file_id)[0]["response"]["body"]
    assert json.loads(body)["object"] == "chat.completion"
    failed = run(openai, chat_lines(1, "SANDBOX:error-400"))
    [line] = lines_of(openai, failed.error_file_id)
    assert line["response"] is None
    assert line["error"]["code"]


def test_live_calls_answer_like_batches_do(openai):
    chat = openai.chat.completions.create(
        model="gpt-4o",
        messages=[
            {"role": "system", "content": "Answer one of: cat, dog or fish."},
            {"role": "user", "content": "It barks, the dog"},
        ],
    )
    assert chat.choices[0].message.content == "dog"
    assert openai.responses.create(model="gpt-4.1", input="hi you").output_text == "Summary: hi you"
    vectors = openai.embeddings.create(
        model="text-embedding-3-small",
        input=["the invoice is wrong", "the invoice was wrong", "zebras gallop"],
        dimensions=256,
    )
    near, alike, far = (item.embedding for item in vectors.data)
    assert len(near) == 256
    assert sum(a * a for a in near) == pytest.approx(1, abs=1e-5)
    assert _dot(near, alike) > _dot(near, far) + 0.3
    plain: Any = openai.embeddings.create(
        model="text-embedding-3-small", input="x", encoding_format="float"
    )
    assert len(plain.data[0].embedding) == 1536


def _dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_live_calls_are_refused_for_wrong_requests_and_magic_words(openai, control):
    with pytest.raises(sdk.NotFoundError) as missing:
        openai.chat.completions.create(
            model="no-such-model", messages=[{"role": "user", "content": "x"}]
        )
    assert missing.value.code == "model_not_found"
    with pytest.raises(sdk.RateLimitError) as limited:
        openai.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "SANDBOX:error-429"}]
        )
    assert limited.value.response.headers["retry-after"] == "1"
    with pytest.raises(sdk.BadRequestError):
        openai.chat.completions.create(model="gpt-4o", messages=[])
    assert control.state(brief=True)["live"] == {"chat.completions.create": 3}


def test_the_endpoint_of_a_batch_is_not_bound_to_chat(openai):
    with pytest.raises(sdk.BadRequestError, match="does not play"):
        openai.batches.create(
            input_file_id="file-x", endpoint="/v1/videos", completion_window="24h"
        )
    assert CHAT in str(submit(openai, chat_lines(1)).endpoint)

"""The OpenAI control plane over HTTP: what goes out, and what the answers are taken for."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from batchinference.adapters.openai_batch import OpenAIBatchProvider, default_limits
from batchinference.adapters.openai_batch.names import file_name
from batchinference.errors import Permanent, Retry, Stalled
from batchinference.model.batch import (
    Accepted,
    BatchLimit,
    BatchState,
    BatchView,
    CancelOutcome,
    Limits,
    OutcomeUnknown,
    RefusalKind,
    Refused,
    SubmissionID,
)
from batchinference.model.run import Run
from builders import anytime, run_of

from .golden import assert_golden
from .stub import Answer, Asked, Stub

SUBMISSION = SubmissionID("0123456789abcdef0123", 7, 2, "00c0ffee00c0")
METADATA = {
    "batchinference_run": SUBMISSION.tag,
    "batchinference_shard": "7",
    "batchinference_ordinal": "2",
    "batchinference_hash": SUBMISSION.content_hash,
}
BATCH = {
    "id": "batch_1",
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": "file-in",
    "completion_window": "24h",
    "status": "validating",
    "output_file_id": None,
    "error_file_id": None,
    "created_at": 1_767_225_600,
    "in_progress_at": None,
    "request_counts": {"total": 0, "completed": 0, "failed": 0},
    "metadata": METADATA,
}
START = datetime(2026, 1, 1, tzinfo=UTC)


@asynccontextmanager
async def client(stub: Stub, **options: Any) -> AsyncIterator[OpenAIBatchProvider]:
    settings = {
        "openAI": {
            "baseURL": f"{stub.url}/v1",
            "apiKeySecretRef": {"name": "openai", "key": "api-key"},
        }
    }
    provider = OpenAIBatchProvider(settings, {"apiKey": {"value": "sk-secret"}}, **options)
    try:
        yield provider
    finally:
        await provider.close()


def run_with(**openai: Any) -> Run:
    run = run_of()
    return replace(run, provider=replace(run.provider, settings={"openAI": openai}))


async def request(**openai: Any) -> Any:
    with Stub(lambda _asked: Answer()) as stub:
        async with client(stub) as provider:
            return provider.create_request(run_with(**openai), SUBMISSION, "file-in")


# ---------------------------------------------------------------- create


@pytest.mark.parametrize(
    ("name", "openai"),
    [
        ("openai-create", {}),
        ("openai-create-expiring", {"outputExpiresAfterSeconds": 604_800}),
        ("openai-create-window", {"completionWindow": "48h"}),
    ],
)
async def test_the_wire_bytes_of_a_create_call(name: str, openai: dict[str, Any]) -> None:
    wanted = await request(**openai)
    with Stub(lambda _asked: Answer(BATCH)) as stub:
        async with client(stub) as provider:
            await provider.submit(wanted, anytime)
    (asked,) = stub.asked
    headers = {
        name: value
        for name, value in asked.headers.items()
        if name in {"accept", "authorization", "content-type", "idempotency-key"}
    }
    shown = [f"{asked.method} {asked.path}", *(f"{k}: {v}" for k, v in sorted(headers.items()))]
    assert_golden(f"{name}.http", "\n".join([*shown, "", asked.body.decode(), ""]))


@pytest.mark.parametrize(
    ("operation", "endpoint"),
    [
        ("ChatCompletions", "/v1/chat/completions"),
        ("Embeddings", "/v1/embeddings"),
        ("Completions", "/v1/completions"),
        ("Responses", "/v1/responses"),
    ],
)
async def test_each_operation_has_its_endpoint(operation: str, endpoint: str) -> None:
    with Stub(lambda _asked: Answer()) as stub:
        async with client(stub) as provider:
            run = run_with()
            run = replace(run, spec={**run.spec, "operation": operation})
            made = provider.create_request(run, SUBMISSION, "file-in")
            assert made["endpoint"] == endpoint
            with pytest.raises(Permanent, match=r"spec\.operation"):
                provider.create_request(
                    replace(run, spec={"operation": "Videos"}), SUBMISSION, "file-in"
                )


def test_a_file_name_is_found_again_by_its_run() -> None:
    assert file_name(SUBMISSION) == "0123456789abcdef0123-s00007-o2-00c0ffee00c0.jsonl"


async def test_an_accepted_batch_is_the_one_that_was_sent() -> None:
    with Stub(lambda _asked: Answer(BATCH, 201)) as stub:
        async with client(stub) as provider:
            outcome = await provider.submit(await request(), anytime)
    assert outcome == Accepted(
        BatchView(
            "batch_1",
            BatchState.VALIDATING,
            "validating",
            SUBMISSION,
            "file-in",
            START,
        )
    )


async def test_an_answer_without_an_echo_is_completed_from_the_request() -> None:
    bare = {"id": "batch_1", "status": "queued"}
    with Stub(lambda _asked: Answer(bare)) as stub:
        async with client(stub) as provider:
            assert provider.traits.echoes_submission
            outcome = await provider.submit(await request(), anytime)
            assert not provider.traits.echoes_submission
    assert isinstance(outcome, Accepted)
    assert outcome.batch.submission == SUBMISSION
    assert outcome.batch.input_ref == "file-in"


def error(code: str = "", message: str = "no", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": code, **more}}


REFUSALS = [
    (400, error("invalid_value"), RefusalKind.INVALID, "a parameter is wrong"),
    (413, error(), RefusalKind.TOO_LARGE, "too large"),
    (400, error("too_many_tasks"), RefusalKind.TOO_LARGE, "too many records"),
    (422, {"detail": [{"msg": "x"}]}, RefusalKind.INVALID, "FastAPI's way"),
    (404, error("model_not_found", "no such model"), RefusalKind.INVALID, "nothing there"),
    (401, error("invalid_api_key"), RefusalKind.CREDENTIALS, "a bad key"),
    (403, error(), RefusalKind.CREDENTIALS, "no access to the project"),
    (402, error(), RefusalKind.BILLING, "no credit"),
    (429, error("insufficient_quota"), RefusalKind.BILLING, "the credit is spent"),
    (429, error("rate_limit_exceeded"), RefusalKind.THROTTLED, "too many calls"),
    (400, error("billing_hard_limit_reached"), RefusalKind.BILLING, "a spending limit"),
    (403, error("billing_not_active"), RefusalKind.BILLING, "the bill is not paid"),
    (400, error("token_limit_exceeded"), RefusalKind.QUOTA, "Azure's regions that fail fast"),
    (
        400,
        error("", "Enqueued token limit reached for gpt-4.1"),
        RefusalKind.QUOTA,
        "the text without the code",
    ),
    (
        400,
        error("", "file is in 'pending' state"),
        RefusalKind.THROTTLED,
        "Azure has not checked the file yet",
    ),
    (
        404,
        error("", "No such file: file-in not found"),
        RefusalKind.THROTTLED,
        "the upload is not visible yet",
    ),
]


@pytest.mark.parametrize(("status", "body", "kind", "reason"), REFUSALS)
async def test_a_certain_no_is_a_refusal(
    status: int, body: Any, kind: RefusalKind, reason: str
) -> None:
    with Stub(lambda _asked: Answer(body, status, {"retry-after": "7"})) as stub:
        async with client(stub) as provider:
            outcome = await provider.submit(await request(), anytime)
    assert isinstance(outcome, Refused), reason
    assert outcome.kind is kind, reason
    assert "sk-secret" not in outcome.message
    if status in {402, 429} or kind is RefusalKind.QUOTA:
        assert outcome.retry_after_s == 7.0
    assert len(stub.asked) == 1, "a create call is never repeated"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(error(), 408), "a time-out of the server"),
        (Answer(error(), 409), "a conflict with something, perhaps with itself"),
        (Answer(error(), 425), "too early"),
        (Answer(error(), 499), "a proxy gave up"),
        (Answer(error(), 500), "it broke, before or after"),
        (Answer(b"<html>", 502, {"Content-Type": "text/html"}), "a proxy's page"),
        (Answer(error(), 503), "overloaded"),
        (Answer(b"", 307, {"Location": "http://127.0.0.1:9/"}), "a redirect says nothing"),
        (Answer(drop=True), "the connection broke"),
        (Answer(BATCH, cut=20), "the answer broke off"),
        (Answer(b"not json"), "200 with something else"),
        (Answer({"status": "validating"}), "200 without an id"),
        (Answer({"id": ""}), "200 with an empty id"),
        (Answer([BATCH]), "200 with a list"),
    ],
)
async def test_everything_else_is_an_unknown_outcome(answer: Answer, reason: str) -> None:
    with Stub(lambda _asked: answer) as stub:
        async with client(stub) as provider:
            outcome = await provider.submit(await request(), anytime)
    assert isinstance(outcome, OutcomeUnknown), reason
    assert len(stub.asked) == 1, "a create call is never repeated"


async def test_a_create_call_without_an_answer_in_time_is_unknown() -> None:
    gate = threading.Event()
    with Stub(lambda _asked: Answer(BATCH, gate=gate)) as stub:
        async with client(stub, submit_timeout_s=0.2) as provider:
            outcome = await provider.submit(await request(), anytime)
        gate.set()
    assert outcome == OutcomeUnknown("No answer to the create call: it took too long.")


async def test_a_failure_tells_what_was_asked_and_what_was_wrong() -> None:
    with Stub(lambda _asked: Answer()) as stub:
        host = stub.url.removeprefix("http://")
    settings = {"openAI": {"baseURL": f"http://someone:hidden@{host}/v1"}}
    provider = OpenAIBatchProvider(settings, {})
    with pytest.raises(Retry) as refused:
        await provider.check()
    await provider.close()
    told = refused.value.message
    assert f"http://{host}/v1/batches: Connection refused" in told
    assert "hidden" not in told
    with Stub(lambda _asked: Answer(status=503)) as stub:
        async with client(stub) as provider:
            with pytest.raises(Retry, match=f"at {stub.url}/v1/batches .HTTP 503"):
                await provider.check()


async def test_a_connection_that_never_came_about_is_a_refusal() -> None:
    with Stub(lambda _asked: Answer()) as stub:
        pass
    async with client(stub) as provider:
        outcome = await provider.submit(await request(), anytime)
    assert isinstance(outcome, Refused)
    assert outcome.kind is RefusalKind.THROTTLED
    assert outcome.code == "connect"


# ---------------------------------------------------------------- batches as servers tell them


VIEWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("upper case (Together, Novita)", {"status": "IN_PROGRESS"}, {"state": BatchState.IN_PROGRESS}),
    ("Novita's word", {"status": "PROGRESS"}, {"state": BatchState.IN_PROGRESS}),
    ("AIBrix' first state", {"status": "scheduling"}, {"state": BatchState.VALIDATING}),
    ("Cerebras' queue", {"status": "queued"}, {"state": BatchState.VALIDATING}),
    ("American spelling", {"status": "Canceled"}, {"state": BatchState.CANCELLED}),
    ("a word nobody knows", {"status": "dreaming"}, {"state": BatchState.UNKNOWN}),
    ("no status at all", {"status": None}, {"state": BatchState.UNKNOWN}),
    ("metadata not kept", {"metadata": None}, {"submission": None}),
    ("foreign metadata", {"metadata": {"team": "a"}}, {"submission": None}),
    (
        "metadata half kept",
        {"metadata": {"batchinference_run": "x", "batchinference_shard": "one"}},
        {"submission": None},
    ),
    (
        "numbers instead of strings",
        {"metadata": {**METADATA, "batchinference_shard": 7}},
        {"submission": SUBMISSION},
    ),
    (
        "more metadata beside ours (Doubleword)",
        {"metadata": {**METADATA, "created_by_email": "x"}},
        {"submission": SUBMISSION},
    ),
    ("ISO time", {"created_at": "2026-01-01T00:00:00Z"}, {"created_at": START}),
    ("ISO time without a zone", {"created_at": "2026-01-01T00:00:00"}, {"created_at": START}),
    ("seconds in a string", {"created_at": "1767225600"}, {"created_at": START}),
    ("a time that is none", {"created_at": "yesterday"}, {"created_at": None}),
    ("empty file ids", {"output_file_id": "", "error_file_id": ""}, {"files": ()}),
    ("one file id twice", {"output_file_id": "f", "error_file_id": "f"}, {"files": ("f",)}),
    (
        "only an error file: all failed",
        {"status": "completed", "error_file_id": "e", "output_file_id": None},
        {"files": ("e",), "state": BatchState.COMPLETED, "failure": None},
    ),
    (
        "the error file is named before the one with the answers",
        {"error_file_id": "e", "request_counts": {"total": 4, "completed": 2, "failed": 1}},
        {"files": ("e",), "lacks_answers": True},
    ),
    (
        "answers are counted and no file is named",
        {"request_counts": {"total": 4, "completed": 2, "failed": 0}},
        {"files": (), "lacks_answers": True},
    ),
    (
        "answers are named",
        {"output_file_id": "o", "request_counts": {"total": 4, "completed": 2, "failed": 1}},
        {"files": ("o",), "lacks_answers": False},
    ),
    (
        "failed records counted as completed ones too",
        {"error_file_id": "e", "request_counts": {"total": 4, "completed": 4, "failed": 4}},
        {"files": ("e",), "lacks_answers": False},
    ),
    ("null counts (Azure)", {"request_counts": None}, {"total": 0}),
    (
        "counts as strings",
        {"request_counts": {"total": "5", "completed": "x"}},
        {"total": 5, "completed": 0},
    ),
    (
        "the end of it",
        {"status": "expired", "expired_at": 1_767_225_600},
        {"state": BatchState.EXPIRED, "ended_at": START},
    ),
    ("errors on a completed batch (Groq)", {"status": "completed", "errors": [{}]}, {}),
]


@pytest.mark.parametrize(("reason", "given", "want"), VIEWS, ids=[v[0] for v in VIEWS])
async def test_batches_are_read_in_every_dialect(
    reason: str, given: dict[str, Any], want: dict[str, Any]
) -> None:
    with Stub(lambda _asked: Answer({**BATCH, **given})) as stub:
        async with client(stub) as provider:
            view = await provider.get("batch_1")
    assert view is not None
    assert {name: getattr(view, name) for name in want} == want, reason


FAILURES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "queue quota: put back, not an attempt",
        {"errors": {"data": [{"code": "token_limit_exceeded", "message": "Enqueued ..."}]}},
        {"code": "token_limit_exceeded", "quota": True, "nothing_processed": True, "most": None},
    ),
    (
        "a quota says how much fits into it",
        {
            "errors": {
                "data": [
                    {
                        "code": "token_limit_exceeded",
                        "message": "Enqueued token limit reached for gpt-4o in organization org-7. "
                        "Limit: 90,000 enqueued tokens. Please try again once some have ended.",
                    }
                ]
            }
        },
        {"quota": True, "exceeds": None, "most": 90_000},
    ),
    (
        "too many records, by code",
        {"errors": {"data": [{"code": "too_many_tasks", "message": "max 50000 requests"}]}},
        {"exceeds": BatchLimit.RECORDS, "most": 50_000, "nothing_processed": True},
    ),
    (
        "too many records, in a sentence",
        {"errors": "The number of requests 60000 exceeds the limit of 50,000 per batch"},
        {"exceeds": BatchLimit.RECORDS, "most": 50_000},
    ),
    (
        "too many bytes",
        {"errors": [{"code": "", "message": "Input file size exceeds the limit of 200 MB"}]},
        {"exceeds": BatchLimit.BYTES, "most": None, "quota": False},
    ),
    (
        "an open bill: put back until it is paid",
        {"errors": {"data": [{"code": "billing_hard_limit_reached", "message": "x"}]}},
        {"billing": True, "quota": False, "nothing_processed": True},
    ),
    (
        "request-count quota has a text only",
        {"errors": {"data": [{"code": None, "message": "Enqueued request limit reached for"}]}},
        {"quota": True, "nothing_processed": True},
    ),
    (
        "an upload that was not visible yet",
        {"errors": {"data": [{"code": "invalid_request", "param": "file_id", "message": "x"}]}},
        {"transient": True, "nothing_processed": True},
    ),
    (
        "bad lines, with their numbers",
        {
            "errors": {
                "object": "list",
                "data": [{"code": "invalid_json_line", "line": n, "message": "m"} for n in (3, 9)],
            }
        },
        {"message": "line 3: m; line 9: m", "quota": False, "transient": False},
    ),
    (
        "many entries are counted, not told",
        {"errors": {"data": [{"code": "invalid_url", "message": f"m{n}"} for n in range(9)]}},
        {"message": "m0; m1; m2; and 6 more"},
    ),
    (
        "a bare list (Groq)",
        {"errors": [{"code": "invalid_method", "message": "m"}]},
        {"code": "invalid_method"},
    ),
    ("a list of sentences (watsonx)", {"errors": ["one", "two"]}, {"message": "one; two"}),
    ("a sentence (Novita)", {"errors": "it broke"}, {"message": "it broke", "code": ""}),
    ("`error` (Together)", {"errors": None, "error": "it broke"}, {"message": "it broke"}),
    ("nothing said", {"errors": None}, {"message": "", "nothing_processed": True}),
    (
        "failed after it ran",
        {"errors": [{"code": "runner_lost"}], "in_progress_at": 1_767_225_600},
        {"nothing_processed": False},
    ),
    (
        "`failed` because all records failed (Doubleword)",
        {"request_counts": {"total": 3, "failed": 3}, "error_file_id": "e"},
        {"nothing_processed": False},
    ),
    (
        "Azure gives file ids to a batch that failed in validation",
        {
            "errors": {"data": [{"code": "model_mismatch", "message": "m"}]},
            "output_file_id": "o",
            "completed_at": 1_767_225_600,
        },
        {"nothing_processed": True},
    ),
]


@pytest.mark.parametrize(("reason", "given", "want"), FAILURES, ids=[f[0] for f in FAILURES])
async def test_failures_are_read_in_every_dialect(
    reason: str, given: dict[str, Any], want: dict[str, Any]
) -> None:
    with Stub(lambda _asked: Answer({**BATCH, "status": "failed", **given})) as stub:
        async with client(stub) as provider:
            view = await provider.get("batch_1")
    assert view is not None
    assert view.failure is not None
    assert {name: getattr(view.failure, name) for name in want} == want, reason


# ---------------------------------------------------------------- single batches


async def test_only_the_api_itself_can_say_that_there_is_none() -> None:
    answers = {
        "/v1/batches/gone": Answer(error(message="No batch found"), 404),
        "/v1/batches/proxy": Answer(b"<html>", 404, {"Content-Type": "text/html"}),
        "/v1/batches/odd": Answer({"error": "old"}),
    }
    with Stub(lambda asked: answers[asked.path]) as stub:
        async with client(stub) as provider:
            assert await provider.get("gone") is None
            with pytest.raises(Stalled):
                await provider.get("proxy")
            with pytest.raises(Retry):
                await provider.get("odd")


async def test_an_id_is_one_segment_of_the_path() -> None:
    with Stub(lambda _asked: Answer(BATCH)) as stub:
        async with client(stub) as provider:
            await provider.get("bGl0ZWxsbTo/x+y==")
            await provider.cancel("../files/x")
    assert stub.asked[0].path == "/v1/batches/bGl0ZWxsbTo%2Fx%2By%3D%3D"
    assert stub.asked[1].path == "/v1/batches/..%2Ffiles%2Fx/cancel"


CANCELS: list[tuple[str, Answer, dict[str, Any], CancelOutcome | type[Exception]]] = [
    ("accepted", Answer({**BATCH, "status": "cancelling"}), {}, CancelOutcome.ACCEPTED),
    ("cancelled before", Answer({**BATCH, "status": "cancelled"}), {}, CancelOutcome.ALREADY_OVER),
    ("too late", Answer(error(), 409), {"status": "completed"}, CancelOutcome.ALREADY_OVER),
    (
        "too late (Morph, llm-d)",
        Answer(error(), 400),
        {"status": "failed"},
        CancelOutcome.ALREADY_OVER,
    ),
    ("unknown", Answer(error(), 404), {}, CancelOutcome.NOT_FOUND),
    ("not while finalizing (llm-d)", Answer(error(), 400), {"status": "finalizing"}, Retry),
    ("broken", Answer(error(), 500), {}, Retry),
    ("a bad key", Answer(error(), 401), {}, Stalled),
]


@pytest.mark.parametrize(("reason", "answer", "now", "want"), CANCELS, ids=[c[0] for c in CANCELS])
async def test_a_cancel_says_what_became_of_it(
    reason: str, answer: Answer, now: dict[str, Any], want: Any
) -> None:
    def respond(asked: Asked) -> Answer:
        return answer if asked.method == "POST" else Answer({**BATCH, **now})

    with Stub(respond) as stub:
        async with client(stub) as provider:
            if isinstance(want, CancelOutcome):
                assert await provider.cancel("batch_1") is want, reason
            else:
                with pytest.raises(want):
                    await provider.cancel("batch_1")
    assert [asked.method for asked in stub.asked].count("POST") == 1


FAULTS: list[tuple[int, Any, type[Exception], str]] = [
    (401, error("invalid_api_key"), Stalled, "CredentialsRejected"),
    (403, error(), Stalled, "AccessDenied"),
    (404, error(), Stalled, "EndpointUnreachable"),
    (429, error("rate_limit_exceeded"), Retry, "ProviderUnavailable"),
    (500, error(), Retry, "ProviderUnavailable"),
    (400, error(), Permanent, "ProviderRefused"),
]


@pytest.mark.parametrize(("status", "body", "verdict", "reason"), FAULTS)
async def test_a_trial_says_what_follows(
    status: int, body: Any, verdict: type[Exception], reason: str
) -> None:
    with Stub(lambda _asked: Answer(body, status, {"retry-after-ms": "1"})) as stub:
        async with client(stub) as provider:
            with pytest.raises(verdict) as raised:
                await provider.check()
    assert raised.value.reason == reason  # type: ignore[attr-defined]
    assert len(stub.asked) == (3 if verdict is Retry else 1), "retries are bounded"


async def test_a_host_that_does_not_exist_stalls() -> None:
    settings = {"openAI": {"baseURL": "http://no-such-host.invalid/v1"}}
    provider = OpenAIBatchProvider(settings, {})
    with pytest.raises(Stalled) as stalled:
        await provider.check()
    await provider.close()
    assert stalled.value.reason == "EndpointUnreachable"


# ---------------------------------------------------------------- listings


def batch(number: int, **members: Any) -> dict[str, Any]:
    return {**BATCH, "id": f"batch_{number}", "created_at": 2_000_000_000 - number, **members}


def window(start: int, total: int, size: int = 100) -> list[dict[str, Any]]:
    return [batch(n) for n in range(start, min(start + size, total))]


Respond = Callable[[Asked], Answer]


def openai_like(total: int, **envelope: Any) -> Respond:
    """Pages by id, newest first; members of the envelope override or, when ..., go."""

    def respond(asked: Asked) -> Answer:
        after = asked.query.get("after")
        start = int(after.removeprefix("batch_")) + 1 if after else 0
        data = window(start, total)
        page = {"object": "list", "data": data, "has_more": start + len(data) < total, **envelope}
        return Answer({key: value for key, value in page.items() if value is not ...})

    return respond


def by_offset(asked: Asked, total: int = 250) -> Answer:
    """llm-d: `after` is a number, and an id is a bad request."""
    after = asked.query.get("after", "0")
    if not after.isdigit():
        return Answer(error(message="after must be an integer"), 400)
    data = window(int(after), total)
    return Answer({"data": data, "has_more": int(after) + len(data) < total})


def by_cursor(asked: Asked) -> Answer:
    """Groq: `cursor` and `paging.next_cursor`, no has_more."""
    start = int(asked.query.get("cursor", "c0")[1:])
    following = f"c{start + 100}" if start + 100 < 250 else None
    return Answer({"data": window(start, 250), "paging": {"next_cursor": following}})


def deaf(asked: Asked) -> Answer:
    """Gives the first page for ever."""
    return Answer({"data": window(0, 250), "has_more": True})


def circling(length: int) -> Respond:
    """After some pages the first page but one comes again."""

    def respond(asked: Asked) -> Answer:
        after = asked.query.get("after")
        start = int(after.removeprefix("batch_")) + 1 if after else 0
        if start >= length * 100:
            start = 100
        return Answer({"data": window(start, 10_000), "has_more": True})

    return respond


async def all_pages(
    provider: OpenAIBatchProvider, since: datetime | None = None, most: int = 60
) -> list[str]:
    found: list[str] = []
    cursor = None
    for _ in range(most):
        page = await provider.page(cursor, since)
        found += [view.id for view in page.batches]
        cursor = page.cursor
        if cursor is None:
            return found
    raise AssertionError("the listing does not end")


IDS = [f"batch_{n}" for n in range(250)]
FOLLOWED: list[tuple[str, Respond]] = [
    ("OpenAI", openai_like(250)),
    ("no has_more: follows until an empty page", openai_like(250, has_more=...)),
    ("has_more null", openai_like(250, has_more=None)),
    ("llm-d's offsets", by_offset),
    ("Groq's cursors", by_cursor),
    ("no `object`, extra members", openai_like(250, object=..., first_id="x", last_id="y")),
]


@pytest.mark.parametrize(("reason", "respond"), FOLLOWED, ids=[f[0] for f in FOLLOWED])
async def test_a_listing_is_followed_to_its_end(reason: str, respond: Respond) -> None:
    with Stub(respond) as stub:
        async with client(stub) as provider:
            assert await all_pages(provider) == IDS, reason
            assert provider.traits.lists_complete
    assert stub.asked[0].query["limit"] == "100"


def bare_array(asked: Asked) -> Answer:
    return Answer(window(0, 30))


def says_more_behind_nothing(asked: Asked) -> Answer:
    return Answer({"data": [] if "after" in asked.query else window(0, 30), "has_more": True})


def refuses_page_two(asked: Asked) -> Answer:
    if "after" in asked.query:
        return Answer(error(message="unknown parameter"), 400)
    return Answer({"data": window(0, 100), "has_more": True})


LOST: list[tuple[str, Respond]] = [
    ("ignores `after`", deaf),
    ("runs in a circle of two pages", circling(3)),
    ("runs in a circle of nine pages", circling(10)),
    ("a bare array that may be cut (Together)", bare_array),
    ("has_more behind an empty page", says_more_behind_nothing),
    ("refuses every second page", refuses_page_two),
]


@pytest.mark.parametrize(("reason", "respond"), LOST, ids=[f[0] for f in LOST])
async def test_a_listing_that_cannot_be_followed_is_never_called_complete(
    reason: str, respond: Respond
) -> None:
    with Stub(respond) as stub:
        async with client(stub) as provider:
            with pytest.raises(Retry, match="can't be followed"):
                await all_pages(provider)
            assert not provider.traits.lists_complete
            # From then on the pass ends where the way ends, and the traits say what it is worth.
            found = await all_pages(provider)
            assert found[:30] == IDS[:30], reason
            assert not provider.traits.lists_complete
            assert len(stub.asked) < 60


async def test_a_server_that_is_mended_is_believed_again() -> None:
    with Stub(deaf) as stub:
        async with client(stub) as provider:
            with pytest.raises(Retry):
                await all_pages(provider)
            stub.respond = openai_like(250)
            assert await all_pages(provider) == IDS
            assert provider.traits.lists_complete


async def test_no_batches_are_no_batches() -> None:
    for nothing in ({"data": [], "has_more": False}, {"object": "list", "data": None}, []):
        with Stub(lambda _asked, nothing=nothing: Answer(nothing)) as stub:
            async with client(stub) as provider:
                assert await all_pages(provider) == []


async def test_something_else_than_a_listing_is_tried_again() -> None:
    with Stub(lambda _asked: Answer({"message": "hello"})) as stub:
        async with client(stub) as provider:
            for _ in range(2):
                with pytest.raises(Retry):
                    await provider.page(None, None)


async def test_a_listing_from_new_to_old_stops_where_nothing_more_is_needed() -> None:
    since = datetime.fromtimestamp(2_000_000_000 - 150, UTC)
    with Stub(openai_like(10_000)) as stub:
        async with client(stub) as provider:
            assert await all_pages(provider, since) == [f"batch_{n}" for n in range(200)]


async def test_a_listing_in_another_order_is_read_whole() -> None:
    def respond(asked: Asked) -> Answer:
        start = int(asked.query.get("after", "batch_-1").removeprefix("batch_")) + 1
        data = [batch(n, created_at=1_000_000 + n) for n in range(start, min(start + 100, 250))]
        return Answer({"data": data, "has_more": start + 100 < 250})

    with Stub(respond) as stub:
        async with client(stub) as provider:
            assert await all_pages(provider, START + timedelta(days=1)) == IDS


async def test_an_odd_batch_does_not_hide_the_others() -> None:
    data = [batch(0), "text", None, {"id": None}, {"status": []}, batch(1)]
    with Stub(lambda _asked: Answer({"data": data, "has_more": False})) as stub:
        async with client(stub) as provider:
            assert await all_pages(provider) == ["batch_0", "batch_1"]


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("limits", "want", "reason"),
    [
        ({}, Limits(50_000, 200_000_000, 16_000_000), "what OpenAI publishes"),
        (
            {"maxRecordsPerBatch": 10, "maxActiveBatches": 3, "maxConcurrentUploads": 1},
            Limits(10, 200_000_000, 16_000_000, max_active_batches=3, max_concurrent_uploads=1),
            "the provider's own",
        ),
        (
            {
                "maxEnqueuedTokens": 5,
                "models": [{"name": "gpt", "maxEnqueuedTokens": 7, "maxRecordsPerBatch": 2}],
            },
            Limits(2, 200_000_000, 16_000_000, max_enqueued_tokens=7),
            "the model's own before the provider's",
        ),
    ],
)
def test_limits_are_the_published_ones_with_the_providers_own(
    limits: dict[str, Any], want: Limits, reason: str
) -> None:
    assert default_limits({"limits": limits}, "gpt", "ChatCompletions") == want, reason


def test_a_cursor_survives_being_written_down() -> None:
    from batchinference.adapters.openai_batch.paging import Cursor

    cursor = Cursor("after", "batch_1", 100, 1, "batch_0", 1.5)
    assert Cursor.parse(str(cursor)) == cursor
    assert json.loads(str(cursor))

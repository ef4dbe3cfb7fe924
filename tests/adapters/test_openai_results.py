"""Lines of result files, in the shapes that servers write them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from batchinference.adapters.openai_batch.results import result
from batchinference.ports import ResultLine

BODY = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}


def line(**members: Any) -> bytes:
    return json.dumps({"id": "batch_req_1", "custom_id": "r0000000007", **members}).encode()


def response(status: Any = 200, body: Any = BODY) -> dict[str, Any]:
    return {"status_code": status, "request_id": "req_1", "body": body}


def plain(found: ResultLine) -> dict[str, Any]:
    body = found.body
    if isinstance(body, msgspec.Raw):
        body = json.loads(bytes(body))
    return {
        "wire_id": found.wire_id,
        "status": found.status_code,
        "body": body,
        "code": found.error_code,
        "unbilled": found.unbilled,
        "tokens": (found.input_tokens, found.output_tokens),
    }


ANSWERED = {"wire_id": "r0000000007", "status": 200, "body": BODY, "code": "", "tokens": (3, 4)}
REFUSED = {"error": {"message": "too long", "code": "context_length_exceeded"}}
ROWS: list[tuple[str, bytes, dict[str, Any]]] = [
    ("OpenAI's own", line(response=response(), error=None), ANSWERED),
    ("an answer with an error beside it", line(response=response(), error={"code": "x"}), ANSWERED),
    ("body as a string (OGX)", line(response=response(body=json.dumps(BODY))), ANSWERED),
    ("status as a string", line(response=response(status="200")), ANSWERED),
    ("no request_id", line(response={"status_code": 200, "body": BODY}), ANSWERED),
    (
        "the Responses API's words for tokens",
        line(response=response(body={"usage": {"input_tokens": 5, "output_tokens": 6}})),
        {"tokens": (5, 6)},
    ),
    (
        "embeddings take no output tokens",
        line(response=response(body={"usage": {"prompt_tokens": 5}})),
        {"tokens": (5, 0)},
    ),
    ("no usage", line(response=response(body={"choices": []})), {"tokens": (0, 0), "code": ""}),
    ("odd usage", line(response=response(body={"usage": "many"})), {"tokens": (0, 0), "code": ""}),
    (
        "negative usage",
        line(response=response(body={"usage": {"prompt_tokens": -1}})),
        {"tokens": (0, 0)},
    ),
    (
        "the model refused (shape 1)",
        line(response=response(400, REFUSED), error=None),
        {"status": 400, "code": "context_length_exceeded", "body": REFUSED, "unbilled": False},
    ),
    (
        "rate limit inside a batch: OpenAI charges nothing",
        line(response=response(429, {"error": {"code": "rate_limit_exceeded"}})),
        {"status": 429, "code": "rate_limit_exceeded", "unbilled": True},
    ),
    (
        "a server error may have been billed",
        line(response=response(500, {"error": {"type": "server_error"}})),
        {"status": 500, "code": "server_error", "unbilled": False},
    ),
    (
        "expired (shape 2)",
        line(response=None, error={"code": "batch_expired", "message": "too late"}),
        {"status": 0, "code": "BatchExpired", "unbilled": True},
    ),
    (
        "cancelled (shape 2)",
        line(response=None, error={"code": "batch_cancelled"}),
        {"code": "BatchCancelled", "unbilled": True},
    ),
    (
        "an error of the server's own (AIBrix)",
        line(response=None, error={"code": "inference_failed", "message": "x"}),
        {"code": "inference_failed", "unbilled": False},
    ),
    (
        "without `response` and `code` (OGX)",
        line(error={"type": "request_failed", "message": "x"}),
        {"code": "request_failed", "unbilled": False},
    ),
    ("an error as a sentence", line(error="it broke"), {"code": "ProviderError"}),
    (
        "broken (shape 3)",
        line(response=response(0, {}), error=None),
        {"status": 0, "code": "ProviderError", "unbilled": False},
    ),
    ("200 with nothing in it", line(response=response(200, {})), {"code": "ProviderError"}),
    ("200 with null in it", line(response=response(200, None)), {"code": "ProviderError"}),
    ("neither answer nor error", line(), {"code": "ProviderError", "unbilled": False}),
    ("no JSON", b'{"custom_id": "r1", ', {"wire_id": "", "code": "UnreadableLine"}),
    (
        "bad UTF-8 in an answer",
        line(response=response()).replace(b'"choices"', b'"\xff"'),
        {"wire_id": "", "code": "UnreadableLine"},
    ),
    ("no object", b"[1]", {"wire_id": "", "code": "UnreadableLine"}),
    ("an id of another type", line(custom_id=7, response=response()), {"wire_id": "7"}),
    ("no id", b'{"response": null}', {"wire_id": ""}),
    ("nested too deeply", b"[" * 100_000, {"wire_id": "", "code": "UnreadableLine"}),
]


@pytest.mark.parametrize(("reason", "given", "want"), ROWS, ids=[row[0] for row in ROWS])
def test_lines_are_read_in_every_dialect(reason: str, given: bytes, want: dict[str, Any]) -> None:
    found = plain(result(given))
    assert {name: found[name] for name in want} == want, reason


def test_the_usual_answer_is_passed_on_byte_by_byte() -> None:
    body = b'{"choices" : [1.50, "\\u00e9"], "usage":{"prompt_tokens":1}}'
    found = result(b'{"custom_id":"r1","response":{"status_code":200,"body":%b}}' % body)
    assert isinstance(found.body, msgspec.Raw)
    assert bytes(found.body) == body

"""The answers to the parts of one record as one answer. Owns the form of embeddings responses.

A record that went to the provider as several - an embeddings request with a list of texts - has an
answer for each of them, every one with a single embedding. They are put together as the endpoint
would have answered the list. Where some texts have no answer, the record has none either; what was
answered, and paid for, is kept in its response, whose status is then 207.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from batchinference.records.result import answer_tail, error_tail

MULTI_STATUS = 207
"""HTTP's own word for several answers of which not all are good."""


class Part(NamedTuple):
    """What is known of one text: the tail of its result line (`records.result`)."""

    is_answered: bool
    tail: bytes


class _Embedding(msgspec.Struct):
    embedding: msgspec.Raw


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    total_tokens: int = 0


class _Body(msgspec.Struct):
    data: list[_Embedding]
    model: str = ""
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Line(msgspec.Struct):
    response: _Response | None
    error: _Error | None


_line = msgspec.json.Decoder(_Line).decode
_body = msgspec.json.Decoder(_Body).decode


def of_record(row: int, record: int, tail: bytes) -> bytes:
    """The tail of a row as that of the only row of a record."""
    return tail if row == record else b'%b"row":%d}' % (tail[: tail.rindex(b'"row":')], record)


def combined(record: int, parts: Sequence[Part]) -> bytes:
    """The tail of a record from those of its parts, in the order of its texts.

    Raises:
        ValueError: an answer is no embeddings response with one embedding.
    """
    try:
        return _combined(record, parts)
    except RecursionError:
        raise ValueError("an answer is nested too deeply") from None


def _combined(record: int, parts: Sequence[Part]) -> bytes:
    lines = [_line(b"{" + part.tail) for part in parts]
    answers = [
        (index, _answer(line))
        for index, (line, part) in enumerate(zip(lines, parts, strict=True))
        if part.is_answered
    ]
    body = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": answer.data[0].embedding}
            for index, answer in answers
        ],
        "model": next((answer.model for _, answer in answers), ""),
        "usage": {
            "prompt_tokens": sum(answer.usage.prompt_tokens for _, answer in answers),
            "total_tokens": sum(answer.usage.total_tokens for _, answer in answers),
        },
    }
    if len(answers) == len(parts):
        return answer_tail(record, 200, "", body)
    first = next(index for index, part in enumerate(parts) if not part.is_answered)
    failed = lines[first]
    error = failed.error or _Error("", "")
    message = f"text {first + 1} of {len(parts)}: {error.message}"
    if answers:
        message += f". Answers to {len(answers)} of the texts are in the response"
        return error_tail(record, error.code, message, status_code=MULTI_STATUS, body=body)
    found = failed.response
    if found is None:
        return error_tail(record, error.code, message)
    return error_tail(
        record,
        error.code,
        message,
        status_code=found.status_code,
        request_id=found.request_id,
        body=found.body,
    )


def _answer(line: _Line) -> _Body:
    if line.response is None:
        raise ValueError("an answer has no response")
    answer = _body(line.response.body)
    if len(answer.data) != 1:
        raise ValueError(f"an answer to one text has {len(answer.data)} embeddings")
    return answer

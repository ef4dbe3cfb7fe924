"""Canonical result lines: OpenAI batch output lines, plus the row. Owns their form.

    {"id": ..., "custom_id": ..., "response": {status_code, request_id, body} | null,
     "error": {code, message} | null, "row": n}

A line is made in two steps, so that joining needs no parsing: collecting writes everything behind
the ids (the tail), finishing puts the ids in front.
"""

from __future__ import annotations

from typing import Any

import msgspec

MESSAGE_LIMIT = 2000

_encode = msgspec.json.encode


def answer_tail(row: int, status_code: int, request_id: str, body: Any) -> bytes:
    """The tail of a successful answer. `body` may be `msgspec.Raw`: it is then passed on as is."""
    return b"".join(
        (
            b'"response":{"status_code":%d,"request_id":%b,"body":'
            % (status_code, _encode(request_id)),
            body if type(body) is msgspec.Raw else _encode(body),
            b'},"error":null,"row":%d}' % row,
        )
    )


def error_tail(
    row: int,
    code: str,
    message: str,
    *,
    status_code: int = 0,
    request_id: str = "",
    body: Any = None,
) -> bytes:
    """The tail of a record without an answer; with a status code it has a response too."""
    error = _encode({"code": code, "message": message[:MESSAGE_LIMIT]})
    response = b"null"
    if status_code:
        response = b'{"status_code":%d,"request_id":%b,"body":%b}' % (
            status_code,
            _encode(request_id),
            _encode(body),
        )
    return b'"response":%b,"error":%b,"row":%d}' % (response, error, row)


def result_line(run_tag: bytes, row: int, custom_id: bytes, tail: bytes) -> bytes:
    """The whole line, without its newline."""
    return b'{"id":"batch_req_%b_%010d","custom_id":%b,%b' % (run_tag, row, custom_id, tail)

"""What an answer or an exception of the SDK means: for a create call, and for every other call.

Owns the line between "refused for certain" and "nobody knows" (protocol 4.4). Pure.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2
from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

from batchinference.adapters import network
from batchinference.adapters.openai_batch.connection import WHERE
from batchinference.adapters.openai_batch.view import (
    BILLING_CODES,
    QUOTA_CODES,
    limit_in,
    shorten,
    text,
    too_large,
)
from batchinference.errors import Fault, Permanent, Retry, Stalled
from batchinference.model.batch import (
    BatchLimit,
    OutcomeUnknown,
    RefusalKind,
    Refused,
    SubmitOutcome,
)
from batchinference.model.status import Reason

_NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
"""No connection came about, so that not a byte was sent."""

_QUOTA_TEXTS = ("enqueued token limit reached", "enqueued request limit reached")
_CERTAIN = {400, 401, 402, 403, 404, 405, 406, 410, 411, 413, 414, 415, 422, 428, 429, 431, 451}
"""A 4xx that says that nothing was accepted. Not 408, 409, 425, 499: those say too little."""

_FILE_WAIT_S = 30.0
_BILLING_WAIT_S = 900.0


def outcome(error: Exception) -> SubmitOutcome:
    """What a create call that failed means. Nothing but a certain no is a refusal."""
    if isinstance(error, APIStatusError):
        return _status_outcome(error)
    if isinstance(error, APIConnectionError) and never_sent(error):
        if _bad_certificate(error):
            return Refused(
                RefusalKind.CREDENTIALS,
                "certificate",
                f"The endpoint's certificate is not trusted; check `{WHERE}.caBundle`.",
            )
        return Refused(
            RefusalKind.THROTTLED, "connect", f"No connection: {_cause(error)}.", retry_after_s=10.0
        )
    return OutcomeUnknown(f"No answer to the create call: {_cause(error)}.")


def _status_outcome(error: APIStatusError) -> SubmitOutcome:
    status, code, message = error.status_code, code_of(error), message_of(error)
    told = f"HTTP {status}: {message}"
    if status not in _CERTAIN:
        return OutcomeUnknown(told)
    if code in BILLING_CODES or status == 402:
        return Refused(RefusalKind.BILLING, code or str(status), told, retry_after_s(error))
    if code in QUOTA_CODES or any(t in message.lower() for t in _QUOTA_TEXTS):
        most = limit_in(message)
        return Refused(
            RefusalKind.QUOTA, code or str(status), told, retry_after_s(error), most=most
        )
    if status in {400, 413, 422} and (exceeds := _exceeds(error)) is not None:
        most = limit_in(message) if exceeds is BatchLimit.RECORDS else None
        return Refused(RefusalKind.TOO_LARGE, code or str(status), told, exceeds=exceeds, most=most)
    if status == 429:
        return Refused(RefusalKind.THROTTLED, code or "429", told, retry_after_s(error))
    if status in {401, 403}:
        return Refused(RefusalKind.CREDENTIALS, code or str(status), told)
    if status in {400, 404} and _file_not_ready(error):
        return Refused(RefusalKind.THROTTLED, code or "file_not_ready", told, _FILE_WAIT_S)
    return Refused(RefusalKind.INVALID, code or str(status), told)


def _exceeds(error: APIStatusError) -> BatchLimit | None:
    """What a refused batch, or upload, has too much of."""
    found = too_large({code_of(error)}, message_of(error))
    return found or (BatchLimit.BYTES if error.status_code == 413 else None)


def is_too_large(error: APIStatusError) -> bool:
    """Whether an upload was refused for its size, or for how many records it has."""
    return error.status_code in {400, 413, 422} and _exceeds(error) is not None


def _file_not_ready(error: APIStatusError) -> bool:
    """A file that was uploaded a moment ago and is not visible, or not checked, yet."""
    message = message_of(error).lower()
    if "file" not in message and text(error.param) not in {"input_file_id", "file_id"}:
        return False
    waits = ("not found", "no such file", "'pending' state", "not ready", "not yet processed")
    return any(known in message for known in waits)


def fault(error: Exception, doing: str) -> Fault:
    """What follows from any other call that failed.

    Args:
        error: what the SDK raised.
        doing: the call in the reader's words.
    """
    raised = next((cause for cause in _chain(error) if isinstance(cause, Fault)), None)
    if raised is not None:
        return raised  # the other end of a stream that this call was reading from
    doing = f"{doing}{_where(error)}"
    if isinstance(error, APIStatusError):
        return _status_fault(error, doing)
    if _bad_certificate(error):
        return Stalled(
            Reason.ENDPOINT_UNREACHABLE,
            f"Could not {doing}: the endpoint's certificate is not trusted; check "
            f"`{WHERE}.caBundle`.",
        )
    if _unknown_host(error):
        return Stalled(
            Reason.ENDPOINT_UNREACHABLE,
            f"Could not {doing}: the host of `{WHERE}.baseURL`, or of the pod's proxy, does not "
            "exist.",
        )
    return Retry(Reason.PROVIDER_UNAVAILABLE, f"Could not {doing}: {_cause(error)}.")


def _status_fault(error: APIStatusError, doing: str) -> Fault:
    status, told = error.status_code, f"HTTP {error.status_code}: {message_of(error)}"
    if status == 401:
        return Stalled(
            Reason.CREDENTIALS_REJECTED,
            f"The server refused the credentials ({told}); check `{WHERE}.apiKeySecretRef`.",
        )
    if status == 403:
        return Stalled(Reason.ACCESS_DENIED, f"Not allowed to {doing} ({told}).")
    if status in {404, 405, 501}:
        return Stalled(
            Reason.ENDPOINT_UNREACHABLE,
            f"Could not {doing}: `{WHERE}.baseURL` leads to no Files and Batch API ({told}).",
        )
    if 300 <= status < 400:
        target = shorten(error.response.headers.get("location", "nowhere"))
        return Stalled(
            Reason.ENDPOINT_UNREACHABLE,
            f"Could not {doing}: the server redirects to {target}; set `{WHERE}.baseURL` to where "
            "the API is.",
        )
    if status == 402 or code_of(error) in BILLING_CODES:
        return Stalled(
            Reason.BILLING,
            f"Could not {doing}: the provider wants its bill settled first ({told}). Add credit "
            "there, or raise the spending limit.",
            _BILLING_WAIT_S,
        )
    if status == 429 and code_of(error) in QUOTA_CODES:
        return Retry(Reason.QUOTA_WAIT, f"Could not {doing} ({told}).", retry_after_s(error))
    if status in {408, 409, 423, 425, 429} or status >= 500:
        return Retry(
            Reason.PROVIDER_UNAVAILABLE, f"Could not {doing} ({told}).", retry_after_s(error)
        )
    return Permanent(Reason.REFUSED, f"The server refused to {doing} ({told}).")


def code_of(error: APIStatusError) -> str:
    """The server's machine word; some put it in `type`, some give a number."""
    code = text(error.code) or text(error.type)
    return "" if code.isdigit() else code


def message_of(error: APIStatusError) -> str:
    """The server's sentence, shortened; "no message" where the body is none of the API's."""
    body: Any = error.body
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        for found in (inner.get("message"), inner.get("detail")) if _is_map(inner) else (inner,):
            if found and not _is_map(found):
                return shorten(text(found) or str(found))
    return "no message" if not isinstance(body, str) or "<" in body else shorten(body)


def retry_after_s(error: APIStatusError) -> float | None:
    """Seconds that the server asks to wait; None when it does not say."""
    return network.retry_after_s(error.response.headers)


def never_sent(error: Exception) -> bool:
    """Whether certainly nothing reached the server."""
    return isinstance(error.__cause__, _NEVER_SENT)


def is_json(error: APIStatusError) -> bool:
    """Whether the answer is the API's own and not that of something in between."""
    return isinstance(error.body, Mapping)


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _bad_certificate(error: Exception) -> bool:
    return any(
        isinstance(cause, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(cause)
        for cause in _chain(error)
    )


def _unknown_host(error: Exception) -> bool:
    final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
    return any(
        isinstance(cause, socket.gaierror) and cause.errno in final for cause in _chain(error)
    )


def _where(error: Exception) -> str:
    """The address that was asked, without what may be secret in it."""
    if not isinstance(error, APIError):
        return ""
    url = error.request.url
    return f" at {shorten(str(url.copy_with(userinfo=b'', query=None)))}"


def _cause(error: Exception) -> str:
    """The kind of failure, in the system's words where it has some."""
    if isinstance(error, APITimeoutError | TimeoutError):
        return "it took too long"
    for found in _chain(error):
        if type(found).__module__ == "builtins" and isinstance(found, OSError) and found.errno:
            return os.strerror(found.errno)
    cause = error.__cause__ or error
    return f"{type(cause).__name__}{f': {shorten(str(cause))}' if str(cause) else ''}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__

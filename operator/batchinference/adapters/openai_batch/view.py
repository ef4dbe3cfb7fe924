"""A batch as servers describe it, brought to one vocabulary.

Reads the JSON itself and not the SDK's types, because servers that speak "the same" API differ:
other statuses, empty or missing file ids, ISO times, errors as a list or a sentence. What can't be
read is left at its default and never raised: an odd batch must not hide the others of its page.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from batchinference.adapters.openai_batch.names import submission_of
from batchinference.model.batch import BatchFailure, BatchLimit, BatchState, BatchView

STATES: Mapping[str, BatchState] = {
    "validating": BatchState.VALIDATING,
    "created": BatchState.VALIDATING,
    "pending": BatchState.VALIDATING,
    "queued": BatchState.VALIDATING,
    "scheduling": BatchState.VALIDATING,
    "submitted": BatchState.VALIDATING,
    "in_progress": BatchState.IN_PROGRESS,
    "processing": BatchState.IN_PROGRESS,
    "progress": BatchState.IN_PROGRESS,
    "running": BatchState.IN_PROGRESS,
    "finalizing": BatchState.FINALIZING,
    "cancelling": BatchState.CANCELLING,
    "canceling": BatchState.CANCELLING,
    "cancellation_requested": BatchState.CANCELLING,
    "completed": BatchState.COMPLETED,
    "succeeded": BatchState.COMPLETED,
    "success": BatchState.COMPLETED,
    "partially_completed": BatchState.PARTIAL,
    "failed": BatchState.FAILED,
    "expired": BatchState.EXPIRED,
    "timeout_exceeded": BatchState.EXPIRED,
    "cancelled": BatchState.CANCELLED,
    "canceled": BatchState.CANCELLED,
}
"""Words for a batch's state, in lower case; any other word is UNKNOWN, so treated as running."""

_ENDED_AT = {
    BatchState.COMPLETED: "completed_at",
    BatchState.PARTIAL: "completed_at",
    BatchState.FAILED: "failed_at",
    BatchState.EXPIRED: "expired_at",
    BatchState.CANCELLED: "cancelled_at",
}

QUOTA_CODES = {"token_limit_exceeded"}
BILLING_CODES = {"billing_hard_limit_reached", "billing_not_active", "insufficient_quota"}
_QUOTA_TEXTS = ("enqueued token limit reached", "enqueued request limit reached")
RECORDS_CODES = {"too_many_tasks", "too_many_requests_in_batch", "batch_too_large"}
BYTES_CODES = {"file_too_large", "payload_too_large", "request_too_large", "max_file_size_exceeded"}
_RECORDS_TEXTS = (
    "too many lines",
    "too many requests in",
    "too many records",
    "number of requests",
    "number of lines",
    "requests per batch",
    "requests per file",
)
_BYTES_TEXTS = ("file is too large", "file too large", "file size", "size limit", "maximum size")
_LIMIT = re.compile(
    r"(?:limit|maximum|max|at most|up to|exceeds?)"
    r"(?:\s+(?:of|is|the|number|allowed|limit|requests|lines|records|per|batch|file))*"
    r"[\s:=(]*(\d[\d,_]*)",
    re.IGNORECASE,
)
_VALIDATION_CODES = {
    "duplicate_custom_id",
    "empty_batch",
    "empty_file",
    "input_modified",
    "input_no_permissions",
    "invalid_input_file",
    "invalid_json_line",
    "invalid_method",
    "invalid_request",
    "invalid_url",
    "mismatched_model",
    "missing_required_parameter",
    "model_mismatch",
    "model_not_found",
    "streaming_unsupported",
    "url_mismatch",
    "validation_error",
    *QUOTA_CODES,
    *BILLING_CODES,
    *RECORDS_CODES,
    *BYTES_CODES,
}
_ENTRIES_SHOWN = 3
_TEXT_LIMIT = 240


def view(found: Mapping[str, Any]) -> BatchView:
    """The batch; `id` is "" where it has none."""
    state = state_of(found.get("status"))
    counts = _mapping(found.get("request_counts"))
    total, completed, failed = (count(counts.get(n)) for n in ("total", "completed", "failed"))
    answers, errors = text(found.get("output_file_id")), text(found.get("error_file_id"))
    return BatchView(
        id=text(found.get("id")),
        state=state,
        raw_state=text(found.get("status")),
        submission=submission_of(found.get("metadata")),
        input_ref=text(found.get("input_file_id")),
        created_at=time_of(found.get("created_at")),
        ended_at=time_of(found.get(_ENDED_AT[state])) if state in _ENDED_AT else None,
        total=total,
        completed=completed,
        failed=failed,
        files=tuple(dict.fromkeys(name for name in (answers, errors) if name)),
        # Some servers count a failed record as a completed one, too.
        lacks_answers=completed > 0 and not answers and not (errors and 0 < total <= failed),
        failure=failure(found) if state is BatchState.FAILED else None,
    )


def state_of(status: Any) -> BatchState:
    """The state behind a server's word, in whatever case it is written."""
    word = text(status).lower().replace("-", "_").replace(" ", "_")
    return STATES.get(word, BatchState.UNKNOWN)


def failure(found: Mapping[str, Any]) -> BatchFailure:
    """Why a failed batch failed, from errors in any of their shapes."""
    entries = list(_entries(found.get("errors"))) or list(_entries(found.get("error")))
    code, param = next(((c, p) for c, _, p in entries if c), ("", ""))
    message = "; ".join(m for _, m, _ in entries[:_ENTRIES_SHOWN] if m)
    if len(entries) > _ENTRIES_SHOWN:
        message += f"; and {len(entries) - _ENTRIES_SHOWN} more"
    codes = {c for c, _, _ in entries if c}
    quota = bool(codes & QUOTA_CODES) or _mentions(message, _QUOTA_TEXTS)
    exceeds = None if quota else too_large(codes, message)
    return BatchFailure(
        code=code,
        message=message,
        billing=bool(codes & BILLING_CODES),
        quota=quota,
        # An upload that is not visible yet ends as a failed batch.
        transient=(code == "invalid_request" and param in {"file_id", "input_file_id"})
        or code == "file_not_found",
        nothing_processed=_nothing_processed(found, codes),
        exceeds=exceeds,
        most=limit_in(message) if quota or exceeds is BatchLimit.RECORDS else None,
    )


def too_large(codes: Collection[str], message: str) -> BatchLimit | None:
    """What a batch has too much of, by the server's words; None when that is not what is wrong."""
    if RECORDS_CODES.intersection(codes) or _mentions(message, _RECORDS_TEXTS):
        return BatchLimit.RECORDS
    if BYTES_CODES.intersection(codes) or _mentions(message, _BYTES_TEXTS):
        return BatchLimit.BYTES
    return None


def limit_in(message: str) -> int | None:
    """The limit that a sentence names. Of bytes none is taken: they come in any unit."""
    found = _LIMIT.search(message)
    return int(re.sub(r"\D", "", found[1])) if found else None


def _nothing_processed(found: Mapping[str, Any], codes: set[str]) -> bool:
    """`failed` means validation, but some servers say it of batches that ran.

    What speaks for having run: a start time, answered records, and, unless the errors are those
    of a validation, failed records or result files.
    """
    counts = _mapping(found.get("request_counts"))
    if found.get("in_progress_at") or count(counts.get("completed")):
        return False
    if codes & _VALIDATION_CODES:
        return True
    return not (
        count(counts.get("failed"))
        or text(found.get("output_file_id"))
        or text(found.get("error_file_id"))
    )


def _entries(errors: Any) -> Iterator[tuple[str, str, str]]:
    """Code, sentence and parameter of every entry, from {data: [...]}, a list or a sentence."""
    if isinstance(errors, Mapping):
        inner = errors.get("data")
        yield from _entries(inner) if isinstance(inner, list) else iter([_entry(errors)])
    elif isinstance(errors, list):
        for one in errors:
            yield _entry(one) if isinstance(one, Mapping) else ("", shorten(text(one)), "")
    elif text(errors):
        yield "", shorten(text(errors)), ""


def _entry(one: Mapping[str, Any]) -> tuple[str, str, str]:
    message = shorten(text(one.get("message")))
    line = one.get("line")
    if isinstance(line, int) and not isinstance(line, bool):
        message = f"line {line}: {message}"
    return text(one.get("code")), message, text(one.get("param"))


def _mentions(message: str, texts: tuple[str, ...]) -> bool:
    return any(known in message.lower() for known in texts)


# ---------------------------------------------------------------- lenient readings


def text(value: Any) -> str:
    """A string, or "" for anything else (null, an object, ...); numbers are spelled out."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def count(value: Any) -> int:
    """A number of something; 0 for what is none."""
    try:
        return max(0, int(value))
    except (TypeError, ValueError, OverflowError):
        return 0


def time_of(value: Any) -> datetime | None:
    """A time from Unix seconds, as a number or digits, or from ISO 8601."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not value:
        return None
    try:
        if isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            parsed = datetime.fromisoformat(value)
            return parsed.astimezone(UTC) if parsed.tzinfo else parsed.replace(tzinfo=UTC)
        return datetime.fromtimestamp(float(value), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def shorten(message: str) -> str:
    """At most 240 characters on one line, so that no record's content comes along."""
    line = " ".join(message.split())
    return line if len(line) <= _TEXT_LIMIT else line[: _TEXT_LIMIT - 1] + "…"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

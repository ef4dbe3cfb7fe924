"""A model invocation job as AWS describes it, brought to one vocabulary.

Pure. Summaries of a listing and the answer of a single get have the same members.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from batchinference.adapters.bedrock.names import results_prefix, submission_of
from batchinference.model.batch import BatchFailure, BatchLimit, BatchState, BatchView

STATES: Mapping[str, BatchState] = {
    "Submitted": BatchState.VALIDATING,
    "Validating": BatchState.VALIDATING,
    "Scheduled": BatchState.VALIDATING,
    "InProgress": BatchState.IN_PROGRESS,
    "Completed": BatchState.COMPLETED,
    "PartiallyCompleted": BatchState.PARTIAL,
    "Failed": BatchState.FAILED,
    "Stopping": BatchState.CANCELLING,
    "Stopped": BatchState.CANCELLED,
    "Expired": BatchState.EXPIRED,
}
"""AWS's words; any other, and none at all, is UNKNOWN, so treated as running."""

MAYBE = "maybe:"
"""Before a results prefix: a job that was stopped, or failed late, may have left nothing there."""

_QUOTA_TEXTS = ("quota", "limit exceeded", "too many", "concurrent")
_RECORDS_TEXTS = (
    "contains more records",
    "too many records",
    "number of records",
    "records per batch inference job",
    "records per input file",
)
_BYTES_TEXTS = ("file size", "job size", "file is too large", "input size", "maximum size")
_MINIMUM_TEXTS = ("contains less records", "required minimum")
_PERMISSION_TEXTS = (
    "could not validate getobject",
    "could not validate putobject",
    "permissions to invoke",
    "not authorized",
    "access denied",
)
_TRANSIENT_TEXTS = ("internal server error", "service unavailable", "try again")
_VALIDATION = {"MinimumRecords", "MaximumRecords", "MaximumSize", "Permissions"}
_EXCEEDS = {"MaximumRecords": BatchLimit.RECORDS, "MaximumSize": BatchLimit.BYTES}
_LIMIT = re.compile(
    r"(?:maximum|limit|quota|at most|exceeds?)"
    r"(?:\s+(?:of|is|the|number|allowed|limit|records|per|batch|inference|job))*"
    r"[\s:=(]*(\d[\d,]*)",
    re.IGNORECASE,
)
_MESSAGE_LIMIT = 400


def view(job: Mapping[str, Any]) -> BatchView:
    """The job; its record counts are trusted only once something was processed."""
    raw = str(job.get("status") or "")
    state = STATES.get(raw, BatchState.UNKNOWN)
    processed = int(job.get("processedRecordCount") or 0)
    counted = job.get("totalRecordCount")
    total = int(counted or 0)
    arn = str(job.get("jobArn", ""))
    failed = failure(str(job.get("message") or ""), counted, processed)
    return BatchView(
        id=arn,
        state=state,
        raw_state=raw,
        submission=submission_of(str(job.get("jobName", ""))),
        input_ref=_s3_uri(job, "inputDataConfig", "s3InputDataConfig"),
        created_at=_time(job.get("submitTime")),
        ended_at=_time(job.get("endTime")) if state.is_over else None,
        total=total,
        completed=int(job.get("successRecordCount") or 0) if processed else 0,
        failed=int(job.get("errorRecordCount") or 0) if processed else 0,
        files=_files(job, state, processed, arn, failed),
        failure=failed if state is BatchState.FAILED else None,
    )


def failure(message: str, total: int | None, processed: int) -> BatchFailure:
    """Why a job failed as a whole, recognised by AWS's sentences: there is no code.

    Nothing was processed where the sentence is a validation's, or where AWS says that it had not
    even begun to count: `total` is 0 until processing starts. None is no such word: counts are
    optional in AWS's description of a job, and older APIs lack them.
    """
    known = message.lower()
    code = ""
    for name, texts in (
        ("MinimumRecords", _MINIMUM_TEXTS),
        ("Permissions", _PERMISSION_TEXTS),
        ("MaximumRecords", _RECORDS_TEXTS),
        ("MaximumSize", _BYTES_TEXTS),
        ("Quota", _QUOTA_TEXTS),
        ("ServiceFault", _TRANSIENT_TEXTS),
    ):
        if any(part in known for part in texts):
            code = name
            break
    line = " ".join(message.split())
    return BatchFailure(
        code=code,
        message=line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…",
        quota=code == "Quota",
        transient=code == "ServiceFault",
        nothing_processed=processed == 0
        and (total == 0 or code in _VALIDATION or (code == "Quota" and "quota" in known)),
        exceeds=_EXCEEDS.get(code),
        most=_limit_in(line) if code == "MaximumRecords" else None,
    )


def _limit_in(message: str) -> int | None:
    """The number of records that a sentence names as the most; sizes come in any unit."""
    found = _LIMIT.search(message)
    return int(found[1].replace(",", "")) if found else None


def _files(
    job: Mapping[str, Any], state: BatchState, processed: int, arn: str, failed: BatchFailure
) -> tuple[str, ...]:
    output = _s3_uri(job, "outputDataConfig", "s3OutputDataConfig")
    if not output:
        return ()
    prefix = results_prefix(output, arn)
    match state:
        case BatchState.COMPLETED | BatchState.PARTIAL:
            return (prefix,)
        case BatchState.CANCELLED:
            return (prefix,) if processed else (MAYBE + prefix,)
        case BatchState.FAILED if not failed.nothing_processed:
            return (MAYBE + prefix,)
        case _:  # goes on, expired before it began, or refused by validation: nothing is there
            return ()


def _s3_uri(job: Mapping[str, Any], config: str, member: str) -> str:
    return str(((job.get(config) or {}).get(member) or {}).get("s3Uri") or "")


def _time(value: Any) -> datetime | None:
    if not isinstance(value, datetime):
        return None
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)

"""Every call of an S3 client gets an amount of time by what it sends.

Owns how that is hooked into boto3, as boto3 documents it for extensions: a base class for clients.
"""

from __future__ import annotations

from typing import Any

import boto3

from batchinference.adapters.pace import Pace
from batchinference.model.status import Reason

_SERVER_S = 900.0
_AT_THE_SERVER = {"CopyObject", "UploadPartCopy", "CompleteMultipartUpload"}
"""Calls in which the server moves the bytes, and says little until it is done."""


def keep_pace(session: boto3.Session, pace: Pace) -> None:
    """Bound the calls of the session's future S3 clients. They raise Retry besides what boto3
    does. The body of an answer is read later, and bounded by who reads it.
    """

    class Paced:
        def _make_api_call(self, operation: str, request: dict[str, Any]) -> Any:
            where = f"s3://{request.get('Bucket', '')}/{request.get('Key', '')}"
            size = len(request.get("Body", b""))
            if operation in _AT_THE_SERVER:
                size = int(_SERVER_S * pace.least_bytes_per_s)
            plain: Any = super()
            return pace.call(
                f"{operation} of {where}",
                Reason.STORAGE_UNAVAILABLE,
                lambda: plain._make_api_call(operation, request),  # noqa: SLF001 - see the module
                size,
            )

    def add(base_classes: list[type], **_event: Any) -> None:
        base_classes.insert(0, Paced)

    session.events.register("creating-client-class.s3", add)

"""Every call of an S3 client is a transfer that must not be too slow.

Owns how that is hooked into boto3, as boto3 documents it for extensions: a base class for clients.
"""

from __future__ import annotations

from typing import Any

import boto3

from batchinference.adapters.transfers import Transfers
from batchinference.model.status import Reason

_SERVER_S = 900.0
_AT_THE_SERVER = {"CopyObject", "UploadPartCopy", "CompleteMultipartUpload"}
"""Calls in which the server moves the bytes, and says little until it is done."""


def count_calls(session: boto3.Session, transfers: Transfers) -> None:
    """Count the calls of the session's future S3 clients among the transfers. The body of an
    answer is read later, and counted by who reads it.
    """

    class Counted:
        def _make_api_call(self, operation: str, request: dict[str, Any]) -> Any:
            key = request.get("Key") or request.get("Prefix", "")
            where = f"s3://{request.get('Bucket', '')}/{key}"
            size = len(request.get("Body", b""))
            if operation in _AT_THE_SERVER:
                size = int(_SERVER_S * transfers.pace.least_bytes_per_s)
            plain: Any = super()
            with transfers.call(f"{operation} of {where}", Reason.STORAGE_UNAVAILABLE, size):
                return plain._make_api_call(operation, request)  # noqa: SLF001 - see the module

    def add(base_classes: list[type], **_event: Any) -> None:
        base_classes.insert(0, Counted)

    session.events.register("creating-client-class.s3", add)

"""A streaming write to S3 that becomes visible as a whole or not at all.

Small objects go in a single put, larger ones as a multipart upload, which nobody sees before it is
completed. Holds at most one part in memory.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from botocore import exceptions as aws

from batchinference.adapters.s3.faults import refuse, split_uri
from batchinference.errors import Fault
from batchinference.ports import ObjectInfo

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART = 8 << 20
"""Bytes of one part; 10,000 parts make 80 GB."""


class S3Writer:
    """See `ports.ObjectWriter`."""

    def __init__(self, client: S3Client, uri: str, part: int = PART) -> None:
        self._client = client
        self._uri = uri
        self._bucket, self._key = split_uri(uri)
        self._part = part
        self._buffer = bytearray()
        self._size = 0
        self._upload = ""
        self._parts: list[CompletedPartTypeDef] = []
        self._over = False

    def write(self, data: bytes) -> None:
        """See `ports.ObjectWriter.write`.

        Raises:
            Stalled, Retry: the write is over then and nothing of it is visible.
            ValueError: after commit or abort.
        """
        if self._over:
            raise ValueError(f"the write to {self._uri} is over")
        rest = memoryview(data)
        while rest.nbytes:
            room = self._part - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]
            if len(self._buffer) == self._part:
                self._send_part()

    def commit(self) -> ObjectInfo:
        """See `ports.ObjectWriter.commit`. Raises as `write`."""
        if self._over:
            raise ValueError(f"the write to {self._uri} is over")
        try:
            etag, version = self._complete() if self._upload else self._put()
        except (aws.ClientError, aws.BotoCoreError) as error:
            self.abort()
            refuse(error, "write", self._uri)
        self._over = True
        self._buffer.clear()
        return ObjectInfo(self._uri, self._size, etag.strip('"'), version)

    def abort(self) -> None:
        """See `ports.ObjectWriter.abort`. Never raises."""
        self._over = True
        self._buffer.clear()
        upload, self._upload = self._upload, ""
        if not upload:
            return
        # What can't be removed now is invisible, and goes when the run's staging is deleted.
        with suppress(aws.ClientError, aws.BotoCoreError, Fault):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=upload)

    def __del__(self) -> None:
        """A writer that is dropped is aborted."""
        if not getattr(self, "_over", True):
            with suppress(Exception):
                self.abort()

    def _put(self) -> tuple[str, str]:
        body = bytes(self._buffer)
        self._size = len(body)
        answer = self._client.put_object(Bucket=self._bucket, Key=self._key, Body=body)
        return answer["ETag"], answer.get("VersionId", "")

    def _send_part(self) -> None:
        try:
            if not self._upload:
                started = self._client.create_multipart_upload(Bucket=self._bucket, Key=self._key)
                self._upload = started["UploadId"]
            number = len(self._parts) + 1
            answer = self._client.upload_part(
                Bucket=self._bucket,
                Key=self._key,
                UploadId=self._upload,
                PartNumber=number,
                Body=bytes(self._buffer),
            )
        except (aws.ClientError, aws.BotoCoreError) as error:
            self.abort()
            refuse(error, "write", self._uri)
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        self._size += len(self._buffer)
        self._buffer.clear()

    def _complete(self) -> tuple[str, str]:
        if self._buffer:
            self._send_part()
        answer = self._client.complete_multipart_upload(
            Bucket=self._bucket,
            Key=self._key,
            UploadId=self._upload,
            MultipartUpload={"Parts": self._parts},
        )
        self._upload = ""
        return answer["ETag"], answer.get("VersionId", "")

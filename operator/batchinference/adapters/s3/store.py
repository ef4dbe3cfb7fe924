"""`ports.ObjectStore` over boto3.

Owns conditional writes, resumed reads, copies and deletions. Synchronous: it runs where tasks run,
never on the operator's loop. It must not know what the objects mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from botocore import exceptions as aws

from batchinference.adapters import aws as cloud
from batchinference.adapters import network
from batchinference.adapters.s3.calls import count_calls
from batchinference.adapters.s3.faults import (
    BROKEN,
    CHANGED,
    RACING,
    WHERE,
    is_missing,
    refuse,
    refuse_one,
    split_uri,
)
from batchinference.adapters.s3.writer import PART, S3Writer
from batchinference.adapters.transfers import TRANSFERS, Transfers
from batchinference.errors import Fault, InvalidObject, Permanent, Retry, Stalled
from batchinference.model.codec import decode
from batchinference.model.provider import S3Storage
from batchinference.model.status import Reason
from batchinference.ports import ObjectInfo, SourceChanged

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, GetObjectOutputTypeDef

CHUNK = 1 << 20
"""Bytes of one piece of a read."""

COPY_LIMIT = 5 << 30
"""Bytes that S3 copies in one call; above it the copy goes by parts."""

COPY_PART = 512 << 20
"""Bytes of one part of a copy by parts."""

READ_ATTEMPTS = 5
"""Broken connections in a row, without a byte in between, until a read gives up."""

_CALL = (aws.ClientError, aws.BotoCoreError)


class S3Store:
    """See `ports.ObjectStore`. One instance may be used by many threads."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, Mapping[str, str]],
        *,
        own_identity: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        transfers: Transfers = TRANSFERS,
        part: int = PART,
        copy_limit: int = COPY_LIMIT,
        copy_part: int = COPY_PART,
    ) -> None:
        """Make a client; no call is made yet.

        Args:
            settings: the provider's spec as the API server has it; `storage.s3` is read.
            secrets: resolved Secrets by role; `storage` is read.
            own_identity: whether the operator's own identity may be used where no Secret is named.
            sleep: how to wait between attempts.
            transfers: where calls and reads are counted.
            part: bytes of one part of a streaming write.
            copy_limit: bytes above which a copy goes by parts.
            copy_part: bytes of one part of a copy.

        Raises:
            Stalled: there is no storage in the settings, or a key is missing in the Secret.
        """
        storage = _storage(settings)
        keys = cloud.named_or_own(
            storage.credentials_secret_ref is not None,
            secrets.get("storage"),
            field_path=f"{WHERE}.credentialsSecretRef",
            own_identity=own_identity,
        )
        foreign = bool(storage.endpoint_url)
        checksums = "when_required" if foreign else "when_supported"
        session = cloud.session(keys, storage.region, sleep)
        count_calls(session, transfers)
        self._client: S3Client = cloud.client(
            session,
            "s3",
            storage.endpoint_url,
            network.checked(storage.ca_bundle, f"{WHERE}.caBundle"),
            read_timeout_s=60,
            connections=16,
            s3={"addressing_style": "path" if foreign else "auto"},
            # Stores other than AWS's stumble over the newer checksums that boto3 adds.
            request_checksum_calculation=checksums,
            response_checksum_validation=checksums,
        )
        self._sleep = sleep
        self._transfers = transfers
        self._part = part
        self._copy_limit = copy_limit
        self._copy_part = copy_part

    # ------------------------------------------------------------ looking

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        """See `ports.ObjectStore.head`."""
        bucket, key = split_uri(uri)
        more: dict[str, Any] = {"VersionId": version} if version else {}
        try:
            found = self._client.head_object(Bucket=bucket, Key=key, **more)
        except _CALL as error:
            # A HEAD has no body: only the status tells a missing object from a missing bucket.
            if is_missing(error):
                self._require_bucket(bucket, uri)
                return None
            if version and cloud.status_of(error) in {400, 405}:
                return None  # no such version id, or one that marks a deletion
            refuse(error, "read", uri)
        return ObjectInfo(
            uri,
            found["ContentLength"],
            found["ETag"].strip('"'),
            found.get("VersionId", ""),
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.list`."""
        bucket, key = split_uri(prefix)
        pages = self._client.get_paginator("list_objects_v2")
        try:
            for page in pages.paginate(Bucket=bucket, Prefix=key):
                for found in page.get("Contents", ()):
                    uri, etag = f"s3://{bucket}/{found['Key']}", found["ETag"].strip('"')
                    yield ObjectInfo(uri, found["Size"], etag)
        except _CALL as error:
            refuse(error, "list", prefix)

    def _require_bucket(self, bucket: str, uri: str) -> None:
        try:
            self._client.head_bucket(Bucket=bucket)
        except _CALL as error:
            if cloud.status_of(error) != 404:
                return  # may not look at the bucket, but it is there
            raise Stalled(
                Reason.BUCKET_NOT_FOUND,
                f"The bucket {bucket!r} does not exist; create it, or correct the URI {uri}.",
            ) from error

    # ------------------------------------------------------------ reading

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """See `ports.ObjectStore.read`."""
        position, failures = start, 0
        transfer = self._transfers.begin(f"Reading {info.uri}", Reason.STORAGE_UNAVAILABLE)
        while position < info.size:
            found = self._open(info, position)
            body = found["Body"]
            # Some stores know no ranges and begin anew.
            again = 0 if found.get("ContentRange") else position
            try:
                while position < info.size:
                    wanted = min(CHUNK, again or info.size - position)
                    with transfer.moving(wanted):
                        piece = body.read(wanted)
                    if not piece:
                        break
                    transfer.moved(len(piece))
                    if again:
                        again -= len(piece)
                        continue
                    position += len(piece)
                    failures = 0
                    yield piece
            except BROKEN as error:
                cause: Exception | None = error
            else:
                cause = None
            finally:
                body.close()
            if position < info.size:
                failures += 1
                if failures >= READ_ATTEMPTS:
                    raise Retry(
                        Reason.STORAGE_UNAVAILABLE,
                        f"Reading {info.uri} broke off at byte {position} of {info.size}, "
                        f"{failures} times in a row.",
                    ) from cause
                self._sleep(min(8.0, 0.25 * 2**failures))

    def _open(self, info: ObjectInfo, position: int) -> GetObjectOutputTypeDef:
        bucket, key = split_uri(info.uri)
        request: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if info.etag:
            request["IfMatch"] = f'"{info.etag}"'
        if position:
            request["Range"] = f"bytes={position}-"
        versioned = {**request, "VersionId": info.version} if info.version else request
        try:
            try:
                found = self._client.get_object(**versioned)
            except _CALL as error:
                # Versions need a permission of their own. Without it the ETag alone must do: it
                # either matches, and then the bytes are the same, or the source has changed.
                if versioned is request or not cloud.is_denied(error):
                    raise
                found = self._client.get_object(**request)
        except _CALL as error:
            if cloud.code_of(error) in CHANGED | {"InvalidRange", "416"} or is_missing(error):
                raise SourceChanged(f"{info.uri} changed while it was being read") from error
            refuse(error, "read", info.uri)
        # Some stores overlook the condition.
        if info.etag and found.get("ETag", "").strip('"') not in {"", info.etag}:
            found["Body"].close()
            raise SourceChanged(f"{info.uri} changed while it was being read")
        return found

    def get(self, uri: str, limit: int = 1 << 20) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        bucket, key = split_uri(uri)
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                found = self._client.get_object(Bucket=bucket, Key=key)
            except _CALL as error:
                if is_missing(error):
                    return None
                refuse(error, "read", uri)
            with found["Body"] as body:
                size = found.get("ContentLength")  # some stores do not announce it
                if (size or 0) > limit:
                    raise _too_large(uri, f"{size}", limit)
                try:
                    with self._transfers.call(f"Reading {uri}", Reason.STORAGE_UNAVAILABLE, limit):
                        data = body.read(limit + 1 if size is None else None)
                    if len(data) > limit:
                        raise _too_large(uri, "more", limit)
                    return data  # noqa: TRY300 - nothing more follows
                except BROKEN as error:
                    if attempt == READ_ATTEMPTS:
                        raise Retry(
                            Reason.STORAGE_UNAVAILABLE, f"Reading {uri} broke off."
                        ) from error
            self._sleep(min(8.0, 0.25 * 2**attempt))
        raise AssertionError("the loop returns or raises")

    # ------------------------------------------------------------ writing

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """See `ports.ObjectStore.put`.

        A conditional put whose answer was lost may say False for what it wrote itself: whoever
        claims a place reads the claim again.
        """
        bucket, key = split_uri(uri)
        more: dict[str, Any] = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            self._client.put_object(Bucket=bucket, Key=key, Body=data, **more)
        except _CALL as error:
            if only_if_absent and cloud.code_of(error) in CHANGED:
                return False
            self._refuse_put(error, uri)
        return True

    @staticmethod
    def _refuse_put(error: Exception, uri: str) -> NoReturn:
        if cloud.code_of(error) in RACING:
            raise Retry(
                Reason.STORAGE_UNAVAILABLE,
                f"Another writer is at {uri} at this moment.",
                after_s=1,
            ) from error
        refuse(error, "write", uri)

    def put_over(self, info: ObjectInfo, data: bytes) -> bool:
        """See `tasks.places.ConditionalWrites`. As with `put`, a lost answer may say False."""
        bucket, key = split_uri(info.uri)
        try:
            self._client.put_object(Bucket=bucket, Key=key, Body=data, IfMatch=f'"{info.etag}"')
        except _CALL as error:
            if cloud.code_of(error) in CHANGED or is_missing(error):
                return False
            self._refuse_put(error, info.uri)
        return True

    def writer(self, uri: str) -> S3Writer:
        """See `ports.ObjectStore.writer`."""
        return S3Writer(self._client, uri, self._part)

    def copy(self, source: str, target: str) -> None:
        """See `ports.ObjectStore.copy`. The bytes stay inside S3.

        Raises:
            Permanent: `AnswerLost` is not decided here; a missing source is `InputNotFound`.
            SourceChanged: the source changed while it was copied by parts.
            Stalled, Retry.
        """
        info = self.head(source)
        if info is None:
            raise Permanent(Reason.INPUT_NOT_FOUND, f"{source} is not there to be copied.")
        bucket, key = split_uri(target)
        from_bucket, from_key = split_uri(source)
        if info.size > self._copy_limit:
            self._copy_by_parts(info, target)
            return
        try:
            self._client.copy_object(
                Bucket=bucket, Key=key, CopySource={"Bucket": from_bucket, "Key": from_key}
            )
        except _CALL as error:
            refuse(error, f"copy {source} to", target)

    def _copy_by_parts(self, info: ObjectInfo, target: str) -> None:
        bucket, key = split_uri(target)
        from_bucket, from_key = split_uri(info.uri)
        upload = ""
        parts: list[CompletedPartTypeDef] = []
        try:
            upload = self._client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
            for number, start in enumerate(range(0, info.size, self._copy_part), start=1):
                end = min(start + self._copy_part, info.size) - 1
                copied = self._client.upload_part_copy(
                    Bucket=bucket,
                    Key=key,
                    UploadId=upload,
                    PartNumber=number,
                    CopySource={"Bucket": from_bucket, "Key": from_key},
                    CopySourceIfMatch=f'"{info.etag}"',
                    CopySourceRange=f"bytes={start}-{end}",
                )
                parts.append({"PartNumber": number, "ETag": copied["CopyPartResult"]["ETag"]})
            self._client.complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except _CALL as error:
            if upload:
                with suppress(*_CALL, Fault):
                    self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
            if cloud.code_of(error) in CHANGED:
                raise SourceChanged(f"{info.uri} changed while it was being copied") from error
            refuse(error, f"copy {info.uri} to", target)

    # ------------------------------------------------------------ deleting

    def delete(self, uri: str) -> None:
        """See `ports.ObjectStore.delete`."""
        bucket, key = split_uri(uri)
        try:
            self._client.delete_object(Bucket=bucket, Key=key)
        except _CALL as error:
            if not is_missing(error):
                refuse(error, "delete", uri)

    def delete_prefix(self, prefix: str) -> None:
        """See `ports.ObjectStore.delete_prefix`. Unfinished uploads under it go too.

        Raises:
            ValueError: the prefix does not end in "/", or is a whole bucket.
        """
        bucket, key = split_uri(prefix)
        if not key or not key.endswith("/"):
            raise ValueError(f"{prefix!r} is not a prefix that may be deleted")
        objects = self.list(prefix)
        while keys := [split_uri(info.uri)[1] for info in islice(objects, 1000)]:
            self._delete_keys(bucket, keys, prefix)
        self.abort_writes(prefix, lambda _uri: True)

    def _delete_keys(self, bucket: str, keys: Sequence[str], prefix: str) -> None:
        """At most 1000, which is what one call takes."""
        try:
            answer = self._client.delete_objects(
                Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
            )
        except _CALL as error:
            refuse(error, "delete", prefix)
        for failed in answer.get("Errors", ()):
            refuse_one("delete", f"s3://{bucket}/{failed.get('Key', '')}", failed.get("Code", ""))

    def abort_writes(self, prefix: str, is_ours: Callable[[str], bool]) -> None:
        """See `tasks.places.UnfinishedWrites`. Not every store can list them, nor every identity:
        the bucket's lifecycle rule is the fallback.
        """
        bucket, key = split_uri(prefix)
        with suppress(*_CALL):
            pages = self._client.get_paginator("list_multipart_uploads")
            for page in pages.paginate(Bucket=bucket, Prefix=key):
                for upload in page.get("Uploads", ()):
                    if is_ours(f"s3://{bucket}/{upload['Key']}"):
                        self._client.abort_multipart_upload(
                            Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )


def _too_large(uri: str, size: str, limit: int) -> Permanent:
    return Permanent(Reason.TOO_LARGE, f"{uri} has {size} bytes; at most {limit} are read.")


def _storage(settings: Mapping[str, Any]) -> S3Storage:
    found = (settings.get("storage") or {}).get("s3")
    if found is None:
        raise Stalled(
            Reason.STORAGE_MISSING,
            f"The provider has no `{WHERE}`, so it can't use object storage.",
        )
    try:
        return decode(S3Storage, found, WHERE, ignore_unknown=True)
    except InvalidObject as error:
        raise Stalled(Reason.INVALID_SPEC, str(error)) from error

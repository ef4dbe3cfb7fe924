"""Where an object is, and what a failed call on it means.

Owns the parsing of s3:// URIs and the words for S3's refusals. Makes no calls.
"""

from __future__ import annotations

from typing import NoReturn

from botocore import exceptions as aws
from urllib3.exceptions import HTTPError

from batchinference.adapters import aws as cloud
from batchinference.errors import Retry, Stalled
from batchinference.model.status import Reason

WHERE = "spec.storage.s3"
"""The provider's field that says how to reach the store."""

NOT_FOUND = {"404", "NoSuchKey", "NoSuchVersion", "NotFound"}
CHANGED = {"412", "PreconditionFailed"}
RACING = {"ConditionalRequestConflict", "OperationAborted"}

BROKEN: tuple[type[Exception], ...] = (
    aws.ConnectionError,
    aws.HTTPClientError,
    aws.IncompleteReadError,
    aws.ResponseStreamingError,
    aws.FlexibleChecksumError,
    HTTPError,
    OSError,
)
"""What a body that stops in the middle raises."""


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI; the key of a bucket's root is "".

    Raises:
        Stalled: it is no such URI.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise Stalled(Reason.INVALID_SPEC, f"{uri!r} is not of the form s3://bucket/key.")
    return bucket, key


def is_missing(error: Exception) -> bool:
    """Whether it says that there is no such object (a missing bucket is another matter)."""
    code = cloud.code_of(error)
    return code in NOT_FOUND or (cloud.status_of(error) == 404 and code != "NoSuchBucket")


def refuse(error: Exception, doing: str, uri: str) -> NoReturn:
    """Raise what follows from a failed call.

    Raises:
        Stalled: the bucket does not exist, access is denied, the credentials are no good.
        Retry: anything that may pass by itself.
    """
    if cloud.code_of(error) == "NoSuchBucket":
        bucket, _ = split_uri(uri)
        raise Stalled(
            Reason.BUCKET_NOT_FOUND,
            f"The bucket {bucket!r} does not exist; create it, or correct the URI {uri}.",
        ) from error
    if cloud.code_of(error) == "InvalidBucketName":
        raise Stalled(Reason.INVALID_SPEC, f"{uri} names no valid bucket.") from error
    raise cloud.fault(
        error, f"{doing} {uri}", passing=Reason.STORAGE_UNAVAILABLE, where=WHERE
    ) from error


def refuse_one(doing: str, uri: str, code: str) -> NoReturn:
    """Raise what follows from one object that a call about many could not do. As `refuse`."""
    if code == "AccessDenied":
        raise Stalled(
            Reason.ACCESS_DENIED,
            f"Not allowed to {doing} {uri}; grant it to the credentials of `{WHERE}`.",
        )
    raise Retry(Reason.STORAGE_UNAVAILABLE, f"Could not {doing} {uri}: {code}.")

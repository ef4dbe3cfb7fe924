"""How this project talks to AWS: sessions, credentials, client settings, faults.

Shared by the S3 and the Bedrock adapter. Owns one promise: a client uses the credentials and the
endpoint that its provider object names and nothing else - with named credentials neither the pod's
environment nor its AWS files are looked at. It must not know buckets, batches or runs.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.loaders
import botocore.session
from botocore import exceptions as aws
from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials

from batchinference.adapters.aws_calls import THROTTLED_CODES, authorities_file, patiently
from batchinference.adapters.aws_calls import client as client  # noqa: PLC0414 - one face
from batchinference.adapters.aws_calls import code_of as code_of  # noqa: PLC0414 - one face
from batchinference.adapters.aws_calls import retry_after_s as retry_after_s  # noqa: PLC0414
from batchinference.adapters.aws_calls import status_of as status_of  # noqa: PLC0414 - one face
from batchinference.errors import Fault, Retry, Stalled
from batchinference.model.status import Reason

KEY_ID = "AWS_ACCESS_KEY_ID"
SECRET_KEY = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - the name of a Secret's key
SESSION_TOKEN = "AWS_SESSION_TOKEN"  # noqa: S105 - the name of a Secret's key

_CREDENTIAL_CODES = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "InvalidToken",
    "MissingAuthenticationToken",
    "NotSignedUp",
    "OptInRequired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnrecognizedClientException",
}
_DENIED_CODES = {
    "403",
    "AccessDenied",
    "AccessDeniedException",
    "AllAccessDisabled",
    "AccountProblem",
    "UnauthorizedOperation",
}
_REGION_CODES = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}
_KEY_ID_SHAPE = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")
_MESSAGE_LIMIT = 400

_NAMED_KEYS = 10


@dataclass(frozen=True, slots=True)
class Credentials:
    """Long-lived or temporary keys, as a Secret holds them; never printed."""

    key_id: str = field(repr=False)
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def credentials(secret: Mapping[str, str] | None, *, field_path: str) -> Credentials:
    """The credentials of a resolved Secret.

    Args:
        secret: its decoded data, None where it could not be resolved.
        field_path: the field that names the Secret, for messages.

    Raises:
        Stalled: a key is missing or empty; the message names the key, never a value.
    """
    if secret is None:
        raise Stalled(
            Reason.SECRET_NOT_FOUND, f"The Secret that `{field_path}` names was not found."
        )
    missing = [key for key in (KEY_ID, SECRET_KEY) if not secret.get(key, "").strip()]
    if missing:
        there = ", ".join(sorted(secret)[:_NAMED_KEYS]) or "none"
        raise Stalled(
            Reason.CREDENTIALS_REJECTED,
            f"The Secret that `{field_path}` names has no {' and no '.join(missing)}, or an empty "
            f"one. Keys that it has: {there}. Add what is missing.",
        )
    # A Secret made with `echo` or from a file ends in a newline, which would break the signature.
    return Credentials(
        secret[KEY_ID].strip(), secret[SECRET_KEY].strip(), secret.get(SESSION_TOKEN, "").strip()
    )


def named_or_own(
    named: bool,
    secret: Mapping[str, str] | None,
    *,
    field_path: str,
    own_identity: bool,
) -> Credentials | None:
    """The named credentials, or None for the operator's own identity where that is allowed.

    Raises:
        Stalled: named and unusable, or not named where the own identity must not be used.
    """
    if named:
        return credentials(secret, field_path=field_path)
    if not own_identity:
        raise Stalled(
            Reason.CREDENTIALS_REJECTED,
            f"`{field_path}` must be set: only a ClusterInferenceProvider may use the operator's "
            "own identity.",
        )
    return None


def session(
    keys: Credentials | None, region: str, sleep: Callable[[float], None] = time.sleep
) -> boto3.Session:
    """A session for these keys, or for the pod's own identity through the default chain.

    With keys, profiles, AWS files and credentials of the environment are out of reach: a process
    that serves many namespaces must not lend one of them the settings of another.
    """
    if keys is None:
        own = botocore.session.Session(
            session_vars={"ca_bundle": (None, None, authorities_file(), None)}
        )
        own.register_component("data_loader", descriptions())
        return patiently(boto3.Session(botocore_session=own, region_name=region), sleep)
    isolated = _isolated()
    isolated.set_credentials(keys.key_id, keys.secret_key, keys.session_token or None)
    return patiently(boto3.Session(botocore_session=isolated, region_name=region), sleep)


def _isolated() -> botocore.session.Session:
    """A session that reads no AWS files and no profile of the environment."""
    isolated = botocore.session.Session(
        session_vars={
            "ca_bundle": (None, None, authorities_file(), None),
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )
    isolated.register_component("data_loader", descriptions())
    return isolated


@cache
def descriptions() -> Any:
    """AWS's descriptions of its services, which are large: one copy for all sessions."""
    return botocore.loaders.create_loader()


def assume_role(
    source: boto3.Session,
    *,
    role_arn: str,
    external_id: str,
    sts_endpoint: str,
    ca_bundle: str,
    sleep: Callable[[float], None] = time.sleep,
) -> boto3.Session:
    """A session with the role's temporary credentials, taken when first needed and renewed."""
    region = source.region_name

    def sts(_service: str, **keys: Any) -> Any:
        return client(source, "sts", sts_endpoint, ca_bundle, credentials=keys)

    extra = {"RoleSessionName": "batch-inference-operator"}
    if external_id:
        extra["ExternalId"] = external_id
    fetcher = AssumeRoleCredentialFetcher(
        client_creator=sts,
        source_credentials=source.get_credentials(),
        role_arn=role_arn,
        extra_args=extra,
    )
    renewed = DeferredRefreshableCredentials(
        method="assume-role", refresh_using=fetcher.fetch_credentials
    )
    assumed = _isolated()
    # botocore has no public way to hand renewable credentials to a session.
    setattr(assumed, "_credentials", renewed)  # noqa: B010 - unknown to the stubs
    return patiently(boto3.Session(botocore_session=assumed, region_name=region), sleep)


def sts_endpoint(endpoint_url: str) -> str:
    """Where STS is for a Bedrock endpoint: stand-ins serve both, an AWS endpoint only its own,
    which is "".
    """
    host = urlsplit(endpoint_url).hostname or ""
    if not endpoint_url or host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws")):
        return ""
    return endpoint_url


# ---------------------------------------------------------------- what went wrong


def message_of(error: BaseException) -> str:
    """AWS's sentence, shortened and without key ids."""
    if isinstance(error, aws.ClientError):
        text = str(error.response.get("Error", {}).get("Message", ""))
    else:
        text = str(error)
    text = " ".join(_KEY_ID_SHAPE.sub("<key id>", text).split())
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"


def is_credentials(error: BaseException) -> bool:
    """Whether it says that the credentials themselves are no good."""
    return code_of(error) in _CREDENTIAL_CODES or isinstance(
        error,
        aws.NoCredentialsError
        | aws.PartialCredentialsError
        | aws.CredentialRetrievalError
        | aws.NoAuthTokenError
        | aws.TokenRetrievalError,
    )


def is_denied(error: BaseException) -> bool:
    """Whether it says that the caller is known and may not."""
    code = code_of(error)
    # A disabled or deleted key of a bucket: a person must act there too.
    return (
        code in _DENIED_CODES
        or code.startswith("KMS.")
        or (status_of(error) in {401, 403} and not is_credentials(error))
    )


def is_throttled(error: BaseException) -> bool:
    """Whether it says that there were too many calls."""
    return code_of(error) in THROTTLED_CODES or status_of(error) == 429


def never_connected(error: BaseException) -> bool:
    """Whether no connection came about, so that certainly nothing was sent."""
    return isinstance(
        error, aws.EndpointConnectionError | aws.ConnectTimeoutError | aws.ProxyConnectionError
    )


def bad_certificate(error: BaseException) -> bool:
    """Whether the endpoint showed a certificate that is not trusted, before anything was sent."""
    return isinstance(error, aws.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error)


def unknown_host(error: BaseException) -> bool:
    """Whether the endpoint's name does not exist (a failing resolver is another matter)."""
    final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
    return any(
        isinstance(cause, socket.gaierror) and cause.errno in final for cause in causes(error)
    )


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what botocore says it wraps, and everything it was raised from."""
    seen: set[int] = set()
    waiting: list[BaseException] = [error]
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        wrapped = getattr(current, "kwargs", {})
        inner = wrapped.get("error") if isinstance(wrapped, dict) else None
        waiting += [
            cause
            for cause in (inner, current.__cause__, current.__context__)
            if isinstance(cause, BaseException)
        ]


def fault(error: Exception, doing: str, *, passing: str, where: str) -> Fault:
    """What follows from a failed call.

    Args:
        error: what boto3 raised.
        doing: the call in the reader's words, such as `read s3://bucket/key`.
        passing: the reason for what heals by itself.
        where: the fields to look at, such as `spec.storage.s3`.
    """
    if is_credentials(error):
        code = code_of(error) or type(error).__name__
        hint = (
            "the clocks of this node and AWS differ"
            if code == "RequestTimeTooSkewed"
            else f"renew the credentials of `{where}`"
        )
        return Stalled(
            Reason.CREDENTIALS_REJECTED, f"AWS refused the credentials to {doing} ({code}); {hint}."
        )
    if code_of(error) in _REGION_CODES or status_of(error) == 301:
        return Stalled(
            Reason.ENDPOINT_UNREACHABLE,
            f"Can't {doing}: it is in another region than `{where}.region` says "
            f"({message_of(error)}).",
        )
    if is_denied(error):
        return Stalled(
            Reason.ACCESS_DENIED,
            f"Not allowed to {doing}; grant it to the credentials of `{where}`. "
            f"AWS says: {message_of(error)}",
        )
    if is_throttled(error):
        return Retry(
            passing,
            f"Too many calls: AWS slows down the attempt to {doing}.",
            retry_after_s(error),
        )
    if bad_certificate(error):
        return Stalled(
            Reason.ENDPOINT_UNREACHABLE,
            f"Can't {doing}: the endpoint's certificate is not trusted; check `{where}.caBundle`.",
        )
    if unknown_host(error):
        return Stalled(
            Reason.ENDPOINT_UNREACHABLE,
            f"Can't {doing}: the host of the endpoint, or of the pod's proxy, does not exist; "
            f"check region and endpoint of `{where}`.",
        )
    if isinstance(error, aws.ParamValidationError):
        return Stalled(Reason.INVALID_SPEC, f"Can't {doing}: {message_of(error)}")
    if isinstance(error, aws.ClientError):
        text = f"{code_of(error)} {message_of(error)}".strip()
        told = f"Could not {doing}: {text} (HTTP {status_of(error)})."
        return Retry(passing, told, retry_after_s(error))
    return Retry(passing, f"Could not {doing}: {type(error).__name__}: {message_of(error)}")

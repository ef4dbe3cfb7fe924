"""How every client of AWS makes its calls: how often one is tried, with what waits in between,
through which proxy, and whose certificates are believed.

Owns one promise: a call that creates something paid is sent once. It must not know what the calls
are for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import boto3
from botocore import exceptions as aws
from botocore.config import Config
from botocore.httpsession import get_cert_path
from botocore.parsers import ResponseParserError

from batchinference.adapters import network

T = TypeVar("T")

ONCE = frozenset({"CreateModelInvocationJob"})
"""A repeated create call is the core's decision, which knows what came of the first."""

TRIES = 3

_FIRST_S = 0.2
_FIRST_THROTTLED_S = 1.0
_PASSING_STATUSES = {408, 429, 500, 502, 503, 504}
_PASSING_CODES = {"InternalError", "InternalServerException", "RequestTimeout"}
THROTTLED_CODES = frozenset(
    {
        "429",
        "BandwidthLimitExceeded",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)


class Garbled(aws.BotoCoreError):
    """An answer in no shape of AWS's, such as the page of a gateway in between. What it holds is
    not told: it may be anything.
    """

    fmt = "the answer is none of AWS's; something in between may have given it"


def patiently(session: boto3.Session, sleep: Callable[[float], None] = time.sleep) -> boto3.Session:
    """The session, with every call of its future clients tried as this module says."""

    class Patient:
        def _make_api_call(self, operation: str, request: dict[str, Any]) -> Any:
            plain: Any = super()

            def call() -> Any:
                try:
                    # A copy: botocore puts streams in the place of bytes, and reads them.
                    return plain._make_api_call(operation, dict(request))  # noqa: SLF001 - hook
                except ResponseParserError as error:
                    raise Garbled from error

            return _tried(call, 1 if operation in ONCE else TRIES, sleep)

    def add(base_classes: list[type], **_event: Any) -> None:
        base_classes.insert(0, Patient)

    session.events.register("creating-client-class", add)
    return session


def _tried(do: Callable[[], T], tries: int, sleep: Callable[[float], None]) -> T:
    for attempt in range(1, tries):
        try:
            return do()
        except (aws.ClientError, aws.BotoCoreError) as error:
            asked_s = retry_after_s(error)
            if not is_passing(error) or (asked_s or 0.0) > network.PATIENCE_S:
                raise
            first_s = _FIRST_THROTTLED_S if code_of(error) in THROTTLED_CODES else _FIRST_S
            wait_s = first_s * 2 ** (attempt - 1) * (0.5 + random.random() / 2)  # noqa: S311 - jitter
            sleep(max(wait_s, asked_s or 0.0))
    return do()


def client(
    session: boto3.Session,
    service: str,
    endpoint_url: str = "",
    ca_bundle: str = "",
    *,
    credentials: Mapping[str, str | None] | None = None,
    connect_timeout_s: float = 5,
    read_timeout_s: float = 30,
    connections: int = 10,
    **more: Any,
) -> Any:
    """A client with bounded time and tries, deaf to endpoints, proxies and certificates that the
    SDK would look for by itself.

    Args:
        session: with the credentials; one of `patiently`.
        service: AWS's word for it.
        endpoint_url: "" is AWS's own of the session's region.
        ca_bundle: authorities in PEM, believed instead of the public ones and the pod's.
        credentials: other ones than the session's, as the session takes them.
        connect_timeout_s: for a connection to come about.
        read_timeout_s: how long the server may be silent.
        connections: kept open at most.
        more: further settings of `botocore.config.Config`.

    Raises:
        OSError: the authorities can't be written to a file.
    """
    where: str = endpoint_url or _own_endpoint(session, service)
    proxy = network.proxy_of(where)
    factory: Any = session.client
    settings: dict[str, Any] = {"ignore_configured_endpoint_urls": True, **more}
    if service != "s3":
        # Else a bearer token of the pod's environment is sent instead of the session's signature.
        settings["signature_version"] = "v4"
    return factory(
        service,
        endpoint_url=endpoint_url or None,
        verify=authorities_file(ca_bundle),
        config=Config(
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            max_pool_connections=connections,
            retries={"total_max_attempts": 1, "mode": "standard"},  # ours are in this module
            user_agent_extra="batch-inference-operator",
            proxies={scheme: proxy for scheme in ("http", "https") if proxy},
            **settings,
        ),
        **(credentials or {}),
    )


def _own_endpoint(session: boto3.Session, service: str) -> str:
    suffix = session.get_partition_for_region(session.region_name)
    domain = "amazonaws.com.cn" if suffix == "aws-cn" else "amazonaws.com"
    return f"https://{service}.{session.region_name}.{domain}"


def authorities_file(ca_bundle: str = "") -> str:
    """The file that certificates are checked against. Raises as `client`."""
    if ca_bundle:
        return network.stored(ca_bundle)
    public = str(get_cert_path(True))
    more = network.authorities()
    if not more:
        return public
    with open(public, encoding="utf-8") as file:  # noqa: PTH123 - a path of a library
        return network.stored(f"{_ascii(file.read())}\n{more}")


def _ascii(pem: str) -> str:
    """Without the comments in other scripts that public bundles hold."""
    return pem.encode("ascii", "ignore").decode()


# ---------------------------------------------------------------- what came back


def code_of(error: BaseException) -> str:
    """AWS's error code of an answer, "" for anything else."""
    if isinstance(error, aws.ClientError):
        return str(error.response.get("Error", {}).get("Code", ""))
    return ""


def status_of(error: BaseException) -> int:
    """The HTTP status of an error answer, 0 for anything else."""
    if isinstance(error, aws.ClientError):
        return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    return 0


def retry_after_s(error: BaseException) -> float | None:
    """Seconds that an error answer asks to wait; None when it does not say."""
    if not isinstance(error, aws.ClientError):
        return None
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders") or {}
    return network.retry_after_s(headers)


def is_passing(error: BaseException) -> bool:
    """Whether the same call may work a moment later."""
    if isinstance(error, aws.SSLError):
        return False
    if isinstance(error, aws.ConnectionError | aws.HTTPClientError | Garbled):
        return True
    code = code_of(error)
    passing = code in _PASSING_CODES or code in THROTTLED_CODES
    return passing or status_of(error) in _PASSING_STATUSES

"""How to reach an OpenAI-compatible server: the provider's settings and secrets, as SDK clients.

Owns one promise: nothing is inherited from `OPENAI_*` of the environment. A process that serves
many namespaces must not lend one of them the key, the organization or the headers of another.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client, DefaultHttpx2Client, OpenAI, Timeout

from batchinference.adapters import network
from batchinference.errors import InvalidObject, Stalled
from batchinference.model.codec import decode
from batchinference.model.provider import OpenAIProvider, ProviderSpec
from batchinference.model.status import Reason

if TYPE_CHECKING:
    from openai._types import RequestOptions

WHERE = "spec.openAI"
"""The provider's field that says how to reach the server."""

ONCE: RequestOptions = {"max_retries": 0}
"""For calls that create something, and for those whose refusal is an answer: never repeated by the
SDK. A repeated create call is the core's decision, which knows what came of the first."""

may_send: ContextVar[Callable[[], bool]] = ContextVar("may_send")
"""Set where a call may come too late: asked before each request of that context leaves."""

_RETRIES = 2
_CONTROL = Timeout(20.0, connect=5.0, pool=10.0)
_BULK = Timeout(60.0, connect=10.0, pool=10.0)
UPLOADED_S = 120.0
"""Seconds that a server may be silent over a file that it has received."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything a client needs; never printed whole.

    Attributes:
        settings: endpoint, organization, headers.
        api_key: "" sends no credential.
        ca_bundle: PEM text; "" trusts the public authorities and the pod's.
    """

    settings: OpenAIProvider
    api_key: str = field(default="", repr=False)
    ca_bundle: str = field(default="", repr=False)


def connection(settings: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> Connection:
    """Settings and secrets, checked.

    Args:
        settings: the provider's spec as the API server has it.
        secrets: resolved Secrets by role; `apiKey` and `caBundle` are read.

    Raises:
        Stalled: no OpenAI settings, a key missing in the Secret, certificates that are none.
    """
    try:
        spec = decode(ProviderSpec, settings, "spec", ignore_unknown=True)
    except InvalidObject as error:
        raise Stalled(Reason.INVALID_SPEC, str(error)) from error
    if spec.open_ai is None:
        raise Stalled(Reason.INVALID_SPEC, f"{WHERE}: must be set.")
    ca_bundle = secrets.get("caBundle", {}).get("value", "") or spec.open_ai.ca_bundle
    network.checked(ca_bundle, f"{WHERE}.caBundle")
    return Connection(spec.open_ai, _api_key(spec.open_ai, secrets), ca_bundle)


def _api_key(settings: OpenAIProvider, secrets: Mapping[str, Mapping[str, str]]) -> str:
    ref = settings.api_key_secret_ref
    if ref is None:
        return ""
    if "apiKey" not in secrets:
        raise Stalled(
            Reason.SECRET_NOT_FOUND,
            f"The Secret {ref.name!r} that `{WHERE}.apiKeySecretRef` names was not found.",
        )
    # A Secret made with `echo` or from a file ends in a newline, which no header may hold.
    value = secrets["apiKey"].get("value", "").strip()
    if not value:
        raise Stalled(
            Reason.CREDENTIALS_REJECTED,
            f"The Secret {ref.name!r} has no key {ref.key!r}, or an empty one; "
            "put the API key there.",
        )
    if not (value.isascii() and value.isprintable()):
        raise Stalled(
            Reason.CREDENTIALS_REJECTED,
            f"The key {ref.key!r} of the Secret {ref.name!r} holds characters that no API key has.",
        )
    return value


def _trust(connection: Connection) -> ssl.SSLContext:
    """What the endpoint's certificate is checked against."""
    own = network.trust(connection.ca_bundle)
    if own is not None:
        return own
    public = httpx2.create_ssl_context(trust_env=False)
    if more := network.authorities():
        public.load_verify_locations(cadata=more)
    return public


# ---------------------------------------------------------------- clients


class _Patient:
    """Retries that hold a call only for a moment: who made it can wait for longer without."""

    def _should_retry(self, response: httpx2.Response) -> bool:
        asked_s = network.retry_after_s(response.headers)
        plain: Any = super()
        return (asked_s or 0.0) <= network.PATIENCE_S and bool(plain._should_retry(response))  # noqa: SLF001 - the SDK has no setting for it


class _AsyncClient(_Patient, AsyncOpenAI):
    """An SDK client that knows only what it was given."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        super().__init__(**_explicit(connection), **options)
        self.organization = connection.settings.organization or None
        self.project = connection.settings.project or None
        self.admin_api_key = None
        self._custom_headers = _headers(connection)  # the SDK merged the environment's into these

    def _validate_headers(self, headers: Any, custom_headers: Any) -> None:
        """No credential is a choice here, not a mistake."""


class _SyncClient(_Patient, OpenAI):
    """An SDK client that knows only what it was given."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        super().__init__(**_explicit(connection), **options)
        self.organization = connection.settings.organization or None
        self.project = connection.settings.project or None
        self.admin_api_key = None
        self._custom_headers = _headers(connection)  # the SDK merged the environment's into these

    def _validate_headers(self, headers: Any, custom_headers: Any) -> None:
        """No credential is a choice here, not a mistake."""


def async_client(connection: Connection) -> AsyncOpenAI:
    """A client for the operator's loop. Close it."""
    return _AsyncClient(
        connection,
        timeout=_CONTROL,
        max_retries=_RETRIES,
        http_client=DefaultAsyncHttpx2Client(
            timeout=_CONTROL, event_hooks={"request": [_in_time]}, **_wire(connection)
        ),
    )


async def _in_time(_request: httpx2.Request) -> None:
    asked = may_send.get(None)
    if asked is not None and not asked():
        raise network.TooLate


def sync_clients(connection: Connection) -> tuple[OpenAI, OpenAI]:
    """Two clients for a worker over the same connections: the first for everything but uploads,
    the second for these, which it sends once. Close the first.
    """
    wire = DefaultHttpx2Client(timeout=_BULK, **_wire(connection))
    reading, uploading = (
        _SyncClient(connection, timeout=_BULK, max_retries=tries, http_client=wire)
        for tries in (_RETRIES, 0)
    )
    return reading, uploading


def _wire(connection: Connection) -> dict[str, Any]:
    """How the calls leave, of which the environment says nothing by itself."""
    return {
        "verify": _trust(connection),
        "proxy": network.proxy_of(connection.settings.base_url) or None,
        "trust_env": False,
        # A redirect is refused: it would carry headers to a host that nobody configured, and what
        # a redirected create call did nobody could say.
        "follow_redirects": False,
    }


def _explicit(connection: Connection) -> dict[str, Any]:
    """Every option that the SDK would take from the environment when it is None."""
    return {
        "api_key": connection.api_key,
        "admin_api_key": "",
        "organization": connection.settings.organization,
        "project": connection.settings.project,
        "webhook_secret": "",
        "base_url": connection.settings.base_url,
        "_enforce_credentials": False,
    }


def _headers(connection: Connection) -> dict[str, str]:
    return {header.name: header.value for header in connection.settings.headers}

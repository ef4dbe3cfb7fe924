"""How to reach an OpenAI-compatible server: the provider's settings and secrets, as SDK clients.

Owns one promise: nothing is inherited from `OPENAI_*` of the environment. A process that serves
many namespaces must not lend one of them the key, the organization or the headers of another.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpx2Client, DefaultHttpx2Client, OpenAI, Timeout

from batchinference.errors import InvalidObject, Stalled
from batchinference.model.codec import decode
from batchinference.model.provider import OpenAIProvider, ProviderSpec
from batchinference.model.status import Reason

WHERE = "spec.openAI"
"""The provider's field that says how to reach the server."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything a client needs; never printed whole.

    Attributes:
        settings: endpoint, organization, headers.
        api_key: "" sends no credential.
        ca_bundle: PEM text; "" trusts the system's authorities.
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
    found = Connection(spec.open_ai, _api_key(spec.open_ai, secrets), ca_bundle)
    _trust(ca_bundle)
    return found


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


def _trust(ca_bundle: str) -> ssl.SSLContext | bool:
    if not ca_bundle:
        return True
    try:
        return ssl.create_default_context(cadata=ca_bundle)
    except (ssl.SSLError, ValueError) as error:
        raise Stalled(
            Reason.INVALID_SPEC, f"{WHERE}.caBundle: holds no readable certificate in PEM."
        ) from error


# ---------------------------------------------------------------- clients


class _AsyncClient(AsyncOpenAI):
    """An SDK client that knows only what it was given."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        super().__init__(**_explicit(connection), **options)
        self.organization = connection.settings.organization or None
        self.project = connection.settings.project or None
        self.admin_api_key = None
        self._custom_headers = _headers(connection)  # the SDK merged the environment's into these

    def _validate_headers(self, headers: Any, custom_headers: Any) -> None:
        """No credential is a choice here, not a mistake."""


class _SyncClient(OpenAI):
    """An SDK client that knows only what it was given."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        super().__init__(**_explicit(connection), **options)
        self.organization = connection.settings.organization or None
        self.project = connection.settings.project or None
        self.admin_api_key = None
        self._custom_headers = _headers(connection)  # the SDK merged the environment's into these

    def _validate_headers(self, headers: Any, custom_headers: Any) -> None:
        """No credential is a choice here, not a mistake."""


def async_client(connection: Connection, timeout: Timeout, max_retries: int) -> AsyncOpenAI:
    """A client for the operator's loop. Close it."""
    return _AsyncClient(
        connection,
        timeout=timeout,
        max_retries=max_retries,
        # A redirect is refused: it would carry headers to a host that nobody configured, and what
        # a redirected create call did nobody could say.
        http_client=DefaultAsyncHttpx2Client(
            verify=_trust(connection.ca_bundle), timeout=timeout, follow_redirects=False
        ),
    )


def sync_client(connection: Connection, timeout: Timeout, max_retries: int) -> OpenAI:
    """A client for a worker. Close it."""
    return _SyncClient(
        connection,
        timeout=timeout,
        max_retries=max_retries,
        http_client=DefaultHttpx2Client(
            verify=_trust(connection.ca_bundle), timeout=timeout, follow_redirects=False
        ),
    )


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

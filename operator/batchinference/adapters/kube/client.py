"""The asynchronous client of the API server: one bounded pool of connections for the operator.

Owns credentials (in a pod, or from a kubeconfig), their renewal, time limits and the JSON of
requests. It speaks paths and plain values; the kinds are its callers' business. Kopf, which keeps
its own requests, gets a session of the same make.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config.incluster_config import SERVICE_TOKEN_FILENAME

from batchinference.adapters.kube.answers import refusal, unreachable
from batchinference.adapters.kube.connection import KubeConnection
from batchinference.adapters.kube.names import FIELD_MANAGER, GROUP, RESOURCES
from batchinference.errors import Stalled

log = logging.getLogger(__name__)

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"

_CONNECT_TIMEOUT_S = 5.0
_REFRESH_S = 60.0

_OUR_PLURALS = frozenset(
    r.plural for r in RESOURCES.values() if r.api.startswith(f"/apis/{GROUP}/")
)

_BROKEN = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError)
"""What the library raises over a kubeconfig of another shape than it expects."""


class KubeClient:
    """Calls to one API server, at most `max_connections` at a time.

    Use `connect`; `close` when done.

    Attributes:
        unserved: plurals of our kinds that a `session` was told are not served; their definitions
            were removed, and may come back.
    """

    def __init__(
        self, configuration: Configuration, connection: KubeConnection, timeout_s: float
    ) -> None:
        self._configuration = configuration
        self._connection = connection
        self.unserved: set[str] = set()
        self._api = ApiClient(configuration)
        # The server takes the text before the slash as the field manager of our writes.
        self._api.user_agent = f"{FIELD_MANAGER}/1"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)

    @classmethod
    async def connect(
        cls, kubeconfig: str = "", *, max_connections: int = 16, timeout_s: float = 30.0
    ) -> Self:
        """Read credentials; no call is made yet.

        Args:
            kubeconfig: its path. "" means the pod's ServiceAccount, and outside of a pod the
                kubeconfig that kubectl would use.
            max_connections: bound of the pool; further calls wait their turn.
            timeout_s: seconds for one call, waiting for a connection included.

        Raises:
            Stalled: neither a ServiceAccount nor a usable kubeconfig is there.
        """
        configuration = Configuration()
        configuration.connection_pool_maxsize = max_connections
        configuration.retries = None  # a repeat is decided where its meaning is known
        try:
            connection = await _load(configuration, kubeconfig)
        except (config.ConfigException, OSError, *_BROKEN) as fault:
            raise Stalled("NoCredentials", f"No credentials for the API server: {fault}") from fault
        proxy = connection.proxy_url()
        configuration.proxy = proxy or None
        configuration.client_session_kwargs = {"trust_env": False}
        return cls(configuration, connection, timeout_s)

    @property
    def host(self) -> str:
        """The API server's URL."""
        return self._connection.host

    async def connection(self) -> KubeConnection:
        """How to reach the API server, with the token as it is now, for the blocking client."""
        if self._connection.token_file:
            return self._connection
        return replace(self._connection, token=await self._bearer())

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        """One request and its decoded answer; never repeated.

        Raises:
            Refusal: the server answered with an error.
            Retry: no answer; a write may or may not have happened.
        """
        what = f"{method} {path}"
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            serialized = await self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                auth_settings=["BearerToken"],
            )
            # The generated serializer walks every value of a body; ours is plain JSON already.
            _, url, headers, _, _ = serialized
            answer = await self._api.call_api(
                method, url, headers, body=body, _request_timeout=self._timeout
            )
            content: bytes = await answer.read()  # type: ignore[no-untyped-call] # generated
        except (aiohttp.ClientError, TimeoutError, OSError) as fault:
            raise unreachable(what, fault) from fault
        decoded = _decoded(content)
        if answer.status >= 400:
            raise refusal(what, answer.status, decoded, answer.headers.get("Retry-After"))
        if not isinstance(decoded, dict):
            raise unreachable(what, ValueError("the answer is not a JSON object"))
        return decoded

    def session(self, max_connections: int) -> aiohttp.ClientSession:
        """A session with our credentials and a bound of its own, for kopf; the caller closes it.

        The token is put in per request, so its renewal never breaks a watch. A 404 over one of our
        kinds looks like a broken connection: kopf tries again then, and would end at a 404.
        """

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            token = await self._bearer()
            if token:
                request.headers["Authorization"] = f"Bearer {token}"
            answer = await handler(request)
            self._note_served(request.url.path.rpartition("/")[2], answer)
            return answer

        connector = aiohttp.TCPConnector(limit=max_connections, ssl=self._connection.ssl_context())
        return aiohttp.ClientSession(
            connector=connector,
            middlewares=(authorize,),
            headers={"User-Agent": f"{FIELD_MANAGER}/1"},
            proxy=self._connection.proxy_url() or None,
        )

    def _note_served(self, plural: str, answer: aiohttp.ClientResponse) -> None:
        """Take in whether one of our kinds is served.

        Raises:
            aiohttp.ClientConnectionError: it is not.
        """
        if plural not in _OUR_PLURALS:
            return
        if answer.status == 404:
            answer.close()
            if plural not in self.unserved:
                self.unserved.add(plural)
                log.warning(
                    "the API server does not serve %s any more: their definition was removed. "
                    "Everything else goes on, and they are watched again when it is back",
                    plural,
                )
            raise aiohttp.ClientConnectionError(f"{plural} are not served")
        if answer.ok and plural in self.unserved:
            self.unserved.discard(plural)
            log.info("the API server serves %s again", plural)

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call] # generated

    async def _bearer(self) -> str:
        key = await self._configuration.get_api_key_with_prefix("BearerToken")
        return _without_scheme(key or "")


async def _load(configuration: Configuration, kubeconfig: str) -> KubeConnection:
    """Fill in the configuration and say the same as a plain value."""
    path = _kubeconfig(kubeconfig)
    if path is None:
        config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        return _plain(configuration, token_file=SERVICE_TOKEN_FILENAME)
    loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
        path, client_configuration=configuration, persist_config=False
    )
    loaded_at = time.monotonic()

    async def renew(target: Configuration) -> None:
        # The loader runs a credential plugin only when its token is about to expire.
        nonlocal loaded_at
        if time.monotonic() - loaded_at > _REFRESH_S:
            loaded_at = time.monotonic()
            await loader.load_and_set(target)

    configuration.refresh_api_key_hook = renew  # type: ignore[assignment] # declared as None
    return _plain(configuration)


def _kubeconfig(given: str) -> str | None:
    """The kubeconfig to read, None for the ServiceAccount of the pod that this process is in.

    Raises:
        FileNotFoundError: there is neither.
    """
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and Path(SERVICE_TOKEN_FILENAME).is_file()
    if not given and in_pod:
        return None
    path = given or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if not any(Path(part).expanduser().is_file() for part in path.split(os.pathsep) if part):
        raise FileNotFoundError(f"no kubeconfig at {path}, and this is not a pod")
    return path


def _plain(configuration: Configuration, token_file: str = "") -> KubeConnection:
    token = "" if token_file else _without_scheme(configuration.api_key.get("BearerToken", ""))
    return KubeConnection(
        host=configuration.host.rstrip("/"),
        ca_file=configuration.ssl_ca_cert or "",
        cert_file=configuration.cert_file or "",
        key_file=configuration.key_file or "",
        token=token,
        token_file=token_file,
        insecure=not configuration.verify_ssl,
        tls_server_name=configuration.tls_server_name or "",
        proxy=configuration.proxy or "",
    )


def _without_scheme(value: str) -> str:
    return value.split(" ", 1)[-1].strip()


def _decoded(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        return None

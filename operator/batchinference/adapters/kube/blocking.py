"""The blocking client of the API server, for worker processes and threads.

Small on purpose: a worker needs ConfigMaps and nothing else, and must not carry a whole client
library. Reads and conditional writes are repeated over passing failures; a create is not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Self
from urllib.parse import urlencode

import msgspec
import urllib3

from batchinference.adapters.kube.answers import Refusal, refusal, unreachable
from batchinference.adapters.kube.connection import KubeConnection
from batchinference.adapters.kube.names import CONFIG_MAPS, FIELD_MANAGER, METADATA

_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)
_TRIES = 4
_BACKOFF_S = 0.25
_PASSING = {401, 429, 500, 502, 503, 504}


class ConfigMaps:
    """ConfigMaps by namespace and name. May be used by several threads.

    Every call raises `Stalled` AccessDenied when RBAC forbids it, `Permanent` when the API server
    refuses the request as such, and `Retry` when it does not answer.
    """

    def __init__(self, connection: KubeConnection) -> None:
        self._connection = connection
        settings: dict[str, Any] = {"ssl_context": connection.ssl_context()}
        if connection.tls_server_name:
            settings |= {
                "server_hostname": connection.tls_server_name,
                "assert_hostname": connection.tls_server_name,
            }
        proxy = connection.proxy_url()
        self._pool = (
            urllib3.ProxyManager(proxy, maxsize=4, **settings)
            if proxy
            else urllib3.PoolManager(maxsize=4, **settings)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def get(
        self, namespace: str, name: str, *, metadata_only: bool = False
    ) -> dict[str, Any] | None:
        """The ConfigMap, or None. With `metadata_only` its contents stay where they are."""
        accept = METADATA.format("PartialObjectMetadata") if metadata_only else "application/json"
        try:
            return self._call("GET", CONFIG_MAPS.path(namespace, name), accept=accept)
        except Refusal as refused:
            if refused.is_missing(name):
                return None
            raise refused.fault() from refused

    def list_metadata(self, namespace: str, selector: str) -> Iterator[dict[str, Any]]:
        """The metadata of every ConfigMap that the label selector matches, in order of names."""
        query = {"labelSelector": selector, "limit": "250"}
        accept = METADATA.format("PartialObjectMetadataList")
        while True:
            path = f"{CONFIG_MAPS.path(namespace)}?{urlencode(query)}"
            try:
                page = self._call("GET", path, accept=accept)
            except Refusal as refused:
                raise refused.fault() from refused
            for item in page["items"] or ():  # null when there are none
                yield item["metadata"]
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    def create(self, namespace: str, config_map: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create it; None when one of that name exists.

        Sent once: after `Retry` it may exist.
        """
        try:
            return self._call("POST", CONFIG_MAPS.path(namespace), config_map, tries=1)
        except Refusal as refused:
            if refused.code == 409 and refused.reason == "AlreadyExists":
                return None
            raise refused.fault() from refused

    def replace(self, namespace: str, config_map: Mapping[str, Any]) -> dict[str, Any] | None:
        """Put it in place of the one whose resourceVersion it carries; None when that one is gone
        or was changed.
        """
        name = config_map["metadata"]["name"]
        assert config_map["metadata"]["resourceVersion"]
        try:
            return self._call("PUT", CONFIG_MAPS.path(namespace, name), config_map, tries=1)
        except Refusal as refused:
            if refused.code == 409 or refused.is_missing(name):
                return None
            raise refused.fault() from refused

    def delete(self, namespace: str, name: str, *, version: str = "") -> bool:
        """Delete it; absent is fine. With a version, only that one: False when it is another."""
        preconditions = {"preconditions": {"resourceVersion": version}} if version else {}
        body = {"apiVersion": "v1", "kind": "DeleteOptions", **preconditions}
        try:
            self._call("DELETE", CONFIG_MAPS.path(namespace, name), body)
        except Refusal as refused:
            if refused.is_missing(name):
                return True
            if refused.code == 409:
                return False
            raise refused.fault() from refused
        return True

    def _call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        accept: str = "application/json",
        tries: int = _TRIES,
    ) -> dict[str, Any]:
        """One call, repeated over passing failures.

        Raises:
            Refusal: the server answered with an error.
            Retry: no answer.
        """
        what = f"{method} {path.partition('?')[0]}"
        content = None if body is None else msgspec.json.encode(body)
        for left in reversed(range(tries)):
            try:
                answer = self._pool.request(
                    method,
                    self._connection.host + path,
                    body=content,
                    headers=self._headers(accept),
                    timeout=_TIMEOUT,
                    retries=False,
                )
            except (urllib3.exceptions.HTTPError, OSError) as fault:
                if left:
                    time.sleep(_BACKOFF_S * (tries - left))
                    continue
                raise unreachable(what, fault) from fault
            if answer.status in _PASSING and left:
                time.sleep(_BACKOFF_S * (tries - left))
                continue
            try:
                decoded = msgspec.json.decode(answer.data)
            except msgspec.DecodeError:
                decoded = None
            if answer.status >= 400:
                raise refusal(what, answer.status, decoded, answer.headers.get("Retry-After"))
            if not isinstance(decoded, dict):
                raise unreachable(what, ValueError("the answer is not a JSON object"))
            return decoded
        raise AssertionError("the last try returns or raises")

    def _headers(self, accept: str) -> dict[str, str]:
        headers = {
            "Accept": accept,
            "Content-Type": "application/json",
            "User-Agent": f"{FIELD_MANAGER}/1",
        }
        if token := self._connection.current_token():
            headers["Authorization"] = f"Bearer {token}"
        return headers

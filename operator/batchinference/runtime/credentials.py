"""Secrets by name, read with get, cached, and read again when they are missing or rejected.

No list and no watch: the operator may only read what a provider object names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchinference.clock import Clock
from batchinference.errors import Stalled
from batchinference.model.status import Reason
from batchinference.ports import Kube, ResolvedProvider

_NAMED_KEYS = 10


@dataclass(frozen=True, slots=True)
class _Cached:
    data: Mapping[str, str] | None
    read_at: float


class Credentials:
    """Resolves the Secrets that a provider's settings name."""

    def __init__(self, kube: Kube, clock: Clock, missing_retry_s: float) -> None:
        self._kube = kube
        self._clock = clock
        self._missing_retry_s = missing_retry_s
        self._cache: dict[tuple[str, str], _Cached] = {}

    def forget(self, namespace: str, settings: Mapping[str, Any]) -> None:
        """The provider rejected these credentials: read them again next time."""
        for name in _secret_names(settings):
            self._cache.pop((namespace, name), None)

    async def resolve(
        self, identity: str, namespace: str, settings: Mapping[str, Any]
    ) -> ResolvedProvider:
        """The settings with their secrets.

        Raises:
            Stalled: `SecretNotFound`, `AccessDenied`.
            Retry: the API server can't be asked now.
        """
        secrets: dict[str, Mapping[str, str]] = {}
        api_key = settings.get("openAI", {}).get("apiKeySecretRef")
        if api_key:
            data = await self._read(namespace, api_key["name"], api_key["key"])
            if api_key["key"] not in data:
                there = ", ".join(sorted(data)[:_NAMED_KEYS]) or "none"
                raise Stalled(
                    Reason.SECRET_NOT_FOUND,
                    f"Secret '{namespace}/{api_key['name']}' has no key '{api_key['key']}'. Keys "
                    f"that it has: {there}. Add the key, or name another one in the provider's "
                    "`spec.openAI.apiKeySecretRef`; the job goes on by itself",
                )
            secrets["apiKey"] = {"value": data[api_key["key"]].strip()}
        for role, ref in (
            ("bedrock", settings.get("bedrock", {}).get("credentialsSecretRef")),
            ("storage", _storage(settings).get("credentialsSecretRef")),
        ):
            if ref:
                secrets[role] = await self._read(namespace, ref["name"])
        return ResolvedProvider(settings, secrets, identity)

    async def _read(self, namespace: str, name: str, key: str = "") -> Mapping[str, str]:
        """What the Secret holds; read again now and then while it, or that key, is missing."""
        cached = self._cache.get((namespace, name))
        now = self._clock.elapsed()
        fresh = cached is not None and (
            (cached.data is not None and (not key or key in cached.data))
            or now - cached.read_at < self._missing_retry_s
        )
        if cached is None or not fresh:
            cached = _Cached(await self._kube.secret(namespace, name), now)
            self._cache[namespace, name] = cached
        if cached.data is None:
            raise Stalled(
                Reason.SECRET_NOT_FOUND,
                f"Secret '{namespace}/{name}' that the provider names does not exist. Create it; "
                "the job goes on by itself",
            )
        return cached.data


def fingerprint(resolved: ResolvedProvider) -> str:
    """Tells clients apart without keeping secrets in keys."""
    form = [resolved.identity, _connection(resolved.pin_settings), resolved.secrets]
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


def _connection(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings that make a connection: not limits and prices. A slash at the end of an URL
    makes no other one.
    """
    kept = {k: v for k, v in settings.items() if k in {"openAI", "bedrock", "storage"}}
    url = kept.get("openAI", {}).get("baseURL")
    if isinstance(url, str):
        kept["openAI"] = {**kept["openAI"], "baseURL": url.rstrip("/")}
    return kept


def same_connection(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two settings lead to the same place with the same credentials' names."""
    return _connection(one) == _connection(other)


def _storage(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = settings.get("storage", {}).get("s3", {})
    return found


def _secret_names(settings: Mapping[str, Any]) -> list[str]:
    refs = [
        settings.get("openAI", {}).get("apiKeySecretRef"),
        settings.get("bedrock", {}).get("credentialsSecretRef"),
        _storage(settings).get("credentialsSecretRef"),
    ]
    return [ref["name"] for ref in refs if ref]

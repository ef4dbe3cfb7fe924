"""Clients of providers, shared by everything that connects the same way, and their trials.

Owns which client serves which provider object or run, and what a trial of it said. Reads Secrets
through `Credentials` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from batchinference.errors import BatchInferenceError, Retry, Stalled
from batchinference.model.batch import Account
from batchinference.model.run import ProviderPin, Run
from batchinference.model.status import Reason
from batchinference.ports import BatchProvider, ProviderFactory, ResolvedProvider
from batchinference.runtime.credentials import Credentials, fingerprint

_CLAIM_THREADS = 4


_MAY_BE_CREDENTIALS = {
    Reason.CREDENTIALS_REJECTED,
    Reason.ACCESS_DENIED,
    Reason.OUTPUT_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class Connected:
    """A client, how it was made, and what tells it from others."""

    client: BatchProvider
    resolved: ResolvedProvider
    key: str


class Clients:
    """One client per connection, closed when the process ends."""

    def __init__(
        self, factory: ProviderFactory, credentials: Credentials, timeout_s: float
    ) -> None:
        self._factory = factory
        self._credentials = credentials
        self._timeout_s = timeout_s
        self._clients: dict[str, Connected] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}

    async def connect(
        self, identity: str, namespace: str, settings: Mapping[str, Any]
    ) -> Connected:
        """The client for these settings of the provider object `Kind/namespace/name`.

        Raises:
            Stalled: Secrets are missing, or can't be used.
            Retry: the API server can't be asked now.
        """
        resolved = await self._credentials.resolve(identity, namespace, settings)
        key = fingerprint(resolved)
        if key not in self._clients:
            self._clients[key] = Connected(self._factory.connect(resolved), resolved, key)
        return self._clients[key]

    async def of_run(self, pin: ProviderPin) -> Connected:
        """The client of a run: what it was admitted with, whatever the object says now."""
        return await self.connect(identity_of(pin), pin.secrets_namespace, pin.settings)

    async def check(self, identity: str, namespace: str, settings: Mapping[str, Any]) -> Account:
        """Try the provider with a real call.

        Raises:
            Stalled, Retry: what is wrong, and what to do.
        """
        try:
            connected = await self.connect(identity, namespace, settings)
            async with asyncio.timeout(self._timeout_s):
                return await connected.client.check()
        except TimeoutError:
            raise Retry(Reason.ENDPOINT_UNREACHABLE, no_answer(settings, self._timeout_s)) from None
        except Stalled as fault:
            self.heard(fault.reason, namespace, settings)
            raise

    def heard(self, reason: str, namespace: str, settings: Mapping[str, Any]) -> None:
        """A call failed for that reason: where it may be the credentials, take them for rejected.

        A key of too few rights is refused as one that is wrong, and is mended in the same way.
        """
        if reason in _MAY_BE_CREDENTIALS:
            self.reject(namespace, settings)

    def reject(self, namespace: str, settings: Mapping[str, Any]) -> None:
        """These credentials were rejected: read the Secrets again before the next call."""
        self._credentials.forget(namespace, settings)

    async def holds_claim(self, run: Run, connected: Connected) -> bool:
        """See `ProviderFactory.holds_claim`. In threads of this connection alone: a store that
        answers ever so slowly is above the time-outs of sockets, and must hold up no other.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._claim_threads(connected), self._factory.holds_claim, run, connected.resolved
        )

    async def taken_by(self, run: Run, connected: Connected) -> str:
        """See `ProviderFactory.taken_by`; in threads as above."""
        return await asyncio.get_running_loop().run_in_executor(
            self._claim_threads(connected), self._factory.taken_by, run, connected.resolved
        )

    def _claim_threads(self, connected: Connected) -> ThreadPoolExecutor:
        threads = self._threads.get(connected.key)
        if threads is None:
            threads = self._threads[connected.key] = ThreadPoolExecutor(_CLAIM_THREADS, "claims")
        return threads

    async def close(self) -> None:
        """Release all connections."""
        for connected in self._clients.values():
            try:
                await connected.client.close()
            except (BatchInferenceError, OSError):
                continue
        self._clients.clear()
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        self._threads.clear()


def no_answer(settings: Mapping[str, Any], within_s: float) -> str:
    """That a provider was silent, with what was asked."""
    bedrock = settings.get("bedrock")
    if bedrock:
        asked = bedrock.get("endpointURL") or f"Bedrock in {bedrock.get('region', 'its region')}"
    else:
        asked = settings.get("openAI", {}).get("baseURL") or "OpenAI"
    return f"No answer of {asked} within {within_s:g} s"


def identity_of(pin: ProviderPin) -> str:
    """The provider object's identity, as `ports.ResolvedProvider.identity` has it."""
    return f"{pin.kind}/{pin.namespace}/{pin.name}"

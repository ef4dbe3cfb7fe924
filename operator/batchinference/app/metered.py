"""A provider's client that counts its calls. It changes nothing about them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from batchinference.errors import Fault
from batchinference.model.batch import (
    Account,
    BatchView,
    CancelOutcome,
    Page,
    SubmissionID,
    SubmitOutcome,
    Traits,
)
from batchinference.model.run import Run
from batchinference.ports import BatchProvider, Metrics


class MeteredProvider:
    """Implements `ports.BatchProvider` over another one."""

    def __init__(self, inner: BatchProvider, kind: str, metrics: Metrics) -> None:
        """`kind` is the provider's member of the spec, such as `openAI`."""
        self._inner = inner
        self._kind = kind
        self._metrics = metrics

    @property
    def traits(self) -> Traits:
        """See `ports.BatchProvider.traits`."""
        return self._inner.traits

    @traits.setter
    def traits(self, traits: Traits) -> None:
        self._inner.traits = traits

    async def check(self) -> Account:
        """See `ports.BatchProvider.check`."""
        async with self._call("check"):
            return await self._inner.check()

    def create_request(
        self, run: Run, submission: SubmissionID, input_ref: str
    ) -> Mapping[str, Any]:
        """See `ports.BatchProvider.create_request`."""
        return self._inner.create_request(run, submission, input_ref)

    async def submit(
        self, request: Mapping[str, Any], may_send: Callable[[], bool]
    ) -> SubmitOutcome:
        """See `ports.BatchProvider.submit`; the code is the outcome."""
        started = time.monotonic()
        outcome = await self._inner.submit(request, may_send)
        self._tell("submit", type(outcome).__name__, started)
        return outcome

    async def page(self, cursor: str | None, since: datetime | None) -> Page:
        """See `ports.BatchProvider.page`."""
        async with self._call("page"):
            return await self._inner.page(cursor, since)

    async def get(self, batch_id: str) -> BatchView | None:
        """See `ports.BatchProvider.get`."""
        async with self._call("get"):
            return await self._inner.get(batch_id)

    async def cancel(self, batch_id: str) -> CancelOutcome:
        """See `ports.BatchProvider.cancel`."""
        async with self._call("cancel"):
            return await self._inner.cancel(batch_id)

    async def input_readable(self, input_ref: str) -> bool:
        """See `ports.BatchProvider.input_readable`."""
        async with self._call("input_readable"):
            return await self._inner.input_readable(input_ref)

    async def delete_input(self, input_ref: str) -> None:
        """See `ports.BatchProvider.delete_input`."""
        async with self._call("delete_input"):
            await self._inner.delete_input(input_ref)

    async def close(self) -> None:
        """See `ports.BatchProvider.close`."""
        await self._inner.close()

    @asynccontextmanager
    async def _call(self, operation: str) -> AsyncIterator[None]:
        started, code = time.monotonic(), "ok"
        try:
            yield
        except Fault as fault:
            code = fault.reason
            raise
        except BaseException as fault:
            code = type(fault).__name__
            raise
        finally:
            self._tell(operation, code, started)

    def _tell(self, operation: str, code: str, started: float) -> None:
        self._metrics.count(
            "provider_requests_total", provider=self._kind, operation=operation, code=code
        )
        self._metrics.observe(
            "provider_request_duration_seconds",
            time.monotonic() - started,
            provider=self._kind,
            operation=operation,
        )

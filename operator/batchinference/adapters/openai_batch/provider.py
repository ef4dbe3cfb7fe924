"""`ports.BatchProvider` over AsyncOpenAI: create, look up, follow and cancel batches.

Owns the calls and their bounds in time. What an answer means is in `faults`, `view` and `paging`.
It must not know shards' bytes: uploads and downloads are in `data`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
from openai import APIStatusError, OpenAIError

from batchinference.adapters import network
from batchinference.adapters.openai_batch import connection as connecting
from batchinference.adapters.openai_batch import paging
from batchinference.adapters.openai_batch.connection import (
    ONCE,
    Connection,
    async_client,
    connection,
)
from batchinference.adapters.openai_batch.faults import fault, is_json, outcome
from batchinference.adapters.openai_batch.names import metadata
from batchinference.adapters.openai_batch.view import view
from batchinference.errors import InvalidObject, Permanent, Retry
from batchinference.model.batch import (
    TOO_LATE,
    Accepted,
    Account,
    BatchView,
    CancelOutcome,
    OutcomeUnknown,
    Page,
    SubmissionID,
    SubmitOutcome,
    Traits,
)
from batchinference.model.codec import decode
from batchinference.model.provider import OpenAIProvider
from batchinference.model.run import Run
from batchinference.model.status import Reason

ENDPOINTS = {
    "ChatCompletions": "/v1/chat/completions",
    "Completions": "/v1/completions",
    "Embeddings": "/v1/embeddings",
    "Responses": "/v1/responses",
}

_CALL_S = 75.0
"""Seconds after which a call with its retries is given up."""
SUBMIT_S = 60.0
"""Seconds after which the outcome of a create call is unknown."""

_REFUSED = {400, 404, 422}

_FAILED = (OpenAIError, httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, OSError, ValueError)


class OpenAIBatchProvider:
    """See `ports.BatchProvider`.

    Attributes:
        traits: `lists_complete` turns False once the server proves to page in a way that can't be
            followed; the pass that finds out raises Retry, later ones end where it ends.
            `echoes_submission` turns False once a created batch came back without its metadata.
            Read them when they are needed, not once.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, Mapping[str, str]],
        *,
        identity: str = "",
        submit_timeout_s: float = SUBMIT_S,
    ) -> None:
        """Make a client; no call is made yet.

        Args:
            settings: the provider's spec as the API server has it.
            secrets: resolved Secrets by role; `apiKey` and `caBundle` are read.
            identity: the provider object, `kind/namespace/name`: what the account is where
                settings name neither organization nor project nor quota group.
            submit_timeout_s: seconds after which the outcome of a create call is unknown.

        Raises:
            Stalled: the settings or the Secrets can't be used.
        """
        self.traits = Traits()
        self._connection = connection(settings, secrets)
        self._identity = identity
        self._submit_timeout_s = submit_timeout_s
        self._client = async_client(self._connection)

    async def check(self) -> Account:
        """See `ports.BatchProvider.check`: the listing that polling lives on, with one item."""
        await self._read("list batches", "/batches", {"limit": 1})
        return account(self._connection, self._identity)

    def create_request(
        self, run: Run, submission: SubmissionID, input_ref: str
    ) -> Mapping[str, Any]:
        """See `ports.BatchProvider.create_request`. Settings are those that the run has pinned."""
        operation = str(run.spec.get("operation", "ChatCompletions"))
        endpoint = ENDPOINTS.get(operation)
        if endpoint is None:
            raise Permanent(
                Reason.NOT_IMPLEMENTED,
                f"spec.operation: {operation!r} is none of {', '.join(ENDPOINTS)}.",
            )
        try:
            settings = decode(
                OpenAIProvider,
                run.provider.settings.get("openAI") or {},
                "spec.openAI",
                ignore_unknown=True,
            )
        except InvalidObject as error:
            raise Permanent(Reason.INVALID_SPEC, str(error)) from error
        request: dict[str, Any] = {
            "input_file_id": input_ref,
            "endpoint": endpoint,
            "completion_window": settings.completion_window,
            "metadata": metadata(submission),
        }
        if settings.output_expires_after_seconds is not None:
            request["output_expires_after"] = {
                "anchor": "created_at",
                "seconds": settings.output_expires_after_seconds,
            }
        return request

    async def submit(
        self, request: Mapping[str, Any], may_send: Callable[[], bool]
    ) -> SubmitOutcome:
        """See `ports.BatchProvider.submit`: one POST, never a second one."""
        asking = connecting.may_send.set(may_send)
        try:
            async with asyncio.timeout(self._submit_timeout_s):
                answer = await self._client.post(
                    "/batches",
                    body=dict(request),
                    cast_to=httpx2.Response,
                    options=ONCE,
                )
        except network.TooLate:
            return TOO_LATE
        except _FAILED as error:
            return outcome(error)
        finally:
            connecting.may_send.reset(asking)
        found = _json(answer)
        batch = view(found) if isinstance(found, Mapping) else None
        if batch is None or not batch.id:
            return OutcomeUnknown(
                f"HTTP {answer.status_code} to the create call, without a batch in it."
            )
        if batch.submission is None or not batch.input_ref:
            # Not every server echoes what it was sent; the request itself says it.
            self.traits = replace(self.traits, echoes_submission=batch.submission is not None)
            batch = replace(
                batch,
                submission=view(request).submission,
                input_ref=batch.input_ref or str(request["input_file_id"]),
            )
        return Accepted(batch)

    async def page(self, cursor: str | None, since: datetime | None) -> Page:
        """See `ports.BatchProvider.page`.

        Raises:
            Retry: also when the server's listing can't be followed to its end. `traits` says so
                from then on, and later passes end where the way ends.
            Stalled.
        """
        place = paging.Cursor.parse(cursor)
        answer: Any = {"data": []}
        try:
            answer, place = await self._page(place)
            items = paging.items_of(answer)
            following = paging.after(place, answer, since)
        except paging.Unfollowable as error:
            items = self._unfollowable(error, answer)
            following = None
        else:
            if following is None and place.pages and not self.traits.lists_complete:
                self.traits = replace(self.traits, lists_complete=True)
        batches = tuple(batch for batch in map(view, items) if batch.id)
        return Page(batches, str(following) if following else None)

    async def _page(self, place: paging.Cursor) -> tuple[Any, paging.Cursor]:
        """One page, and how it was asked for in the end."""
        try:
            return await self._get("/batches", place.query), place
        except APIStatusError as error:
            # Some servers take `after` for a number and refuse an id from the second page on.
            offset = place.by_offset()
            if error.status_code not in _REFUSED or offset is None:
                raise fault(error, "list batches") from error
        except _FAILED as error:
            raise fault(error, "list batches") from error
        try:
            return await self._get("/batches", offset.query), offset
        except _FAILED as error:
            if isinstance(error, APIStatusError) and error.status_code in _REFUSED:
                raise paging.Unfollowable("the server refuses to give a second page") from error
            raise fault(error, "list batches") from error

    def _unfollowable(self, error: paging.Unfollowable, answer: Any) -> list[Mapping[str, Any]]:
        """The items all the same, once the traits have said that a listing is not complete."""
        known = not self.traits.lists_complete
        self.traits = replace(self.traits, lists_complete=False)
        if not known:
            raise Retry(
                Reason.PROVIDER_UNAVAILABLE,
                f"The listing of batches can't be followed to its end: {error}.",
            ) from error
        try:
            return paging.items_of(answer)
        except paging.Unfollowable:
            raise Retry(
                Reason.PROVIDER_UNAVAILABLE, f"The listing of batches can't be read: {error}."
            ) from error

    async def get(self, batch_id: str) -> BatchView | None:
        """See `ports.BatchProvider.get`. Only the API's own 404 says that there is none."""
        try:
            found = await self._get(f"/batches/{quote(batch_id, safe='')}", {})
        except APIStatusError as error:
            if error.status_code == 404 and is_json(error):
                return None
            raise fault(error, f"read the batch {batch_id}") from error
        except _FAILED as error:
            raise fault(error, f"read the batch {batch_id}") from error
        if not isinstance(found, Mapping) or not view(found).id:
            raise Retry(
                Reason.PROVIDER_UNAVAILABLE,
                f"The server answered something else than a batch for {batch_id}.",
            )
        return view(found)

    async def cancel(self, batch_id: str) -> CancelOutcome:
        """See `ports.BatchProvider.cancel`."""
        doing = f"cancel the batch {batch_id}"
        try:
            # No retries: the SDK would repeat the 409 of a batch that is over.
            async with asyncio.timeout(_CALL_S):
                answer = await self._client.post(
                    f"/batches/{quote(batch_id, safe='')}/cancel",
                    cast_to=httpx2.Response,
                    options=ONCE,
                )
        except APIStatusError as error:
            if error.status_code == 404 and is_json(error):
                return CancelOutcome.NOT_FOUND
            if error.status_code in _REFUSED | {409}:
                return await self._after_refused_cancel(batch_id, error)
            raise fault(error, doing) from error
        except _FAILED as error:
            raise fault(error, doing) from error
        found = _json(answer)
        over = isinstance(found, Mapping) and view(found).state.is_over
        return CancelOutcome.ALREADY_OVER if over else CancelOutcome.ACCEPTED

    async def _after_refused_cancel(self, batch_id: str, error: APIStatusError) -> CancelOutcome:
        """A refusal means "over" on most servers, and "not now" on some: the batch itself knows."""
        batch = await self.get(batch_id)
        if batch is None:
            return CancelOutcome.NOT_FOUND
        if batch.state.is_over:
            return CancelOutcome.ALREADY_OVER
        raise Retry(
            Reason.PROVIDER_UNAVAILABLE,
            f"The server would not cancel {batch_id} while it is {batch.raw_state!r} "
            f"(HTTP {error.status_code}).",
        ) from error

    async def input_readable(self, input_ref: str) -> bool:
        """See `ports.BatchProvider.input_readable`."""
        try:
            await self._get(f"/files/{quote(input_ref, safe='')}", {})
        except APIStatusError as error:
            if error.status_code == 404 and is_json(error):
                return False
            raise fault(error, f"read the file {input_ref}") from error
        except _FAILED as error:
            raise fault(error, f"read the file {input_ref}") from error
        return True

    async def delete_input(self, input_ref: str) -> None:
        """See `ports.BatchProvider.delete_input`."""
        doing = f"delete the file {input_ref}"
        try:
            async with asyncio.timeout(_CALL_S):
                await self._client.delete(
                    f"/files/{quote(input_ref, safe='')}", cast_to=httpx2.Response
                )
        except APIStatusError as error:
            # A proxy's 404 page proves nothing: a fence must stand before it is believed.
            if error.status_code not in {404, 410} or not is_json(error):
                raise fault(error, doing) from error
        except _FAILED as error:
            raise fault(error, doing) from error

    async def close(self) -> None:
        """See `ports.BatchProvider.close`."""
        await self._client.close()

    # ------------------------------------------------------------ calls

    async def _read(self, doing: str, path: str, query: Mapping[str, Any]) -> Any:
        try:
            return await self._get(path, query)
        except _FAILED as error:
            raise fault(error, doing) from error

    async def _get(self, path: str, query: Mapping[str, Any]) -> Any:
        async with asyncio.timeout(_CALL_S):
            answer = await self._client.get(
                path, cast_to=httpx2.Response, options={"params": dict(query)}
            )
        found = _json(answer)
        if found is None:
            raise Retry(
                Reason.PROVIDER_UNAVAILABLE,
                f"The server answered {path} with something else than JSON.",
            )
        return found


def account(connection: Connection, identity: str) -> Account:
    """What the quotas count against (protocol 1.5); it survives a change of the key."""
    settings = connection.settings
    url = urlsplit(settings.base_url)
    details = {
        "baseURL": settings.base_url,
        "organization": settings.organization,
        "project": settings.project,
    }
    server = f"{url.netloc}{url.path}".rstrip("/")
    if settings.organization or settings.project:
        name = f"openai/{server}/{settings.organization or '-'}/{settings.project or '-'}"
    else:
        name = f"openai/{server}/{identity}" if identity else f"openai/{server}"
    return Account(name, {key: value for key, value in details.items() if value})


def _json(answer: httpx2.Response) -> Any:
    try:
        return json.loads(answer.content)
    except ValueError:
        return None

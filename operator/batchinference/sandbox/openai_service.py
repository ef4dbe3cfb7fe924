"""OpenAI's calls: who may make them, batches, live endpoints.

Owns the HTTP side of `/v1`. Must not know how batches live (`openai_batches`).
"""

import asyncio
import json
import secrets
from collections import Counter
from typing import Any

import msgspec
from aiohttp import web

from . import openai_endpoints, spells
from .clock import Clock
from .gateway import ApiError, Call, Gateway
from .openai_batches import Batch, Batches
from .openai_files import Files, body_of, check_expiry, limit_of, page_of, refused
from .refusals import Refusal, of_status
from .settings import InForce

_MAX_METADATA = 16
_MAX_METADATA_KEY = 64
_MAX_METADATA_VALUE = 512
_SLOW_S = 1.0
_LIVE = {  # operation: path
    "chat.completions.create": "/v1/chat/completions",
    "completions.create": "/v1/completions",
    "embeddings.create": "/v1/embeddings",
    "moderations.create": "/v1/moderations",
    "responses.create": "/v1/responses",
}


class OpenAIService:
    """OpenAI as its callers see it."""

    name = "openai"

    def __init__(
        self,
        clock: Clock,
        settings: InForce,
        files: Files,
        batches: Batches,
        projects: dict[str, str],
    ) -> None:
        self._clock = clock
        self._settings = settings
        self._files = files
        self._batches = batches
        self._projects = projects  # by API key
        self.live: Counter[str] = Counter()
        self._spent: set[str] = set()

    def routes(self, gateway: Gateway) -> list[web.RouteDef]:
        """List the routes of `/v1`."""
        files = self._files

        def call(name: str, handler: Any, *subject: Any) -> Any:
            return gateway.operation(self, name, handler, *subject)

        return [
            web.post("/v1/files", call("files.create", files.create, files.read_upload)),
            web.get("/v1/files", call("files.list", files.list)),
            web.get("/v1/files/{id}", call("files.retrieve", files.retrieve, files.subject)),
            web.get("/v1/files/{id}/content", call("files.content", files.content, files.subject)),
            web.delete("/v1/files/{id}", call("files.delete", files.delete, files.subject)),
            web.post("/v1/batches", call("batches.create", self._create)),
            web.get("/v1/batches", call("batches.list", self._list)),
            web.get("/v1/batches/{id}", call("batches.retrieve", self._retrieve, self._subject)),
            web.post(
                "/v1/batches/{id}/cancel", call("batches.cancel", self._cancel, self._subject)
            ),
            *(web.post(path, call(name, self._answer)) for name, path in _LIVE.items()),
        ]

    # -- manners (`gateway.Face`)

    def authenticate(self, request: web.Request) -> str:
        """Return the project of the API key."""
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        key = key.strip() or request.headers.get("api-key", "")
        if not key or scheme not in {"Bearer", ""}:
            text = (
                "You didn't provide an API key. You need to provide your API key in an "
                "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
            raise refused(Refusal(401, text))
        if key not in self._projects:
            shown = f"{key[:4]}{'*' * 8}{key[-4:]}" if len(key) > 8 else "*" * len(key)
            text = (
                f"Incorrect API key provided: {shown}. You can find your API key at "
                "https://platform.openai.com/account/api-keys."
            )
            raise refused(Refusal(401, text, "invalid_api_key"))
        return self._projects[key]

    def error(
        self, status: int, code: str | None, message: str | None, headers: dict[str, str]
    ) -> web.Response:
        """Render an error."""
        refusal = of_status(status)
        if code is not None:
            refusal.code = code
        if message is not None:
            refusal.message = message
        return web.json_response(refusal.openai_body(), status=status, headers=headers)

    def rate(self) -> tuple[float | None, float]:
        """Return the throttle."""
        settings = self._settings.openai
        return settings.requests_per_s, settings.retry_after_s

    # -- batches

    def view(self, batch: Batch) -> dict[str, Any]:
        """Render a batch object, in the variant that the settings choose."""
        settings = self._settings.openai
        total, completed, failed = self._batches.progress(batch)
        shown: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "model": batch.model,
            "errors": None,
            "input_file_id": batch.input_file_id,
            "completion_window": batch.completion_window,
            "status": batch.status,
            "created_at": int(batch.created_at),
            "expires_at": int(batch.expires_at),
            "request_counts": {"total": total, "completed": completed, "failed": failed},
            "metadata": batch.metadata if settings.echo_metadata else None,
        }
        for status in ("in_progress", "finalizing", "completed", "failed", "expired",
                       "cancelling", "cancelled"):  # fmt: skip
            shown[f"{status}_at"] = batch.at(status)
        for key, file in (
            ("output_file_id", batch.output_file),
            ("error_file_id", batch.error_file),
        ):
            if file is not None and batch.is_over:
                shown[key] = file.id
            elif settings.absent_file_ids != "missing":
                shown[key] = "" if settings.absent_file_ids == "empty" else None
        if batch.problems:
            shown["errors"] = {"object": "list", "data": msgspec.to_builtins(batch.problems)}
        if settings.usage:
            used, made = batch.usage if batch.usage is not None and batch.is_over else (0, 0)
            shown["usage"] = {
                "input_tokens": used,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": made,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used + made,
            }
        return shown

    async def _create(self, call: Call) -> web.Response:
        body = body_of(await call.request.text())
        try:
            _check_types(body)
            _check_metadata(body.get("metadata"))
            output_life_s = None
            if body.get("output_expires_after") is not None:
                output_life_s = check_expiry(body["output_expires_after"], "output_expires_after")
            _check_played(body["endpoint"])
        except Refusal as refusal:
            raise refused(refusal) from refusal
        if self._batches.exceed(self._settings.openai.batches_per_hour):
            raise ApiError(self.error(429, None, "Batch creation rate limit reached.", {}))
        doom = call.hit_by("quota") or call.hit_by("fail")
        batch = self._batches.accept(call.scope, body, output_life_s, doom)
        return web.json_response(self.view(batch))

    async def _list(self, call: Call) -> web.Response:
        limit = limit_of(call, 100, 20)
        page = page_of(self._batches.newest_first(call.scope), call, limit, self.view)
        return web.json_response(page)

    def _named(self, call: Call) -> Batch:
        batch_id = call.request.match_info["id"]
        batch = self._batches.get(batch_id)
        if batch is None or batch.project != call.scope:
            raise refused(Refusal(404, f"No batch found with id '{batch_id}'."))
        return batch

    async def _subject(self, call: Call) -> str:
        batch_id = call.request.match_info["id"]
        batch = self._batches.get(batch_id)
        if batch is None:
            return batch_id
        return f"{batch_id} {json.dumps(batch.metadata)} {batch.input_file_name}"

    async def _retrieve(self, call: Call) -> web.Response:
        return web.json_response(self.view(self._named(call)))

    async def _cancel(self, call: Call) -> web.Response:
        batch = self._named(call)
        if batch.status in {"completed", "failed", "expired"}:
            text = f"Cannot cancel a batch with status '{batch.status}'."
            raise refused(Refusal(409, text))
        self._batches.cancel(batch)
        return web.json_response(self.view(batch))

    # -- live calls

    async def _answer(self, call: Call) -> web.Response:
        raw = await call.request.read()
        body = body_of(raw.decode(errors="replace"))
        asked = spells.read(raw, frozenset(self._spent), self._spent)
        delay_s = self._settings.openai.live_latency_s + (_SLOW_S if "slow" in asked else 0.0)
        if delay_s:
            await asyncio.sleep(delay_s)
        self.live[call.operation] += 1
        tag = secrets.token_hex(12)
        try:
            served = openai_endpoints.serve(
                _LIVE[call.operation], body, tag, int(self._clock.now()), asked
            )
        except Refusal as refusal:
            headers = {"x-request-id": f"req_{tag}"}
            if refusal.status == 429:
                headers["retry-after"] = f"{self._settings.openai.retry_after_s:g}"
            return web.json_response(refusal.openai_body(), status=refusal.status, headers=headers)
        return web.Response(
            body=msgspec.json.encode(served.body),
            content_type="application/json",
            headers={"x-request-id": f"req_{tag}"},
        )

    def clear(self) -> None:
        """Forget the counts of live calls."""
        self.live.clear()
        self._spent.clear()


def _check_types(body: dict[str, Any]) -> None:
    from .openai_types import check  # noqa: PLC0415  # a second to load; the server warms it up

    check("batch", body)


def _check_played(endpoint: str) -> None:
    if endpoint not in openai_endpoints.ENDPOINTS:
        text = f"The sandbox does not play the endpoint '{endpoint}'."
        raise Refusal(400, text, "invalid_value", "endpoint")


def _check_metadata(metadata: Any) -> None:
    if not metadata:
        return
    if len(metadata) > _MAX_METADATA:
        raise Refusal(
            400,
            "Invalid 'metadata': too many properties. Expected an object with at most "
            f"{_MAX_METADATA} properties, but got an object with {len(metadata)} properties "
            "instead.",
            "object_above_max_properties",
            "metadata",
        )
    for key, value in metadata.items():
        for what, text, limit in (
            ("key", key, _MAX_METADATA_KEY),
            ("value", value, _MAX_METADATA_VALUE),
        ):
            if len(text) > limit:
                raise Refusal(
                    400,
                    f"Invalid 'metadata.{key}': {what} too long. Expected a string with maximum "
                    f"length {limit}, but got a string with length {len(text)} instead.",
                    "string_above_max_length",
                    f"metadata.{key}",
                )

"""The control endpoint `/_sandbox/`: what happened, and what shall happen.

Owns the view of the sandbox's state. Must not know how any of it works.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from .bedrock_jobs import Job, Jobs
from .faults import BadRule, Faults
from .gateway import Gateway
from .lifecycle import Lifecycle
from .openai_batches import Batch, Batches
from .openai_files import Files
from .openai_service import OpenAIService
from .settings import InForce, UnknownSetting, change

_MAIN_STATE = {"openai": "in_progress", "bedrock": "InProgress"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlService:
    """Answers tests and demos."""

    lifecycle: Lifecycle
    settings: InForce
    initial: InForce  # what reset goes back to
    faults: Faults
    gateway: Gateway
    files: Files
    batches: Batches
    jobs: Jobs
    openai: OpenAIService
    s3_url: str

    def routes(self) -> list[web.RouteDef]:
        """List the routes of the control endpoint."""
        return [
            web.get("/_sandbox/health", self._health),
            web.get("/_sandbox/state", self._state),
            web.post("/_sandbox/faults", _with_body(self._add_fault)),
            web.delete("/_sandbox/faults", self._remove_faults),
            web.post("/_sandbox/settings", _with_body(self._change_settings)),
            web.post("/_sandbox/hold", _with_body(self._hold)),
            web.post("/_sandbox/release", _with_body(self._release)),
            web.post("/_sandbox/expire", _with_body(self._expire)),
            web.post("/_sandbox/advance", _with_body(self._advance)),
            web.post("/_sandbox/reset", _with_body(self._reset)),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"ok": not self.lifecycle.broken})

    async def _state(self, request: web.Request) -> web.Response:
        brief = request.query.get("brief") in {"1", "true"}
        calls = {name: dict(counted) for name, counted in self.gateway.calls.items()}
        s3 = await self._s3("GET", "state")
        calls["s3"] = s3.get("calls", {})
        state: dict[str, Any] = {
            "now": self.lifecycle.clock.now(),
            "calls": calls,
            "live": dict(self.openai.live),
            "counts": {"openai": _tally(self.batches), "bedrock": _tally(self.jobs)},
            "holds": self.lifecycle.held(),
            "faults": self.faults.view() + s3.get("faults", []),
            "settings": {
                "openai": asdict(self.settings.openai),
                "bedrock": asdict(self.settings.bedrock),
            },
            "broken": [repr(error) for error in self.lifecycle.broken],
        }
        if not brief:
            state["openai"] = {
                "submissions": [_batch_view(batch) for batch in self.batches],
                "files": [
                    {**file.view(), "project": file.project, "deleted": file.deleted}
                    for file in self.files.all()
                ],
            }
            state["bedrock"] = {"submissions": [_job_view(job) for job in self.jobs]}
        return web.json_response(state)

    async def _add_fault(self, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("provider") == "s3":
            answer: dict[str, Any] = await self._s3("POST", "faults", body)
            return answer
        return {"id": self.faults.add(body).id}

    async def _remove_faults(self, request: web.Request) -> web.Response:
        rule_id = request.query.get("id")
        removed = self.faults.remove(int(rule_id) if rule_id else None)
        if rule_id is None:
            removed += (await self._s3("DELETE", "faults")).get("removed", 0)
        return web.json_response({"removed": removed})

    async def _change_settings(self, body: dict[str, Any]) -> dict[str, Any]:
        unknown = body.keys() - {"openai", "bedrock"}
        if unknown:
            raise UnknownSetting(f"unknown providers {sorted(unknown)}; known: openai, bedrock")
        # Both are checked before either is put in force.
        openai = change(self.settings.openai, body.get("openai", {}))
        bedrock = change(self.settings.bedrock, body.get("bedrock", {}))
        self.settings.openai, self.settings.bedrock = openai, bedrock
        self.lifecycle.poke()
        return {"openai": asdict(openai), "bedrock": asdict(bedrock)}

    async def _hold(self, body: dict[str, Any]) -> dict[str, Any]:
        for provider in _providers(body):
            self.lifecycle.hold((provider, body.get("state") or _MAIN_STATE[provider]))
        return {"holds": self.lifecycle.held()}

    async def _release(self, body: dict[str, Any]) -> dict[str, Any]:
        self.lifecycle.release(body.get("provider"), body.get("state"))
        return {"holds": self.lifecycle.held()}

    async def _expire(self, body: dict[str, Any]) -> dict[str, Any]:
        """End the window of one batch (`id`), or of all that live, of a provider or of both."""
        wanted = body.get("id")
        expired = []
        for provider in _providers(body):
            if provider == "openai":
                for batch in self.batches:
                    if not batch.is_over and wanted in {None, batch.id}:
                        self.batches.expire(batch)
                        expired.append(batch.id)
            else:
                for job in self.jobs:
                    if not job.is_over and wanted in {None, job.id, job.arn}:
                        self.jobs.expire(job)
                        expired.append(job.arn)
        return {"expired": expired}

    async def _advance(self, body: dict[str, Any]) -> dict[str, Any]:
        self.lifecycle.clock.advance(float(body["seconds"]))
        self.lifecycle.poke()
        return {"now": self.lifecycle.clock.now()}

    async def _reset(self, body: dict[str, Any]) -> dict[str, Any]:
        """Put everything back to the beginning; objects in S3 stay."""
        del body
        await self.lifecycle.stop()
        self.lifecycle.release()
        self.lifecycle.broken.clear()
        self.faults.remove()
        self.gateway.calls.clear()
        self.openai.clear()
        self.batches.clear()
        self.jobs.clear()
        self.files.clear()
        self.settings.openai = self.initial.openai
        self.settings.bedrock = self.initial.bedrock
        await self._s3("POST", "reset")
        return {}

    async def _s3(self, method: str, what: str, body: dict[str, Any] | None = None) -> Any:
        if not self.s3_url:
            return {}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310  # our own S3 on loopback
            f"{self.s3_url}/_sandbox/{what}", data=data, method=method
        )
        return await asyncio.to_thread(_ask, request)


def _ask(request: urllib.request.Request) -> Any:
    """Ask the S3 process; one that is gone has nothing to say.

    Raises:
        BadRule: it refuses a fault.
    """
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  # as above
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise BadRule(json.load(error)["error"]) from error
    except urllib.error.URLError:
        return {}


def _with_body(
    handler: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            text = await request.text()
            return web.json_response(await handler(json.loads(text) if text else {}))
        except (ValueError, KeyError) as error:
            return web.json_response({"error": f"{type(error).__name__}: {error}"}, status=400)

    return handle


def _providers(body: dict[str, Any]) -> list[str]:
    provider = body.get("provider")
    if provider is None:
        return list(_MAIN_STATE)
    if provider not in _MAIN_STATE:
        raise ValueError(f"unknown provider {provider!r}; known: {sorted(_MAIN_STATE)}")
    return [provider]


def _tally(things: Batches | Jobs) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in things:
        counts[one.status] = counts.get(one.status, 0) + 1
    return counts


def _batch_view(batch: Batch) -> dict[str, Any]:
    return {
        "id": batch.id,
        "project": batch.project,
        "endpoint": batch.endpoint,
        "model": batch.model,
        "metadata": batch.metadata,
        "inputFileID": batch.input_file_id,
        "inputFileName": batch.input_file_name,
        "status": batch.status,
        "records": batch.records,
        "completed": batch.completed,
        "failed": batch.failed,
        "createdAt": batch.created_at,
        "history": [{"status": status, "at": moment} for status, moment in batch.history],
        "cancels": batch.cancels,
        "errors": [problem.code for problem in batch.problems],
    }


def _job_view(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "arn": job.arn,
        "scope": job.scope,
        "jobName": job.name,
        "clientRequestToken": job.token,
        "modelId": job.request["modelId"],
        "inputURI": job.request["inputDataConfig"]["s3InputDataConfig"]["s3Uri"],
        "outputURI": job.request["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"],
        "tags": job.request.get("tags", []),
        "status": job.status,
        "message": job.message,
        "records": job.records,
        "succeeded": job.success,
        "failed": job.errors,
        "createdAt": job.submit_time,
        "history": [{"status": status, "at": moment} for status, moment in job.history],
        "cancels": job.stops,
        "replays": job.replays,
    }

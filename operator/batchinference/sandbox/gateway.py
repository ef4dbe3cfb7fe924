"""The way into every operation: who calls, is it throttled, does a fault hit it.

Owns call counts and the carrying out of faults on HTTP. Must not know what operations do.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiohttp import web

from .clock import Clock
from .faults import Faults, Rule


class ApiError(Exception):
    """An operation's refusal, already rendered as its provider would."""

    def __init__(self, response: web.Response) -> None:
        super().__init__(response.text)
        self.response = response


@dataclass(slots=True)
class Call:
    """One request on its way through an operation."""

    request: web.Request
    operation: str
    scope: str = ""  # the caller's project (OpenAI) or account and region (AWS)
    rule: Rule | None = None
    upload: Any = None  # what a subject function has already read of the body
    body: Any = field(default=None)

    def hit_by(self, kind: str) -> Rule | None:
        """Return the fault that hits this call when it is of this kind."""
        return self.rule if self.rule is not None and self.rule.kind == kind else None


class Face(Protocol):
    """What a provider tells the gateway about its manners."""

    name: str

    def authenticate(self, request: web.Request) -> str:
        """Return the caller's scope.

        Raises:
            ApiError: who calls is not known.
        """
        ...

    def error(
        self, status: int, code: str | None, message: str | None, headers: dict[str, str]
    ) -> web.Response:
        """Render an error as this provider does; unset parts get its usual words."""
        ...

    def rate(self) -> tuple[float | None, float]:
        """Return the allowed requests per second, or None, and the retry-after in seconds."""
        ...


Handler = Callable[[Call], Awaitable[web.StreamResponse]]
Subject = Callable[[Call], Awaitable[str]]


async def _body_text(call: Call) -> str:
    return f"{call.request.path} {await call.request.text()}"


class Gateway:
    """Wraps every operation of every provider."""

    def __init__(self, clock: Clock, faults: Faults) -> None:
        self._clock = clock
        self._faults = faults
        self.calls: dict[str, Counter[str]] = {}
        self._allowance: dict[str, tuple[float, float]] = {}  # tokens left, counted when

    def operation(
        self, face: Face, name: str, handler: Handler, subject: Subject = _body_text
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Make an HTTP handler of an operation."""

        async def handle(request: web.Request) -> web.StreamResponse:
            call = Call(request, name)
            try:
                call.scope = face.authenticate(request)
                return await self._pass(face, call, handler, subject)
            except ApiError as refused:
                return refused.response

        return handle

    async def _pass(
        self, face: Face, call: Call, handler: Handler, subject: Subject
    ) -> web.StreamResponse:
        self.calls.setdefault(face.name, Counter())[call.operation] += 1
        if self._faults.wants(face.name):
            call.rule = self._faults.take(face.name, call.operation, await subject(call))
        rule = call.rule
        if rule is not None:
            if rule.kind == "drop_request":
                return _hang_up(call.request)
            if rule.kind == "error" and not rule.commit:
                return face.error(rule.status, rule.code, rule.message, rule.headers)
            if rule.kind == "delay" and rule.when == "before":
                await asyncio.sleep(rule.seconds)
        self._throttle(face)
        response = await handler(call)
        if rule is not None:
            if rule.kind == "delay" and rule.when == "after":
                await asyncio.sleep(rule.seconds)
            elif rule.kind == "lose_response":
                return _hang_up(call.request)
            elif rule.kind == "error":
                return face.error(rule.status, rule.code, rule.message, rule.headers)
        return response

    def _throttle(self, face: Face) -> None:
        rate, retry_after_s = face.rate()
        if rate is None:
            return
        now = self._clock.now()
        left, counted = self._allowance.get(face.name, (max(1.0, rate), now))
        left = min(max(1.0, rate), left + (now - counted) * rate)
        if left < 1.0:
            self._allowance[face.name] = (left, now)
            raise ApiError(face.error(429, None, None, {"retry-after": f"{retry_after_s:g}"}))
        self._allowance[face.name] = (left - 1.0, now)


def _hang_up(request: web.Request) -> web.Response:
    """Drop the connection; the response is never written."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def stream_file(call: Call, path: str, size: int, headers: dict[str, str]) -> web.Response:
    """Send a file in pieces, or the beginning of it when a truncation hits the call."""
    response = web.StreamResponse(headers={**headers, "Content-Length": str(size)})
    rule = call.hit_by("truncate")
    left = size if rule is None else rule.kept(size)
    await response.prepare(call.request)
    with open(path, "rb") as file:  # noqa: ASYNC230, PTH123  # from the page cache, in pieces
        while left > 0:
            piece = file.read(min(left, 1 << 18))
            if not piece:
                break
            await response.write(piece)
            left -= len(piece)
    if rule is not None:
        await _drain_and_close(call.request)
    else:
        await response.write_eof()
    return response  # type: ignore[return-value]  # prepared and sent, whatever its class


async def _drain_and_close(request: web.Request) -> None:
    transport = request.transport
    if transport is not None:
        transport.close()  # flushes what was written, then ends the connection early

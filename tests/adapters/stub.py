"""A small HTTP server whose answers a test writes, for what no well-behaved server does."""

from __future__ import annotations

import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """One answer.

    Attributes:
        content: bytes, or anything else as JSON.
        cut: send only so many bytes of the body, then break the connection; the announced length
            stays that of the whole.
        drop: break the connection without an answer.
        unannounced: do not say how long the body is; it ends with the connection.
        gate: wait for it before answering.
        trickle: from this byte of the answer on, headers included, send a byte now and then until
            the client or the stub has gone: slow enough for nobody, fast enough for every socket's
            time-out.
    """

    content: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    drop: bool = False
    unannounced: bool = False
    gate: threading.Event | None = None
    trickle: int | None = None

    @property
    def body(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        return json.dumps(self.content).encode()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_args: Any) -> None:
        """Clients that break off are what some tests are about."""


class Stub:
    """A server on a free port of 127.0.0.1.

    Attributes:
        asked: the requests so far.
        forget_bodies: read bodies and keep nothing of them.
    """

    def __init__(
        self, respond: Callable[[Asked], Answer], *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.respond = respond
        self.asked: list[Asked] = []
        self.failed: list[Exception] = []
        self.forget_bodies = False
        self._over = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                stub._serve(self)

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self._serve
                raise AttributeError(name)

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://localhost:{port}"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length", "0"))
        if self.forget_bodies:
            body = b""
            while length > 0 and (piece := handler.rfile.read(min(length, 1 << 16))):
                length -= len(piece)
        else:
            body = handler.rfile.read(length)
        url = urlsplit(handler.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        headers = {key.lower(): value for key, value in handler.headers.items()}
        asked = Asked(handler.command, url.path, query, headers, body)
        self.asked.append(asked)
        try:
            answer = self.respond(asked)
        except Exception as error:  # noqa: BLE001 - a test's own mistake; told when it ends
            self.failed.append(error)
            answer = Answer({"error": {"message": repr(error)}}, 599)
        if answer.gate is not None:
            answer.gate.wait(20)
        with suppress(OSError):
            _send(handler, answer, self._over)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert not self.failed, self.failed


def _send(handler: BaseHTTPRequestHandler, answer: Answer, over: threading.Event) -> None:
    if answer.drop:
        _break(handler)
        return
    body = answer.body
    if answer.trickle is not None:
        _trickle(handler, answer, answer.trickle, over)
        return
    handler.send_response(answer.status)
    headers = {"Content-Type": "application/json"}
    if answer.unannounced:
        handler.close_connection = True
        headers["Connection"] = "close"
    else:
        headers["Content-Length"] = str(len(body))
    for name, value in {**headers, **answer.headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command == "HEAD":
        return
    handler.wfile.write(body if answer.cut is None else body[: answer.cut])
    if answer.cut is not None:
        handler.wfile.flush()
        _break(handler)


def _trickle(
    handler: BaseHTTPRequestHandler, answer: Answer, fast: int, over: threading.Event
) -> None:
    handler.close_connection = True
    headers = {"Content-Length": str(len(answer.body)), **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} Slow", *(f"{n}: {v}" for n, v in headers.items()), "", ""]
    whole = "\r\n".join(lines).encode() + answer.body
    handler.wfile.write(whole[:fast])
    for byte in whole[fast:]:
        handler.wfile.flush()
        gone = select.select([handler.connection], [], [], 0.005)[0]  # readable: it hung up
        if gone or over.is_set():
            _break(handler)
            return
        handler.wfile.write(bytes([byte]))


def _break(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)

"""A proxy on 127.0.0.1 that can lose an answer: the request reaches the server, its answer nobody.

It also keeps a record of what was asked, which another's server does not tell.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "date"}


class LossyProxy:
    """The running proxy.

    Attributes:
        base_url: stands for the server's.
        asked: method and path of every request that the server answered.
        lost: those of them whose answer was lost.
    """

    def __init__(self, base_url: str) -> None:
        target = urlsplit(base_url)
        self.asked: list[tuple[str, str]] = []
        self.lost: list[tuple[str, str]] = []
        self._target = target.netloc
        self._lose: list[tuple[str, str]] = []
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}{target.path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def lose_answer(self, method: str, path: str) -> None:
        """Lose the answer to the next request of that method and path."""
        with self._guard:
            self._lose.append((method, path))

    def count(self, method: str, path: str) -> int:
        """How many requests of that method and path reached the server."""
        with self._guard:
            return self.asked.count((method, path))

    # ---------------------------------------------------------------- for the handler

    @contextmanager
    def upstream(self) -> Iterator[http.client.HTTPConnection]:
        """A connection to the server."""
        connection = http.client.HTTPConnection(self._target, timeout=60)
        try:
            yield connection
        finally:
            connection.close()

    def note(self, method: str, path: str) -> bool:
        """Record an answered request; whether its answer is to be lost."""
        with self._guard:
            self.asked.append((method, path))
            if (method, path) in self._lose:
                self._lose.remove((method, path))
                self.lost.append((method, path))
                return True
            return False


def _handler(proxy: LossyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sent = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
            with proxy.upstream() as connection:
                connection.request(self.command, self.path, body, sent)
                answer = connection.getresponse()
                content = answer.read()
            if proxy.note(self.command, urlsplit(self.path).path):
                self.close_connection = True
                return
            try:
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except ConnectionError:
                self.close_connection = True

        do_GET = do_POST = do_DELETE = _forward  # noqa: N815 - names that http.server asks for

        def log_message(self, *_parts: object) -> None:
            """The tests look at `asked` instead."""

    return Handler

"""A forward proxy on loopback: CONNECT for TLS and absolute addresses for plain HTTP.

It resolves every name to a server of the test, so that a call with a made-up name that works did
go through it.
"""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_args: Any) -> None:
        """Clients that break off are none of ours."""


class ForwardProxy:
    """Attributes:
    asked: method and address of every request that came in, in order.
    """

    def __init__(self, port: int, *, user: str = "") -> None:
        """Lead everything to that port of 127.0.0.1; ask for `user` (`name:password`) if given."""
        self.asked: list[tuple[str, str]] = []
        proxy = self
        wanted = f"Basic {base64.b64encode(user.encode()).decode()}" if user else None

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                proxy.asked.append(("CONNECT", self.path))
                if wanted and self.headers.get("Proxy-Authorization") != wanted:
                    self.send_error(407)
                    return
                with socket.create_connection(("127.0.0.1", port)) as server:
                    self.send_response(200)
                    self.end_headers()
                    _pump(self.connection, server)
                self.close_connection = True

            def _forward(self) -> None:
                proxy.asked.append((self.command, self.path))
                url = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                connection = HTTPConnection("127.0.0.1", port)
                path = f"{url.path}?{url.query}" if url.query else url.path
                connection.request(self.command, path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                connection.close()

            def __getattr__(self, name: str) -> Any:
                if name.startswith("do_"):
                    return self._forward
                raise AttributeError(name)

            def log_message(self, *_args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        credentials = f"{user}@" if user else ""
        self.url = f"http://{credentials}127.0.0.1:{self._server.server_address[1]}"

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


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            ready, _, _ = select.select([one, other], [], [], 30)
            for end in ready:
                data = end.recv(1 << 16)
                if not data:
                    return
                (other if end is one else one).sendall(data)

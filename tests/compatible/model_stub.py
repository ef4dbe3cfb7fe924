"""A model server on 127.0.0.1 whose answers follow from the question, for a batch server to call.

The answer repeats the prompt, so a test can tell whose answer it is looking at. A prompt that holds
`REFUSE` gets HTTP 400. `hold_after(n)` lets n questions through and keeps the others waiting.
"""

from __future__ import annotations

import json
import threading
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

REFUSE = "REFUSE"


def answer_to(prompt: str) -> str:
    """What the model answers."""
    return f"{len(prompt.split())} words: {prompt.upper()}"


class ModelStub:
    """The running server; `url` is its origin."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._allowance: int | None = None
        self._calls: Counter[str] = Counter()
        self._bodies: dict[str, dict[str, Any]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # ---------------------------------------------------------------- for tests

    def hold_after(self, questions: int) -> None:
        """Let that many more questions through."""
        with self._changed:
            self._allowance = questions

    def release(self) -> None:
        """Let everything through, what waits included."""
        with self._changed:
            self._allowance = None
            self._changed.notify_all()

    def calls(self, containing: str) -> Counter[str]:
        """How often each prompt that contains this was asked."""
        with self._changed:
            return Counter({p: n for p, n in self._calls.items() if containing in p})

    def body_of(self, prompt: str) -> dict[str, Any]:
        """The newest request body that carried a prompt."""
        with self._changed:
            return self._bodies[prompt]

    # ---------------------------------------------------------------- for the handler

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer to one request."""
        prompt = body["messages"][-1]["content"]
        with self._changed:
            self._calls[prompt] += 1
            self._bodies[prompt] = body
            self._changed.wait_for(lambda: self._allowance is None or self._allowance > 0)
            if self._allowance is not None:
                self._allowance -= 1
        if REFUSE in prompt:
            return 400, {"error": {"message": "refused", "type": "invalid_request_error"}}
        asked, said = len(prompt.split()), answer_to(prompt)
        answered = len(said.split())
        return 200, {
            "id": f"chatcmpl-{zlib.crc32(prompt.encode()):x}",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": said},
                }
            ],
            "usage": {
                "prompt_tokens": asked,
                "completion_tokens": answered,
                "total_tokens": asked + answered,
            },
        }


def _handler(stub: ModelStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = stub.reply(json.loads(sent))
            body = json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # who asked is gone: a cancel, or a kill

        def log_message(self, *_parts: object) -> None:
            """The tests look at `calls` instead."""

    return Handler

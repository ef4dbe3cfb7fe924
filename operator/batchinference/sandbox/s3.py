"""S3 over HTTP: moto's server in a process of its own, with faults and counts in front.

A process of its own, because moto keeps one state per process and all objects in memory. Owns
the naming of S3 operations and its faults. Must not know Bedrock or OpenAI.
"""

import json
import logging
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import parse_qs

import boto3
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from .faults import BadRule, Faults, Rule

SERVICE_KEY = "SANDBOXSERVICEROLE"  # Bedrock's own access; neither counted nor hit by faults
_KEY = re.compile(r"Credential=([^/,\s&%]+)(?:/|%2F)")
_BUCKET_NAME = re.compile(r"[a-z0-9][-.a-z0-9]{1,61}[a-z0-9]")
_ASSUMED = "ASIA"  # keys handed out by AssumeRole
_Start = Callable[..., Any]

_SUBRESOURCES = {  # (method, marker in the query): operation
    ("POST", "uploads"): "CreateMultipartUpload",
    ("PUT", "uploadId"): "UploadPart",
    ("POST", "uploadId"): "CompleteMultipartUpload",
    ("DELETE", "uploadId"): "AbortMultipartUpload",
    ("GET", "uploadId"): "ListParts",
    ("POST", "delete"): "DeleteObjects",
    ("GET", "uploads"): "ListMultipartUploads",
    ("GET", "versions"): "ListObjectVersions",
    ("GET", "location"): "GetBucketLocation",
    ("GET", "tagging"): "GetTagging",
    ("GET", "versioning"): "GetBucketVersioning",
    ("PUT", "versioning"): "PutBucketVersioning",
}
_OBJECT = {"GET": "GetObject", "HEAD": "HeadObject", "PUT": "PutObject", "DELETE": "DeleteObject"}
_BUCKET = {
    "GET": "ListObjectsV2",
    "HEAD": "HeadBucket",
    "PUT": "CreateBucket",
    "DELETE": "DeleteBucket",
}


def operation_of(environ: dict[str, Any]) -> str:
    """Name the S3 operation of a path-style request."""
    method: str = environ["REQUEST_METHOD"]
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    for (wanted, marker), name in _SUBRESOURCES.items():
        if method == wanted and marker in query:
            if name == "UploadPart" and "HTTP_X_AMZ_COPY_SOURCE" in environ:
                return "UploadPartCopy"
            return name
    _, _, key = environ["PATH_INFO"].lstrip("/").partition("/")
    if key:
        if method == "PUT" and "HTTP_X_AMZ_COPY_SOURCE" in environ:
            return "CopyObject"
        return _OBJECT.get(method, method)
    if environ["PATH_INFO"] == "/":
        return "ListBuckets"
    return _BUCKET.get(method, method)


class FrontDoor:
    """WSGI application in front of moto's."""

    def __init__(self, inner: Any, keys: frozenset[str]) -> None:
        self._inner = inner
        self._keys = keys
        self._faults = Faults()
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._conditional = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        """Serve one request."""
        if environ["PATH_INFO"].startswith("/_sandbox/"):
            return self._control(environ, start)
        key = self._key_of(environ)
        if key == SERVICE_KEY:
            return self._pass(environ, start)
        if key is None:
            return _error(start, 403, "AccessDenied", "Access Denied")
        if key not in self._keys and not key.startswith(_ASSUMED):
            text = "The AWS Access Key Id you provided does not exist in our records."
            return _error(start, 403, "InvalidAccessKeyId", text)
        operation = operation_of(environ)
        with self._lock:
            self._calls[operation] += 1
            rule = self._faults.take("s3", operation, environ["PATH_INFO"])
        if rule is None:
            return self._pass(environ, start)
        return self._hit(rule, environ, start)

    @staticmethod
    def _key_of(environ: dict[str, Any]) -> str | None:
        signed = environ.get("HTTP_AUTHORIZATION", "") + environ.get("QUERY_STRING", "")
        match = _KEY.search(signed)
        return None if match is None else match[1]

    def _pass(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" in environ and environ["REQUEST_METHOD"] in {"PUT", "POST"}:
            with self._conditional:  # moto checks and writes in two steps
                return list(self._inner(environ, start))
        answer: Iterable[bytes] = self._inner(environ, start)
        return answer

    def _hit(self, rule: Rule, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        match rule.kind:
            case "drop_request":
                raise ConnectionAbortedError
            case "lose_response":
                list(self._inner(environ, lambda *_: None))
                raise ConnectionAbortedError
            case "error":
                if rule.commit:
                    list(self._inner(environ, lambda *_: None))
                code = rule.code or {403: "AccessDenied", 404: "NoSuchKey", 503: "SlowDown"}.get(
                    rule.status, "InternalError"
                )
                return _error(start, rule.status, code, rule.message or code, rule.headers)
            case "delay":
                if rule.when == "before":
                    time.sleep(rule.seconds)
                    return self._pass(environ, start)
                answer = list(self._pass(environ, start))
                time.sleep(rule.seconds)
                return answer
            case "truncate":
                return _cut(rule, list(self._inner(environ, start)))
            case _:
                return self._pass(environ, start)

    def _control(self, environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        raw = environ["wsgi.input"].read(size) if size else b""
        what = environ["PATH_INFO"].removeprefix("/_sandbox/")
        answer: Any = {}
        status = "200 OK"
        with self._lock:
            if what == "faults" and environ["REQUEST_METHOD"] == "POST":
                try:
                    answer = {"id": self._faults.add(json.loads(raw)).id}
                except BadRule as error:
                    status, answer = "400 Bad Request", {"error": str(error)}
            elif what == "faults":
                answer = {"removed": self._faults.remove()}
            elif what == "reset":
                self._faults.remove()
                self._calls.clear()
            else:
                answer = {"calls": dict(self._calls), "faults": self._faults.view()}
        body = json.dumps(answer).encode()
        start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]


def _cut(rule: Rule, pieces: list[bytes]) -> Iterator[bytes]:
    """Send the beginning of a body whose full length was announced, then break off."""
    left = rule.kept(sum(map(len, pieces)))
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            break
    raise ConnectionAbortedError


def _error(
    start: _Start, status: int, code: str, message: str, headers: dict[str, str] | None = None
) -> Iterable[bytes]:
    body = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
        f"<Message>{message}</Message></Error>"
    ).encode()
    given = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
    start(f"{status} Refused", given + list((headers or {}).items()))
    return [body]


class _Handler(MotoRequestHandler):
    """Handles connections without a word, broken ones included."""

    protocol_version = "HTTP/1.1"

    def connection_dropped(
        self, error: BaseException, environ: dict[str, Any] | None = None
    ) -> None:
        """End the connection: a client that we drop must not wait for its next turn."""
        del error, environ
        self.close_connection = True

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  # the base's name
        del type, message, args


def main() -> None:
    """Serve until standard input closes, so that S3 never outlives the sandbox.

    Reads one JSON line of options (port, keys, buckets); answers one JSON line with the port.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group
        signal.signal(number, signal.SIG_IGN)
    options = json.loads(sys.stdin.readline())
    for noisy in ("werkzeug", "botocore", "moto"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    door = FrontDoor(
        DomainDispatcherApplication(create_backend_app), frozenset(options["access_keys"])
    )
    server = make_server(
        "127.0.0.1", options["port"], door, threaded=True, request_handler=_Handler
    )
    server.daemon_threads = True  # type: ignore[attr-defined]  # of the threading mixin
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=SERVICE_KEY,
        aws_secret_access_key="unchecked",  # noqa: S106  # loopback, not a secret
    )
    for bucket in options["buckets"]:
        if not _BUCKET_NAME.fullmatch(bucket):
            raise SystemExit(f"{bucket!r} is not a bucket name")
        client.create_bucket(Bucket=bucket)
    sys.stdout.write(json.dumps({"port": port}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()  # blocks until the parent goes


if __name__ == "__main__":
    main()

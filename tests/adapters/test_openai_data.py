"""Uploads, downloads and cleaning up at an OpenAI-compatible server."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from batchinference.adapters.openai_batch import OpenAIBatchProvider, OpenAIData
from batchinference.adapters.openai_batch.names import file_name
from batchinference.adapters.s3 import S3Store
from batchinference.errors import Permanent, Retry, Stalled, Waiting
from batchinference.model.batch import Accepted, SubmissionID
from batchinference.model.run import Run
from batchinference.ports import BodyEncoder, ObjectInfo, SourceChanged, UnsupportedRequest
from batchinference.sandbox import Sandbox
from builders import anytime, run_of, submission_of

from .conftest import BUCKET
from .stub import Answer, Asked, Stub

SECRETS = {"apiKey": {"value": "sandbox-key"}}
SUBMISSION = SubmissionID("0123456789abcdef0123", 7, 2, "00c0ffee00c0")
URI = f"s3://{BUCKET}/ml/.staging/shards/7.jsonl"
FILE = {"id": "file-1", "object": "file", "status": "processed"}
NOT_FOUND = {"error": {"message": "No such file object", "code": None}}


class MemoryStore:
    """The part of an object store that an upload reads."""

    def __init__(self, data: bytes, *, broken: Exception | None = None) -> None:
        self.data = data
        self.broken = broken
        self.opened: list[int] = []

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        return ObjectInfo(uri, len(self.data), "etag") if self.data else None

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        self.opened.append(start)
        for at in range(start, len(self.data), 100_000):
            if self.broken is not None and at:
                raise self.broken
            yield self.data[at : at + 100_000]


@contextmanager
def data_for(url: str, waits: list[float] | None = None) -> Iterator[OpenAIData]:
    ref = {"name": "openai", "key": "api-key"}
    settings = {"openAI": {"baseURL": url, "apiKeySecretRef": ref}}
    data = OpenAIData(settings, SECRETS, sleep=(waits if waits is not None else []).append)
    try:
        yield data
    finally:
        data.close()


@contextmanager
def stubbed(respond: Callable[[Asked], Answer]) -> Iterator[tuple[Stub, OpenAIData]]:
    with Stub(respond) as stub, data_for(f"{stub.url}/v1") as data:
        yield stub, data


def upload(data: OpenAIData, store: Any) -> str:
    return data.upload(store, URI, run_of(), SUBMISSION)


# ---------------------------------------------------------------- records


def test_a_record_gets_its_row_for_an_id() -> None:
    with data_for("http://127.0.0.1:9/v1") as data:
        request = {"custom_id": "mine", "url": "/v1/embeddings", "body": {"input": "ü"}}
        line = data.encode(7, request, "text-embedding-3-small")
        assert (
            line
            == (
                '{"custom_id":"r0000000007","method":"POST","url":"/v1/embeddings",'
                '"body":{"input":"ü","model":"text-embedding-3-small"}}'
            ).encode()
        )
        assert isinstance(data, BodyEncoder)
        body = '{"input":"ü","model":"text-embedding-3-small"}'.encode()
        assert data.encode_body(7, "/v1/embeddings", body) == line


def test_a_stream_is_refused_by_name() -> None:
    with data_for("http://127.0.0.1:9/v1") as data, pytest.raises(UnsupportedRequest) as refused:
        data.encode(1, {"url": "/v1/x", "body": {"stream": True}}, "m")
    assert refused.value.code == "StreamingUnsupported"


# ---------------------------------------------------------------- uploads


def test_an_upload_has_our_name_and_every_byte() -> None:
    content = b'{"custom_id": 1}\n' * 50_000
    with stubbed(lambda _asked: Answer({**FILE, "bytes": len(content)})) as (stub, data):
        assert upload(data, MemoryStore(content)) == "file-1"
    listing, asked = stub.asked
    assert (listing.method, listing.path) == ("GET", "/v1/files")
    assert (asked.method, asked.path) == ("POST", "/v1/files")
    assert asked.headers["content-length"] == str(len(asked.body)), "the length is known"
    assert b'name="purpose"\r\n\r\nbatch\r\n' in asked.body
    name = b"0123456789abcdef0123-s00007-o2-00c0ffee00c0.jsonl"
    assert b'name="file"; filename="%b"' % name in asked.body
    assert content in asked.body


def test_an_upload_is_sent_once_and_by_a_later_try_whole_again() -> None:
    content = b"0123456789" * 30_000
    answers = [Answer({}, 500), Answer(drop=True), Answer({**FILE, "bytes": len(content)})]

    def respond(asked: Asked) -> Answer:
        return answers.pop(0) if asked.method == "POST" else Answer(listed())

    with stubbed(respond) as (stub, data):
        store = MemoryStore(content)
        for _ in range(2):
            with pytest.raises(Retry):
                upload(data, store)
        assert upload(data, store) == "file-1"
    assert [content in asked.body for asked in stub.asked] == [False, True] * 3
    assert store.opened == [0, 0, 0]


def test_a_store_that_breaks_during_an_upload_says_so_itself() -> None:
    def respond(_asked: Asked) -> Answer:
        return Answer(FILE)

    for broken, verdict in (
        (Retry("StorageUnavailable", "gone"), Retry),
        (SourceChanged("changed"), Stalled),
    ):
        with (
            Stub(respond) as stub,
            data_for(f"{stub.url}/v1") as data,
            pytest.raises(verdict) as raised,
        ):
            upload(data, MemoryStore(b"x" * 300_000, broken=broken))
        assert raised.value.reason in {"StorageUnavailable", "StagingUnavailable"}


def test_a_shard_that_is_gone_stalls() -> None:
    with data_for("http://127.0.0.1:9/v1") as data, pytest.raises(Stalled, match=URI):
        upload(data, MemoryStore(b""))


def test_a_file_stored_short_is_deleted_and_tried_again() -> None:
    with (
        stubbed(lambda _asked: Answer({**FILE, "bytes": 3})) as (stub, data),
        pytest.raises(Retry, match="stored 3 of 5 bytes"),
    ):
        upload(data, MemoryStore(b"12345"))
    assert [(a.method, a.path) for a in stub.asked][-1] == ("DELETE", "/v1/files/file-1")


class Checking:
    """A server that looks at files before they can be used, and may not list them."""

    def __init__(self, *, lists: bool) -> None:
        self.lists = lists
        self.files: list[dict[str, Any]] = []
        self.done = False

    def __call__(self, asked: Asked) -> Answer:
        if asked.method == "POST":
            name = file_name(SUBMISSION)
            assert f'filename="{name}"'.encode() in asked.body
            number = len(self.files) + 1
            self.files.append({**FILE, "id": f"file-{number}", "bytes": 1, "filename": name})
        status = "processed" if self.done else "pending"
        files = [{**f, "status": status} for f in reversed(self.files)]
        if asked.method == "GET" and asked.path == "/v1/files":
            return Answer({"data": files}) if self.lists else Answer({}, 404)
        return Answer(files[0])


def test_a_file_that_is_being_checked_holds_no_worker() -> None:
    waits: list[float] = []
    server = Checking(lists=True)
    with Stub(server) as stub, data_for(f"{stub.url}/v1", waits) as data:
        for _ in range(3):
            with pytest.raises(Waiting, match="still checking") as waiting:
                upload(data, MemoryStore(b"x"))
            assert waiting.value.after_s
        server.done = True
        assert upload(data, MemoryStore(b"x")) == "file-1"
    assert len(server.files) == 1, "it was sent once"
    assert waits == []


@pytest.mark.parametrize(
    "listing",
    [Answer({}, 500, {"retry-after-ms": "1"}), Answer({}, 404), Answer(b"html")],
    ids=["broken", "unknown", "odd"],
)
def test_a_listing_that_fails_does_not_keep_a_file_from_being_sent(listing: Answer) -> None:
    with stubbed(lambda asked: listing if asked.method == "GET" else Answer(FILE)) as (_, data):
        assert upload(data, MemoryStore(b"x")) == "file-1"


def test_a_server_that_does_not_list_files_is_waited_for_only_a_moment() -> None:
    server, waits = Checking(lists=False), []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        server.done = len(waits) == 2

    with Stub(server) as stub, data_for(f"{stub.url}/v1") as data:
        data._sleep = wait
        assert upload(data, MemoryStore(b"x")) == "file-1"
        data._sleep = waits.append
        server.done = False
        with pytest.raises(Waiting):
            upload(data, MemoryStore(b"x"))
    assert sum(waits) <= 30


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bytes": 2}, "another size"),
        ({"filename": "foreign.jsonl"}, "another name"),
        ({"status": "error"}, "the server could not read it"),
        ({"id": ""}, "no id"),
    ],
)
def test_only_the_very_file_is_taken_for_sent(change: dict[str, Any], reason: str) -> None:
    known = {**FILE, "id": "file-0", "bytes": 1, "filename": file_name(SUBMISSION), **change}

    def respond(asked: Asked) -> Answer:
        return Answer(FILE if asked.method == "POST" else {"data": [known]})

    with stubbed(respond) as (_, data):
        assert upload(data, MemoryStore(b"x")) == "file-1", reason


@pytest.mark.parametrize(
    ("status", "body", "verdict", "reason"),
    [
        (401, {"error": {"message": "bad key"}}, Stalled, "CredentialsRejected"),
        (403, {"error": {"message": "no"}}, Stalled, "AccessDenied"),
        (404, {"detail": "Not Found"}, Stalled, "EndpointUnreachable"),
        (400, {"error": {"message": "Invalid file format"}}, Permanent, "ProviderRefused"),
        (400, {"error": {"message": "storage limit exceeded"}}, Stalled, "QuotaWait"),
        (413, {"error": {"message": "too big"}}, Permanent, "BatchTooLarge"),
        (400, {"error": {"message": "file is too large"}}, Permanent, "BatchTooLarge"),
        (503, {"error": {"message": "busy"}}, Retry, "ProviderUnavailable"),
        (200, {"object": "file"}, Retry, "ProviderUnavailable"),
    ],
)
def test_a_failed_upload_says_what_follows(
    status: int, body: Any, verdict: type[Exception], reason: str
) -> None:
    headers = {"retry-after-ms": "1"}
    with (
        stubbed(lambda _asked: Answer(body, status, headers)) as (_, data),
        pytest.raises(verdict) as raised,
    ):
        upload(data, MemoryStore(b"x"))
    assert raised.value.reason == reason  # type: ignore[attr-defined]


def test_a_large_upload_takes_no_memory() -> None:
    class Endless(MemoryStore):
        def head(self, uri: str, version: str = "") -> ObjectInfo | None:
            return ObjectInfo(uri, 60 << 20, "etag")

        def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
            yield from (bytes(1 << 20) for _ in range(start >> 20, 60))

    with stubbed(lambda _asked: Answer(FILE)) as (stub, data):
        stub.forget_bodies = True
        tracemalloc.start()
        try:
            upload(data, Endless(b""))
            assert tracemalloc.get_traced_memory()[1] < 10 << 20
        finally:
            tracemalloc.stop()


# ---------------------------------------------------------------- downloads

RESULT = b"".join(b'{"line": %d}\n' % n for n in range(60_000))


class Contents:
    """A server of one file that breaks off; ranges are honoured or not."""

    def __init__(self, cuts: list[int | None], *, ranges: bool, length: bool = True) -> None:
        self.cuts = cuts
        self.ranges = ranges
        self.length = length

    def __call__(self, asked: Asked) -> Answer:
        start = 0
        headers: dict[str, str] = {"Content-Type": "application/binary"}
        status = 200
        if self.ranges and "range" in asked.headers:
            start = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(RESULT):
                return Answer({"error": {"message": "range"}}, 416)
            headers["Content-Range"] = f"bytes {start}-{len(RESULT) - 1}/{len(RESULT)}"
            status = 206
        cut = self.cuts.pop(0) if self.cuts else None
        return Answer(RESULT[start:], status, headers, cut=cut)


def read(data: OpenAIData, *files: str) -> bytes:
    return b"".join(data.open_results(files))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("cuts", "reason"),
    [
        ([], "not cut at all"),
        ([300_000], "cut once"),
        ([200_000, 250_000, 260_000], "cut, and cut again further on"),
        ([0, 100, 0, 500_000], "cut at the very beginning"),
    ],
)
def test_a_cut_download_is_completed(cuts: list[int | None], reason: str, ranges: bool) -> None:
    waits: list[float] = []
    with (
        Stub(Contents(list(cuts), ranges=ranges)) as stub,
        data_for(f"{stub.url}/v1", waits) as data,
    ):
        assert read(data, "file-1") == RESULT, reason
    assert len(waits) == len(cuts)
    assert stub.asked[0].path == "/v1/files/file-1/content"
    assert stub.asked[0].headers["accept-encoding"] == "identity"


def test_a_download_that_is_always_cut_gives_up() -> None:
    with (
        stubbed(Contents([1000] * 50, ranges=False)) as (_, data),
        pytest.raises(Retry, match="cut after 1000 bytes"),
    ):
        read(data, "file-1")


def test_a_file_that_is_another_one_when_read_again_is_not_patched_together() -> None:
    answers = [Answer(RESULT, cut=300_000), Answer(RESULT.replace(b"line", b"LINE"))]
    with (
        stubbed(lambda _asked: answers.pop(0)) as (_, data),
        pytest.raises(Retry, match="another one"),
    ):
        read(data, "file-1")


def test_files_come_one_after_another_each_ending_in_a_newline() -> None:
    contents = {"a": b'{"a": 1}', "b": b"", "c": b'{"c": 1}\n'}
    with stubbed(lambda asked: Answer(contents[asked.path.split("/")[3]])) as (_, data):
        assert read(data, "a", "b", "c") == b'{"a": 1}\n{"c": 1}\n'


def test_a_file_that_shows_up_late_is_waited_for() -> None:
    answers = [Answer(NOT_FOUND, 404), Answer(NOT_FOUND, 404), Answer(b"x\n")]
    with stubbed(lambda _asked: answers.pop(0)) as (_, data):
        assert read(data, "file-1") == b"x\n"


def test_a_file_that_is_gone_is_lost() -> None:
    with (
        stubbed(lambda _asked: Answer(NOT_FOUND, 404)) as (_, data),
        pytest.raises(Permanent) as lost,
    ):
        read(data, "file-1")
    assert lost.value.reason == "AnswerLost"


PAGE = b"<html><h1>404 Not Found</h1>nginx</html>"


@pytest.mark.parametrize("status", [200, 404, 410, 502])
def test_the_page_of_something_in_between_says_nothing_of_a_file(status: int) -> None:
    page = Answer(PAGE, status, {"Content-Type": "text/html; charset=utf-8"})
    with stubbed(lambda _asked: page) as (_, data), pytest.raises((Retry, Stalled)):
        read(data, "file-1")


def test_a_batch_is_shown_or_not_and_nothing_else_says_so() -> None:
    answers = [
        Answer({"id": "batch_1", "status": "completed"}),
        Answer(NOT_FOUND, 404),
        Answer(PAGE, 404, {"Content-Type": "text/html"}),
    ]
    with stubbed(lambda _asked: answers.pop(0)) as (stub, data):
        assert data.shows("batch_1")
        assert not data.shows("batch_1")
        with pytest.raises((Retry, Stalled)):
            data.shows("batch_1")
        assert {asked.path for asked in stub.asked} == {"/v1/batches/batch_1"}


def test_a_download_is_compressed_for_nobody(waits: list[float]) -> None:
    import gzip

    packed = gzip.compress(RESULT)
    answer = Answer(packed, headers={"Content-Encoding": "gzip"})
    with stubbed(lambda _asked: answer) as (_, data):
        assert read(data, "file-1") == RESULT


def test_a_large_download_takes_no_memory() -> None:
    large = bytes(60 << 20)
    with stubbed(lambda _asked: Answer(large)) as (_, data):
        tracemalloc.start()
        try:
            assert sum(map(len, data.open_results(["file-1"]))) == len(large) + 1
            assert tracemalloc.get_traced_memory()[1] < 10 << 20
        finally:
            tracemalloc.stop()


# ---------------------------------------------------------------- cleaning up


def run_with_files() -> Run:
    run = run_of(shards=1)
    ended = replace(submission_of(1), input_ref="file-in", files=("file-out", "file-err"))
    shard = replace(run.shards[0], submissions=(ended, replace(ended, files=(), input_ref="")))
    return replace(run, shards=(shard,))


def listed(*files: tuple[str, str], created: int = 2_000_000_000) -> dict[str, Any]:
    items = [{"id": i, "filename": name, "created_at": created} for i, name in files]
    return {"object": "list", "data": items, "has_more": False}


def deleted(stub: Stub) -> list[str]:
    return [a.path.split("/")[3] for a in stub.asked if a.method == "DELETE"]


def test_everything_of_the_run_goes_and_nothing_else() -> None:
    run = run_with_files()
    ours = file_name(SubmissionID(run.tag, 3, 9, "abc"))
    page = listed(("file-in", ours), ("file-left", ours), ("file-x", "x.jsonl"), ("file-y", ""))

    def respond(asked: Asked) -> Answer:
        return Answer(page) if asked.method == "GET" else Answer(NOT_FOUND, 404)

    with stubbed(respond) as (stub, data):
        data.delete_files(run)
    assert deleted(stub) == ["file-in", "file-out", "file-err", "file-left"]


def test_the_listing_of_files_goes_back_to_the_beginning_of_the_run() -> None:
    run = run_of(shards=0)
    started = run.created_at.timestamp()
    ours = file_name(SubmissionID(run.tag, 0, 1, "abc"))

    def respond(asked: Asked) -> Answer:
        if asked.method == "DELETE":
            return Answer({})
        number = int(asked.query.get("after", "f-1")[2:] or 0) if "after" in asked.query else 0
        created = started + 86_400 * (3 - number)
        item = {"id": f"f-{number + 1}", "filename": ours, "created_at": created}
        return Answer({"data": [item], "has_more": True})

    with stubbed(respond) as (stub, data):
        data.delete_files(run)
    assert deleted(stub) == ["f-1", "f-2", "f-3", "f-4", "f-5"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer({"detail": "Not Found"}, 404), "no listing"),
        (Answer({}, 405), "no such method"),
        (Answer({"detail": []}, 422), "parameters it does not know"),
        (Answer({"data": None}), "no data"),
        (Answer(b"html"), "no JSON"),
        (
            Answer({**listed(("f", "foreign")), "has_more": True}),
            "the same page for ever",
        ),
    ],
)
def test_a_server_that_cannot_list_files_is_no_error(answer: Answer, reason: str) -> None:
    with stubbed(lambda asked: answer if asked.method == "GET" else Answer({})) as (stub, data):
        data.delete_files(run_with_files())
    assert deleted(stub) == ["file-in", "file-out", "file-err"], reason
    assert len(stub.asked) < 10


def test_a_failing_deletion_is_tried_again_later() -> None:
    with (
        stubbed(lambda _asked: Answer({}, 503, {"retry-after-ms": "1"})) as (_, data),
        pytest.raises(Retry),
    ):
        data.delete_files(run_with_files())


# ---------------------------------------------------------------- with the sandbox


async def test_from_a_staged_shard_to_its_answers(
    sandbox: Sandbox, storage: dict[str, Any], store: S3Store, waits: list[float]
) -> None:
    settings = {
        "openAI": {
            "baseURL": sandbox.openai_base_url,
            "apiKeySecretRef": {"name": "openai", "key": "api-key"},
        },
        "storage": storage,
    }
    run = run_of()
    run = replace(run, created_at=datetime.now(UTC))
    named = SubmissionID(run.tag, 0, 1, "00c0ffee00c0")
    provider = OpenAIBatchProvider(settings, SECRETS)
    with data_for(sandbox.openai_base_url, waits) as data:
        messages = [{"role": "user", "content": "Say \u2028 hello"}]
        broken = [{"role": "user", "content": "SANDBOX:error-400"}]
        requests = [messages, broken, messages]
        lines = [
            data.encode(row, {"url": "/v1/chat/completions", "body": {"messages": m}}, "gpt-4.1")
            for row, m in enumerate(requests)
        ]
        store.put(URI, b"\n".join([*lines, b""]))
        ref = data.upload(store, URI, run, named)
        outcome = await provider.submit(provider.create_request(run, named, ref), anytime)
        assert isinstance(outcome, Accepted)
        sandbox.control.wait_for(lambda state: "completed" in state["counts"]["openai"])
        view = await provider.get(outcome.batch.id)
        assert view is not None
        assert (view.total, view.completed, view.failed) == (3, 2, 1)
        sandbox.control.fault("openai", "truncate", "files.content", keep_ratio=0.5)
        found = {
            line.wire_id: line
            for line in map(data.decode, b"".join(data.open_results(view.files)).split(b"\n")[:-1])
        }
        assert sorted(found) == ["r0000000000", "r0000000001", "r0000000002"]
        assert [found[key].is_answer for key in sorted(found)] == [True, False, True]
        assert found["r0000000000"].output_tokens > 0
        assert found["r0000000001"].status_code == 400
        left = data.upload(store, URI, run, replace(named, ordinal=2))
        data.delete_files(run)
        assert not await provider.input_readable(ref)
        assert not await provider.input_readable(left)
    await provider.close()

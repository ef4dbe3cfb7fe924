"""An endpoint that sends a byte now and then does not hold a worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchinference.adapters.openai_batch import OpenAIData
from batchinference.adapters.pace import Pace, Transfer
from batchinference.adapters.s3 import S3Store
from batchinference.errors import Retry
from batchinference.model.batch import SubmissionID
from batchinference.ports import ObjectInfo
from builders import run_of

from .conftest import AWS_SECRET
from .stub import Answer, Asked, Stub

PACE = Pace(idle_s=0.15, least_bytes_per_s=1 << 20)
SOON_S = 5.0
"""Far above what the calls below may take, far below what the trickle takes: bytes x 5 ms."""

LARGE = bytes(1 << 16)
HEAD = 60
"""Bytes of an answer's headers, at least."""


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < SOON_S


def s3_store(url: str) -> S3Store:
    s3 = {"endpointURL": url, "region": "us-east-1", "credentialsSecretRef": {"name": "aws"}}
    return S3Store(
        {"storage": {"s3": s3}}, {"storage": AWS_SECRET}, sleep=lambda _s: None, pace=PACE
    )


def openai_data(url: str) -> OpenAIData:
    settings = {"openAI": {"baseURL": f"{url}/v1"}}
    return OpenAIData(settings, {}, sleep=lambda _s: None, pace=PACE)


def trickled(asked: Asked, *, fast: int) -> Answer:
    """An answer with a large body, whatever was asked; bytes from `fast` on come slowly."""
    list_of_keys = b"<ListBucketResult>" + b" " * len(LARGE) + b"</ListBucketResult>"
    is_list = "list-type" in asked.query
    content = list_of_keys if is_list else LARGE
    return Answer(content, headers={"ETag": '"e"'}, trickle=fast)


S3_CALLS: dict[str, Callable[[S3Store], Any]] = {
    "read": lambda store: list(store.read(ObjectInfo("s3://b/key", len(LARGE), "e"))),
    "get": lambda store: store.get("s3://b/key"),
    "head": lambda store: store.head("s3://b/key"),
    "list": lambda store: list(store.list("s3://b/key/")),
    "put": lambda store: store.put("s3://b/key", b"data"),
    "copy": lambda store: store.writer("s3://b/key").commit(),
    "delete": lambda store: store.delete("s3://b/key"),
}


@pytest.mark.parametrize("call", S3_CALLS)
def test_headers_from_object_storage_that_trickle_are_given_up(call: str) -> None:
    with (
        Stub(lambda asked: trickled(asked, fast=5)) as stub,
        pytest.raises(Retry, match="slower than 1024 KiB/s") as slow,
    ):
        S3_CALLS[call](s3_store(stub.url))
    assert slow.value.reason == "StorageUnavailable"
    assert len(stub.asked) == 1, "boto3 does not take it for a fault that it may try again"


@pytest.mark.parametrize("call", ["read", "get", "list"])
@pytest.mark.parametrize(
    ("fast", "reason"),
    [(HEAD + 100, "slow from the start"), (len(LARGE) - 3000, "fast at first, which is no credit")],
)
def test_bodies_from_object_storage_that_trickle_are_given_up(
    call: str, fast: int, reason: str
) -> None:
    with (
        Stub(lambda asked: trickled(asked, fast=fast)) as stub,
        pytest.raises(Retry, match="slower than") as slow,
    ):
        S3_CALLS[call](s3_store(stub.url))
    assert slow.value.reason == "StorageUnavailable", reason


def test_a_slow_read_is_given_up_in_a_thread_of_the_operator_too() -> None:
    heard: list[BaseException] = []

    def read(store: S3Store) -> None:
        try:
            store.get("s3://b/_run.json")
        except BaseException as error:  # noqa: BLE001 - told to the test
            heard.append(error)

    with Stub(lambda asked: trickled(asked, fast=HEAD + 100)) as stub:
        thread = threading.Thread(target=read, args=(s3_store(stub.url),))
        thread.start()
        thread.join()
    assert [type(error) for error in heard] == [Retry]


@pytest.mark.parametrize("fast", [5, HEAD + 100, len(LARGE) - 3000])
def test_a_result_file_that_trickles_is_given_up(fast: int) -> None:
    with Stub(lambda asked: trickled(asked, fast=fast)) as stub:
        data = openai_data(stub.url)
        with pytest.raises(Retry, match="Reading the result file f-1 was") as slow:
            list(data.open_results(["f-1"]))
        data.close()
    assert slow.value.reason == "ProviderUnavailable"
    assert len(stub.asked) == 1, "the SDK does not take it for a fault that it may try again"


class Shard:
    """A staged shard."""

    def head(self, uri: str) -> ObjectInfo:
        return ObjectInfo(uri, len(LARGE), "e")

    def read(self, _info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        yield LARGE[start:]


@pytest.mark.parametrize("fast", [5, HEAD + 100])
def test_the_answer_to_an_upload_that_trickles_is_given_up(fast: int) -> None:
    shard: Any = Shard()
    with Stub(lambda asked: trickled(asked, fast=fast)) as stub:
        data = openai_data(stub.url)
        with pytest.raises(Retry, match="was given up"):
            data.upload(shard, "s3://b/shard", run_of(), SubmissionID("tag", 0, 1, "abc"))
        data.close()


# ---------------------------------------------------------------- the pace itself


def spin(seconds: float) -> None:
    """Be busy for so long, if let."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_call_in_time_gives_what_it_gives() -> None:
    assert PACE.call("It", "Slow", lambda: 7) == 7
    with pytest.raises(KeyError):
        PACE.call("It", "Slow", lambda: {}["x"])


def test_more_bytes_get_more_time() -> None:
    PACE.call("It", "Slow", lambda: spin(0.3), size=1 << 20)
    with pytest.raises(Retry, match=r"^Slow: It was given up: for 0\.15 s"):
        PACE.call("It", "Slow", lambda: spin(60))


def test_many_calls_that_move_little_are_one_slow_transfer() -> None:
    transfer = Transfer(PACE, "It", "Slow")
    calls = []

    def move() -> None:
        while True:
            calls.append(transfer.call(lambda: spin(0.01)))
            transfer.moved(1)

    with pytest.raises(Retry):
        move()
    assert 1 <= len(calls) <= 15


def test_what_was_moved_fast_is_no_credit() -> None:
    transfer = Transfer(PACE, "It", "Slow")
    transfer.moved(1 << 30)
    with pytest.raises(Retry):
        transfer.call(lambda: spin(60))


def test_time_outside_of_calls_does_not_count() -> None:
    transfer = Transfer(PACE, "It", "Slow")
    for _ in range(3):
        transfer.call(lambda: None)
        spin(0.1)
    transfer.moved(0)


def test_a_call_in_a_call_is_interrupted_for_whom_it_is_due() -> None:
    patient = Pace(idle_s=60)

    def inner() -> None:
        patient.call("The inner one", "Slow", lambda: spin(60))

    with pytest.raises(Retry, match="The outer one was given up"):
        PACE.call("The outer one", "Slow", inner)

    def outer() -> str:
        try:
            PACE.call("The inner one", "Slow", lambda: spin(60))
        except Retry as slow:
            return slow.message
        return "was not interrupted"

    assert "The inner one was given up" in patient.call("The outer one", "Slow", outer)


def test_nothing_is_raised_behind_a_call_that_ends_at_the_last_moment() -> None:
    sharp, late = Pace(idle_s=0.0005), 0
    for n in range(300):
        try:
            sharp.call("It", "Slow", lambda n=n: spin(n % 20 * 0.0005))
        except Retry:
            late += 1
    spin(0.2)  # whatever is still on its way is raised here
    assert 0 < late < 300

"""What is too slow, and that the adapters count all that they move."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchinference.adapters.openai_batch import OpenAIData
from batchinference.adapters.s3 import S3Store
from batchinference.adapters.transfers import Pace, Transfers
from batchinference.errors import Retry
from batchinference.model.batch import SubmissionID
from batchinference.ports import ObjectInfo
from builders import run_of

from .conftest import AWS_SECRET
from .stub import Answer, Asked, Stub

SOON_S = 10.0
"""Far above what the calls below may take, far below what the trickle takes: bytes x 5 ms."""

LARGE = bytes(1 << 16)
HEADERS = 60
"""Bytes of an answer's headers, at least."""


class Shard:
    """A staged shard."""

    def head(self, uri: str) -> ObjectInfo:
        return ObjectInfo(uri, len(LARGE), "e")

    def read(self, _info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        yield LARGE[start:]


def upload(data: OpenAIData) -> None:
    shard: Any = Shard()
    data.upload(shard, "s3://b/shard", run_of(), SubmissionID("tag", 0, 1, "abc"))


S3_CALLS: dict[str, Callable[[S3Store], Any]] = {
    "read": lambda store: list(store.read(ObjectInfo("s3://b/key", len(LARGE), "e"))),
    "get": lambda store: store.get("s3://b/key"),
    "head": lambda store: store.head("s3://b/key"),
    "list": lambda store: list(store.list("s3://b/key/")),
    "put": lambda store: store.put("s3://b/key", b"data"),
    "commit": lambda store: store.writer("s3://b/key").commit(),
    "delete": lambda store: store.delete("s3://b/key"),
}
OPENAI_CALLS: dict[str, Callable[[OpenAIData], Any]] = {
    "results": lambda data: list(data.open_results(["f-1"])),
    "upload": upload,
}


def trickled(asked: Asked, *, fast: int) -> Answer:
    """An answer with a large body, whatever was asked; bytes from `fast` on come slowly."""
    list_of_keys = b"<ListBucketResult>" + b" " * len(LARGE) + b"</ListBucketResult>"
    content = list_of_keys if "list-type" in asked.query else LARGE
    return Answer(content, headers={"ETag": '"e"'}, trickle=fast)


def found_slow(call: str, *, fast: int) -> Retry:
    """What a watchdog finds while the answers to a call trickle from that byte on."""
    transfers = Transfers(Pace(idle_s=0.15, answer_s=0.0, least_bytes_per_s=1 << 20))
    ended: list[object] = []

    def do(url: str) -> None:
        try:
            if call in S3_CALLS:
                s3 = {
                    "endpointURL": url,
                    "region": "us-east-1",
                    "credentialsSecretRef": {"name": "a"},
                }
                settings, secrets = {"storage": {"s3": s3}}, {"storage": AWS_SECRET}
                S3_CALLS[call](
                    S3Store(settings, secrets, sleep=lambda _s: None, transfers=transfers)
                )
            else:
                data = OpenAIData(
                    {"openAI": {"baseURL": f"{url}/v1"}},
                    {},
                    sleep=lambda _s: None,
                    transfers=transfers,
                )
                OPENAI_CALLS[call](data)
                data.close()
        except Exception as fault:  # noqa: BLE001 - how it ends is the stub's doing
            ended.append(fault)

    deadline, slow = time.monotonic() + SOON_S, None
    with Stub(lambda asked: trickled(asked, fast=fast)) as stub:
        thread = threading.Thread(target=do, args=(stub.url,))
        thread.start()
        while slow is None:
            assert time.monotonic() < deadline
            assert thread.is_alive(), ended
            time.sleep(0.005)
            slow = transfers.too_slow()
        assert len(stub.asked) == 1
    thread.join()
    assert transfers.too_slow() is None, "a call that failed is over"
    return slow


@pytest.mark.parametrize("call", S3_CALLS)
def test_headers_from_object_storage_that_trickle_are_found(call: str) -> None:
    slow = found_slow(call, fast=5)
    assert slow.reason == "StorageUnavailable"
    assert "s3://b/key" in slow.message
    assert "slower than 1024 KiB/s" in slow.message


@pytest.mark.parametrize("call", ["read", "get", "list"])
@pytest.mark.parametrize(
    ("fast", "reason"),
    [
        (HEADERS + 100, "slow from the start"),
        (len(LARGE) - 3000, "fast at first, which is no credit"),
    ],
)
def test_bodies_from_object_storage_that_trickle_are_found(
    call: str, fast: int, reason: str
) -> None:
    assert found_slow(call, fast=fast).reason == "StorageUnavailable", reason


@pytest.mark.parametrize("call", OPENAI_CALLS)
@pytest.mark.parametrize("fast", [5, HEADERS + 100, len(LARGE) - 3000])
def test_answers_of_an_openai_server_that_trickle_are_found(call: str, fast: int) -> None:
    assert found_slow(call, fast=fast).reason == "ProviderUnavailable"


def test_how_much_came_through_is_told() -> None:
    told = found_slow("results", fast=len(LARGE) - 3000).message
    assert told.startswith("Reading the result file f-1 was given up after")
    came = int(told.partition(" in which ")[2].partition(" bytes came")[0])
    assert len(LARGE) - 4000 < came < len(LARGE)


# ---------------------------------------------------------------- the arithmetic


class Now:
    """A clock that is set."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def transfers(now: Now) -> Transfers:
    return Transfers(Pace(idle_s=10, answer_s=5, least_bytes_per_s=100), now)


def test_nothing_under_way_is_not_slow(transfers: Transfers, now: Now) -> None:
    with transfers.call("It", "Slow"):
        pass
    now.s = 1000
    assert transfers.too_slow() is None


@pytest.mark.parametrize(
    ("size", "seconds", "slow", "reason"),
    [
        (0, 15, False, "what it may idle, and the SDK's own time-outs"),
        (0, 16, True, "beyond that"),
        (1000, 25, False, "ten seconds more for a thousand bytes"),
        (1000, 26, True, "and no more"),
    ],
)
def test_a_call_gets_time_by_what_it_moves(
    transfers: Transfers, now: Now, size: int, seconds: float, slow: bool, reason: str
) -> None:
    with transfers.call("It", "Slow", size):
        now.s = seconds
        assert (transfers.too_slow() is not None) is slow, reason


def test_many_moves_of_little_are_one_slow_transfer(transfers: Transfers, now: Now) -> None:
    transfer = transfers.begin("It", "Slow")
    slow, moves = None, 0
    while slow is None:
        with transfer.moving():
            now.s += 1
            slow = transfers.too_slow()
        transfer.moved(1)
        moves += 1
    assert moves == 11
    assert slow.message.startswith("It was given up after 11 s, in which 10 bytes came through")


def test_what_was_moved_fast_is_no_credit(transfers: Transfers, now: Now) -> None:
    transfer = transfers.begin("It", "Slow")
    transfer.moved(1 << 30)
    with transfer.moving():
        now.s = 11
        assert transfers.too_slow() is not None


def test_time_between_moves_does_not_count(transfers: Transfers, now: Now) -> None:
    transfer = transfers.begin("It", "Slow")
    for _ in range(3):
        with transfer.moving():
            now.s += 3
        transfer.moved(300)
        now.s += 1000
    assert transfers.too_slow() is None


def test_what_a_transfer_waits_for_is_not_held_against_it(transfers: Transfers, now: Now) -> None:
    reading = transfers.begin("Reading", "Slow")
    with transfers.call("Sending", "Slow"):
        now.s = 8
        for _ in range(3):
            with reading.moving():
                now.s += 9
                assert transfers.too_slow() is None
            reading.moved(900)
        now.s += 6
        assert transfers.too_slow() is None
        now.s += 2
        slow = transfers.too_slow()
        assert slow is not None
        assert slow.message.startswith("Sending was given up after 16 s")


def test_a_move_that_fails_is_over(transfers: Transfers, now: Now) -> None:
    with pytest.raises(ConnectionError), transfers.call("It", "Slow"):
        raise ConnectionError
    now.s = 100
    assert transfers.too_slow() is None

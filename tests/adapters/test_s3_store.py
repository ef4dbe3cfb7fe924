"""The object store against an S3 over real HTTP."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import boto3
import pytest
from botocore.config import Config

from batchinference.adapters.s3 import S3Store
from batchinference.errors import Permanent, Retry, Stalled
from batchinference.ports import ObjectInfo, SourceChanged
from batchinference.sandbox import Sandbox
from batchinference.tasks.places import UnfinishedWrites

from .conftest import AWS_SECRET, BUCKET
from .stub import Answer, Asked, Stub

PLACE = f"s3://{BUCKET}/ml/tests/"
PART = 5 << 20  # the least that S3 takes for a part that is not the last


@pytest.fixture
def place(store: S3Store, request: pytest.FixtureRequest) -> Iterator[str]:
    prefix = f"{PLACE}{request.node.name}/"
    yield prefix
    store.delete_prefix(prefix)


@pytest.fixture
def s3(sandbox: Sandbox) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=sandbox.s3_url,
        region_name="us-east-1",
        aws_access_key_id="sandbox",
        aws_secret_access_key="anything",
        config=Config(s3={"addressing_style": "path"}),
    )
    yield client
    client.close()


def whole(store: S3Store, info: ObjectInfo, start: int = 0) -> bytes:
    return b"".join(store.read(info, start))


def found(store: S3Store, uri: str) -> ObjectInfo:
    info = store.head(uri)
    assert info is not None
    return info


# ---------------------------------------------------------------- looking and reading


def test_an_object_that_is_not_there_is_none(store: S3Store, place: str) -> None:
    assert store.head(f"{place}nothing") is None
    assert store.get(f"{place}nothing") is None


def test_a_missing_bucket_stalls_and_is_named(store: S3Store) -> None:
    for call in (
        lambda: store.head("s3://no-such-bucket/key"),
        lambda: store.get("s3://no-such-bucket/key"),
        lambda: list(store.list("s3://no-such-bucket/prefix/")),
        lambda: store.put("s3://no-such-bucket/key", b""),
    ):
        with pytest.raises(Stalled, match="no-such-bucket") as stalled:
            call()
        assert stalled.value.reason == "BucketNotFound"


@pytest.mark.parametrize("uri", ["http://bucket/key", "s3://", "s3:///key", "bucket/key"])
def test_what_is_no_s3_uri_stalls(store: S3Store, uri: str) -> None:
    with pytest.raises(Stalled, match="not of the form"):
        store.head(uri)


def test_a_listing_comes_in_byte_order(store: S3Store, place: str) -> None:
    names = ["10", "9", "A", "Z/1", "a", "Ä", "a b", "z+%"]
    for name in reversed(names):
        store.put(f"{place}{name}", b"x")
    listed = [info.uri.removeprefix(place) for info in store.list(place)]
    assert listed == sorted(names, key=str.encode)
    assert found(store, f"{place}z+%").size == 1


def test_a_read_gives_the_bytes_from_any_start(store: S3Store, place: str) -> None:
    data = bytes(range(256)) * (3 << 12)
    store.put(f"{place}data", data)
    info = found(store, f"{place}data")
    assert whole(store, info) == data
    assert whole(store, info, start=len(data) - 5) == data[-5:]
    assert whole(store, info, start=len(data)) == b""
    assert all(len(piece) <= 1 << 20 for piece in store.read(info))


def test_a_cut_read_goes_on_where_it_broke(
    store: S3Store, place: str, sandbox: Sandbox, waits: list[float]
) -> None:
    data = bytes(range(256)) * (3 << 12)
    store.put(f"{place}data", data)
    sandbox.control.fault("s3", "truncate", "GetObject", keep_ratio=0.4, times=3)
    assert whole(store, found(store, f"{place}data")) == data
    assert len(waits) == 3


def test_a_read_that_never_advances_gives_up(
    store: S3Store, place: str, sandbox: Sandbox, waits: list[float]
) -> None:
    store.put(f"{place}data", b"x" * 100)
    info = found(store, f"{place}data")
    sandbox.control.fault("s3", "truncate", "GetObject", keep_bytes=0, times=None)
    with pytest.raises(Retry, match="broke off at byte 0 of 100") as retry:
        whole(store, info)
    assert retry.value.reason == "StorageUnavailable"


def test_an_object_is_replaced_only_while_it_is_the_one_that_was_read(
    store: S3Store, place: str
) -> None:
    store.put(f"{place}data", b"first")
    first = found(store, f"{place}data")
    assert store.put_over(first, b"second")
    assert not store.put_over(first, b"third")
    assert whole(store, found(store, f"{place}data")) == b"second"
    second = found(store, f"{place}data")
    store.delete(f"{place}data")
    assert not store.put_over(second, b"third")
    assert store.head(f"{place}data") is None
    with pytest.raises(Stalled, match="no-such-bucket"):
        store.put_over(replace(second, uri="s3://no-such-bucket/key"), b"")


def test_a_source_that_changed_is_not_read(store: S3Store, place: str) -> None:
    store.put(f"{place}data", b"before")
    info = found(store, f"{place}data")
    store.put(f"{place}data", b"after!")
    with pytest.raises(SourceChanged):
        whole(store, info)
    store.delete(f"{place}data")
    with pytest.raises(SourceChanged):
        whole(store, info)


def test_a_version_is_read_though_a_newer_one_exists(
    storage: dict[str, Any], sandbox: Sandbox, s3: Any
) -> None:
    s3.create_bucket(Bucket="versions")
    s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    store = S3Store({"storage": storage}, {"storage": AWS_SECRET})
    store.put("s3://versions/data", b"first")
    first = found(store, "s3://versions/data")
    store.put("s3://versions/data", b"second")
    assert first.version
    assert whole(store, first) == b"first"
    assert store.head("s3://versions/data", first.version) == first
    assert store.head("s3://versions/data", "no-such-version") is None


def test_without_the_right_to_read_versions_the_etag_decides() -> None:
    def respond(asked: Asked) -> Answer:
        if "versionId" in asked.query:
            return Answer(error("AccessDenied"), 403, XML)
        assert asked.headers["if-match"] == '"tag"'
        return Answer(b"data", headers={"ETag": '"tag"', "Last-Modified": DATE})

    with Stub(respond) as stub:
        info = ObjectInfo("s3://bucket/key", 4, "tag", "version-1")
        assert whole(stub_store(stub), info) == b"data"


def test_a_small_object_is_got_whole_and_a_large_one_refused(store: S3Store, place: str) -> None:
    store.put(f"{place}data", b"12345")
    assert store.get(f"{place}data", limit=5) == b"12345"
    with pytest.raises(Permanent, match="5 bytes; at most 4"):
        store.get(f"{place}data", limit=4)


# ---------------------------------------------------------------- writing


def test_a_put_only_if_absent_wins_once(store: S3Store, place: str) -> None:
    assert store.put(f"{place}claim", b"mine", only_if_absent=True)
    assert not store.put(f"{place}claim", b"theirs", only_if_absent=True)
    assert store.get(f"{place}claim") == b"mine"
    assert store.put(f"{place}claim", b"over")
    assert store.get(f"{place}claim") == b"over"


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "an empty object is an object"),
        (10, "a small one goes in a single put"),
        (PART, "exactly one part"),
        (2 * PART + 1, "parts and a rest"),
    ],
)
def test_a_streaming_write_becomes_visible_on_commit(
    storage: dict[str, Any], sandbox: Sandbox, size: int, reason: str
) -> None:
    store = S3Store({"storage": storage}, {"storage": AWS_SECRET}, part=PART)
    uri, data = f"{PLACE}written", bytes(size)
    store.delete(uri)
    writer = store.writer(uri)
    for start in range(0, size, 1_000_003):
        writer.write(data[start : start + 1_000_003])
    assert store.head(uri) is None, reason
    info = writer.commit()
    assert info.size == size
    assert found(store, uri).etag == info.etag
    assert whole(store, info) == data
    with pytest.raises(ValueError, match="over"):
        writer.write(b"more")


@pytest.mark.parametrize("dropped", [True, False])
def test_an_aborted_or_dropped_write_leaves_nothing(
    storage: dict[str, Any], s3: Any, dropped: bool
) -> None:
    store = S3Store({"storage": storage}, {"storage": AWS_SECRET}, part=PART)
    uri = f"{PLACE}aborted"
    writer = store.writer(uri)
    writer.write(bytes(PART + 1))
    assert s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
    if dropped:
        del writer
        gc.collect()
    else:
        writer.abort()
    assert store.head(uri) is None
    assert not s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_a_failing_part_ends_the_write_without_a_trace(
    storage: dict[str, Any], sandbox: Sandbox, s3: Any
) -> None:
    store = S3Store({"storage": storage}, {"storage": AWS_SECRET}, part=PART)
    sandbox.control.fault("s3", "error", "UploadPart", status=403, code="AccessDenied", times=None)
    writer = store.writer(f"{PLACE}failing")
    with pytest.raises(Stalled) as stalled:
        writer.write(bytes(PART + 1))
    assert stalled.value.reason == "AccessDenied"
    assert not s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_writing_and_reading_hold_one_part_at_most(storage: dict[str, Any]) -> None:
    store = S3Store({"storage": storage}, {"storage": AWS_SECRET}, part=PART)
    piece = bytes(1 << 20)
    tracemalloc.start()
    try:
        writer = store.writer(f"{PLACE}large")
        for _ in range(48):
            writer.write(piece)
        info = writer.commit()
        assert sum(map(len, store.read(info))) == 48 << 20
        assert tracemalloc.get_traced_memory()[1] < 30 << 20
    finally:
        tracemalloc.stop()
        store.delete(f"{PLACE}large")


@pytest.mark.parametrize("copy_limit", [1 << 40, PART])
def test_a_copy_has_the_bytes_of_its_source(
    storage: dict[str, Any], sandbox: Sandbox, copy_limit: int
) -> None:
    store = S3Store(
        {"storage": storage}, {"storage": AWS_SECRET}, copy_limit=copy_limit, copy_part=PART
    )
    data = bytes(range(256)) * (45 << 10)
    store.put(f"{PLACE}source+1", data)
    store.copy(f"{PLACE}source+1", f"{PLACE}target")
    assert whole(store, found(store, f"{PLACE}target")) == data
    calls = sandbox.control.calls("s3")
    assert calls.get("GetObject", 0) <= 12, "the bytes stay inside the store"
    with pytest.raises(Permanent, match="not there"):
        store.copy(f"{PLACE}nothing", f"{PLACE}target")


# ---------------------------------------------------------------- deleting


def test_a_prefix_goes_with_its_unfinished_uploads_and_nothing_else(
    storage: dict[str, Any], s3: Any, place: str
) -> None:
    store = S3Store({"storage": storage}, {"storage": AWS_SECRET}, part=PART)
    for n in range(1001):
        store.put(f"{place}a/{n}", b"")
    store.put(f"{place}ab", b"")
    writer = store.writer(f"{place}a/unfinished")
    writer.write(bytes(PART + 1))
    store.delete_prefix(f"{place}a/")
    assert [info.uri for info in store.list(place)] == [f"{place}ab"]
    assert not s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads")
    store.delete(f"{place}ab")
    store.delete(f"{place}ab")


def test_unfinished_uploads_are_forgotten_and_others_are_let_be(
    storage: dict[str, Any], s3: Any, place: str
) -> None:
    store = S3Store({"storage": storage}, {"storage": AWS_SECRET}, part=PART)
    assert isinstance(store, UnfinishedWrites)
    store.put(f"{place}a/part-1", b"stands")
    writers = [store.writer(f"{place}{name}") for name in ("a/part-0", "a/mine", "b/part-0")]
    for writer in writers:
        writer.write(bytes(PART + 1))
    store.abort_writes(f"{place}a/", lambda uri: uri.endswith("part-0"))
    left = s3.list_multipart_uploads(Bucket=BUCKET)["Uploads"]
    names = [f"s3://{BUCKET}/{upload['Key']}".removeprefix(place) for upload in left]
    assert names == ["a/mine", "b/part-0"]
    with pytest.raises(Retry, match="Could not write"):
        writers[0].commit()
    assert store.get(f"{place}a/part-1") == b"stands"
    for writer in writers:
        writer.abort()


@pytest.mark.parametrize("prefix", [f"s3://{BUCKET}/", f"s3://{BUCKET}", f"s3://{BUCKET}/a"])
def test_a_bucket_or_a_half_name_is_never_deleted(store: S3Store, prefix: str) -> None:
    with pytest.raises(ValueError, match="may be deleted"):
        store.delete_prefix(prefix)


def test_an_object_that_could_not_be_deleted_is_told() -> None:
    listing = (
        b"<ListBucketResult><IsTruncated>false</IsTruncated><Contents><Key>p/a</Key>"
        b"<Size>1</Size><ETag>x</ETag><LastModified>2026-01-01T00:00:00Z</LastModified>"
        b"</Contents></ListBucketResult>"
    )
    failed = (
        b"<DeleteResult><Error><Key>p/a</Key><Code>AccessDenied</Code><Message>no</Message>"
        b"</Error></DeleteResult>"
    )

    def respond(asked: Asked) -> Answer:
        return Answer(failed if asked.method == "POST" else listing, headers=XML)

    with Stub(respond) as stub, pytest.raises(Stalled, match="s3://bucket/p/a") as stalled:
        stub_store(stub).delete_prefix("s3://bucket/p/")
    assert stalled.value.reason == "AccessDenied"


# ---------------------------------------------------------------- faults and credentials

XML = {"Content-Type": "application/xml"}
DATE = "Thu, 01 Jan 2026 00:00:00 GMT"


def error(code: str, message: str = "no") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def stub_store(stub: Stub) -> S3Store:
    s3 = {"endpointURL": stub.url, "region": "us-east-1", "credentialsSecretRef": {"name": "aws"}}
    secret = {"storage": {**AWS_SECRET, "AWS_SECRET_ACCESS_KEY": "hidden-value\n"}}
    return S3Store({"storage": {"s3": s3}}, secret, sleep=lambda _s: None)


@pytest.mark.parametrize(
    ("status", "code", "verdict", "reason"),
    [
        (403, "AccessDenied", Stalled, "AccessDenied"),
        (403, "InvalidAccessKeyId", Stalled, "CredentialsRejected"),
        (403, "SignatureDoesNotMatch", Stalled, "CredentialsRejected"),
        (400, "ExpiredToken", Stalled, "CredentialsRejected"),
        (403, "RequestTimeTooSkewed", Stalled, "CredentialsRejected"),
        (400, "KMS.DisabledException", Stalled, "AccessDenied"),
        (404, "NoSuchBucket", Stalled, "BucketNotFound"),
        (301, "PermanentRedirect", Stalled, "EndpointUnreachable"),
        (429, "TooManyRequestsException", Retry, "StorageUnavailable"),
        (503, "SlowDown", Retry, "StorageUnavailable"),
        (500, "InternalError", Retry, "StorageUnavailable"),
    ],
)
def test_a_refusal_says_what_follows_and_never_a_secret(
    status: int, code: str, verdict: type[Exception], reason: str
) -> None:
    leaky = "the key AKIAABCDEFGHIJKLMNOP is not allowed"
    headers = {**XML, "x-amz-bucket-region": "us-east-1"}
    with (
        Stub(lambda _asked: Answer(error(code, leaky), status, headers)) as stub,
        pytest.raises(verdict) as raised,
    ):
        stub_store(stub).get("s3://bucket/key")
    assert raised.value.reason == reason  # type: ignore[attr-defined]
    assert "s3://bucket/key" in str(raised.value)
    assert "hidden-value" not in str(raised.value)
    assert "AKIA" not in str(raised.value)


def test_nobody_listening_is_tried_again_later() -> None:
    with Stub(lambda _asked: Answer()) as stub:
        store = stub_store(stub)
    with pytest.raises(Retry) as retry:
        store.get("s3://bucket/key")
    assert retry.value.reason == "StorageUnavailable"


def test_a_host_that_does_not_exist_stalls() -> None:
    s3 = {"endpointURL": "http://no-such-host.invalid", "region": "us-east-1"}
    s3["credentialsSecretRef"] = {"name": "aws"}  # type: ignore[assignment]
    store = S3Store({"storage": {"s3": s3}}, {"storage": AWS_SECRET})
    with pytest.raises(Stalled) as stalled:
        store.get("s3://bucket/key")
    assert stalled.value.reason == "EndpointUnreachable"


@pytest.mark.parametrize(
    ("settings", "secrets", "own", "told"),
    [
        ({}, {}, False, "storage.s3"),
        ({"storage": {"s3": {}}}, {}, False, "region"),
        ({"storage": {"s3": {"region": "eu"}}}, {}, False, "own identity"),
        (
            {"storage": {"s3": {"region": "eu", "credentialsSecretRef": {"name": "x"}}}},
            {},
            True,
            "was not found",
        ),
        (
            {"storage": {"s3": {"region": "eu", "credentialsSecretRef": {"name": "x"}}}},
            {"storage": {"AWS_ACCESS_KEY_ID": "hidden-value"}},
            True,
            "has no AWS_SECRET_ACCESS_KEY",
        ),
    ],
)
def test_settings_that_cannot_be_used_say_which_field(
    settings: dict[str, Any], secrets: dict[str, Any], own: bool, told: str
) -> None:
    with pytest.raises(Stalled, match=told) as stalled:
        S3Store(settings, secrets, own_identity=own)
    assert "hidden-value" not in str(stalled.value)


def test_nothing_of_the_environment_is_used(poisoned: Callable[[], None]) -> None:
    poisoned()
    with Stub(lambda _asked: Answer(b"data")) as stub:
        assert stub_store(stub).get("s3://bucket/key") == b"data"
    assert "Credential=sandbox/" in stub.asked[0].headers["authorization"]
    assert "/us-east-1/s3/" in stub.asked[0].headers["authorization"]
    assert "x-amz-security-token" not in stub.asked[0].headers


def test_the_own_identity_is_the_default_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "POD")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "POD")
    with Stub(lambda _asked: Answer(b"data")) as stub:
        s3 = {"endpointURL": stub.url, "region": "us-east-1"}
        store = S3Store({"storage": {"s3": s3}}, {}, own_identity=True)
        assert store.get("s3://bucket/key") == b"data"
    assert "Credential=POD/" in stub.asked[0].headers["authorization"]

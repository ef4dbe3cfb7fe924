"""How calls leave the pod: proxies, private authorities, retries, over real TLS and a real proxy."""

from __future__ import annotations

import json
import os
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batchinference.adapters import network
from batchinference.adapters.bedrock import BedrockProvider
from batchinference.adapters.openai_batch import OpenAIBatchProvider, OpenAIData
from batchinference.adapters.s3 import S3Store
from batchinference.app.main import main
from batchinference.errors import Fault, InvalidObject, Retry, Stalled
from batchinference.model.batch import OutcomeUnknown
from batchinference.ports import ObjectInfo, SourceChanged
from builders import anytime

from .conftest import AWS_SECRET
from .forward_proxy import ForwardProxy
from .stub import Answer, Asked, Stub

HOST = "provider.test"
"""Resolved by no resolver: only a proxy of ours leads there."""

BATCH_JOB = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/abc"
CREATE: dict[str, Any] = {
    "jobName": "job",
    "clientRequestToken": "t" * 64,
    "roleArn": "arn:aws:iam::123456789012:role/batch",
    "modelId": "amazon.nova-lite-v1:0",
    "inputDataConfig": {"s3InputDataConfig": {"s3Uri": "s3://b/in.jsonl"}},
    "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://b/out/"}},
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == network.CA_FILE:
            monkeypatch.delenv(name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


# ---------------------------------------------------------------- NO_PROXY


@pytest.mark.parametrize(
    ("url", "excepted", "direct", "reason"),
    [
        ("https://api.openai.com/v1", "", False, "nothing is excepted"),
        ("https://api.openai.com/v1", "*", True, "everything is"),
        ("https://api.openai.com/v1", "openai.com", True, "a name with all that is under it"),
        ("https://api.openai.com/v1", ".openai.com", True, "written with a dot"),
        ("https://api.openai.com/v1", "*.openai.com", True, "written with a star"),
        ("https://API.OpenAI.com/v1", "openai.COM", True, "in any case"),
        ("https://api.openai.com/v1", "a, openai.com ,b", True, "one of several"),
        ("https://evilopenai.com/v1", "openai.com", False, "another name that ends alike"),
        ("https://openai.com.evil.test/", "openai.com", False, "another name that begins alike"),
        ("https://gateway:8443/v1", "gateway:8443", True, "with its port"),
        ("https://gateway:8443/v1", "gateway:443", False, "with another port"),
        ("https://gateway/v1", "gateway:443", True, "with the usual port"),
        ("https://10.1.2.3/v1", "10.0.0.0/8", True, "an address in a network"),
        ("https://11.1.2.3/v1", "10.0.0.0/8", False, "an address outside of it"),
        ("https://10.1.2.3/v1", "10.1.2.3", True, "an address"),
        ("https://[fd00::1]/v1", "fd00::/8", True, "an address of the sixth version"),
        ("https://s3.us-east-1.amazonaws.com", "svc,cluster.local", False, "others are excepted"),
        ("https://127.0.0.1:8443/", "", True, "loopback"),
        ("https://localhost:8443/", "", True, "loopback by name"),
        ("https://[::1]:8443/", "", True, "loopback of the sixth version"),
        ("https://api.openai.com/v1", ",,", False, "empty entries"),
    ],
)
def test_what_is_called_directly(
    monkeypatch: pytest.MonkeyPatch, url: str, excepted: str, direct: bool, reason: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", excepted)
    assert network.proxy_of(url) == ("" if direct else "http://proxy:3128"), reason


def test_each_scheme_has_its_proxy_and_small_letters_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "plain:1")
    assert network.proxy_of("https://a.test") == ""
    assert network.proxy_of("http://a.test") == "http://plain:1"
    monkeypatch.setenv("http_proxy", "http://small:2")
    assert network.proxy_of("http://a.test") == "http://small:2"


@pytest.mark.parametrize(
    ("said", "wait"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 7.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "0"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_what_a_server_asks_for(said: dict[str, str], wait: float | None) -> None:
    assert network.retry_after_s(said) == wait


# ---------------------------------------------------------------- real TLS, a real proxy


def certificate(folder: Path, name: str) -> Path:
    """A certificate for a host that signs itself, and its key; returns the file with both."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(pem) + private)
    return path


@pytest.fixture(scope="module")
def server_pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("server"), HOST)


@pytest.fixture(scope="module")
def authority(server_pem: Path) -> str:
    text = server_pem.read_text()
    return text[: text.index("-----BEGIN PRIVATE")]


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> str:
    text = certificate(tmp_path_factory.mktemp("other"), "other.test").read_text()
    return text[: text.index("-----BEGIN PRIVATE")]


def respond(asked: Asked) -> Answer:
    """Enough of OpenAI, Bedrock, STS and S3 for one call of each."""
    if asked.path == "/v1/batches":
        return Answer({"object": "list", "data": [], "has_more": False})
    if asked.path.startswith("/v1/files"):
        return Answer(b"{}\n")
    if asked.path == "/model-invocation-jobs":
        return Answer({"invocationJobSummaries": []})
    if asked.path == "/" and asked.method == "POST":
        ns = "https://sts.amazonaws.com/doc/2011-06-15/"
        who = "<Account>123456789012</Account><Arn>a</Arn><UserId>u</UserId>"
        inner = f"<GetCallerIdentityResult>{who}</GetCallerIdentityResult>"
        text = f'<GetCallerIdentityResponse xmlns="{ns}">{inner}</GetCallerIdentityResponse>'
        return Answer(text.encode(), headers={"Content-Type": "text/xml"})
    return Answer(b"data", headers={"ETag": '"e"'})


def openai_settings(url: str, ca_bundle: str) -> dict[str, Any]:
    return {"openAI": {"baseURL": f"{url}/v1", **_bundle(ca_bundle)}}


def aws_settings(url: str, ca_bundle: str) -> dict[str, Any]:
    place = {"endpointURL": url, "region": "us-east-1", "credentialsSecretRef": {"name": "a"}}
    role = "arn:aws:iam::123456789012:role/batch"
    return {
        "bedrock": {**place, "serviceRoleARN": role, **_bundle(ca_bundle)},
        "storage": {"s3": {**place, **_bundle(ca_bundle)}},
    }


def _bundle(pem: str) -> dict[str, str]:
    return {"caBundle": pem} if pem else {}


SECRETS = {"bedrock": AWS_SECRET, "storage": AWS_SECRET}


async def openai_control(url: str, ca_bundle: str) -> None:
    provider = OpenAIBatchProvider(openai_settings(url, ca_bundle), {})
    try:
        await provider.check()
    finally:
        await provider.close()


async def openai_bulk(url: str, ca_bundle: str) -> None:
    data = OpenAIData(openai_settings(url, ca_bundle), {}, sleep=lambda _s: None)
    try:
        assert b"".join(data.open_results(["f-1"])) == b"{}\n"
    finally:
        data.close()


async def bedrock_control(url: str, ca_bundle: str) -> None:
    settings = aws_settings(url, ca_bundle)
    store = S3Store(settings, SECRETS)
    provider = BedrockProvider(settings, SECRETS, store, sleep=lambda _s: None)
    try:
        assert (await provider.check()).id.endswith("/123456789012/us-east-1")
    finally:
        await provider.close()


async def s3(url: str, ca_bundle: str) -> None:
    store = S3Store(aws_settings(url, ca_bundle), SECRETS, sleep=lambda _s: None)
    assert store.get("s3://b/key") == b"data"


CALLS = {"openai": openai_control, "openai bulk": openai_bulk, "bedrock": bedrock_control, "s3": s3}


@contextmanager
def behind_a_proxy(server_pem: Path, user: str = "") -> Iterator[tuple[Stub, ForwardProxy]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_pem)
    with Stub(respond, tls=context) as stub:
        port = int(stub.url.rpartition(":")[2])
        with ForwardProxy(port, user=user) as proxy:
            yield stub, proxy


@pytest.mark.parametrize("call", CALLS)
async def test_calls_go_through_the_pods_proxy_to_a_server_of_a_private_authority(
    call: str, server_pem: Path, authority: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind_a_proxy(server_pem, user="me:secret") as (stub, proxy):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        await CALLS[call](f"https://{HOST}:8443", authority)
        assert set(proxy.asked) == {("CONNECT", f"{HOST}:8443")}
        assert stub.asked


@pytest.mark.parametrize("call", CALLS)
async def test_plain_http_goes_through_its_proxy_too(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Stub(respond) as stub, ForwardProxy(int(stub.url.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        await CALLS[call](f"http://{HOST}:8080", "")
        assert all(url.startswith(f"http://{HOST}:8080/") for _, url in proxy.asked)
        assert len(proxy.asked) == len(stub.asked) > 0


@pytest.mark.parametrize("call", CALLS)
async def test_what_is_excepted_does_not_go_through_the_proxy(
    call: str, server_pem: Path, authority: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind_a_proxy(server_pem) as (stub, proxy):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", f"elsewhere.test,{HOST}")
        with pytest.raises(Stalled, match="does not exist"):  # nobody resolves it but the proxy
            await CALLS[call](f"https://{HOST}:8443", authority)
        assert proxy.asked == stub.asked == []


@pytest.mark.parametrize("call", CALLS)
async def test_the_pods_authorities_are_believed_besides_the_public_ones(
    call: str,
    server_pem: Path,
    authority: str,
    other_authority: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pod = tmp_path / "ca.pem"
    pod.write_text(authority)
    monkeypatch.setenv(network.CA_FILE, str(pod))
    with behind_a_proxy(server_pem) as (stub, proxy):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        await CALLS[call](f"https://{HOST}", "")
        asked = len(stub.asked)
        with pytest.raises(Stalled, match="certificate is not trusted") as wary:
            await CALLS[call](f"https://{HOST}", other_authority)  # alone, not besides
        assert wary.value.reason == "EndpointUnreachable"
        assert "caBundle" in wary.value.message
        assert len(stub.asked) == asked > 0


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "variable", ["SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
async def test_what_an_sdk_would_believe_by_itself_counts_for_nothing(
    call: str, variable: str, server_pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(server_pem))
    with behind_a_proxy(server_pem) as (stub, proxy):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(Stalled, match="certificate is not trusted"):
            await CALLS[call](f"https://{HOST}", "")
        assert stub.asked == []


async def test_a_create_call_to_an_untrusted_endpoint_is_a_refusal(
    server_pem: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with behind_a_proxy(server_pem) as (stub, proxy):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        openai = OpenAIBatchProvider(openai_settings(f"https://{HOST}", ""), {})
        settings = aws_settings(f"https://{HOST}", "")
        bedrock = BedrockProvider(settings, SECRETS, S3Store(settings, SECRETS))
        for provider, request in ((openai, {"input_file_id": "f"}), (bedrock, CREATE)):
            refused: Any = await provider.submit(request, anytime)
            assert refused.code == "certificate"
            await provider.close()
        assert stub.asked == []


async def test_a_proxy_that_does_not_answer_is_told_and_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    for call in CALLS.values():
        with pytest.raises(Retry) as told:
            await call(f"https://{HOST}", "")
        assert "secret" not in told.value.message


# ---------------------------------------------------------------- at the start of the process


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("HTTPS_PROXY", "socks5://proxy:1080", "HTTPS_PROXY: must be a proxy's address"),
        ("https_proxy", "http://", "https_proxy: must be a proxy's address"),
        (network.CA_FILE, "/does/not/exist", "holds no readable certificates"),
        (network.CA_FILE, __file__, "holds no readable certificates"),
    ],
)
def test_what_cannot_be_used_is_told_at_the_start(
    variable: str,
    value: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidObject):
        network.check()
    assert main(["run", "--namespace", "ops"]) == 2
    assert told in capsys.readouterr().err


def test_a_file_of_authorities_belongs_to_us_alone(authority: str, tmp_path: Path) -> None:
    path = Path(network.stored(authority))
    assert path.read_text() == authority
    assert network.stored(authority) == str(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o755)
    with pytest.raises(OSError, match="somebody else's"):
        network.stored(authority)


def test_workers_inherit_the_way_out(
    server_pem: Path, authority: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchinference.adapters.workers import inherited_environment

    pod = tmp_path / "ca.pem"
    pod.write_text(authority)
    script = (
        "import json, sys\n"
        "from batchinference.adapters.openai_batch import OpenAIData\n"
        "data = OpenAIData(json.loads(sys.argv[1]), {})\n"
        "print(b''.join(data.open_results(['f-1'])).decode())\n"
    )
    with behind_a_proxy(server_pem) as (_, proxy):
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        monkeypatch.setenv(network.CA_FILE, str(pod))
        settings = json.dumps(openai_settings(f"https://{HOST}", ""))
        said = subprocess.run(
            [sys.executable, "-c", script, settings],
            env=inherited_environment(),
            capture_output=True,
            text=True,
            check=True,
        )
    assert said.stdout.strip() == "{}"


# ---------------------------------------------------------------- retries


async def openai_create(url: str) -> Any:
    provider = OpenAIBatchProvider(openai_settings(url, ""), {}, submit_timeout_s=0.3)
    try:
        return await provider.submit({"input_file_id": "f-1"}, anytime)
    finally:
        await provider.close()


async def bedrock_create(url: str) -> Any:
    settings = aws_settings(url, "")
    store = S3Store(settings, SECRETS)
    provider = BedrockProvider(settings, SECRETS, store, submit_timeout_s=0.3)
    try:
        return await provider.submit(CREATE, anytime)
    except TimeoutError:
        return OutcomeUnknown("the runtime's own word for it")
    finally:
        await provider.close()


CREATES = {"openai": openai_create, "bedrock": bedrock_create}


@pytest.mark.parametrize("create", CREATES)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer({"message": "oops"}, 500), "an error of the server"),
        (Answer({"message": "oops"}, 503, {"Retry-After": "0"}), "asked to come back at once"),
        (Answer({"message": "oops"}, 503, {"X-Should-Retry": "true"}), "asked to by OpenAI's word"),
        (Answer({"message": "oops"}, 408), "a time-out at the server"),
        (Answer(drop=True), "a broken connection"),
        (Answer(b"{" * 1000, cut=10), "an answer that breaks off"),
        (Answer({}, trickle=3), "no answer in time"),
    ],
)
async def test_a_create_call_is_one_request_whatever_comes_back(
    create: str, answer: Answer, reason: str
) -> None:
    with Stub(lambda _asked: answer) as stub:
        outcome = await CREATES[create](stub.url)
        assert isinstance(outcome, OutcomeUnknown), reason
        assert [asked.method for asked in stub.asked] == ["POST"], reason


class Flaky:
    """A server that fails once, and then answers."""

    def __init__(self, failure: Answer) -> None:
        self.failure = failure
        self.times: list[float] = []

    def __call__(self, asked: Asked) -> Answer:
        self.times.append(time.monotonic())
        return self.failure if len(self.times) == 1 else respond(asked)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (Answer({"message": "oops"}, 500), "an error of the server"),
        (Answer({"message": "oops"}, 429), "throttled"),
        (Answer(drop=True), "a broken connection"),
    ],
)
async def test_a_read_is_tried_again(call: str, failure: Answer, reason: str) -> None:
    flaky = Flaky(failure)
    with Stub(flaky) as stub:
        await CALLS[call](stub.url, "")
        assert len(stub.asked) >= 2, reason


@pytest.mark.parametrize("call", ["openai", "openai bulk"])
async def test_a_read_waits_for_as_long_as_the_server_asks(call: str) -> None:
    flaky = Flaky(Answer({"message": "slowly"}, 429, {"Retry-After": "1"}))
    with Stub(flaky) as stub:
        await CALLS[call](stub.url, "")
    assert flaky.times[1] - flaky.times[0] >= 1.0


def test_a_read_of_the_store_waits_for_as_long_as_it_asks(waits: list[float]) -> None:
    flaky = Flaky(Answer(b"", 503, {"Retry-After": "7"}))
    with Stub(flaky) as stub:
        store = S3Store(aws_settings(stub.url, ""), SECRETS, sleep=waits.append)
        assert store.get("s3://b/key") == b"data"
    assert waits == [7.0]


@pytest.mark.parametrize("call", CALLS)
async def test_who_asks_for_long_is_left_alone_and_its_wish_is_handed_on(call: str) -> None:
    patience = {"Retry-After": "60", "Content-Type": "text/xml"}
    with Stub(lambda _asked: Answer(b"", 503, patience)) as stub:
        with pytest.raises(Fault) as told:
            await CALLS[call](stub.url, "")
        assert len(stub.asked) == 1
    assert isinstance(told.value, Retry)
    assert told.value.after_s == 60.0


@pytest.mark.parametrize("call", CALLS)
async def test_the_page_of_a_gateway_is_told_as_a_passing_failure(call: str) -> None:
    page = Answer(b"<html><p>Bad gateway, my-secret-prompt", 502, {"Content-Type": "text/html"})
    with Stub(lambda _asked: page) as stub, pytest.raises(Retry) as told:
        await CALLS[call](stub.url, "")
    assert told.value.reason in {"ProviderUnavailable", "StorageUnavailable"}
    assert "my-secret-prompt" not in told.value.message


# ---------------------------------------------------------------- downloads


BODY = bytes(range(256)) * 8192


def ranged(asked: Asked, body: bytes = BODY, **more: Any) -> Answer:
    """As a store that honours ranges."""
    headers = {"ETag": '"e"'}
    if "range" not in asked.headers:
        return Answer(body, headers=headers, **more)
    start = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
    headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
    return Answer(body[start:], 206, headers, **more)


def stored_read(stub: Stub) -> bytes:
    store = S3Store(aws_settings(stub.url, ""), SECRETS, sleep=lambda _s: None)
    return b"".join(store.read(ObjectInfo("s3://b/key", len(BODY), "e")))


def result_read(stub: Stub) -> bytes:
    data = OpenAIData(openai_settings(stub.url, ""), {}, sleep=lambda _s: None)
    try:
        return b"".join(data.open_results(["f-1"]))
    finally:
        data.close()


READS: dict[str, Callable[[Stub], bytes]] = {"s3": stored_read, "openai": result_read}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("honours", [True, False])
def test_a_body_that_is_cut_is_completed_with_or_without_ranges(read: str, honours: bool) -> None:
    cuts = [1_500_000, 1_600_000, 100]

    def answer(asked: Asked) -> Answer:
        cut = cuts.pop(0) if cuts else None
        if honours:
            return ranged(asked, cut=cut)
        return Answer(BODY, headers={"ETag": '"e"'}, cut=cut)

    with Stub(answer) as stub:
        assert READS[read](stub).removesuffix(b"\n") == BODY
        assert "range" in stub.asked[1].headers


def of_another(asked: Asked, status: int) -> Answer:
    """A piece of another object under the same name."""
    range_ = {"Content-Range": f"bytes {asked.headers['range'][6:-1]}-9/{len(BODY)}"}
    headers = {"ETag": '"other"', **(range_ if status == 206 else {})}
    return Answer(b"x" * len(BODY), status, headers)


CHANGES: dict[str, Callable[[Asked], Answer]] = {
    "another content, sent whole": lambda asked: of_another(asked, 200),
    "another content, in its range": lambda asked: of_another(asked, 206),
    "no longer that long": lambda _asked: Answer(b"", 416),
}
UNTAGGED: dict[str, Callable[[Asked], Answer]] = {
    "longer, as its range says": lambda asked: ranged(asked, BODY + b"more"),
    "another content, without a tag": lambda _asked: Answer(b"x" * len(BODY)),
}


@pytest.mark.parametrize(
    ("read", "changed", "condition", "change"),
    [
        *(("s3", SourceChanged, "if-match", change) for change in CHANGES),
        *(("openai", Retry, "if-range", change) for change in CHANGES | UNTAGGED),
    ],
)
def test_a_file_that_changes_in_between_is_not_patched_together(
    read: str, changed: type[Exception], condition: str, change: str
) -> None:
    second = (CHANGES | UNTAGGED)[change]

    def answer(asked: Asked) -> Answer:
        return ranged(asked, cut=1_500_000) if "range" not in asked.headers else second(asked)

    with Stub(answer) as stub:
        with pytest.raises(changed):
            READS[read](stub)
        assert stub.asked[1].headers[condition] == '"e"'


def test_an_end_that_might_be_a_break_is_believed_when_nothing_follows() -> None:
    whole, asked_ranges = BODY[:1000], []

    def answer(asked: Asked) -> Answer:
        asked_ranges.append(asked.headers.get("range", ""))
        if len(asked_ranges) == 1:
            return Answer(whole[:600], unannounced=True)
        start = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(whole):
            return Answer(b"", 416)
        headers = {"Content-Range": f"bytes {start}-999/*"}
        return Answer(whole[start:], 206, headers, unannounced=True)

    with Stub(answer) as stub:
        assert result_read(stub).removesuffix(b"\n") == whole
    assert asked_ranges == ["", "bytes=600-", "bytes=1000-"]

"""Credentials and failures of the API server's clients, against a server that says what we want."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from kubernetes.aio.config import incluster_config

from batchinference.adapters.kube import blocking, client
from batchinference.adapters.kube.answers import Refusal
from batchinference.adapters.kube.blocking import ConfigMaps
from batchinference.adapters.kube.client import KubeClient
from batchinference.adapters.kube.connection import KubeConnection
from batchinference.adapters.kube.events import KubeEvents
from batchinference.adapters.kube.names import Resource
from batchinference.clock import SystemClock
from batchinference.errors import Permanent, Retry, Stalled
from batchinference.model.codec import decode, encode
from batchinference.ports import Event, ObjectRef
from batchinference.telemetry.metrics import PrometheusMetrics

Handler = Callable[[web.Request], Any]


@dataclass
class Server:
    """An API server that answers as it is told and remembers who asked."""

    url: str = ""
    tokens: list[str] = field(default_factory=list)
    answers: list[tuple[int, Any, dict[str, str]]] = field(default_factory=list)
    hold: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get("Authorization", ""))
        if self.hold is not None:
            await self.hold.wait()
        status, body, headers = self.answers.pop(0) if self.answers else (200, {"ok": True}, {})
        if isinstance(body, str):
            return web.Response(text=body, status=status, headers=headers)
        return web.json_response(body, status=status, headers=headers)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    if made.hold is not None:
        made.hold.set()
    await runner.cleanup()


def kubeconfig(folder: Path, url: str, user: dict[str, Any]) -> str:
    path = folder / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
async def connected(server: Server, tmp_path: Path) -> AsyncIterator[KubeClient]:
    path = kubeconfig(tmp_path, server.url, {"token": "from-kubeconfig"})
    made = await KubeClient.connect(path, timeout_s=5)
    yield made
    await made.close()


def status(code: int, **members: Any) -> tuple[int, Any, dict[str, str]]:
    return code, {"kind": "Status", "message": "because", **members}, {}


async def test_a_kubeconfigs_token_is_sent_by_all_three_clients(
    server: Server, connected: KubeClient
) -> None:
    await connected.call("GET", "/api/v1/x")
    async with connected.session(2) as session, session.get(f"{server.url}/api/v1/x") as answer:
        assert answer.status == 200
    connection = await connected.connection()
    await asyncio.to_thread(ConfigMaps(connection).get, "ns", "x")
    assert server.tokens == ["Bearer from-kubeconfig"] * 3


async def test_a_kind_that_is_not_served_breaks_a_watch_and_does_not_end_it(
    server: Server, connected: KubeClient, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/apis/batchinference.dev/v1alpha1/namespaces/ml/inferenceproviders"
    async with connected.session(2) as session:
        server.answers = [status(code) for code in (404, 404, 404, 503, 200)]
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectionError, match="inferenceproviders are not"):
                await session.get(f"{server.url}{path}")
        assert connected.unserved == {"inferenceproviders"}
        async with session.get(f"{server.url}/apis/batchinference.dev") as answer:
            assert answer.status == 404, "what is not one of our kinds is as it is"
        async with session.get(f"{server.url}{path}"):
            assert connected.unserved == {"inferenceproviders"}
        async with session.get(f"{server.url}{path}"):
            assert connected.unserved == set()
    assert caplog.text.count("does not serve inferenceproviders any more") == 1


async def test_a_token_file_of_a_kubeconfig_is_read_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_REFRESH_S", 0.0)
    (tmp_path / "token").write_text("first")
    path = kubeconfig(tmp_path, server.url, {"tokenFile": str(tmp_path / "token")})
    made = await KubeClient.connect(path)
    await made.call("GET", "/x")
    (tmp_path / "token").write_text("second")
    await made.call("GET", "/x")
    assert (await made.connection()).token == "second"
    await made.close()
    assert server.tokens == ["Bearer first", "Bearer second"]


async def test_in_a_pod_the_service_accounts_token_is_read_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first")
    authority.write_text("not read over plain HTTP")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
    monkeypatch.setattr(client, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    configuration = client.Configuration()
    connection = await client._load(configuration, "")
    assert connection.token_file == str(token)
    assert connection.token == ""  # a pipe gets the name of the file and no secret
    assert connection.current_token() == "first"
    token.write_text("second\n")
    assert connection.current_token() == "second"
    assert connection.host == server.url.replace("http:", "https:")


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "there is none"), ("{}", "it has no context"), (":", "it is no YAML mapping")],
)
async def test_without_credentials_it_stalls_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, reason: str
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Stalled, match="No credentials for the API server"):
        await KubeClient.connect(str(path))


def test_a_connection_crosses_a_pipe_and_does_not_show_its_token() -> None:
    connection = KubeConnection("https://h:1", ca_file="/ca", token="sesame")
    assert decode(KubeConnection, encode(connection)) == connection
    assert "sesame" not in repr(connection)


@pytest.mark.parametrize(
    ("host", "proxy", "environment", "want", "reason"),
    [
        ("https://10.0.0.1", "", {}, "", "no proxy anywhere"),
        ("https://10.0.0.1", "", {"HTTPS_PROXY": "http://p:1"}, "http://p:1", "of the environment"),
        ("https://127.0.0.1:6", "", {"HTTPS_PROXY": "http://p:1"}, "", "loopback"),
        ("https://[::1]:6", "", {"HTTPS_PROXY": "http://p:1"}, "", "loopback of IPv6"),
        (
            "https://10.0.0.1",
            "",
            {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "10.0.0.1"},
            "",
            "excepted",
        ),
        ("https://10.0.0.1", "http://q:2", {"HTTPS_PROXY": "http://p:1"}, "http://q:2", "named"),
    ],
)
def test_the_proxy_is_the_one_to_go_through(
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    proxy: str,
    environment: dict[str, str],
    want: str,
    reason: str,
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert KubeConnection(host, proxy=proxy).proxy_url() == want, reason


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (401, Retry, "tokens rotate"),
        (403, Stalled, "RBAC is a person's business"),
        (422, Permanent, "the request itself is wrong"),
        (413, Permanent, "and so is one that is too large"),
        (429, Retry, "too many at once"),
        (500, Retry, "a passing failure"),
        (504, Retry, "the API server's own timeout"),
    ],
)
async def test_every_answer_has_a_consequence(
    server: Server, connected: KubeClient, code: int, kind: type[Exception], reason: str
) -> None:
    server.answers.append(status(code))
    with pytest.raises(Refusal) as refused:
        await connected.call("GET", "/x")
    assert type(refused.value.fault()) is kind, reason
    assert "because" in refused.value.fault().message


async def test_the_servers_wish_to_wait_is_passed_on(server: Server, connected: KubeClient) -> None:
    server.answers.append((429, {"kind": "Status"}, {"Retry-After": "7"}))
    with pytest.raises(Refusal) as refused:
        await connected.call("GET", "/x")
    assert refused.value.fault().after_s == 7


@pytest.mark.parametrize("body", ["<html>proxy</html>", "[]", ""])
async def test_an_answer_that_is_no_object_is_retry(
    server: Server, connected: KubeClient, body: str
) -> None:
    server.answers.append((200, body, {}))
    with pytest.raises(Retry):
        await connected.call("GET", "/x")


async def test_a_server_that_is_silent_is_retry(server: Server, tmp_path: Path) -> None:
    server.hold = asyncio.Event()
    path = kubeconfig(tmp_path, server.url, {"token": "t"})
    impatient = await KubeClient.connect(path, timeout_s=0.05)
    with pytest.raises(Retry, match="no answer"):
        await impatient.call("PATCH", "/x", body={})
    await impatient.close()


async def test_no_more_calls_are_under_way_than_connections(server: Server, tmp_path: Path) -> None:
    server.hold = asyncio.Event()
    path = kubeconfig(tmp_path, server.url, {"token": "t"})
    narrow = await KubeClient.connect(path, max_connections=3)
    calls = [asyncio.create_task(narrow.call("GET", "/x")) for _ in range(10)]
    async with asyncio.timeout(10):
        while len(server.tokens) < 3:
            await asyncio.sleep(0.005)
    await narrow_is_full(server)
    server.hold.set()
    await asyncio.gather(*calls)
    await narrow.close()
    assert len(server.tokens) == 10


async def narrow_is_full(server: Server) -> None:
    """Nothing more comes, though the loop had every chance."""
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(server.tokens) == 3


async def test_reads_are_repeated_over_passing_failures_and_creates_are_not(
    server: Server, connected: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "_BACKOFF_S", 0.0)
    config_maps = ConfigMaps(await connected.connection())
    data = {"data": {"k": base64.b64encode(b"v").decode()}}
    server.answers += [status(503), status(500), (200, data, {})]
    assert await asyncio.to_thread(config_maps.get, "ns", "x") == data
    server.answers += [status(503)]
    with pytest.raises(Retry):
        await asyncio.to_thread(config_maps.create, "ns", {"metadata": {"name": "x"}})
    assert len(server.tokens) == 4
    config_maps.close()


async def test_a_404_of_a_proxy_does_not_mean_that_a_config_map_is_gone(
    server: Server, connected: KubeClient
) -> None:
    config_maps = ConfigMaps(await connected.connection())
    server.answers += [(404, "404 page not found", {})]
    with pytest.raises(Retry):
        await asyncio.to_thread(config_maps.get, "ns", "x")
    server.answers += [status(404, details={"name": "x", "kind": "configmaps"})]
    assert await asyncio.to_thread(config_maps.get, "ns", "x") is None
    config_maps.close()


def test_paths_are_those_of_the_api() -> None:
    kind = Resource("/apis/batchinference.dev/v1alpha1", "batchinferencejobs", "BatchInferenceJob")
    assert kind.path("ml", "a/b", "status") == (
        "/apis/batchinference.dev/v1alpha1/namespaces/ml/batchinferencejobs/a%2Fb/status"
    )
    assert kind.api_version == "batchinference.dev/v1alpha1"
    assert Resource("/api/v1", "namespaces", "N", namespaced=False).path("x", "y") == (
        "/api/v1/namespaces/y"
    )


async def test_events_that_find_no_room_are_counted_and_hurt_nobody(
    server: Server, connected: KubeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchinference.adapters.kube.events._QUEUE", 2)
    metrics = PrometheusMetrics()
    events = KubeEvents(connected, SystemClock(), "pod", metrics)
    about = ObjectRef("BatchInferenceJob", "ml", "x", "u")
    for number in range(5):
        events.record(Event(about, "Reason", f"message {number}"))
    assert b"batchinference_events_dropped_total 3.0" in metrics.exposition()
    events.start()
    await events.stop()
    assert len(server.tokens) == 2


async def test_an_event_that_could_not_be_written_is_tried_with_the_next_of_its_kind(
    server: Server, connected: KubeClient
) -> None:
    events = KubeEvents(connected, SystemClock(), "pod")
    events.start()
    event = Event(ObjectRef("BatchInferenceJob", "ml", "x", "u"), "Reason", "message")
    server.answers.append(status(500))
    for _ in range(3):
        events.record(event)
        await events._queue.join()
    await events.stop()
    assert len(server.tokens) == 3  # failed, created, and the count of two at the end

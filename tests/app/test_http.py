"""Health and metrics over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from batchinference.app.http import LAG_LIMIT_S, HTTPServer, LoopLag
from batchinference.errors import Stalled
from batchinference.telemetry.metrics import PrometheusMetrics


class Site:
    def __init__(self) -> None:
        self.wrong = ""
        self.metrics = PrometheusMetrics("1.2.3")
        checks = {"feed": lambda: self.wrong, "runtime": lambda: ""}
        self.unready = ""
        self.lacking: dict[str, str] = {}
        self.server = HTTPServer(
            "127.0.0.1",
            0,
            checks,
            self.metrics.exposition,
            {"start": lambda: self.unready},
            lambda: {"role": "standby", "leader": "a"},
            lambda: self.lacking,
        )
        self.port = 0

    async def get(self, path: str) -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, answer.headers["Content-Type"], await answer.text()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    made.port = await made.server.start()
    yield made
    await made.server.stop()


async def test_health_is_what_the_checks_say(site: Site) -> None:
    status, _, text = await site.get("/healthz")
    assert (status, text) == (200, '{"status": "ok"}')
    site.wrong = "the watches ended"
    status, _, text = await site.get("/healthz")
    assert (status, text) == (503, '{"status": "failing", "feed": "the watches ended"}')


async def test_what_is_lacking_is_told_and_is_no_reason_for_a_restart(site: Site) -> None:
    site.lacking = {"unserved": "inferenceproviders"}
    status, _, text = await site.get("/healthz")
    assert (status, text) == (200, '{"status": "ok", "unserved": "inferenceproviders"}')


async def test_readiness_is_health_and_more_and_says_who_leads(site: Site) -> None:
    told = '"role": "standby", "leader": "a"'
    assert (await site.get("/readyz"))[::2] == (200, f'{{"status": "ok", {told}}}')
    site.unready = "not listed yet"
    status, _, text = await site.get("/readyz")
    assert (status, text) == (503, f'{{"status": "failing", {told}, "start": "not listed yet"}}')
    assert (await site.get("/healthz"))[0] == 200
    site.unready, site.wrong = "", "the watches ended"
    assert (await site.get("/readyz"))[0] == 503


async def test_metrics_are_in_the_exposition_format(site: Site) -> None:
    site.metrics.count("submissions_total", outcome="Accepted")
    status, kind, text = await site.get("/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=0.0.4")
    assert 'batchinference_submissions_total{outcome="Accepted",provider=""} 1.0' in text
    assert 'batchinference_build_info{version="1.2.3"} 1.0' in text


async def test_a_taken_port_is_told_with_what_to_do(site: Site) -> None:
    again = HTTPServer("127.0.0.1", site.port, {}, lambda: b"", {}, dict)
    with pytest.raises(Stalled, match=rf"{site.port}.*address already in use.*`--port`") as caught:
        await again.start()
    assert "`http.port`" in caught.value.message
    await again.stop()


async def test_a_loop_that_is_late_is_not_healthy() -> None:
    told: list[float] = []
    lag = LoopLag(told.append)
    assert lag.check() == ""
    lag._lag_s = LAG_LIMIT_S + 1
    assert "late" in lag.check()

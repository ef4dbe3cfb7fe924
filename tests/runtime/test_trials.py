"""Trials of provider objects: endpoints that say nothing hold up nobody but their namespace."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from batchinference.model.batch import Account
from batchinference.ports import ObjectRef
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.trials import Trials
from builders import job, openai_provider
from fakes.provider import FakeProvider
from runtime.house import SETTINGS, Counts, House, play

SILENT = "silent"
VERSION = ("uid", 1)


def ready(house: House, name: str, namespace: str = "ml") -> Mapping[str, Any]:
    body = house.kube.find("InferenceProvider", namespace, name)
    assert body is not None
    listed = (body.get("status") or {}).get("conditions") or []
    return next((c for c in listed if c["type"] == "Ready"), {})


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Servers of the account `silent` never answer; how many such calls are open, and were."""
    calls: Counter[str] = Counter()

    def silent(really: Any) -> Any:
        async def call(self: FakeProvider, *args: Any) -> Any:
            if self.server.account != SILENT:
                return await really(self, *args)
            calls["open"] += 1
            calls["most"] = max(calls["most"], calls["open"])
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                calls["open"] -= 1

        return call

    for name in ("check", "get", "page", "cancel", "input_readable"):
        monkeypatch.setattr(FakeProvider, name, silent(getattr(FakeProvider, name)))
    return calls


def many_silent(house: House, number: int, namespace: str) -> None:
    house.kube.secrets[namespace, "openai"] = {"api-key": "secret"}
    house.kube.secrets[namespace, "aws"] = house.kube.secrets["ml", "aws"]
    for n in range(number):
        provider = openai_provider(f"{SILENT}-{n}", namespace)
        house.add_server(provider, account=SILENT)
        house.kube.create(provider)


def test_sixty_silent_providers_of_one_namespace_delay_no_other(silence: Counter[str]) -> None:
    async def scene(house: House) -> None:
        many_silent(house, 60, "other")
        await house.operator()
        await house.pass_time(1)
        house.kube.create(openai_provider("second"))
        house.add_server(openai_provider("second"), account="second")
        await house.until(lambda: ready(house, "second").get("status") == "True", patience_s=2)
        house.give(job())
        await house.until(lambda: house.state() == "Running", patience_s=60)
        assert silence["most"] == RuntimeSettings().trials_per_namespace
        minutes = 60 / RuntimeSettings().trials_per_namespace + 1
        await house.until(
            lambda: all(
                ready(house, f"{SILENT}-{n}", "other").get("reason") == "EndpointUnreachable"
                for n in range(60)
            ),
            patience_s=minutes * SETTINGS.call_timeout_s,
        )

    play(scene, reconcilers=1)


def test_a_run_whose_endpoint_falls_silent_takes_no_place_from_others(
    silence: Counter[str],
) -> None:
    async def scene(house: House) -> None:
        for n in range(8):
            name = f"other-{n}"
            house.add_server(openai_provider(name), account=name)
            house.kube.create(openai_provider(name))
            house.give(job(f"stuck-{n}").provider(name))
        await house.operator()
        await house.until(lambda: all(house.state(f"stuck-{n}") == "Running" for n in range(8)))
        for server in house.factory.servers.values():
            if server.account.startswith("other"):
                server.account = SILENT
        for n in range(8):
            house.kube.delete(ObjectRef("BatchInferenceJob", "ml", f"stuck-{n}"))
        await house.until(lambda: silence["open"] >= 8)
        began = house.clock.elapsed()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        assert house.clock.elapsed() - began < SETTINGS.call_timeout_s / 2
        for server in house.factory.servers.values():
            server.account = server.account.replace(SILENT, "well")
        await house.until(lambda: house.state() == "Succeeded")

    play(scene, reconcilers=1)


def test_a_mended_object_does_not_wait_for_the_trial_of_what_it_was(
    silence: Counter[str],
) -> None:
    async def scene(house: House) -> None:
        many_silent(house, 1, "ml")
        await house.operator()
        await house.until(lambda: silence["open"] == 1)
        well = openai_provider("well")
        house.add_server(well, account="well")
        ref = ObjectRef("InferenceProvider", "ml", f"{SILENT}-0")
        house.kube.edit_spec(ref, openAI=well["spec"]["openAI"])
        await house.until(lambda: ready(house, f"{SILENT}-0").get("status") == "True", patience_s=2)
        assert silence["open"] == 0

    play(scene)


def test_a_change_of_ready_is_told_as_an_event() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.until(lambda: ready(house, "openai").get("status") == "True")
        house.server.locked_out = True
        await house.until(lambda: ready(house, "openai").get("status") == "False")
        house.server.locked_out = False
        await house.until(lambda: ready(house, "openai").get("status") == "True")
        await house.pass_time(100)
        assert house.recorder.reasons("openai") == ["Ready", "CredentialsRejected", "Ready"]
        assert [e.warning for e in house.recorder.events] == [False, True, False]

    play(scene, provider_check_s=60.0)


def test_a_defect_in_a_trial_is_shown_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    really = FakeProvider.check
    broken = True

    async def check(self: FakeProvider) -> Account:
        if broken:
            raise ZeroDivisionError
        return await really(self)

    monkeypatch.setattr(FakeProvider, "check", check)

    async def scene(house: House) -> None:
        nonlocal broken
        life = await house.operator()
        await house.until(lambda: ready(house, "openai").get("reason") == "InternalError")
        assert life.metrics.counters["reconcile_errors_total"] > 0
        broken = False
        await house.until(lambda: ready(house, "openai").get("status") == "True")

    play(scene, complaints=("can't be tried",))


# ---------------------------------------------------------------- whose turn it is


class Bench:
    """Trials that end when they are told to."""

    def __init__(self, at_once: int, per_namespace: int) -> None:
        self.trials = Trials(at_once, per_namespace, Counts())
        self.open: dict[str, asyncio.Future[None]] = {}
        self.begun: list[str] = []

    def start(self, key: str, version: tuple[str, int] = VERSION) -> None:
        async def work() -> None:
            self.begun.append(key)
            self.open[key] = asyncio.get_running_loop().create_future()
            try:
                await self.open[key]
            finally:
                del self.open[key]

        self.trials.start(key, key[0], version, work)

    async def end(self, key: str) -> None:
        self.open[key].set_result(None)
        for _ in range(3):
            await asyncio.sleep(0)

    async def settle(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)


async def test_namespaces_take_turns_and_none_has_more_than_its_share() -> None:
    bench = Bench(3, 2)
    for key in ("a1", "a2", "a3", "a4", "b1", "c1"):
        bench.start(key)
    await bench.settle()
    assert bench.begun == ["a1", "a2", "b1"]
    await bench.end("a1")
    assert bench.begun[3:] == ["a3"]
    await bench.end("a2")
    assert bench.begun[4:] == ["c1"], "the others come before a's next turn"
    await bench.end("b1")
    assert bench.begun[5:] == ["a4"]
    await bench.end("c1")
    assert len(bench.open) == 2, "a has two at once, and a place stays free"
    bench.start("b2")
    await bench.settle()
    assert bench.begun[6:] == ["b2"]
    await bench.trials.close()
    assert bench.open == {}


async def test_an_object_is_tried_once_at_a_time_and_anew_when_it_changes() -> None:
    bench = Bench(3, 2)
    bench.start("a1")
    bench.start("a1")
    await bench.settle()
    assert bench.begun == ["a1"]
    bench.start("a1", ("uid", 2))
    await bench.settle()
    assert bench.begun == ["a1", "a1"]
    assert len(bench.open) == 1
    bench.trials.drop("a1")
    await bench.settle()
    assert bench.open == {}
    await bench.trials.close()


async def test_nothing_begins_once_it_is_closed() -> None:
    bench = Bench(1, 1)
    bench.start("a1")
    bench.start("b1")
    await bench.settle()
    await bench.trials.close()
    await bench.settle()
    assert bench.begun == ["a1"]

"""Provider objects: when they are tried, and how current the numbers in their status are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinference.ports import ObjectRef
from builders import job, openai_provider
from runtime.house import HABITS, SETTINGS, House, play

PROVIDER = "openai"
SOON_S = SETTINGS.progress_s + 5


def status(house: House) -> Mapping[str, Any]:
    body = house.kube.find("InferenceProvider", "ml", PROVIDER)
    assert body is not None
    return body.get("status") or {}


def writes(house: House) -> int:
    return house.kube.status_writes.get(PROVIDER, 0)


def test_the_numbers_of_a_provider_follow_within_half_a_minute() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.until(lambda: status(house).get("conditions"))
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(SOON_S)
        assert status(house)["activeBatches"] == 1
        assert int(status(house)["enqueuedTokens"]) > 0
        await house.until(lambda: house.state() == "Succeeded")
        await house.pass_time(SOON_S)
        assert status(house)["activeBatches"] == status(house)["queuedShards"] == 0

    play(scene, provider_check_s=7200.0)


def test_numbers_cost_no_calls_and_no_writes_while_nothing_changes() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.until(lambda: status(house).get("conditions"))
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(SOON_S)
        written, checked = writes(house), house.server.calls["check"]
        await house.pass_time(HABITS.work_s / 3)
        assert house.state() == "Running"
        assert writes(house) == written
        assert house.server.calls["check"] == checked

    play(scene, provider_check_s=7200.0)


def test_a_provider_that_works_is_tried_again_when_that_is_due() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.until(lambda: status(house).get("conditions"))
        before = house.server.calls["check"]
        await house.pass_time(1000)
        assert 9 <= house.server.calls["check"] - before <= 10

    play(scene, provider_check_s=100.0)


def test_an_object_that_is_edited_or_made_anew_is_tried_at_once() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.until(lambda: status(house).get("conditions"))
        before = house.server.calls["check"]
        ref = ObjectRef("InferenceProvider", "ml", PROVIDER, "")
        house.kube.edit_spec(ref, limits={"maxActiveBatches": 3})
        await house.until(lambda: house.server.calls["check"] == before + 1, patience_s=10)
        house.kube.delete(ref)
        house.kube.create(openai_provider(PROVIDER))
        await house.until(lambda: house.server.calls["check"] == before + 2, patience_s=10)
        await house.until(lambda: status(house).get("conditions"), patience_s=10)

    play(scene, provider_check_s=7200.0)

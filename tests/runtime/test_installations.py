"""Two installations whose watch scopes overlap: one shows an object, and they do not fight."""

from __future__ import annotations

from collections import Counter

from builders import job
from fakes.outside import OURS
from runtime.house import House, Life, play, ref
from runtime.test_trials import ready

THEIRS = "installation-2"


def shown_by(house: House) -> str:
    return str(house.status().get("installation", ""))


def shows_elsewhere(life: Life) -> float:
    return life.metrics.gauges.get(("jobs_shown_elsewhere", ()), 0.0)


def test_whoever_holds_the_output_place_shows_the_job_and_the_other_is_quiet() -> None:
    async def scene(house: House) -> None:
        house.give(job())
        lives = [await house.operator(), await house.operator(installation=THEIRS)]
        await house.until(lambda: house.state() == "Running")
        holder = shown_by(house)
        assert holder in {OURS, THEIRS}
        await house.pass_time(60)
        before = Counter(house.kube.status_writes)
        await house.pass_time(400)
        assert house.state() == "Running"
        assert house.kube.status_writes["triage"] - before["triage"] <= 3, "one per record"
        assert sorted(map(shows_elsewhere, lives)) == [0, 1]
        await house.until(lambda: house.state() == "Succeeded")
        await house.pass_time(300)
        assert (house.state(), shown_by(house)) == ("Succeeded", holder)
        assert house.status()["progress"] == "3/3"

    play(scene)


def test_a_job_that_neither_can_begin_is_shown_the_same_by_both() -> None:
    async def scene(house: House) -> None:
        house.give(job().provider("missing"))
        await house.operator()
        await house.operator(installation=THEIRS)
        await house.until(lambda: house.state() == "Stalled")
        before = house.kube.status_writes["triage"]
        await house.pass_time(600)
        assert house.kube.status_writes["triage"] == before
        assert house.condition("Stalled")["reason"] == "ProviderNotFound"

    play(scene)


def test_a_deleted_job_goes_and_its_batch_is_cancelled() -> None:
    async def scene(house: House) -> None:
        house.give(job())
        await house.operator()
        await house.operator(installation=THEIRS)
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(60)
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None)
        (batch,) = house.server.batches.values()
        await house.until(lambda: batch.cancels)

    play(scene)


def test_a_provider_is_shown_by_the_one_that_came_last() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.until(lambda: ready(house, "openai").get("status") == "True")
        await house.operator(installation=THEIRS)

        def owner() -> str:
            body = house.kube.find("InferenceProvider", "ml", "openai")
            return str(body["status"]["installation"]) if body else ""

        await house.until(lambda: owner() == THEIRS)
        before = house.kube.status_writes["openai"]
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(300)
        assert owner() == THEIRS
        assert house.kube.status_writes["openai"] - before <= 2, "its numbers, not a fight"

    play(scene)

"""`outputPolicy: Replace`: the place of a run that is over for good, and of no other (protocol 3.2)."""

from __future__ import annotations

from typing import Any

import pytest

from batchinference.core.begin import key_of
from batchinference.model.job import parse_job
from batchinference.model.run import RunPhase
from builders import JobBuilder, job
from runtime.house import House, play, ref

PLACE = "s3://data/ml/out/shared/"


def first() -> JobBuilder:
    return job().writing(PLACE)


def second(**spec: Any) -> JobBuilder:
    return job("again").writing(PLACE).with_spec(outputPolicy="Replace", **spec)


def key(body: dict[str, Any]) -> str:
    return key_of(parse_job(body))


def owner(house: House) -> str:
    manifest = house.workers.manifest(PLACE)
    return "" if manifest is None else str(manifest["job"]["name"])


def test_the_place_of_an_ended_run_is_taken_over() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        ended = house.give(first())
        await house.until(lambda: house.phase(key(ended)) is RunPhase.ENDED)
        house.give(second())
        await house.until(lambda: house.state("again") == "Running")
        assert owner(house) == ""
        await house.until(lambda: house.state("again") == "Succeeded")
        assert owner(house) == "again"
        assert house.state() == "Succeeded", "its end stays an end"

    play(scene)


def test_the_place_of_a_live_run_is_not_taken_over_until_it_is_over() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        live = house.give(first())
        await house.until(lambda: house.state() == "Running")
        house.give(second())
        await house.until(lambda: house.state("again") == "Stalled")
        said = house.condition("Stalled", "again")
        assert (said["reason"], "has not finished" in said["message"]) == ("OutputConflict", True)
        await house.until(lambda: house.phase(key(live)) is RunPhase.ENDED)
        await house.until(lambda: house.state("again") == "Succeeded")

    play(scene)


def test_partial_results_of_a_run_that_may_come_back_are_kept() -> None:
    """Also once it has come back and is live, with its old manifest still standing."""

    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(first())
        await house.until(lambda: house.state() == "Running")
        house.kube.delete(ref())
        await house.until(lambda: house.phase(key(body)) is RunPhase.PARKED)
        house.give(second())
        await house.until(lambda: house.state("again") == "Stalled")
        said = house.condition("Stalled", "again")
        assert (said["reason"], "created again" in said["message"]) == ("OutputConflict", True)
        assert owner(house) == "triage"
        house.give(first())
        await house.until(lambda: house.state() == "Running")
        await house.pass_time(90)
        assert owner(house) == "triage"
        assert house.state("again") == "Stalled"
        await house.until(lambda: house.state("again") == "Succeeded")

    play(scene)


@pytest.mark.parametrize("partial", [False, True])
def test_without_a_journal_the_manifest_says_whether_the_run_is_over(partial: bool) -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(first())
        await house.until(lambda: house.state() == "Running")
        if partial:
            house.kube.delete(ref())
        wanted = RunPhase.PARKED if partial else RunPhase.ENDED
        await house.until(lambda: house.phase(key(body)) is wanted)
        house.journals.lose(key(body))
        house.give(second())
        state = "Stalled" if partial else "Succeeded"
        await house.until(lambda: house.state("again") == state)
        await house.pass_time(60)
        assert owner(house) == ("triage" if partial else "again")

    play(scene)


def test_a_policy_that_is_withdrawn_takes_nothing() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        ended = house.give(first())
        await house.until(lambda: house.phase(key(ended)) is RunPhase.ENDED)
        house.give(job("again").writing(PLACE))
        await house.until(lambda: house.state("again") == "Stalled")
        assert "outputPolicy: Replace" in house.condition("Stalled", "again")["message"]
        assert owner(house) == "triage"
        house.kube.edit_spec(ref("again"), outputPolicy="Replace")
        await house.until(lambda: house.state("again") == "Succeeded")
        assert owner(house) == "again"

    play(scene)


def test_a_journal_of_a_newer_operator_is_no_end() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        ended = house.give(first())
        await house.until(lambda: house.phase(key(ended)) is RunPhase.ENDED)
        house.journals.put_raw(key(ended), {"schema": 99})
        house.give(second())
        await house.until(lambda: house.state("again") == "Stalled")
        assert owner(house) == "triage"

    play(scene)

"""Receipts of ended runs: kept for ever, or as long as is set and while an object is there."""

from __future__ import annotations

from batchinference.core.begin import key_of
from batchinference.model.job import parse_job
from batchinference.model.run import RunPhase
from builders import job
from runtime.house import House, play, ref

KEPT_S = 3600.0


async def finished(house: House) -> str:
    """The key of a run that has ended, with its object still there."""
    body = house.give(job())
    key = key_of(parse_job(body))
    await house.until(lambda: house.phase(key) is RunPhase.ENDED)
    return key


def test_a_receipt_goes_after_its_retention_once_no_object_is_left() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await finished(house)
        await house.pass_time(2 * KEPT_S)
        assert house.phase(key) is RunPhase.ENDED, "the object is there"
        house.kube.delete(ref())
        await house.until(lambda: house.phase(key) is None)

    play(scene, receipts_kept_s=KEPT_S)


def test_a_young_receipt_keeps_its_run_from_being_paid_for_again() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await finished(house)
        house.kube.delete(ref())
        await house.pass_time(KEPT_S / 2)
        assert house.phase(key) is RunPhase.ENDED
        house.kube.create(job().build())
        await house.until(lambda: house.state() == "Succeeded")
        assert len(house.server.batches) == 1

    play(scene, receipts_kept_s=KEPT_S)


def test_receipts_are_kept_for_ever_where_nothing_is_set() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await finished(house)
        house.kube.delete(ref())
        await house.pass_time(4 * KEPT_S)
        assert house.phase(key) is RunPhase.ENDED

    play(scene)


def forget_old_batches(house: House) -> None:
    """More than the days have passed that a provider lists."""
    house.server.batches.clear()


def test_a_deadline_is_an_end_also_once_the_receipt_is_gone() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job().with_spec(activeDeadlineSeconds=120))
        key = key_of(parse_job(body))
        await house.until(lambda: house.state() == "Failed")
        house.kube.delete(ref())
        await house.until(lambda: house.phase(key) is None, 2 * KEPT_S)
        made = house.server.calls["create"]
        house.kube.create(job().with_spec(activeDeadlineSeconds=120).build())
        await house.until(lambda: house.state() == "Failed")
        assert house.server.calls["create"] == made

    play(scene, receipts_kept_s=KEPT_S)


def test_the_receipt_of_a_run_that_could_be_taken_up_stays() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job())
        key = key_of(parse_job(body))
        await house.until(lambda: house.state() == "Running")
        house.kube.delete(ref())
        await house.until(lambda: house.phase(key) is RunPhase.ENDED)
        await house.pass_time(3 * KEPT_S)
        assert house.phase(key) is RunPhase.ENDED

    play(scene, receipts_kept_s=KEPT_S, parked_s=600.0)


def test_a_manifest_of_a_run_that_may_go_on_says_that_it_had_submitted() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job())
        key = key_of(parse_job(body))
        await house.until(lambda: house.state() == "Running")
        house.kube.delete(ref())
        await house.until(lambda: house.phase(key) is RunPhase.ENDED)
        house.journals.lose(key)
        forget_old_batches(house)
        made = house.server.calls["create"]
        house.kube.create(job().build())
        await house.until(lambda: house.condition("Stalled").get("reason") == "JournalLost")
        await house.pass_time(KEPT_S)
        assert house.server.calls["create"] == made

    play(scene, parked_s=600.0)

"""A provider without room: the run waits for a day, pays nothing, and leaves nothing behind."""

from __future__ import annotations

from itertools import pairwise

from builders import job
from fakes.server import Fate, Habits
from runtime.house import House, play

DAY_S = 86_400.0


def test_a_quota_that_fails_every_batch_for_a_day_neither_stalls_nor_litters() -> None:
    async def scene(house: House) -> None:
        body = house.give(job())
        await house.operator()
        await house.until(lambda: len(house.server.batches) > 2)
        await house.pass_time(DAY_S)
        tries = list(house.server.batches.values())
        assert len(tries) > 90
        gaps = [
            (later.committed_at - earlier.committed_at).total_seconds()
            for earlier, later in pairwise(tries)
        ]
        assert gaps[0] < gaps[1] < gaps[2], "it waits longer each time"
        assert max(gaps) < 1000, "and not for ever"
        run = house.run(body)
        assert run is not None
        (shard,) = run.shards
        assert shard.submissions[-1].ordinal == len(tries)
        assert (shard.attempt, len(shard.submissions) < 5) == (1, True)
        left = [f for f in house.server.files.values() if f.deleted_at is None]
        assert len(left) <= 1, "no input is left behind"
        stalled, submitted = house.condition("Stalled"), house.condition("Submitted")
        assert (stalled["status"], stalled["reason"]) == ("False", "QuotaWait"), "nobody need act"
        assert (house.state(), submitted["status"]) == ("Queued", "True")
        assert "no quota left for 1 of the shards" in submitted["message"]
        assert [e.reason for e in house.recorder.events].count("QuotaWait") == 1
        house.server.habits = Habits(validate_s=10, work_s=60)
        await house.until(lambda: house.state() == "Succeeded")

    play(scene, habits=Habits(validate_s=10, fates=((Fate.QUOTA, 1.0),)))


HOUR_S = 3600.0


def test_not_every_job_has_to_be_refused_for_itself() -> None:
    async def scene(house: House) -> None:
        for number in range(30):
            house.give(job(f"job-{number}"))
        await house.operator()
        await house.pass_time(HOUR_S)
        assert len(house.server.batches) < 40, "each by itself would have made two hundred"
        first = house.server.batches.copy()
        house.server.habits = Habits(validate_s=10, work_s=60)
        await house.until(lambda: len(house.server.batches) - len(first) >= 30, 4 * HOUR_S)
        await house.until(lambda: all(house.state(f"job-{n}") == "Succeeded" for n in range(30)))

    play(scene, habits=Habits(validate_s=10, fates=((Fate.QUOTA, 1.0),)))


def test_refusals_teach_nothing_where_that_is_switched_off() -> None:
    async def scene(house: House) -> None:
        for number in range(5):
            house.give(job(f"job-{number}"))
        life = await house.operator()
        await house.until(lambda: len(house.server.batches) >= 15)
        assert life.operator.alive()

    fates = ((Fate.QUOTA, 1.0),)
    play(scene, habits=Habits(validate_s=10, fates=fates), quota_recover_s=0.0)


def test_a_model_without_room_holds_up_no_other() -> None:
    async def scene(house: House) -> None:
        for number in range(5):
            house.give(job(f"full-{number}"))
        await house.operator()
        await house.until(lambda: len(house.server.batches) >= 3)
        house.server.habits = Habits(validate_s=10, work_s=60)
        house.give(job("other").with_spec(model="another-model"))
        await house.until(lambda: house.state("other") == "Succeeded", 300)

    play(scene, habits=Habits(validate_s=10, fates=((Fate.QUOTA, 1.0),)))


def test_a_job_above_a_limit_queues_and_says_which() -> None:
    async def scene(house: House) -> None:
        house.limit({"maxActiveBatches": 1})
        await house.operator()
        house.give(job("first"))
        await house.until(lambda: house.state("first") == "Running")
        house.give(job("second"))
        await house.until(lambda: house.state("second") == "Queued")
        submitted = house.condition("Submitted", "second")
        assert submitted["reason"] == "Queued"
        assert "waits for a place at the provider within maxActiveBatches 1" in submitted["message"]
        told = [e.message for e in house.recorder.events if e.about.name == "second"]
        assert any("maxActiveBatches" in message for message in told)
        await house.until(lambda: house.state("second") == "Succeeded")

    play(scene)

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

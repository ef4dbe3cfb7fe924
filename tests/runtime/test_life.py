"""The life of one small job: what is written on its way, and how often."""

from __future__ import annotations

from builders import job
from runtime.house import House, play


def test_a_small_job_runs_to_its_end() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)

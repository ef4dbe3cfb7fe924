"""What becomes of a run when its object loses its finalizer, changes, or cannot be read."""

from __future__ import annotations

from batchinference.runtime.store import FINALIZER
from builders import job
from runtime.house import House, play, ref


def test_a_stripped_finalizer_stops_neither_following_nor_finishing() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.refuses_finalizers = True
        house.kube.strip_finalizers(ref())
        await house.until(lambda: house.condition("Stalled").get("reason") == "AccessDenied")
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_spec_that_changes_under_a_running_job_is_said_and_heals() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), model="another")
        await house.until(lambda: house.condition("Stalled").get("reason") == "SpecChanged")
        house.kube.edit_spec(ref(), model="gpt-4.1-mini")
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), model="another")
        await house.until(lambda: house.state() == "Succeeded")
        assert FINALIZER not in (house.job() or {})["metadata"]["finalizers"]

    play(scene)

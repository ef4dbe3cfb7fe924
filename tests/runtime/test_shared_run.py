"""Several live objects of one run: the oldest steers, the others mirror it (protocol 7.5)."""

from __future__ import annotations

from dataclasses import replace

from builders import JobBuilder, job
from runtime.house import HABITS, House, play, ref

SLOW = replace(HABITS, work_s=3000)


def twin(name: str) -> JobBuilder:
    """One of several objects that were generated from the same manifest."""
    made = job("triage").run_id("once").build()["spec"]
    return replace(job(name), metadata={"generateName": "triage-"}, spec=made)


async def two(house: House) -> None:
    await house.operator()
    house.give(twin("one"))
    house.workers.put_input("s3://data/ml/in/triage.jsonl", "triage", ["a", "b", "c"])
    await house.until(lambda: house.state("one") == "Running")
    await house.pass_time(1)
    house.kube.create(twin("two").build())
    await house.until(lambda: house.state("two") == "Running")


def submitted(house: House, name: str) -> tuple[str, str]:
    said = house.condition("Submitted", name)
    return str(said["status"]), str(said["reason"])


def cancels(house: House) -> int:
    return sum(len(batch.cancels) for batch in house.server.batches.values())


def test_the_others_mirror_the_oldest_and_say_so() -> None:
    async def scene(house: House) -> None:
        await two(house)
        assert submitted(house, "one") == ("True", "SubmissionAccepted")
        assert submitted(house, "two") == ("True", "SharedRun")
        assert "ml/one" in house.condition("Submitted", "two")["message"]
        assert house.recorder.reasons().count("SharedRun") == 1
        await house.until(lambda: house.state("one") == house.state("two") == "Succeeded")
        for member in ("runKey", "completionTime", "requestCounts", "outputs"):
            assert house.status("one")[member] == house.status("two")[member]
        assert len(house.server.batches) == 1

    play(scene, habits=SLOW)


def test_what_is_changed_on_a_mirror_has_no_effect() -> None:
    async def scene(house: House) -> None:
        await two(house)
        house.kube.edit_spec(ref("two"), desiredState="Cancelled")
        await house.pass_time(120)
        assert cancels(house) == 0
        assert house.state("one") == house.state("two") == "Running"

    play(scene, habits=SLOW)


def test_deleting_a_mirror_cancels_nothing() -> None:
    async def scene(house: House) -> None:
        await two(house)
        house.kube.delete(ref("two"))
        await house.until(lambda: house.job("two") is None, patience_s=10)
        await house.until(lambda: house.state("one") == "Succeeded")
        assert (cancels(house), len(house.server.batches)) == (0, 1)

    play(scene, habits=SLOW)


def test_when_the_steering_one_is_deleted_the_next_takes_over() -> None:
    async def scene(house: House) -> None:
        await two(house)
        house.kube.delete(ref("one"))
        await house.until(lambda: house.job("one") is None, patience_s=10)
        await house.until(lambda: submitted(house, "two") == ("True", "AdoptedPreviousRun"))
        finalizers = (house.job("two") or {})["metadata"]["finalizers"]
        assert finalizers, "it answers for the batches now"
        await house.until(lambda: house.state("two") == "Succeeded")
        assert (cancels(house), len(house.server.batches)) == (0, 1)

    play(scene, habits=SLOW)


def test_deleting_all_of_them_cancels() -> None:
    async def scene(house: House) -> None:
        await two(house)
        house.kube.delete(ref("one"))
        house.kube.delete(ref("two"))
        await house.until(lambda: house.job("one") is None and house.job("two") is None)
        assert cancels(house) == 1

    play(scene, habits=SLOW)


def test_a_steering_object_that_goes_unseen_is_followed_by_the_next() -> None:
    async def scene(house: House) -> None:
        await two(house)
        house.kube.strip_finalizers(ref("one"))
        for life in list(house.lives):
            house.kube.break_watches(life.process)
        house.kube.delete(ref("one"))
        house.kube.mend_watches()
        await house.until(lambda: submitted(house, "two")[1] == "AdoptedPreviousRun")
        await house.until(lambda: house.state("two") == "Succeeded")
        assert (cancels(house), len(house.server.batches)) == (0, 1)

    play(scene, habits=SLOW)


def test_the_next_operator_sees_the_same_one_steer() -> None:
    async def scene(house: House) -> None:
        await two(house)
        for life in list(house.lives):
            await house.die(life)
        await house.operator()
        await house.pass_time(60)
        assert submitted(house, "one")[1] == "SubmissionAccepted"
        assert submitted(house, "two")[1] == "SharedRun"
        assert house.recorder.reasons().count("SharedRun") == 1

    play(scene, habits=SLOW)

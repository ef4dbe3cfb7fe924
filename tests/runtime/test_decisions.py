"""Decisions of people about what nobody can find out, on jobs and on journals."""

from __future__ import annotations

import re
from typing import Any

import pytest

from batchinference.model.run import RunPhase, ShardState
from batchinference.ports import ObjectRef
from builders import job
from fakes.server import Habits
from runtime.house import House, play, ref

HABITS = Habits(validate_s=5, work_s=300, cancel_s=5, page_size=1)
PROVIDER = ObjectRef("InferenceProvider", "ml", "openai")


async def lose(house: House, **spec: Any) -> str:
    """A job whose create call was lost, at a provider whose listings can't tell; its run's key."""
    for name in ("one", "two"):  # listings have more than a page
        house.give(job(name))
        await house.until(lambda name=name: house.state(name) == "Running")
    house.faults.dropped = 1.0
    house.server.lists_partly = True
    body = house.give(job().with_spec(**spec))
    await house.until(lambda: stalled(house) == "OutcomeUnknown")
    house.faults.dropped = 0.0
    run = house.run(body)
    assert run is not None
    return run.key


def stalled(house: House) -> str:
    found = house.condition("Stalled")
    return str(found["reason"]) if found.get("status") == "True" else ""


def typed(house: House, name: str) -> dict[str, str]:
    """The annotation that the condition says to type."""
    text = house.condition("Stalled")["message"]
    command = re.search(rf"--overwrite (batchinference\.dev/{name})=([^`\s]+)", text)
    assert command is not None, text
    return {command[1]: command[2]}


def submissions(house: House, key: str) -> int:
    run = house.journals.peek(key)
    assert run is not None
    return sum(b.submission.tag == run.tag for b in house.server.batches.values())


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_not_accepted_goes_again_when_somebody_says_so(restarted: bool) -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        key = await lose(house)
        decision = typed(house, "resubmit")
        if restarted:
            await house.die(life)
            house.kube.annotate(ref(), **decision)
            life = await house.operator()
        else:
            await house.pass_time(300)
            assert stalled(house) == "OutcomeUnknown", "nobody guesses"
            house.kube.annotate(ref(), **decision)
        await house.until(lambda: house.state() == "Running", 120)
        assert house.shard(key).last.ordinal == 2
        await house.until(lambda: house.state() == "Succeeded")
        assert life.metrics.counters["decisions_total"] == 1
        assert submissions(house, key) == 1
        assert "DecidedByAnnotation" in house.recorder.reasons()

    play(scene, habits=HABITS)


def test_what_is_given_up_ends_as_lost_and_is_not_sent_again() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await lose(house)
        house.kube.annotate(ref(), **typed(house, "give-up"))
        await house.until(lambda: house.state() == "Failed", 120)
        results = house.workers.results("s3://data/ml/out/triage/")
        assert [line["error"]["code"] for line in results] == ["AnswerLost"] * 3
        assert "decided" in results[0]["error"]["message"]
        assert submissions(house, key) == 0

    play(scene, habits=HABITS)


def test_a_value_that_names_nothing_is_told_and_changes_nothing() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        await lose(house)
        house.kube.annotate(ref(), **{"batchinference.dev/resubmit": "0/1"})
        await house.until(lambda: "DecisionIgnored" in house.recorder.reasons(), 60)
        await house.pass_time(300)
        assert stalled(house) == "OutcomeUnknown"
        assert life.metrics.counters["decisions_total"] == 1

    play(scene, habits=HABITS)


def test_a_run_without_an_object_is_decided_on_its_journal() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        key = await lose(house)
        (value,) = typed(house, "give-up").values()
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None, 130)
        await house.pass_time(300)
        assert house.shard(key).state is ShardState.UNKNOWN
        house.journals.annotate(key, **{"batchinference.dev/give-up": value})
        await house.until(lambda: house.phase(key) is RunPhase.ENDED, 120)
        assert life.metrics.counters["decisions_total"] == 1
        assert house.workers.results("s3://data/ml/out/triage/") is not None

    play(scene, habits=HABITS)


def test_the_policy_of_the_provider_object_settles_it_without_anybody() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await lose(house)
        house.kube.edit_spec(PROVIDER, unknownOutcomePolicy="Resubmit")
        await house.until(lambda: house.state() == "Running", 120)
        assert submissions(house, key) == 1
        await house.until(lambda: house.state() == "Succeeded")

    play(scene, habits=HABITS)


def test_a_batch_that_the_provider_denies_for_good_can_be_given_up() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job().tolerating(percent=100))
        await house.until(lambda: house.state() == "Running")
        (batch,) = house.server.batches.values()
        batch.vanishes_at = house.clock.now()
        await house.until(lambda: stalled(house) == "BatchNotFound")
        house.kube.annotate(ref(), **typed(house, "give-up"))
        await house.until(lambda: house.state() == "Succeeded", 300)
        run = house.run(body)
        assert run is not None
        assert run.results is not None
        assert run.results.failed == 3

    play(scene, habits=HABITS)

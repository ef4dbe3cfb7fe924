"""What Events say while a job gets on."""

from __future__ import annotations

from dataclasses import replace

from batchinference.core.notes import Notes
from batchinference.core.view import Scene, status_of
from batchinference.model.job import parse_job
from batchinference.model.run import RunPhase
from batchinference.runtime.settings import RuntimeSettings
from batchinference.runtime.showing import _event
from builders import START, job, run_of
from runtime.house import House, play, ref


def test_the_end_of_a_job_is_told_in_the_words_of_its_condition() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        told = {event.reason: event.message for event in house.recorder.events}
        assert told["Running"] == "0/3"
        assert told["Succeeded"] == "3 of 3 records were answered"

    play(scene)


def test_an_event_of_a_job_without_numbers_says_more_than_its_state() -> None:
    run = replace(run_of(shards=0), phase=RunPhase.STAGING)
    seen = parse_job(job().build())
    status = status_of(Scene(seen, run, Notes(), None, False, START, RuntimeSettings()))
    event = _event(ref(), status)
    assert event.reason == "Staging"
    assert event.message == "The input is being read, checked and split"

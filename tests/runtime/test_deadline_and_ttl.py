"""Deadlines and times to live, on the loop."""

from __future__ import annotations

from typing import Any

import pytest

from batchinference.model.run import RunPhase
from builders import JobBuilder, job
from fakes.server import Habits
from runtime.house import House, play, ref

LIMITED = job().with_spec(activeDeadlineSeconds=300)
EPHEMERAL = job().with_spec(ttlSecondsAfterFinished=600)


def reason(house: House) -> str:
    return str(house.condition("Failed").get("reason", ""))


def cancels(house: House) -> int:
    return sum(len(batch.cancels) for batch in house.server.batches.values())


def submissions(house: House) -> int:
    return len(house.server.batches)


# ---------------------------------------------------------------- deadline


def test_a_run_is_cancelled_at_its_deadline_and_keeps_what_was_paid_for() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(LIMITED)
        await house.until(lambda: house.state() == "Running")
        await house.until(lambda: house.state() == "Failed", 400)
        assert reason(house) == "DeadlineExceeded"
        assert 300 <= house.clock.elapsed() < 360, "it wakes by itself"
        assert cancels(house) == 1
        results = house.workers.results("s3://data/ml/out/triage/")
        assert 0 < sum(line["error"] is None for line in results) < 3, "some were answered by then"
        await house.until(lambda: house.run(body).phase is RunPhase.ENDED)
        house.kube.delete(ref())
        house.kube.create(LIMITED.with_spec(activeDeadlineSeconds=9000).build())
        await house.until(lambda: house.state() == "Failed")
        assert reason(house) == "DeadlineExceeded", "it is final, for the next object too"
        assert submissions(house) == 1

    play(scene)


def test_a_deadline_that_is_raised_in_time_and_lowered_again_counts_as_it_stands() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(LIMITED)
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), activeDeadlineSeconds=5000)
        await house.pass_time(320)
        assert house.state() == "Running"
        house.kube.edit_spec(ref(), activeDeadlineSeconds=330)
        await house.until(lambda: house.state() == "Failed", 60)
        assert reason(house) == "DeadlineExceeded"

    play(scene)


def test_a_restarted_operator_waits_for_the_object_before_it_believes_a_deadline() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(LIMITED)
        await house.until(lambda: house.state() == "Running")
        await house.die(life)
        house.kube.edit_spec(ref(), activeDeadlineSeconds=5000)
        await house.pass_time(320)
        life = await house.operator(watching=False)
        await house.pass_time(30)
        assert cancels(house) == 0, "the journal has the spec as it was"
        house.kube.watch(life.process, life.operator.observe)
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_time_before_the_release_of_a_suspended_job_does_not_count() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(LIMITED.suspended())
        await house.pass_time(1000)
        assert house.state() == "Suspended"
        house.kube.edit_spec(ref(), suspend=False)
        await house.until(lambda: house.state() == "Running")
        await house.until(lambda: house.state() == "Failed", 400)
        assert reason(house) == "DeadlineExceeded"

    play(scene)


def test_an_unsubmitted_run_ends_at_its_deadline_and_the_next_object_starts_afresh() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.kube.create(LIMITED.build())  # its input is not there
        await house.until(lambda: house.state() == "Failed", 400)
        assert reason(house) == "DeadlineExceeded"
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None)
        house.give(LIMITED.with_spec(activeDeadlineSeconds=2000))
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_job_that_is_deleted_after_its_deadline_stays_failed() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(LIMITED)
        await house.until(lambda: house.state() == "Cancelling", 400)
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None, 130)
        await house.until(lambda: house.run(body).phase is RunPhase.ENDED)
        verdict = house.run(body).verdict
        assert verdict is not None
        assert verdict.reason == "DeadlineExceeded"

    play(scene)


def test_an_orphaned_run_has_no_deadline_any_more() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(LIMITED.orphaning())
        await house.until(lambda: house.state() == "Running")
        house.kube.delete(ref())
        await house.until(lambda: house.run(body).phase is RunPhase.ENDED)
        assert cancels(house) == 0
        assert house.run(body).verdict.ending.value == "Succeeded"

    play(scene)


# ---------------------------------------------------------------- time to live


async def finish(house: House, builder: JobBuilder = EPHEMERAL) -> dict[str, Any]:
    body = house.give(builder)
    await house.until(lambda: house.state() == "Succeeded")
    return body


@pytest.mark.parametrize("restarted", [False, True])
def test_the_object_of_a_finished_run_goes_when_its_time_has_come(restarted: bool) -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        body = await finish(house)
        ended = house.clock.elapsed()
        if restarted:
            await house.die(life)
            life = await house.operator()
        await house.until(lambda: house.job() is None, 700)
        assert 600 <= house.clock.elapsed() - ended < 610
        run = house.run(body)
        assert run is not None
        assert run.phase is RunPhase.ENDED, "its receipt stays"
        assert house.workers.results("s3://data/ml/out/triage/"), "and its results"
        assert life.metrics.counters["expired_jobs_total"] == 1
        assert "WillBeRecreated" not in house.recorder.reasons()

    play(scene)


def test_an_object_that_comes_back_stays_for_as_long_again_and_pays_nothing() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        argo = {"annotations": {"argocd.argoproj.io/tracking-id": "app:b/j:ml/triage"}}
        managed = JobBuilder(spec=EPHEMERAL.spec, metadata=argo)
        await finish(house, managed)
        assert house.recorder.reasons().count("WillBeRecreated") == 1
        await house.until(lambda: house.job() is None, 700)
        house.kube.create(managed.build())
        back = house.clock.elapsed()
        await house.until(lambda: house.state() == "Succeeded")
        await house.until(lambda: house.job() is None, 700)
        assert house.clock.elapsed() - back >= 600
        assert submissions(house) == 1

    play(scene)


def test_a_time_to_live_may_be_set_taken_away_and_shortened_after_the_end() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await finish(house)
        house.kube.edit_spec(ref(), ttlSecondsAfterFinished=None)
        await house.pass_time(1000)
        assert house.state() == "Succeeded"
        house.kube.edit_spec(ref(), ttlSecondsAfterFinished=0)
        await house.until(lambda: house.job() is None, 30)

    play(scene)


def test_an_object_without_a_receipt_is_kept_since_it_alone_knows_of_the_run() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = await finish(house)
        run = house.run(body)
        assert run is not None
        await house.until(lambda: house.run(body).phase is RunPhase.ENDED)
        house.journals.lose(run.key)
        await house.pass_time(1500)
        assert house.state() == "Succeeded"

    play(scene)


def test_an_object_that_another_installation_shows_is_left_to_it() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        await finish(house)
        await house.die(life)
        await house.kube.patch_status(ref(), {"installation": "another"}, "")
        await house.operator()
        await house.pass_time(1500)
        assert house.job() is not None

    play(scene)


def test_an_object_that_changes_in_the_last_moment_is_looked_at_again() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await finish(house)
        house.kube.break_watches()
        house.kube.annotate(ref(), note="mine")
        await house.pass_time(700)
        assert house.job() is not None, "it is not the object that was decided about"
        house.kube.mend_watches()
        await house.until(lambda: house.job() is None, 60)

    play(scene)


# ---------------------------------------------------------------- pause

PAUSED = {"batchinference.dev/paused": "true"}
PROVIDER = ("InferenceProvider", "ml", "openai")


def test_a_paused_job_begins_nothing_and_says_so() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(JobBuilder(metadata={"annotations": PAUSED}))
        await house.until(lambda: house.state() == "Suspended")
        assert house.condition("Suspended")["reason"] == "Paused"
        await house.pass_time(300)
        assert not house.journals.stored
        house.kube.annotate(ref(), **{"batchinference.dev/paused": "false"})
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_what_a_paused_job_has_at_the_provider_goes_on_and_neither_ends_nor_expires() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        builder = job().with_spec(activeDeadlineSeconds=100, ttlSecondsAfterFinished=0)
        house.give(builder)
        await house.until(lambda: house.state() == "Running")
        house.kube.annotate(ref(), **PAUSED)
        house.kube.edit_spec(ref(), desiredState="Cancelled")
        await house.until(lambda: house.condition("Suspended").get("reason") == "Paused")
        await house.until(lambda: house.state() == "Succeeded")
        assert cancels(house) == 0
        await house.pass_time(300)
        assert house.job() is not None
        house.kube.annotate(ref(), **{"batchinference.dev/paused": ""})
        await house.until(lambda: house.job() is None, 60)

    play(scene, habits=Habits(validate_s=5, work_s=300, cancel_s=5))


def test_deleting_a_paused_job_ends_the_pause() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.annotate(ref(), **PAUSED)
        await house.pass_time(5)
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None, 10)
        assert cancels(house) == 1

    play(scene)


def test_a_paused_provider_object_holds_what_is_not_submitted_of_every_job() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job("one"))
        await house.until(lambda: house.state("one") == "Running")
        provider = ref()
        provider = type(provider)(*PROVIDER)
        house.kube.annotate(provider, **PAUSED)
        await house.until(lambda: house.condition("Suspended", "one").get("reason") == "Paused")
        house.give(job("two"))
        await house.until(lambda: house.condition("Suspended", "two").get("reason") == "Paused")
        assert house.state("two") == "Suspended"
        assert submissions(house) == 1
        assert "paused" in house.kube.find(*PROVIDER)["status"]["conditions"][0]["message"]
        await house.until(lambda: house.state("one") == "Succeeded")
        await house.pass_time(300)
        assert submissions(house) == 1
        house.kube.annotate(provider, **{"batchinference.dev/paused": "no"})
        await house.until(lambda: house.state("two") == "Running", 60)

    play(scene)

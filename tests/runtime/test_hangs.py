"""Waits that a person must hear of, and that end by themselves when their cause goes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchinference.core.begin import key_of
from batchinference.model.codec import encode
from batchinference.model.job import parse_job
from batchinference.model.run import RunPhase
from batchinference.model.run import ShardState as S
from batchinference.model.work import FaultKind, TaskFault, TaskKind
from batchinference.ports import ObjectRef
from builders import job, openai_provider
from fakes.server import Habits
from runtime.house import House, play, ref


def limit_records(house: House, records: int, **limits: int) -> None:
    """Have a batch hold no more; two of them at a time."""
    limits = {"maxRecordsPerBatch": records, "maxActiveBatches": 2, **limits}
    house.kube.edit_spec(ObjectRef("InferenceProvider", "ml", "openai"), limits=limits)


def stalled(house: House) -> str:
    found = house.condition("Stalled")
    return str(found["reason"]) if found.get("status") == "True" else ""


def test_a_key_that_is_revoked_while_everything_is_at_the_provider_is_told_and_heals() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.server.locked_out = True
        await house.until(lambda: stalled(house) == "CredentialsRejected", 300)
        house.server.locked_out = False
        await house.until(lambda: stalled(house) == "", 600)
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_provider_that_is_away_for_minutes_does_not_stall_what_it_has() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.server.outage = True
        await house.pass_time(600)
        assert stalled(house) == ""
        await house.until(lambda: stalled(house) == "ProviderUnavailable", 1800)
        house.server.outage = False
        await house.until(lambda: house.state() == "Succeeded")

    play(scene, unreachable_s=1200.0)


async def with_full_journal(house: House) -> dict[str, Any]:
    """A job with two of its four batches at the provider, whose journal can't grow any more."""
    limit_records(house, 1)
    await house.operator()
    body = house.give(job(), records=4)
    await house.until(lambda: len(house.server.batches) == 2)
    run = house.run(body)
    assert run is not None
    house.journals.max_bytes = len(json.dumps(encode(run)))
    await house.until(lambda: stalled(house) == "JournalTooLarge")
    return body


def test_a_journal_that_outgrows_its_limit_keeps_what_happened_and_submits_no_more() -> None:
    async def scene(house: House) -> None:
        body = await with_full_journal(house)
        assert "desiredState: Cancelled" in house.condition("Stalled")["message"]
        await house.pass_time(1800)
        run = house.run(body)
        assert run is not None
        states = [shard.state for shard in run.shards]
        assert states == [S.COLLECTED, S.COLLECTED, S.QUEUED, S.QUEUED]
        assert len(house.server.batches) == 2
        house.kube.edit_spec(ref(), desiredState="Cancelled")
        await house.until(lambda: house.state() == "Cancelled")
        assert house.status()["requestCounts"]["completed"] == 2

    play(scene)


def test_a_journal_that_can_grow_again_goes_on() -> None:
    async def scene(house: House) -> None:
        await with_full_journal(house)
        house.journals.max_bytes *= 10
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_journal_that_is_too_large_before_anything_is_submitted_ends_the_run() -> None:
    async def scene(house: House) -> None:
        limit_records(house, 1)
        house.journals.max_bytes = 3_000
        await house.operator()
        body = house.give(job(), records=30)
        await house.until(lambda: house.state() == "Failed")
        assert house.condition("Failed")["reason"] == "JournalTooLarge"
        await house.until(lambda: house.phase(key_of(parse_job(body))) is RunPhase.ENDED)
        assert house.server.batches == {}

    play(scene)


@pytest.mark.parametrize("names_limit", [True, False])
def test_batches_that_are_too_large_are_cut_until_the_provider_takes_them(names_limit) -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job().tolerating(percent=100), records=11)
        await house.until(lambda: house.state() == "Succeeded")
        run = house.run(body)
        assert run is not None
        assert run.results is not None
        assert (run.results.completed, run.results.failed) == (11, 0)
        taken = [b for b in house.server.batches.values() if not b.failed_in_validation()]
        assert max(len(b.rows) for b in taken) <= 3
        assert sum(len(b.rows) for b in taken) == 11

    habits = Habits(validate_s=5, work_s=60, most_rows=3, names_limit=names_limit)
    play(scene, habits=habits)


def test_the_clean_up_of_a_run_that_never_submitted_ends_without_its_bucket() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        no_bucket = TaskFault(FaultKind.STALLED, "BucketNotFound", "There is no bucket 'data'")
        life.refused |= {TaskKind.ADMIT: no_bucket, TaskKind.RELEASE: no_bucket}
        key = key_of(parse_job(house.give(job())))
        await house.until(lambda: stalled(house) == "BucketNotFound")
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None, 30)
        await house.until(lambda: house.phase(key) is RunPhase.ENDED, 600)
        said = [e.message for e in house.recorder.events if e.reason == "BucketNotFound"]
        assert any("Gave up removing" in message for message in said)

    play(scene)


def test_a_run_that_follows_its_provider_leaves_no_claim_behind() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        no_bucket = TaskFault(FaultKind.STALLED, "BucketNotFound", "There is no bucket 'staging'")
        life.refused[TaskKind.STAGE] = no_bucket
        house.give(job())
        await house.until(lambda: stalled(house) == "BucketNotFound")
        claim = "s3://data/ml/out/triage/_run.json"
        assert claim in house.workers.store.objects
        life.refused[TaskKind.ADMIT] = no_bucket  # so that the place is not claimed anew
        storage = openai_provider()["spec"]["storage"]
        there = {**storage, "stagingURI": "s3://mended/ml/"}
        house.kube.edit_spec(ObjectRef("InferenceProvider", "ml", "openai"), storage=there)
        await house.until(lambda: claim not in house.workers.store.objects, 300)
        life.refused.clear()
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


async def deleted_in_an_outage(house: House) -> dict[str, Any]:
    """A job that went with its batch at the provider, whose cancel nobody took; and no operator."""
    life = await house.operator()
    body = house.give(job())
    await house.until(lambda: house.state() == "Running")
    house.server.outage = True
    house.kube.delete(ref())
    await house.until(lambda: house.job() is None, 600)
    await house.die(life)
    house.server.outage = False
    return body


def test_a_deleted_job_whose_secret_went_with_it_is_told_and_ends_when_its_answers_are_gone() -> (
    None
):
    async def scene(house: House) -> None:
        body = await deleted_in_an_outage(house)
        key = key_of(parse_job(body))
        secret = house.kube.secrets.pop(("ml", "openai"))
        life = await house.operator()
        await house.until(lambda: life.metrics.gauges["runs_without_credentials", ()] == 1, 600)
        house.kube.secrets["ml", "openai"] = secret
        await house.until(lambda: life.metrics.gauges["runs_without_credentials", ()] == 0, 600)
        await house.until(lambda: house.phase(key) is RunPhase.PARKED)

    play(scene)


def test_the_answers_of_a_job_without_object_and_secret_are_given_up_in_the_end() -> None:
    async def scene(house: House) -> None:
        body = await deleted_in_an_outage(house)
        key = key_of(parse_job(body))
        house.kube.secrets.pop(("ml", "openai"))
        await house.operator()
        await house.until(lambda: house.phase(key) is RunPhase.ENDED, 30 * 3600)
        run = house.run(body)
        assert run is not None
        assert run.verdict is not None
        assert run.verdict.reason == "CredentialsGone"
        told = [e.message for e in house.recorder.events if e.reason == "CredentialsGone"]
        assert len(told) == 3, "while there was hope, at the end, and what is left"

    play(scene, answers_kept_s=3600.0, cleaning_s=600.0)

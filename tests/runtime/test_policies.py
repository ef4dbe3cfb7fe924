"""Fields that may change while a job runs, and what they do to each other."""

from __future__ import annotations

from batchinference.model.run import RunPhase, ShardState
from batchinference.ports import ObjectRef
from builders import JobBuilder, job
from fakes.server import Fate, Habits
from runtime.house import House, play, ref

PROVIDER = ObjectRef("InferenceProvider", "ml", "openai")
ONE_AT_A_TIME = {"maxActiveBatches": 1, "maxRecordsPerBatch": 2, "minRecordsPerBatch": 1}


def cancels(house: House) -> int:
    return sum(len(batch.cancels) for batch in house.server.batches.values())


def submissions(house: House) -> int:
    return len(house.server.batches)


async def two_shards(house: House, builder: JobBuilder) -> str:
    """A job of two shards, one at the provider and one queued; its run's key."""
    house.kube.edit_spec(PROVIDER, limits=ONE_AT_A_TIME)
    await house.pass_time(5)
    body = house.give(builder, records=4)
    await house.until(lambda: house.state() == "Running")
    run = house.run(body)
    assert run is not None
    assert sorted(s.state for s in run.shards) == [ShardState.QUEUED, ShardState.SUBMITTED]
    return run.key


# ---------------------------------------------------------------- suspend


def test_a_job_that_is_suspended_while_it_is_staged_stops_and_begins_where_it_was() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = house.give(job())
        await house.until(lambda: house.run(body) and house.run(body).phase is RunPhase.STAGING)
        house.kube.edit_spec(ref(), suspend=True)
        await house.until(lambda: house.state() == "Suspended")
        await house.pass_time(300)
        assert submissions(house) == 0
        house.kube.edit_spec(ref(), suspend=False)
        await house.until(lambda: house.state() == "Succeeded")
        assert submissions(house) == 1

    play(scene, latency_s=5.0)


def test_a_suspended_job_keeps_its_batch_and_holds_the_rest_and_says_why() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await two_shards(house, job())
        house.kube.edit_spec(ref(), suspend=True)
        await house.until(lambda: house.condition("Suspended")["reason"] == "AlreadySubmitted")
        assert house.condition("Suspended")["status"] == "False"
        await house.pass_time(1200)
        run = house.journals.peek(key)
        assert [s.state for s in run.shards] == [ShardState.COLLECTED, ShardState.QUEUED]
        assert (submissions(house), cancels(house)) == (1, 0)
        house.kube.edit_spec(ref(), suspend=False)
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_suspended_job_that_is_deleted_is_cancelled_and_goes_on_when_it_is_back() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await two_shards(house, job())
        house.kube.edit_spec(ref(), suspend=True)
        await house.pass_time(5)
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None, 30)
        assert cancels(house) == 1
        await house.until(lambda: house.phase(key) is RunPhase.PARKED)
        house.kube.create(job().suspended().build())
        await house.until(lambda: house.phase(key) is RunPhase.RUNNING)
        await house.pass_time(300)
        assert submissions(house) == 1, "it came back suspended"
        house.kube.edit_spec(ref(), suspend=False)
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


# ---------------------------------------------------------------- deletionPolicy


def test_an_orphaned_run_is_taken_over_by_the_object_that_comes_back() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await two_shards(house, job().orphaning())
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None, 10)
        await house.pass_time(60)
        assert cancels(house) == 0
        dropped = house.journals.peek(key).shards
        assert [s.state for s in dropped] == [ShardState.SUBMITTED, ShardState.DROPPED]
        house.kube.create(job().orphaning().build())
        await house.until(lambda: house.state() == "Succeeded")
        assert (submissions(house), cancels(house)) == (2, 0)

    play(scene)


def test_the_policy_may_change_until_the_job_is_deleted() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        key = await two_shards(house, job().orphaning())
        house.kube.edit_spec(ref(), deletionPolicy="Cancel")
        await house.pass_time(5)
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None, 30)
        assert cancels(house) == 1
        await house.until(lambda: house.phase(key) is RunPhase.PARKED)

    play(scene)


# ---------------------------------------------------------------- priority


def test_a_job_whose_priority_is_raised_while_it_is_queued_goes_first() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.kube.edit_spec(PROVIDER, limits={**ONE_AT_A_TIME, "maxRecordsPerBatch": 10})
        await house.pass_time(5)
        house.give(job("first"))
        await house.until(lambda: house.state("first") == "Running")
        house.give(job("second"))
        await house.until(lambda: house.state("second") == "Queued")
        house.give(job("third"))
        await house.until(lambda: house.state("third") == "Queued")
        house.kube.edit_spec(ref("third"), priority=10)
        await house.until(lambda: house.state("third") == "Running")
        assert house.state("second") == "Queued", "the older one waits"
        await house.until(lambda: house.state("second") == "Succeeded")

    play(scene)


# ---------------------------------------------------------------- retryPolicy, successPolicy


def test_what_was_not_billed_goes_again_pooled_until_the_attempts_are_used_up() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.kube.edit_spec(PROVIDER, limits={"maxRecordsPerBatch": 4, "minRecordsPerBatch": 1})
        await house.pass_time(5)
        body = house.give(job().attempts(2).tolerating(percent=100), records=8)
        await house.until(lambda: house.state() == "Succeeded")
        run = house.run(body)
        assert run is not None
        lines = house.workers.results(run.output.uri)
        codes = {line["error"]["code"] for line in lines if line["error"]}
        assert codes == {"BatchExpired"}
        sizes = [len(batch.rows) for batch in house.server.batches.values()]
        assert sizes[:2] == [4, 4]
        assert len(sizes) == 3, "one pooled shard of what both had left, and no third attempt"

    habits = Habits(validate_s=5, work_s=300, fates=((Fate.EXPIRE, 1.0),))
    play(scene, habits=habits)


def test_a_tolerance_that_is_raised_while_the_job_runs_counts_at_its_end() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job().attempts(1))
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), successPolicy={"maxFailedPercent": 100})
        await house.until(lambda: house.state() == "Succeeded")
        assert house.condition("Complete")["reason"] == "SucceededWithFailures"

    play(scene, habits=Habits(validate_s=5, work_s=300, fates=((Fate.EXPIRE, 1.0),)))

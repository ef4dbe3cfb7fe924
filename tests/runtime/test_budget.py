"""Budgets, on a whole operator: what stalls is healed by an edit, and nothing passes the limit."""

from __future__ import annotations

from typing import Any

from batchinference.model.run import RunPhase, ShardState
from batchinference.ports import ObjectRef
from builders import JobBuilder, job
from fakes.prices import price
from fakes.server import Fate, Habits
from runtime.house import House, play, ref

PROVIDER = ObjectRef("InferenceProvider", "ml", "openai")
MODEL = "gpt-4.1-mini"
A_TOKEN = price(batch_input="0", batch_output="1000000", live_input="0", live_output="2000000")
"""At which a token of an answer costs 1; every answer has 3 and may have 10."""

OWN = {
    "model": MODEL,
    "inputPerMillionTokens": "0",
    "outputPerMillionTokens": "2000000",
    "currency": "USD",
    "batchDiscountPercent": 50,
}
SMALL_BATCHES = {"maxRecordsPerBatch": 2, "minRecordsPerBatch": 1}


def bounded(name: str = "triage") -> JobBuilder:
    return job(name).with_spec(parameters={"maxOutputTokens": 10})


def cost(house: House) -> dict[str, Any]:
    return dict(house.status().get("cost") or {})


def submissions(house: House) -> int:
    return len(house.server.batches)


async def stalled(house: House, reason: str) -> str:
    """Wait until the job stalls for that; what it says."""
    await house.until(lambda: house.condition("Stalled").get("reason") == reason)
    assert house.state() == "Stalled"
    return str(house.condition("Stalled")["message"])


def test_a_budget_that_is_too_small_stalls_and_one_that_is_raised_goes_on() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        house.give(bounded().budget("29.99"))
        said = await stalled(house, "BudgetExceeded")
        assert "30.00 USD" in said
        assert cost(house) == {"currency": "USD", "estimated": "30.00"}
        await house.pass_time(2 * 3600)
        assert (submissions(house), house.server.files) == (0, {}), "nothing was even uploaded"
        house.kube.edit_spec(ref(), budget={"maxCost": "30.00"})
        await house.until(lambda: house.state() == "Succeeded")
        assert submissions(house) == 1
        assert cost(house) == {
            "currency": "USD", "estimated": "30.00", "actual": "9.00", "onDemand": "18.00",
        }  # fmt: skip

    play(scene)


def test_an_unknown_price_heals_when_the_provider_object_names_one() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(bounded().budget("30"))
        said = await stalled(house, "PriceUnknown")
        assert f"model '{MODEL}'" in said
        assert "`spec.pricing` of InferenceProvider 'openai'" in said
        assert cost(house) == {}
        house.kube.edit_spec(PROVIDER, pricing=[OWN])
        await house.until(lambda: house.state() == "Succeeded")
        assert cost(house)["actual"] == "9.00"

    play(scene)


def test_a_price_that_is_corrected_heals_a_budget_that_was_too_small() -> None:
    async def scene(house: House) -> None:
        house.kube.edit_spec(PROVIDER, pricing=[{**OWN, "outputPerMillionTokens": "20000000"}])
        await house.operator()
        house.give(bounded().budget("30"))
        assert "300.00" in await stalled(house, "BudgetExceeded")
        house.kube.edit_spec(PROVIDER, pricing=[OWN])
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_published_price_that_comes_up_is_noticed_without_an_edit() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(bounded().budget("30"))
        await stalled(house, "PriceUnknown")
        house.prices.listed[MODEL] = A_TOKEN
        await house.until(lambda: house.state() == "Succeeded", 3 * 3600)

    play(scene)


def test_answers_without_a_bound_stall_until_the_budget_goes() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        house.give(job().budget("1000000"))
        assert "spec.parameters.maxOutputTokens" in await stalled(house, "UnboundedOutput")
        house.kube.edit_spec(ref(), budget=None)
        await house.until(lambda: house.state() == "Succeeded")
        assert "estimated" not in cost(house)
        assert cost(house)["actual"] == "9.00"

    play(scene)


def test_another_currency_stalls_until_both_are_of_one() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        house.give(bounded().budget("30", "EUR"))
        assert "USD" in await stalled(house, "BudgetCurrencyDiffers")
        house.kube.edit_spec(PROVIDER, pricing=[{**OWN, "currency": "EUR"}])
        await house.until(lambda: house.state() == "Succeeded")
        assert cost(house)["currency"] == "EUR"

    play(scene)


async def two_shards(house: House, builder: JobBuilder) -> str:
    """A job of two shards, one at the provider and one queued; its run's key."""
    house.limit({**SMALL_BATCHES, "maxActiveBatches": 1})
    await house.pass_time(5)
    body = house.give(builder, records=4)
    await house.until(lambda: house.state() == "Running")
    run = house.run(body)
    assert run is not None
    return run.key


def test_lowering_the_budget_holds_the_rest_and_cancels_nothing() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        key = await two_shards(house, bounded().budget("40"))
        house.kube.edit_spec(ref(), budget={"maxCost": "25"})
        assert "is held back" in await stalled(house, "BudgetExceeded")
        # The first batch turns out to cost 6 of the 20 that it might have: but 6 and 20 are 26.
        await house.until(lambda: house.journals.peek(key).shards[0].state is ShardState.COLLECTED)
        await house.pass_time(600)
        assert submissions(house) == 1
        assert sum(len(b.cancels) for b in house.server.batches.values()) == 0
        assert cost(house)["actual"] == "6.00"
        house.kube.edit_spec(ref(), budget={"maxCost": "26"})
        await house.until(lambda: house.state() == "Succeeded")
        assert (submissions(house), cost(house)["actual"]) == (2, "12.00")

    play(scene)


def test_what_costs_less_than_it_might_lets_the_rest_go() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        await two_shards(house, bounded().budget("40"))
        house.kube.edit_spec(ref(), budget={"maxCost": "30"})
        await stalled(house, "BudgetExceeded")
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


EXPIRING = Habits(validate_s=5, work_s=300, fates=((Fate.EXPIRE, 1.0),))


def test_a_retry_that_would_pass_the_budget_is_not_sent_and_the_run_ends() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        house.give(bounded().budget("300"), records=30)
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), budget={"maxCost": "100"})
        await house.until(lambda: house.state() == "Failed")
        assert submissions(house) == 1
        assert "BudgetExceeded" in house.recorder.reasons()
        counts = house.status()["requestCounts"]
        assert 0 < counts["failed"] == 30 - counts["completed"]
        assert float(cost(house)["actual"]) == 3 * counts["completed"]
        failed = house.workers.results("s3://data/ml/out/triage/", "errors")
        codes = {line["error"]["code"] for line in failed}
        assert codes == {"BudgetExceeded"}

    play(scene, habits=EXPIRING)


def test_a_retry_within_the_budget_is_sent() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        house.give(bounded().budget("300").attempts(2), records=30)
        await house.until(lambda: house.state() == "Failed")
        assert submissions(house) == 2
        assert float(cost(house)["actual"]) <= 300

    play(scene, habits=EXPIRING)


def test_a_job_that_is_suspended_shows_no_stall_of_its_budget_until_it_goes_on() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        await house.operator()
        body = house.give(bounded().budget("1"))
        await stalled(house, "BudgetExceeded")
        house.kube.edit_spec(ref(), suspend=True)
        await house.until(lambda: house.state() == "Suspended")
        house.kube.edit_spec(ref(), budget={"maxCost": "30"})
        await house.pass_time(600)
        assert submissions(house) == 0
        house.kube.edit_spec(ref(), suspend=False)
        await house.until(lambda: house.state() == "Succeeded")
        assert house.run(body).phase is RunPhase.ENDED

    play(scene)


def test_a_new_process_holds_the_same_run_to_its_budget() -> None:
    async def scene(house: House) -> None:
        house.prices.listed[MODEL] = A_TOKEN
        first = await house.operator()
        key = await two_shards(house, bounded().budget("40"))
        house.kube.edit_spec(ref(), budget={"maxCost": "39"})
        await stalled(house, "BudgetExceeded")
        await house.die(first)
        house.prices.listed[MODEL] = price(batch_input="0", batch_output="9")
        await house.operator()
        await house.pass_time(120)
        assert submissions(house) == 1
        assert house.journals.peek(key).price == A_TOKEN, "as it was when it was submitted"
        house.kube.edit_spec(ref(), budget={"maxCost": "40"})
        await house.until(lambda: house.state() == "Succeeded")
        assert cost(house)["actual"] == "12.00"

    play(scene)


def test_a_provider_object_that_goes_leaves_the_price() -> None:
    async def scene(house: House) -> None:
        house.kube.edit_spec(PROVIDER, pricing=[OWN])
        await house.operator()
        house.give(bounded().budget("30"))
        await house.until(lambda: house.state() == "Running")
        house.kube.delete(PROVIDER)
        await house.until(lambda: house.state() == "Succeeded")
        assert cost(house)["actual"] == "9.00"

    play(scene)

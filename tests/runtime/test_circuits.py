"""A provider that is down: its calls wait, one tries, and nothing certain becomes uncertain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinference.model.run import ShardState
from builders import job, openai_provider
from fakes.server import Habits
from runtime.house import House, Life, play, ref

HOUR_S = 3600.0


def reachable(house: House) -> Mapping[str, Any]:
    provider = house.kube.find("InferenceProvider", "ml", "openai")
    assert provider is not None
    listed = provider.get("status", {}).get("conditions", [])
    return next((c for c in listed if c["type"] == "Reachable"), {})


def calls(house: House) -> int:
    return sum(house.server.calls.values())


def is_open(life: Life) -> bool:
    return any(v for (name, _), v in life.metrics.gauges.items() if name == "circuit_open")


def test_calls_of_a_provider_that_is_down_wait_and_one_tries() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        await house.until(lambda: reachable(house).get("status") == "True")
        assert reachable(house)["reason"] == "Answering"
        house.server.outage = True
        for number in range(4):
            house.give(job(f"job-{number}"))
        await house.until(lambda: reachable(house).get("status") == "False")
        assert reachable(house)["reason"] == "CircuitOpen"
        assert "calls wait since" in reachable(house)["message"]
        assert is_open(life)
        late = house.give(job("late"))
        await house.until(lambda: house.state("late") == "Queued")
        await house.until(
            lambda: "tries whether" in house.condition("Submitted", "late")["message"]
        )
        assert house.condition("Submitted", "late")["reason"] == "CircuitOpen"
        before, created = calls(house), house.server.calls["create"]
        await house.pass_time(HOUR_S)
        made = calls(house) - before
        assert 10 <= made <= 40, "a call every few minutes, for all jobs together"
        assert house.server.calls["create"] == created
        assert life.operator.alive(), "restarting the pod would mend nothing"
        assert house.condition("Stalled", "late")["status"] == "False", "nobody need act"
        run = house.run(late)
        assert run is not None
        assert not any(shard.submissions for shard in run.shards), "nothing was claimed"
        house.server.outage = False
        await house.until(
            lambda: all(
                house.state(name) == "Succeeded"
                for name in ("late", *(f"job-{number}" for number in range(4)))
            ),
            HOUR_S,
        )
        await house.until(lambda: reachable(house).get("status") == "True")
        assert not is_open(life)

    play(scene)


def test_a_cancel_by_deletion_is_tried_all_the_same() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(job())
        await house.until(lambda: house.server.batches)
        await house.until(lambda: house.state() == "Running")
        house.server.outage = True
        await house.until(lambda: is_open(life), HOUR_S)
        before = house.server.calls.get("cancel", 0)
        house.kube.delete(ref())
        await house.until(lambda: house.server.calls.get("cancel", 0) > before, 5)
        house.server.outage = False
        await house.until(lambda: house.job() is None)
        await house.until(lambda: not is_open(life), HOUR_S)
        await house.until(
            lambda: all(
                b.state_at(house.clock.now()).is_over for b in house.server.batches.values()
            ),
            HOUR_S,
        )

    play(scene, habits=Habits(work_s=30 * HOUR_S))


def test_a_lost_answer_stays_unknown_while_calls_wait_and_is_settled_afterwards() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.faults.lost = 1.0
        body = house.give(job())
        await house.until(lambda: house.server.batches)
        house.server.outage = True
        await house.until(lambda: is_open(life), HOUR_S)
        await house.pass_time(HOUR_S)
        run = house.run(body)
        assert run is not None
        assert run.shards[0].state is ShardState.UNKNOWN
        assert house.condition("Submitted")["status"] == "Unknown"
        assert house.server.calls["create"] == 1
        house.server.outage = False
        house.faults.lost = 0.0
        await house.until(lambda: house.state() == "Succeeded", HOUR_S)
        assert len(house.server.batches) == 1

    play(scene, habits=Habits(work_s=10, list_lag_s=30))


def test_one_provider_that_is_down_holds_up_no_other() -> None:
    async def scene(house: House) -> None:
        other = openai_provider("other")
        server = house.add_server(other, "other")
        house.kube.create(other)
        life = await house.operator()
        await house.until(lambda: reachable(house).get("status") == "True")
        house.server.outage = True
        house.give(job("stuck"))
        await house.until(lambda: is_open(life), HOUR_S)
        house.give(job("fine").provider("other"))
        await house.until(lambda: server.batches, 60)
        assert is_open(life)

    play(scene)

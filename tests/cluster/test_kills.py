"""kill -9 at random moments, lost answers and late listings: one accepted submission per shard."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import pytest

from stack import Stack, wait_for
from team import Team, chat, jsonl

RECORDS = 600
KILLS = 20


def _limits(records: int) -> dict[str, Any]:
    return {
        "limits": {"maxRecordsPerBatch": records, "minRecordsPerBatch": 1, "maxActiveBatches": 2}
    }


def _three_shards(team: Team, provider: str, name: str) -> None:
    team.apply(*team.stack.providers(team.namespace, **{provider: _limits(RECORDS // 3)}))
    uri = team.put(f"{name}.jsonl", jsonl(chat(f"r{n}", f"Say {n}") for n in range(RECORDS)))
    team.apply(team.job(name, provider=provider, input={"s3": {"uri": uri}}))


def _all_answered_once(team: Team, name: str) -> None:
    manifest = team.manifest(name)
    lines = [
        json.loads(line)
        for part in manifest["results"]
        for line in team.read(part["uri"]).splitlines()
    ]
    assert [line["custom_id"] for line in lines] == [f"r{n}" for n in range(RECORDS)]
    assert all(line["error"] is None for line in lines)
    assert (
        sum(
            s["completed" if "completed" in s else "succeeded"]
            for _, s in team.submissions(team.tag(name))
        )
        == RECORDS
    )


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["openai", "bedrock"])
def test_twenty_kills_of_a_job_of_three_shards_make_three_submissions(
    stack: Stack, team: Team, provider: str
) -> None:
    operator = stack.operators[0]
    luck = random.Random(f"kills-{provider}")
    team.control.settings(**{provider: {"in_progress_s": 4.0}})
    try:
        _three_shards(team, provider, "killed")
        pause = threading.Event()
        for _ in range(KILLS):
            # The moment is random on purpose: nothing is waited for here.
            pause.wait(luck.uniform(0.02, 1.2))
            operator.kill_all()
            operator.start()
            stack.wait_until_healthy(operator)
        team.wait_condition("killed", "Complete", 180)
    finally:
        team.control.settings(**{provider: {"in_progress_s": 0.3}})
    accepted = team.accepted(team.tag("killed"))
    assert set(accepted.values()) == {1}
    assert sorted({shard for shard, _ in accepted}) == [0, 1, 2]
    assert len(accepted) == 3, f"one submission per shard: {accepted}"
    _all_answered_once(team, "killed")


@pytest.mark.parametrize(
    ("provider", "operation"),
    [("openai", "batches.create"), ("bedrock", "CreateModelInvocationJob")],
)
def test_a_lost_answer_is_found_by_asking(team: Team, provider: str, operation: str) -> None:
    team.control.fault(provider, "lose_response", operation, times=2)
    _three_shards(team, provider, "lost")
    team.wait_condition("lost", "Complete", 90)
    accepted = team.accepted(team.tag("lost"))
    assert set(accepted.values()) == {1}
    assert len(accepted) == 3
    _all_answered_once(team, "lost")


@pytest.mark.parametrize(
    ("provider", "operation"),
    [("openai", "batches.create"), ("bedrock", "CreateModelInvocationJob")],
)
def test_a_batch_that_lists_hide_for_less_than_the_settle_time_is_found(
    team: Team, provider: str, operation: str
) -> None:
    lag = team.stack.settings["settleSeconds"] / 2
    team.control.settings(**{provider: {"list_lag_s": lag}})
    try:
        team.control.fault(provider, "lose_response", operation)
        _three_shards(team, provider, "late")
        team.wait_condition("late", "Complete", 90)
    finally:
        team.control.settings(**{provider: {"list_lag_s": 0}})
    accepted = team.accepted(team.tag("late"))
    assert set(accepted.values()) == {1}
    assert len(accepted) == 3
    _all_answered_once(team, "late")


def test_a_batch_that_lists_hide_for_longer_is_reported(team: Team) -> None:
    settle = team.stack.settings["settleSeconds"]
    team.control.settings(openai={"list_lag_s": settle * 3})
    team.control.hold("openai")
    try:
        team.control.fault("openai", "lose_response", "batches.create")
        uri = team.put("hidden.jsonl", jsonl([chat("a", "Say a")]))
        team.apply(team.job("hidden", input={"s3": {"uri": uri}}))
        stalled = team.wait_condition("hidden", "Stalled", settle * 6)
    finally:
        team.control.settings(openai={"list_lag_s": 0})
    assert stalled["reason"] in {"DuplicateSubmission", "OutcomeUnknown"}
    assert max(team.accepted(team.tag("hidden")).values()) == 1
    team.control.release("openai")
    wait_for("the end", lambda: team.status("hidden").get("completionTime"), 60)

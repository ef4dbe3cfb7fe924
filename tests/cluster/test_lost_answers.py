"""Lost answers and late listings: one accepted submission per shard."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stack import wait_for
from team import Team, chat, jsonl

RECORDS = 600


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

"""One operator that dies, and two of them at once: E11 and E13."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from batchinference.core.begin import key_of
from batchinference.model.job import parse_job
from cluster.pair import SHARDS, Pair
from stack import OPERATOR_NAMESPACE, Operator, wait_for

CREATES = (("openai", "batches.create"), ("bedrock", "CreateModelInvocationJob"))


@pytest.mark.parametrize(("provider", "create"), CREATES)
def test_e11_the_operator_dies_between_acceptance_and_the_journal(
    pair: Pair, provider: str, create: str
) -> None:
    team, operator = pair.team, pair.team.stack.operators[0]
    pair.only(provider)
    team.control.hold()
    held = team.control.fault(provider, "delay", create, seconds=30, when="after", times=None)
    before = len(team.control.state()[provider]["submissions"])
    pair.apply()
    wait_for(
        "one accepted, whose answer is held back",
        lambda: len(team.control.state()[provider]["submissions"]) > before,
    )
    operator.kill_all()
    assert held
    (name,) = pair.names
    # Its status may say nothing yet: the key is that of the content.
    key = key_of(parse_job(pair.get(name)))
    journal = team.stack.get("configmap", f"run-{key}", OPERATOR_NAMESPACE)
    assert journal is not None
    shards = json.loads(journal["data"]["journal"])["shards"]
    made = [submission for shard in shards for submission in shard.get("submissions", [])]
    assert {(m["state"], m.get("batchID", "")) for m in made} == {("Claimed", "")}
    team.control.clear_faults()
    operator.start()
    team.stack.wait_until_healthy(operator)
    pair.wait_live()
    pair.let_finish()
    pair.check_paid_once()


@pytest.fixture
def second(pair: Pair) -> Iterator[Operator]:
    """Another operator process of the same installation, as in a rolling update."""
    stack = pair.team.stack
    operator = stack.start_operator("second")
    yield operator
    stack.operators.remove(operator)
    operator.stop()


def test_e13_two_operators_at_once_submit_once(pair: Pair, second: Operator) -> None:
    assert second.running
    pair.run_live()
    pair.delete()
    pair.apply()
    before = pair.let_finish()
    pair.check_paid_once(submissions=None)
    creates = pair.creates()
    pair.delete()
    pair.apply()
    pair.check_found(before)
    assert pair.creates() == creates


def test_e13_a_rolling_update_in_the_middle_of_a_run(pair: Pair, second: Operator) -> None:
    first = pair.team.stack.operators[0]
    assert first is not second
    pair.run_live()
    first.stop()
    pair.let_finish()
    pair.check_paid_once()


def test_e13_an_operator_that_was_stopped_and_wakes_up_does_no_harm(
    pair: Pair, second: Operator
) -> None:
    first = pair.team.stack.operators[0]
    pair.run_live()
    os.kill(first.pid, signal.SIGSTOP)
    try:
        pair.delete()
        pair.apply()
        before = pair.let_finish()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    second.stop()
    pair.patch({"spec": {"successPolicy": {"maxFailedPercent": 5}}})
    for name in pair.names:
        wait_for("a look at the edit", lambda name=name: looked(pair, name))
        pair.check_same(name, before)
    pair.check_paid_once(submissions=None)
    assert max(pair.cancels(pair.names[0])) == 1


def looked(pair: Pair, name: str) -> bool:
    found = pair.get(name)
    return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])


def test_e13_two_operators_see_one_lost_answer(pair: Pair, second: Operator) -> None:
    assert second.running
    for provider, create in CREATES:
        pair.team.control.fault(provider, "lose_response", create, times=SHARDS)
    pair.run_to_the_end()
    pair.check_paid_once()


def test_e13_two_operators_without_journals_pay_once(pair: Pair, second: Operator) -> None:
    assert second.running
    pair.run_live()
    pair.delete()
    pair.delete_journals()
    pair.apply()
    before = pair.let_finish()
    pair.check_paid_once(submissions=None)
    creates = pair.creates()
    pair.delete_journals()
    pair.delete()
    pair.apply()
    pair.check_found(before, by_manifest=True)
    assert pair.creates() == creates


def test_e13_a_rolling_update_finds_lost_answers_without_journals(
    pair: Pair, second: Operator
) -> None:
    first = pair.team.stack.operators[0]
    assert first is not second
    pair.team.control.hold()
    for provider, create in CREATES:
        pair.team.control.fault(provider, "lose_response", create, times=SHARDS)
    before = pair.creates()
    pair.apply()
    wait_for("all accepted", lambda: pair.creates() == before + len(CREATES) * SHARDS)
    # Neither a journal nor a status knows of a batch now.
    pair.delete_journals()
    first.stop()
    pair.wait_live()
    pair.let_finish()
    pair.check_paid_once()


def test_e13_an_operator_that_wakes_up_does_no_harm_without_its_journals(
    pair: Pair, second: Operator
) -> None:
    first = pair.team.stack.operators[0]
    pair.run_live()
    os.kill(first.pid, signal.SIGSTOP)
    try:
        pair.delete_journals()
        pair.delete()
        pair.apply()
        before = pair.let_finish()
        creates = pair.creates()
        pair.delete_journals()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    second.stop()
    pair.patch({"spec": {"successPolicy": {"maxFailedPercent": 5}}})
    for name in pair.names:
        wait_for("a look at the edit", lambda name=name: looked(pair, name))
        pair.check_same(name, before)
    assert pair.creates() == creates
    pair.check_paid_once(submissions=None)

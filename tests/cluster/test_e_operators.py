"""Two operators at once: E13."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from cluster.pair import SHARDS, Pair
from stack import Operator, wait_for

CREATES = (("openai", "batches.create"), ("bedrock", "CreateModelInvocationJob"))


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

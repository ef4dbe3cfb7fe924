"""Outcomes on their way: none is lost because another is poisonous, and they do not pile up."""

from __future__ import annotations

from typing import Any

import pytest

from batchinference.core import absorb
from batchinference.core.outcomes import BatchMissing, BatchSeen
from batchinference.model.batch import BatchState, BatchView
from batchinference.runtime import reconciler
from batchinference.runtime.mailbox import Mailbox
from builders import job
from runtime.house import House, play


def seen(name: str, completed: int = 0) -> BatchSeen:
    return BatchSeen(BatchView(name, BatchState.IN_PROGRESS, completed=completed))


def test_of_a_batch_only_the_newest_sight_is_kept_and_it_keeps_its_turn() -> None:
    box = Mailbox()
    for outcome in (seen("a", 1), BatchMissing("b"), seen("c"), seen("a", 2), BatchMissing("b")):
        box.put(outcome)
    assert box.take() == [seen("a", 2), BatchMissing("b"), seen("c"), BatchMissing("b")]
    assert len(box) == 0


def test_what_is_put_back_comes_first_and_hides_nothing_newer() -> None:
    box = Mailbox()
    box.put(BatchMissing("first"))
    box.put(seen("a", 1))
    taken = box.take()
    box.put(seen("a", 2))
    box.put(BatchMissing("last"))
    box.put_back(taken)
    assert box.take() == [BatchMissing("first"), seen("a", 2), BatchMissing("last")]


def test_a_poisonous_outcome_is_counted_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poisonous = 2
    really = absorb._task_done

    def fails_at_first(*args: Any) -> Any:
        nonlocal poisonous
        poisonous -= 1
        if poisonous >= 0:
            raise ZeroDivisionError
        return really(*args)

    monkeypatch.setattr(absorb, "_task_done", fails_at_first)

    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        assert life.metrics.counters["outcomes_dropped_total"] == 2
        assert life.metrics.counters["reconcile_errors_total"] == 0

    play(scene, complaints=("what came of task:Admit can't be folded in",) * 2)


def test_a_decision_that_fails_loses_no_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    really = reconciler.decide
    failing = 0

    def fails_now_and_then(*args: Any) -> Any:
        nonlocal failing
        failing += 1
        if failing % 3 == 0:
            raise ZeroDivisionError
        return really(*args)

    monkeypatch.setattr(reconciler, "decide", fails_now_and_then)

    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        started = [task for life in house.lives for task in life.runner.started]
        assert len(started) == len(set(started)), "nothing was asked for again"

    play(scene, complaints=("can't be reconciled",))

"""What must stand in the journal before anything follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.durability import must_stand
from batchinference.model.run import Cancel, CancelWhy, Ending, Place, RunPhase, ShardState, Verdict
from batchinference.model.staging import Cursor, InputSnapshot, Staged
from builders import START, run_of, shard_of
from unit.core.given import NOW, in_state, run_with

S, P = ShardState, RunPhase
FRESH = run_of(shards=0)
QUEUED = run_with(shard_of(0), shard_of(1))
CLAIMED = run_with(in_state(S.CLAIMED), shard_of(1))

MAY_WAIT = [
    (FRESH, replace(FRESH, start_time=START), "when it began"),
    (FRESH, replace(FRESH, phase=P.STAGING, output=Place(FRESH.output.uri, True)), "its place"),
    (FRESH, replace(FRESH, input=InputSnapshot("a", 1, 1, "f")), "its input"),
    (FRESH, replace(FRESH, cursor=Cursor(0, 1, 1, 1, 0), shards=(shard_of(0),)), "a checkpoint"),
    (FRESH, replace(FRESH, staged=Staged(1, 0, 1, 1), phase=P.RUNNING), "that it is staged"),
    (FRESH, replace(FRESH, phase=P.RUNNING, shards=(shard_of(0),)), "that shards ask for places"),
    (QUEUED, QUEUED, "nothing changed"),
]


@pytest.mark.parametrize(("stored", "run", "reason"), MAY_WAIT)
def test_what_is_found_out_again_may_wait(stored, run, reason) -> None:
    assert not must_stand(stored, run), reason


OTHERS = Cancel(CancelWhy.DELETED, NOW)
FAILED = Verdict(Ending.FAILED, "BadRecords", "3 of 3")
MUST_STAND = [
    (FRESH, replace(FRESH, spec={**FRESH.spec, "priority": 1}), "what the object asks for"),
    (FRESH, replace(FRESH, owner=replace(FRESH.owner, uid="another")), "whose it is"),
    (FRESH, replace(FRESH, passes=1), "that a pass was in vain"),
    (QUEUED, replace(QUEUED, cancel=OTHERS), "that it is being cancelled"),
    (FRESH, replace(FRESH, phase=P.CLEANING, verdict=FAILED), "an end"),
    (QUEUED, CLAIMED, "a claim"),
    (FRESH, CLAIMED, "a claim, with all the steps before it"),
    (CLAIMED, run_with(in_state(S.SUBMITTED), shard_of(1)), "a batch"),
    (CLAIMED, run_with(in_state(S.UNKNOWN), shard_of(1)), "that an answer was lost"),
    (
        run_with(in_state(S.SUBMITTED)),
        run_with(in_state(S.ENDED)),
        "the end of a batch",
    ),
    (run_with(in_state(S.ENDED)), run_with(in_state(S.COLLECTED)), "that it is collected"),
    (replace(FRESH, submitted=True), replace(FRESH, submitted=True, staged=Staged(1, 0, 1, 1)), ""),
]


@pytest.mark.parametrize(("stored", "run", "reason"), MUST_STAND)
def test_what_others_or_money_depend_on_must_stand_at_once(stored, run, reason) -> None:
    assert must_stand(stored, run), reason

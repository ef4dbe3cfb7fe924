"""A journal that can't grow: what has happened is kept, and nothing new is begun."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.effects import StartTask, StopTasks
from batchinference.model.earlier import Earlier
from batchinference.model.run import Run, RunPhase, ShardState, SubmissionState
from batchinference.model.staging import Cursor
from unit.core.given import decided, in_state, observed, of_kind, run_with

S = ShardState
FULL = "The journal would take 600000 bytes."


def stored(run: Run) -> Run:
    """The run once it was decided about while its journal can't grow."""
    return decided(run, observed(full=FULL)).run


def test_a_run_that_has_submitted_nothing_fails_and_gives_the_room_back() -> None:
    staging = run_with(
        in_state(S.STAGED), phase=RunPhase.STAGING, cursor=Cursor(0, 1, 1, 1, 0, "print")
    )
    decision = decided(staging, observed(full=FULL))
    assert decision.run.verdict is not None
    assert (decision.run.verdict.reason, decision.run.verdict.message) == ("JournalTooLarge", FULL)
    assert (decision.run.shards, decision.run.cursor) == ((), None)
    assert of_kind(decision, StopTasks) != []


def test_a_refused_submission_is_kept() -> None:
    queued = in_state(S.CLAIMED)
    refused = replace(queued.submissions[0], state=SubmissionState.REFUSED)
    run = stored(run_with(replace(queued, state=S.QUEUED, submissions=(refused,))))
    assert run.verdict is not None
    assert [shard.submissions for shard in run.shards] == [(refused,)]


@pytest.mark.parametrize("state", [S.CLAIMED, S.UNKNOWN, S.SUBMITTED])
def test_what_the_provider_has_or_may_have_is_followed(state) -> None:
    decision = decided(run_with(in_state(state), in_state(S.QUEUED, 1)), observed(full=FULL))
    assert decision.run.verdict is None
    assert [shard.index for shard in decision.run.shards] == [0, 1]
    assert decision.run.shards[1].state is S.QUEUED
    assert of_kind(decision, StartTask) == []


def test_shards_stand_while_the_provider_may_have_more_of_the_run() -> None:
    run = run_with(in_state(S.STAGED), earlier=Earlier(expected=True, asking=True))
    after = stored(run)
    assert after.verdict is None
    assert len(after.shards) == 1


def test_an_ended_run_stays_as_it_is() -> None:
    ended = run_with(in_state(S.COLLECTED), phase=RunPhase.ENDED)
    assert stored(ended) == ended

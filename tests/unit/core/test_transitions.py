"""The two tables: total, terminal where they must be, and the only way to change a state."""

from __future__ import annotations

from itertools import product

import pytest

from batchinference.core.transitions import (
    RUN,
    RUN_IGNORED,
    SHARD,
    SHARD_IGNORED,
    RunInput,
    ShardInput,
    render,
    step_run,
    step_shard,
)
from batchinference.model.run import RunPhase, ShardState
from builders import run_of, shard_of

S, P = ShardState, RunPhase


@pytest.mark.parametrize(("state", "event"), list(product(ShardState, ShardInput)))
def test_every_shard_state_answers_every_input(state: ShardState, event: ShardInput) -> None:
    stepped = step_shard(shard_of(0, state), event)
    if stepped is None:
        assert SHARD_IGNORED[event], "an ignored input says why"
    else:
        assert stepped.state is SHARD[state, event]
        assert stepped.index == 0


@pytest.mark.parametrize(("phase", "event"), list(product(RunPhase, RunInput)))
def test_every_run_phase_answers_every_input(phase: RunPhase, event: RunInput) -> None:
    stepped = step_run(run_of(phase=phase), event)
    if stepped is None:
        assert RUN_IGNORED[event], "an ignored input says why"
    else:
        assert stepped.phase is RUN[phase, event]


def test_every_input_has_an_arrow_and_every_arrow_is_of_the_tables_words() -> None:
    assert {event for _, event in SHARD} == set(ShardInput)
    assert {event for _, event in RUN} == set(RunInput)


TERMINAL = [
    (SHARD, S.COLLECTED, {ShardInput.APPEAR}, "only a late batch may have more to say"),
    (
        SHARD,
        S.DROPPED,
        {ShardInput.RESUME, ShardInput.ACCEPT, ShardInput.APPEAR},
        "only a parked run is taken up, or a batch appears after all",
    ),
    (RUN, P.ENDED, {RunInput.RESTART}, "only an end without a submission starts afresh"),
    (RUN, P.CLEANING, {RunInput.CLEAN}, "an end is an end"),
    (RUN, P.PARKED, {RunInput.RESUME, RunInput.EXPIRE}, "an end that may be taken up"),
]


@pytest.mark.parametrize(("table", "state", "exits", "reason"), TERMINAL)
def test_terminal_is_terminal(table, state, exits, reason) -> None:
    assert {event for origin, event in table if origin is state} == exits, reason


def test_nothing_reaches_a_create_call_but_a_claim_of_a_queued_shard() -> None:
    into = {origin for (origin, _), target in SHARD.items() if target is S.CLAIMED}
    assert into == {S.QUEUED}


def test_an_unknown_outcome_comes_back_to_the_queue_only_through_fencing() -> None:
    into = {(o, e) for (o, e), target in SHARD.items() if target is S.QUEUED}
    assert into == {
        (S.STAGED, ShardInput.QUEUE),
        (S.CLAIMED, ShardInput.PUT_BACK),
        (S.FENCING, ShardInput.GIVE_UP),
        (S.SUBMITTED, ShardInput.VOID),
        (S.DROPPED, ShardInput.RESUME),
    }


def test_a_shard_that_the_provider_may_hold_is_never_dropped() -> None:
    dropped = {o for (o, e) in SHARD if e is ShardInput.DROP}
    assert dropped == {S.STAGED, S.QUEUED, S.REGROUPED}


def test_every_state_is_reached_and_left() -> None:
    for table, first, states in ((SHARD, S.STAGED, S), (RUN, P.ADMITTING, P)):
        assert set(table.values()) | {first} == set(states)
        assert {origin for origin, _ in table} | {S.COLLECTED} >= set(states)


def test_the_rendered_tables_name_every_input_and_every_reason() -> None:
    text = render()
    for word in (*ShardInput, *RunInput, *SHARD_IGNORED.values(), *RUN_IGNORED.values()):
        assert f" {word} |" in text

"""Batches that are over their window: told, asked about, and given up by annotation."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from batchinference.core.decisions import GIVE_UP
from batchinference.core.effects import CancelBatch
from batchinference.core.outcomes import ProviderAsked
from batchinference.core.stuck import window
from batchinference.model.run import Cancel, CancelWhy, Run, ShardState, SubmissionState
from batchinference.model.work import FaultKind, TaskFault
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    fold_all,
    in_state,
    observed,
    of_kind,
    run_with,
)

S = ShardState
DAY_S = 86400.0


def submitted(settings: dict[str, object], **members: object) -> Run:
    run = run_with(in_state(S.SUBMITTED), in_state(S.QUEUED, 1), **members)
    shard = run.shards[0].with_last(claimed_at=NOW, accepted_at=NOW)
    return replace(run.with_shard(shard), provider=replace(run.provider, settings=settings))


@pytest.mark.parametrize(
    ("settings", "hours"),
    [
        ({"openAI": {"completionWindow": "24h"}}, 24),
        ({"openAI": {"completionWindow": "7d"}}, 168),
        ({"openAI": {"completionWindow": "90m"}}, 1.5),
        ({"openAI": {}}, 24),
        ({"openAI": {"completionWindow": "9999999999999d"}}, 365 * 24),
        ({"bedrock": {"timeoutHours": 72}}, 72),
        ({"bedrock": {}}, 24),
    ],
)
def test_the_window_is_what_the_batch_was_submitted_with(settings, hours) -> None:
    assert window(settings) == timedelta(hours=hours)


def test_a_batch_past_its_window_and_a_day_stalls_and_asks() -> None:
    run = submitted({"bedrock": {"timeoutHours": 48}})
    early = decided(run, observed(now=after(2 * DAY_S + TIMING.stuck_s - 1)))
    assert early.problem is None
    assert early.asking == {1}
    assert early.wake_at is not None
    assert early.wake_at <= after(2 * DAY_S + TIMING.stuck_s)
    late = decided(run, observed(now=after(2 * DAY_S + TIMING.stuck_s)))
    assert late.problem is not None
    assert late.problem.reason == "ProviderStuck"
    batch_id = run.shards[0].submissions[0].batch_id
    assert f"{GIVE_UP}={batch_id}" in late.problem.message
    assert late.asking == frozenset(), "nothing more is sent to it"


def test_what_is_given_up_is_cancelled_and_then_written_off() -> None:
    run = submitted({"openAI": {}})
    now = after(2 * DAY_S)
    batch_id = run.shards[0].submissions[0].batch_id
    told = decided(run, observed(now=now, annotations={GIVE_UP: batch_id}))
    wanted = decided(told.run, observed(now=now), told.notes)
    assert [effect.batch_id for effect in of_kind(wanted, CancelBatch)] == [batch_id]
    later = now + timedelta(seconds=TIMING.cancel_release_s)
    over = decided(wanted.run, observed(now=later), wanted.notes)
    assert over.run.shards[0].submissions[0].state is SubmissionState.ENDED


@pytest.mark.parametrize("year", [1, 9999])
def test_when_the_provider_says_that_it_was_made_is_not_believed(year: int) -> None:
    run = submitted({"openAI": {}})
    run = run.with_shard(run.shards[0].with_last(accepted_at=NOW.replace(year=year)))
    assert decided(run, observed(now=after(2 * DAY_S - 1))).problem is None
    late = decided(run, observed(now=after(2 * DAY_S)))
    assert late.reasons == {"ProviderStuck"}


def test_a_cancel_that_does_not_end_is_told_too() -> None:
    run = submitted({"openAI": {}}, cancel=Cancel(CancelWhy.DESIRED, NOW))
    late = decided(run, observed(now=after(2 * DAY_S)))
    assert late.problem is not None
    assert late.problem.reason == "ProviderStuck"


def test_it_counts_also_where_something_else_is_shown() -> None:
    run = submitted({"openAI": {}})
    denied = TaskFault(FaultKind.STALLED, "AccessDenied", "no")
    _, notes = fold_all(run, ProviderAsked(denied))
    late = decided(run, observed(now=after(2 * DAY_S)), notes)
    assert late.problem is not None
    assert late.reasons == {"AccessDenied", "ProviderStuck"}

"""Runs without an object whose credentials are gone: told, and ended when their answers are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batchinference.core.draft import Decision, Observed
from batchinference.core.effects import ASKING, Announce, StartTask, StopTasks, resubmitting
from batchinference.core.notes import Notes
from batchinference.core.outcomes import ProviderAsked
from batchinference.core.problem import Problem
from batchinference.model.run import Cancel, CancelWhy, Collected, Ending, Run, RunPhase, ShardState
from batchinference.model.work import FaultKind, TaskFault
from unit.core.given import (
    NOW,
    TIMING,
    decided,
    fold_all,
    in_state,
    observed,
    of_kind,
    run_with,
)

S = ShardState
LOST_AT = NOW + timedelta(hours=24, seconds=TIMING.answers_kept_s)
NO_SECRET = Problem("SecretNotFound", "Secret 'ml/openai' does not exist.", NOW, has_grace=True)
REVOKED = TaskFault(FaultKind.STALLED, "CredentialsRejected", "The key is revoked.")


def left(why: CancelWhy = CancelWhy.DELETED, **members: object) -> Run:
    """A run whose object was deleted while a batch was on its way."""
    run = run_with(in_state(S.SUBMITTED), cancel=Cancel(why, NOW), **members)
    return run.with_shard(run.shards[0].with_last(claimed_at=NOW, accepted_at=NOW))


def without_object(now: datetime = NOW, **members: object) -> Observed:
    return replace(observed(now=now), job=None, is_deleted=True, **members)  # type: ignore[arg-type]


@pytest.mark.parametrize("why", [CancelWhy.DELETED, CancelWhy.ORPHANED])
def test_a_secret_that_went_with_the_object_is_told_once(why) -> None:
    decision = decided(left(why), without_object(provider=NO_SECRET))
    assert decision.problem is not None
    assert decision.problem.reason == "CredentialsGone"
    assert decision.wake_at is not None
    assert decision.wake_at <= LOST_AT
    (said,) = of_kind(decision, Announce)
    assert said.warning
    assert "SecretNotFound" not in said.message
    assert NO_SECRET.message in said.message
    again = decided(decision.run, without_object(provider=NO_SECRET), decision.notes)
    assert of_kind(again, Announce) == []


def rejected() -> Notes:
    _, notes = fold_all(left(), ProviderAsked(REVOKED))
    assert ASKING in notes.failures
    return notes


def test_a_key_that_was_revoked_counts_until_a_call_works_again() -> None:
    told = decided(left(), without_object(), rejected())
    assert told.problem is not None
    assert told.problem.reason == "CredentialsGone"
    _, healed = fold_all(left(), ProviderAsked(None), notes=told.notes)
    assert decided(left(), without_object(), healed).problem is None


def ended(decision: Decision) -> bool:
    return decision.run.verdict is not None


def test_answers_that_the_provider_keeps_no_longer_are_lost() -> None:
    early = without_object(LOST_AT - timedelta(seconds=1), provider=NO_SECRET)
    assert not ended(decided(left(), early))
    decision = decided(left(), without_object(LOST_AT, provider=NO_SECRET))
    assert decision.run.phase is RunPhase.ENDED
    assert decision.run.verdict is not None
    assert decision.run.verdict.ending is Ending.FAILED
    assert decision.run.verdict.reason == "CredentialsGone"
    assert decision.run.completion_time == LOST_AT
    assert of_kind(decision, StopTasks) != []


def with_collected() -> Run:
    """One of two batches was collected before."""
    run = left()
    done = replace(in_state(S.COLLECTED, 1), collected=Collected(answered=100))
    return replace(run, shards=(*run.shards, done))


def on_bedrock() -> Run:
    run = left()
    return replace(run, provider=replace(run.provider, settings={"bedrock": {}}))


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (with_collected(), "answers are in staging"),
        (left(phase=RunPhase.FINISHING), "all that there is was collected"),
        (on_bedrock(), "its answers lie in the user's bucket"),
    ],
)
def test_answers_that_do_not_go_are_told_of_for_ever(run, reason) -> None:
    decision = decided(run, without_object(LOST_AT, provider=NO_SECRET))
    assert not ended(decision), reason
    assert decision.problem is not None
    assert decision.problem.reason == "CredentialsGone"
    assert "given up" not in decision.problem.message


def test_the_end_of_a_batch_counts_where_it_is_known() -> None:
    late = NOW + timedelta(days=5)
    run = left()
    run = run.with_shard(replace(run.shards[0].with_last(ended_at=late), state=S.ENDED))
    assert not ended(decided(run, without_object(LOST_AT, provider=NO_SECRET)))
    until = late + timedelta(seconds=TIMING.answers_kept_s)
    assert ended(decided(run, without_object(until, provider=NO_SECRET)))


def test_an_odd_end_of_a_batch_is_not_believed() -> None:
    run = left()
    far = datetime.max.replace(tzinfo=UTC)
    run = run.with_shard(replace(run.shards[0].with_last(ended_at=far), state=S.ENDED))
    assert not ended(decided(run, without_object(LOST_AT, provider=NO_SECRET)))


@pytest.mark.parametrize("why", CancelWhy)
def test_it_is_told_whyever_the_run_was_cancelled_before_its_object_went(why) -> None:
    decision = decided(left(why), without_object(provider=NO_SECRET))
    assert decision.problem is not None
    assert decision.problem.reason == "CredentialsGone"


def test_a_create_call_that_was_refused_long_ago_says_nothing_of_the_credentials_now() -> None:
    notes = Notes().with_failure(resubmitting(1), REVOKED, NOW, TIMING, 0.5)
    assert decided(left(), without_object(), notes).reasons == frozenset()


def test_what_it_left_is_told_and_not_touched() -> None:
    decision = decided(left(), without_object(LOST_AT, provider=NO_SECRET))
    assert decision.run.phase is RunPhase.ENDED
    assert of_kind(decision, StartTask) == []
    assert "Remove by hand" in of_kind(decision, Announce)[-1].message


KEPT = [
    (observed(now=LOST_AT, provider=NO_SECRET), left(), "its object is there to say it"),
    (without_object(LOST_AT), left(), "its credentials work"),
    (
        without_object(LOST_AT, provider=replace(NO_SECRET, reason="ProviderUnavailable")),
        left(),
        "an outage is no loss",
    ),
    (
        replace(without_object(LOST_AT, provider=NO_SECRET), is_deleted=False),
        left(CancelWhy.DESIRED),
        "its object may only not have been seen yet",
    ),
    (
        without_object(LOST_AT, provider=NO_SECRET),
        left(phase=RunPhase.PARKED),
        "it waits for its object, and then ends anyway",
    ),
]


@pytest.mark.parametrize(("seen", "run", "reason"), KEPT)
def test_nothing_else_is_given_up(seen, run, reason) -> None:
    assert not ended(decided(run, seen)), reason

"""The journal's content: what its properties say, and that all of it survives being written."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.errors import InvalidObject
from batchinference.model.batch import BatchFailure, BatchState
from batchinference.model.codec import decode, encode
from batchinference.model.earlier import Earlier
from batchinference.model.price import Price, PriceSource
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Ending,
    Place,
    Results,
    Run,
    RunPhase,
    ShardState,
    SubmissionState,
    Verdict,
)
from batchinference.model.staging import BadRecord, Cursor, InputSnapshot, Staged
from builders import START, run_of, shard_of, submission_of

S, U = ShardState, SubmissionState


@pytest.mark.parametrize(
    ("state", "live", "settled"),
    [
        (S.STAGED, False, False),
        (S.QUEUED, False, False),
        (S.CLAIMED, True, False),
        (S.UNKNOWN, True, False),
        (S.FENCING, True, False),
        (S.SUBMITTED, True, False),
        (S.ENDED, False, False),
        (S.COLLECTED, False, True),
        (S.DROPPED, False, True),
    ],
)
def test_what_a_shard_state_means(state, live, settled) -> None:
    assert (state.is_live, state.is_settled) == (live, settled)


@pytest.mark.parametrize(
    ("phase", "over"),
    [(p, p in {RunPhase.CLEANING, RunPhase.PARKED, RunPhase.ENDED}) for p in RunPhase],
)
def test_which_phases_are_over(phase, over) -> None:
    assert run_of(phase=phase).is_over is over


ACCEPTED = [
    ((), False, "never sent"),
    ((U.REFUSED,), False, "refused for certain"),
    ((U.CLAIMED,), True, "a create call may be under way"),
    ((U.ACCEPTED,), True, "the provider has it"),
    ((U.VOID,), True, "it was accepted, although it billed nothing"),
    ((U.FENCED,), True, "an unknown outcome counts as accepted"),
    ((U.ENDED,), True, "over"),
    ((U.FENCED, U.REFUSED), True, "an earlier ordinal counts"),
]


@pytest.mark.parametrize(("states", "accepted", "reason"), ACCEPTED)
def test_what_counts_as_submitted(states, accepted, reason) -> None:
    made = tuple(submission_of(n, state) for n, state in enumerate(states, 1))
    shard = shard_of(0, submissions=made)
    run = replace(run_of(shards=2), shards=(shard, shard_of(1)))
    assert shard.was_accepted is accepted, reason
    assert run.was_submitted is accepted, reason
    beside = len(states) > 1 and states[0] is not U.REFUSED
    assert run.was_submitted_besides(shard) is beside, reason
    assert run.was_submitted_besides(run.shards[1]) is accepted, reason


def test_a_receipt_remembers_that_something_was_submitted() -> None:
    assert run_of(shards=0, submitted=0, phase=RunPhase.ENDED).was_submitted is False
    assert replace(run_of(shards=0), submitted=True).was_submitted


def test_changing_one_shard_or_its_newest_submission_leaves_the_rest() -> None:
    run = run_of(shards=3, submitted=3)
    first = replace(submission_of(1), batch_id="older")
    shard = replace(run.shards[1], submissions=(first, submission_of(2)))
    changed = run.with_shard(shard.with_last(batch_id="new"))
    assert changed.shards[0] is run.shards[0]
    assert changed.shards[2] is run.shards[2]
    assert [s.batch_id for s in changed.shards[1].submissions] == ["older", "new"]
    assert changed.shards[1].last.batch_id == "new"
    assert shard_of(0).last is None


def test_what_is_known_of_batches_that_appeared_late() -> None:
    given_up = replace(submission_of(1, U.FENCED), batch_id="", fenced_at=START)
    shard = shard_of(0, S.SUBMITTED, submissions=(given_up, submission_of(2)))
    assert shard.missing == (given_up,)
    assert not shard.is_doubled
    late = replace(submission_of(1), batch_id="late")
    doubled = replace(shard, late=(late,))
    assert doubled.is_doubled
    assert not doubled.missing
    assert [s.batch_id for s in doubled.live] == ["batch-2", "late"]
    assert doubled.batch("late") == late
    assert doubled.batch("other") is None
    ended = doubled.with_batch("late", state=U.ENDED)
    assert [s.batch_id for s in ended.live] == ["batch-2"]
    after_all = replace(shard, submissions=(replace(given_up, state=U.ENDED, batch_id="b"),))
    assert after_all.is_doubled, "it was followed although it had been given up"


def test_a_run_that_began_anew_is_another_life_also_where_it_was_written_in_between() -> None:
    run = run_of()
    read = decode(Run, json.loads(json.dumps(encode(run))))
    assert run.is_same_life(replace(read, phase=RunPhase.ENDED))
    assert not run.is_same_life(replace(run, created_at=run.created_at + timedelta(microseconds=1)))


def test_kinds_of_places() -> None:
    assert Place("configmap://ml/out").is_config_map
    assert not Place("s3://b/configmap://").is_config_map


# ---------------------------------------------------------------- the journal as it is written


def full_run():
    """A run with something in every field."""
    failure = BatchFailure("c", "m", quota=True, transient=True, nothing_processed=False)
    submission = replace(
        submission_of(2, U.ENDED),
        attempted=True,
        files=("a", "b"),
        failure=failure,
        fenced_at=START,
        cancel_accepted_at=START,
        collected=True,
        batch_state=BatchState.PARTIAL,
    )
    shard = shard_of(
        0,
        S.COLLECTED,
        attempt=2,
        submissions=(submission,),
        collected=Collected(1, 2, 3, 4, 5, 6, "Expired"),
        pooled=True,
        not_before=START,
        put_backs=1,
        output=7,
        longest=3,
        unsent_code="BudgetExceeded",
    )
    return replace(
        run_of(),
        shards=(shard,),
        phase=RunPhase.PARKED,
        input=InputSnapshot("s3://x", 1, 2, "f"),
        cursor=Cursor(1, 2, 3, 4, 5, "f", True),
        staged=Staged(1, 2, 3, 4, (BadRecord(1, "c", "m", "s"),), True),
        passes=2,
        cancel=Cancel(CancelWhy.ORPHANED, START),
        verdict=Verdict(Ending.CANCELLED, "Cancelled", "m"),
        results=Results("a", "b", "c", "d", 1, 2, 3, 4, 5),
        start_time=START,
        completion_time=START,
        ordinal_floor=9,
        ordinal_found=3,
        taken_from="installation-2",
        earlier=Earlier(
            asking=False, expected=True, certain=True, accepted=True, shown=("a",), strange=("b",)
        ),
        adopted=True,
        submitted=True,
        parked_s=60,
        left=("s3://former/staging/",),
        price=Price("2", "8", "1", "4", "EUR", PriceSource.PROVIDER, 100),
    )


def test_every_field_of_a_journal_survives_being_written() -> None:
    run = full_run()
    stored = json.loads(json.dumps(encode(run)))
    assert decode(Run, stored) == run
    defaults = {f.name for f in dataclasses.fields(run) if f.default is not dataclasses.MISSING}
    unset = {n for n in defaults if getattr(run, n) == Run.__dataclass_fields__[n].default}
    assert unset == {"schema", "key_version", "encoder"}, "a new field must be set above"


def test_a_journal_of_today_reads_what_was_written_without_later_fields() -> None:
    stored = encode(run_of(shards=1, submitted=1))
    for member in ("adopted", "submitted", "passes", "ordinalFloor"):
        stored.pop(member, None)
    assert decode(Run, stored).ordinal_floor == 0


@given(st.data())
@settings(max_examples=50)
def test_a_damaged_journal_is_refused_and_never_half_read(data) -> None:
    stored = json.loads(json.dumps(encode(full_run())))
    member = data.draw(st.sampled_from(sorted(stored)))
    stored[member] = data.draw(st.sampled_from([7.5, ["x"], {"unknown": 1}, "nonsense", True]))
    try:
        run = decode(Run, stored)
    except InvalidObject as error:
        told = str(error)
    else:
        told = member if encode(run)[member] == stored[member] else ""
    assert member in told, "wrong content is named, right content is kept"

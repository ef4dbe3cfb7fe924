"""What is tried again and again for ever: the journal does not grow, and ordinals only rise."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from batchinference.core.effects import DeleteInput, StartTask, Submit
from batchinference.core.notes import Notes
from batchinference.core.outcomes import BatchSeen, InputDeleted, SubmitAnswered, TaskDone
from batchinference.core.submit import next_ordinal
from batchinference.model.batch import (
    Accepted,
    BatchFailure,
    NotSent,
    OutcomeUnknown,
    RefusalKind,
    Refused,
)
from batchinference.model.codec import encode
from batchinference.model.run import ShardState
from batchinference.model.work import TaskKind, Uploaded
from unit.core.given import (
    NOW,
    TIMING,
    after,
    decided,
    failed_view,
    fold_all,
    in_state,
    observed,
    of_kind,
    run_with,
    view_of,
)

S = ShardState
OUTCOMES = [
    (200, Refused(RefusalKind.QUOTA, "", "full" * 60), "a quota refuses the create call"),
    (200, Refused(RefusalKind.BILLING, "insufficient_quota", "x" * 240), "nobody pays"),
    (200, Refused(RefusalKind.CREDENTIALS, "401", "x" * 240), "the key is not valid"),
    (200, NotSent("OutputConflict", "x" * 240), "the claim is not ours"),
    (2000, BatchFailure("token_limit_exceeded", "x" * 240, quota=True), "a quota fails the batch"),
    (200, BatchFailure("billing_hard_limit_reached", "x" * 240, billing=True), "nobody pays"),
    (300, None, "now this, now that"),
]


@pytest.mark.parametrize(("times", "outcome", "reason"), OUTCOMES)
def test_a_shard_that_never_gets_through_leaves_no_more_and_no_more_behind(
    times, outcome, reason
) -> None:
    run, notes, now = run_with(in_state(S.QUEUED)), Notes(), NOW
    ordinals, sizes, waits, deleted = [], [], [], 0
    for turn in range(times):
        chosen = outcome or OUTCOMES[turn * 7 % 5][1]
        ordinal = next_ordinal(run, run.shards[0])
        upload = decided(run, observed(now=now), notes)
        assert StartTask(TaskKind.UPLOAD, 0, ordinal) in upload.effects, reason
        done = TaskDone(TaskKind.UPLOAD, 0, ordinal, Uploaded(f"file-{ordinal}"))
        run, notes = fold_all(upload.run, done, notes=upload.notes, now=now)
        claim = decided(run, observed(now=now), notes)
        assert len(of_kind(claim, Submit)) == 1
        run, notes = claim.run, claim.notes
        ordinals.append(run.shards[0].last.ordinal)
        if isinstance(chosen, BatchFailure):
            batch_id = f"batch_{ordinal:030d}"
            view = view_of(run, ordinal=ordinal, batch_id=batch_id)
            over = failed_view(run, chosen, ordinal=ordinal, batch_id=batch_id)
            news = [SubmitAnswered(0, ordinal, Accepted(view)), BatchSeen(over)]
        else:
            news = [SubmitAnswered(0, ordinal, chosen)]
        run, notes = fold_all(run, *news, notes=notes, now=now)
        (shard,) = run.shards
        assert (shard.state, shard.attempt) == (S.QUEUED, 1), reason
        sizes.append(len(json.dumps(encode(run))))
        waits.append((shard.not_before - now).total_seconds())
        waiting = decided(run, observed(now=now), notes)
        for deletion in of_kind(waiting, DeleteInput):
            assert deletion.input_ref == f"file-{ordinal}"
            deleted += 1
            if turn % 2:  # or the provider does not let us
                gone = InputDeleted(0, ordinal)
                run, notes = fold_all(run, gone, notes=waiting.notes, now=now)
                assert not of_kind(decided(run, observed(now=now), notes), DeleteInput)
        now = shard.not_before
    assert ordinals == list(range(1, times + 1))
    assert deleted == times, "no input is left behind"
    assert max(sizes[50:]) - max(sizes[:50]) < 64, "only numbers may get longer"
    assert max(waits) <= TIMING.quota_most_s
    assert waits[-1] >= TIMING.retry_most_s, "it is not tried in a tight loop"
    assert len(notes.uploads) <= 1


def test_what_was_accepted_once_stays_so_however_often_it_came_to_nothing() -> None:
    run, notes = run_with(in_state(S.SUBMITTED)), Notes()
    full = BatchFailure("token_limit_exceeded", "full", quota=True)
    run, notes = fold_all(run, BatchSeen(failed_view(run, full)), notes=notes)
    refused = Refused(RefusalKind.QUOTA, "", "full")
    for ordinal in range(2, 20):
        ready = replace(run, shards=(replace(run.shards[0], not_before=None),))
        run = decided(ready, notes=notes.with_upload((0, ordinal), "file-n")).run
        run, notes = fold_all(run, SubmitAnswered(0, ordinal, refused), notes=notes)
        assert run.was_submitted


def test_an_unanswered_call_is_not_a_put_back() -> None:
    run = run_with(in_state(S.CLAIMED))
    run, _ = fold_all(run, SubmitAnswered(0, 1, OutcomeUnknown("no answer")), now=after(1))
    assert (run.shards[0].state, run.shards[0].put_backs) == (S.UNKNOWN, 0)

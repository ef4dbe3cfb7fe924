"""Folding many outcomes: none is lost because of another, and none takes longer because of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core import absorb, folding
from batchinference.core.effects import (
    ASKING,
    CancelBatch,
    DeleteInput,
    LookUp,
    Search,
    SetFinalizer,
    StartTask,
    Submit,
    following,
)
from batchinference.core.folding import Dropped, came_of, fold
from batchinference.core.notes import Notes
from batchinference.core.outcomes import (
    BatchMissing,
    BatchSeen,
    CancelAnswered,
    EffectFailed,
    FinalizerSet,
    InputDeleted,
    LookedUp,
    Outcome,
    ProviderAsked,
    Searched,
    ShardStaged,
    SubmitAnswered,
    TaskDone,
)
from batchinference.model.batch import BatchState, BatchView, CancelOutcome, NotSent
from batchinference.model.run import Run, ShardState
from batchinference.model.staging import Cursor
from batchinference.model.status import Reason
from batchinference.model.work import Checkpoint, FaultKind, TaskFault, TaskKind
from builders import shard_of
from unit.core.given import TIMING, after, fold_all, in_state, run_with, setting, view_of

SUBMITTED = in_state(ShardState.SUBMITTED)
FAULT = TaskFault(FaultKind.RETRY, "R", "it failed")
CHECKPOINT = Checkpoint(shard_of(0), Cursor(0, 10, 1, 1, 0))
UNIT_OF_WORK = 8
"""Comparisons of batch ids for one view, at most."""


class CountedID(str):
    """A batch id that counts how often it is compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedID.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def one_submission(run: Run, views: int, **members: Any) -> list[Outcome]:
    """Batches that all say to be the first submission of the first shard."""
    ids = [CountedID(f"batch-{n}") for n in range(views)]
    return [BatchSeen(view_of(run, batch_id=i, **members)) for i in ids]


@pytest.mark.parametrize(
    ("state", "failure"), [(BatchState.IN_PROGRESS, None), (BatchState.COMPLETED, None)]
)
def test_thousands_of_views_of_one_submission_take_their_number_of_comparisons(
    state: BatchState, failure: None
) -> None:
    run = run_with(SUBMITTED)
    CountedID.compared = 0
    appeared = fold(run, Notes(), one_submission(run, 2000), setting())
    known = appeared.run.shards[0]
    assert len(known.late) == 2000
    again = one_submission(run, 2000, state=state, failure=failure)
    seen = fold(appeared.run, appeared.notes, again, setting())
    assert CountedID.compared <= 2 * 2000 * UNIT_OF_WORK
    over = [s for s in seen.run.shards[0].late if s.batch_state is state]
    assert len(over) == 2000 or state is BatchState.IN_PROGRESS


def test_a_batch_that_is_shown_many_times_is_folded_once_as_last_shown() -> None:
    run = run_with(SUBMITTED)
    shown = [BatchSeen(view_of(run, completed=n)) for n in range(100)]
    folded = fold(run, Notes(), shown, setting())
    assert folded.run == run
    assert [view.completed for view in folded.notes.views.values()] == [99]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*BatchState]),
            st.integers(0, 1),
            st.integers(1, 2),
            st.sampled_from(["a", "b", "c", "batch-0-1", "batch-1-1"]),
        ),
        unique_by=lambda drawn: drawn[3],
        max_size=5,
    )
)
def test_views_in_one_go_are_as_good_as_one_by_one(drawn: list[Any]) -> None:
    run = run_with(SUBMITTED, in_state(ShardState.SUBMITTED, 1))
    seen = [
        BatchSeen(view_of(run, shard, ordinal, state, batch_id=name, completed=1, files=("f",)))
        for state, shard, ordinal, name in drawn
    ]
    in_one_go = fold(run, Notes(), seen, setting())
    one_by_one, notes = fold_all(run, *seen)
    assert in_one_go.notes == notes
    # A batch that appears beside one which ends in the same listing may be seen before that end.
    known = [[replace(s, ordinal=0) for s in shard.made] for shard in in_one_go.run.shards]
    assert known == [[replace(s, ordinal=0) for s in shard.made] for shard in one_by_one.shards]


# ---------------------------------------------------------------- poison


def poisoned(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(absorb, name, fails)


def test_an_outcome_that_can_t_be_folded_is_dropped_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    error = KeyError("unforeseen")
    poisoned(monkeypatch, "looked_up", error)
    run = run_with(SUBMITTED)
    bad = LookedUp(0, 1, None)
    outcomes = [
        CancelAnswered(0, "batch-0-1", CancelOutcome.ACCEPTED),
        bad,
        BatchSeen(view_of(run, completed=7)),
    ]
    folded = fold(run, Notes(), outcomes, setting())
    assert folded.dropped == (Dropped(bad, error),)
    assert folded.run.shards[0].submissions[0].cancel_accepted_at is not None
    assert folded.notes.views["batch-0-1"].completed == 7
    noted = folded.notes.failures[came_of(bad)]
    assert noted.fault.reason == Reason.INTERNAL_ERROR
    assert noted.retry_at == after(TIMING.retry_first_s)


def test_of_batches_seen_in_a_row_only_the_one_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(SUBMITTED, in_state(ShardState.SUBMITTED, 1))
    really = absorb.batches_seen

    def picky(run: Run, notes: Notes, views: Any, given_setting: Any) -> tuple[Run, Notes]:
        if any(view.completed < 0 for view in views):
            raise ValueError("fewer than none")
        return really(run, notes, views, given_setting)

    monkeypatch.setattr(absorb, "batches_seen", picky)
    monkeypatch.setattr(folding, "batches_seen", picky)
    seen = [BatchSeen(view_of(run, n, completed=count)) for n, count in ((0, -1), (1, 5))]
    folded = fold(run, Notes(), seen, setting())
    assert [one.outcome for one in folded.dropped] == seen[:1]
    assert {view.completed for view in folded.notes.views.values()} == {5}
    assert set(folded.notes.failures) == {following("batch-0-1")}


VIEW = BatchView("batch-9", BatchState.IN_PROGRESS)
OF: list[tuple[Outcome, str]] = [
    (Searched(()), Search().id),
    (TaskDone(TaskKind.UPLOAD, 2, 3, FAULT), StartTask(TaskKind.UPLOAD, 2, 3).id),
    (ShardStaged(CHECKPOINT), StartTask(TaskKind.STAGE).id),
    (SubmitAnswered(2, 3, NotSent("R", "not sent")), Submit(2, 3, {}).id),
    (LookedUp(2, 3, None), LookUp(2, 3, "", fenced=True).id),
    (InputDeleted(2, 3), DeleteInput(2, 3, "").id),
    (CancelAnswered(2, "b", CancelOutcome.ACCEPTED), CancelBatch(2, "b").id),
    (BatchSeen(VIEW), following("batch-9")),
    (BatchMissing("batch-9"), following("batch-9")),
    (ProviderAsked(None), ASKING),
    (FinalizerSet(present=True), SetFinalizer(present=False).id),
    (EffectFailed(LookUp(2, 3, "", fenced=True), FAULT), LookUp(2, 3, "", fenced=False).id),
]


@pytest.mark.parametrize(("outcome", "effect_id"), OF)
def test_an_outcome_names_what_it_came_of(outcome: Outcome, effect_id: str) -> None:
    assert came_of(outcome) == effect_id

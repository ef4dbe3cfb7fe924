"""What somebody paused: a job, or its provider object."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.effects import CancelBatch, StartTask, Submit
from batchinference.core.notes import Notes
from batchinference.core.view import Scene, status_of
from batchinference.model.metadata import PAUSED
from batchinference.model.run import CancelWhy, RunPhase, ShardState
from batchinference.model.status import Reason
from builders import job, run_of
from unit.core.given import NOW, TIMING, decided, in_state, observed, of_kind, owned, run_with, seen

S = ShardState
HELD = replace(job(), metadata={"annotations": {PAUSED: "true"}})
BY_PROVIDER = "Annotation `batchinference.dev/paused` of InferenceProvider 'openai' holds"
UPLOADED = Notes(uploads={(0, 1): "file-1"})


@pytest.mark.parametrize("value", ["", "false", "True", "yes"])
def test_only_true_pauses(value) -> None:
    builder = replace(job(), metadata={"annotations": {PAUSED: value}})
    assert not decided(run_with(in_state(S.QUEUED)), observed(builder)).held


@pytest.mark.parametrize("phase", [RunPhase.ADMITTING, RunPhase.STAGING])
def test_a_paused_job_reads_nothing(phase) -> None:
    decision = decided(owned(run_of(phase=phase, shards=0)), observed(HELD))
    assert (decision.held, bool(decision.paused)) == (True, True)
    assert not of_kind(decision, StartTask)


@pytest.mark.parametrize(
    "world", [observed(HELD), observed(paused_provider=BY_PROVIDER)], ids=["job", "provider"]
)
def test_nothing_is_submitted(world) -> None:
    decision = decided(run_with(in_state(S.QUEUED)), world, UPLOADED)
    assert not of_kind(decision, Submit)
    assert PAUSED in decision.paused
    assert not decision.asking


def test_a_paused_provider_object_does_not_stop_staging() -> None:
    decision = decided(
        owned(run_of(phase=RunPhase.STAGING, shards=0)), observed(paused_provider=BY_PROVIDER)
    )
    assert of_kind(decision, StartTask)
    assert not decision.held


def test_a_paused_job_is_not_cancelled_by_its_spec_until_the_pause_ends() -> None:
    run = run_with(in_state(S.SUBMITTED))
    assert decided(run, observed(HELD.cancelled())).run.cancel is None
    freed = decided(run, observed(job().cancelled()))
    assert freed.run.cancel.why is CancelWhy.DESIRED


def test_a_paused_provider_object_stops_no_cancel() -> None:
    run = run_with(in_state(S.SUBMITTED))
    decision = decided(run, observed(job().cancelled(), paused_provider=BY_PROVIDER))
    assert of_kind(decision, CancelBatch)


def test_deleting_a_paused_job_cancels_it() -> None:
    decision = decided(run_with(in_state(S.SUBMITTED)), observed(HELD, deleting=True))
    assert decision.run.cancel.why is CancelWhy.DELETED
    assert of_kind(decision, CancelBatch)


@pytest.mark.parametrize(
    ("state", "status"), [(S.QUEUED, "True"), (S.SUBMITTED, "False")], ids=["before", "after"]
)
def test_the_condition_says_who_holds_it(state, status) -> None:
    run = run_with(in_state(state), in_state(S.QUEUED, 1))
    scene = Scene(seen(job()), run, Notes(), None, True, NOW, TIMING, paused=BY_PROVIDER)
    (found,) = (c for c in status_of(scene).conditions if c.type == "Suspended")
    assert (found.status, found.reason) == (status, Reason.PAUSED)
    assert BY_PROVIDER in found.message

"""The status, against the table of the design and the tools that read it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.absorb import absorb
from batchinference.core.counts import request_counts
from batchinference.core.effects import ASKING
from batchinference.core.notes import Notes
from batchinference.core.outcomes import TaskDone
from batchinference.core.problem import Problem
from batchinference.core.receipt import receipt
from batchinference.core.view import (
    Scene,
    conditions_in,
    is_final,
    is_shown_elsewhere,
    shown_state,
    shows_submission,
    status_of,
)
from batchinference.model.batch import BatchState
from batchinference.model.codec import encode
from batchinference.model.run import (
    Cancel,
    CancelWhy,
    Collected,
    Ending,
    Results,
    RunPhase,
    ShardState,
    SubmissionState,
    Verdict,
)
from batchinference.model.staging import Staged
from batchinference.model.status import ConditionType, JobStatus, Reason, State
from batchinference.model.work import Cleaned, FaultKind, TaskKind
from builders import START, job, run_of, shard_of, submission_of
from unit.core.given import (
    DESCRIBED,
    NOW,
    TIMING,
    after,
    failing,
    in_state,
    owned,
    run_with,
    seen,
    setting,
    view_of,
)

S, P = ShardState, RunPhase
SUCCEEDED = Verdict(Ending.SUCCEEDED, Reason.SUCCEEDED, "100 of 100 records were answered")
PARTIAL = Verdict(Ending.SUCCEEDED, Reason.PARTIAL, "95 of 100 records were answered")
FAILED = Verdict(Ending.FAILED, Reason.TOLERANCE_EXCEEDED, "60 of 100 records were answered")
REJECTED = Verdict(Ending.FAILED, Reason.BAD_RECORDS, "3 of 3 records can't be sent")
CANCELLED = Verdict(Ending.CANCELLED, Reason.CANCELLED, "The run was cancelled")
DELETED = Cancel(CancelWhy.DELETED, NOW)
MISSING = Problem(Reason.SECRET_NOT_FOUND, "no such Secret", NOW, has_grace=True)
LOST = Problem(Reason.JOURNAL_LOST, "its journal is gone", NOW)
NOT_IMPLEMENTED = Problem(Reason.NOT_IMPLEMENTED, "can't act on `spec.budget`", NOW)


def scene(run, problem=None, *, held=False, now=NOW, notes=None, builder=None):
    return Scene(seen(builder or job()), run, notes or Notes(), problem, held, now, TIMING)


def table(status: JobStatus) -> dict[str, str]:
    return {c.type: c.status for c in status.conditions}


def kstatus(status: JobStatus, generation: int = 1, *, deleting: bool = False) -> str:
    """kstatus's own order, as its source has it; our kind has no rules of its own there."""
    said = table(status)
    if deleting:
        return "Terminating"
    if status.observed_generation != generation:
        return "InProgress"
    if said.get("Reconciling") == "True":
        return "InProgress"
    if said.get("Stalled") == "True":
        return "Failed"
    if "Ready" in said:
        return "Current" if said["Ready"] == "True" else "InProgress"
    return "Current"


def admitting(**members):
    return owned(run_of(shards=0, **members))


def over(verdict, *shards, phase=P.CLEANING, **members):
    made = run_with(*(shards or (in_state(S.COLLECTED),)), **members)
    return replace(made, phase=phase, verdict=verdict, completion_time=NOW)


def unpaid(verdict):
    return replace(run_of(shards=0, phase=P.CLEANING), verdict=verdict, completion_time=NOW)


TABLE = [
    # run, problem, held, state, Submitted Complete Failed Suspended Reconciling Stalled, kstatus
    (None, None, False, State.PENDING, "FFFFTF", "InProgress", "just seen"),
    (None, MISSING, False, State.PENDING, "FFFFTF", "InProgress", "a reference may yet appear"),
    (None, NOT_IMPLEMENTED, False, State.STALLED, "FFFFFT", "Failed", "a field we can't do"),
    (None, None, True, State.SUSPENDED, "FFFTFF", "Current", "held before anything"),
    (admitting(), None, False, State.PENDING, "FFFFTF", "InProgress", "claiming, first look"),
    (admitting(), None, True, State.SUSPENDED, "FFFTFF", "Current", "held"),
    (admitting(phase=P.STAGING), None, False, State.STAGING, "FFFFFF", "Current", "staging"),
    (run_with(in_state(S.QUEUED)), None, False, State.QUEUED, "FFFFFF", "Current", "in a queue"),
    (run_with(in_state(S.QUEUED)), None, True, State.SUSPENDED, "FFFTFF", "Current", "held"),
    (run_with(in_state(S.CLAIMED)), None, False, State.QUEUED, "FFFFFF", "Current", "being sent"),
    (run_with(in_state(S.UNKNOWN)), None, False, State.QUEUED, "UFFFFF", "Current", "being asked"),
    (run_with(in_state(S.FENCING)), None, False, State.QUEUED, "UFFFFF", "Current", "being asked"),
    (
        run_with(in_state(S.UNKNOWN)),
        Problem(Reason.OUTCOME_UNKNOWN, "m", NOW),
        False,
        State.STALLED,
        "UFFFFT",
        "Failed",
        "can't be asked conclusively",
    ),
    (
        run_with(in_state(S.UNKNOWN), in_state(S.SUBMITTED, 1)),
        None,
        False,
        State.RUNNING,
        "TFFFFF",
        "Current",
        "something was accepted",
    ),
    (run_with(in_state(S.SUBMITTED)), None, False, State.RUNNING, "TFFFFF", "Current", "running"),
    (
        run_with(in_state(S.SUBMITTED), in_state(S.QUEUED, 1)),
        None,
        True,
        State.RUNNING,
        "TFFFFF",
        "Current",
        "suspended too late for what runs",
    ),
    (
        run_with(in_state(S.SUBMITTED)),
        Problem(Reason.BATCH_NOT_FOUND, "m", NOW),
        False,
        State.STALLED,
        "TFFFFT",
        "Failed",
        "a person must act",
    ),
    (run_with(in_state(S.ENDED)), None, False, State.COLLECTING, "TFFFFF", "Current", "ended"),
    (
        run_with(in_state(S.COLLECTED)),
        None,
        False,
        State.COLLECTING,
        "TFFFFF",
        "Current",
        "pooling or finishing",
    ),
    (
        run_with(in_state(S.COLLECTED), in_state(S.QUEUED, 1)),
        None,
        False,
        State.RUNNING,
        "TFFFFF",
        "Current",
        "the next shard waits for its place",
    ),
    (
        replace(run_with(in_state(S.COLLECTED)), phase=P.FINISHING),
        None,
        False,
        State.COLLECTING,
        "TFFFFF",
        "Current",
        "finishing",
    ),
    (
        run_with(in_state(S.SUBMITTED), cancel=DELETED),
        None,
        False,
        State.CANCELLING,
        "TFFFFF",
        "Current",
        "being cancelled",
    ),
    (over(SUCCEEDED), None, False, State.SUCCEEDED, "TTFFFF", "Current", "done"),
    (over(PARTIAL), None, False, State.SUCCEEDED, "TTFFFF", "Current", "within tolerance"),
    (over(SUCCEEDED), LOST, False, State.SUCCEEDED, "TTFFFF", "Current", "an end is an end"),
    (over(SUCCEEDED), None, True, State.SUCCEEDED, "TTFFFF", "Current", "an end is an end"),
    (over(FAILED), None, False, State.FAILED, "TFTFFT", "Failed", "tolerance exceeded"),
    (unpaid(REJECTED), None, False, State.FAILED, "FFTFFT", "Failed", "before anything was paid"),
    (over(CANCELLED), None, False, State.CANCELLED, "TFTFFT", "Failed", "cancelled"),
    (over(SUCCEEDED, adopted=True), None, False, State.SUCCEEDED, "TTFFFF", "Current", "adopted"),
    (over(FAILED, adopted=True), None, False, State.FAILED, "TFTFFT", "Failed", "adopted"),
    (over(CANCELLED, phase=P.PARKED), None, False, State.CANCELLED, "TFTFFT", "Failed", "parked"),
]
LETTER = {"True": "T", "False": "F", "Unknown": "U"}
ORDER = ("Submitted", "Complete", "Failed", "Suspended", "Reconciling", "Stalled")


def test_the_cost_is_shown_where_there_is_a_price() -> None:
    won = Verdict(Ending.SUCCEEDED, Reason.SUCCEEDED, "3 of 3")
    priced = Results(completed=3, currency="USD", cost="1.00", on_demand_cost="2.00")
    for results, cost in (
        (priced, {"currency": "USD", "actual": "1.00", "onDemand": "2.00"}),
        (Results(completed=3), None),
    ):
        status = encode(status_of(scene(replace(over(won), results=results))))
        assert status.get("cost") == cost


@pytest.mark.parametrize(("run", "problem", "held", "state", "letters", "verdict", "reason"), TABLE)
def test_the_table_of_states(run, problem, held, state, letters, verdict, reason) -> None:
    status = status_of(scene(run, problem, held=held))
    said = table(status)
    assert status.state is state, reason
    assert "".join(LETTER[said[kind]] for kind in ORDER) == letters, reason
    assert kstatus(status) == verdict, reason
    assert shown_state(scene(run, problem, held=held)) is state


def test_a_missing_reference_stalls_after_the_grace_and_heals_by_itself() -> None:
    for passed, wanted in ((59, "InProgress"), (60, "Failed"), (3600, "Failed")):
        assert kstatus(status_of(scene(None, MISSING, now=after(passed)))) == wanted
    assert kstatus(status_of(scene(None, now=after(3601)))) == "InProgress"
    assert kstatus(status_of(scene(run_with(in_state(S.SUBMITTED)), MISSING))) == "Current"


@pytest.mark.parametrize("row", TABLE)
def test_what_holds_in_every_state(row) -> None:
    run, problem, held, *_ = row
    status = status_of(scene(run, problem, held=held))
    said = table(status)
    assert set(said) == DESCRIBED
    assert "Ready" not in said, "kstatus would read a queue as failure"
    assert not (said["Complete"] == "True" and said["Failed"] == "True")
    assert not (said["Reconciling"] == "True" and said["Stalled"] == "True")
    assert said["Failed"] != "True" or said["Stalled"] == "True", "else kstatus says Current"
    assert (status.completion_time is not None) == (run is not None and run.is_over)
    for condition in status.conditions:
        assert condition.reason.isalnum(), f"{condition.type} needs a CamelCase reason"
        assert condition.reason[0].isupper()
        assert condition.message
        assert condition.observed_generation == status.observed_generation == 1
        assert condition.last_transition_time == NOW
    assert encode(status)["conditions"][0]["type"] == "Submitted"


# ---------------------------------------------------------------- transition times


@given(st.lists(st.sampled_from(TABLE), min_size=2, max_size=5))
def test_a_transition_time_moves_only_with_the_status(rows) -> None:
    builder = job()
    before: JobStatus | None = None
    for number, (run, problem, held, *_) in enumerate(rows):
        now = NOW + timedelta(seconds=number, microseconds=77)
        if before is not None:
            builder = builder.with_status(encode(before))
        status = status_of(scene(run, problem, held=held, now=now, builder=builder))
        for new in status.conditions:
            assert new.last_transition_time.microsecond == 0
            old = conditions_in(encode(before)).get(new.type) if before else None
            if old is not None and old.status == new.status:
                assert new.last_transition_time == old.last_transition_time
            elif run is not None:
                assert new.last_transition_time == now.replace(microsecond=0)
        before = status


def test_the_same_scene_gives_the_same_status_however_late() -> None:
    first = encode(status_of(scene(run_with(in_state(S.SUBMITTED)))))
    builder = job().with_status(first)
    later = scene(run_with(in_state(S.SUBMITTED)), now=after(999), builder=builder)
    assert encode(status_of(later)) == first, "nothing is written when nothing changed"


def test_long_messages_are_cut_for_the_schema() -> None:
    problem = Problem(Reason.INVALID_SPEC, "x" * 5000, NOW)
    stalled = next(c for c in status_of(scene(None, problem)).conditions if c.type == "Stalled")
    assert len(stalled.message) == 2048
    assert stalled.message.endswith("…")


def test_conditions_that_cannot_be_read_are_left_out() -> None:
    good = encode(status_of(scene(None)))["conditions"][0]
    status = {"conditions": ["text", {"type": "X"}, good, None]}
    assert set(conditions_in(status)) == {"Submitted"}
    assert conditions_in({"conditions": "text"}) == {}
    assert conditions_in({}) == {}


# ---------------------------------------------------------------- what conditions say


def said(status, kind):
    return next((c.reason, c.message) for c in status.conditions if c.type == kind)


def test_why_a_queued_run_waits_is_the_newest_failure() -> None:
    run = run_with(in_state(S.QUEUED))
    assert said(status_of(scene(run)), "Submitted")[0] == Reason.QUEUED
    notes = failing("look:1:1", FaultKind.RETRY, Reason.PROVIDER_UNAVAILABLE)
    later = failing("submit:0", FaultKind.STALLED, Reason.QUOTA_WAIT, notes)
    status = status_of(scene(run, notes=later))
    assert said(status, "Submitted")[0] == Reason.QUOTA_WAIT
    assert "submit:0 failed" in said(status, "Submitted")[1]
    assert "1 shards: 1 queued, 0 at the provider, 0 finished" in said(status, "Submitted")[1]


def test_what_a_pending_run_waits_for() -> None:
    assert said(status_of(scene(None)), "Reconciling")[0] == Reason.PENDING
    assert said(status_of(scene(None, MISSING)), "Reconciling")[0] == Reason.SECRET_NOT_FOUND
    failing_ = failing("task:Admit", FaultKind.RETRY, Reason.PROVIDER_UNAVAILABLE)
    status = status_of(scene(admitting(), notes=failing_))
    assert said(status, "Reconciling")[1] == "task:Admit failed"


def test_the_column_of_reasons_has_the_one_that_matters() -> None:
    """`kubectl get -o wide` reads the reason of Stalled, whatever its status is."""
    quota = failing("submit:0", FaultKind.STALLED, Reason.QUOTA_WAIT)
    for scene_, reason in (
        (scene(None, MISSING), Reason.SECRET_NOT_FOUND),
        (scene(admitting(), notes=quota), Reason.QUOTA_WAIT),
        (scene(None), Reason.PENDING),
        (scene(run_with(in_state(S.QUEUED)), notes=quota), Reason.QUOTA_WAIT),
        (scene(run_with(in_state(S.SUBMITTED))), Reason.RUNNING),
        (scene(over(PARTIAL)), Reason.PARTIAL),
        (scene(over(SUCCEEDED)), Reason.SUCCEEDED),
        (scene(over(FAILED)), Reason.TOLERANCE_EXCEEDED),
    ):
        assert said(status_of(scene_), "Stalled")[0] == reason


@pytest.mark.parametrize("row", TABLE)
def test_a_message_is_told_once_and_not_by_every_condition(row) -> None:
    run, problem, held, *_ = row
    status = status_of(scene(run, problem, held=held))
    told = [c.message for c in status.conditions if c.type != "Stalled" or not _also_failed(status)]
    assert len(set(told)) == len(told)


def _also_failed(status: JobStatus) -> bool:
    return table(status)["Failed"] == "True"  # kstatus needs the message in Stalled too


def test_what_delays_a_live_run_is_told_beside_where_it_is() -> None:
    live = run_with(in_state(S.SUBMITTED), in_state(S.QUEUED, 1))
    text = said(status_of(scene(live, MISSING)), "Submitted")[1]
    assert "2 shards: 1 queued, 1 at the provider, 0 finished" in text
    assert "no such Secret" in text
    stalled = status_of(scene(live, MISSING, now=after(999)))
    assert "no such Secret" not in said(stalled, "Submitted")[1], "Stalled says so"
    assert said(stalled, "Stalled")[1] == "no such Secret"
    lost = scene(run_with(in_state(S.UNKNOWN)), notes=failing("look:0:1", FaultKind.RETRY, "R"))
    assert "look:0:1 failed" in said(status_of(lost), "Submitted")[1]
    staging = admitting(phase=P.STAGING)
    assert "being read" in said(status_of(scene(staging)), "Submitted")[1]
    assert "accepted" in said(status_of(scene(admitting(), held=True)), "Submitted")[1]


def test_times_are_whole_seconds_as_everywhere_in_kubernetes() -> None:
    odd = START.replace(microsecond=123456)
    status = status_of(scene(replace(over(SUCCEEDED, start_time=odd), completion_time=odd)))
    assert status.start_time == status.completion_time == START


def test_a_suspended_run_says_what_goes_on() -> None:
    run = run_with(in_state(S.SUBMITTED), in_state(S.QUEUED, 1), in_state(S.QUEUED, 2))
    reason, message = said(status_of(scene(run, held=True)), "Suspended")
    assert reason == Reason.ALREADY_SUBMITTED
    assert "2 shards are held back" in message


def test_an_adopted_run_says_so_and_a_failed_one_names_run_id() -> None:
    for verdict, named in ((SUCCEEDED, False), (FAILED, True), (CANCELLED, True)):
        run = over(verdict, adopted=True)
        reason, message = said(status_of(scene(run)), "Submitted")
        assert reason == Reason.ADOPTED
        assert run.key[:12] in message
        assert ("`runID`" in message) == named
    live = run_with(in_state(S.SUBMITTED), adopted=True)
    assert said(status_of(scene(live)), "Submitted")[0] == Reason.ADOPTED


def test_the_verdict_stands_in_its_condition() -> None:
    assert said(status_of(scene(over(PARTIAL))), "Complete") == (PARTIAL.reason, PARTIAL.message)
    failed = status_of(scene(over(FAILED)))
    assert said(failed, "Failed") == said(failed, "Stalled") == (FAILED.reason, FAILED.message)


# ---------------------------------------------------------------- without a journal


def shown(run, **members):
    return encode(status_of(scene(run, **members)))


NO_JOURNAL = [
    (None, None, False, False, "never looked at"),
    ({"observedGeneration": -1}, None, False, False, "the CRD's default"),
    (shown(None), None, False, False, "pending"),
    (shown(run_with(in_state(S.QUEUED))), None, False, False, "queued, nothing was sent"),
    (shown(run_with(in_state(S.SUBMITTED))), None, True, False, "submitted"),
    (shown(run_with(in_state(S.UNKNOWN))), None, True, False, "it may have been accepted"),
    (shown(over(SUCCEEDED)), None, True, True, "complete"),
    (shown(over(FAILED)), None, True, True, "failed"),
    (shown(unpaid(REJECTED)), None, True, True, "failed before anything was paid"),
]


@pytest.mark.parametrize(("status", "_", "submitted", "final", "reason"), NO_JOURNAL)
def test_what_a_status_alone_tells(status, _, submitted, final, reason) -> None:
    assert shows_submission(status or {}) is submitted, reason
    assert is_final(status or {}) is final, reason


@pytest.mark.parametrize(("status", "_", "submitted", "final", "reason"), NO_JOURNAL)
@pytest.mark.parametrize("problem", [LOST, None])
def test_a_lost_journal_is_never_forgotten_by_showing_it(
    status, _, submitted, final, reason, problem
) -> None:
    """However often it is shown: the next look must still find that something was submitted."""
    builder = job().with_status(status or {})
    for number in range(3):
        new = status_of(scene(None, problem, now=after(number), builder=builder))
        assert shows_submission(encode(new)) is submitted, reason
        assert is_final(encode(new)) is final, reason
        if submitted:
            for member in ("runKey", "submissions", "requestCounts", "shards", "completionTime"):
                assert encode(new).get(member) == (status or {}).get(member), reason
        if final:
            assert {**encode(new), "observedGeneration": 1} == status, "an end stays as it is"
        elif problem is not None:
            assert new.state is State.STALLED
            assert said(new, "Stalled")[0] == Reason.JOURNAL_LOST
        builder = job().with_status(encode(new))


def test_an_end_without_a_journal_still_observes_new_generations() -> None:
    """Else `kubectl wait` on a finished job whose TTL was edited hangs."""
    builder = job().with_status(shown(over(SUCCEEDED)))
    edited = replace(scene(None, LOST, builder=builder))
    meta = replace(edited.job.metadata, generation=7)
    status = status_of(replace(edited, job=replace(edited.job, metadata=meta)))
    assert status.observed_generation == 7
    assert {c.observed_generation for c in status.conditions} == {7}


def test_an_end_that_an_object_says_stands_when_its_run_comes_to_another_one() -> None:
    """Its journal was lost, and an object beside it that had not ended had the run made anew."""
    first = over(SUCCEEDED)
    builder = job().with_status(shown(first))
    later = replace(over(FAILED), completion_time=after(99))
    status = status_of(scene(later, now=after(100), builder=builder))
    assert status.state is State.SUCCEEDED
    assert status.completion_time == first.completion_time
    assert said(status, "Complete") == (SUCCEEDED.reason, SUCCEEDED.message)
    assert not any(c.is_true for c in status.conditions if c.type in {"Failed", "Stalled"})


def test_an_end_that_cannot_be_read_is_written_anew() -> None:
    entry = {"type": "Complete", "status": "True"}
    builder = job().with_status({"conditions": [entry], "observedGeneration": "many"})
    status = status_of(scene(over(FAILED), builder=builder))
    assert status.state is State.FAILED


# ---------------------------------------------------------------- numbers


def collected(index=0, **counts):
    return in_state(S.COLLECTED, index, collected=Collected(**counts))


def test_counts_come_from_what_was_collected_else_from_what_the_provider_counts() -> None:
    shards = (
        collected(0, answered=80, failed=5, unbilled=10, lost=5, unbilled_code="Expired"),
        in_state(S.SUBMITTED, 1),
        in_state(S.SUBMITTED, 2),
        in_state(S.QUEUED, 3),
    )
    run = replace(run_with(*shards), staged=Staged(410, 10, 1, 1))
    view = replace(view_of(run, 1, batch_id="batch-1-1"), completed=30, failed=3)
    notes = Notes().with_views([view])
    counts = request_counts(run, notes)
    assert (counts.total, counts.completed, counts.failed, counts.expired) == (410, 110, 23, 10)
    status = status_of(scene(run, notes=notes))
    assert status.progress == "110/410"
    assert (status.shards.total, status.shards.queued) == (4, 1)
    assert (status.shards.running, status.shards.finished) == (2, 1)


def test_a_server_that_counts_too_many_makes_no_progress_above_the_total() -> None:
    run = replace(run_with(in_state(S.SUBMITTED)), staged=Staged(100, 0, 1, 1))
    for completed, failed, shown_as in ((130, 0, "100"), (90, 90, "90"), (0, 7000, "0")):
        view = replace(view_of(run), completed=completed, failed=failed)
        status = status_of(scene(run, notes=Notes().with_views([view])))
        assert status.progress == f"{shown_as}/100"


def test_progress_counts_records_where_each_has_several_rows() -> None:
    shards = (collected(0, answered=90, failed=10), in_state(S.QUEUED, 1))
    run = replace(run_with(*shards), staged=Staged(200, 0, 1, 1, several=150))
    counts = request_counts(run, Notes())
    assert (counts.total, counts.completed, counts.failed) == (50, 22, 2)
    assert status_of(scene(run)).progress == "22/50"


def test_a_new_process_shows_what_was_shown_until_it_has_asked() -> None:
    run = run_with(in_state(S.SUBMITTED, 0), in_state(S.SUBMITTED, 1))
    run = replace(run, staged=Staged(200, 0, 1, 1))
    first = replace(view_of(run, 0, batch_id="batch-0-1"), completed=60)
    second = replace(view_of(run, 1, batch_id="batch-1-1"), completed=50, failed=1)
    before = shown(run, notes=Notes().with_views([first, second]))
    assert before["progress"] == "110/200"
    builder = job().with_status(before)
    assert shown(run, builder=builder) == before, "a restart writes nothing"
    half = Notes().with_views([replace(first, completed=99)])
    assert shown(run, builder=builder, notes=half)["progress"] == "110/200"
    whole = half.with_views([second])
    assert shown(run, builder=builder, notes=whole)["progress"] == "149/200"
    another = job().with_status({**before, "runKey": "another"})
    assert shown(run, builder=another)["progress"] == "0/200"
    assert shown(run, builder=job())["progress"] == "0/200"


SINCE = [
    (BatchState.VALIDATING, None, "InProgress", "a journal has what the create call said"),
    (None, None, "InProgress", "likewise where it said nothing"),
    (BatchState.VALIDATING, BatchState.FINALIZING, "Finalizing", "it has been asked"),
    (BatchState.COMPLETED, None, "Completed", "an end is an end"),
]


@pytest.mark.parametrize(("journaled", "seen", "state", "reason"), SINCE)
def test_a_new_process_shows_a_batch_as_it_was_shown(journaled, seen, state, reason) -> None:
    run = run_with(in_state(S.SUBMITTED))
    before = shown(run, notes=Notes().with_views([view_of(run, state=BatchState.IN_PROGRESS)]))
    assert before["submissions"][0]["state"] == "InProgress"
    run = run.with_shard(run.shards[0].with_last(batch_state=journaled))
    notes = Notes().with_views([view_of(run, state=seen)] if seen else [])
    now = shown(run, builder=job().with_status(before), notes=notes)
    assert now["submissions"][0]["state"] == state, reason


def test_what_every_start_begins_with_is_no_news_of_a_run_that_waits() -> None:
    run = run_with(in_state(S.QUEUED))
    trial = Problem(Reason.PROVIDER_NOT_READY, "being tried", NOW, has_grace=True, is_untold=True)
    told = status_of(scene(run, replace(trial, is_untold=False)))
    assert "being tried" in encode(told)["conditions"][0]["message"]
    assert status_of(scene(run, trial)) == status_of(scene(run))
    lasting = replace(trial, since=NOW - timedelta(hours=1))
    assert status_of(scene(run, lasting)).state is State.STALLED


def test_a_poll_that_failed_is_no_news_of_a_run() -> None:
    run = run_with(in_state(S.SUBMITTED))
    notes = failing(ASKING, FaultKind.RETRY, Reason.PROVIDER_UNAVAILABLE)
    assert status_of(scene(run, notes=notes)) == status_of(scene(run))


UNCOUNTED = [
    ({"pooled": True}, "Expired", 0, "they are counted where they went"),
    ({}, "BatchCancelled", 0, "cancelled is not expired"),
    ({}, "Expired", 10, "out of time"),
]


@pytest.mark.parametrize(("members", "code", "expired", "reason"), UNCOUNTED)
def test_which_unbilled_records_are_expired(members, code, expired, reason) -> None:
    found = Collected(answered=90, unbilled=10, unbilled_code=code)
    run = run_with(in_state(S.COLLECTED, collected=found, **members))
    assert request_counts(run, Notes()).expired == expired, reason


def test_the_results_have_the_last_word() -> None:
    results = Results("r/", "e/", "m.json", completed=90, failed=8, expired=2)
    run = over(FAILED, collected(answered=1), results=results)
    counts = request_counts(run, Notes())
    assert (counts.total, counts.completed, counts.failed, counts.expired) == (100, 90, 8, 2)


def test_nothing_is_shown_of_what_is_not_known_yet() -> None:
    for run in (None, admitting()):
        status = status_of(scene(run))
        assert (status.progress, status.request_counts, status.shards) == ("", None, None)
        assert (status.usage, status.outputs, status.submissions) == (None, None, ())


def test_tokens_are_summed_as_text() -> None:
    big = 2**60
    run = run_with(
        collected(0, answered=1, input_tokens=big),
        collected(1, output_tokens=3),
        in_state(S.QUEUED, 2),
    )
    usage = status_of(scene(run)).usage
    assert (usage.input_tokens, usage.output_tokens) == (str(big), "3")
    done = over(SUCCEEDED, results=Results(input_tokens=7))
    assert status_of(scene(done)).usage.input_tokens == "7"


def test_where_the_results_are() -> None:
    results = Results("s3://b/o/results/", "s3://b/o/errors/", "s3://b/o/manifest.json")
    outputs = status_of(scene(over(SUCCEEDED, results=results))).outputs
    assert outputs.manifest_uri == "s3://b/o/manifest.json"
    assert outputs.config_map_ref is None
    tiny = status_of(scene(over(SUCCEEDED, results=Results(config_map="out")))).outputs
    assert tiny.config_map_ref.name == "out"


def test_the_newest_twenty_submissions_are_shown_newest_first() -> None:
    shards = tuple(in_state(S.SUBMITTED, n).with_last(claimed_at=after(n)) for n in range(30))
    shown_ = status_of(scene(run_with(*shards))).submissions
    assert [s.shard for s in shown_] == list(range(29, 9, -1))


SHOWN = [
    (submission_of(1, SubmissionState.CLAIMED), "Claimed", "", "no batch yet"),
    (submission_of(1, SubmissionState.REFUSED), "Refused", "", "never a batch"),
    (submission_of(1, SubmissionState.ENDED), "Completed", "batch-1", "the batch's own state"),
]


@pytest.mark.parametrize(("made", "state", "batch", "reason"), SHOWN)
def test_how_a_submission_is_shown(made, state, batch, reason) -> None:
    run = run_with(shard_of(0, S.QUEUED, submissions=(made,)))
    (view,) = status_of(scene(run)).submissions
    assert (view.state, view.batch_id, view.ordinal) == (state, batch, 1), reason


def test_a_live_batch_is_shown_as_last_seen() -> None:
    run = run_with(in_state(S.SUBMITTED))
    notes = Notes().with_views([view_of(run, state=BatchState.FINALIZING)])
    (view,) = status_of(scene(run, notes=notes)).submissions
    assert view.state == "Finalizing"


# ---------------------------------------------------------------- receipts


ENDED = [
    over(SUCCEEDED, start_time=START, results=Results("a", "b", "c", "", 100, 0, 0, 5, 7)),
    over(
        PARTIAL,
        results=Results(
            "s3://data/ml/out/triage/results/",
            "s3://data/ml/out/triage/errors/",
            "s3://data/ml/out/triage/manifest.json",
            completed=95,
            failed=5,
        ),
    ),
    over(FAILED, in_state(S.COLLECTED), in_state(S.DROPPED, 1), adopted=True),
    over(
        CANCELLED, shard_of(0, S.DROPPED, submissions=(submission_of(1, SubmissionState.FENCED),))
    ),
    unpaid(REJECTED),
    over(SUCCEEDED, results=Results(config_map="answers", completed=3)),
]


@pytest.mark.parametrize("run", ENDED)
def test_a_receipt_rebuilds_the_same_status(run) -> None:
    run = owned(run)
    before = shown(run)
    cleaned = TaskDone(TaskKind.CLEAN, None, None, Cleaned())
    ended, notes = absorb(run, Notes(), cleaned, setting())
    assert ended == replace(receipt(run), phase=P.ENDED)
    builder = job().with_status(before)
    after_ = encode(status_of(scene(ended, notes=notes, builder=builder, now=after(60))))
    assert after_ == before, "nothing is written when a run becomes a receipt"


@pytest.mark.parametrize("run", ENDED)
def test_a_receipt_gives_a_new_object_all_but_the_single_submissions(run) -> None:
    whole = replace(owned(run), phase=P.ENDED)
    expected = {k: v for k, v in shown(whole).items() if k not in {"shards", "submissions"}}
    adopting = {"runKey": "another", "state": "Running", "observedGeneration": 1, "conditions": []}
    adopting["submissions"] = [{"shard": 9, "ordinal": 9, "state": "Claimed"}]
    for builder in (job(), job().with_status(adopting)):
        assert shown(receipt(whole), builder=builder) == expected


def test_every_condition_type_is_shown() -> None:
    assert {str(kind) for kind in ConditionType} == DESCRIBED


def test_one_of_several_objects_says_who_steers_its_run() -> None:
    for run in (None, run_with(in_state(S.QUEUED)), run_with(in_state(S.SUBMITTED)), over(FAILED)):
        alone, shared = status_of(scene(run)), status_of(replace(scene(run), steered_by="ml/first"))
        reason, message = said(shared, "Submitted")
        assert reason == Reason.SHARED_RUN
        assert "ml/first" in message
        assert message.endswith(said(alone, "Submitted")[1])
        assert shows_submission(encode(shared)) == shows_submission(encode(alone))
        assert shared.state == alone.state
        assert said(shared, "Stalled") == said(alone, "Stalled")


@pytest.mark.parametrize(
    ("run", "shown_by", "elsewhere", "reason"),
    [
        (None, "", False, "nobody has shown it yet"),
        (None, "ours", False, "this one has"),
        (None, "theirs", True, "another one has"),
        (run_with(in_state(S.QUEUED)), "theirs", False, "only who holds the place can submit"),
        (over(SUCCEEDED), "theirs", True, "what is over holds nothing"),
    ],
)
def test_who_shows_a_job(run, shown_by, elsewhere, reason) -> None:
    found = seen(job().with_status({"installation": shown_by}))
    assert is_shown_elsewhere(found, run, "ours") is elsewhere, reason


def test_what_all_of_an_account_wait_for_is_what_a_queued_job_says() -> None:
    run = run_of(shards=1)
    told = ("CircuitOpen", "The provider fails")
    waiting = replace(scene(run, notes=failing("upload:0")), delay=told)
    submitted = next(c for c in status_of(waiting).conditions if c.type == "Submitted")
    assert (submitted.status, submitted.reason) == ("False", "CircuitOpen")
    assert submitted.message.endswith("The provider fails")

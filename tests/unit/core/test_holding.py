"""Whose an output place is: what `outputPolicy` may take over, and what is said (protocol 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.decisions import TAKE_OVER
from batchinference.core.effects import Announce, StartTask
from batchinference.core.holding import handed_over, has_ended, may_take_over, still_going, whose
from batchinference.core.outcomes import TaskDone
from batchinference.model.earlier import Earlier
from batchinference.model.job import OutputPolicy
from batchinference.model.run import RunPhase
from batchinference.model.staging import InputSnapshot
from batchinference.model.status import Reason
from batchinference.model.work import Admitted, FaultKind, Holder, TaskKind
from builders import run_of
from unit.core.given import after, decided, fold_all, observed, of_kind, run_with

RUN = run_of()
THEIRS = Holder(
    "other-key", "tag", RUN.installation, finished=True, description="ml/other", final=True
)
REPLACE = OutputPolicy.REPLACE


@pytest.mark.parametrize(
    ("holder", "policy", "may", "reason"),
    [
        (THEIRS, REPLACE, True, "it finished"),
        (THEIRS, OutputPolicy.FAIL, False, "nobody asked for it"),
        (replace(THEIRS, finished=False), REPLACE, False, "it is live, for all we know"),
        (replace(THEIRS, run_key=RUN.key), REPLACE, False, "it is this very run"),
        (replace(THEIRS, installation="x"), REPLACE, False, "it is another installation's"),
        (replace(THEIRS, description="hr/other"), REPLACE, False, "it is another namespace's"),
        (replace(THEIRS, description="ml-2/other"), REPLACE, False, "likewise"),
    ],
)
def test_what_may_be_taken_over(holder, policy, may, reason) -> None:
    assert may_take_over(RUN, holder, policy) is may, reason
    stated = whose(RUN, holder)[1]
    offered = "outputPolicy: Replace" in stated
    assert offered is may_take_over(RUN, holder, REPLACE), "only what works is offered"


@pytest.mark.parametrize("phase", list(RunPhase))
def test_a_journal_says_whether_a_run_is_over_for_good(phase) -> None:
    over = phase in {RunPhase.CLEANING, RunPhase.ENDED}
    for final in (True, False):
        assert has_ended(replace(THEIRS, final=final), run_of(phase=phase)) is over


def test_without_a_journal_the_manifest_says_it() -> None:
    assert has_ended(THEIRS, None)
    assert not has_ended(replace(THEIRS, final=False), None)


def test_a_run_that_may_go_on_is_named() -> None:
    assert "ml/other" in still_going(RUN, THEIRS)
    assert RUN.output.uri in still_going(RUN, THEIRS)


# ---------------------------------------------------------------- handing over

ADMITTING = run_with(phase=RunPhase.ADMITTING)
ELSEWHERE = Holder(ADMITTING.key, "their-tag", "elsewhere", description="ml/triage")
LOOK = TaskKind.ADMIT
SNAPSHOT = InputSnapshot("s3://in", 1, 10, "print-1")


def looked(run=ADMITTING, holder=ELSEWHERE, notes=None):
    return fold_all(run, TaskDone(LOOK, None, None, Admitted(SNAPSHOT, holder)), notes=notes)


def test_this_very_run_is_taken_only_from_whom_somebody_named() -> None:
    named = replace(ADMITTING, taken_from="elsewhere")
    for policy in OutputPolicy:
        assert not may_take_over(ADMITTING, ELSEWHERE, policy)
        assert may_take_over(named, ELSEWHERE, policy)
        assert not may_take_over(named, replace(ELSEWHERE, installation="third"), policy)


def test_a_run_of_another_installation_waits_for_a_decision_that_names_it() -> None:
    run, notes = looked()
    waiting = decided(run, observed(now=after(1)), notes)
    assert (waiting.problem.reason, waiting.asks_people) == (Reason.HELD_ELSEWHERE, True)
    assert f"{TAKE_OVER}=elsewhere" in waiting.problem.message
    assert not of_kind(waiting, StartTask), "looked at again after a while"
    wrong = decided(run, observed(annotations={TAKE_OVER: "third"}), notes)
    assert wrong.run.taken_from == ""
    assert of_kind(wrong, Announce)[0].reason == Reason.DECISION_IGNORED
    taken = decided(run, observed(annotations={TAKE_OVER: "elsewhere"}), notes)
    assert taken.run.taken_from == "elsewhere"
    later = decided(
        taken.run, observed(now=after(60), annotations={TAKE_OVER: "elsewhere"}), taken.notes
    )
    assert of_kind(later, StartTask) == [StartTask(LOOK, replaces=ELSEWHERE)]
    assert not of_kind(later, Announce), "the annotation has done its work"


def test_a_place_that_changes_hands_at_this_moment_is_tried_again() -> None:
    named = replace(ADMITTING, taken_from="elsewhere")
    run, notes = looked(named)
    assert (notes.taking, notes.failures) == (ELSEWHERE, {})
    run, notes = looked(run, notes=notes)
    assert notes.failures["task:Admit"].fault.kind is FaultKind.RETRY


def test_a_run_that_was_handed_over_has_the_tag_of_what_is_at_the_provider() -> None:
    told = Admitted(SNAPSHOT, claimed_before=True, tag="their-tag")
    run, _ = fold_all(replace(ADMITTING, earlier=Earlier()), TaskDone(LOOK, None, None, told))
    assert (run.tag, run.phase) == ("their-tag", RunPhase.STAGING)
    assert run.earlier == Earlier(expected=True)


def test_the_old_holder_is_told_who_has_its_run() -> None:
    assert "elsewhere" in handed_over(RUN, "elsewhere")
    assert RUN.output.uri in handed_over(RUN, "elsewhere")

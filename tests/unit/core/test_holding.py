"""Whose an output place is: what `outputPolicy` may take over, and what is said (protocol 3)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.holding import has_ended, may_take_over, still_going, whose
from batchinference.model.job import OutputPolicy
from batchinference.model.run import RunPhase
from batchinference.model.work import Holder
from builders import run_of

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

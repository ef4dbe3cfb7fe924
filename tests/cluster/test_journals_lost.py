"""Journals that are deleted while their runs are live at both providers (protocol 2.6)."""

from __future__ import annotations

import pytest

from batchinference.model.status import Reason
from cluster.pair import Pair
from stack import wait_for


def restart(pair: Pair) -> None:
    operator = pair.team.stack.operators[0]
    operator.stop()
    operator.start()
    pair.team.stack.wait_until_healthy(operator)


@pytest.mark.parametrize("restarted", [False, True], ids=["under a living one", "before a start"])
def test_live_runs_whose_journals_are_deleted_go_on_and_are_paid_once(
    pair: Pair, restarted: bool
) -> None:
    pair.run_live()
    creates = pair.creates()
    pair.delete_journals()
    if restarted:
        restart(pair)
        pair.wait_live()
        assert pair.creates() == creates, "nothing was submitted again"
    # A living operator misses them when it has something to write.
    pair.let_finish()
    for name in pair.names:
        pair.check_told(name, Reason.JOURNAL_LOST)
    assert pair.creates() == creates
    pair.check_paid_once()


def test_live_runs_are_found_by_claims_and_tags_when_their_objects_are_made_anew(
    pair: Pair,
) -> None:
    """A namespace that was recreated from Git beside an operator that was, too."""
    pair.run_live()
    creates = pair.creates()
    operator = pair.team.stack.operators[0]
    operator.stop()
    pair.delete_journals()
    pair.patch({"metadata": {"finalizers": None}})
    pair.delete()
    pair.apply()
    operator.start()
    pair.team.stack.wait_until_healthy(operator)
    for name in pair.names:
        wait_for(
            f"{name} adopted",
            lambda name=name: (
                pair.team.condition(name, "Submitted").get("reason") == Reason.ADOPTED
            ),
        )
    pair.wait_live()
    assert pair.creates() == creates
    pair.let_finish()
    pair.check_paid_once()

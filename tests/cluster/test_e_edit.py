"""Objects that are replaced, restored, edited or stripped: E5 to E7, E9 and E12."""

from __future__ import annotations

import pytest

from batchinference.model.status import Reason
from cluster.pair import SHARDS, Pair, elsewhere
from control_plane import CommandFailed
from stack import wait_for


def has_finalizer(pair: Pair, name: str) -> bool:
    return bool(pair.get(name)["metadata"].get("finalizers"))


def test_e5_replace_takes_the_finalizer_of_a_running_job_and_it_is_put_back(pair: Pair) -> None:
    pair.run_live()
    uids = dict(pair.uids)
    assert all(has_finalizer(pair, name) for name in pair.names)
    for manifest in pair.manifests:
        manifest["metadata"]["labels"] = {"commit": "4f2a91c"}
    pair.kubectl("replace")
    for name in pair.names:
        wait_for("the finalizer", lambda name=name: has_finalizer(pair, name))
    before = pair.let_finish()
    assert pair.uids == uids
    pair.kubectl("replace")
    for name in pair.names:
        pair.check_same(name, before)
        assert pair.get(name)["metadata"]["labels"] == {"commit": "4f2a91c"}
    pair.check_paid_once()


def test_e5_replace_while_no_operator_runs(pair: Pair) -> None:
    pair.run_live()
    operator = pair.team.stack.operators[0]
    operator.kill_all()
    pair.kubectl("replace")
    assert not any(has_finalizer(pair, name) for name in pair.names)
    operator.start()
    pair.team.stack.wait_until_healthy(operator)
    for name in pair.names:
        wait_for("the finalizer", lambda name=name: has_finalizer(pair, name))
    pair.let_finish()
    pair.check_paid_once()


def test_e6_replace_by_force_in_the_middle_of_a_run_and_after_it(pair: Pair) -> None:
    pair.run_live()
    pair.kubectl("replace", "--force")
    before = pair.let_finish()
    pair.check_paid_once(submissions=None)
    creates = pair.creates()
    pair.kubectl("replace", "--force")
    pair.check_found(before)
    assert pair.creates() == creates
    pair.check_paid_once(submissions=None)


def test_e6_apply_by_force_changes_nothing_where_nothing_changed(pair: Pair) -> None:
    pair.run_live()
    uids = dict(pair.uids)
    pair.apply("--force")
    pair.let_finish()
    assert pair.uids == uids
    pair.check_paid_once()


def test_e6_apply_by_force_of_other_work_to_the_same_place_pays_for_nothing(pair: Pair) -> None:
    pair.run_live()
    creates = pair.creates()
    # Without a timeout kubectl gives up at once on what a finalizer holds.
    force = ("apply", "--force", "--timeout=120s")
    pair.kubectl(*force, manifests=pair.changed(parameters={"maxOutputTokens": 7}))
    for name in pair.names:
        stalled = pair.team.wait_condition(name, "Stalled")
        assert stalled["reason"] == Reason.OUTPUT_CONFLICT
        assert pair.get(name)["metadata"]["uid"] != pair.uids[name]
        assert pair.cancels(name) == [1] * SHARDS
    assert pair.creates() == creates
    pair.kubectl(*force)
    pair.let_finish()
    pair.check_paid_once(submissions=None)


def test_e6_apply_by_force_of_other_work_to_another_place_is_one_other_run(pair: Pair) -> None:
    before = pair.run_to_the_end()
    first = dict(pair.tags)
    others = [elsewhere(m, "other") for m in pair.changed(parameters={"maxOutputTokens": 7})]
    pair.kubectl("apply", "--force", manifests=others)
    after = pair.wait_for_the_end()
    for name in pair.names:
        assert before[name]["runKey"] != after[name]["runKey"]
        for tag in (first[name], pair.tags[name]):
            assert pair.team.accepted(tag) == {(n, 1): 1 for n in range(SHARDS)}
    pair.apply("--force")
    pair.check_found(before)


@pytest.mark.parametrize("phase", ["finished", "live"])
def test_e7_a_restored_object_has_no_status_and_finds_its_run(pair: Pair, phase: str) -> None:
    before = pair.run_to_the_end() if phase == "finished" else pair.run_live()
    saved = [pair.get(name) for name in pair.names]
    for manifest in saved:
        assert manifest["status"]["runKey"]
        # What a restore leaves out; the status goes along, and the server drops it.
        for field in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
            manifest["metadata"].pop(field)
        manifest["metadata"].setdefault("annotations", {})["example.com/restored"] = "true"
    pair.delete()
    pair.kubectl("create", manifests=saved)
    if before:
        pair.check_found(before)
        pair.check_paid_once()
    else:
        pair.let_finish()
        pair.check_paid_once(submissions=None)
    for name in pair.names:
        assert pair.get(name)["metadata"]["annotations"]["example.com/restored"] == "true"


def test_e9_harmless_edits_change_nothing_at_the_provider(pair: Pair) -> None:
    pair.run_live()
    creates = pair.creates()
    edits = {"suspend": True, "deletionPolicy": "Orphan", "successPolicy": {"maxFailedRecords": 3}}
    pair.patch({"spec": edits, "metadata": {"labels": {"team": "triage"}}})
    for name in pair.names:
        wait_for("a look at the edit", lambda name=name: observed(pair, name))
        suspended = pair.team.condition(name, "Suspended")
        assert (suspended["status"], suspended["reason"]) == ("False", Reason.ALREADY_SUBMITTED)
    before = pair.let_finish()
    pair.patch({"spec": {"suspend": False, "deletionPolicy": "Cancel", "successPolicy": None}})
    for name in pair.names:
        wait_for("a look at the edit", lambda name=name: observed(pair, name))
        pair.check_same(name, before)
        assert pair.cancels(name) == [0] * SHARDS
    assert pair.creates() == creates
    pair.check_paid_once()


def observed(pair: Pair, name: str) -> bool:
    """Whether the status, and each of its conditions, is about the newest spec."""
    found = pair.get(name)
    newest = found["metadata"]["generation"]
    told = {c["observedGeneration"] for c in found["status"]["conditions"]}
    return {found["status"]["observedGeneration"], *told} == {newest}


@pytest.mark.parametrize("phase", ["finished", "live"])
def test_e9_what_is_paid_for_can_not_be_edited(pair: Pair, phase: str) -> None:
    _ = pair.run_to_the_end() if phase == "finished" else pair.run_live()
    creates = pair.creates()
    for edit in ({"model": "gpt-4.1"}, {"parameters": {"maxOutputTokens": 7}}, {"runID": "2"}):
        with pytest.raises(CommandFailed, match="runID"):
            pair.patch({"spec": edit})
    pair.let_finish()
    assert pair.creates() == creates
    pair.check_paid_once()


def test_e12_a_finished_job_that_is_stripped_of_its_status_shows_it_again(pair: Pair) -> None:
    before = pair.run_to_the_end()
    pair.strip()
    for name in pair.names:
        pair.team.wait_condition(name, "Complete")
        pair.check_same(name, before)
    pair.check_paid_once()


def test_e12_a_running_job_that_is_stripped_of_everything_is_followed(pair: Pair) -> None:
    pair.run_live()
    operator = pair.team.stack.operators[0]
    operator.kill_all()
    pair.strip()
    operator.start()
    pair.team.stack.wait_until_healthy(operator)
    pair.wait_live()
    for name in pair.names:
        wait_for(f"the finalizer of {name}", lambda name=name: has_finalizer(pair, name))
    pair.let_finish()
    pair.check_paid_once()

"""Rows whose objects come and go, with the journals deleted in between: E2 to E4, E9, E10, E16, E17.

Each begins with a live run and goes on with the finished one. Claims, manifests and run tags have
to do what the journals do otherwise (protocol 2.6).
"""

from __future__ import annotations

import copy
from pathlib import Path

from batchinference.model.status import Reason
from cluster.pair import RECORDS, SHARDS, Manifest, Pair, elsewhere
from cluster.syncing import Release, create, wait_until_live
from stack import wait_for


def test_e2_a_later_commit_and_another_process_find_runs_without_journals(pair: Pair) -> None:
    pair.run_live()
    pair.delete()
    another_process(pair)
    commit(pair, "4f2a91c", maxFailedPercent=5)
    before = pair.let_finish()
    goes_on(pair)
    creates = pair.creates()
    pair.delete()
    another_process(pair)
    commit(pair, "9d3be07", maxFailedPercent=6)
    pair.check_found(before, by_manifest=True)
    assert pair.creates() == creates


def test_e3_flux_applies_what_is_missing_while_journals_are_lost(pair: Pair) -> None:
    flux = ("--server-side", "--force-conflicts", "--field-manager=kustomize-controller")
    pair.run_live()
    pair.apply(*flux)
    # Before the deletion this time: what is to be cancelled has to be found first, which takes
    # longer than an object is held for it.
    pair.delete_journals()
    pair.delete()
    for _ in range(2):
        pair.apply(*flux)
    before = pair.let_finish()
    goes_on(pair)
    creates = pair.creates()
    for _ in range(2):
        pair.delete_journals()
        pair.delete()
        for _ in range(2):
            pair.apply(*flux)
        pair.check_found(before, by_manifest=True)
    assert pair.creates() == creates


def test_e4_helm_brings_back_what_was_deleted_with_its_journals(pair: Pair, tmp_path: Path) -> None:
    release = Release(pair, tmp_path)
    pair.team.control.hold()
    release.helm("install", note="first")
    pair.wait_live()
    pair.delete()
    pair.delete_journals()
    release.helm("upgrade", note="second")
    before = pair.let_finish()
    goes_on(pair)
    creates = pair.creates()
    pair.delete()
    pair.delete_journals()
    release.helm("rollback", "1")
    pair.check_found(before, by_manifest=True)
    assert pair.creates() == creates


def test_e9_harmless_edits_of_runs_without_journals_change_nothing(pair: Pair) -> None:
    pair.run_live()
    creates = pair.creates()
    pair.delete_journals()
    edits = {"suspend": True, "deletionPolicy": "Orphan", "successPolicy": {"maxFailedRecords": 3}}
    pair.patch({"spec": edits, "metadata": {"labels": {"team": "triage"}}})
    for name in pair.names:
        wait_for("a look at the edit", lambda name=name: observed(pair, name))
    pair.wait_live()
    before = pair.let_finish()
    pair.delete_journals()
    pair.patch({"spec": {"suspend": False, "deletionPolicy": "Cancel", "successPolicy": None}})
    for name in pair.names:
        wait_for("a look at the edit", lambda name=name: observed(pair, name))
        pair.check_same(name, before)
        assert pair.cancels(name) == [0] * SHARDS
    assert pair.creates() == creates
    pair.check_paid_once()


def test_e10_hooks_with_one_run_id_are_one_run_without_its_journal(pair: Pair) -> None:
    team = pair.team
    team.control.hold()
    first = create(pair, "9f8e7d6")
    wait_until_live(pair, first)
    creates = pair.creates()
    pair.delete_journals()
    second = create(pair, "9f8e7d6")
    for one, other in zip(first, second, strict=True):
        key = team.status(one)["runKey"]
        wait_for(
            "the same run", lambda other=other, key=key: team.status(other).get("runKey") == key
        )
    team.kubectl("delete", "bij", *first, "--timeout=120s")
    team.control.release()
    for name in second:
        team.wait_condition(name, "Complete", 180)
    pair.delete_journals()
    third = create(pair, "9f8e7d6")
    # The older hook steers, until it goes too.
    team.kubectl("delete", "bij", *second, "--timeout=120s")
    for job, name in zip(pair.names, third, strict=True):
        team.wait_condition(name, "Complete")  # as a mirror of the older one it may be already
        wait_for(
            f"{name} to steer",
            lambda name=name: team.condition(name, "Submitted")["reason"] == Reason.ADOPTED,
        )
        pair.tags[job] = team.tag(name)
        assert pair.cancels(job) == [0] * SHARDS
    assert pair.creates() == creates
    pair.check_paid_once()


def test_e16_a_rollback_and_the_way_back_find_runs_without_journals(pair: Pair) -> None:
    older_status = pair.run_to_the_end()
    pair.check_paid_once()
    older_tags = dict(pair.tags)
    newer = [elsewhere(manifest, "v2") for manifest in pair.changed(runID="v2")]
    pair.team.control.hold()
    pair.kubectl("replace", "--force", manifests=newer)
    pair.wait_live()
    pair.delete_journals()
    pair.kubectl("replace", "--force")
    pair.check_found(older_status, by_manifest=True)
    pair.delete_journals()
    pair.kubectl("replace", "--force", manifests=newer)
    newer_status = pair.let_finish()
    creates = pair.creates()
    pair.delete_journals()
    pair.kubectl("replace", "--force")
    pair.check_found(older_status, by_manifest=True)
    pair.delete_journals()
    pair.kubectl("replace", "--force", manifests=newer)
    pair.check_found(newer_status, by_manifest=True)
    assert pair.creates() == creates
    for name in pair.names:
        assert pair.team.accepted(older_tags[name]) == {(n, 1): 1 for n in range(SHARDS)}
        pair.tags[name] = pair.team.tag(name)
        assert set(pair.team.accepted(pair.tags[name]).values()) == {1}
        assert pair.answered(name) == RECORDS


def test_e17_another_name_does_not_get_the_place_of_a_run_without_a_journal(pair: Pair) -> None:
    pair.run_live()
    creates = pair.creates()
    renamed = copy.deepcopy(pair.manifests)
    for manifest in renamed:
        manifest["metadata"]["name"] += "-renamed"
        manifest["spec"]["outputPolicy"] = "Replace"  # never a live one
    pair.delete_journals()
    pair.kubectl("apply", manifests=renamed)
    conflict(pair, renamed)
    pair.kubectl("delete", manifests=renamed)
    for manifest in renamed:
        del manifest["spec"]["outputPolicy"]
    before = pair.let_finish()
    pair.delete_journals()
    pair.kubectl("apply", manifests=renamed)
    conflict(pair, renamed)
    for name in pair.names:
        pair.check_same(name, before)
    assert pair.creates() == creates, "the same place: nothing is paid"
    pair.check_paid_once()


def goes_on(pair: Pair) -> None:
    """The run went on after a deletion: cancelled once at most, paid for what it lacked."""
    pair.check_paid_once(submissions=None)
    for name in pair.names:
        assert max(pair.cancels(name)) <= 1
        assert pair.team.condition(name, "Submitted")["reason"] == Reason.ADOPTED


def another_process(pair: Pair) -> None:
    """Delete the journals while no operator runs, and start one."""
    operator = pair.team.stack.operators[0]
    operator.stop()
    pair.delete_journals()
    operator.start()
    pair.team.stack.wait_until_healthy(operator)


def commit(pair: Pair, commit: str, **policy: int) -> None:
    """Apply both with what does not count as identity changed."""
    for manifest in pair.manifests:
        manifest["metadata"]["labels"] = {"commit": commit}
        manifest["metadata"]["annotations"] = {"argocd.argoproj.io/tracking-id": f"jobs:{commit}"}
        manifest["spec"]["successPolicy"] = policy
    pair.apply()


def observed(pair: Pair, name: str) -> bool:
    """Whether the status is about the newest spec."""
    found = pair.get(name)
    return bool(found["status"]["observedGeneration"] == found["metadata"]["generation"])


def conflict(pair: Pair, manifests: list[Manifest]) -> None:
    """Each stalls, for its place is another run's."""
    for manifest in manifests:
        name = manifest["metadata"]["name"]
        assert pair.team.wait_condition(name, "Stalled")["reason"] == Reason.OUTPUT_CONFLICT

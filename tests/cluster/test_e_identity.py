"""What is the same run and what is another: E10, E16, E17."""

from __future__ import annotations

import copy
import json

import pytest

from batchinference.model.status import Reason
from cluster.pair import SHARDS, Pair, elsewhere
from cluster.syncing import create, hooks, wait_until_live
from control_plane import CommandFailed
from stack import wait_for


def test_e10_hooks_with_one_run_id_are_one_run(pair: Pair) -> None:
    team = pair.team
    team.control.hold()
    first = create(pair, "9f8e7d6")
    wait_until_live(pair, first)
    creates = pair.creates()
    second = create(pair, "9f8e7d6")
    for one, other in zip(first, second, strict=True):
        key = team.status(one)["runKey"]
        wait_for(
            "the same run", lambda other=other, key=key: team.status(other).get("runKey") == key
        )
    # A hook's older object is deleted while the newer one is there: nothing is cancelled.
    team.kubectl("delete", "bij", *first, "--timeout=120s")
    team.control.release()
    for name in second:
        team.wait_condition(name, "Complete", 180)
    third = create(pair, "9f8e7d6")
    for job, name in zip(pair.names, third, strict=True):
        team.wait_condition(name, "Complete")
        # The older hook is still there, and steers.
        assert team.condition(name, "Submitted")["reason"] == Reason.SHARED_RUN
        pair.tags[job] = team.tag(name)
        assert pair.cancels(job) == [0] * SHARDS
    assert pair.creates() == creates
    pair.check_paid_once()


def test_e10_a_hook_of_another_commit_is_another_run(pair: Pair) -> None:
    team = pair.team
    tags = []
    for commit in ("aaaa", "bbbb"):
        manifests = [elsewhere(manifest, commit) for manifest in hooks(pair, commit)]
        said = pair.kubectl("create", "--output", "name", manifests=manifests)
        names = [line.partition("/")[2] for line in said.split()]
        for name in names:
            team.wait_condition(name, "Complete", 180)
            tags.append(team.tag(name))
    assert len(set(tags)) == 4
    for tag in tags:
        assert team.accepted(tag) == {(n, 1): 1 for n in range(SHARDS)}


def test_e10_a_hook_without_a_run_id_is_refused(pair: Pair) -> None:
    creates = pair.creates()
    with pytest.raises(CommandFailed, match="runID"):
        create(pair, "")
    assert json.loads(pair.team.kubectl("get", "bij", "--output", "json"))["items"] == []
    assert pair.creates() == creates


def test_e16_a_rollback_finds_the_older_run_and_the_way_back_the_newer(pair: Pair) -> None:
    newer = [elsewhere(manifest, "v2") for manifest in pair.changed(runID="v2")]
    older_status = pair.run_to_the_end()
    older_tags = dict(pair.tags)
    pair.kubectl("replace", "--force", manifests=newer)
    newer_status = pair.wait_for_the_end()
    creates = pair.creates()
    assert creates >= 2 * 2 * SHARDS
    pair.kubectl("replace", "--force")
    pair.check_found(older_status)
    pair.kubectl("replace", "--force", manifests=newer)
    pair.check_found(newer_status)
    assert pair.creates() == creates
    for name in pair.names:
        for tag in (older_tags[name], pair.tags[name]):
            assert pair.team.accepted(tag) == {(n, 1): 1 for n in range(SHARDS)}


def test_e16_a_rollback_in_the_middle_of_the_newer_run(pair: Pair) -> None:
    older_status = pair.run_to_the_end()
    older_tags = dict(pair.tags)
    newer = [elsewhere(manifest, "v2") for manifest in pair.changed(runID="v2")]
    pair.team.control.hold()
    pair.kubectl("replace", "--force", manifests=newer)
    pair.wait_live()
    newer_tags = dict(pair.tags)
    pair.kubectl("replace", "--force")
    pair.check_found(older_status)
    pair.kubectl("replace", "--force", manifests=newer)
    pair.let_finish()
    for name in pair.names:
        assert pair.team.accepted(older_tags[name]) == {(n, 1): 1 for n in range(SHARDS)}
        accepted = pair.team.accepted(newer_tags[name])
        assert set(accepted.values()) == {1}
        assert pair.answered(name) == 8


def test_e17_another_name_is_another_run_and_needs_another_place(pair: Pair) -> None:
    pair.run_to_the_end()
    creates = pair.creates()
    renamed = copy.deepcopy(pair.manifests)
    for manifest in renamed:
        manifest["metadata"]["name"] += "-renamed"
    pair.kubectl("apply", manifests=renamed)
    for manifest in renamed:
        name = manifest["metadata"]["name"]
        stalled = pair.team.wait_condition(name, "Stalled")
        assert stalled["reason"] == Reason.OUTPUT_CONFLICT
    assert pair.creates() == creates, "the same place: nothing is paid"
    pair.kubectl("delete", manifests=renamed)
    pair.kubectl("apply", manifests=[elsewhere(manifest, "renamed") for manifest in renamed])
    for manifest in renamed:
        name = manifest["metadata"]["name"]
        pair.team.wait_condition(name, "Complete", 180)
        assert pair.team.accepted(pair.team.tag(name)) == {(n, 1): 1 for n in range(SHARDS)}
    pair.check_paid_once()

"""Objects that go and come back from the same manifest: E1 to E4 of the table of events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.pair import Pair
from cluster.syncing import Release
from stack import wait_for


def test_e1_a_finished_job_is_healed_again_and_again(pair: Pair) -> None:
    before = pair.run_to_the_end()
    creates = pair.creates()
    for _ in range(3):
        pair.delete()
        pair.apply()
        pair.check_found(before)
    assert pair.creates() == creates
    pair.check_paid_once()


def test_e1_a_running_job_is_healed_twice(pair: Pair) -> None:
    pair.run_live()
    pair.delete()
    pair.apply()
    pair.delete()
    pair.apply()
    pair.let_finish()
    pair.check_paid_once(submissions=None)
    for name in pair.names:
        assert pair.team.condition(name, "Submitted")["reason"] == "AdoptedPreviousRun"
        assert pair.cancels(name)[:2] == [1, 1], "each batch was cancelled once"


def test_e1_what_is_applied_while_the_finalizer_holds_the_object_is_applied_again(
    pair: Pair,
) -> None:
    pair.run_live()
    for provider, cancel in (("openai", "batches.cancel"), ("bedrock", "StopModelInvocationJob")):
        pair.team.control.fault(provider, "delay", cancel, seconds=1.5, times=None)
    pair.team.kubectl("delete", "bij", *pair.names, "--wait=false")
    creates = pair.creates()

    def applied() -> bool:
        pair.apply()
        # One that is applied in its last moment goes away after all.
        there = [pair.team.get(name) for name in pair.names]
        return all(
            body is not None and body["metadata"]["uid"] != pair.uids[name]
            for name, body in zip(pair.names, there, strict=True)
        )

    assert not applied(), "nothing holds the objects"
    for name in pair.names:
        assert "deletionTimestamp" in pair.get(name)["metadata"]
    assert pair.creates() == creates
    wait_for("both applied anew", applied)
    pair.let_finish()
    pair.check_paid_once(submissions=None)


def test_e2_a_later_commit_brings_a_deleted_job_back_to_another_process(pair: Pair) -> None:
    before = pair.run_to_the_end()
    creates = pair.creates()
    pair.delete()
    operator = pair.team.stack.operators[0]
    operator.stop()
    operator.start()
    pair.team.stack.wait_until_healthy(operator)
    for manifest in pair.manifests:
        manifest["metadata"]["labels"] = {"commit": "4f2a91c"}
        manifest["metadata"]["annotations"] = {"argocd.argoproj.io/tracking-id": "jobs:x"}
        manifest["spec"]["successPolicy"] = {"maxFailedPercent": 5}
    pair.apply()
    pair.check_found(before)
    assert pair.creates() == creates
    pair.check_paid_once()


@pytest.mark.parametrize("phase", ["finished", "live"])
def test_e3_flux_applies_what_is_missing_at_every_reconciliation(pair: Pair, phase: str) -> None:
    flux = ("--server-side", "--force-conflicts", "--field-manager=kustomize-controller")
    before = pair.run_to_the_end() if phase == "finished" else pair.run_live()
    pair.apply(*flux)
    pair.delete()
    for _ in range(2):
        pair.apply(*flux)
    if before:
        pair.check_found(before)
    else:
        pair.let_finish()
    pair.check_paid_once(submissions=SUBMISSIONS[phase])


@pytest.mark.parametrize("phase", ["finished", "live"])
def test_e4_helm_upgrade_after_a_deletion_by_hand(pair: Pair, phase: str, tmp_path: Path) -> None:
    release = Release(pair, tmp_path)
    if phase == "live":
        pair.team.control.hold()
    release.helm("install", note="first")
    before: dict[str, Any] = {}
    if phase == "live":
        pair.wait_live()
    else:
        before = pair.wait_for_the_end()
    pair.delete()
    release.helm("upgrade", note="second")
    if phase == "live":
        pair.let_finish()
    else:
        pair.check_found(before)
        pair.delete()
        release.helm("rollback", "1")
        pair.check_found(before)
    pair.check_paid_once(submissions=SUBMISSIONS[phase])


SUBMISSIONS = {"finished": 2, "live": None}

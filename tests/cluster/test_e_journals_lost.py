"""The rows again with the journals gone: claims, manifests and run tags carry them alone."""

from __future__ import annotations

from typing import Any

from cluster.pair import Pair
from stack import OPERATOR_NAMESPACE, wait_for
from team import chat, jsonl


def test_e1_a_finished_job_without_a_journal_is_found_by_its_manifest(pair: Pair) -> None:
    before = pair.run_to_the_end()
    creates = pair.creates()
    pair.delete()
    pair.delete_journals()
    pair.apply()
    pair.check_found(before, by_manifest=True)
    assert pair.creates() == creates
    pair.check_paid_once()


def test_e1_a_tiny_finished_job_without_a_journal_is_found_by_its_config_map(pair: Pair) -> None:
    pair.only("openai")
    spec = pair.manifests[0]["spec"]
    spec["input"] = {"inline": jsonl(chat(f"r{n}", f"Say {n}") for n in range(3)).decode()}
    spec["output"] = {"configMap": {"name": "answers"}}
    before = pair.run_to_the_end()
    creates = pair.creates()
    pair.delete()
    pair.delete_journals()
    pair.apply()
    pair.check_found(before, by_manifest=True)
    assert pair.creates() == creates


def test_e1_a_job_that_was_cancelled_by_deletion_goes_on_without_its_journal(pair: Pair) -> None:
    pair.run_live()
    pair.delete()
    pair.team.control.release()
    for name in pair.names:
        wait_for("the partial manifest", lambda name=name: has_manifest(pair, name))
        wait_for("the journal parked", lambda name=name: parked(pair, name))
    pair.delete_journals()
    pair.apply()
    pair.wait_for_the_end()
    pair.check_paid_once(submissions=None)


def test_live_runs_without_journals_outlive_what_is_done_to_their_objects(pair: Pair) -> None:
    pair.run_live()
    creates = pair.creates()
    operator = pair.team.stack.operators[0]
    for what in (replaced, stripped, made_anew):
        operator.stop()
        pair.delete_journals()
        what(pair)
        operator.start()
        pair.team.stack.wait_until_healthy(operator)
        for name in pair.names:
            wait_for("a journal again", lambda name=name: journal(pair, name))
        pair.wait_live()
        assert pair.creates() == creates, what.__name__
    pair.let_finish()
    assert pair.creates() == creates
    pair.check_paid_once()


def test_finished_runs_without_journals_outlive_what_is_done_to_their_objects(pair: Pair) -> None:
    before = pair.run_to_the_end()
    creates = pair.creates()
    for what in (replaced, stripped, made_anew):
        pair.delete_journals()
        what(pair)
        for name in pair.names:
            pair.team.wait_condition(name, "Complete")
            pair.check_same(name, before, by_manifest=what is not replaced)
    assert pair.creates() == creates
    pair.check_paid_once()


def replaced(pair: Pair) -> None:
    """E5: annotations and finalizers go, the status stays."""
    pair.kubectl("replace")


def stripped(pair: Pair) -> None:
    """E7 and E12: finalizers and the status go."""
    pair.strip()


def made_anew(pair: Pair) -> None:
    """E6: the objects are others."""
    pair.patch({"metadata": {"finalizers": None}})
    pair.kubectl("replace", "--force")


def has_manifest(pair: Pair, name: str) -> bool:
    place = f"s3://team-data/results/{pair.team.namespace}/{name}/"
    return f"{place}manifest.json" in pair.team.keys(place)


def journal(pair: Pair, name: str) -> dict[str, Any] | None:
    return pair.team.stack.get("configmap", f"run-{pair.keys[name]}", OPERATOR_NAMESPACE)


def parked(pair: Pair, name: str) -> bool:
    found = journal(pair, name)
    assert found is not None
    return "parked" in found["metadata"]["labels"].values()

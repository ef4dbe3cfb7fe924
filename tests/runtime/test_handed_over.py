"""A run that another installation has: adopted when it is finished, else handed over by a person.

Two clusters with the same manifest, one account and one output place (protocol 3.3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batchinference.model.run import RunPhase
from batchinference.model.work import FaultKind, Holder, TaskFault, TaskKind
from batchinference.ports import Claim
from batchinference.tasks.places import PrefixPlace
from builders import job
from fakes.runner import WorkerDied
from runtime.house import HABITS, House, play, ref

SLOW = replace(HABITS, work_s=3000)
TAKE_OVER = "batchinference.dev/take-over"
PLACE = "s3://data/ml/out/triage/"
Scene = Callable[[House, House], Coroutine[Any, Any, None]]


def play_two(tmp_path: Path, scene: Scene) -> None:
    """Both houses see the provider and the object store of the first one, and nothing else."""

    async def both(first: House) -> None:
        second = House(tmp_path, habits=SLOW, settings=first.settings)
        second.server, second.workers, second.factory = first.server, first.workers, first.factory
        second.ours = "installation-2"
        try:
            await scene(first, second)
        finally:
            await second.close()

    play(both, habits=SLOW)


def stalled(house: House) -> str:
    said = house.condition("Stalled")
    return str(said["reason"]) if said.get("status") == "True" else ""


async def held(first: House, second: House) -> None:
    """The run is live in the first cluster, and the second one waits."""
    await first.operator()
    first.give(job())
    await first.until(lambda: first.state() == "Running")
    await second.operator()
    second.give(job())
    await second.until(lambda: stalled(second) == "HeldElsewhere")


def hand_over(house: House) -> None:
    """As the condition says."""
    text = house.condition("Stalled")["message"]
    typed = re.search(rf"--overwrite {TAKE_OVER}=([^`\s]+)", text)
    assert typed is not None, text
    house.kube.annotate(ref(), **{TAKE_OVER: typed[1]})


async def end(house: House) -> None:
    for life in list(house.lives):
        await house.die(life)


def written_by(house: House) -> str:
    manifest = house.workers.manifest(PLACE)
    assert manifest is not None
    return str(manifest["installation"])


def test_a_live_run_is_left_to_the_other_cluster_and_adopted_once_it_is_finished(
    tmp_path: Path,
) -> None:
    async def scene(first: House, second: House) -> None:
        await held(first, second)
        await first.until(lambda: first.state() == "Succeeded")
        await second.until(lambda: second.state() == "Succeeded")
        assert second.condition("Submitted")["reason"] == "AdoptedPreviousRun"
        assert len(first.server.batches) == 1

    play_two(tmp_path, scene)


def test_a_run_is_handed_over_with_what_it_has_at_the_provider(tmp_path: Path) -> None:
    async def scene(first: House, second: House) -> None:
        await held(first, second)
        await end(first)  # that cluster is gone
        hand_over(second)
        await second.until(lambda: second.state() == "Succeeded")
        assert len(first.server.batches) == 1
        assert written_by(second) == "installation-2"
        (run,) = second.journals.runs()
        (old,) = first.journals.runs()
        assert run.tag == old.tag, "what the provider has carries it"
        assert "DecidedByAnnotation" in second.recorder.reasons()

    play_two(tmp_path, scene)


def test_the_old_holder_submits_cancels_and_deletes_nothing_any_more(tmp_path: Path) -> None:
    async def scene(first: House, second: House) -> None:
        for house in (first, second):
            house.limit({"maxRecordsPerBatch": 2, "maxActiveBatches": 1})
        await held(first, second)
        hand_over(second)
        await second.until(lambda: second.state() == "Running")
        first.kube.delete(ref())
        await first.until(lambda: first.job() is None, patience_s=200)
        assert "HeldElsewhere" in str(first.recorder.events)
        await second.until(lambda: second.state() == "Succeeded", patience_s=20_000)
        assert [len(batch.cancels) for batch in first.server.batches.values()] == [0, 0]
        manifest = second.workers.manifest(PLACE)
        assert manifest is not None
        assert manifest["counts"]["completed"] == 3

    play_two(tmp_path, scene)


def test_an_old_holder_that_lags_behind_does_not_write_over_the_results(tmp_path: Path) -> None:
    async def scene(first: House, second: House) -> None:
        await held(first, second)
        (life,) = first.lives
        life.refused[TaskKind.COLLECT] = TaskFault(FaultKind.RETRY, "StagingUnavailable", "503")
        hand_over(second)
        await second.until(lambda: second.state() == "Succeeded")
        del life.refused[TaskKind.COLLECT]
        await first.until(lambda: stalled(first) == "HeldElsewhere")
        await first.pass_time(300)
        assert written_by(second) == "installation-2"

    play_two(tmp_path, scene)


def test_another_installation_than_the_one_that_has_it_gives_nothing_up(tmp_path: Path) -> None:
    async def scene(first: House, second: House) -> None:
        await held(first, second)
        second.kube.annotate(ref(), **{TAKE_OVER: "somebody-else"})
        await second.pass_time(120)
        assert stalled(second) == "HeldElsewhere"
        assert "DecisionIgnored" in second.recorder.reasons()
        await end(first)
        second.kube.annotate(ref(), **{TAKE_OVER: "installation-1"})
        await second.until(lambda: second.state() == "Succeeded")
        assert len(first.server.batches) == 1

    play_two(tmp_path, scene)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_hand_over_that_is_cut_short_is_finished_by_the_next_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    really = PrefixPlace.replace
    deaths = 0

    def dying(self: PrefixPlace, claim: Claim, holder: Holder) -> bool:
        nonlocal deaths
        deaths += 1
        if deaths > 1:
            return really(self, claim, holder)
        if moment == "after":
            assert really(self, claim, holder)
        raise WorkerDied

    monkeypatch.setattr(PrefixPlace, "replace", dying)

    async def scene(first: House, second: House) -> None:
        await held(first, second)
        await end(first)
        hand_over(second)
        await second.until(lambda: deaths)
        await end(second)
        await second.operator()
        await second.until(lambda: second.state() == "Succeeded")
        assert len(first.server.batches) == 1
        assert deaths == (2 if moment == "before" else 1)
        (run,) = second.journals.runs()
        assert run.phase in {RunPhase.CLEANING, RunPhase.ENDED}

    play_two(tmp_path, scene)


def test_a_run_that_was_handed_over_and_lost_its_journal_is_still_found(tmp_path: Path) -> None:
    async def scene(first: House, second: House) -> None:
        await held(first, second)
        await end(first)
        hand_over(second)
        await second.until(lambda: second.state() == "Running")
        await end(second)
        for run in second.journals.runs():
            second.journals.lose(run.key)
        await second.operator()
        await second.until(lambda: second.state() == "Succeeded")
        assert len(first.server.batches) == 1

    play_two(tmp_path, scene)

"""An upgrade whose keys have another canonical form finds the runs of the old one (protocol 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from batchinference.core import keys
from batchinference.core.begin import key_of, keys_of
from batchinference.model.job import JobSpec, parse_job
from batchinference.model.run import RunPhase
from builders import job
from runtime.house import HABITS, House, play, ref

SLOW = replace(HABITS, work_s=3000)
OLD = key_of(parse_job(job().build()))


def form_2(namespace: str, named: Mapping[str, str], spec: JobSpec) -> Mapping[str, Any]:
    return {"version": 2, "of": [namespace, dict(named)], "spec": spec.billable()}


async def upgraded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is replaced by one whose newest keys are of version 2."""
    for life in list(house.lives):
        await house.die(life)
    monkeypatch.setitem(keys.FORMS, 2, form_2)
    await house.operator()


def new_key() -> str:
    newest, old = keys_of(parse_job(job().build()))
    assert (old, newest != old) == (OLD, True)
    return newest


async def running(house: House) -> None:
    await house.operator()
    house.give(job())
    await house.until(lambda: house.state() == "Running")


def test_a_live_run_goes_on_under_the_key_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        await running(house)
        await upgraded(house, monkeypatch)
        await house.until(lambda: house.state() == "Succeeded")
        assert house.status()["runKey"] == OLD
        assert len(house.server.batches) == 1
        assert new_key() not in house.journals.stored

    play(scene, habits=SLOW)


@pytest.mark.parametrize("phase", [RunPhase.RUNNING, RunPhase.ENDED])
@pytest.mark.parametrize("first", ["seen", "unseen"])
def test_an_object_that_is_made_anew_after_the_upgrade_finds_its_run(
    monkeypatch: pytest.MonkeyPatch, phase: RunPhase, first: str
) -> None:
    """Whether the new operator has seen the old object or not: it has no status to tell."""

    async def scene(house: House) -> None:
        await running(house)
        if phase is RunPhase.ENDED:
            await house.until(lambda: house.phase(OLD) is RunPhase.ENDED)
        if first == "seen":
            await upgraded(house, monkeypatch)
            house.kube.delete(ref())
        else:
            for life in list(house.lives):
                await house.die(life)
            house.kube.strip_finalizers(ref())
            house.kube.delete(ref())
        house.kube.strip_finalizers(ref())
        await house.until(lambda: house.job() is None)
        house.give(job())
        if first == "unseen":
            await upgraded(house, monkeypatch)
        await house.until(lambda: house.state() == "Succeeded", patience_s=10_000)
        assert house.status()["runKey"] == OLD
        assert new_key() not in house.journals.stored
        assert house.condition("Submitted")["reason"] == "AdoptedPreviousRun"
        if phase is RunPhase.ENDED:
            assert len(house.server.batches) == 1

    play(scene, habits=SLOW)


def test_a_run_that_lost_its_journal_with_the_upgrade_is_found_by_its_old_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(house: House) -> None:
        await running(house)
        for life in list(house.lives):
            await house.die(life)
        house.journals.lose(OLD)
        await upgraded(house, monkeypatch)
        await house.until(lambda: house.state() == "Succeeded")
        run = house.journals.peek(OLD)
        assert run is not None
        assert run.key_version == 1
        assert len(house.server.batches) == 1

    play(scene, habits=SLOW)


def test_an_edit_of_what_is_paid_for_is_noticed_under_an_old_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(house: House) -> None:
        await running(house)
        await upgraded(house, monkeypatch)
        await house.pass_time(5)
        house.kube.edit_spec(ref(), model="another")
        await house.until(lambda: house.condition("Stalled").get("reason") == "SpecChanged")
        assert len(house.server.batches) == 1

    play(scene, habits=SLOW)


def test_a_journal_of_a_newer_operator_under_an_old_key_is_not_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(house: House) -> None:
        house.journals.put_raw(OLD, {"schema": 99})
        await upgraded(house, monkeypatch)
        house.give(job())
        await house.until(lambda: house.state() == "Stalled")
        assert house.condition("Stalled")["reason"] == "JournalOfNewerOperator"
        assert not house.server.batches

    play(scene)


def test_a_new_job_gets_a_key_of_the_newest_version(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(house: House) -> None:
        await upgraded(house, monkeypatch)
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        assert house.status()["runKey"] == new_key()
        run = house.journals.peek(new_key())
        assert run is not None
        assert run.key_version == 2
        assert OLD not in house.journals.stored

    play(scene)

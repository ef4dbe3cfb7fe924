"""Journals that are lost: the account's index finds what is there, and nothing is paid twice (2.6)."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from batchinference.core.begin import key_of
from batchinference.model.batch import SubmissionID
from batchinference.model.job import parse_job
from batchinference.model.metadata import PAUSED
from batchinference.model.run import RunPhase, ShardState
from batchinference.model.work import FaultKind, TaskFault, TaskKind
from batchinference.runtime import index as index_module
from batchinference.runtime.index import Indexes
from builders import job
from fakes.server import Fate
from runtime.house import HABITS, House, play, ref

CLAIM = "s3://data/ml/out/triage/_run.json"
SLOW = replace(HABITS, work_s=3000)


def key(body: dict[str, Any]) -> str:
    return key_of(parse_job(body))


async def running(house: House, records: int = 3) -> dict[str, Any]:
    body = house.give(job(), records)
    await house.until(lambda: house.state() == "Running")
    return body


def lose_all(house: House) -> None:
    for run in house.journals.runs():
        house.journals.lose(run.key)


def stalled(house: House) -> str:
    said = house.condition("Stalled")
    return str(said["reason"]) if said.get("status") == "True" else ""


async def another_life(house: House) -> None:
    """The operator is started anew, in a namespace without journals."""
    for life in list(house.lives):
        await house.die(life)
    lose_all(house)
    await house.operator()


def batches(house: House) -> int:
    return len(house.server.batches)


def test_a_live_run_is_found_by_its_object_and_followed() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = await running(house)
        await another_life(house)
        await house.until(lambda: house.condition("Submitted")["reason"] == "JournalLost")
        assert house.condition("Submitted")["status"] == "Unknown"
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1
        assert "JournalLost" in house.recorder.reasons()
        assert house.phase(key(body)) is RunPhase.ENDED

    play(scene, habits=SLOW)


@pytest.mark.parametrize("status_too", [False, True])
def test_a_live_run_is_found_by_its_claim_when_its_object_is_created_again(
    status_too: bool,
) -> None:
    """A cluster that is made anew from Git: neither journals nor statuses."""

    async def scene(house: House) -> None:
        await house.operator()
        await running(house)
        for life in list(house.lives):
            await house.die(life)
        lose_all(house)
        if not status_too:
            house.kube.strip_finalizers(ref())
            house.kube.delete(ref())
            house.give(job())
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1

    play(scene, habits=SLOW)


def test_also_without_a_claim_the_tag_is_found() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await running(house)
        for life in list(house.lives):
            await house.die(life)
        lose_all(house)
        house.kube.strip_finalizers(ref())
        house.kube.delete(ref())
        del house.workers.store.objects[CLAIM]
        house.give(job())
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1

    play(scene, habits=SLOW)


def test_a_journal_that_is_deleted_under_a_living_operator_is_rebuilt() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await running(house)
        lose_all(house)
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1

    play(scene, habits=SLOW)


@pytest.mark.parametrize("paused", [False, True])
def test_what_a_suspended_run_has_at_the_provider_is_found_and_collected(paused: bool) -> None:
    async def scene(house: House) -> None:
        house.limit({"maxRecordsPerBatch": 2, "maxActiveBatches": 1})
        await house.operator()
        body = await running(house, records=4)
        if paused:
            house.kube.annotate(ref(), **{PAUSED: "true"})
        else:
            house.kube.edit_spec(ref(), suspend=True)
        await another_life(house)
        await house.until(lambda: house.phase(key(body)) is RunPhase.RUNNING)
        await house.until(lambda: house.condition("Suspended")["status"] == "False")
        assert house.condition("Suspended")["reason"] == (
            "Paused" if paused else "AlreadySubmitted"
        )
        await house.pass_time(6000)
        run = house.run(body)
        assert run is not None
        assert [s.state for s in run.shards] == [ShardState.COLLECTED, ShardState.QUEUED]
        assert batches(house) == 1, "the other is held back"
        if paused:
            house.kube.annotate(ref(), **{PAUSED: "false"})
        else:
            house.kube.edit_spec(ref(), suspend=False)
        await house.until(lambda: house.state() == "Succeeded", patience_s=20_000)
        assert batches(house) == 2

    play(scene, habits=SLOW)


def test_a_run_that_is_found_twice_did_not_end_before_it_started() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await running(house)
        for life in list(house.lives):
            await house.die(life)
        await house.pass_time(6000)
        lose_all(house)
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")
        started = house.status()["startTime"]
        lose_all(house)
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None)
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        shown = house.status()
        assert shown["startTime"] == started
        assert shown["completionTime"] >= started

    play(scene, habits=SLOW)


def test_a_run_that_has_ended_at_the_provider_meanwhile_is_collected() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await running(house)
        for life in list(house.lives):
            await house.die(life)
        lose_all(house)
        await house.pass_time(3000)
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1

    play(scene)


def test_shards_that_were_not_submitted_are_and_their_ordinals_go_on() -> None:
    async def scene(house: House) -> None:
        spec = {"maxRecordsPerBatch": 2, "maxActiveBatches": 1}
        house.limit(spec)
        await house.operator()
        body = await running(house, records=5)
        await another_life(house)
        await house.until(lambda: house.state() == "Succeeded", patience_s=20_000)
        assert batches(house) == 3
        run = house.run(body)
        assert run is not None
        assert run.ordinal_floor == 2
        named = sorted((b.submission.shard, b.submission.ordinal) for b in _ours(house))
        assert named == [(0, 1), (1, 2), (2, 2)]

    play(scene, habits=SLOW)


def _ours(house: House) -> list[Any]:
    return [b for b in house.server.batches.values() if b.submission is not None]


def test_an_input_that_changed_since_is_not_sent_and_its_staging_is_kept() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = await running(house)
        shard = next(u for u in house.workers.store.under("s3://staging/") if "shards/" in u)
        before = house.workers.store.objects[shard]
        house.workers.put_input(body["spec"]["input"]["s3"]["uri"], "triage", ["another"] * 4)
        await another_life(house)
        await house.until(lambda: stalled(house) == "JournalLost")
        await house.pass_time(600)
        assert house.workers.store.objects[shard] == before
        texts = [f"triage asks {n}" for n in range(3)]
        house.workers.put_input(body["spec"]["input"]["s3"]["uri"], "triage", texts)
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1

    play(scene, habits=SLOW)


def test_batches_that_do_not_match_stall_and_nothing_is_submitted() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = await running(house)
        run = house.run(body)
        assert run is not None
        named = SubmissionID(run.tag, 9, 1, "f" * 12)
        file = house.server.upload(b"", house.clock.now())
        made = house.server.commit({}, named, file, house.clock.now(), fate=Fate.COMPLETE)
        assert made is not None
        made.missing_input = False
        await another_life(house)
        await house.until(lambda: stalled(house) == "JournalLost")
        await house.pass_time(5000)
        assert batches(house) == 2
        assert made.id in house.condition("Stalled")["message"]
        found = house.run(body)
        assert found is not None
        assert found.shards[0].collected is not None, "what matches is collected"
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None)
        await house.until(lambda: house.phase(run.key) is not RunPhase.RUNNING)

    play(scene, habits=SLOW)


def test_a_lost_run_that_is_deleted_is_cancelled_all_the_same() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = await running(house)
        for life in list(house.lives):
            await house.die(life)
        lose_all(house)
        house.kube.delete(ref())
        await house.operator()
        await house.until(lambda: house.job() is None, patience_s=150)
        (batch,) = house.server.batches.values()
        await house.until(lambda: batch.cancels)
        await house.until(lambda: house.phase(key(body)) is RunPhase.PARKED)
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")

    play(scene, habits=SLOW)


def test_a_finished_run_is_adopted_without_asking() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await running(house)
        await house.until(lambda: house.state() == "Succeeded")
        house.kube.delete(ref())
        await another_life(house)
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1
        assert house.condition("Submitted")["reason"] == "AdoptedPreviousRun"
        assert house.recorder.reasons("triage").count("AdoptedPreviousRun") == 1

    play(scene)


def test_partial_results_are_no_end_and_the_rest_goes_again_once() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = await running(house)
        await house.pass_time(100)
        house.kube.delete(ref())
        await house.until(lambda: house.phase(key(body)) is RunPhase.PARKED)
        await another_life(house)
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        manifest = house.workers.manifest("s3://data/ml/out/triage/")
        assert manifest is not None
        assert (manifest["final"], manifest["counts"]["completed"]) == (True, 3)

    play(scene, habits=SLOW)


def test_a_lost_run_of_which_nothing_was_submitted_starts_over() -> None:
    async def scene(house: House) -> None:
        house.server.outage = True
        life = await house.operator()
        house.give(job())
        await house.pass_time(5)
        assert house.job() is not None
        house.server.outage = False
        await house.until(lambda: house.state() == "Queued" or batches(house))
        del life
        lose_all(house)
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


# ---------------------------------------------------------------- providers that can't tell


def test_a_server_that_cannot_list_serves_new_runs_and_stalls_lost_ones() -> None:
    async def scene(house: House) -> None:
        for _ in range(250):
            house.server.commit({}, None, "", house.clock.now() - timedelta(days=1))
        house.server.lists_partly = True
        await house.operator()
        body = await running(house)
        assert batches(house) == 251
        for life in list(house.lives):
            await house.die(life)
        house.journals.lose(key(body))
        house.kube.strip_finalizers(ref())
        house.kube.delete(ref())
        (mine,) = _ours(house)
        mine.vanishes_at = house.clock.now()  # too far behind for a listing that is cut
        house.give(job())
        await house.operator()
        await house.until(lambda: stalled(house) == "JournalLost")
        await house.pass_time(600)
        assert batches(house) == 251
        mine.vanishes_at = None
        house.server.lists_partly = False
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 251

    play(scene, habits=SLOW)


def test_a_server_that_drops_what_batches_carry_never_pays_a_lost_run_again() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        body = await running(house)
        await another_life(house)
        await house.until(lambda: stalled(house) == "JournalLost")
        await house.pass_time(3000)
        assert batches(house) == 1
        assert house.phase(key(body)) is RunPhase.RUNNING

    play(scene, habits=replace(SLOW, echoes=False))


def test_a_person_who_has_looked_lets_a_lost_run_go_on() -> None:
    async def scene(house: House) -> None:
        for _ in range(250):
            house.server.commit({}, None, "", house.clock.now() - timedelta(days=1))
        house.server.lists_partly = True
        life = await house.operator()
        life.refused[TaskKind.UPLOAD] = TaskFault(FaultKind.RETRY, "ProviderUnavailable", "503")
        house.give(job())
        await house.until(lambda: house.state() == "Queued")
        await another_life(house)  # nothing was submitted; but who knows that
        await house.until(lambda: stalled(house) == "JournalLost")
        await house.pass_time(300)
        assert batches(house) == 250
        text = house.condition("Stalled")["message"]
        typed = re.search(r"--overwrite (\S+)=([^`\s]+)", text)
        assert typed is not None, text
        house.kube.annotate(ref(), **{typed[1]: typed[2]})
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 251

    play(scene, habits=SLOW)


# ---------------------------------------------------------------- the index itself


def test_an_account_full_of_foreign_batches_is_listed_once_in_the_background() -> None:
    async def scene(house: House) -> None:
        for n in range(3000):
            house.server.commit({}, None, "", house.clock.now() - timedelta(minutes=n))
        await house.operator()
        house.give(job())
        reasons: set[str] = set()

        def submitted() -> bool:
            reasons.add(str(house.condition("Submitted").get("reason")))
            return house.state() == "Running"

        await house.until(submitted)
        assert "ListingAccount" in reasons, "it says what it waits for"
        listed = house.server.calls["list"]
        assert 30 <= listed < 40
        second = job("second")
        house.give(second)
        await house.until(lambda: house.state("second") == "Running")
        assert house.server.calls["list"] <= listed + 3, "from then on it is known"
        await house.until(lambda: house.state("second") == "Succeeded")

    play(scene, latency_s=0.5)


def test_a_listing_that_breaks_goes_on_where_it_broke() -> None:
    async def scene(house: House) -> None:
        for n in range(1000):
            house.server.commit({}, None, "", house.clock.now() - timedelta(minutes=n))
        house.faults.flaky = 0.5
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.faults.flaky = 0.0
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 1001

    play(scene, latency_s=0.1)


def test_an_account_that_cannot_be_asked_is_waited_for() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await house.until(lambda: house.server.calls.get("list"))
        house.server.locked_out = True
        house.give(job())
        await house.pass_time(300)
        assert batches(house) == 0
        house.server.locked_out = False
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_more_runs_than_an_index_holds_are_looked_for_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_module, "MOST_TAGS", 5)

    async def scene(house: House) -> None:
        for n in range(20):
            named = SubmissionID(f"{n:020d}", 0, 1, "h")
            house.server.commit({}, named, "", house.clock.now() - timedelta(minutes=n))
        await house.operator()
        await running(house)
        await another_life(house)
        await house.until(lambda: house.state() == "Succeeded")
        assert batches(house) == 21

    play(scene, habits=SLOW)


def test_a_defect_in_listing_holds_nobody_up_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module.logger, "disabled", True)
    really = Indexes._list_all
    tries = 0

    async def broken(self: Indexes, index: Any) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ZeroDivisionError
        await really(self, index)

    monkeypatch.setattr(Indexes, "_list_all", broken)

    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        assert tries == 3

    play(scene)


def test_runs_with_a_journal_ask_nobody() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        await running(house)
        for life in list(house.lives):
            await house.die(life)
        searched = house.server.calls.get("list", 0)
        await house.operator(watching=False)
        await house.pass_time(60)
        assert house.server.calls.get("list", 0) == searched
        await house.operator()
        await house.until(lambda: house.state() == "Succeeded")

    play(scene, habits=SLOW)


def test_the_place_of_a_run_that_is_gone_with_its_journal_is_given_to_another() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.limit({"maxActiveBatches": 1})
        await house.pass_time(5)
        first = await running(house)
        house.give(job("second"))
        await house.until(lambda: house.state("second") == "Queued")
        house.journals.lose(key(first))
        house.kube.strip_finalizers(ref())
        house.kube.delete(ref())
        await house.until(lambda: house.state("second") == "Running", patience_s=120)

    play(scene, habits=SLOW)

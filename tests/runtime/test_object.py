"""Objects in disorder: a finalizer that was stripped, a spec that changes or cannot be read, a
journal that cannot be read, a status that somebody else wrote.
"""

from __future__ import annotations

from typing import Any

import pytest

from batchinference.core.begin import key_of
from batchinference.errors import Retry
from batchinference.model.codec import encode
from batchinference.model.job import parse_job
from batchinference.model.run import Run, RunPhase
from batchinference.model.work import FaultKind, TaskFault, TaskKind
from batchinference.ports import ObjectRef
from batchinference.runtime import effects
from batchinference.runtime.store import FINALIZER
from builders import digest, job, openai_provider, run_of
from fakes.journals import FakeJournals
from runtime.house import House, play, ref

PROVIDER = ObjectRef("InferenceProvider", "ml", "openai")


def finalizers(house: House, name: str = "triage") -> list[str]:
    body = house.job(name)
    return list(body["metadata"].get("finalizers") or []) if body else []


def stalled(house: House, name: str = "triage") -> tuple[str, str]:
    found = house.condition("Stalled", name)
    assert found.get("status") != "True" or found["message"]
    return (found["reason"], found["message"]) if found.get("status") == "True" else ("", "")


def cancels(house: House) -> int:
    return sum(len(batch.cancels) for batch in house.server.batches.values())


async def held_for(house: House, name: str = "triage") -> float:
    """Delete a job; the seconds until it is gone."""
    house.kube.delete(ref(name))
    began = house.clock.elapsed()
    await house.until(lambda: house.job(name) is None)
    return house.clock.elapsed() - began


# ---------------------------------------------------------------- the finalizer


def test_a_stripped_finalizer_stops_neither_following_nor_finishing() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.refuses_finalizers = True
        house.kube.strip_finalizers(ref())
        await house.until(lambda: stalled(house)[0] == "AccessDenied")
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


# ---------------------------------------------------------------- the spec


def test_a_spec_that_changes_under_a_running_job_is_said_and_heals() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), model="another")
        await house.until(lambda: stalled(house)[0] == "SpecChanged")
        house.kube.edit_spec(ref(), model="gpt-4.1-mini")
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), model="another")
        await house.until(lambda: house.state() == "Succeeded")
        assert finalizers(house) == []
        assert len(house.journals.stored) == 1, "one uid has one run"

    play(scene)


def test_a_spec_that_changes_before_there_is_a_run_begins_none() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job().suspended())
        await house.until(lambda: house.state() == "Suspended")
        house.kube.edit_spec(ref(), model="another", suspend=False)
        await house.until(lambda: stalled(house)[0] == "SpecChanged")
        house.kube.edit_spec(ref(), model="gpt-4.1-mini")
        await house.until(lambda: house.state() == "Succeeded")
        assert len(house.journals.stored) == 1

    play(scene)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_job_that_stops_decoding_is_followed_and_heals(restarted: bool) -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), operation="FineTuning")
        if restarted:
            await house.die(life)
            await house.operator()
        await house.until(lambda: stalled(house)[0] == "InvalidSpec")
        assert "spec.operation" in stalled(house)[1]
        assert house.condition("Submitted")["status"] == "True", "what it said stands"
        house.kube.edit_spec(ref(), operation="ChatCompletions")
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), operation="FineTuning")
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_job_that_stops_decoding_is_cancelled_and_let_go_when_it_is_deleted(
    restarted: bool,
) -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), input={"newKindOfSource": {}})
        if restarted:
            await house.die(life)
            await house.operator()
        await house.until(lambda: stalled(house)[0] == "InvalidSpec")
        assert await held_for(house) < 10
        assert cancels(house) == 1

    play(scene)


def test_a_job_whose_status_is_wiped_too_is_cancelled_and_let_go() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        await house.die(life)
        house.kube.edit_spec(ref(), operation="FineTuning")
        await house.kube.patch_status(ref(), dict.fromkeys(house.status()), "")
        await house.operator()
        await house.until(lambda: stalled(house)[0] == "InvalidSpec")
        assert house.condition("Submitted")["status"] == "True"
        assert await held_for(house) < 10
        assert cancels(house) == 1

    play(scene)


def test_a_job_that_never_decoded_says_so_and_goes_at_once() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        other = job("other").with_spec(model=None).finalized(FINALIZER)
        house.kube.create(other.build())
        await house.until(lambda: stalled(house, "other")[0] == "InvalidSpec")
        assert "spec.model" in stalled(house, "other")[1]
        assert house.condition("Complete", "other")["status"] == "False"
        assert await held_for(house, "other") < 10
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_finished_job_that_stops_decoding_stays_finished() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Succeeded")
        await house.pass_time(60)
        done = house.status()["completionTime"]
        await house.die(life)
        house.kube.edit_spec(ref(), operation="FineTuning")
        await house.operator()
        await house.until(lambda: house.status()["observedGeneration"] == 2)
        assert (house.state(), house.status()["completionTime"]) == ("Succeeded", done)
        assert await held_for(house) < 1

    play(scene)


def test_a_job_of_another_controller_is_left_alone_even_where_it_does_not_decode() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        foreign = job().with_spec(model=None, managedBy="kueue.example/multi")
        house.kube.create(foreign.build())
        await house.pass_time(60)
        assert house.status() == {"observedGeneration": -1}

    play(scene)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_running_job_that_another_controller_takes_is_left_to_it(restarted: bool) -> None:
    """The API server refuses that; where its check is off, nothing of ours may stay on the object,
    and what is paid for must come home all the same.
    """

    async def scene(house: House) -> None:
        life = await house.operator()
        body = house.give(job())
        await house.until(lambda: house.state() == "Running")
        if restarted:
            await house.die(life)
        house.kube.edit_spec(ref(), managedBy="kueue.example/multi")
        if restarted:
            await house.operator()
        await house.until(lambda: finalizers(house) == [])
        shown = house.status()
        await house.until(lambda: house.phase(house.run(body).key) is RunPhase.ENDED)
        assert cancels(house) == 0
        assert house.status() == shown, "hands off"
        assert house.workers.results("s3://data/ml/out/triage/")
        assert await held_for(house) < 1

    play(scene)


def test_a_job_that_another_controller_took_is_cancelled_when_it_goes() -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.edit_spec(ref(), managedBy="kueue.example/multi")
        await house.until(lambda: finalizers(house) == [])
        assert await held_for(house) < 1
        await house.until(lambda: cancels(house) == 1, 130)

    play(scene)


# ---------------------------------------------------------------- the journal

BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"schema": 99}, "JournalOfNewerOperator", "99"),
    ({"phase": "Daydreaming"}, "JournalUnreadable", "phase"),
    ({"spec": {"operation": "FineTuning"}}, "JournalUnreadable", "spec."),
]


@pytest.mark.parametrize(("members", "reason", "said"), BROKEN)
@pytest.mark.parametrize("renamed", [False, True])
def test_a_journal_that_cannot_be_read_is_said_and_lets_its_object_go_in_time(
    members: dict[str, Any], reason: str, said: str, renamed: bool
) -> None:
    """`renamed`: a later version asks for the run by another key, which the status remembers."""

    async def scene(house: House) -> None:
        life = await house.operator()
        body = house.give(job())
        await house.until(lambda: house.state() == "Running")
        await house.die(life)
        run = house.run(body)
        assert run is not None
        if renamed:
            house.kube.edit_spec(ref(), model="another")
        house.journals.put_raw(run.key, {**encode(run), **members})
        stored = house.journals.stored[run.key]
        await house.operator()
        house.give(job("other"))
        await house.until(lambda: stalled(house)[0] == reason)
        assert said in stalled(house)[1]
        assert house.condition("Submitted")["status"] == "True"
        await house.until(lambda: house.state("other") == "Succeeded")
        assert 118 < await held_for(house) < 125
        assert house.recorder.reasons("triage")[-1] == reason
        assert house.journals.stored[run.key] == stored, "never written"
        assert cancels(house) == 0

    play(scene)


@pytest.mark.parametrize("seen", ["at start", "while it runs"])
def test_a_journal_that_is_put_right_goes_on(seen: str) -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        body = house.give(job())
        await house.until(lambda: house.state() == "Running")
        run = house.run(body)
        assert run is not None
        if seen == "at start":
            await house.die(life)
        house.journals.put_raw(run.key, {**encode(run), "schema": 99})
        if seen == "at start":
            await house.operator()
        await house.until(lambda: stalled(house)[0] == "JournalOfNewerOperator")
        house.journals.put_raw(run.key, dict(encode(run)))
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


# ---------------------------------------------------------------- a status from elsewhere


@pytest.mark.parametrize("end", ["Running", "Succeeded"])
def test_a_status_that_is_taken_away_is_shown_again(end: str) -> None:
    async def scene(house: House) -> None:
        await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == end)
        await house.until(lambda: (FINALIZER in finalizers(house)) == (end == "Running"))
        before = house.status()
        nothing: dict[str, Any] = {**dict.fromkeys(before), "observedGeneration": -1}
        await house.kube.patch_status(ref(), nothing, "")
        await house.until(lambda: house.state() != "", 30)
        after = house.status()
        kept = ("runKey", "startTime", "requestCounts", "outputs")
        assert {k: after.get(k) for k in kept} == {k: before.get(k) for k in kept}
        if end == "Succeeded":
            assert after["completionTime"] == before["completionTime"]

    play(scene)


async def begin(house: House, name: str = "victim") -> str:
    """A job that runs; its run key."""
    body = house.give(job(name))
    await house.until(lambda: house.state(name) == "Running")
    return key_of(parse_job(body))


async def given_status(house: House, name: str, **status: Any) -> None:
    """A job that is there with a status before any operator sees it."""
    house.give(job(name))
    await house.kube.patch_status(ref(name), status, "")


NAMED = [
    ("victim", "another job's run"),
    ("nobody", "a run that does not exist"),
    ("path", "no run key at all"),
]


@pytest.mark.parametrize(("whose", "reason"), NAMED)
def test_a_status_is_not_believed_which_run_the_object_is_of(whose: str, reason: str) -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        key = await begin(house)
        await house.die(life)
        named = {"victim": key, "nobody": digest("x")[:40], "path": "../secrets/x"}[whose]
        await given_status(house, "hostile", runKey=named)
        await house.operator()
        await house.until(lambda: house.state("hostile") == "Running")
        assert house.status("hostile")["runKey"] != named, reason
        assert await held_for(house, "hostile") < 10
        await house.until(lambda: house.state("victim") == "Succeeded")
        assert cancels(house) == 1, "not the victim's"

    play(scene)


def test_a_hostile_object_that_does_not_decode_reaches_no_run_either() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        key = await begin(house)
        await house.die(life)
        house.kube.create(job("hostile").with_spec(model=None).finalized(FINALIZER).build())
        await house.kube.patch_status(ref("hostile"), {"runKey": key}, "")
        await house.operator()
        await house.until(lambda: stalled(house, "hostile")[0] == "InvalidSpec")
        assert await held_for(house, "hostile") < 10
        await house.until(lambda: house.state("victim") == "Succeeded")
        assert cancels(house) == 0

    play(scene)


def test_a_restored_object_of_the_same_name_is_not_the_one_that_ran() -> None:
    """A backup brings its status back: the spec of the restored object decides, not the status."""

    async def scene(house: House) -> None:
        life = await house.operator()
        key = await begin(house, "triage")
        await house.die(life)
        house.kube.strip_finalizers(ref())
        house.kube.delete(ref())
        restored = job().run_id("two").writing("s3://data/ml/out/two/").build()
        house.kube.create(restored)
        await house.kube.patch_status(ref(), {"runKey": key}, "")
        await house.operator()
        await house.until(lambda: house.state() == "Running")
        assert house.status()["runKey"] == key_of(parse_job(house.job() or {})) != key

    play(scene)


def test_a_changed_spec_is_noticed_by_the_next_operator_too() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        key = await begin(house, "triage")
        await house.die(life)
        house.kube.edit_spec(ref(), model="another")
        await house.operator()
        await house.until(lambda: stalled(house)[0] == "SpecChanged")
        assert house.status()["runKey"] == key
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_an_edited_object_whose_journal_is_lost_begins_no_other_run() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        key = await begin(house, "triage")
        await house.die(life)
        house.journals.lose(key)
        house.kube.edit_spec(ref(), model="another")
        await house.operator()
        await house.until(lambda: stalled(house)[0] == "JournalLost")
        await house.pass_time(600)
        assert house.status()["runKey"] == key
        assert list(house.journals.stored) == []
        house.kube.edit_spec(ref(), model=job().build()["spec"]["model"])
        await house.until(lambda: house.state() == "Succeeded")
        assert len(house.server.batches) == 1

    play(scene)


def test_an_object_whose_name_another_has_by_now_is_gone() -> None:
    """The watch was broken when it went, and shows no object that was known when it is back."""

    async def scene(house: House) -> None:
        life = await house.operator()
        body = house.give(job().with_spec(suspend=True))
        await house.until(lambda: house.state() == "Suspended")
        house.kube.break_watches(life.process)
        house.kube.delete(ref())
        house.kube.create({**body, "spec": {**body["spec"], "suspend": False}})
        house.kube.mend_watches()
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_a_status_that_is_not_believed_and_shows_a_submission_starts_nothing() -> None:
    async def scene(house: House) -> None:
        submitted = {
            "type": "Submitted",
            "status": "True",
            "reason": "SubmissionAccepted",
            "message": "",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        await given_status(house, "triage", runKey=run_of().key, conditions=[submitted])
        await house.operator()
        await house.until(lambda: stalled(house)[0] == "JournalLost")
        await house.pass_time(600)
        assert house.server.batches == {}

    play(scene)


def test_an_object_whose_deletion_was_not_seen_is_not_asked_for_all_the_time() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        house.give(job())
        await house.until(lambda: house.state() == "Running")
        house.kube.strip_finalizers(ref())
        await house.pass_time(0)
        house.kube.break_watches(life.process)
        house.kube.delete(ref())
        before = house.kube.finalizer_calls
        await house.pass_time(50)
        assert house.kube.finalizer_calls - before < 12

    play(scene)


def test_a_defect_of_ours_is_told_as_one_and_heals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects.logger, "disabled", True)  # the traceback is wanted here

    async def scene(house: House) -> None:
        life = await house.operator()

        def broken(*_task: Any) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(life.runner, "start", broken)
        house.give(job())
        await house.until(lambda: stalled(house)[0] == "InternalError")
        monkeypatch.undo()
        await house.until(lambda: house.state() == "Running")

    play(scene)


def test_a_mistake_in_the_provider_is_mended_there_while_nothing_is_staged() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        no_bucket = TaskFault(FaultKind.STALLED, "BucketNotFound", "There is no bucket 'staging'")
        life.refused[TaskKind.STAGE] = no_bucket
        body = house.give(job())
        await house.until(lambda: house.condition("Stalled").get("reason") == "BucketNotFound")
        storage = openai_provider()["spec"]["storage"]
        house.kube.edit_spec(PROVIDER, storage={**storage, "stagingURI": "s3://mended/ml/"})
        del life.refused[TaskKind.STAGE]
        await house.until(lambda: house.state() == "Running")
        run = house.run(body)
        assert run is not None
        assert run.staging.uri.startswith("s3://mended/ml/")
        await house.until(lambda: house.state() == "Succeeded")

    play(scene)


def test_what_was_staged_where_the_provider_led_before_goes_with_the_rest() -> None:
    async def scene(house: House) -> None:
        life = await house.operator()
        life.refused[TaskKind.STAGE] = TaskFault(FaultKind.RETRY, "StagingUnavailable", "503")
        body = house.give(job())
        await house.until(lambda: house.run(body))
        run = house.run(body)
        assert run is not None
        # As of a process that died in its first pass, which no journal tells of.
        house.workers.store.objects[f"{run.staging.uri}shards/00000.jsonl"] = b"{}"
        storage = openai_provider()["spec"]["storage"]
        house.kube.edit_spec(PROVIDER, storage={**storage, "stagingURI": "s3://mended/ml/"})
        life.refused.clear()
        await house.until(lambda: house.phase(run.key) is RunPhase.ENDED)
        assert house.state() == "Succeeded"
        left = house.workers.store.under("s3://staging/") | house.workers.store.under("s3://mended")
        assert not left

    play(scene)


def test_a_journal_that_nobody_confirmed_is_found_when_its_object_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created = FakeJournals.create

    async def unanswered(self: FakeJournals, run: Run) -> str:
        await created(self, run)
        raise Retry("Unavailable", "the API server did not answer")

    async def scene(house: House) -> None:
        await house.operator()
        with monkeypatch.context() as broken:
            broken.setattr(FakeJournals, "create", unanswered)
            body = house.give(job())
            await house.until(lambda: house.run(body))
            house.kube.delete(ref())
            await house.until(lambda: house.job() is None)
        await house.until(lambda: house.phase(key_of(parse_job(body))) is RunPhase.ENDED)
        assert house.server.batches == {}

    play(scene)

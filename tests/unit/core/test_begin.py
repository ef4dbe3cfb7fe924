"""The first look: places that are refused, the journal of a new run, an ended one's fresh start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchinference.core.begin import (
    afresh,
    begin,
    has_nothing,
    journaled_spec,
    key_of,
    moved,
    starts_afresh,
)
from batchinference.errors import Stalled
from batchinference.model.codec import encode
from batchinference.model.job import parse_job
from batchinference.model.provider import parse_provider
from batchinference.model.run import Ending, ProviderPin, RunPhase, ShardState, Verdict
from batchinference.model.status import Reason
from builders import bedrock_provider, job, limits, openai_provider, run_of
from unit.core.given import NOW, in_state, run_with, seen, spec_of

PIN = ProviderPin("InferenceProvider", "openai", "ml", {}, "ml", "openai/test")
TINY = job().inline("{}").with_spec(output={"configMap": {"name": "answers"}})
NO_STORAGE = openai_provider(storage={})


def begun(builder, manifest=None):
    return begin(
        parse_job(builder.stamped().build()),
        parse_provider(manifest or openai_provider()).spec,
        PIN,
        limits(),
        installation="inst-1",
        operator_namespace="operators",
        now=NOW,
    )


def test_a_new_run_knows_who_asked_for_what_and_where_it_goes() -> None:
    run = begun(job().writing("s3://data/${namespace}/out/${name}/${runKey}/"))
    found = seen(job().writing("s3://data/${namespace}/out/${name}/${runKey}/"))
    assert run.key == key_of(found)
    assert (run.owner.namespace, run.owner.name, run.owner.uid) == (
        "ml",
        "triage",
        found.metadata.uid,
    )
    assert run.output.uri == f"s3://data/ml/out/triage/{run.key}/"
    assert run.staging.uri == f"s3://staging/ml/openai/inst-1/{run.key}/"
    assert (run.phase, run.created_at, run.provider) == (RunPhase.ADMITTING, NOW, PIN)
    assert not run.output.claimed
    assert not run.was_submitted
    assert run.spec == journaled_spec(found.spec)


def test_runs_of_two_installations_are_told_apart_at_the_provider() -> None:
    one = begun(job())
    assert one.installation == "inst-1"
    assert len(one.tag) == 20
    assert one.tag != run_of().tag


def test_a_tiny_run_does_without_object_storage() -> None:
    run = begun(TINY, NO_STORAGE)
    assert run.output.uri == "configmap://ml/answers"
    assert run.staging.uri == f"configmap://operators/staging-{run.key}/"
    assert run.staging.is_config_map


FROM_MAP = job().with_spec(input={"configMapKeyRef": {"name": "in", "key": "k"}})
STORAGE = [
    (TINY, NO_STORAGE, None, "inline to a ConfigMap"),
    (FROM_MAP.with_spec(output={"configMap": {"name": "o"}}), NO_STORAGE, None, "two ConfigMaps"),
    (TINY, openai_provider(), None, "storage is used where there is some"),
    (FROM_MAP, openai_provider(), None, "from a ConfigMap to S3"),
    (TINY.writing("s3://data/ml/o/"), NO_STORAGE, Reason.STORAGE_MISSING, "output in S3"),
    (TINY.reading("s3://data/ml/i"), NO_STORAGE, Reason.STORAGE_MISSING, "input in S3"),
    (TINY, bedrock_provider(storage={}), Reason.STORAGE_MISSING, "Bedrock reads from S3"),
]


@pytest.mark.parametrize(("builder", "manifest", "why", "reason"), STORAGE)
def test_what_needs_object_storage(builder, manifest, why, reason) -> None:
    if why is None:
        assert begun(builder, manifest).staging.uri, reason
        return
    with pytest.raises(Stalled) as caught:
        begun(builder, manifest)
    assert caught.value.reason == why, reason


def staging_at(uri):
    storage = openai_provider()["spec"]["storage"]
    return openai_provider(storage={**storage, "stagingURI": uri})


PLACES = [
    (job().reading("s3://data/qa/in"), None, "spec.input.s3.uri", "another namespace's input"),
    (job().writing("s3://other/out/"), None, "spec.output.s3.uri", "another bucket"),
    (job().writing("s3://data/ml/${runID}/"), None, "spec.output.s3.uri", "an empty variable"),
    (
        job().run_id("../qa").writing("s3://data/ml/${runID}/"),
        None,
        "spec.output.s3.uri",
        "a variable that climbs",
    ),
    (
        job().reading("s3://data/ml/").writing("s3://data/ml/out/"),
        None,
        "must not overlap",
        "the output in the input",
    ),
    (job(), staging_at("s3://data/ml/in/"), "fine", "staging beside the input"),
    (
        job().reading("s3://data/ml/.staging/inst-1/of-another-run/answers/00000.jsonl"),
        staging_at("s3://data/ml/.staging/"),
        "must not overlap",
        "what another run has in staging",
    ),
    (
        job().writing("s3://data/ml/.staging/inst-1/of-another-run/shards/"),
        staging_at("s3://data/ml/.staging/"),
        "must not overlap",
        "over what another run has in staging",
    ),
    (
        job().run_id("${runKey}").writing("s3://data/ml/${runID}/"),
        None,
        "fine",
        "a variable in a value stays a text",
    ),
    (job("ml-evil").writing("s3://data/${name}/"), None, "spec.output.s3.uri", "a name alike"),
    (job().reading("s3://data/ml2/x"), None, "spec.input.s3.uri", "a prefix that almost matches"),
    (job().reading("s3://data-evil/ml/x"), None, "spec.input.s3.uri", "a bucket that does"),
    (job().reading("s3://data/\u043cl/x"), None, "spec.input.s3.uri", "a letter that looks alike"),
    (job().reading("s3://data/m\u200bl/x"), None, "spec.input.s3.uri", "a letter of no width"),
    (job().reading("s3://data/\uff4d\uff4c/x"), None, "spec.input.s3.uri", "wide letters"),
    (job().reading("s3://data/ml\uff0fx"), None, "spec.input.s3.uri", "a slash that looks alike"),
    (job().reading("s3://data/ml%2fx"), None, "spec.input.s3.uri", "an encoded slash"),
    (
        job().reading("s3://data/ml/"),
        staging_at("s3://data/ml/.staging/"),
        "must not overlap",
        "staging in the input",
    ),
    (
        job().writing("s3://data/ml/"),
        staging_at("s3://data/ml/.staging/"),
        "must not overlap",
        "staging in the output",
    ),
]


@pytest.mark.parametrize(("builder", "manifest", "told", "reason"), PLACES)
def test_places_are_checked_after_their_variables_are_replaced(
    builder, manifest, told, reason
) -> None:
    if told == "fine":
        assert begun(builder, manifest), reason
        return
    with pytest.raises(Stalled, match=told) as caught:
        begun(builder, manifest)
    assert caught.value.reason == Reason.LOCATION_NOT_ALLOWED, reason


def test_a_job_between_config_maps_is_checked_against_nothing_of_the_provider() -> None:
    assert begun(TINY).output.uri == "configmap://ml/answers"


def test_the_journal_never_holds_prompts_or_inline_input() -> None:
    secret = "what nobody may read"
    builder = TINY.inline(secret).with_spec(
        promptTemplate={"system": secret, "prompt": secret}, suspend=True, priority=3
    )
    run = begun(builder, NO_STORAGE)
    assert secret not in repr(encode(run))
    assert run.spec["input"] == {}
    assert (run.spec["suspend"], run.spec["priority"]) == (True, 3), "the policies are kept"
    with_format = spec_of(TINY.with_spec(input={"inline": secret, "format": "JSONL"}))
    assert journaled_spec(with_format)["input"] == {"format": "JSONL"}


# ---------------------------------------------------------------- an unsubmitted end

REJECTED = Verdict(Ending.FAILED, Reason.BAD_RECORDS, "3 of 3 records can't be sent")
FINAL = {
    "conditions": [
        {
            "type": "Failed",
            "status": "True",
            "reason": "BadRecords",
            "message": "m",
            "observedGeneration": 1,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]
}


def ended(phase=RunPhase.ENDED, **members):
    return replace(run_of(shards=0), phase=phase, verdict=REJECTED, **members)


NEW = seen(job().stamped(uid="new"))
AFRESH = [
    (ended(), NEW, True, "an object that came after the end"),
    (ended(RunPhase.CLEANING), NEW, True, "it is cleaned up first"),
    (ended(), None, False, "nobody asks"),
    (ended(), seen(job()), False, "its own end is its verdict"),
    (ended(), seen(job().stamped(uid="new").with_status(FINAL)), False, "it mirrored that end"),
    (ended(submitted=True), NEW, False, "something was submitted"),
    (run_with(in_state(ShardState.QUEUED)), NEW, False, "it is not over"),
    (
        replace(run_with(in_state(ShardState.UNKNOWN)), phase=RunPhase.CLEANING),
        NEW,
        False,
        "an unknown outcome counts as accepted",
    ),
]


@pytest.mark.parametrize(("run", "found", "fresh", "reason"), AFRESH)
def test_who_starts_afresh(run, found, fresh, reason) -> None:
    assert starts_afresh(run, found) is fresh, reason


def test_a_fresh_run_keeps_its_name_at_the_provider_and_its_ordinals() -> None:
    old = ended(ordinal_floor=7, tag="old-tag", installation="old-installation")
    new = replace(begun(job()), limits=limits(max_active_batches=3))
    run = afresh(old, new)
    assert (run.tag, run.installation, run.ordinal_floor) == ("old-tag", "old-installation", 7)
    assert (run.phase, run.verdict, run.limits) == (RunPhase.ADMITTING, None, new.limits)
    assert run.owner == new.owner


@pytest.mark.parametrize("phase", [p for p in RunPhase if p is not RunPhase.ENDED])
def test_only_an_ended_run_starts_afresh(phase) -> None:
    with pytest.raises(AssertionError):
        afresh(ended(phase), begun(job()))


@pytest.mark.parametrize(
    ("run", "expected", "reason"),
    [
        (run_of(phase=RunPhase.ADMITTING, shards=0), True, "it has not begun"),
        (run_of(phase=RunPhase.STAGING, shards=0), True, "its first checkpoint has not come"),
        (run_of(phase=RunPhase.STAGING, shards=1), False, "something lies in staging"),
        (run_of(phase=RunPhase.RUNNING, shards=0), False, "all of it was looked through"),
        (run_with(in_state(ShardState.SUBMITTED)), False, "the provider has something"),
    ],
)
def test_what_has_nothing_may_move(run, expected, reason) -> None:
    assert has_nothing(run) is expected, reason


def test_a_run_that_moves_begins_again_where_the_provider_leads_now() -> None:
    run = replace(run_of(phase=RunPhase.STAGING, shards=0), start_time=NOW, passes=2)
    mended = openai_provider()
    mended["spec"]["storage"]["stagingURI"] = "s3://mended/"
    fresh = replace(begun(job(), mended), limits=limits(max_active_batches=7))
    there = moved(run, fresh)
    assert (there.phase, there.passes, there.cursor) == (RunPhase.ADMITTING, 0, None)
    assert there.staging == fresh.staging
    assert (there.provider, there.limits) == (PIN, fresh.limits)
    assert (there.key, there.tag, there.start_time) == (run.key, run.tag, NOW), "it is the same run"

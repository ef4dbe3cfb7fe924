"""Receipts: small enough to be kept for ever, and never forgetful."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.keys import next_ordinal
from batchinference.core.receipt import LIMIT, absolute, receipt
from batchinference.model.codec import decode, encode
from batchinference.model.run import (
    Ending,
    Owner,
    Place,
    Results,
    Run,
    RunPhase,
    ShardState,
    SubmissionState,
    Verdict,
)
from batchinference.model.staging import BadRecord, Cursor, InputSnapshot, Staged
from builders import digest, run_of, shard_of, submission_of
from unit.core.given import NOW, in_state, run_with

S = ShardState
PREFIX = "s3://" + "b" * 63 + "/"


def size(run):
    return len(json.dumps(encode(run)))


def ended(**members):
    run = run_of(shards=500, submitted=500)
    bad = tuple(BadRecord(n, "InvalidJSON", "m" * 200) for n in range(10))
    return replace(
        run,
        **{
            "phase": RunPhase.ENDED,
            "staged": Staged(10**9, 10, 10**15, 10**15, bad),
            "cursor": Cursor(9, 10**12, 10**9, 10**9, 10, digest("input")),
            "input": InputSnapshot("s3://data/" + "k" * 1000, 9, 10**15, digest("input")),
            "start_time": NOW,
            "completion_time": NOW,
            "verdict": Verdict(Ending.FAILED, "ToleranceExceeded", "m" * 600),
            **members,
        },
    )


def results_in(place):
    return Results(
        f"{place}results/",
        f"{place}errors/",
        f"{place}manifest.json",
        "",
        *[10**9] * 3,
        *[10**14] * 2,
    )


WORST = [
    (ended(), "five hundred shards"),
    (ended(results=results_in("s3://data/ml/out/triage/")), "with results"),
    (
        ended(
            output=Place(PREFIX + "k" * 700 + "/"),
            staging=Place(PREFIX + "s" * 1000 + "/"),
            results=results_in(PREFIX + "k" * 700 + "/"),
        ),
        "very long keys",
    ),
    (ended(owner=Owner("n" * 63, "m" * 253, digest("uid")[:36], "g" * 248)), "long names"),
    (ended(verdict=Verdict(Ending.FAILED, "BadRecords", "𝄞" * 600)), "twelve bytes a character"),
    (ended(verdict=None), "no verdict"),
]


@pytest.mark.parametrize(("run", "reason"), WORST)
def test_a_receipt_stays_below_two_kibibytes(run, reason) -> None:
    assert size(receipt(run)) <= LIMIT == 2048, reason
    assert receipt(run).phase is RunPhase.ENDED


def test_a_message_that_fits_is_kept_whole() -> None:
    verdict = Verdict(Ending.FAILED, "BadRecords", "m" * 600)
    assert receipt(ended(verdict=verdict)).verdict == verdict


def test_a_message_that_does_not_fit_is_cut_no_more_than_needed() -> None:
    for text in ("m" * 9000, "ä" * 9000, "𝄞" * 9000):
        run = receipt(ended(verdict=Verdict(Ending.FAILED, "BadRecords", text)))
        assert run.verdict.message.endswith("…")
        assert LIMIT - 30 < size(run) <= LIMIT


def test_what_leaves_no_room_for_a_message_keeps_the_reason() -> None:
    huge = Place(PREFIX + "k" * 2000 + "/")
    run = receipt(ended(output=huge))
    assert (run.verdict.reason, run.verdict.message) == ("ToleranceExceeded", "…")


@given(
    st.lists(st.integers(1, 50), max_size=5),
    st.integers(0, 60),
    st.sampled_from([SubmissionState.REFUSED, SubmissionState.ENDED]),
)
def test_ordinals_go_on_above_all_of_them(ordinals, floor, state) -> None:
    shards = tuple(
        shard_of(n, S.COLLECTED, submissions=(submission_of(o, state),))
        for n, o in enumerate(ordinals)
    )
    run = run_with(*shards, shard_of(len(shards), S.DROPPED), ordinal_floor=floor)
    kept = receipt(run)
    assert kept.ordinal_floor == max([floor, *ordinals])
    assert next_ordinal(kept, shard_of(0)) > max([floor, *ordinals])
    assert receipt(kept) == kept, "a receipt's receipt is itself"


@pytest.mark.parametrize(
    ("state", "submitted"), [(S.QUEUED, False), (S.COLLECTED, True), (S.UNKNOWN, True)]
)
def test_a_receipt_knows_whether_something_was_submitted(state, submitted) -> None:
    kept = receipt(run_with(in_state(state)))
    assert (kept.submitted, kept.was_submitted) == (submitted, submitted)
    assert receipt(replace(run_with(), submitted=True)).was_submitted


def test_a_receipt_holds_nothing_of_what_was_sent_and_nothing_secret_by_mistake() -> None:
    kept = receipt(ended(spec={"model": "m", "parameters": {"extra": {"a": "b"}}, "runID": "x"}))
    assert kept.spec == {"model": "m", "runID": "x"}
    assert (kept.shards, kept.cursor, kept.input, kept.provider.settings) == ((), None, None, {})
    assert kept.staged.first_bad == ()
    assert receipt(ended(staged=None)).staged is None


uris = st.sampled_from(["s3://b/o/", "s3://b/other/", "configmap://ml/out"])


@given(uris, uris, st.sampled_from(["results/", "", "./x"]))
def test_the_results_of_a_receipt_are_where_they_were(place, base, name) -> None:
    results = Results(base + name, "", f"{base}manifest.json")
    run = ended(output=Place(place), results=results)
    stored = decode(Run, json.loads(json.dumps(encode(receipt(run)))))
    assert absolute(stored) == results
    assert absolute(run) == results
    assert absolute(ended(results=None)) is None

"""Conditions and the shape of a status."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from batchinference.model.codec import decode, encode
from batchinference.model.status import (
    MESSAGE_LIMIT,
    Condition,
    ConfigMapRef,
    Cost,
    JobStatus,
    Outputs,
    Reason,
    RequestCounts,
    ShardCounts,
    State,
    SubmissionView,
    Usage,
    settled,
)
from builders import START

LATER = START + timedelta(hours=1)
NEW = Condition("Stalled", "True", "Why", "because", 2, LATER)

TRANSITIONS = [
    (None, LATER, "never said before"),
    (replace(NEW, last_transition_time=START), START, "nothing changed"),
    (replace(NEW, last_transition_time=START, reason="Old"), START, "another reason"),
    (replace(NEW, last_transition_time=START, message="old"), START, "another message"),
    (replace(NEW, last_transition_time=START, observed_generation=1), START, "newer generation"),
    (replace(NEW, last_transition_time=START, status="False"), LATER, "another status"),
    (replace(NEW, last_transition_time=START, status="Unknown"), LATER, "another status"),
]


@pytest.mark.parametrize(("old", "time", "reason"), TRANSITIONS)
def test_the_transition_time_moves_only_with_the_status(old, time, reason) -> None:
    assert settled(NEW, old) == replace(NEW, last_transition_time=time), reason


def test_long_messages_are_cut() -> None:
    exact = replace(NEW, message="x" * MESSAGE_LIMIT)
    assert settled(exact, None) == exact
    cut = settled(replace(NEW, message="x" * (MESSAGE_LIMIT + 1)), None).message
    assert len(cut) == MESSAGE_LIMIT
    assert cut.endswith("x…")


def test_only_true_is_true() -> None:
    assert NEW.is_true
    assert not replace(NEW, status="False").is_true
    assert not replace(NEW, status="Unknown").is_true


def test_reasons_are_camel_case_words_and_said_once() -> None:
    words = [v for k, v in vars(Reason).items() if not k.startswith("_")]
    assert all(word.isalnum() and word[0].isupper() and not word.isupper() for word in words)
    assert len(set(words)) == len(words)


def test_a_whole_status_survives_being_written() -> None:
    status = JobStatus(
        observed_generation=2,
        state=State.SUCCEEDED,
        conditions=(NEW,),
        run_key="k",
        start_time=START,
        completion_time=LATER,
        progress="1/2",
        request_counts=RequestCounts(2, 1, 1, 0),
        shards=ShardCounts(1, 0, 0, 1),
        submissions=(SubmissionView(0, 1, "Completed", "batch"),),
        usage=Usage("1", "2"),
        cost=Cost("USD", "1.00", "0.50", "1.00"),
        outputs=Outputs("r", "e", "m", ConfigMapRef("c")),
    )
    assert decode(JobStatus, encode(status)) == status

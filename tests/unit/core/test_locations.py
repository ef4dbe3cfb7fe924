"""Prefix rules against people who try: nothing that can be read in two ways is let through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.locations import check_allowed, check_apart, check_location
from batchinference.errors import Stalled
from batchinference.model.status import Reason

PREFIXES = ["s3://data/${namespace}/"]


def allowed(uri, prefixes=PREFIXES, namespace="ml"):
    try:
        check_allowed(uri, "spec.input.s3.uri", prefixes, namespace)
    except Stalled as fault:
        told = fault.reason == Reason.LOCATION_NOT_ALLOWED and "spec.input.s3.uri" in fault.message
        return None if not told else False
    return True


HOSTILE = [
    ("s3://data/ml/in.jsonl", True, "inside"),
    ("s3://data/ml/", True, "the prefix itself"),
    ("s3://data/ml/a/b/c/", True, "a prefix inside"),
    ("s3://data/ml/ä b+c.jsonl", True, "any text"),
    ("s3://data/ml", False, "not a segment further"),
    ("s3://data/mlx/in", False, "a longer name"),
    ("s3://data/ML/in", False, "bytes, not letters"),
    ("s3://Data/ml/in", False, "bytes, not letters"),
    ("s3://data2/ml/in", False, "another bucket"),
    ("s3://data.ml/in", False, "another bucket"),
    ("s3://data", False, "the bucket"),
    ("s3://data/", False, "the whole bucket"),
    ("s3://data/qa/in", False, "another namespace"),
    ("s3://data/${namespace}/in", False, "a variable is no path"),
    ("s3://data/ml/../qa/in", False, "dotted segments"),
    ("s3://data/ml/..", False, "dotted segments"),
    ("s3://data/ml/./in", False, "dotted segments"),
    ("s3://data/ml/.", False, "dotted segments"),
    ("s3://data/./ml/in", False, "dotted segments"),
    ("s3://data/ml//in", False, "empty segments"),
    ("s3://data//ml/in", False, "empty segments"),
    ("s3://data/ml/a//", False, "empty segments"),
    ("s3://data/ml/%2e%2e/qa", False, "percent-encoding"),
    ("s3://data/ml/100%", False, "percent signs at all"),
    ("s3://data/ml\\..\\qa", False, "backslashes"),
    ("s3://data/ml/a\\b", False, "backslashes"),
    ("s3://data/ml/a\nb", False, "control characters"),
    ("s3://data/ml/a\x7fb", False, "control characters"),
    ("s3://data/ml/a\x00b", False, "control characters"),
    ("S3://data/ml/in", False, "another scheme"),
    ("s3:/data/ml/in", False, "no scheme"),
    ("https://data/ml/in", False, "another scheme"),
    ("file:///data/ml/in", False, "another scheme"),
    (" s3://data/ml/in", False, "no scheme"),
    ("s3:///ml/in", False, "no bucket"),
    ("s3://", False, "nothing"),
    ("", False, "nothing"),
]


@pytest.mark.parametrize(("uri", "fine", "reason"), HOSTILE)
def test_what_a_job_may_name(uri, fine, reason) -> None:
    assert allowed(uri) is fine, reason


ODD_PREFIXES = [
    ([], False, "no prefixes allow nothing"),
    (["s3://data/ml"], False, "a prefix ends in a slash"),
    (["s3://"], False, "a prefix names a bucket"),
    (["/"], False, "a prefix names a bucket"),
    ([""], False, "a prefix names a bucket"),
    (["s3:///"], False, "a prefix names a bucket"),
    (["s3://data/"], True, "a whole bucket, on purpose"),
    (["s3://other/", "s3://data/ml/"], True, "any of them"),
]


@pytest.mark.parametrize(("prefixes", "fine", "reason"), ODD_PREFIXES)
def test_what_a_provider_allows(prefixes, fine, reason) -> None:
    assert allowed("s3://data/ml/in.jsonl", prefixes) is fine, reason


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(Stalled, match="'s3://data/ml/'"):
        check_allowed("s3://x/y", "spec.output.s3.uri", PREFIXES, "ml")
    with pytest.raises(Stalled, match="nothing"):
        check_allowed("s3://x/y", "spec.output.s3.uri", [], "ml")


@given(st.text(max_size=12), st.text(alphabet="abc./%\\\x00-", max_size=20))
def test_whatever_passes_lies_in_the_prefix_and_reads_one_way(junk, key) -> None:
    uri = f"s3://data/ml/{key}{junk}"
    if not allowed(uri):
        return
    assert uri.startswith("s3://data/ml/")
    inner = uri.removeprefix("s3://data/ml/").removesuffix("/")
    assert not inner or not {"", ".", ".."} & set(inner.split("/"))
    assert not set(uri) & {"%", "\\", "\x00", "\n", "\x7f"}


def test_a_location_is_checked_by_itself_too() -> None:
    check_location("s3://bucket", "x")
    check_location("s3://bucket/key", "x")
    with pytest.raises(Stalled, match="empty"):
        check_location("s3://bucket//", "x")


APART = [
    ("s3://b/in.jsonl", "s3://b/out/", True, "side by side"),
    ("s3://b/in", "s3://b/in-results/", True, "only the names begin alike"),
    ("s3://b/in", "s3://b/in", False, "the same"),
    ("s3://b/", "s3://b/out/", False, "one in the other"),
    ("s3://b/out/in.jsonl", "s3://b/out/", False, "one in the other"),
    ("s3://b/out/", "s3://b/out/in.jsonl", False, "one in the other"),
    ("s3://a/out/", "s3://b/out/", True, "another bucket"),
    ("s3://b/out/", "s3://b/output/", True, "only the names begin alike"),
]


@pytest.mark.parametrize(("one", "other", "fine", "reason"), APART)
def test_places_must_not_lie_in_one_another(one, other, fine, reason) -> None:
    places = [("first", "s3://elsewhere/"), ("input", one), ("output", other)]
    if fine:
        check_apart(places)
        return
    with pytest.raises(Stalled, match=r"`output`.*`input`.*overlap") as caught:
        check_apart(places)
    assert caught.value.reason == Reason.LOCATION_NOT_ALLOWED, reason

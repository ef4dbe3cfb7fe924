"""The codec: what goes in comes out, and what is wrong is named with its path."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode, decode_time, encode, encode_time, wire, wire_name


class Colour(StrEnum):
    RED = "Red"
    GREEN = "Green"


@dataclass(frozen=True, slots=True)
class Leaf:
    name: str
    size: int = 1


@dataclass(frozen=True, slots=True)
class Tree:
    root: str
    height: int = 3
    alive: bool = True
    colour: Colour = Colour.GREEN
    planted: datetime | None = None
    leaf: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    named: dict[str, Leaf | None] = field(default_factory=dict)
    holes: tuple[int | None, ...] = ()
    free: Any = None
    bag: Mapping[str, Any] = field(default_factory=dict)
    kms_key_id: str = field(default="", metadata=wire("theKey"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
leaves = st.builds(Leaf, name=st.text(), size=st.integers())
trees = st.builds(
    Tree,
    root=st.text(),
    height=st.integers(),
    alive=st.booleans(),
    colour=st.sampled_from(Colour),
    planted=st.none() | st.datetimes(timezones=st.just(UTC)),
    leaf=st.none() | leaves,
    leaves=st.lists(leaves).map(tuple),
    tags=st.dictionaries(st.text(), st.text()),
    named=st.dictionaries(st.text(), st.none() | leaves),
    holes=st.lists(st.none() | st.integers()).map(tuple),
    free=json_values,
    bag=st.dictionaries(st.text(), json_values),
    kms_key_id=st.text(),
)


@given(trees)
def test_decoding_what_was_encoded_gives_the_same_value(tree: Tree) -> None:
    assert decode(Tree, encode(tree)) == tree


def test_defaults_and_none_are_left_out_and_required_fields_are_not() -> None:
    assert encode(Tree(root="")) == {"root": ""}
    assert encode(Leaf(name="a", size=1)) == {"name": "a"}


def test_null_members_take_their_defaults() -> None:
    assert decode(Tree, {"root": "r", "height": None, "leaf": None}) == Tree("r")


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("model", "model"),
        ("api_key_secret_ref", "apiKeySecretRef"),
        ("base_url", "baseURL"),
        ("staging_uri", "stagingURI"),
        ("service_role_arn", "serviceRoleARN"),
        ("subnet_ids", "subnetIDs"),
        ("image_url_field", "imageURLField"),
        ("open_ai", "openAI"),
        ("id_field", "idField"),
        ("s3", "s3"),
    ],
)
def test_wire_names_are_camel_case_with_acronyms_in_capitals(name: str, want: str) -> None:
    made = dataclasses.make_dataclass("Made", [(name, str)])
    assert wire_name(dataclasses.fields(made)[0]) == want


def test_a_declared_wire_name_wins() -> None:
    assert encode(Tree(root="r", kms_key_id="k")) == {"root": "r", "theKey": "k"}


@pytest.mark.parametrize(
    ("value", "path", "message"),
    [
        ([], "spec", "must be an object"),
        ({1: 2}, "spec", "must have strings as keys"),
        ({}, "spec.root", "must be set"),
        ({"root": None}, "spec.root", "must be set"),
        ({"root": 1}, "spec.root", "must be a string"),
        ({"root": "r", "height": "3"}, "spec.height", "must be a whole number"),
        ({"root": "r", "height": 3.0}, "spec.height", "must be a whole number"),
        ({"root": "r", "height": True}, "spec.height", "must be a whole number"),
        ({"root": "r", "alive": 1}, "spec.alive", "must be true or false"),
        ({"root": "r", "colour": "Blue"}, "spec.colour", "must be one of 'Red', 'Green'"),
        ({"root": "r", "colour": []}, "spec.colour", "must be one of 'Red', 'Green'"),
        ({"root": "r", "planted": "soon"}, "spec.planted", "must be a time such as"),
        ({"root": "r", "leaves": {}}, "spec.leaves", "must be a list"),
        ({"root": "r", "leaves": [{"name": "a"}, {}]}, "spec.leaves[1].name", "must be set"),
        ({"root": "r", "named": {"a": {"name": 1}}}, "spec.named.a.name", "must be a string"),
        ({"root": "r", "tags": []}, "spec.tags", "must be an object"),
        ({"root": "r", "twig": 1}, "spec.twig", "is not a known field"),
        ({"root": "r", "leaf": {"name": "a", "hue": 1}}, "spec.leaf.hue", "is not a known field"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(value: Any, path: str, message: str) -> None:
    with pytest.raises(InvalidObject) as caught:
        decode(Tree, value, "spec")
    assert caught.value.path == path
    assert message in caught.value.message


def test_a_path_starts_without_a_dot_where_the_document_has_no_name() -> None:
    with pytest.raises(InvalidObject) as caught:
        decode(Tree, {"root": 1})
    assert caught.value.path == "root"


def test_unknown_members_are_ignored_at_every_depth_when_asked() -> None:
    value = {"root": "r", "twig": 1, "leaf": {"name": "a", "hue": 1}}
    assert decode(Tree, value, ignore_unknown=True) == Tree("r", leaf=Leaf("a"))


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.5Z", datetime(2026, 1, 31, 12, 0, 0, 500000, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456789Z", datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2026-01-31T14:30:00+02:30", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_utc(text: str, want: datetime) -> None:
    found = decode_time(text)
    assert (found, found.tzinfo) == (want, UTC)


@pytest.mark.parametrize(
    "value", [0, None, "", "2026-01-31", "2026-02-30T12:00:00Z", "2026-01-31T12:00:00"]
)
def test_what_is_no_time_is_refused(value: Any) -> None:
    with pytest.raises(InvalidObject, match="must be a time such as"):
        decode_time(value, "status.startTime")


def test_times_are_written_in_utc_with_a_z() -> None:
    there = timezone(timedelta(hours=2))
    assert encode_time(datetime(2026, 1, 1, 1, tzinfo=there)) == "2025-12-31T23:00:00Z"
    assert (
        encode_time(datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC)) == "2026-01-01T00:00:00.000001Z"
    )


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        encode_time(datetime(2026, 1, 1))  # noqa: DTZ001 - the point of the test


@pytest.mark.parametrize("hint", [float, set[str], tuple[int, str], dict[int, str], int | str])
def test_a_type_that_has_no_place_in_json_is_refused_by_name(hint: Any) -> None:
    made = dataclasses.make_dataclass("Made", [("x", hint)])
    for use in (lambda: decode(made, {}), lambda: encode(made(1))):
        with pytest.raises(TypeError, match="no codec for"):
            use()


def test_bare_containers_hold_any_json() -> None:
    made = dataclasses.make_dataclass("Made", [("a", tuple), ("b", dict)])
    value = {"a": [1, {"x": 0.5}], "b": {"y": [None]}}
    assert encode(decode(made, value)) == value

"""Equal strings of different objects are held once."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from batchinference.model.sharing import _MOST, _known, shared

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(VALUES)
def test_it_is_an_equal_value(value: object) -> None:
    assert shared(value) == value
    assert json.dumps(shared(value)) == json.dumps(value), "in the same order, and of the same type"


def test_two_objects_hold_the_same_strings() -> None:
    text = json.dumps({"conditions": [{"reason": "Some reason that is long", "told": 1}]})
    one, two = shared(json.loads(text)), shared(json.loads(text))
    assert next(iter(one)) is next(iter(two))
    assert one["conditions"][0]["reason"] is two["conditions"][0]["reason"]


def test_what_is_nested_deeply_is_left_alone() -> None:
    nested = json.loads("[" * 900 + "]" * 900)
    assert shared(nested) == nested


def test_what_was_seen_once_is_not_kept_for_ever() -> None:
    for number in range(3 * _MOST):
        shared(f"message {number}")
    assert len(_known) <= _MOST

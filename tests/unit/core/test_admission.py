"""Who gets a place: within every limit, fair between namespaces, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.admission import Demand, admit
from builders import START, limits
from unit.core.given import NOW, after


def asks(
    run="a",
    shard=0,
    *,
    namespace="ml",
    model="m",
    tokens=10,
    priority=0,
    age=0,
    active=None,
    queue=None,
    not_before=None,
):
    """A demand; `age` in minutes, more is older."""
    return Demand(
        run_key=run,
        shard=shard,
        namespace=namespace,
        model=model,
        tokens=tokens,
        priority=priority,
        since=START - timedelta(minutes=age),
        limits=limits(max_active_batches=active, max_enqueued_tokens=queue),
        not_before=not_before,
    )


def names(demands):
    return [f"{d.run_key}{d.shard}" for d in demands]


CASES = [
    ([asks("a"), asks("b", age=1)], [], "b0 a0", "no limits: all, the oldest first"),
    ([asks("a", active=2)], [asks("x"), asks("y")], "", "the account is full"),
    ([asks("a", active=2), asks("b", active=2)], [asks("x")], "a0", "one place is left"),
    ([asks("a", queue=100)], [asks("x", tokens=95)], "", "the model's queue is full"),
    ([asks("a", queue=100)], [asks("x", tokens=90)], "a0", "it fits exactly"),
    ([asks("a", queue=100)], [asks("x", tokens=95, model="n")], "a0", "another model's queue"),
    ([asks("a", tokens=500, queue=100)], [], "a0", "above the limit, but the queue is empty"),
    (
        [asks("a", tokens=500, queue=100)],
        [asks("x", tokens=1)],
        "",
        "above the limit: it waits until the queue is empty",
    ),
    (
        [asks("a", tokens=500, queue=100), asks("b", tokens=1, queue=100)],
        [],
        "a0",
        "nothing goes beside what is above the limit",
    ),
    (
        [asks("a", age=9, tokens=60, queue=100), asks("b", tokens=10, queue=100)],
        [asks("x", tokens=50)],
        "",
        "a younger one does not pass one that waits for room",
    ),
    (
        [
            asks("a", age=9, tokens=60, queue=100),
            asks("b", namespace="qa", tokens=10, queue=100),
        ],
        [asks("x", namespace="qa", tokens=50)],
        "",
        "nor does another namespace's",
    ),
    (
        [
            asks("a", age=9, tokens=60, queue=100),
            asks("b", tokens=10, model="n", queue=100),
        ],
        [asks("x", tokens=50)],
        "b0",
        "other models go on",
    ),
    ([asks("a", priority=1), asks("b", age=9)], [], "a0 b0", "priority before age"),
    (
        [asks("a", priority=9), asks("a", 1, priority=9), asks("b", namespace="qa", age=1)],
        [],
        "b0 a0 a1",
        "priority counts inside a namespace only",
    ),
    (
        [asks("a"), asks("b", namespace="qa", age=1)],
        [asks("x", namespace="qa")],
        "a0 b0",
        "the namespace with fewer places goes first",
    ),
    ([asks("a", not_before=after(1)), asks("b")], [], "b0", "put back until later"),
    ([asks("a", not_before=after(0))], [], "a0", "its time has come"),
    (
        [asks("a", age=9, active=3), asks("b", active=50)],
        [asks("x"), asks("y"), asks("z")],
        "",
        "a run with an older, lower limit is not passed for ever",
    ),
]


@pytest.mark.parametrize(("waiting", "placed", "granted", "reason"), CASES)
def test_admission(waiting, placed, granted, reason) -> None:
    assert " ".join(names(admit(waiting, placed, NOW))) == granted, reason
    assert " ".join(names(admit(waiting[::-1], placed, NOW))) == granted, "order given is no order"


@st.composite
def demands(draw):
    active = draw(st.none() | st.integers(1, 6))
    queue = draw(st.none() | st.integers(20, 100))
    made = draw(
        st.lists(
            st.builds(
                asks,
                st.sampled_from("abcdef"),
                st.integers(0, 5),
                namespace=st.sampled_from(["ml", "qa", "ops"]),
                model=st.sampled_from(["m", "n"]),
                tokens=st.integers(1, 120),
                priority=st.integers(-1, 1),
                age=st.integers(0, 3),
                not_before=st.sampled_from([None, after(-1), after(1)]),
            ),
            max_size=12,
            unique_by=lambda d: (d.run_key, d.shard),
        )
    )
    held = [
        replace(d, limits=limits(max_active_batches=active, max_enqueued_tokens=queue))
        for d in made
    ]
    middle = draw(st.integers(0, len(held)))
    return held[:middle], held[middle:]


@given(demands())
def test_limits_are_never_exceeded(case) -> None:
    waiting, placed = case
    granted = admit(waiting, placed, NOW)
    assert len(set(names(granted))) == len(granted)
    assert set(granted) <= set(waiting)
    assert all(d.not_before is None or d.not_before <= NOW for d in granted)
    batches, tokens = len(placed), Counter()
    for demand in placed:
        tokens[demand.model] += demand.tokens
    for demand in granted:
        batches += 1
        most = demand.limits.max_active_batches
        assert most is None or batches <= most
        queue = demand.limits.max_enqueued_tokens
        assert (
            queue is None
            or not tokens[demand.model]
            or tokens[demand.model] + demand.tokens <= queue
        )
        tokens[demand.model] += demand.tokens


@given(demands())
def test_an_idle_account_with_demand_always_gives_a_place(case) -> None:
    waiting, _ = case
    ready = [d for d in waiting if d.not_before is None or d.not_before <= NOW]
    assert bool(admit(waiting, [], NOW)) == bool(ready)


@given(demands())
def test_taking_only_the_first_ones_is_giving_fewer_places(case) -> None:
    """The runtime has room for some uploads only: what is left keeps its turn."""
    waiting, placed = case
    all_at_once = admit(waiting, placed, NOW)
    one_by_one = []
    while True:
        left = [d for d in waiting if d not in one_by_one]
        more = admit(left, [*placed, *one_by_one], NOW)[:1]
        if not more:
            break
        one_by_one += more
    assert one_by_one == list(all_at_once)


@given(demands(), st.integers(1, 40))
def test_inside_a_namespace_and_model_higher_priority_and_older_goes_first(case, _) -> None:
    waiting, placed = case
    granted = set(admit(waiting, placed, NOW))
    ready = [d for d in waiting if d.not_before is None or d.not_before <= NOW]
    for passed in ready:
        if passed in granted:
            continue
        for other in granted:
            same = (other.namespace, other.model) == (passed.namespace, passed.model)
            assert not same or (-other.priority, other.since, other.run_key, other.shard) < (
                -passed.priority,
                passed.since,
                passed.run_key,
                passed.shard,
            )


@given(
    big=st.integers(1, 150),
    flood=st.lists(st.integers(1, 60), min_size=3, max_size=6),
    active=st.integers(1, 4),
)
def test_a_shard_is_not_starved_by_an_endless_flood_of_another_namespace(
    big, flood, active
) -> None:
    """The other namespace always asks for more; its batches end one per round, oldest first."""
    victim = asks("v", namespace="qa", tokens=big, active=active, queue=100)
    placed, number, served = [], 0, {}
    for turn in range(60):
        waiting = [
            asks("f", number + n, tokens=t, age=99, active=active, queue=100)
            for n, t in enumerate(flood)
        ]
        number += len(flood)
        granted = admit([victim, *waiting], placed, NOW, served)
        if victim in granted:
            return
        served |= {d.namespace: after(turn) for d in granted}
        placed = [*placed, *granted][1:]
    pytest.fail("it never got a place")


def test_one_place_goes_from_namespace_to_namespace() -> None:
    """However old the jobs of one of them are, and however many shards they have."""
    old = [asks("a", n, age=99, active=1) for n in range(9)]
    young = [asks("b", n, namespace="qa", active=1) for n in range(9)]
    served, turns = {}, []
    for turn in range(6):
        waiting = [d for d in (*old, *young) if d not in turns]
        (granted,) = admit(waiting, [], after(turn), served)
        served[granted.namespace] = after(turn)
        turns.append(granted)
    assert names(turns) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_two_namespaces_share_the_places_evenly_however_much_one_asks_for() -> None:
    many = [asks("a", n, active=10) for n in range(100)]
    few = [asks("b", n, namespace="qa", active=10) for n in range(5)]
    spaces = Counter(d.namespace for d in admit([*many, *few], [], NOW))
    assert spaces == {"ml": 5, "qa": 5}

"""Who gets a place: within every limit, fair between namespaces, and nobody waits for ever."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.admission import Demand, Placed, Waiting
from batchinference.core.admission import admit as admit_from_sums
from builders import START, limits
from unit.core.given import after


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
    uploads=64,
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
        limits=limits(
            max_active_batches=active, max_enqueued_tokens=queue, max_concurrent_uploads=uploads
        ),
    )


NOTHING = MappingProxyType({})


def admit(waiting, placed, uploading=(), served=NOTHING, learned=NOTHING):
    """Who may go, from lists."""
    return admit_from_sums(Waiting(waiting), Placed(placed), (), uploading, served, learned)


def names(demands):
    return [f"{d.run_key}{d.shard}" for d in demands]


CASES = [
    ([asks("a"), asks("b", age=1)], [], "b0 a0", "no limits: all, the oldest first"),
    ([asks("a", active=2)], [asks("x", active=2), asks("y", active=2)], "", "it is full"),
    ([asks("a", active=2), asks("b", active=2)], [asks("x", active=2)], "a0", "one place is left"),
    ([asks("a", queue=100)], [asks("x", tokens=95, queue=100)], "", "the model's queue is full"),
    ([asks("a", queue=100)], [asks("x", tokens=90, queue=100)], "a0", "it fits exactly"),
    (
        [asks("a", queue=100)],
        [asks("x", tokens=95, model="n", queue=100)],
        "a0",
        "another model's queue",
    ),
    ([asks("a", tokens=500, queue=100)], [], "a0", "above the limit, but the queue is empty"),
    (
        [asks("a", tokens=500, queue=100)],
        [asks("x", tokens=1, queue=100)],
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
        [asks("x", tokens=50, queue=100)],
        "",
        "a younger one does not pass one that waits for room",
    ),
    (
        [
            asks("a", age=9, tokens=60, queue=100),
            asks("b", namespace="qa", tokens=10, queue=100),
        ],
        [asks("x", namespace="qa", tokens=50, queue=100)],
        "",
        "nor does another namespace's",
    ),
    (
        [
            asks("a", age=9, tokens=60, queue=100),
            asks("b", tokens=10, model="n", queue=100),
        ],
        [asks("x", tokens=50, queue=100)],
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
    # ---- runs of one account with different limits
    (
        [asks("a", age=9, active=1), asks("b", active=50)],
        [asks("x", active=1)],
        "b0",
        "a low limit that is reached stops nobody with a higher one",
    ),
    (
        [asks("a", active=1), asks("b", active=3)],
        [asks("x", active=3), asks("y", active=3)],
        "a0",
        "what runs with a higher limit have does not count, but all stay within the highest",
    ),
    (
        [asks("a", active=1), asks("b", active=3)],
        [asks("x", active=3), asks("y", active=3), asks("z", active=3)],
        "",
        "nobody goes beyond the highest",
    ),
    (
        [asks("a", active=1), asks("b")],
        [asks("x") for _ in range(9)],
        "a0 b0",
        "those without a limit count against nobody",
    ),
    (
        [asks("a", age=9, tokens=60, queue=50), asks("b", tokens=10, queue=900)],
        [asks("x", tokens=1, queue=50)],
        "b0",
        "a short queue that must empty first holds up nobody with a longer one",
    ),
    (
        [asks("a", age=9, tokens=60, queue=900), asks("b", tokens=10, queue=50)],
        [asks("x", tokens=850, queue=900)],
        "",
        "but who counts against the longer one does not pass what waits for it",
    ),
    (
        [asks("a", age=9, tokens=60, queue=900), asks("b", tokens=10)],
        [asks("x", tokens=850, queue=900)],
        "b0",
        "who has no limit passes",
    ),
]


@pytest.mark.parametrize(("waiting", "placed", "granted", "reason"), CASES)
def test_admission(waiting, placed, granted, reason) -> None:
    assert " ".join(names(admit(waiting, placed))) == granted, reason
    assert " ".join(names(admit(waiting[::-1], placed))) == granted, "order given is no order"


UPLOADS = [
    ([asks("a", uploads=2), asks("b", uploads=2)], [], "a0 b0", "two at once"),
    ([asks("a", uploads=1), asks("b", uploads=1)], [], "a0", "one at once"),
    ([asks("a", uploads=1)], [asks("x", uploads=1)], "", "one is under way"),
    (
        [asks("a", uploads=1), asks("b", uploads=4)],
        [asks("x", uploads=1)],
        "b0",
        "a provider that takes one upload at once holds up its own shards only",
    ),
    (
        [asks("a", uploads=1), asks("b", uploads=2)],
        [asks("x", uploads=2), asks("y", uploads=2)],
        "",
        "all together stay within the highest",
    ),
]


@pytest.mark.parametrize(("waiting", "uploading", "granted", "reason"), UPLOADS)
def test_uploads_under_way_hold_back_those_with_the_same_limit(
    waiting, uploading, granted, reason
) -> None:
    assert " ".join(names(admit(waiting, [], uploading))) == granted, reason


LIMITS = st.sampled_from([1, 2, 3, 5])


@st.composite
def demands(draw):
    """Waiting, placed and uploading shards of an account whose runs brought different limits."""
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
                active=st.none() | LIMITS,
                queue=st.none() | st.sampled_from([20, 60, 100]),
                uploads=LIMITS,
            ),
            min_size=1,
            max_size=12,
            unique_by=lambda d: d.name,
        )
    )
    first, second = sorted(draw(st.tuples(*[st.integers(0, len(made))] * 2)))
    return made[:first], made[first:], made[second:]


def taken(demands, kind, model=None):
    """By limit: how much those with that limit or a lower one take."""
    limited = [d for d in demands if getattr(d.limits, kind) and model in {None, d.model}]
    size = (lambda d: d.tokens) if model else (lambda _: 1)
    return {
        level: sum(size(d) for d in limited if getattr(d.limits, kind) <= level)
        for level in {getattr(d.limits, kind) for d in limited}
    }


KINDS = [
    ("max_active_batches", None),
    ("max_concurrent_uploads", None),
    ("max_enqueued_tokens", "m"),
    ("max_enqueued_tokens", "n"),
]


def breaks(demand, others, kind, model=None):
    """Whether one more breaks a limit that it counts against, being not alone."""
    own = getattr(demand.limits, kind)
    if own is None or model not in {None, demand.model}:
        return False
    size = demand.tokens if model else 1
    levels = {own, *taken(others, kind, model)}
    for level in (level for level in levels if level >= own):
        there = sum(
            d.tokens if model else 1
            for d in others
            if model in {None, d.model} and (getattr(d.limits, kind) or 999) <= level
        )
        if there and there + size > level:
            return True
    return False


@given(demands())
def test_limits_are_never_exceeded(case) -> None:
    waiting, placed, uploading = case
    granted = admit(waiting, placed, uploading)
    assert len(set(names(granted))) == len(granted)
    assert set(granted) <= set(waiting)
    for number, demand in enumerate(granted):
        before = granted[:number]
        for kind, model in KINDS:
            others = [*(uploading if kind == "max_concurrent_uploads" else placed), *before]
            assert not breaks(demand, others, kind, model), (kind, demand)


@given(demands())
def test_nobody_waits_without_a_reason(case) -> None:
    """Who is passed over breaks a limit, or stands behind one that waits for its model's queue."""
    waiting, placed, uploading = case
    granted = admit(waiting, placed, uploading)
    there = [*placed, *granted]
    passed = [d for d in waiting if d not in granted]
    for demand in passed:
        full = breaks(demand, there, "max_active_batches") or breaks(
            demand, [*uploading, *granted], "max_concurrent_uploads"
        )
        behind = [
            d
            for d in passed
            if d.model == demand.model
            and breaks(d, there, "max_enqueued_tokens", d.model)
            and demand.limits.max_enqueued_tokens is not None
        ]
        assert full or behind, demand


@given(demands(), st.dictionaries(st.sampled_from(["m", "n"]), st.integers(1, 4), min_size=1))
def test_what_refusals_taught_limits_a_model_and_lets_others_pass(case, learned) -> None:
    waiting, placed, uploading = case
    granted = admit(waiting, placed, uploading, learned=learned)
    for number, demand in enumerate(granted):
        there = [*placed, *granted[:number]]
        if demand.model in learned:
            assert sum(d.model == demand.model for d in there) < learned[demand.model]
    free = [d for d in waiting if d.model not in learned]
    alone = admit(free, placed, uploading)
    assert bool(alone) <= bool(granted), "nobody else is held up"


@given(demands())
def test_an_idle_account_with_demand_always_gives_a_place(case) -> None:
    waiting, placed, _ = case
    assert admit([*waiting, *placed], [])


@given(demands())
def test_inside_a_namespace_and_model_higher_priority_and_older_goes_first(case) -> None:
    waiting, placed, uploading = case
    granted = set(admit(waiting, placed, uploading))
    for passed in waiting:
        if passed in granted:
            continue
        for other in granted:
            same = (other.namespace, other.model) == (passed.namespace, passed.model)
            assert not (same and other.limits == passed.limits) or (
                -other.priority,
                other.since,
                other.run_key,
                other.shard,
            ) < (-passed.priority, passed.since, passed.run_key, passed.shard)


@given(
    big=st.integers(1, 150),
    flood=st.lists(st.tuples(st.integers(1, 60), st.booleans()), min_size=3, max_size=6),
    active=st.integers(1, 4),
    more=st.integers(0, 3),
    longer=st.sampled_from([100, 160, 300]),
    second=st.sampled_from(["m", "n"]),
)
def test_a_shard_is_not_starved_by_an_endless_flood_of_another_namespace(
    big, flood, active, more, longer, second
) -> None:
    """The other namespace always asks for more, of its own provider with the same limits or higher
    ones and of the victim's; its batches end one per round, oldest first.
    """
    victim = asks("v", namespace="qa", tokens=big, active=active, queue=100)
    placed, number, served = [], 0, {}
    for turn in range(120):
        waiting = [
            asks(
                "f",
                number + n,
                tokens=t,
                age=99,
                model=second if own else "m",
                active=active + more if own else active,
                queue=longer if own else 100,
            )
            for n, (t, own) in enumerate(flood)
        ]
        number += len(flood)
        granted = admit([victim, *waiting], placed, (), served)
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
        (granted,) = admit(waiting, [], (), served)
        served[granted.namespace] = after(turn)
        turns.append(granted)
    assert names(turns) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_two_namespaces_share_the_places_evenly_however_much_one_asks_for() -> None:
    many = [asks("a", n, active=10) for n in range(100)]
    few = [asks("b", n, namespace="qa", active=10) for n in range(5)]
    spaces = Counter(d.namespace for d in admit([*many, *few], []))
    assert spaces == {"ml": 5, "qa": 5}


@given(demands(), st.data())
def test_what_came_and_went_leaves_no_trace(case, data) -> None:
    """Sums that grow and shrink are those of what is left."""
    waiting, placed, uploading = case
    held, asking = Placed([*placed, *waiting]), Waiting([*waiting, *placed])
    for demand in data.draw(st.permutations(waiting)):
        held.remove(demand)
    for demand in data.draw(st.permutations(placed)):
        asking.remove(demand)
    assert (held.number, held.tokens) == (len(placed), sum(d.tokens for d in placed))
    granted = admit_from_sums(asking, held, (), uploading)
    assert granted == admit(waiting, placed, uploading)
    assert admit_from_sums(asking, held, (), uploading) == granted, "asking changes nothing"


@given(demands())
def test_a_place_that_was_given_counts_although_it_still_asks(case) -> None:
    waiting, placed, uploading = case
    first, rest = waiting[:1], waiting[1:]
    granted = admit_from_sums(Waiting(waiting), Placed(placed), first, uploading)
    assert granted == admit(rest, [*placed, *first], uploading)


def test_a_demand_is_found_by_its_name() -> None:
    one = asks("a")
    assert Waiting([one]).get(one.name) is one
    assert Waiting([one]).get(("a", 1)) is None

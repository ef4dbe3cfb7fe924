"""Where shards are cut: never above a limit, never more of them than needed by plain filling."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.sharding import Cutter, records_to_move, shards_needed
from batchinference.model.batch import Limits

sizes_and_tokens = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20)), max_size=60)
limits_of = st.builds(
    Limits,
    max_records_per_batch=st.integers(1, 12),
    max_bytes_per_batch=st.integers(30, 120),
    max_bytes_per_record=st.just(30),
    max_enqueued_tokens=st.none() | st.integers(1, 60),
)


def fill(
    records: list[tuple[int, int]], limits: Limits, pieces: list[int]
) -> list[list[tuple[int, int]]]:
    """Cut with records offered in pieces."""
    cutter, shards, at, turn = Cutter(limits), [[]], 0, 0
    while at < len(records):
        end = min(len(records), at + pieces[turn % len(pieces)])
        turn += 1
        taken = cutter.take([s for s, _ in records[at:end]], [t for _, t in records[at:end]])
        shards[-1].extend(records[at : at + taken])
        at += taken
        if at < end:
            cutter.open()
            shards.append([])
    return shards


def fits(shard: list[tuple[int, int]], limits: Limits) -> bool:
    tokens = limits.max_enqueued_tokens
    return (
        len(shard) <= limits.max_records_per_batch
        and sum(s for s, _ in shard) <= limits.max_bytes_per_batch
        and (tokens is None or sum(t for _, t in shard) <= tokens)
    )


@given(sizes_and_tokens, limits_of, st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_shard_fits_and_could_not_have_taken_the_next_record(
    records: list[tuple[int, int]], limits: Limits, pieces: list[int]
) -> None:
    shards = fill(records, limits, pieces)
    assert [r for shard in shards for r in shard] == records
    for n, shard in enumerate(shards):
        assert fits(shard, limits) or len(shard) == 1
        if n + 1 < len(shards):
            assert not fits([*shard, shards[n + 1][0]], limits)


@given(sizes_and_tokens, limits_of, st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_how_records_are_offered_changes_nothing(
    records: list[tuple[int, int]], limits: Limits, pieces: list[int]
) -> None:
    assert fill(records, limits, pieces) == fill(records, limits, [1])


def test_a_record_above_the_token_limit_goes_alone() -> None:
    limits = Limits(10, 100, 30, max_enqueued_tokens=5)
    assert fill([(1, 2), (1, 9), (1, 2)], limits, [3]) == [[(1, 2)], [(1, 9)], [(1, 2)]]


def test_an_empty_shard_takes_one_record_whatever_its_size() -> None:
    cutter = Cutter(Limits(10, 100, 30, max_enqueued_tokens=5))
    assert cutter.take([], []) == 0
    assert cutter.take([101], [9]) == 1
    assert (cutter.records, cutter.size, cutter.tokens) == (1, 101, 9)
    assert cutter.take([1], [0]) == 0


def moved(last: int, full: int, limits: Limits, size: int = 1, known: int = 99) -> int:
    cutter = Cutter(limits)
    cutter.take([size] * last, [1] * last)
    end = [size] * min(full, known)
    return records_to_move(cutter, full, end, [1] * len(end), limits)


def test_the_last_shard_takes_what_it_lacks_where_both_can_have_enough() -> None:
    limits = Limits(100, 100, 30, min_records_per_batch=10)
    table = [
        ("it has enough", 10, 50, limits, 1, 0),
        ("it takes the difference", 3, 50, limits, 1, 7),
        ("the one before keeps exactly the minimum", 3, 17, limits, 1, 7),
        ("the one before would fall below it", 3, 16, limits, 1, 0),
        ("the moved records would be too many bytes", 3, 50, limits, 11, 0),
    ]
    for reason, last, full, bounds, size, want in table:
        assert moved(last, full, bounds, size) == want, reason
    assert moved(3, 50, limits, known=6) == 0, "not enough of the end is known"
    few = Limits(100, 100, 30, min_records_per_batch=10, max_enqueued_tokens=9)
    assert moved(3, 50, few) == 0, "the tokens would be too many"


def test_the_number_of_shards_is_foretold_from_the_part_that_was_read() -> None:
    assert shards_needed(500, 0.25) == 2000
    assert shards_needed(500, 1.0) == 500
    assert shards_needed(500, 0.0) == 500

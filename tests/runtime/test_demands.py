"""What is counted run by run is what counting all runs anew comes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.core.admission import admit
from batchinference.core.effects import StartTask
from batchinference.core.notes import Notes
from batchinference.model.job import parse_job
from batchinference.model.run import Cancel, CancelWhy, RunPhase, ShardState
from batchinference.model.work import TaskKind
from batchinference.runtime.demands import Demands
from batchinference.runtime.entry import Entry
from builders import START, job, limits, run_of, shard_of

ACCOUNTS = ("openai/one", "openai/two")
STATES = (ShardState.QUEUED, ShardState.QUEUED, ShardState.SUBMITTED, ShardState.COLLECTED)
SHARDS = st.lists(st.sampled_from(STATES), max_size=3)
ONES = st.frozensets(st.integers(0, 2))


@st.composite
def entries(draw: Any) -> Entry:
    """An entry as it may be at some time."""
    name = draw(st.sampled_from("abcd"))
    shards = tuple(shard_of(n, state, 1 + n) for n, state in enumerate(draw(SHARDS)))
    limited = limits(
        max_active_batches=draw(st.sampled_from([None, 1, 2, 5])),
        max_enqueued_tokens=draw(st.sampled_from([None, 50, 200])),
        max_concurrent_uploads=draw(st.integers(1, 3)),
    )
    run = run_of(name, shards=0, limits=limited)
    run = replace(
        run,
        shards=shards,
        phase=draw(st.sampled_from([RunPhase.RUNNING] * 4 + [RunPhase.ENDED])),
        provider=replace(run.provider, account=draw(st.sampled_from(ACCOUNTS))),
        cancel=draw(st.sampled_from([None] * 4 + [Cancel(CancelWhy.DESIRED, START)])),
    )
    notes = Notes()
    for shard in draw(ONES):
        notes = notes.with_upload((shard, 1), "file-1")
    spec = parse_job(job(name).with_spec(priority=draw(st.integers(0, 1))).build()).spec
    return Entry(
        run.key,
        run=draw(st.sampled_from([run] * 5 + [None])),
        spec=draw(st.sampled_from([spec, None])),
        held=draw(st.booleans()),
        asking=draw(ONES),
        notes=notes,
        inflight={StartTask(TaskKind.UPLOAD, shard, 1).id for shard in draw(ONES)},
        newer_schema=draw(st.sampled_from([False] * 4 + [True])),
    )


def summary(demands: Demands, account: str) -> Mapping[str, Any]:
    book = demands.of(account)
    asking = sorted(book.waiting, key=lambda d: d.name)
    granted = asking[:1]
    uploading = sorted(book.uploading(granted), key=lambda d: d.name)
    return {
        "placed": (book.placed.number, book.placed.tokens, book.queued),
        "asking": asking,
        "limits": (book.waiting.most_batches, book.waiting.most_uploads),
        "uploading": uploading,
        "admitted": admit(book.waiting, book.placed, granted, uploading),
    }


@settings(max_examples=150)
@given(st.lists(st.tuples(entries(), st.booleans(), st.booleans()), max_size=12))
def test_what_is_counted_run_by_run_is_what_there_is(
    steps: list[tuple[Entry, bool, bool]],
) -> None:
    known: dict[str, Entry] = {}
    kept = Demands(known)
    for entry, is_forgotten, is_asked in steps:
        known[entry.key] = entry
        if is_forgotten:
            del known[entry.key]
        kept.touched(entry.key)
        if not is_asked:
            continue  # several change before anybody looks
        fresh = Demands(known)
        for key in known:
            fresh.touched(key)
        for account in ACCOUNTS:
            assert summary(kept, account) == summary(fresh, account)


def test_what_has_not_changed_is_not_counted_anew() -> None:
    reads: list[str] = []

    class Entries(dict[str, Entry]):
        def get(self, key: str, default: Any = None) -> Any:
            reads.append(key)
            return super().get(key, default)

    runs = [run_of(f"job-{n}") for n in range(100)]
    demands = Demands(Entries({run.key: Entry(run.key, run=run) for run in runs}))
    for run in runs:
        demands.touched(run.key)
    assert demands.of("openai/test").queued == 100
    reads.clear()
    demands.touched(runs[7].key)
    assert demands.of("openai/test").queued == 100
    assert demands.of("openai/test").queued == 100
    assert reads == [runs[7].key]

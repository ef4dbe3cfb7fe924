"""Staging: the same input gives the same bytes, however often the pass was cut short."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.adapters.bedrock.data import BedrockData
from batchinference.model.batch import BatchState, Limits
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, StageDone, TaskFault, TaskKind
from batchinference.records import codes
from batchinference.records.index import entries
from batchinference.records.refusal import UnsupportedRequest
from batchinference.tasks.sources import InlineSource, StoreSource, input_source
from fakes.data import FunctionData
from fakes.stores import Crash, MemoryStore
from unit.tasks.desk import (
    INPUT,
    STAGING,
    Desk,
    answer,
    expired,
    jsonl,
    limits,
    make_run,
    request,
)


def desk(path: Path, bounds: Limits | None = None, **fields: Any) -> Desk:
    run = make_run(bounds or limits(), **fields.pop("spec", {}))
    return Desk(path, replace(run, **fields.pop("run", {})), **fields)


def fault(result: object) -> TaskFault:
    assert isinstance(result, TaskFault), result
    return result


# ---------------------------------------------------------------- determinism

line = st.one_of(
    st.integers(0, 60).map(lambda n: request(f"t{n}", "x" * (n % 30))),
    st.integers(0, 60).map(lambda n: request(f"é{n}", "日本" * (n % 5))),
    st.sampled_from([b"", b"  ", b"\r", b"{", b"[]", b"\xff", b"x" * 3000]),
    st.just(request("other", model="x")),
    st.integers(0, 60).map(lambda n: json.dumps(request(f"t{n}"), separators=(",", ":")).encode()),
    st.integers(0, 60).map(lambda n: {"custom_id": f"t{n}", "body": {"messages": []}}),
    st.integers(0, 60).map(lambda n: request(f"t{n}", temperature=1)),
    st.integers(0, 60).map(lambda n: request(f"t{n}", "img;base64," + "A" * 2048)),
)
bounds_of = st.builds(
    limits,
    records=st.integers(1, 6),
    size=st.sampled_from([700, 1500, 10_000]),
    record=st.sampled_from([650, 3000]),
    minimum=st.integers(1, 4),
    tokens=st.none() | st.integers(30, 200),
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(line, max_size=14), min_size=1, max_size=3),
    bounds_of,
    st.integers(40, 900),
    st.integers(40, 900),
    st.booleans(),
    st.sampled_from([{}, {"temperature": "0"}, {"temperature": "0", "maxOutputTokens": 9}]),
    st.booleans(),
)
def test_a_pass_resumed_after_any_shard_leaves_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    objects: list[list[Any]],
    bounds: Limits,
    chunk: int,
    other_chunk: int,
    is_translated: bool,
    parameters: dict[str, Any],
    has_model: bool,
) -> None:
    def make(chunk: int) -> Desk:
        found = desk(
            tmp_path_factory.getbasetemp(),
            bounds,
            store=MemoryStore(chunk),
            spec={"parameters": parameters},
        )
        for n, lines in enumerate(objects):
            data = jsonl(lines) if has_model else jsonl(lines).replace(b'"model": "m", ', b"")
            found.put_input(data or b"\n", f"s3://data/in/{n}.jsonl")
        found.source = StoreSource(found.store, "s3://data/in/")
        if is_translated:
            found.data = FunctionData()
        return found

    whole = make(chunk)
    done = whole.stage()
    check_staging(whole, done)
    checkpoints = whole.checkpoints()
    assert [c.shard.index for c in checkpoints] == list(range(len(checkpoints)))

    for stop in range(len(checkpoints)):
        resumed = make(other_chunk)

        def crash_later(operation: str, uri: str, at: int = stop) -> None:
            if operation == "commit" and f"/{at + 1:05d}" in uri:
                raise Crash

        resumed.store.before = crash_later
        try:
            result = resumed.perform(TaskKind.STAGE)
        except Crash:
            result = None
        resumed.store.before = None
        assert result is not None or len(resumed.checkpoints()) == stop + 1
        again = resumed.stage()
        assert resumed.staged() == whole.staged()
        assert again == done
        assert resumed.run.shards == whole.run.shards
        assert resumed.checkpoints() == checkpoints


def check_staging(found: Desk, done: StageDone) -> None:
    """What every finished pass must have left."""
    run, bounds = found.run, found.run.limits
    rows: list[int] = []
    for shard in run.shards:
        data = found.store.objects[f"{STAGING}shards/{shard.index:05d}.jsonl"]
        assert hashlib.sha256(data).hexdigest() == shard.sha256
        assert len(data) == shard.size
        assert shard.size <= bounds.max_bytes_per_batch
        assert shard.rows <= bounds.max_records_per_batch
        index = list(entries([found.store.objects[f"{STAGING}shards/{shard.index:05d}.idx"]]))
        assert len(index) == shard.rows
        assert (index[0].row, index[-1].row) == (shard.first_row, shard.last_row)
        assert sum(e.tokens for e in index) == shard.tokens
        if bounds.max_enqueued_tokens:
            assert shard.tokens <= bounds.max_enqueued_tokens or shard.rows == 1
        for entry in index:
            line = data[entry.offset : entry.offset + entry.size]
            assert json.loads(line)["custom_id"] == f"r{entry.row:010d}"
            assert line.index(b"\n") == entry.size - 1
            rows.append(entry.row)
    assert rows == sorted(set(rows))
    table = [
        entry
        for data in found.store.under(f"{STAGING}rows/").values()
        for entry in data.split(b"\n")[:-1]
    ]
    assert len(table) == done.staged.rows
    good = [n for n, entry in enumerate(table) if not entry.startswith(b"{")]
    assert good == rows
    assert done.staged.bad == len(table) - len(good)
    assert len(done.staged.first_bad) == min(10, done.staged.bad)
    ids = [table[n] for n in good]
    assert len(set(ids)) == len(ids)


def test_the_last_shard_is_brought_to_the_minimum(tmp_path: Path) -> None:
    found = desk(tmp_path, limits(5, minimum=3))
    found.put_input(jsonl(request(f"t{n}") for n in range(11)))
    found.stage()
    assert [s.rows for s in found.run.shards] == [5, 3, 3]
    assert found.run.shards[-1].first_row == 8


def test_a_shard_that_nothing_brings_to_the_minimum_is_there_to_be_seen(tmp_path: Path) -> None:
    found = desk(tmp_path, limits(5, minimum=4))
    found.put_input(jsonl(request(f"t{n}") for n in range(7)))
    found.stage()
    assert [s.rows for s in found.run.shards] == [5, 2]


# ---------------------------------------------------------------- what is sent


def test_parameters_and_model_are_in_what_is_sent(tmp_path: Path) -> None:
    for data in (FunctionData(), None):
        found = desk(tmp_path, spec={"parameters": {"maxOutputTokens": 7, "temperature": "0.5"}})
        if data is not None:
            found.data = data
        found.put_input(jsonl([{"custom_id": "a", "body": {"messages": []}}]))
        found.stage()
        sent = json.loads(found.store.objects[f"{STAGING}shards/00000.jsonl"])
        assert sent == {
            "custom_id": "r0000000000",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [], "max_completion_tokens": 7, "temperature": 0.5},
        }


def test_bedrocks_own_lines_go_untouched_and_never_mixed(tmp_path: Path) -> None:
    found = Desk(tmp_path, make_run(bedrock=True))
    found.put_input(b'{"recordId":"a","modelInput":{ "x": 1.0 }}\n' + jsonl([request("b")]))
    done = found.stage()
    sent = found.store.objects[f"{STAGING}shards/00000.jsonl"]
    assert sent == b'{"recordId":"r0000000000","modelInput":{ "x": 1.0 }}\n'
    assert done.staged.native
    assert [b.code for b in done.staged.first_bad] == [codes.MIXED_FORMATS]


@pytest.mark.parametrize("parameters", [{}, {"maxOutputTokens": 7}], ids=["plain", "defaults"])
@pytest.mark.parametrize("bad", [(), (3,)], ids=["all-good", "one-refused"])
def test_translating_many_lines_at_once_gives_what_one_by_one_does(
    tmp_path: Path, bad: tuple[int, ...], parameters: dict[str, Any]
) -> None:
    def encode(row: int, asked: Any, model: str) -> bytes:
        if asked["body"]["messages"][0]["content"] == "bad":
            raise UnsupportedRequest(codes.UNSUPPORTED_OPTION, "`body.x` is not possible")
        return json.dumps([row, asked, model]).encode()

    staged, notes = [], []
    for is_usual in (True, False):
        run = make_run(limits(records=4), parameters=parameters)
        found = Desk(tmp_path, run, data=FunctionData(encode))
        asked = [request(f"t{n}", "bad" if n in bad else f"ü{n}") for n in range(10)]
        if not is_usual:  # in another order, which is as good
            asked = [dict(reversed(record.items())) for record in asked]
        found.put_input(jsonl(asked))
        notes.append(found.stage().staged)
        shards = [f"{STAGING}{name}" for name in ("shards/", "rows/")]
        staged.append([found.store.under(prefix) for prefix in shards])
    assert staged[0] == staged[1]
    assert notes[0] == notes[1]
    assert notes[0].bad == len(bad)


_TEXTS = st.one_of(
    st.text(max_size=9),
    st.sampled_from(
        ["", " ", "\u2003", "\u2028", "\\", "\\u0041", "a/b", "\x7f", '"', "\U0001f600"]
    ),
)
_MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": _TEXTS},
        optional={"name": st.just("ann")},
    ),
    max_size=4,
)
_NUMBERS = st.sampled_from([0, 1, 1.0, 0.5, -1, 2, 10**30, None, True])
_BODIES = st.fixed_dictionaries(
    {"messages": _MESSAGES},
    optional={
        "max_tokens": _NUMBERS,
        "max_completion_tokens": _NUMBERS,
        "temperature": _NUMBERS,
        "top_p": _NUMBERS,
        "stop": st.sampled_from([None, "x", "", [], ["x", "y"], [1]]),
        "seed": st.just(7),
        "model": st.sampled_from(["m", None, "other"]),
    },
)


@settings(max_examples=200, deadline=None)
@given(
    bodies=st.lists(_BODIES, min_size=1, max_size=6),
    parameters=st.sampled_from([{}, {"maxOutputTokens": 7}, {"temperature": "0.5"}]),
    is_ascii=st.booleans(),
)
def test_the_quick_translation_gives_the_bytes_of_the_thorough_one(
    tmp_path_factory: pytest.TempPathFactory,
    bodies: list[dict[str, Any]],
    parameters: dict[str, Any],
    is_ascii: bool,
) -> None:
    came_of = []
    for is_usual in (True, False):
        run = make_run(bedrock=True, parameters=parameters)
        found = Desk(tmp_path_factory.getbasetemp(), run)
        found.data = BedrockData(found.store)
        lines = [{**request(f"t{n}"), "body": body} for n, body in enumerate(bodies)]
        if not is_usual:
            lines = [dict(reversed(line.items())) for line in lines]
        texts = [json.dumps(line, ensure_ascii=is_ascii).encode() for line in lines]
        found.put_input(jsonl(texts))
        staged = found.stage().staged
        shards = [f"{STAGING}{name}" for name in ("shards/", "rows/")]
        came_of.append((replace(staged, tokens=0), [found.store.under(p) for p in shards]))
    quick, thorough = came_of
    assert quick[0] == thorough[0]
    assert quick[1][0].get(f"{STAGING}shards/00000.jsonl") == thorough[1][0].get(
        f"{STAGING}shards/00000.jsonl"
    )
    assert quick[1][1] == thorough[1][1]


def test_a_location_that_the_job_may_not_name_is_a_bad_record(tmp_path: Path) -> None:
    run = make_run(bedrock=True)
    s3 = {"allowedPrefixes": ["s3://data/${namespace}/"]}
    pinned = replace(run.provider, settings={"bedrock": {}, "storage": {"s3": s3}})

    def video(uri: str) -> dict[str, Any]:
        return {"modelInput": {"mediaSource": {"s3Location": {"uri": uri}}}}

    found = Desk(tmp_path, replace(run, provider=pinned))
    mine, others = video("s3://data/ml/cat.mp4"), video("s3://data/qa/dog.mp4")
    found.put_input(jsonl([mine, others]))
    done = found.stage()
    sent = found.store.objects[f"{STAGING}shards/00000.jsonl"]
    assert b"cat.mp4" in sent
    assert b"dog.mp4" not in sent
    [bad] = done.staged.first_bad
    assert (bad.line, bad.code) == (2, codes.LOCATION_NOT_ALLOWED)
    assert bad.message.startswith("`modelInput.mediaSource.s3Location.uri` is outside")
    assert "'s3://data/ml/'" in bad.message


def test_bad_records_are_told_by_line_and_object_and_never_sent(tmp_path: Path) -> None:
    def encode(row: int, asked: Any, model: str) -> bytes:
        if "tools" in asked["body"]:
            raise UnsupportedRequest(codes.UNSUPPORTED_OPTION, "`body.tools` is not possible")
        return json.dumps(asked).encode()

    found = desk(tmp_path, limits(record=600), data=FunctionData(encode))
    found.put_input(
        jsonl(
            [
                request("a"),
                b"",
                request("a"),
                b"oops",
                request("b", tools=[1]),
                request("c", "y" * 700),
                b"z" * 100_000,
                request("b"),
            ]
        )
    )
    done = found.stage()
    assert [(b.line, b.code) for b in done.staged.first_bad] == [
        (3, codes.DUPLICATE_ID),
        (4, codes.INVALID_JSON),
        (5, codes.UNSUPPORTED_OPTION),
        (6, codes.LINE_TOO_LONG),
        (7, codes.LINE_TOO_LONG),
    ]
    assert {b.source for b in done.staged.first_bad} == {INPUT}
    assert found.rows_of(0) == [0, 6], "rows count all records, a refused id may come again"


def test_an_input_of_bad_records_alone_has_no_shard_but_a_table(tmp_path: Path) -> None:
    found = desk(tmp_path)
    found.put_input(b"a\nb\n")
    done = found.stage()
    assert (done.staged.rows, done.staged.bad, found.run.shards) == (2, 2, ())
    assert f"{STAGING}rows/00000.jsonl" in found.staged()


def test_an_empty_input_has_no_rows(tmp_path: Path) -> None:
    for data in (b"", b"\n\n", b"\xef\xbb\xbf"):
        found = desk(tmp_path)
        found.put_input(data)
        assert found.stage().staged.rows == 0


def test_an_input_for_more_shards_than_a_run_may_have_is_refused_with_the_number(
    tmp_path: Path,
) -> None:
    found = desk(tmp_path, limits(1))
    found.put_input(jsonl(request(f"t{n}") for n in range(1000)))
    found.store.chunk = 1000
    result = fault(found.perform(TaskKind.STAGE))
    assert (result.kind, result.reason) == (FaultKind.PERMANENT, Reason.TOO_LARGE)
    number = int(next(w for w in result.message.split() if w.isdigit()))
    assert number == pytest.approx(1000, rel=0.05)


def test_exactly_as_many_shards_as_a_run_may_have_are_fine(tmp_path: Path) -> None:
    found = desk(tmp_path, limits(1))
    found.put_input(jsonl(request(f"t{n}") for n in range(500)))
    found.stage()
    assert len(found.run.shards) == 500


# ---------------------------------------------------------------- a world that moves


def change_on_read(found: Desk, when: Callable[[int], bool]) -> None:
    reads = 0

    def before(operation: str, uri: str) -> None:
        nonlocal reads
        if operation == "read" and uri == INPUT:
            reads += 1
            if when(reads):
                found.store.objects[INPUT] += b"\n"

    found.store.before = before


@pytest.mark.parametrize("read", [1, 2, 5])
def test_a_source_that_changes_during_the_pass_makes_it_start_again(
    tmp_path: Path, read: int
) -> None:
    found = desk(tmp_path, store=MemoryStore(100))
    found.put_input(jsonl(request(f"t{n}") for n in range(9)))
    change_on_read(found, lambda n: n == read)
    result = fault(found.perform(TaskKind.STAGE))
    assert (result.kind, result.reason) == (FaultKind.RETRY, Reason.INPUT_CHANGING)


def test_an_object_that_appears_under_the_prefix_makes_the_pass_start_again(
    tmp_path: Path,
) -> None:
    found = desk(tmp_path)
    found.put_input(jsonl([request("a")]))
    found.source = StoreSource(found.store, "s3://data/in/")

    def before(operation: str, uri: str) -> None:
        if operation == "read":
            found.store.objects["s3://data/in/zz.jsonl"] = b"{}"

    found.store.before = before
    assert fault(found.perform(TaskKind.STAGE)).reason == Reason.INPUT_CHANGING


def test_a_source_that_changed_between_crash_and_resume_makes_the_pass_start_again(
    tmp_path: Path,
) -> None:
    found = desk(tmp_path, limits(2))
    found.put_input(jsonl(request(f"t{n}") for n in range(9)))

    def crash(operation: str, uri: str) -> None:
        if operation == "writer" and "00002" in uri:
            raise Crash

    found.store.before = crash
    with pytest.raises(Crash):
        found.perform(TaskKind.STAGE)
    found.store.before = None
    found.put_input(jsonl(request(f"u{n}") for n in range(9)))
    assert fault(found.perform(TaskKind.STAGE)).reason == Reason.INPUT_CHANGING
    found.run = replace(found.run, shards=(), cursor=None)
    assert found.stage().staged.rows == 9


def test_staging_that_lost_its_table_says_so_when_it_goes_on(tmp_path: Path) -> None:
    found = desk(tmp_path, limits(2))
    found.put_input(jsonl(request(f"t{n}") for n in range(9)))
    found.stage()
    checkpoint = found.checkpoints()[1]
    found.run = replace(found.run, shards=found.run.shards[:2], cursor=checkpoint.cursor)
    found.store.delete_prefix(f"{STAGING}rows/")
    result = fault(found.perform(TaskKind.STAGE))
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.STAGING_UNAVAILABLE)


def test_a_full_disk_is_waiting_and_never_failure(tmp_path: Path) -> None:
    found = desk(tmp_path)
    found.put_input(jsonl([request("a")]))

    def before(operation: str, uri: str) -> None:
        if operation == "writer":
            raise OSError(errno.ENOSPC, "No space left on device")

    found.store.before = before
    result = fault(found.perform(TaskKind.STAGE))
    assert (result.kind, result.reason) == (FaultKind.WAITING, Reason.DISK_FULL)
    found.store.before = None
    assert found.stage().staged.rows == 1
    assert list(tmp_path.iterdir()) == [], "spool files are gone"


def test_a_defect_tells_its_place_and_no_contents(tmp_path: Path) -> None:
    def encode(row: int, asked: Any, model: str) -> bytes:
        raise KeyError("SECRET prompt")

    found = desk(tmp_path, data=FunctionData(encode))
    found.put_input(jsonl([request("a")]))
    result = fault(found.perform(TaskKind.STAGE))
    assert result.kind is FaultKind.RETRY
    assert "KeyError" in result.message
    assert "SECRET" not in result.message


# ---------------------------------------------------------------- sources


def test_a_prefix_is_read_in_byte_order_without_markers(tmp_path: Path) -> None:
    store = MemoryStore()
    for name in ("b.jsonl", "B.jsonl", "a/x.jsonl", "_SUCCESS", ".hidden", "a/_tmp/y.jsonl", "é"):
        store.objects[f"s3://data/in/{name}"] = b"{}"
    store.objects["s3://data/in/empty"] = b""
    source = StoreSource(store, "s3://data/in/")
    names = [i.uri.removeprefix("s3://data/in/") for i in source.objects()]
    assert names == ["B.jsonl", "a/x.jsonl", "b.jsonl", "é"]


def test_one_version_of_an_object_can_be_read(tmp_path: Path) -> None:
    found = desk(tmp_path)
    found.put_input(jsonl([request("new"), request("newer")]))
    found.store.versions[INPUT, "v1"] = jsonl([request("old")])
    found.source = StoreSource(found.store, INPUT, "v1")
    assert found.stage().staged.rows == 1


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.csv.gz", "a.PARQUET.zst"])
def test_a_table_without_a_template_is_refused_by_name(tmp_path: Path, name: str) -> None:
    found = desk(tmp_path)
    found.put_input(b"x", f"s3://data/in/{name}")
    for uri in (f"s3://data/in/{name}", "s3://data/in/"):
        found.source = StoreSource(found.store, uri)
        result = fault(found.perform(TaskKind.ADMIT))
        assert (result.kind, result.reason) == (FaultKind.PERMANENT, Reason.INVALID_SPEC)
        assert name in result.message


def test_inline_text_and_config_maps_are_sources_too(tmp_path: Path) -> None:
    text = jsonl([request("a")]).decode()
    store = MemoryStore()
    store.objects["configmap://ml/rows/data"] = text.encode()
    kinds = [
        input_source({"inline": text}, inline=text, namespace="ml", store=None, config_maps=None),
        input_source(
            {"configMapKeyRef": {"name": "rows", "key": "data"}},
            inline=None,
            namespace="ml",
            store=None,
            config_maps=store,
        ),
    ]
    for source in kinds:
        found = desk(tmp_path, source=source)
        assert found.stage().staged.rows == 1


def test_inline_text_that_is_not_known_any_more_is_not_found(tmp_path: Path) -> None:
    found = desk(tmp_path, source=InlineSource(None))
    result = fault(found.perform(TaskKind.STAGE))
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.INPUT_NOT_FOUND)


# ---------------------------------------------------------------- what answers may have


def test_a_shard_tells_the_most_that_its_answers_and_its_longest_record_have(
    tmp_path: Path,
) -> None:
    made = desk(tmp_path, limits(records=2))
    made.put_input(jsonl([request(f"t{n}", "x" * n, max_tokens=n + 1) for n in range(5)]))
    made.stage()
    assert [shard.output for shard in made.run.shards] == [1 + 2, 3 + 4, 5]
    longest = [max(e.tokens for e in index_of(made, s.index)) for s in made.run.shards]
    assert [shard.longest for shard in made.run.shards] == longest


def test_one_record_without_a_bound_leaves_its_shard_without_one(tmp_path: Path) -> None:
    made = desk(tmp_path, limits(records=2))
    made.put_input(jsonl([request("a", max_tokens=1), request("b"), request("c", max_tokens=3)]))
    made.stage()
    assert [shard.output for shard in made.run.shards] == [None, 3]
    assert [e.output for e in index_of(made, 0)] == [1, 0]


def test_what_moves_to_bring_the_last_shard_to_the_minimum_takes_its_bound_along(
    tmp_path: Path,
) -> None:
    made = desk(tmp_path, limits(records=5, minimum=3))
    sizes = [1, 2, 4, 8, 16, 32]
    made.put_input(jsonl([request(f"t{n}", "x" * n * 9, max_tokens=n) for n in sizes]))
    made.stage()
    assert [shard.rows for shard in made.run.shards] == [3, 3]
    assert [shard.output for shard in made.run.shards] == [1 + 2 + 4, 8 + 16 + 32]
    assert made.run.shards[1].longest == max(e.tokens for e in index_of(made, 1))


def test_pooled_records_keep_their_bounds(tmp_path: Path) -> None:
    made = desk(tmp_path, limits(records=2))
    made.put_input(jsonl([request(f"t{n}", max_tokens=10**n) for n in range(4)]))
    made.stage()
    for shard, row in ((0, 1), (1, 2)):
        files = {f"out-{shard}": jsonl([expired(row), answer(row ^ 1)])}
        made.end(shard, BatchState.EXPIRED, files)
        made.collect(shard)
    (pooled,) = made.pool(0, 1).shards
    assert (pooled.rows, pooled.output) == (2, 10 + 100)


def index_of(made: Desk, shard: int):
    return list(entries([made.store.objects[f"{STAGING}shards/{shard:05d}.idx"]]))

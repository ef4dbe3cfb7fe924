"""Pooling and finishing: every row of the input once, in order, whatever became of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.core.keys import submission_id
from batchinference.errors import Fault, Retry, Stalled
from batchinference.model.batch import BatchState, SubmissionID
from batchinference.model.earlier import Earlier
from batchinference.model.run import Run, Shard, ShardState
from batchinference.model.status import Reason
from batchinference.model.work import Cleaned, FaultKind, TaskFault, TaskKind, Uploaded
from batchinference.ports import ObjectStore
from batchinference.records import codes
from batchinference.tasks.admit import claim_of
from batchinference.tasks.places import PrefixPlace
from fakes.data import BodyData
from fakes.prices import price
from fakes.stores import Crash
from unit.tasks.desk import (
    OUTPUT,
    STAGING,
    Desk,
    answer,
    expired,
    jsonl,
    limits,
    make_run,
    refused,
    request,
)


def staged(path: Path, rows: int = 10, records: int = 4, minimum: int = 1) -> Desk:
    found = Desk(path, make_run(limits(records, minimum=minimum)))
    found.claim()
    found.put_input(jsonl(request(f"t{n}") for n in range(rows)))
    found.stage()
    return found


def drop(found: Desk, shard: int) -> None:
    found.run = found.run.with_shard(replace(found.run.shards[shard], state=ShardState.DROPPED))


def codes_of(found: Desk) -> list[str]:
    return [(r["error"] or {}).get("code", "") for r in found.results()]


def fault(result: object) -> TaskFault:
    assert isinstance(result, TaskFault), result
    return result


def test_results_are_in_input_order_with_the_users_ids(tmp_path: Path) -> None:
    found = staged(tmp_path)
    for shard in reversed(range(3)):
        found.answer_all(shard)
    results = found.finish().results
    lines = found.results()
    assert [r["custom_id"] for r in lines] == [f"t{n}" for n in range(10)]
    assert [r["row"] for r in lines] == list(range(10))
    assert [list(r) for r in lines] == [["id", "custom_id", "response", "error", "row"]] * 10
    assert len({r["id"] for r in lines}) == 10
    assert (results.completed, results.failed, results.expired) == (10, 0, 0)
    assert (results.input_tokens, results.output_tokens) == (30, 20)
    assert results.results_uri == f"{OUTPUT}results/"
    assert results.errors_uri == ""
    assert results.manifest_uri == f"{OUTPUT}manifest.json"


def test_bad_expired_dropped_and_refused_records_all_have_their_line(tmp_path: Path) -> None:
    found = Desk(tmp_path, make_run(limits(2)))
    ids = ["a", 'q"\\é', "日本", "", "e", "f"]
    found.put_input(jsonl([request(ids[0]), b"broken", *(request(i) for i in ids[1:])]))
    found.stage()
    found.end(0, BatchState.EXPIRED, {"x": jsonl([answer(0)])})
    found.collect(0)
    found.end(1, files={"y": jsonl([refused(3), answer(4)])})
    found.collect(1)
    drop(found, 2)
    results = found.finish().results
    assert codes_of(found) == [
        "", codes.INVALID_JSON, codes.BATCH_EXPIRED, "HTTP400", "",
        codes.NOT_SUBMITTED, codes.NOT_SUBMITTED,
    ]  # fmt: skip
    assert [r["custom_id"] for r in found.results()] == [ids[0], None, *ids[1:]]
    assert (results.completed, results.failed, results.expired) == (2, 4, 1)
    assert found.results("errors") == [r for r in found.results() if r["error"]]
    assert "line 2" in found.results()[1]["error"]["message"]


def test_the_manifest_says_what_was_written(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.part_bytes = 600
    found.end(0, BatchState.EXPIRED)
    found.collect(0)
    found.answer_all(1)
    found.answer_all(2)
    found.finish()
    manifest = found.manifest()
    assert manifest["counts"] == {
        "total": 10, "completed": 6, "failed": 0, "expired": 4, "bad": 0, "lost": 0,
        "ignoredLines": 0,
    }  # fmt: skip
    assert manifest["runKey"] == found.run.key
    assert manifest["usage"] == {"inputTokens": "18", "outputTokens": "12"}
    assert [s["batchID"] for s in manifest["submissions"]] == ["batch_0", "batch_1", "batch_2"]
    for kind in ("results", "errors"):
        assert len(manifest[kind]) > 1
        for part in manifest[kind]:
            data = found.store.objects[part["uri"]]
            assert part["bytes"] == len(data) <= 600
            assert part["rows"] == data.count(b"\n")
            assert part["sha256"] == hashlib.sha256(data).hexdigest()
        assert sum(p["rows"] for p in manifest[kind]) == (10 if kind == "results" else 4)


def test_the_manifest_says_what_it_cost_where_that_is_known(tmp_path: Path) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    found.finish()
    assert "cost" not in found.manifest()
    costs = price(batch_input="1", batch_output="100", live_input="2", live_output="200")
    shards = tuple(replace(s, output=1_000) for s in found.run.shards)
    found.run = replace(found.run, price=costs, shards=shards)
    found.finish()
    assert found.manifest()["cost"] == {
        "currency": "USD", "estimated": "0.30034", "actual": "0.00203", "onDemand": "0.00406",
    }  # fmt: skip
    before = dict(found.store.objects)
    found.finish()
    assert found.store.objects == before, "made again it is the same"


def test_records_that_the_budget_kept_back_say_so(tmp_path: Path) -> None:
    found = staged(tmp_path, rows=2)
    drop(found, 0)
    left = replace(found.run.shards[0], unsent_code=codes.BUDGET_EXCEEDED)
    found.run = found.run.with_shard(left)
    found.finish()
    assert set(codes_of(found)) == {codes.BUDGET_EXCEEDED}
    assert "`spec.budget`; it was not billed" in found.results()[0]["error"]["message"]


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    order: list[str] = []

    def before(operation: str, uri: str) -> None:
        if operation in {"commit", "put"}:
            order.append(uri)

    found.store.before = before
    found.finish()
    assert order[-1] == f"{OUTPUT}manifest.json"


def test_finishing_again_after_a_crash_at_any_call_leaves_the_same_bytes(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.part_bytes = 500
    found.end(0, BatchState.EXPIRED, {"x": jsonl([answer(1)])})
    found.collect(0)
    found.answer_all(1)
    drop(found, 2)
    total = found.store.calls.total()
    found.finish()
    total = found.store.calls.total() - total
    want = found.store.under(OUTPUT)
    for stop in range(total):
        found.store.delete_prefix(OUTPUT)
        found.claim()
        left = stop

        def before(operation: str, uri: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Crash

        found.store.before = before
        with pytest.raises(Crash):
            found.perform(TaskKind.FINISH)
        assert f"{OUTPUT}manifest.json" not in found.store.objects
        found.store.before = None
        found.finish()
        assert found.store.under(OUTPUT) == want


def check_manifest(found: Desk) -> None:
    """What stands in a manifest is what is there."""
    if f"{OUTPUT}manifest.json" not in found.store.objects:
        return
    manifest = found.manifest()
    for part in (*manifest["results"], *manifest["errors"]):
        data = found.store.objects.get(part["uri"], b"")
        assert hashlib.sha256(data).hexdigest() == part["sha256"], part["uri"]


def test_no_reader_is_ever_misled_while_a_resumed_run_replaces_its_results(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.part_bytes = 700
    found.end(0, files={"x": jsonl([answer(0), answer(1), refused(2), refused(3)])})
    found.collect(0)
    drop(found, 1)
    drop(found, 2)
    found.finish()
    partial = dict(found.store.objects)
    parts = found.manifest()["errors"]
    assert len(parts) > 1
    found.answer_all(1)
    found.answer_all(2)
    answers = dict(found.store.objects)
    found.finish()
    want = found.store.under(OUTPUT)
    assert len(found.manifest()["errors"]) < len(parts), "fewer records failed"
    assert parts[-1]["uri"] not in want, "what is left of the partial results goes"

    def attempt(stop: int) -> bool:
        """Finish on the partial results, dying before that call; whether it came to it."""
        found.store.objects.clear()
        found.store.objects.update(answers)
        assert found.store.under(OUTPUT) == {u: partial[u] for u in found.store.under(OUTPUT)}
        calls = 0

        def before(_operation: str, _uri: str) -> None:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise Crash  # dead: also to whoever would clean up
            check_manifest(found)

        found.store.before = before
        try:
            found.perform(TaskKind.FINISH)
        except Crash:
            return True
        finally:
            found.store.before = None
        return False

    stop = left = 0
    while attempt(stop):
        check_manifest(found)
        left += len(found.store.open_writers)
        found.store.before = lambda _operation, _uri: check_manifest(found)
        found.finish()
        assert found.store.under(OUTPUT) == want
        assert found.store.open_writers == [], "uploads of the dead worker are aborted"
        stop += 1
    assert stop > 20
    assert left, "there were some"


def test_an_input_of_bad_records_alone_still_has_results(tmp_path: Path) -> None:
    found = Desk(tmp_path)
    found.put_input(b"x\ny\n")
    found.stage()
    assert found.finish().results.failed == 2
    assert codes_of(found) == [codes.INVALID_JSON] * 2


def test_an_empty_input_has_an_empty_manifest(tmp_path: Path) -> None:
    found = Desk(tmp_path)
    found.put_input(b"\n")
    found.stage()
    found.finish()
    assert found.manifest()["counts"]["total"] == 0
    assert found.manifest()["results"] == []


# ---------------------------------------------------------------- what must not happen


def test_results_that_do_not_add_up_are_never_called_finished(tmp_path: Path) -> None:
    def broken(found: Desk, how: str) -> None:
        answers = f"{STAGING}answers/00001.jsonl"
        lines = found.store.objects[answers].splitlines(keepends=True)
        if how == "a row is missing":
            found.store.objects[answers] = b"".join(lines[1:])
        elif how == "a row came twice":
            found.store.objects[answers] = b"".join([lines[0], *lines])
        elif how == "a row of nobody":
            more = lines[-1].replace(b"0000000007", b"0000000077")
            found.store.objects[answers] += more
        elif how == "the table is short":
            rows = f"{STAGING}rows/00002.jsonl"
            found.store.objects[rows] = found.store.objects[rows].split(b"\n", 1)[1]

    for how in ("a row is missing", "a row came twice", "a row of nobody", "the table is short"):
        found = staged(tmp_path)
        for shard in range(3):
            found.answer_all(shard)
        broken(found, how)
        result = fault(found.perform(TaskKind.FINISH))
        assert (result.kind, result.reason) == (FaultKind.PERMANENT, "ResultsInconsistent"), how
        assert f"{OUTPUT}manifest.json" not in found.store.objects


@pytest.mark.parametrize("state", [ShardState.SUBMITTED, ShardState.ENDED, ShardState.UNKNOWN])
def test_a_shard_that_may_still_answer_is_waited_for(tmp_path: Path, state: ShardState) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    found.run = found.run.with_shard(replace(found.run.shards[1], state=state))
    assert fault(found.perform(TaskKind.FINISH)).kind is FaultKind.RETRY


@pytest.mark.parametrize(
    "gone", ["stage.json", "rows/00000.jsonl", "rows/00001.jsonl", "answers/00001.jsonl"]
)
def test_staging_that_is_gone_needs_a_person(tmp_path: Path, gone: str) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    del found.store.objects[f"{STAGING}{gone}"]
    result = fault(found.perform(TaskKind.FINISH))
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.STAGING_UNAVAILABLE)


def test_nothing_is_written_to_a_place_that_is_not_ours_any_more(tmp_path: Path) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    taken = replace(claim_of(found.run), run_key="k2")
    handed_over = replace(claim_of(found.run), installation="elsewhere")
    for claim, reason in (
        (None, Reason.OUTPUT_CONFLICT),
        (taken, Reason.OUTPUT_CONFLICT),
        (handed_over, Reason.HELD_ELSEWHERE),
    ):
        found.store.delete_prefix(OUTPUT)
        if claim is not None:
            assert PrefixPlace(found.store, OUTPUT).claim(claim) is None
        before = found.store.under(OUTPUT)
        result = fault(found.perform(TaskKind.FINISH))
        assert (result.kind, result.reason) == (FaultKind.STALLED, reason)
        assert found.store.under(OUTPUT) == before


# ---------------------------------------------------------------- another operator is faster

_ASLEEP = {"get", "head", "read", "writer", "write"}
"""Calls before which a stale task sleeps. Not those right after a look at the place."""


def overtaken(found: Desk, at: int, meanwhile: Callable[[], None]) -> object:
    """Finish; before that call of it, the world moves on. None when it came to no such call."""
    calls = 0

    def before(operation: str, _uri: str) -> None:
        nonlocal calls
        calls += operation in _ASLEEP
        if calls > at and operation in _ASLEEP:
            found.store.before = None
            meanwhile()

    found.store.before = before
    result = found.perform(TaskKind.FINISH)
    is_reached = found.store.before is None
    found.store.before = None
    return result if is_reached else None


def answered(path: Path) -> Desk:
    found = staged(path)
    found.part_bytes = 700
    found.end(0, files={"x": jsonl([answer(0), answer(1), refused(2), refused(3)])})
    found.collect(0)
    found.answer_all(1)
    found.answer_all(2)
    return found


def test_a_stale_finish_leaves_the_results_of_an_ended_run(tmp_path: Path) -> None:
    found = answered(tmp_path)
    start = dict(found.store.objects)

    def ended() -> None:
        found.finish()
        assert found.perform(TaskKind.CLEAN) == Cleaned()

    ended()
    want = found.store.under(OUTPUT)
    at = 0
    while True:
        found.store.objects.clear()
        found.store.objects.update(start)
        result = overtaken(found, at, ended)
        assert found.store.under(OUTPUT) == want, at
        if result is None:
            break
        assert fault(result).kind in {FaultKind.RETRY, FaultKind.STALLED}
        at += 1
    assert at > 20


def test_a_stale_finish_leaves_the_results_of_the_run_that_took_the_place(tmp_path: Path) -> None:
    found = answered(tmp_path)
    start = dict(found.store.objects)
    following = replace(claim_of(found.run), run_key="k2", run_tag="t2")
    theirs: dict[str, bytes] = {}

    def taken() -> None:
        found.finish()
        assert found.perform(TaskKind.CLEAN) == Cleaned()
        place = PrefixPlace(found.store, OUTPUT)
        holder = place.claim(following)
        assert holder is not None
        assert place.replace(following, holder)
        part = place.part("results", 0)
        part.write(b"the answers of the next run\n")
        part.commit()
        place.write_manifest({"runKey": "k2"})
        theirs.update(found.store.under(OUTPUT))

    at = 0
    while True:
        found.store.objects.clear()
        found.store.objects.update(start)
        result = overtaken(found, at, taken)
        if result is None:
            break
        assert found.store.under(OUTPUT) == theirs, at
        assert fault(result).kind in {FaultKind.RETRY, FaultKind.STALLED}
        at += 1
    assert at > 20


def test_a_taken_place_is_emptied_of_parts_and_of_nothing_else(tmp_path: Path) -> None:
    found = answered(tmp_path)
    found.finish()
    assert found.perform(TaskKind.CLEAN) == Cleaned()
    foreign = {
        f"{OUTPUT}results/_run.json": b"the claim of a place below",
        f"{OUTPUT}results/results/part-00000.jsonl": b"its answers",
        f"{OUTPUT}results/part-00000.jsonl.bak": b"somebody's copy",
        f"{OUTPUT}README.md": b"somebody's words",
    }
    for uri, data in foreign.items():
        found.store.put(uri, data)
    following = replace(claim_of(found.run), run_key="k2", run_tag="t2")
    place = PrefixPlace(found.store, OUTPUT)
    holder = place.claim(following)
    assert holder is not None
    assert place.replace(following, holder)
    left = found.store.under(OUTPUT)
    assert set(left) == {*foreign, f"{OUTPUT}_run.json"}


def test_finishing_what_is_finished_touches_nothing(tmp_path: Path) -> None:
    found = answered(tmp_path)
    first = found.finish()
    written: list[str] = []

    def before(operation: str, uri: str) -> None:
        if operation not in {"get", "head", "read"}:
            written.append(f"{operation} {uri}")

    found.store.before = before
    assert found.finish() == first
    assert written == []


@pytest.mark.parametrize("gone", ["stage.json", "rows/00001.jsonl", "answers/00002.jsonl"])
def test_results_that_can_not_be_made_anew_are_kept(tmp_path: Path, gone: str) -> None:
    found = answered(tmp_path)
    drop(found, 1)
    found.finish()
    found.answer_all(1)
    del found.store.objects[f"{STAGING}{gone}"]
    before = found.store.under(OUTPUT)
    result = fault(found.perform(TaskKind.FINISH))
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.STAGING_UNAVAILABLE)
    assert found.store.under(OUTPUT) == before


def test_a_manifest_that_can_not_be_read_is_replaced(tmp_path: Path) -> None:
    found = answered(tmp_path)
    found.finish()
    want = found.store.under(OUTPUT)
    found.store.objects[f"{OUTPUT}manifest.json"] = b"{"
    found.finish()
    assert found.store.under(OUTPUT) == want


# ---------------------------------------------------------------- a place that can't be used


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Stalled(Reason.ACCESS_DENIED, "PutObject is denied."), FaultKind.STALLED),
        (Stalled(Reason.BUCKET_NOT_FOUND, "There is no bucket"), FaultKind.STALLED),
        (Retry(Reason.STORAGE_UNAVAILABLE, "503", 7.0), FaultKind.RETRY),
    ],
)
@pytest.mark.parametrize("broken", ["put", "get", "commit", "write", "head"])
def test_an_output_place_that_cannot_be_used_keeps_the_answers_in_staging(
    tmp_path: Path, fault: Fault, kind: FaultKind, broken: str
) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    before = found.staged()

    def refuse(operation: str, uri: str) -> None:
        if operation == broken and uri.startswith(OUTPUT):
            raise fault

    found.store.before = refuse
    result = found.perform(TaskKind.FINISH)
    found.store.before = None
    if isinstance(result, TaskFault):  # else it was finished without that operation
        assert (result.kind, result.reason) == (kind, Reason.OUTPUT_UNAVAILABLE)
        assert fault.message.rstrip(".") in result.message
        assert "kept in staging" in result.message
        assert result.after_s == fault.after_s
        assert found.finish().results.completed == 10
    assert broken in {"write", "head"} or isinstance(result, TaskFault)
    assert found.staged() == before


def test_staging_that_cannot_be_read_is_not_called_an_output_place(tmp_path: Path) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)

    def refuse(_operation: str, uri: str) -> None:
        if uri.startswith(STAGING):
            raise Retry(Reason.STORAGE_UNAVAILABLE, "503")

    found.store.before = refuse
    result = found.perform(TaskKind.FINISH)
    assert isinstance(result, TaskFault)
    assert result.reason == Reason.STORAGE_UNAVAILABLE


# ---------------------------------------------------------------- pooling


def leave(found: Desk, shard: int, unbilled: Sequence[int]) -> None:
    """The shard's batch expired without these rows."""
    rows = [r for r in found.rows_of(shard) if r not in unbilled]
    found.end(shard, BatchState.EXPIRED, {f"x{shard}": jsonl(answer(r) for r in rows)})
    found.collect(shard)


def test_unbilled_records_of_all_shards_go_again_together(tmp_path: Path) -> None:
    found = staged(tmp_path, rows=12)
    leave(found, 0, [0, 3])
    leave(found, 1, [])
    leave(found, 2, [8, 9, 10])
    before = {s: found.store.objects[f"{STAGING}shards/{s:05d}.jsonl"] for s in range(3)}
    pooled = found.pool(0, 2)
    assert pooled.sources == (0, 2)
    assert [(s.index, s.rows, s.attempt) for s in pooled.shards] == [(3, 4, 2), (4, 1, 2)]
    assert [found.rows_of(3), found.rows_of(4)] == [[0, 3, 8, 9], [10]]
    for line in found.store.objects[f"{STAGING}shards/00003.jsonl"].splitlines(keepends=True):
        assert any(line in data for data in before.values()), "bytes are copied as they were"
    for shard in (3, 4):
        found.answer_all(shard)
    assert found.finish().results.completed == 12


def test_a_shard_that_never_went_is_cut_again_whole(tmp_path: Path) -> None:
    found = staged(tmp_path, rows=12)
    assert [s.rows for s in found.run.shards] == [4, 4, 4]
    leave(found, 1, [5])
    for shard in (0, 2):
        apart = replace(found.run.shards[shard], state=ShardState.REGROUPED)
        found.run = found.run.with_shard(apart)
    found.run = replace(found.run, limits=replace(found.run.limits, max_records_per_batch=3))
    pooled = found.pool(0, 1, 2)
    assert [s.rows for s in pooled.shards] == [3, 3, 3]
    assert [row for s in (3, 4, 5) for row in found.rows_of(s)] == [0, 1, 2, 3, 5, 8, 9, 10, 11]
    for shard in (3, 4, 5):
        found.answer_all(shard)
    assert found.finish().results.completed == 12


def test_what_no_new_shard_holds_of_a_shard_that_never_went_says_so(tmp_path: Path) -> None:
    found = staged(tmp_path, rows=4, records=4, minimum=3)
    found.run = found.run.with_shard(replace(found.run.shards[0], state=ShardState.REGROUPED))
    found.run = replace(found.run, limits=replace(found.run.limits, max_records_per_batch=3))
    pooled = found.pool(0)
    assert [s.rows for s in pooled.shards] == [3], "one record alone is below the minimum"
    found.answer_all(1)
    found.finish()
    assert codes_of(found) == ["", "", "", codes.NOT_SUBMITTED]


def test_attempts_go_on_from_the_most_tried_source(tmp_path: Path) -> None:
    found = staged(tmp_path)
    leave(found, 0, [0, 1])
    leave(found, 1, [4])
    found.run = found.run.with_shard(replace(found.run.shards[1], attempt=2))
    assert found.pool(0, 1).shards[0].attempt == 3


def test_leftovers_below_the_minimum_make_no_shard(tmp_path: Path) -> None:
    found = staged(tmp_path, minimum=3)
    leave(found, 0, [0])
    leave(found, 1, [5])
    assert found.pool(0, 1).shards == ()
    left = replace(found.run.shards[0].collected, unbilled_code=codes.BELOW_MINIMUM)  # type: ignore[type-var]
    found.run = found.run.with_shard(replace(found.run.shards[0], collected=left))
    found.answer_all(2)
    found.finish()
    assert codes_of(found)[0] == codes.BELOW_MINIMUM
    assert codes_of(found)[5] == codes.BATCH_EXPIRED


def test_pooling_stops_at_the_number_of_shards_that_a_run_may_have(tmp_path: Path) -> None:
    found = staged(tmp_path, rows=400, records=1)
    for shard in range(400):
        leave(found, shard, [shard] if shard < 200 else [])
    pooled = found.pool(*range(200))
    assert len(pooled.shards) == 100
    for shard in pooled.shards:
        found.answer_all(shard.index)
    results = found.finish().results
    assert (results.completed, results.expired) == (300, 100)


def test_a_shard_below_the_minimum_that_was_dropped_says_why(tmp_path: Path) -> None:
    found = staged(tmp_path, rows=5, records=4, minimum=3)
    assert [s.rows for s in found.run.shards] == [4, 1]
    found.answer_all(0)
    drop(found, 1)
    found.finish()
    assert codes_of(found) == ["", "", "", "", codes.BELOW_MINIMUM]


class _Fate:
    """What becomes of the shards of one run, drawn by Hypothesis."""

    def __init__(self, draw: st.DataObject) -> None:
        self.draw = draw

    def settle(self, found: Desk, shard: Shard) -> None:
        kinds = self.draw.draw(
            st.lists(st.sampled_from("AFU."), min_size=shard.rows, max_size=shard.rows)
        )
        if self.draw.draw(st.sampled_from([False, False, False, True])):
            drop(found, shard.index)
            return
        make = {"A": answer, "F": refused, "U": expired}
        rows = found.rows_of(shard.index)
        lines = [make[k](r) for r, k in zip(rows, kinds, strict=True) if k in make]
        state = self.draw.draw(st.sampled_from([BatchState.COMPLETED, BatchState.EXPIRED]))
        found.end(shard.index, state, {f"f{shard.index}": jsonl(reversed(lines))})
        found.collect(shard.index)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=25),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(150, 2000),
    st.data(),
)
def test_every_row_comes_out_once_and_in_order_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[int],
    records: int,
    minimum: int,
    part_bytes: int,
    draw: st.DataObject,
) -> None:
    lines = [b"bad" if kind == 0 else request(f"t{n}") for n, kind in enumerate(kinds)]
    found = Desk(tmp_path_factory.getbasetemp(), make_run(limits(records, minimum=minimum)))
    found.part_bytes = part_bytes
    found.put_input(jsonl(lines))
    found.stage()
    fate = _Fate(draw)
    for _ in range(3):
        open_shards = [s for s in found.run.shards if s.state is ShardState.STAGED]
        for shard in open_shards:
            fate.settle(found, shard)
        again = [
            s.index
            for s in found.run.shards
            if s.state is ShardState.COLLECTED
            and not s.pooled
            and s.collected is not None
            and s.collected.unbilled
        ]
        if not again or not found.pool(*again).shards:
            break
    for shard in found.run.shards:
        if shard.state is ShardState.STAGED:
            drop(found, shard.index)
    results = found.finish().results
    out = found.results()
    assert [r["row"] for r in out] == list(range(len(kinds)))
    assert [r["custom_id"] for r in out] == [
        None if kind == 0 else f"t{n}" for n, kind in enumerate(kinds)
    ]
    assert results.completed + results.failed + results.expired == len(kinds)
    answered = sum(s.collected.answered for s in found.run.shards if s.collected)
    assert results.completed == answered, "no answer that was paid for is left out"
    assert sum(r["error"] is None for r in out) == answered


# ---------------------------------------------------------------- uploading, cleaning


def test_an_upload_belongs_to_one_ordinal_and_one_content(tmp_path: Path) -> None:
    found = staged(tmp_path)
    result = found.perform(TaskKind.UPLOAD, shard=1, ordinal=3)
    assert result == Uploaded("file-1-3")
    [(uri, submission)] = found.data.uploads  # type: ignore[attr-defined]
    assert uri == f"{STAGING}shards/00001.jsonl"
    assert submission == submission_id(found.run, found.run.shards[1], 3), "as its batch is named"
    digest = hashlib.sha256(found.store.objects[uri]).hexdigest()
    assert digest.startswith(submission.content_hash)


def test_a_shard_that_another_operator_staged_over_is_not_sent(tmp_path: Path) -> None:
    found = staged(tmp_path, rows=4)
    late = Desk(tmp_path, make_run(limits(4)), store=found.store)
    late.put_input(jsonl(request(f"new{n}", "NEW") for n in range(4)))
    late.stage()
    assert late.run.shards[0].sha256 != found.run.shards[0].sha256
    result = fault(found.perform(TaskKind.UPLOAD, shard=0, ordinal=1))
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.STAGING_UNAVAILABLE)
    assert f"{STAGING}shards/00000.jsonl" in result.message
    assert found.data.uploads == []  # type: ignore[attr-defined]


def test_no_batch_is_made_of_a_shard_that_is_staged_over_while_it_is_sent(tmp_path: Path) -> None:
    class Overtaken(BodyData):
        def upload(self, staging: ObjectStore, uri: str, run: Run, submission: SubmissionID) -> str:
            staging.put(uri, b"other prompts")
            return super().upload(staging, uri, run, submission)

    found = staged(tmp_path)
    found.data = Overtaken()
    result = fault(found.perform(TaskKind.UPLOAD, shard=0, ordinal=1))
    assert (result.kind, result.reason) == (FaultKind.RETRY, Reason.STAGING_UNAVAILABLE)


def test_cleaning_leaves_the_results_alone_and_can_be_done_twice(tmp_path: Path) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    found.finish()
    for _ in range(2):
        assert found.perform(TaskKind.CLEAN) == Cleaned()
        assert found.staged() == {}
    assert json.loads(found.store.objects[f"{OUTPUT}manifest.json"])
    assert len(found.results()) == 10


def test_cleaning_forgets_parts_that_nobody_finished_unless_the_place_is_anothers(
    tmp_path: Path,
) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    found.finish()
    names = ("results/part-00000.jsonl", "errors/part-00001.jsonl", "results/mine", "other/x")
    for name in names:
        found.store.writer(f"{OUTPUT}{name}")
    claim = found.store.objects[f"{OUTPUT}_run.json"]
    found.store.objects[f"{OUTPUT}_run.json"] = claim.replace(b"key0", b"key1")
    assert found.perform(TaskKind.CLEAN) == Cleaned()
    assert len(found.store.open_writers) == 4, "another run writes there now"
    found.store.objects[f"{OUTPUT}_run.json"] = claim
    assert found.perform(TaskKind.CLEAN) == Cleaned()
    assert [w.uri.removeprefix(OUTPUT) for w in found.store.open_writers] == [*names[2:]]


def test_an_output_place_that_cannot_be_tidied_does_not_keep_a_run_from_ending(
    tmp_path: Path,
) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        found.answer_all(shard)
    found.finish()

    def closed(_operation: str, uri: str) -> None:
        if uri.startswith(OUTPUT):
            raise Stalled(Reason.ACCESS_DENIED, "not any more")

    found.store.before = closed
    assert found.perform(TaskKind.CLEAN) == Cleaned()


def test_rows_that_a_batch_nobody_knows_may_hold_are_not_called_unbilled(tmp_path: Path) -> None:
    found = staged(tmp_path)
    for shard in range(3):
        drop(found, shard)
    found.run = replace(found.run, earlier=Earlier(asking=False, expected=True, strange=("b-7",)))
    found.finish()
    assert codes_of(found) == [codes.ANSWER_LOST] * 10
    said = [r["error"]["message"] for r in found.results()]
    assert all("(b-7)" in text and "not billed" not in text for text in said), said

"""Shards with more than one batch: the tasks use each paid answer once, and none is lost."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batchinference.model.batch import BatchFailure, BatchState
from batchinference.model.run import Collected, ShardState, SubmissionState
from batchinference.records import codes
from batchinference.records.index import unpack_rows
from batchinference.records.tails import tail_of
from unit.tasks.desk import NOW, STAGING, Desk, answer, expired, jsonl, limits, make_run, refused
from unit.tasks.desk import request as requested

ROWS = 4
COMPLETED, EXPIRED, CANCELLED = BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLED
NEVER = BatchFailure("invalid_file", "no such file")


def staged(path: Path, rows: int = ROWS, per_shard: int = ROWS) -> Desk:
    found = Desk(path, make_run(limits(per_shard)))
    found.put_input(jsonl(requested(f"t{n}") for n in range(rows)))
    found.stage()
    return found


def appear(
    found: Desk, state: BatchState, lines: bytes | None, *, hours: int = -1, shard: int = 0
) -> None:
    """A late batch of the shard ended; of an ordinal before, unless said otherwise."""
    changed = found.run.shards[shard]
    assert changed.last is not None
    name = f"late-{shard}-{len(changed.late)}"
    if lines is not None:
        found.data.files[name] = lines  # type: ignore[attr-defined]
    late = replace(
        changed.last,
        batch_id=name,
        batch_state=state,
        files=(name,),
        failure=None,
        state=SubmissionState.ENDED,
        accepted_at=NOW + timedelta(hours=hours),
    )
    changed = replace(changed, state=ShardState.ENDED, late=(*changed.late, late))
    found.run = found.run.with_shard(changed)


def classes(found: Desk, shard: int = 0) -> str:
    """One letter for each row: answered, failed, lost, or "." for unbilled."""
    lines = found.store.objects[f"{STAGING}answers/{shard:05d}.jsonl"].split(b"\n")[:-1]
    known = {t.row: t.kind.decode() for t in map(tail_of, lines)}
    left = set(unpack_rows(found.store.objects[f"{STAGING}answers/{shard:05d}.unbilled"]))
    assert not left & known.keys()
    return "".join(known.get(row, ".") for row in range(ROWS))


def collect(found: Desk, shard: int = 0) -> Collected:
    """Collect, as the operator notes it."""
    changed = found.collect(shard)
    late = tuple(replace(s, collected=True) for s in changed.late)
    found.run = found.run.with_shard(replace(changed, late=late))
    assert changed.collected is not None
    return changed.collected


TOGETHER = [
    (COMPLETED, [0, 1, 2, 3], COMPLETED, [0, 1, 2, 3], "AAAA", "answered twice"),
    (EXPIRED, [0, 1], COMPLETED, [0, 1, 2, 3], "AAAA", "what the newer one did not process"),
    (EXPIRED, [0, 1], CANCELLED, [2], "AAA.", "neither of them processed the last record"),
    (COMPLETED, [0, 1], EXPIRED, [1, 2], "AAAL", "missing from a completed batch stays lost"),
    (EXPIRED, [1, 2], COMPLETED, [0, 1], "AAAL", "whichever of the two it was"),
    (EXPIRED, [0], EXPIRED, None, "ALLL", "with a file gone, absence says nothing"),
]


@pytest.mark.parametrize(("state", "rows", "other", "late", "want", "reason"), TOGETHER)
def test_batches_that_ended_before_collecting_are_read_together(
    tmp_path: Path,
    state: BatchState,
    rows: list[int],
    other: BatchState,
    late: list[int] | None,
    want: str,
    reason: str,
) -> None:
    found = staged(tmp_path)
    found.end(0, state, {"own": jsonl(answer(n) for n in rows)})
    appear(found, other, None if late is None else jsonl(answer(n) for n in late))
    collected = collect(found)
    assert classes(found) == want, reason
    assert collected.answered == want.count("A")
    assert collected.input_tokens == 3 * want.count("A"), "the tokens of one answer for each"


@pytest.mark.parametrize(("state", "rows", "other", "late", "want", "reason"), TOGETHER)
def test_what_was_collected_before_is_kept_when_its_files_have_gone(
    tmp_path: Path,
    state: BatchState,
    rows: list[int],
    other: BatchState,
    late: list[int] | None,
    want: str,
    reason: str,
) -> None:
    found = staged(tmp_path)
    found.end(0, state, {"own": jsonl(answer(n) for n in rows)})
    collect(found)
    found.data.files.clear()  # type: ignore[attr-defined]
    appear(found, other, None if late is None else jsonl(answer(n) for n in late))
    collected = collect(found)
    assert classes(found) == want, reason
    assert collected.input_tokens == 3 * want.count("A")


@pytest.mark.parametrize(("hours", "text"), [(-1, "late"), (1, "own")])
def test_the_oldest_batch_has_the_first_word(tmp_path: Path, hours: int, text: str) -> None:
    found = staged(tmp_path)
    found.end(0, files={"own": jsonl(answer(n, "own") for n in range(ROWS))})
    shard = found.run.shards[0]
    found.run = found.run.with_shard(shard.with_last(accepted_at=NOW))
    appear(found, COMPLETED, jsonl(answer(n, "late") for n in range(ROWS)), hours=hours)
    assert collect(found).ignored == ROWS
    found.finish()
    said = [r["response"]["body"]["choices"][0]["message"]["content"] for r in found.results()]
    assert said == [f"{text} {n}" for n in range(ROWS)]


NEWEST = [
    (SubmissionState.FENCED, None, "..AA", "given up itself: it has no say"),
    (SubmissionState.REFUSED, None, "..AA", "put back, to be tried again"),
    (SubmissionState.REFUSED, NEVER, "FFAA", "refused for good"),
    (SubmissionState.VOID, replace(NEVER, quota=True), "..AA", "it failed for a quota"),
    (SubmissionState.VOID, NEVER, "FFAA", "it failed in validation"),
]


@pytest.mark.parametrize(("state", "failure", "want", "reason"), NEWEST)
def test_a_newest_submission_that_processed_nothing(
    tmp_path: Path, state: SubmissionState, failure: BatchFailure | None, want: str, reason: str
) -> None:
    found = staged(tmp_path)
    batch = BatchState.FAILED if state is SubmissionState.VOID else None
    found.end(0, batch, submission=state, failure=failure)
    appear(found, EXPIRED, jsonl([expired(0), answer(2), answer(3)]))
    assert collect(found).unbilled_code == (codes.BATCH_EXPIRED if "." in want else "")
    assert classes(found) == want, reason


def test_an_answer_replaces_an_error_of_the_other_batch(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, files={"own": jsonl([refused(0), refused(1), answer(2), answer(3)])})
    collect(found)
    appear(found, COMPLETED, jsonl([answer(0), refused(1), refused(2), refused(3)]))
    collect(found)
    assert classes(found) == "AFAA"


def test_a_record_that_went_on_and_was_answered_late_has_one_result(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, EXPIRED, {"own": jsonl([answer(0, "own"), answer(1, "own")])})
    collect(found)
    found.pool(0)
    found.end(1, files={"second": jsonl([refused(2), answer(3, "second")])})
    collect(found, 1)
    appear(found, COMPLETED, jsonl(answer(n, "late") for n in range(ROWS)))
    collect(found)
    found.finish()
    said = [r["response"]["body"]["choices"][0]["message"]["content"] for r in found.results()]
    assert said == ["own 0", "own 1", "late 2", "late 3"]
    listed = found.manifest()["submissions"]
    assert [(s["batchID"], s.get("late", False)) for s in listed] == [
        ("batch_0", False),
        ("late-0-0", True),
        ("batch_1", False),
    ]


def test_what_was_answered_late_does_not_go_again(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, EXPIRED, {"own": jsonl([answer(0)])})
    collect(found)
    found.pool(0)
    found.end(1, EXPIRED, {"second": jsonl([answer(1)])})
    collect(found, 1)
    found.run = found.run.with_shard(replace(found.run.shards[1], sources=(0,)))
    appear(found, EXPIRED, jsonl([answer(2)]))
    collect(found)
    pooled = found.pool(1)
    assert [found.rows_of(s.index) for s in pooled.shards] == [[3]]
    assert pooled.late == 1
    found.answer_all(2)
    found.finish()
    assert [r["error"] for r in found.results()] == [None] * ROWS


def test_a_shard_whose_records_were_pooled_anew_has_nothing_to_say(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, EXPIRED, {"own": jsonl([answer(0)])})
    collect(found)
    found.pool(0)
    dropped = replace(found.run.shards[1], state=ShardState.DROPPED, pooled=True)
    found.run = found.run.with_shard(dropped)
    appear(found, EXPIRED, jsonl([answer(1), answer(2)]))
    collect(found)
    found.finish()
    codes_of = [(r["error"] or {}).get("code") for r in found.results()]
    assert codes_of == [None, None, None, codes.BATCH_EXPIRED]


def test_nothing_is_left_to_pool_when_all_was_answered_late(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, EXPIRED, {"own": jsonl([answer(0)])})
    collect(found)
    found.pool(0)
    found.end(1, EXPIRED, {})
    collect(found, 1)
    appear(found, COMPLETED, jsonl(answer(n) for n in range(ROWS)))
    collect(found)
    assert found.pool(1).shards == ()

"""Collecting: every record of a shard is answered, failed, unbilled or lost, by protocol 6."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchinference.errors import Permanent, Retry
from batchinference.model.batch import BatchFailure, BatchState
from batchinference.model.run import Collected, ShardState, SubmissionState
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, ShardCollected, TaskFault, TaskKind
from batchinference.ports import ResultLine
from batchinference.records import codes
from batchinference.records.index import unpack_rows
from batchinference.records.tails import tail_of
from batchinference.tasks.collect import GONE_AFTER_S, STRANGE_FOR_S
from fakes.data import BodyData, decode_openai
from fakes.stores import Crash
from unit.tasks.desk import STAGING, Desk, answer, expired, jsonl, refused, request

ROWS = 5
ANSWERS = f"{STAGING}answers/00000.jsonl"
NOTE = f"{STAGING}answers/00000.json"


def staged(path: Path, rows: int = ROWS) -> Desk:
    found = Desk(path)
    found.put_input(jsonl(request(f"t{n}") for n in range(rows)))
    found.stage()
    return found


def answers(found: Desk) -> list[dict[str, Any]]:
    lines = found.store.objects[f"{STAGING}answers/00000.jsonl"].split(b"\n")[:-1]
    tails = [tail_of(line) for line in lines]
    assert [t.row for t in tails] == sorted({t.row for t in tails})
    return [{"kind": t.kind.decode(), **json.loads(b"{" + t.tail)} for t in tails]


def unbilled(found: Desk) -> list[int]:
    return list(unpack_rows(found.store.objects[f"{STAGING}answers/00000.unbilled"]))


def collect(found: Desk, state: BatchState, *files: bytes | None) -> Collected:
    found.end(0, state, {f"file-{n}": data for n, data in enumerate(files)})
    collected = found.collect(0).collected
    assert collected is not None
    assert collected.answered + collected.failed + collected.unbilled + collected.lost == ROWS
    assert len(unbilled(found)) == collected.unbilled
    assert len(answers(found)) == ROWS - collected.unbilled
    return collected


BROKEN = b'{"custom_id": "r00'
CUT = jsonl([{"custom_id": "r0000000004", "response": {"status_code": 200}}])[:50] + b"\n"
ECHO = b'{"modelInput":{"messages":[{"content":[{"text":"r0000000004"}]}]},"modelOutput":{"out'

CASES: list[tuple[str, BatchState, list[bytes | None], str, str]] = [
    ("everything answered, in any order", BatchState.COMPLETED,
     [jsonl(answer(n) for n in (3, 1, 4, 0, 2))], "AAAAA", ""),
    ("answers and errors come in two files", BatchState.COMPLETED,
     [jsonl([answer(0), answer(2), answer(4)]), jsonl([refused(3), refused(1)])], "AFAFA", ""),
    ("missing from a completed batch is lost, not unbilled", BatchState.COMPLETED,
     [jsonl([answer(0), answer(1)])], "AALLL", ""),
    ("a batch without any file at all", BatchState.COMPLETED, [], "LLLLL", ""),
    ("absent from an expired batch is unbilled", BatchState.EXPIRED,
     [jsonl([answer(0), answer(1)])], "AA...", codes.BATCH_EXPIRED),
    ("absent from a cancelled batch is unbilled", BatchState.CANCELLED, [],
     ".....", codes.BATCH_CANCELLED),
    ("absent from a partly completed batch is unbilled", BatchState.PARTIAL,
     [jsonl([refused(0), answer(4)])], "F...A", codes.NOT_PROCESSED),
    ("a line that says unbilled is unbilled even in a completed batch", BatchState.COMPLETED,
     [jsonl([answer(0), answer(1), answer(2), answer(3), expired(4)])], "AAAA.", codes.NOT_PROCESSED),
    ("explicit lines and absence mean the same", BatchState.EXPIRED,
     [jsonl([answer(0)]), jsonl([expired(1), expired(2)])], "A....", codes.BATCH_EXPIRED),
    ("with a file gone, absence says nothing", BatchState.EXPIRED,
     [None, jsonl([answer(0)])], "ALLLL", ""),
    ("with a file gone, explicit lines still count", BatchState.EXPIRED,
     [jsonl([expired(0), answer(1)]), None], ".ALLL", codes.BATCH_EXPIRED),
    ("with an illegible line, absence says nothing", BatchState.EXPIRED,
     [jsonl([answer(0), b"\xff\xfe garbage"])], "ALLLL", ""),
    ("an illegible line that shows its id loses that row alone", BatchState.EXPIRED,
     [jsonl([answer(0)]) + CUT], "A...L", codes.BATCH_EXPIRED),
    ("a cut line that repeats a text which looks like an id shows none", BatchState.EXPIRED,
     [jsonl([answer(0), answer(1), ECHO])], "AALLL", ""),
    ("a cut line with the id of a row that has its answer is another's", BatchState.EXPIRED,
     [jsonl([answer(4)]) + CUT], "LLLLA", ""),
    ("lines of nobody's ids may be anybody's answers", BatchState.EXPIRED,
     [jsonl([answer(0), {**answer(1), "custom_id": "R0000000001"}])], "ALLLL", ""),
    ("an illegible line with half an id loses every absent row", BatchState.CANCELLED,
     [jsonl([answer(0), BROKEN])], "ALLLL", ""),
    ("blank lines are nothing", BatchState.EXPIRED, [b"\n    \n" + jsonl([answer(0)]) + b"\r\n"],
     "A....", codes.BATCH_EXPIRED),
    ("a foreign id is ignored", BatchState.COMPLETED,
     [jsonl([answer(n) for n in range(5)] + [answer(77), {**answer(0), "custom_id": "x"}])],
     "AAAAA", ""),
    ("an answer is worth more than an error before it", BatchState.COMPLETED,
     [jsonl([refused(0), answer(0), *(answer(n) for n in range(1, 5))])], "AAAAA", ""),
    ("an answer is worth more than an error after it", BatchState.COMPLETED,
     [jsonl([*(answer(n) for n in range(5)), refused(0), expired(1)])], "AAAAA", ""),
    ("a failed batch that processed something leaves nothing unbilled", BatchState.FAILED,
     [jsonl([answer(0)])], "ALLLL", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "state", "files", "want", "code"), CASES, ids=[c[0] for c in CASES]
)
def test_every_record_gets_one_class(
    tmp_path: Path, reason: str, state: BatchState, files: list[bytes | None], want: str, code: str
) -> None:
    found = staged(tmp_path)
    collected = collect(found, state, *files)
    kinds = ["."] * ROWS
    for line in answers(found):
        kinds[line["row"]] = line["kind"]
    assert "".join(kinds) == want, reason
    assert collected.unbilled_code == code, reason
    assert [n for n, kind in enumerate(want) if kind == "."] == unbilled(found)
    assert collected.input_tokens == 3 * want.count("A")
    assert collected.output_tokens == 2 * want.count("A")
    for line in answers(found):
        if line["kind"] == "L":
            assert line["error"]["code"] == codes.ANSWER_LOST
            assert line["response"] is None
        elif line["kind"] == "A":
            assert line["error"] is None
            assert line["response"]["status_code"] == 200


COUNTED: list[tuple[int | None, BatchState, list[Any], str, str]] = [
    (2, BatchState.CANCELLED, [answer(0), answer(1)], "AA...", "as many as it counts"),
    (1, BatchState.CANCELLED, [answer(0), answer(1)], "AA...", "its count lags"),
    (None, BatchState.CANCELLED, [answer(0)], "A....", "nothing is known of its count"),
    (3, BatchState.CANCELLED, [answer(0)], "ALLLL", "two of its answers are not here"),
    (3, BatchState.EXPIRED, [answer(0), expired(1)], "ALLLL", "nor can its word be believed"),
    (3, BatchState.PARTIAL, [answer(0), refused(1), refused(2)], "AFF..", "it counts errors, too"),
    (5, BatchState.COMPLETED, [answer(n) for n in range(4)] + [expired(4)], "AAAA.",
     "a completed batch counts what it has worked through"),
]  # fmt: skip


@pytest.mark.parametrize(("answered", "state", "lines", "want", "reason"), COUNTED)
def test_absence_is_no_evidence_against_the_providers_own_count(
    tmp_path: Path,
    answered: int | None,
    state: BatchState,
    lines: list[Any],
    want: str,
    reason: str,
) -> None:
    found = staged(tmp_path)
    found.end(0, state, {"file": jsonl(lines)})
    found.run = found.run.with_shard(found.run.shards[0].with_last(answered=answered))
    found.collect(0)
    kinds = ["."] * ROWS
    for line in answers(found):
        kinds[line["row"]] = line["kind"]
    assert "".join(kinds) == want, reason


class Forgetful(BodyData):
    """Of a server that shows batches to their own account alone."""

    knows = True

    def shows(self, batch_id: str) -> bool:
        assert batch_id == "batch_0"
        return self.knows


PATIENCE: list[tuple[bytes | None, bool, float, FaultKind | None, str]] = [
    (None, True, 0, FaultKind.RETRY, "a gateway's bad minute"),
    (None, True, GONE_AFTER_S, None, "it is gone"),
    (None, False, GONE_AFTER_S, FaultKind.STALLED, "credentials of another account"),
    (None, False, STRANGE_FOR_S, None, "nobody changed them back"),
    (b"<html>\n<body>\n", True, 0, FaultKind.RETRY, "a web page in place of the file"),
    (b"<html>\n<body>\n", True, GONE_AFTER_S, None, "that is what the file has"),
]


@pytest.mark.parametrize(("file", "knows", "failing_s", "kind", "reason"), PATIENCE)
def test_answers_are_not_called_lost_at_the_first_word(
    tmp_path: Path,
    file: bytes | None,
    knows: bool,
    failing_s: int,
    kind: FaultKind | None,
    reason: str,
) -> None:
    found = staged(tmp_path)
    found.data = Forgetful()
    found.data.knows = knows
    found.end(0, BatchState.COMPLETED, {"file": file})
    result = found.perform(TaskKind.COLLECT, shard=0, ordinal=1, failing_s=failing_s)
    if kind is None:
        assert isinstance(result, ShardCollected), reason
        assert result.collected.lost == ROWS
        return
    assert isinstance(result, TaskFault), reason
    assert result.kind is kind
    assert not found.store.under(f"{STAGING}answers/")


def test_the_first_of_two_answers_wins_and_the_other_is_counted(tmp_path: Path) -> None:
    found = staged(tmp_path)
    collected = collect(
        found,
        BatchState.COMPLETED,
        jsonl([answer(0, "first"), answer(0, "second"), *(answer(n) for n in range(1, 5))]),
        jsonl([answer(1, "third", (100, 100))]),
    )
    first = answers(found)[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert first == "first 0"
    assert collected.ignored == 2
    assert collected.input_tokens == 15, "what is ignored is not counted"


def test_an_error_of_the_model_keeps_its_status_and_body(tmp_path: Path) -> None:
    found = staged(tmp_path)
    collect(found, BatchState.COMPLETED, jsonl(refused(n) for n in range(5)))
    line = answers(found)[2]
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["code"] == "context_length_exceeded"
    assert line["error"] == {"code": "HTTP400", "message": "refused"}


VERDICTS = [
    (SubmissionState.REFUSED, BatchFailure("ValidationException", "no such model"), "FFFFF"),
    (SubmissionState.VOID, BatchFailure("invalid_json_line", "line 7"), "FFFFF"),
    (SubmissionState.VOID, None, "FFFFF"),
    (SubmissionState.VOID, BatchFailure("token_limit_exceeded", "full", quota=True), "....."),
    (SubmissionState.VOID, BatchFailure("file_not_found", "race", transient=True), "....."),
]


@pytest.mark.parametrize(("state", "failure", "want"), VERDICTS)
def test_a_batch_that_failed_as_a_whole_is_judged_without_asking_the_provider(
    tmp_path: Path, state: SubmissionState, failure: BatchFailure | None, want: str
) -> None:
    found = staged(tmp_path)
    found.end(0, BatchState.FAILED, {"gone": None}, submission=state, failure=failure)
    collected = found.collect(0).collected
    assert collected is not None
    assert (collected.failed, collected.unbilled) == (want.count("F"), want.count("."))
    for line in answers(found):
        assert line["error"]["code"] == codes.BATCH_FAILED
        if failure is not None:
            assert failure.code in line["error"]["message"]
            assert failure.message in line["error"]["message"]


def test_collecting_again_after_a_crash_leaves_the_same_bytes(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, BatchState.EXPIRED, {"a": jsonl([answer(3), answer(0), expired(2)])})
    unheard = found.run
    first = found.collect(0)
    bytes_before = found.staged()
    found.run = unheard
    assert found.collect(0) == first
    assert found.staged() == bytes_before


def dying(found: Desk, stop: int) -> bool:
    """Collect and die before that call on staging; whether it came to it."""
    calls = 0

    def before(_operation: str, _uri: str) -> None:
        nonlocal calls
        calls += 1
        if calls > stop:
            raise Crash

    found.store.before = before
    try:
        found.perform(TaskKind.COLLECT, shard=0, ordinal=1)
    except Crash:
        return True
    finally:
        found.store.before = None
    return False


@pytest.mark.parametrize("late", [False, True], ids=["alone", "with-a-late-batch"])
def test_answers_in_staging_win_over_files_that_are_gone_by_now(tmp_path: Path, late: bool) -> None:
    found = staged(tmp_path)
    found.end(0, BatchState.EXPIRED, {"a": jsonl([answer(3), answer(0), expired(2)])})
    if late:
        found.collect(0)
        shard = found.run.shards[0]
        assert shard.last is not None
        other = replace(shard.last, batch_id="late", files=("b",), batch_state=BatchState.COMPLETED)
        found.data.files["b"] = jsonl([answer(n) for n in range(5)])  # type: ignore[attr-defined]
        ended = replace(shard, state=ShardState.ENDED, late=(other,))
        found.run = found.run.with_shard(ended)
    before, run = dict(found.store.objects), found.run
    want = found.collect(0).collected
    bytes_wanted = found.staged()
    held = found.data.files.copy()  # type: ignore[attr-defined]

    def again(stop: int) -> bool:
        found.store.objects.clear()
        found.store.objects.update(before)
        found.run = run
        found.data.files.update(held)  # type: ignore[attr-defined]
        return dying(found, stop)

    stop = kept = 0
    while again(stop):
        stop += 1
        has_answers = found.store.objects.get(ANSWERS) != before.get(ANSWERS)
        found.data.files.clear()  # type: ignore[attr-defined]
        collected = found.collect(0).collected
        if has_answers:
            kept += 1
            assert collected == want
            assert found.staged() == bytes_wanted
        else:
            assert collected is not None
            assert collected.lost, "they were lost before anything was staged"
    assert stop > 5
    again(stop)  # to the end, and nobody hears of it
    found.data.files.clear()  # type: ignore[attr-defined]
    assert found.collect(0).collected == want
    assert found.staged() == bytes_wanted
    assert kept == 0, "the answers are the last thing that is written"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: found.store.objects.pop(NOTE), "no note"),
        (lambda found: found.store.objects.pop(ANSWERS), "no answers"),
        (
            lambda found: found.store.objects.update({ANSWERS: found.store.objects[ANSWERS][:-9]}),
            "cut short",
        ),
        (
            lambda found: found.store.objects.update(
                {ANSWERS: found.store.objects[ANSWERS].replace(b"fine", b"FINE")}
            ),
            "of another collection",
        ),
        (
            lambda found: found.end(0, BatchState.EXPIRED, {"other": jsonl([answer(1)])}),
            "of another batch",
        ),
    ],
)
def test_only_whole_answers_of_the_very_batches_count_as_staged(
    tmp_path: Path, change: Callable[[Desk], Any], reason: str
) -> None:
    found = staged(tmp_path)
    found.end(0, BatchState.EXPIRED, {"a": jsonl([answer(1)])})
    unheard = found.run
    found.collect(0)
    want = found.staged()
    found.run = unheard
    change(found)
    found.collect(0)
    assert found.staged()[ANSWERS] == want[ANSWERS], reason
    assert b'"answered":1' in found.staged()[NOTE]


def test_a_passing_failure_of_the_provider_leaves_nothing_half_written(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, files={"a": jsonl(answer(n) for n in range(5))})
    before = found.staged()

    class Flaky(BodyData):
        def open_results(self, files):  # type: ignore[no-untyped-def]
            yield jsonl([answer(0)])
            raise Retry(Reason.PROVIDER_UNAVAILABLE, "cut short")

    found.data = Flaky()
    result = found.perform(TaskKind.COLLECT, shard=0, ordinal=1)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.RETRY, Reason.PROVIDER_UNAVAILABLE)
    assert found.staged() == before


def test_a_refusal_of_the_provider_is_passed_on(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, files={"a": jsonl(answer(n) for n in range(5))})

    class Closed(BodyData):
        def open_results(self, files):  # type: ignore[no-untyped-def]
            raise Permanent(Reason.ACCESS_DENIED, "no")

    found.data = Closed()
    result = found.perform(TaskKind.COLLECT, shard=0, ordinal=1)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.PERMANENT, Reason.ACCESS_DENIED)


def test_a_shard_that_was_never_submitted_has_nothing_to_collect(tmp_path: Path) -> None:
    result = staged(tmp_path).perform(TaskKind.COLLECT, shard=0, ordinal=1)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.PERMANENT, codes.NOT_SUBMITTED)


def test_a_write_that_fails_half_way_is_not_seen(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0, files={"a": jsonl(answer(n) for n in range(5))})

    def full(operation: str, uri: str) -> None:
        if operation == "commit":
            raise OSError(errno.ENOSPC, "No space left on device")

    found.store.before = full
    result = found.perform(TaskKind.COLLECT, shard=0, ordinal=1)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.WAITING, Reason.DISK_FULL)
    assert ANSWERS not in found.staged()


def test_a_raw_body_is_passed_on_byte_by_byte_unless_it_is_no_text(tmp_path: Path) -> None:
    odd = b'{"a":1.00, "b" : 123456789012345678901234567890}'

    def decode(line: bytes) -> ResultLine:
        found = decode_openai(line)
        raw = b'{"a":"\xff"}' if found.wire_id.endswith("1") else odd
        return msgspec.structs.replace(found, body=msgspec.Raw(raw))

    found = staged(tmp_path)
    found.data = BodyData(decoder=decode)
    collected = collect(found, BatchState.COMPLETED, jsonl(answer(n) for n in range(5)))
    assert (collected.answered, collected.lost) == (4, 1)
    assert odd in found.store.objects[f"{STAGING}answers/00000.jsonl"]


def test_staging_that_is_gone_needs_a_person(tmp_path: Path) -> None:
    found = staged(tmp_path)
    found.end(0)
    del found.store.objects[f"{STAGING}shards/00000.idx"]
    result = found.perform(TaskKind.COLLECT, shard=0, ordinal=1)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.STAGING_UNAVAILABLE)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.integers(0, 33), st.sampled_from("AFUB"))),
    st.sampled_from(list(BatchState)),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
)
def test_no_file_makes_a_record_vanish_or_appear_twice(
    tmp_path_factory: pytest.TempPathFactory,
    rows: int,
    lines: list[tuple[int, str]],
    state: BatchState,
    chunk: int,
    chance: random.Random,
) -> None:
    found = staged(tmp_path_factory.getbasetemp(), rows)
    found.data.chunk = chunk  # type: ignore[attr-defined]
    make = {"A": answer, "F": refused, "U": expired, "B": lambda n: b"broken %d" % n}
    found.end(0, state, {"f": jsonl(make[kind](row) for row, kind in lines)})
    collected = found.collect(0).collected
    assert collected is not None
    known = {a["row"] for a in answers(found)}
    assert known.isdisjoint(unbilled(found))
    assert known | set(unbilled(found)) == set(range(rows))
    answered = {row for row, kind in lines if kind == "A" and row < rows}
    assert collected.answered == len(answered)
    said_unbilled = {row for row, kind in lines if kind == "U"}
    is_evidence = state.may_leave_unbilled and not any(kind == "B" for _, kind in lines)
    for row in unbilled(found):
        assert row in said_unbilled or is_evidence

"""The first look and the output claim: who may write where (protocol 3)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from batchinference.errors import Stalled
from batchinference.model.status import Reason
from batchinference.model.work import (
    Admitted,
    Cleaned,
    EarlierEnd,
    FaultKind,
    Holder,
    TaskFault,
    TaskKind,
)
from batchinference.ports import Claim
from batchinference.tasks.places import PrefixPlace
from batchinference.tasks.sources import StoreSource
from fakes.prices import price
from fakes.stores import Crash, MemoryStore
from unit.tasks.desk import (
    INPUT,
    NOW,
    OUTPUT,
    Desk,
    answer,
    jsonl,
    make_run,
    refused,
    request,
)

OURS = Claim("key0123456789abcdef", "tag0123", "install", "ml/triage")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    found = Desk(tmp_path)
    found.put_input(jsonl([request("a")]))
    return found


def admitted(desk: Desk) -> Admitted:
    result = desk.perform(TaskKind.ADMIT)
    assert isinstance(result, Admitted), result
    return result


def claimed_by(desk: Desk, claim: Claim, manifest_of: str | None = None) -> None:
    assert PrefixPlace(desk.store, OUTPUT).claim(claim) is None
    if manifest_of is not None:
        PrefixPlace(desk.store, OUTPUT).write_manifest({"runKey": manifest_of})
        desk.store.objects[f"{OUTPUT}results/part-00000.jsonl"] = b"theirs"


def test_the_first_look_claims_the_place(desk: Desk) -> None:
    result = admitted(desk)
    assert result.holder is None
    assert (result.snapshot.objects, result.snapshot.source) == (1, INPUT)
    assert result.snapshot.size == len(desk.store.objects[INPUT])
    assert PrefixPlace(desk.store, OUTPUT).holds(OURS)
    assert json.loads(desk.store.objects[f"{OUTPUT}_run.json"])["runKey"] == OURS.run_key


def test_claiming_again_is_the_same_claim(desk: Desk) -> None:
    assert admitted(desk) == admitted(desk)


@pytest.mark.parametrize("uri", ["s3://data/in/none.jsonl", "s3://data/empty/"])
def test_a_missing_input_is_named_and_claims_nothing(desk: Desk, uri: str) -> None:
    desk.source = StoreSource(desk.store, uri)
    result = desk.perform(TaskKind.ADMIT)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.INPUT_NOT_FOUND)
    assert uri in result.message
    assert desk.store.under(OUTPUT) == {}


def test_a_missing_bucket_needs_a_person(desk: Desk) -> None:
    desk.store.missing_buckets.add("s3://data")
    result = desk.perform(TaskKind.ADMIT)
    assert isinstance(result, TaskFault)
    assert (result.kind, result.reason) == (FaultKind.STALLED, Reason.BUCKET_NOT_FOUND)


def test_the_fingerprint_changes_with_any_object(desk: Desk) -> None:
    first = admitted(desk).snapshot.fingerprint
    desk.put_input(jsonl([request("b")]))
    assert admitted(desk).snapshot.fingerprint != first


HOLDERS = [
    ("another run", replace(OURS, run_key="k2", run_tag="t2", description="ml/other"), None,
     Holder("k2", "t2", "install", description="ml/other")),
    ("another run that ended", replace(OURS, run_key="k2", run_tag="t2"), "k2",
     Holder("k2", "t2", "install", finished=True, description="ml/triage", final=True)),
    ("this very run of another installation", replace(OURS, installation="other", run_tag="t3"),
     None, Holder(OURS.run_key, "t3", "other", description="ml/triage")),
    ("this very run, finished elsewhere", replace(OURS, installation="other"), OURS.run_key,
     Holder(OURS.run_key, "tag0123", "other", finished=True, description="ml/triage", final=True)),
    ("this very run, finished here", OURS, OURS.run_key,
     Holder(OURS.run_key, "tag0123", "install", finished=True, description="ml/triage", final=True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "claim", "manifest_of", "want"), HOLDERS, ids=[h[0] for h in HOLDERS]
)
def test_a_held_place_says_whose_it_is(
    desk: Desk, reason: str, claim: Claim, manifest_of: str | None, want: Holder
) -> None:
    claimed_by(desk, claim, manifest_of)
    before = desk.store.under(OUTPUT)
    assert admitted(desk).holder == want, reason
    assert desk.store.under(OUTPUT) == before


def test_what_results_cost_is_found_again_with_them(desk: Desk) -> None:
    desk.put_input(jsonl([request("a")]))
    desk.run = replace(desk.run, price=price())
    desk.stage()
    desk.end(0, files={"out": jsonl([answer(0)])})
    desk.collect(0)
    desk.finish()
    desk.run = make_run()
    found = admitted(desk).earlier
    assert found is not None
    assert (found.results.currency, found.results.cost) == ("USD", "0.000011")
    assert (found.results.on_demand_cost, found.results.estimated) == ("0.000022", "")


@pytest.mark.parametrize("installation", ["other", "install"])
def test_results_of_this_very_run_are_found_again(desk: Desk, installation: str) -> None:
    desk.put_input(jsonl([request("a"), request("b"), b"not JSON"]))
    desk.run = replace(desk.run, installation=installation, start_time=NOW)
    desk.stage()
    desk.end(0, files={"out": jsonl([answer(0), refused(1)])})
    desk.collect(0)
    finished = desk.finish().results
    assert (finished.completed, finished.failed) == (1, 2)
    desk.run = make_run()
    result = admitted(desk)
    assert result.holder is not None
    assert result.holder.installation == installation
    assert result.earlier == EarlierEnd(finished, 3, 1, started_at=NOW, ended_at=NOW)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema": 9, "runKey": "key0123456789abcdef"}'])
def test_a_manifest_that_is_not_understood_adopts_nothing(desk: Desk, data: bytes) -> None:
    claimed_by(desk, replace(OURS, installation="other"), OURS.run_key)
    desk.store.objects[f"{OUTPUT}manifest.json"] = data
    assert admitted(desk).earlier is None


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("results/part-00000.jsonl", b"theirs"),
        ("errors/x", b""),
        ("manifest.json", b"{}"),
        ("_run.json", b"not ours"),
    ],
)
def test_files_of_nobody_we_know_are_not_overwritten(desk: Desk, name: str, data: bytes) -> None:
    desk.store.objects[OUTPUT + name] = data
    holder = admitted(desk).holder
    assert holder is not None
    assert holder.run_key == ""
    assert holder.description
    assert desk.store.under(OUTPUT) == {OUTPUT + name: data}


def test_other_files_beside_the_results_are_no_conflict(desk: Desk) -> None:
    desk.store.objects[f"{OUTPUT}README.txt"] = b"x"
    assert admitted(desk).holder is None


def test_of_two_that_claim_at_one_time_one_wins(desk: Desk) -> None:
    other = replace(OURS, run_key="k2", run_tag="t2")

    def before(operation: str, uri: str) -> None:
        if operation == "put" and uri.endswith("_run.json"):
            desk.store.before = None
            claimed_by(desk, other)

    desk.store.before = before
    holder = admitted(desk).holder
    assert holder is not None
    assert holder.run_key == "k2"


def test_a_claim_that_another_journal_of_this_run_made_tells_of_an_earlier_life(
    desk: Desk,
) -> None:
    claimed_by(desk, replace(OURS, since="2025-12-31T00:00:00Z"))
    before = desk.store.under(OUTPUT)
    result = admitted(desk)
    assert (result.holder, result.earlier, result.claimed_before) == (None, None, True)
    assert not result.had_answers
    assert desk.store.under(OUTPUT) == before, "the next look finds it, too"
    assert PrefixPlace(desk.store, OUTPUT).holds(OURS)


def test_a_claim_of_this_journal_tells_of_no_earlier_life(desk: Desk) -> None:
    assert not admitted(desk).claimed_before
    assert not admitted(desk).claimed_before


def test_partial_results_of_this_very_run_are_no_end(desk: Desk) -> None:
    claimed_by(desk, OURS)
    manifest = {"schema": 1, "runKey": OURS.run_key, "final": False}
    desk.store.objects[f"{OUTPUT}manifest.json"] = json.dumps(manifest).encode()
    result = admitted(desk)
    assert (result.holder, result.claimed_before) == (None, True)
    assert result.had_answers, "so that it submitted is known, whatever is listed of it"


# ---------------------------------------------------------------- replacing


ENDED = replace(OURS, run_key="k2", run_tag="t2", description="ml/other")
ENDED_HOLDER = Holder("k2", "t2", "install", finished=True, description="ml/other", final=True)


def replaced(desk: Desk, holder: Holder = ENDED_HOLDER) -> Holder | None:
    result = desk.perform(TaskKind.ADMIT, replaces=holder)
    assert isinstance(result, Admitted), result
    return result.holder


def finish_theirs(desk: Desk, **members: object) -> None:
    claimed_by(desk, ENDED)
    desk.store.objects[f"{OUTPUT}results/part-00000.jsonl"] = b"theirs"
    desk.store.objects[f"{OUTPUT}errors/part-00000.jsonl"] = b"theirs"
    manifest = json.dumps({"runKey": "k2", **members})
    desk.store.objects[f"{OUTPUT}manifest.json"] = manifest.encode()


def test_nothing_is_replaced_unless_it_is_asked_for(desk: Desk) -> None:
    finish_theirs(desk)
    before = desk.store.under(OUTPUT)
    assert admitted(desk).holder == ENDED_HOLDER
    assert desk.store.under(OUTPUT) == before


def test_the_place_of_an_ended_run_is_taken_over_whole(desk: Desk) -> None:
    finish_theirs(desk)
    assert replaced(desk) is None
    assert list(desk.store.under(OUTPUT)) == [f"{OUTPUT}_run.json"]
    assert PrefixPlace(desk.store, OUTPUT).holds(OURS)
    assert not json.loads(desk.store.objects[f"{OUTPUT}_run.json"])["replaces"]


def test_results_that_may_still_be_gone_on_with_say_so(desk: Desk) -> None:
    finish_theirs(desk, final=False)
    holder = admitted(desk).holder
    assert holder == replace(ENDED_HOLDER, final=False)


@pytest.mark.parametrize(
    ("reason", "claim"),
    [
        ("another run took it over before", replace(ENDED, run_key="k3", run_tag="t3")),
        ("the same run has begun again", replace(ENDED, run_tag="t9")),
        ("another installation has it by now", replace(ENDED, installation="other")),
    ],
)
def test_a_place_that_changed_hands_meanwhile_is_left_alone(
    desk: Desk, reason: str, claim: Claim
) -> None:
    finish_theirs(desk)

    def before(operation: str, uri: str) -> None:
        if operation == "head" and uri.endswith("_run.json"):
            desk.store.before = None
            document = {
                "runKey": claim.run_key,
                "runTag": claim.run_tag,
                "installation": claim.installation,
            }
            desk.store.objects[uri] = json.dumps(document).encode()

    desk.store.before = before
    assert replaced(desk) == ENDED_HOLDER, reason
    assert f"{OUTPUT}results/part-00000.jsonl" in desk.store.objects
    assert not PrefixPlace(desk.store, OUTPUT).holds(OURS)


@pytest.mark.parametrize("operation", ["read", "put_over"])
@pytest.mark.parametrize("gone", [True, False])
def test_a_claim_that_changes_at_the_last_moment_is_not_overwritten(
    desk: Desk, operation: str, gone: bool
) -> None:
    finish_theirs(desk)
    theirs = replace(ENDED, run_key="k3", run_tag="t3")

    def before(called: str, uri: str) -> None:
        if called == operation and uri.endswith("_run.json"):
            desk.store.before = None
            desk.store.delete(uri)
            if not gone:
                document = {"runKey": "k3", "runTag": "t3", "installation": "install"}
                desk.store.objects[uri] = json.dumps(document).encode()

    desk.store.before = before
    assert replaced(desk) == ENDED_HOLDER
    assert PrefixPlace(desk.store, OUTPUT).holds(theirs) is not gone
    assert f"{OUTPUT}manifest.json" in desk.store.objects


def test_a_claim_that_is_gone_or_foreign_is_no_holder(desk: Desk) -> None:
    place = PrefixPlace(desk.store, OUTPUT)
    assert not place.replace(OURS, ENDED_HOLDER)
    desk.store.objects[f"{OUTPUT}_run.json"] = b"not ours"
    assert not place.replace(OURS, ENDED_HOLDER)


def test_a_store_without_conditional_writes_replaces_nothing(desk: Desk) -> None:
    finish_theirs(desk)
    before = desk.store.under(OUTPUT)

    class Plain:
        def __getattr__(self, name: str) -> object:
            if name == "put_over":
                raise AttributeError(name)
            return getattr(desk.store, name)

    with pytest.raises(Stalled, match="on condition of what is there"):
        PrefixPlace(Plain(), OUTPUT).replace(OURS, ENDED_HOLDER)  # type: ignore[arg-type]
    assert desk.store.under(OUTPUT) == before


def test_our_own_finished_results_are_never_replaced(desk: Desk) -> None:
    claimed_by(desk, OURS, OURS.run_key)
    holder = replaced(desk)
    assert holder is not None
    assert holder.finished


def test_a_takeover_that_was_cut_short_is_finished_by_the_next_look(desk: Desk) -> None:
    """And at no moment stands a manifest whose parts are not all there."""
    finish_theirs(desk)
    state = dict(desk.store.objects)
    theirs = [f"{OUTPUT}results/part-00000.jsonl", f"{OUTPUT}errors/part-00000.jsonl"]
    calls = 0

    def run(stop: int | None) -> None:
        nonlocal calls
        calls = 0

        def before(operation: str, uri: str) -> None:
            nonlocal calls
            if f"{OUTPUT}manifest.json" in desk.store.objects:
                assert all(part in desk.store.objects for part in theirs), "a reader trusts these"
            calls += 1
            if stop is not None and calls > stop:
                raise Crash

        desk.store.before = before
        assert replaced(desk) is None

    run(None)
    assert calls > 8
    for stop in range(calls):
        desk.store.objects = dict(state)
        with pytest.raises(Crash):
            run(stop)
        desk.store.before = None
        assert replaced(desk) is None
        assert list(desk.store.under(OUTPUT)) == [f"{OUTPUT}_run.json"]
        assert not json.loads(desk.store.objects[f"{OUTPUT}_run.json"])["replaces"]


# ---------------------------------------------------------------- releasing


def test_a_run_that_never_submitted_leaves_nothing(desk: Desk) -> None:
    admitted(desk)
    desk.stage()
    for _ in range(2):
        assert desk.perform(TaskKind.RELEASE) == Cleaned()
        assert desk.store.under(OUTPUT) == {}
        assert desk.staged() == {}


def test_releasing_touches_no_claim_of_others_and_no_results(tmp_path: Path) -> None:
    for claim, manifest in ((ENDED, None), (OURS, OURS.run_key)):
        desk = Desk(tmp_path, store=MemoryStore())
        claimed_by(desk, claim, manifest)
        before = desk.store.under(OUTPUT)
        desk.perform(TaskKind.RELEASE)
        assert desk.store.under(OUTPUT) == before


# ---------------------------------------------------------------- handing over

ELSEWHERE = replace(OURS, installation="other", run_tag="their-tag")
HELD_ELSEWHERE = Holder(OURS.run_key, "their-tag", "other", description="ml/triage")


def test_a_run_that_is_handed_over_keeps_the_tag_that_the_claim_names(desk: Desk) -> None:
    claimed_by(desk, ELSEWHERE)
    desk.store.objects[f"{OUTPUT}results/part-00000.jsonl"] = b"theirs, not finished"
    result = desk.perform(TaskKind.ADMIT, replaces=HELD_ELSEWHERE)
    assert isinstance(result, Admitted), result
    assert (result.holder, result.claimed_before, result.tag) == (None, True, "their-tag")
    claim = json.loads(desk.store.objects[f"{OUTPUT}_run.json"])
    assert (claim["installation"], claim["runTag"]) == (OURS.installation, "their-tag")
    assert f"{OUTPUT}results/part-00000.jsonl" in desk.store.objects
    again = admitted(desk)
    assert (again.claimed_before, again.tag) == (True, "their-tag"), "should the answer be lost"
    desk.run = replace(desk.run, tag="their-tag")
    assert not admitted(desk).claimed_before


def test_nothing_is_handed_over_that_changed_hands_meanwhile(desk: Desk) -> None:
    claimed_by(desk, replace(ELSEWHERE, installation="third"))
    result = desk.perform(TaskKind.ADMIT, replaces=HELD_ELSEWHERE)
    assert isinstance(result, Admitted), result
    assert result.holder == replace(HELD_ELSEWHERE, installation="third")


@pytest.mark.parametrize(
    ("since", "is_later"),
    [
        ("2026-01-01T00:00:00.5Z", True),
        ("2026-01-01T00:00:00Z", False),
        ("2025-12-31T23:59:59Z", False),
        ("", False),
        ("tomorrow", False),
    ],
)
def test_a_place_tells_whether_a_later_life_has_it(desk: Desk, since: str, is_later: bool) -> None:
    ours = replace(OURS, since="2026-01-01T00:00:00Z")
    place = PrefixPlace(desk.store, OUTPUT)
    assert not place.has_later(ours), "nobody has it"
    claimed_by(desk, replace(OURS, since=since))
    assert place.has_later(ours) is is_later
    assert not place.has_later(replace(ours, installation="other"))
    assert not place.has_later(OURS), "it is not known when that began"


@pytest.mark.parametrize(
    ("claim", "taken_by"),
    [
        (None, ""),
        (OURS, ""),
        (ELSEWHERE, "other"),
        (replace(ELSEWHERE, run_key="k2"), ""),
    ],
)
def test_a_place_tells_who_has_this_very_run(
    desk: Desk, claim: Claim | None, taken_by: str
) -> None:
    if claim is not None:
        claimed_by(desk, claim)
    assert PrefixPlace(desk.store, OUTPUT).taken_by(OURS) == taken_by


BY_ANOTHER = {"installation": "other"}
BY_A_LATER_LIFE = {"since": "2126-01-01T00:00:00.5Z"}


@pytest.mark.parametrize("now", [BY_ANOTHER, BY_A_LATER_LIFE])
@pytest.mark.parametrize("kind", [TaskKind.CLEAN, TaskKind.RELEASE])
def test_what_another_one_has_by_now_is_not_deleted(
    desk: Desk, kind: TaskKind, now: dict[str, str]
) -> None:
    admitted(desk)
    desk.stage()
    claimed = json.loads(desk.store.objects[f"{OUTPUT}_run.json"])
    taken = json.dumps({**claimed, **now}).encode()
    desk.store.objects[f"{OUTPUT}_run.json"] = taken
    staged, deleted = desk.staged(), list(desk.data.deleted)
    assert desk.perform(kind) == Cleaned()
    assert desk.staged() == staged
    assert desk.data.deleted == deleted
    assert desk.store.objects[f"{OUTPUT}_run.json"] == taken

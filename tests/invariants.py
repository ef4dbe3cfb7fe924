"""What may never be seen, of objects, of journals, and of both against the provider's truth.

Every function returns what is wrong as sentences, so that a simulation can collect them at any
moment without disturbing who was just writing. Called after every write, and at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from enum import StrEnum
from itertools import combinations
from typing import Any

from batchinference.model.codec import encode
from batchinference.model.run import (
    Ending,
    Run,
    RunPhase,
    Shard,
    ShardState,
    Submission,
    SubmissionState,
)
from fakes.server import ProviderServer, StoredBatch, row_of

Body = Mapping[str, Any]


class KStatus(StrEnum):
    """What kstatus, and so Helm, Flux and Argo CD's waiters, make of an object."""

    TERMINATING = "Terminating"
    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"


def kstatus(body: Body) -> KStatus:
    """The rules of kstatus for a custom resource, in its order."""
    meta, status = body["metadata"], body.get("status") or {}
    if meta.get("deletionTimestamp"):
        return KStatus.TERMINATING
    observed = status.get("observedGeneration")
    if observed is not None and observed != meta.get("generation"):
        return KStatus.IN_PROGRESS
    conditions = _conditions(body)
    if conditions.get("Reconciling", {}).get("status") == "True":
        return KStatus.IN_PROGRESS
    if conditions.get("Stalled", {}).get("status") == "True":
        return KStatus.FAILED
    if "Ready" in conditions:
        ready = conditions["Ready"]["status"] == "True"
        return KStatus.CURRENT if ready else KStatus.IN_PROGRESS
    return KStatus.CURRENT


def is_true(body: Body, kind: str) -> bool:
    """Whether the condition of that type is True."""
    return bool(_conditions(body).get(kind, {}).get("status") == "True")


def is_terminal(body: Body) -> bool:
    """Whether the object says that its run is over."""
    return is_true(body, "Complete") or is_true(body, "Failed")


def rests(body: Body) -> bool:
    """Whether the job waits for a person for a reason that no calm world takes away."""
    if is_terminal(body):
        return False
    stalled = _conditions(body).get("Stalled", {})
    waits = stalled.get("status") == "True" and stalled.get("reason") in {
        "JournalLost",  # of a provider that can't tell what it has of the run
        "ProviderChanged",
    }
    return waits or bool(body["spec"].get("suspend"))


def _conditions(body: Body) -> dict[str, Mapping[str, Any]]:
    listed = (body.get("status") or {}).get("conditions") or []
    return {c["type"]: c for c in listed}


# ---------------------------------------------------------------- one object


def object_problems(body: Body) -> list[str]:
    """What is wrong with one job as it stands."""
    meta, status = body["metadata"], body.get("status") or {}
    name = f"{meta['name']}/{meta['uid']}"
    found = [
        f"{name}: {one} and {other} are both True"
        for one, other in (("Complete", "Failed"), ("Reconciling", "Stalled"))
        if is_true(body, one) and is_true(body, other)
    ]
    if status.get("observedGeneration", -1) > meta["generation"]:
        found.append(f"{name}: observedGeneration is ahead of generation")
    listed = status.get("conditions") or []
    if len({c["type"] for c in listed}) != len(listed):
        found.append(f"{name}: a condition type stands twice")
    for condition in listed:
        if not condition.get("reason"):
            found.append(f"{name}: {condition['type']} has no reason")
        if condition.get("observedGeneration", 0) > meta["generation"]:
            found.append(f"{name}: {condition['type']} observed a generation that is not there yet")
    if "Ready" in _conditions(body):
        found.append(f"{name}: publishes Ready, which kstatus would read as failure in a queue")
    if is_true(body, "Failed") and not is_true(body, "Stalled"):
        found.append(f"{name}: Failed without Stalled: kstatus would call it Current")
    if status.get("completionTime") and not is_terminal(body):
        found.append(f"{name}: has a completionTime and is not terminal")
    return found


def object_step_problems(before: Body, after: Body) -> list[str]:
    """What may not happen between two versions of the same object (same uid)."""
    name = f"{after['metadata']['name']}/{after['metadata']['uid']}"
    old, new = _conditions(before), _conditions(after)
    found = [
        f"{name}: {kind}=True was taken back"
        for kind in ("Complete", "Failed")
        if is_true(before, kind) and not is_true(after, kind)
    ]
    if is_terminal(before):
        was = (before["status"]).get("completionTime")
        now = (after["status"]).get("completionTime")
        if was != now:
            found.append(f"{name}: completionTime changed from {was} to {now}")
    key = (before.get("status") or {}).get("runKey")
    if key and (after.get("status") or {}).get("runKey") != key:
        found.append(f"{name}: its run key changed: one uid has one run")
    for kind, condition in new.items():
        earlier = old.get(kind)
        if earlier is None or earlier["status"] != condition["status"]:
            continue
        if earlier["lastTransitionTime"] != condition["lastTransitionTime"]:
            found.append(f"{name}: {kind} moved lastTransitionTime without a transition")
    found += [f"{name}: condition {kind} disappeared" for kind in old if kind not in new]
    return found


# ---------------------------------------------------------------- one journal


_NEEDS = {
    ShardState.CLAIMED: {SubmissionState.CLAIMED},
    ShardState.UNKNOWN: {SubmissionState.CLAIMED},
    ShardState.FENCING: {SubmissionState.CLAIMED},
    ShardState.ENDED: {SubmissionState.ENDED, SubmissionState.VOID, SubmissionState.REFUSED},
}

_CLOSED = {SubmissionState.ENDED, SubmissionState.VOID, SubmissionState.REFUSED}


def journal_problems(run: Run) -> list[str]:
    """What is wrong with one journal as it stands."""
    found = [problem for shard in run.shards for problem in _shard_problems(run, shard)]
    ids = [u.batch_id for s in run.shards for u in s.made if u.batch_id]
    if len(set(ids)) != len(ids):
        found.append(f"{run.key}: a batch id stands at two submissions")
    if [s.index for s in run.shards] != list(range(len(run.shards))):
        found.append(f"{run.key}: shards are not numbered in order")
    if run.is_over and run.verdict is None:
        found.append(f"{run.key}: {run.phase.value} without a verdict")
    if run.is_over and any(s.state.is_live for s in run.shards):
        found.append(f"{run.key}: over with a live batch")
    if run.phase is RunPhase.ENDED:
        size = len(json.dumps(encode(run)))
        if size > 2048:
            found.append(f"{run.key}: its receipt takes {size} bytes")
    if run.phase in {RunPhase.RUNNING, RunPhase.FINISHING} and not run.output.claimed:
        found.append(f"{run.key}: pays without holding its output place")
    return found


def _shard_problems(run: Run, shard: Shard) -> list[str]:
    name = f"{run.key} shard {shard.index}"
    found = []
    ordinals = [s.ordinal for s in shard.submissions]
    if ordinals != sorted(set(ordinals)):
        found.append(f"{name}: ordinals do not rise: {ordinals}")
    if any(o <= run.ordinal_floor for o in ordinals):
        found.append(f"{name}: ordinal below those of an earlier life ({run.ordinal_floor})")
    needs = _NEEDS.get(shard.state)
    answered = shard.state is ShardState.ENDED and any(
        u.state is SubmissionState.ENDED for u in shard.late
    )
    lacks = needs is not None and (shard.last is None or shard.last.state not in needs)
    if lacks and not answered:
        state = shard.last.state.value if shard.last else "no submission"
        found.append(f"{name}: {shard.state.value} with {state}")
    if shard.state is ShardState.SUBMITTED and not shard.live:
        found.append(f"{name}: submitted, and the provider has nothing of it")
    if any(not u.batch_id for u in (*shard.live, *shard.late)):
        found.append(f"{name}: a batch without an id")
    if shard.last and shard.last.state is SubmissionState.CLAIMED and not shard.last.request:
        found.append(f"{name}: a claim without its create request")
    earlier = [s for s in shard.submissions[:-1] if s.state is SubmissionState.CLAIMED]
    if earlier:
        found.append(f"{name}: an earlier ordinal is still open")
    is_collected = shard.state is ShardState.COLLECTED
    if is_collected != (shard.collected is not None) and (is_collected or not shard.late):
        found.append(f"{name}: {shard.state.value} and collected is {shard.collected}")
    if shard.collected is not None:
        c = shard.collected
        if c.answered + c.failed + c.unbilled + c.lost != shard.rows:
            found.append(f"{name}: {shard.rows} records and {c} do not add up")
    return found


def journal_step_problems(before: Run, after: Run) -> list[str]:
    """What may not happen between two versions of one journal."""
    key = after.key
    found = []
    if (before.tag, before.installation) != (after.tag, after.installation):
        found.append(f"{key}: the run tag changed")
    if _highest(after) < _highest(before):
        found.append(f"{key}: ordinals restarted at {_highest(after)} after {_highest(before)}")
    if _accepted(before) and not _accepted(after):
        found.append(f"{key}: forgot that something was submitted")
    if _accepted(before) and after.phase in {RunPhase.ADMITTING, RunPhase.STAGING}:
        found.append(f"{key}: went back to {after.phase.value} after submitting")
    ended = {RunPhase.CLEANING, RunPhase.ENDED}
    if before.phase in ended and before.was_submitted:
        if after.phase not in ended:
            found.append(f"{key}: an end was taken back: {after.phase.value}")
        if before.verdict != after.verdict and not _shortened(before, after):
            found.append(f"{key}: the verdict changed after the end")
        if before.completion_time != after.completion_time:
            found.append(f"{key}: the completion time changed after the end")
    for old, new in zip(before.shards, after.shards, strict=False):
        found += _shard_step_problems(key, old, new)
    return found


def _accepted(run: Run) -> bool:
    """Whether something was accepted for certain; an open claim may still turn out refused."""
    open_or_refused = {SubmissionState.CLAIMED, SubmissionState.REFUSED}
    made = [u.state for s in run.shards for u in s.made]
    return run.submitted or any(state not in open_or_refused for state in made)


def _shortened(before: Run, after: Run) -> bool:
    if before.verdict is None or after.verdict is None:
        return False
    same = (before.verdict.ending, before.verdict.reason)
    return same == (after.verdict.ending, after.verdict.reason)


def _highest(run: Run) -> int:
    ordinals = [u.ordinal for s in run.shards for u in s.made]
    return max([run.ordinal_floor, *ordinals])


def _may_be_forgotten(was: Submission, new: Shard) -> bool:
    """What was certainly refused; and of what came to nothing all but the newest."""
    if was.state is SubmissionState.VOID:
        voids = [s for s in new.submissions if s.state is SubmissionState.VOID]
        return len(voids) > 2 and all(s.ordinal > was.ordinal for s in voids)
    return was.state is SubmissionState.REFUSED


def _shard_step_problems(key: str, old: Shard, new: Shard) -> list[str]:
    found = []
    kept = {s.ordinal: s for s in new.submissions}
    for was in old.submissions:
        now = kept.get(was.ordinal)
        if now is None:
            if not _may_be_forgotten(was, new) and old.sha256 == new.sha256:
                found.append(f"{key} shard {old.index}: forgot ordinal {was.ordinal}")
            continue
        if was.batch_id and now.batch_id != was.batch_id:
            found.append(f"{key} shard {old.index} #{was.ordinal}: its batch id changed")
        if now.state is SubmissionState.CLAIMED and now.request != was.request:
            found.append(f"{key} shard {old.index} #{was.ordinal}: the claimed request changed")
        if now.state is SubmissionState.CLAIMED and now.input_ref != was.input_ref:
            found.append(f"{key} shard {old.index} #{was.ordinal}: the claimed input changed")
        if was.state in _CLOSED and now.state is not was.state:
            found.append(f"{key} shard {old.index} #{was.ordinal}: reopened {was.state.value}")
    known = {s.batch_id: s for s in new.late}
    for was in old.late:
        now = known.get(was.batch_id)
        if now is None:
            found.append(f"{key} shard {old.index}: forgot the late batch {was.batch_id}")
        elif was.state in _CLOSED and now.state is not was.state:
            found.append(f"{key} shard {old.index}: reopened the late batch {was.batch_id}")
    return found


# ---------------------------------------------------------------- both against each other


def agreement_problems(body: Body, run: Run) -> list[str]:
    """Whether the status says what the journal holds, once everything is quiet."""
    name = f"{body['metadata']['name']}/{body['metadata']['uid']}"
    status = body.get("status") or {}
    found = []
    if status.get("runKey") != run.key:
        found.append(f"{name}: runKey is {status.get('runKey')}, the journal's {run.key}")
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        found.append(f"{name}: its newest generation was never observed")
    ending = run.verdict.ending if run.is_over and run.verdict else None
    if is_true(body, "Complete") != (ending is Ending.SUCCEEDED):
        found.append(f"{name}: Complete does not say what the journal holds: {ending}")
    if is_true(body, "Failed") != (ending in {Ending.FAILED, Ending.CANCELLED}):
        found.append(f"{name}: Failed does not say what the journal holds: {ending}")
    if ending is not None and not status.get("completionTime"):
        found.append(f"{name}: terminal without completionTime")
    submitted = _conditions(body).get("Submitted", {}).get("status")
    if run.was_submitted and submitted == "False":
        found.append(f"{name}: Submitted=False although something was submitted")
    return found


def provider_problems(servers: Iterable[ProviderServer]) -> list[str]:
    """Double submissions and double bills, by the servers' own books."""
    found = []
    for server in servers:
        found += server.violations
        for (tag, shard, ordinal), batches in server.accepted().items():
            if sum(not b.doubled for b in batches) > 1:
                ids = [b.id for b in batches]
                found.append(f"{tag} shard {shard} #{ordinal} was accepted {len(ids)} times: {ids}")
    return found


def billing_problems(server: ProviderServer, now: datetime) -> list[str]:
    """Records that were in fact billed more than once."""
    excused = {frozenset(excuse.batch_ids) for excuse in server.excused}
    found = []
    for (_, asked), batches in server.bills(now).items():
        ids = [b.id for b in batches if not b.doubled]
        if not all(frozenset(pair) in excused for pair in combinations(ids, 2)):
            found.append(f"record {asked!r} was billed {len(ids)} times: {ids}")
    return found


def unpaid_problems(name: str, records: Sequence[str], server: ProviderServer) -> list[str]:
    """A run that says that nothing was ever submitted, against the server's books."""
    paid = {asked for batch in server.batches.values() for asked in batch.contents.values()}
    billed = sorted(paid & set(records))
    return [f"{name}: says that nothing was submitted, and {billed} were accepted"] * bool(billed)


def manifest_problems(
    name: str,
    manifest: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    errors: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Whether a manifest counts what the parts hold, and the errors are the failed results."""
    found = []
    counts = manifest["counts"]
    answered = sum(line.get("error") is None for line in results)
    if (counts["total"], counts["completed"]) != (len(results), answered):
        found.append(f"{name}: {answered} of {len(results)} were answered; the manifest: {counts}")
    failed = [line["row"] for line in results if line.get("error") is not None]
    if [line["row"] for line in errors] != failed:
        found.append(f"{name}: failed rows {failed}, and errors of {[e['row'] for e in errors]}")
    return found


def result_problems(
    run: Run,
    records: Sequence[str],
    results: Sequence[Mapping[str, Any]],
    server: ProviderServer,
    now: datetime,
    journaled: AbstractSet[str],
) -> list[str]:
    """The results of a finished run against its input and against what was paid. Of a run whose
    journal was lost, batches that match nothing are left to people, who were told of them, in the
    end by the errors of the records that they may hold.

    Args:
        run: the journal.
        records: the input's contents in order.
        results: the lines of the result parts in order.
        server: whose books tell what was billed.
        now: the time of the books.
        journaled: ids of all batches that a journal knew of while its run went on.
    """
    name = run.owner.name
    found = []
    rows = [line.get("row") for line in results]
    if rows != list(range(len(records))):
        found.append(f"{name}: results are of rows {rows}, the input has {len(records)} records")
    bills = server.bills(now)
    told = run.earlier.strange if run.earlier else ()
    for line in results:
        row = line.get("row")
        answered = line.get("error") is None
        paid = bills.get((server.whose(run.tag), records[int(row or 0)]), [])
        good = [b for b in paid if _answers(b, int(row or 0))]
        known = [b for b in good if not server.was_hidden(b, run.completion_time)]
        known = [b for b in known if not b.doubled or b.id in journaled]
        said = str((line.get("error") or {}).get("message"))
        known = [b for b in known if b.id not in told and b.id not in said]
        if answered:
            content = _answer_text(line)
            expected = [f"answer of {b.id} to {records[int(row or 0)]}" for b in good]
            if content not in expected:
                found.append(f"{name} row {row}: answered {content!r}, the books say {expected}")
        elif known:
            found.append(
                f"{name} row {row}: was paid for in {[b.id for b in known]} and its answer is "
                f"missing: {line.get('error')}"
            )
    return found


def _answers(batch: StoredBatch, row: int) -> bool:
    """Whether the batch has a good answer to give for that row."""
    held = [r for r in batch.rows if row_of(r) == row and r not in batch.error_rows]
    return any(batch.has_line(r) for r in held)


def _answer_text(line: Mapping[str, Any]) -> str:
    body = (line.get("response") or {}).get("body") or {}
    choices = body.get("choices") or [{}]
    return str(choices[0].get("message", {}).get("content", ""))

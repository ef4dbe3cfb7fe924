"""What must be true in the end, whatever happened: the sandbox's books against the results."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from crash.jobs import NAMESPACE, Given
from stack import OPERATOR_NAMESPACE
from team import Team

_JOB_NAME = re.compile(r"-([0-9a-f]{20})-s(\d+)-o(\d+)-[0-9a-f]+$")


@dataclass
class Tally:
    """What happened and what came of it.

    Attributes:
        kills: processes that were killed, by kind.
        beside: what else was done, by kind.
        expected: submissions, one per shard.
        accepted: batches that the providers accepted and began to work on.
        void: batches that they accepted and refused afterwards, with nothing processed or billed.
        settled: submissions whose outcome was unknown and that were shown not to have happened.
        billed: records that the providers answered.
        problems: what was wrong; empty when nothing was paid twice or lost.
        without: what could not be played here, and why.
    """

    kills: Counter[str] = field(default_factory=Counter)
    beside: Counter[str] = field(default_factory=Counter)
    jobs: int = 0
    expected: int = 0
    accepted: int = 0
    void: int = 0
    settled: int = 0
    records_in: int = 0
    records_out: int = 0
    billed: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The counts, for people."""
        return [
            f"{self.kills.total()} kills in {self.seconds:.0f} s: {_listed(self.kills)}",
            f"beside them: {_listed(self.beside)}",
            *(f"not played here: {what}" for what in self.without),
            f"jobs: {self.jobs}",
            (
                f"submissions: {self.expected} expected, {self.accepted} accepted and worked on; "
                f"{self.void} accepted and void; {self.settled} settled as never made"
            ),
            f"records: {self.records_in} in, {self.records_out} out, {self.billed} paid for",
            *(f"WRONG: {problem}" for problem in self.problems),
            "nothing was paid twice, nothing is missing" if not self.problems else "",
        ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items()))


_DEFECTS = (
    "can't be reconciled",
    "can't be folded in",
    "can't be worked on",
    "ended in an unforeseen error",
)
"""What the operator logs of its own defects, and outlives."""


def defects(log: str) -> list[str]:
    """Lines of the operator's log that tell of a defect; the first of each kind."""
    lines = log.splitlines()
    firsts = (next((line for line in lines if said in line), None) for said in _DEFECTS)
    return [f"the operator met a defect: {line}" for line in firsts if line is not None]


def balance(team: Team, given: list[Given], tally: Tally) -> None:
    """Fill in the counts and the problems. Every job has ended."""
    made = _batches(team)
    for job in given:
        body = team.get(job.name)
        status = (body or {}).get("status", {})
        if status.get("state") != "Succeeded":
            tally.problems.append(f"{job.name}: {json.dumps(status.get('conditions'))}")
            continue
        key = status["runKey"]
        _balance_run(job, made.get(team.tag_of(key), []), tally)
        lines = _results(team, job)
        tally.records_in += job.records
        tally.records_out += len(lines)
        if [line["custom_id"] for line in lines] != [f"r{n}" for n in range(job.records)]:
            tally.problems.append(f"{job.name}: the results are not those of the input, in order")
        failed = [line["custom_id"] for line in lines if line["error"] is not None]
        if failed:
            tally.problems.append(f"{job.name}: without an answer: {failed}")
    tally.jobs = len(given)


@dataclass(frozen=True, slots=True)
class _Batch:
    shard: int
    ordinal: int
    answered: int
    status: str


def _balance_run(job: Given, batches: list[_Batch], tally: Tally) -> None:
    """One run: each ordinal accepted once, each shard worked on once, each record billed once."""
    times = Counter((b.shard, b.ordinal) for b in batches)
    void = [b for b in batches if b.status.lower() == "failed" and b.answered == 0]
    live = Counter(b.shard for b in batches if b not in void)
    billed = sum(b.answered for b in batches)
    tally.expected += job.shards
    tally.accepted += live.total()
    tally.void += len(void)
    tally.billed += billed
    newest = {shard: max(b.ordinal for b in batches if b.shard == shard) for shard in live}
    tally.settled += sum(newest.values()) - len(batches)
    if times and max(times.values()) > 1:
        tally.problems.append(f"{job.name}: accepted twice, by (shard, ordinal): {dict(times)}")
    if live != dict.fromkeys(range(job.shards), 1):
        tally.problems.append(f"{job.name}: batches by shard: {dict(live)}")
    if billed != job.records:
        tally.problems.append(f"{job.name}: {billed} of {job.records} records were paid for")


def _batches(team: Team) -> dict[str, list[_Batch]]:
    """Every batch that was ever accepted, by the run tag it carries."""
    state, found = team.control.state(), dict[str, list[_Batch]]()
    for made in state["openai"]["submissions"]:
        carried = made["metadata"]
        found.setdefault(carried["batchinference_run"], []).append(
            _Batch(
                int(carried["batchinference_shard"]),
                int(carried["batchinference_ordinal"]),
                made["completed"],
                made["status"],
            )
        )
    for made in state["bedrock"]["submissions"]:
        named = _JOB_NAME.search(made["jobName"])
        assert named is not None, made["jobName"]
        found.setdefault(named[1], []).append(
            _Batch(int(named[2]), int(named[3]), made["succeeded"], made["status"])
        )
    return found


def _results(team: Team, job: Given) -> list[dict[str, Any]]:
    if job.tiny:
        found = team.stack.get("configmap", job.name, NAMESPACE)
        assert found is not None, job.name
        text = found["data"]["results.jsonl"].encode()
    else:
        text = b"".join(team.read(part["uri"]) for part in team.manifest(job.name)["results"])
    return [json.loads(line) for line in text.splitlines()]


def left_behind(team: Team) -> list[str]:
    """What a run should have cleaned up and did not: staging, journals that are not receipts."""
    staged = [uri for p in ("openai", "bedrock") for uri in team.keys(_staging(p))]
    listed = team.stack.control_plane.read(
        f"api/v1/namespaces/{OPERATOR_NAMESPACE}/configmaps?labelSelector=batchinference.dev%2Fjournal"
    )
    assert listed is not None
    unended = [
        item["metadata"]["name"]
        for item in listed["items"]
        if item["metadata"]["labels"]["batchinference.dev/journal"] != "ended"
    ]
    return [*staged, *unended]


def _staging(provider: str) -> str:
    return f"s3://team-data/staging/{provider}/{NAMESPACE}/"

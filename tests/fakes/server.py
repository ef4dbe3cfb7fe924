"""A provider's server in memory: files, batches that move in virtual time, answers and the bill.

It keeps the truth that no client sees: which records every batch held, which were processed (and
so billed), how often a submission was accepted. State is a function of time, so it needs no timers
and survives whoever dies.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from batchinference.model.batch import BatchFailure, BatchLimit, BatchState, SubmissionID
from batchinference.model.run import Run


class Fate(StrEnum):
    """What becomes of a batch that nobody cancels."""

    COMPLETE = "complete"
    EXPIRE = "expire"  # ends before everything was processed
    PARTIAL = "partial"  # Bedrock's word for the same
    LOST = "lost"  # completes, and its files are gone
    GAPS = "gaps"  # completes, and its files lack lines
    QUOTA = "quota"  # accepted, then failed with token_limit_exceeded
    TRANSIENT = "transient"  # accepted, then failed, and the same input passes another time
    INVALID = "invalid"  # accepted, then refused in validation for good
    LARGE = "large"  # accepted, then refused in validation: it holds more than the server takes


_REFUSED = {Fate.QUOTA, Fate.INVALID, Fate.TRANSIENT, Fate.LARGE}


@dataclass
class StoredFile:
    """An uploaded input."""

    data: bytes
    uploaded_at: datetime
    deleted_at: datetime | None = None


@dataclass
class StoredBatch:
    """A batch as the server has it.

    Attributes:
        visible_at: when listings begin to show it.
        rows: record ids in the order of their processing; empty when the input was gone.
        doubled: the second of two that nobody asked for.
        sent_at: when the client began to send its create call.
    """

    id: str
    request: Mapping[str, Any]
    submission: SubmissionID | None
    input_ref: str
    committed_at: datetime
    visible_at: datetime
    fate: Fate
    valid_at: datetime
    end_at: datetime
    rows: tuple[str, ...] = ()
    contents: Mapping[str, str] = field(default_factory=dict)
    error_rows: frozenset[str] = frozenset()
    stop_share: float = 1.0
    expiry_lines: bool = True
    cancels: list[datetime] = field(default_factory=list)
    cancelled_end: datetime | None = None
    vanishes_at: datetime | None = None
    files_gone: bool = False
    missing_input: bool = False
    doubled: bool = False
    most: int | None = None
    sent_at: datetime | None = None

    @property
    def processed_whole(self) -> bool:
        return self.fate in {Fate.COMPLETE, Fate.LOST, Fate.GAPS}

    def has_line(self, row: str) -> bool:
        """Whether its files hold the answer to a record that it processed."""
        if self.files_gone:
            return False
        cut_short = self.cancelled_end is not None and self.cancelled_end < self.end_at
        return self.fate is not Fate.GAPS or cut_short or row not in self.rows[::2]

    def failed_in_validation(self) -> bool:
        return self.missing_input or self.fate in _REFUSED

    def processed_by(self, now: datetime) -> tuple[str, ...]:
        """The records that were processed, and so billed, by then."""
        if self.failed_in_validation() or now <= self.valid_at:
            return ()
        until = min(now, self.cancelled_end or self.end_at, self.end_at)
        if until <= self.valid_at:
            return ()
        if until >= self.end_at and self.processed_whole:
            return self.rows
        share = (until - self.valid_at) / (self.end_at - self.valid_at)
        if not self.processed_whole:
            share = min(share, 1.0) * self.stop_share
        return self.rows[: int(len(self.rows) * min(share, 1.0))]

    def state_at(self, now: datetime) -> BatchState:
        """Where it stands at that time."""
        if self.cancels and self.cancelled_end is not None and self.cancelled_end < self.end_at:
            if now >= self.cancelled_end:
                done = self.processed_by(self.cancelled_end)
                whole = bool(self.rows) and len(done) == len(self.rows)
                return BatchState.COMPLETED if whole else BatchState.CANCELLED
            if now >= self.cancels[0]:
                return BatchState.CANCELLING
        if now < self.valid_at:
            return BatchState.VALIDATING
        if self.failed_in_validation():
            return BatchState.FAILED
        if now < self.end_at:
            return BatchState.IN_PROGRESS
        if self.fate is Fate.EXPIRE:
            return BatchState.EXPIRED
        return BatchState.PARTIAL if self.fate is Fate.PARTIAL else BatchState.COMPLETED

    def ended_at(self, now: datetime) -> datetime | None:
        if not self.state_at(now).is_over:
            return None
        if self.cancelled_end is not None and self.cancelled_end < self.end_at:
            return self.cancelled_end
        return self.valid_at if self.failed_in_validation() else self.end_at

    def failure(self) -> BatchFailure | None:
        if self.missing_input:
            return BatchFailure("invalid_file", "the input file does not exist")
        return {
            Fate.QUOTA: BatchFailure("token_limit_exceeded", "enqueued token limit", quota=True),
            Fate.TRANSIENT: BatchFailure("not_visible_yet", "try again", transient=True),
            Fate.INVALID: BatchFailure("invalid_request", "validation refused the file"),
            Fate.LARGE: BatchFailure(
                "too_many_tasks", "too many lines", exceeds=BatchLimit.RECORDS, most=self.most
            ),
        }.get(self.fate)

    def could_bill(self, row: str, now: datetime) -> bool:
        """Whether that record was billed by it, or still could be."""
        if not self.state_at(now).is_over:
            return row in self.rows
        return row in self.processed_by(now)


@dataclass
class Habits:
    """How a server behaves: seconds, and probabilities of what becomes of a batch.

    Attributes:
        validate_s, work_s: how long these take, at most.
        file_lag_s: how much later than its end a batch names its files.
        list_lag_s: how late listings show a new batch, at most.
        stale_s: how old the state is that a batch is shown in, at most; a batch that is younger
            than that may be denied.
        replay_s: how long a client token finds its batch; 0 = tokens mean nothing.
        fates: what becomes of batches, with weights.
        error_share: the share of records that get an error for an answer.
        most_rows: a batch with more records fails in validation.
        names_limit: whether it says how many they may be.
    """

    validate_s: float = 10.0
    work_s: float = 300.0
    cancel_s: float = 20.0
    file_lag_s: float = 0.0
    list_lag_s: float = 0.0
    stale_s: float = 0.0
    replay_s: float = 0.0
    fates: tuple[tuple[Fate, float], ...] = ((Fate.COMPLETE, 1.0),)
    error_share: float = 0.0
    vanish_share: float = 0.0
    page_size: int = 100
    echoes: bool = True
    most_rows: int | None = None
    names_limit: bool = True


@dataclass(frozen=True)
class Excuse:
    """A double bill that nobody could help: listings hid the first batch for too long."""

    problem: str
    tag: str
    batch_ids: tuple[str, str]
    visible_at: datetime


NOTICED = timedelta(seconds=120)
"""What a listing shows is known to the operator by then, unless it is down."""


class ProviderServer:
    """One account's server.

    Attributes:
        outage: calls get no answer, and nothing reaches the server.
        locked_out: every call is told that its credentials are rejected.
        lists_partly: a listing can't be followed behind its first page.
        on_commit: told of every batch that was made.
        may_ask_again: runs with other tags may ask the same. If not, a record is the same record
            under any tag, and no run gets by under a second one.
        violations: what must never happen, as it was seen at the moment of a commit.
        excused: the same where the list lag passed the settle time; they must be reported.
    """

    def __init__(
        self, account: str, habits: Habits | None = None, *, seed: int = 0, settle_s: float = 0.0
    ) -> None:
        self.account = account
        self.habits = habits or Habits()
        self.outage = False
        self.locked_out = False
        self.lists_partly = False
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, StoredBatch] = {}
        self.may_ask_again = True
        self.on_commit: Callable[[StoredBatch], None] | None = None
        self.violations: list[str] = []
        self.excused: list[Excuse] = []
        self.calls: dict[str, int] = {}
        self.tokens: dict[str, tuple[str, datetime, str]] = {}
        self._random = random.Random(seed)
        self._settle_s = settle_s
        self._serial = 0

    # ---- files

    def upload(self, data: bytes, now: datetime, hint: str = "") -> str:
        self._serial += 1
        ref = f"file-{self.account}-{self._serial}{hint}"
        self.files[ref] = StoredFile(data, now)
        return ref

    def store_at(self, ref: str, data: bytes, now: datetime) -> str:
        """An upload to a place that the client chose, as on S3."""
        self.files[ref] = StoredFile(data, now)
        return ref

    def has_file(self, ref: str) -> bool:
        return ref in self.files and self.files[ref].deleted_at is None

    def delete_file(self, ref: str, now: datetime) -> None:
        if self.has_file(ref):
            self.files[ref].deleted_at = now

    def files_of(self, run: Run) -> list[str]:
        """The inputs of a run that are still there, those of no claim included."""
        named = {u.input_ref for s in run.shards for u in s.submissions}
        return [
            ref
            for ref in self.files
            if self.has_file(ref)
            and (ref in named or ref.endswith(f"-{run.key[:6]}") or f"/{run.key}/" in ref)
        ]

    # ---- batches

    def commit(
        self,
        request: Mapping[str, Any],
        submission: SubmissionID | None,
        input_ref: str,
        now: datetime,
        *,
        token: str = "",
        fate: Fate | None = None,
        doubled: bool = False,
        sent_at: datetime | None = None,
    ) -> StoredBatch | None:
        """Accept a create request; a token replays. None = the token is of another request."""
        canonical = json.dumps(request, sort_keys=True, default=str)
        if token and self.habits.replay_s:
            known = self.tokens.get(token)
            if known and now - known[1] < timedelta(seconds=self.habits.replay_s):
                return self.batches[known[0]] if known[2] == canonical else None
        batch = self._make(request, submission, input_ref, now, fate)
        batch.doubled = doubled
        batch.sent_at = sent_at
        self._judge(batch, now)
        self.batches[batch.id] = batch
        if self.on_commit is not None:
            self.on_commit(batch)
        if token:
            self.tokens[token] = (batch.id, now, canonical)
        return batch

    def _make(
        self,
        request: Mapping[str, Any],
        submission: SubmissionID | None,
        input_ref: str,
        now: datetime,
        fate: Fate | None,
    ) -> StoredBatch:
        rnd, habits = self._random, self.habits
        self._serial += 1
        valid_at = now + _s(habits.validate_s * (0.1 + 0.9 * rnd.random()))
        end_at = valid_at + _s(habits.work_s * (0.1 + 0.9 * rnd.random()))
        lines = self._lines(input_ref)
        rows = list(lines)
        rnd.shuffle(rows)
        weights = [weight for _, weight in habits.fates]
        drawn = fate or rnd.choices([f for f, _ in habits.fates], weights)[0]
        most = habits.most_rows
        if most is not None and len(rows) > most:
            drawn = Fate.LARGE
        return StoredBatch(
            id=f"batch-{self.account}-{self._serial}",
            request=dict(request),
            submission=submission,
            input_ref=input_ref,
            committed_at=now,
            visible_at=now + _s(habits.list_lag_s * rnd.random()),
            fate=drawn,
            valid_at=valid_at,
            end_at=end_at,
            rows=tuple(rows),
            contents=lines,
            error_rows=frozenset(r for r in rows if rnd.random() < habits.error_share),
            stop_share=rnd.random(),
            expiry_lines=rnd.random() < 0.5,
            files_gone=drawn is Fate.LOST,
            missing_input=not self.has_file(input_ref),
            most=most if habits.names_limit else None,
            vanishes_at=end_at + _s(5) if rnd.random() < habits.vanish_share else None,
        )

    def _lines(self, input_ref: str) -> dict[str, str]:
        if not self.has_file(input_ref):
            return {}
        found = {}
        for line in self.files[input_ref].data.splitlines():
            record = json.loads(line)
            found[record["custom_id"]] = record_content(record)
        return found

    def _judge(self, new: StoredBatch, now: datetime) -> None:
        """Note a submission that was accepted twice, and records that could be billed twice."""
        mine = new.submission
        if mine is None:
            return
        for old in self.batches.values():
            theirs = old.submission
            if theirs is None or self.whose(theirs.tag) != self.whose(mine.tag):
                continue
            if old.doubled or new.doubled:
                continue  # what the provider does twice by itself can't be prevented
            same = theirs.tag == mine.tag
            same = same and (theirs.shard, theirs.ordinal) == (mine.shard, mine.ordinal)
            if same:
                self.violations.append(f"{mine} was accepted twice: {old.id} and {new.id}")
            asked = {old.contents[r] for r in old.rows if old.could_bill(r, now)}
            twice = [r for r in new.rows if new.contents[r] in asked]
            if not twice:
                continue
            problem = (
                f"records {sorted(twice)[:5]} of {mine.tag} went out in {new.id} "
                f"({mine.shard}/{mine.ordinal}) while {old.id} "
                f"({theirs.shard}/{theirs.ordinal}, {old.state_at(now).value}) could bill them"
            )
            # A batch that listings hid for longer than the settle time could not be known, nor
            # what followed from the last look before it was shown.
            shown_for = now - old.visible_at
            if self.hides(old) and shown_for <= 3 * _s(self._settle_s) and not same:
                excuse = Excuse(problem, mine.tag, (old.id, new.id), old.visible_at)
                self.excused.append(excuse)
            else:
                self.violations.append(problem)

    def hides(self, batch: StoredBatch) -> bool:
        """Whether listings show it later than a client can be expected to wait for."""
        return batch.visible_at - batch.committed_at > _s(self._settle_s)

    def was_hidden(self, batch: StoredBatch, until: datetime | None) -> bool:
        """Whether nobody had the time to find out about it by then."""
        return until is not None and self.hides(batch) and batch.visible_at + NOTICED > until

    def cancel(self, batch: StoredBatch, now: datetime) -> bool:
        """Ask for its end; False when it is over already."""
        if batch.state_at(now).is_over:
            return False
        if not batch.cancels:
            batch.cancelled_end = now + _s(self.habits.cancel_s * self._random.random())
        batch.cancels.append(now)
        return True

    def listed(self, now: datetime) -> list[StoredBatch]:
        """What a listing shows, newest first."""
        shown = [b for b in self.batches.values() if b.visible_at <= now]
        shown = [b for b in shown if b.vanishes_at is None or b.vanishes_at > now]
        return sorted(shown, key=lambda b: (b.committed_at, b.id), reverse=True)

    def lookup(self, batch_id: str, now: datetime) -> StoredBatch | None:
        found = self.batches.get(batch_id)
        if found is None or (found.vanishes_at is not None and found.vanishes_at <= now):
            return None
        return found

    def accepted(self) -> dict[tuple[str, int, int], list[StoredBatch]]:
        """Accepted submissions by (tag, shard, ordinal)."""
        found: dict[tuple[str, int, int], list[StoredBatch]] = {}
        for batch in self.batches.values():
            if batch.submission is not None:
                named = batch.submission
                found.setdefault((named.tag, named.shard, named.ordinal), []).append(batch)
        return found

    def bills(self, now: datetime) -> dict[tuple[str, str], list[StoredBatch]]:
        """The batches that billed a record, by whose it is and what it asked."""
        found: dict[tuple[str, str], list[StoredBatch]] = {}
        for batch in self.batches.values():
            for row in batch.processed_by(now) if batch.submission else ():
                assert batch.submission is not None
                name = (self.whose(batch.submission.tag), batch.contents[row])
                found.setdefault(name, []).append(batch)
        return found

    def whose(self, tag: str) -> str:
        """What tells runs apart: their tags, or nothing where no two ask the same."""
        return tag if self.may_ask_again else ""

    # ---- results

    def result_lines(self, batch: StoredBatch, now: datetime) -> Iterator[bytes]:
        """The lines of its result files, in no order."""
        processed = batch.processed_by(now)
        for row in filter(batch.has_line, processed):
            yield _line(row, _answer(batch, row), failed=row in batch.error_rows)
        if batch.expiry_lines and not batch.failed_in_validation():
            done = set(processed)
            for row in batch.rows:
                if row not in done:
                    yield json.dumps({"custom_id": row, "unbilled": True}).encode() + b"\n"


def row_of(wire_id: str) -> int:
    """The row that a wire id names."""
    return int(wire_id.removeprefix("r"))


def record_content(record: Mapping[str, Any]) -> str:
    """What a record asks, for telling answers apart."""
    messages = record.get("body", {}).get("messages") or [{}]
    return str(messages[-1].get("content", ""))


def _answer(batch: StoredBatch, row: str) -> str:
    return f"answer of {batch.id} to {batch.contents[row]}"


def _line(row: str, text: str, *, failed: bool) -> bytes:
    body: dict[str, Any] = (
        {"error": {"message": "refused by the model", "code": "content_policy"}}
        if failed
        else {
            "choices": [{"message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
        }
    )
    line = {"custom_id": row, "response": {"status_code": 400 if failed else 200, "body": body}}
    return json.dumps(line).encode() + b"\n"


def _s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)

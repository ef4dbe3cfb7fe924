"""OpenAI batches: what they are and how they live from validating to their end.

Owns batches, their states and result files. Must not know HTTP; `openai_service` answers calls.
"""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from .faults import Rule
from .lifecycle import Lifecycle
from .openai_files import Files, StoredFile
from .settings import InForce
from .work import CheckedOpenAI, CheckOpenAI, LineProblem, Ran, RunOpenAI
from .workers import Workers

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_PROVIDER = "openai"
_HELD_RATIO = 0.5  # how far a batch comes while it is held in progress


@dataclass(slots=True)
class Batch:
    """A batch of one project. Times in Unix seconds."""

    id: str
    project: str
    endpoint: str
    input_file_id: str
    input_file_name: str | None
    completion_window: str
    metadata: dict[str, str] | None
    created_at: float
    expires_at: float
    output_life_s: float | None
    doom: Rule | None = None  # a fault that makes it fail
    status: str = "validating"
    model: str | None = None
    records: int = 0  # lines of the input, known once validation has read them
    total: int = 0
    completed: int = 0
    failed: int = 0
    tokens: int = 0  # prompt tokens that count against the queue limit
    usage: tuple[int, int] | None = None
    problems: list[LineProblem] = field(default_factory=list)
    output_file: StoredFile | None = None
    error_file: StoredFile | None = None
    cancels: int = 0
    expire_now: bool = False
    history: list[tuple[str, float]] = field(default_factory=list)

    @property
    def cancelled(self) -> bool:
        """Tell whether somebody asked to cancel."""
        return self.cancels > 0

    def at(self, status: str) -> int | None:
        """Return when a status was entered, or None."""
        for entered, moment in self.history:
            if entered == status:
                return int(moment)
        return None

    @property
    def is_over(self) -> bool:
        """Tell whether the batch has reached an end."""
        return self.status in TERMINAL


class Batches:
    """The batches of all projects; none is ever forgotten."""

    def __init__(
        self, lifecycle: Lifecycle, files: Files, workers: Workers, settings: InForce
    ) -> None:
        self._lifecycle = lifecycle
        self._files = files
        self._workers = workers
        self._settings = settings
        self._batches: dict[str, Batch] = {}
        self._spent: set[str] = set()

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches.values())

    def get(self, batch_id: str) -> Batch | None:
        """Return a batch by id."""
        return self._batches.get(batch_id)

    def newest_first(self, project: str) -> list[Batch]:
        """List the project's batches as far as lists show them already."""
        shown = self._lifecycle.clock.now() - self._settings.openai.list_lag_s
        found = [
            batch
            for batch in self._batches.values()
            if batch.project == project and batch.created_at <= shown
        ]
        found.reverse()
        return found

    def exceed(self, per_hour: int) -> bool:
        """Tell whether as many batches were created during the last hour."""
        if len(self._batches) < per_hour:
            return False
        hour_ago = self._lifecycle.clock.now() - 3600
        return sum(batch.created_at > hour_ago for batch in self._batches.values()) >= per_hour

    def accept(
        self, project: str, body: dict[str, Any], output_life_s: float | None, doom: Rule | None
    ) -> Batch:
        """Create a batch and start its life."""
        now = self._lifecycle.clock.now()
        batch = Batch(
            id=f"batch_{secrets.token_hex(16)}",
            project=project,
            endpoint=body["endpoint"],
            input_file_id=body["input_file_id"],
            input_file_name=self._files.name_of(body["input_file_id"]),
            completion_window=body["completion_window"],
            metadata=body.get("metadata"),
            created_at=now,
            expires_at=now + self._settings.openai.expire_after_s,
            output_life_s=output_life_s,
            doom=doom,
        )
        batch.history.append(("validating", now))
        self._batches[batch.id] = batch
        self._lifecycle.start(batch.id, self._live(batch))
        return batch

    def cancel(self, batch: Batch) -> None:
        """Ask a batch that is not over to end."""
        batch.cancels += 1
        if batch.status in {"validating", "in_progress", "finalizing"}:
            self._enter(batch, "cancelling")
            self._lifecycle.poke(batch.id)

    def expire(self, batch: Batch) -> None:
        """End a batch's window now."""
        batch.expire_now = True
        self._lifecycle.poke(batch.id)

    def clear(self) -> None:
        """Forget everything; for a new test, never during one."""
        self._batches.clear()
        self._spent.clear()

    def progress(self, batch: Batch) -> tuple[int, int, int]:
        """Return total, completed and failed as a call would see them now."""
        if batch.status != "in_progress" or batch.total == 0:
            return batch.total, batch.completed, batch.failed
        return batch.total, self._reached(batch), 0

    def _reached(self, batch: Batch) -> int:
        """Count the records done while in progress, as far as time went."""
        settings = self._settings.openai
        begun = next(moment for status, moment in batch.history if status == "in_progress")
        elapsed = self._lifecycle.clock.now() - begun
        ratio = min(1.0, elapsed / settings.in_progress_s) if settings.in_progress_s else 1.0
        if self._lifecycle.is_held((_PROVIDER, "in_progress")):
            ratio = min(ratio, _HELD_RATIO)
        return int(batch.total * ratio)

    def _cut(self, batch: Batch) -> int:
        """Count the records done of a batch that does not run to its end."""
        ratio = self._settings.openai.partial_ratio
        return self._reached(batch) if ratio is None else int(batch.total * ratio)

    def _enter(self, batch: Batch, status: str) -> None:
        batch.status = status
        batch.history.append((status, self._lifecycle.clock.now()))

    async def _stay(self, batch: Batch, status: str, seconds: float, until: float | None) -> None:
        await self._lifecycle.stay(
            batch.id,
            (_PROVIDER, status),
            seconds,
            lambda: batch.cancelled or batch.expire_now,
            until,
        )

    async def _live(self, batch: Batch) -> None:
        settings = self._settings.openai
        await self._stay(batch, "validating", settings.validating_s, None)
        source = self._files.find(batch.input_file_id, batch.project)
        if source is None or not self._files.visible_to_batches(source):
            if not batch.cancelled:
                self._fail(batch, [_file_missing(batch.input_file_id)])
                return
            await self._end_cancelled(batch, None, 0)
            return
        self._files.claim(source)
        try:
            await self._live_with(batch, source)
        finally:
            self._files.release(source)

    async def _live_with(self, batch: Batch, source: StoredFile) -> None:
        settings = self._settings.openai
        if not batch.cancelled:
            problems = await self._validate(batch, source)
            if problems and not batch.cancelled:
                self._fail(batch, problems)
                return
        if batch.cancelled:
            await self._end_cancelled(batch, source, 0)
            return
        self._enter(batch, "in_progress")
        await self._stay(batch, "in_progress", settings.in_progress_s, batch.expires_at)
        if batch.cancelled:
            await self._end_cancelled(batch, source, self._cut(batch))
            return
        now = self._lifecycle.clock.now()
        if batch.expire_now or now >= batch.expires_at:
            await self._run(batch, source, self._cut(batch), "batch_expired")
            self._enter(batch, "expired")
            return
        batch.completed = batch.total  # until the files tell which of them failed
        self._enter(batch, "finalizing")
        ran = await self._run(batch, source, batch.total, None)
        await self._stay(batch, "finalizing", settings.finalizing_s, None)
        if batch.cancelled:
            await self._drain(batch)
            self._enter(batch, settings.cancel_race)
            return
        self._enter(batch, "expired" if ran.expired else "completed")

    async def _validate(self, batch: Batch, source: StoredFile) -> list[LineProblem]:
        settings = self._settings.openai
        checked = await self._workers.run(
            CheckOpenAI(str(source.path), batch.endpoint, settings.max_requests)
        )
        assert isinstance(checked, CheckedOpenAI)
        batch.model, batch.records = checked.model, checked.records
        if checked.problems:
            return checked.problems
        if batch.doom is not None:
            return [self._doomed(batch, batch.doom, checked)]
        limits = settings.max_enqueued_tokens
        limit = limits.get(checked.model or "", limits.get("*"))
        if limit is not None and self._enqueued(batch) + checked.prompt_tokens > limit:
            return [_token_limit(batch, limit)]
        batch.total = checked.records
        batch.tokens = checked.prompt_tokens
        return []

    def _enqueued(self, newcomer: Batch) -> int:
        """Sum the prompt tokens that still count for a model."""
        lag_s = self._settings.openai.enqueued_lag_s
        now = self._lifecycle.clock.now()
        return sum(
            batch.tokens
            for batch in self._batches.values()
            if batch.project == newcomer.project
            and batch.model == newcomer.model
            and (not batch.is_over or now < batch.history[-1][1] + lag_s)
        )

    @staticmethod
    def _doomed(batch: Batch, rule: Rule, checked: CheckedOpenAI) -> LineProblem:
        if rule.kind == "quota":
            return _token_limit(batch, max(1, checked.prompt_tokens - 1))
        return LineProblem(rule.code or "server_error", rule.message or "The batch failed.")

    def _fail(self, batch: Batch, problems: list[LineProblem]) -> None:
        batch.problems = problems
        self._enter(batch, "failed")

    async def _end_cancelled(self, batch: Batch, source: StoredFile | None, done: int) -> None:
        batch.completed = done
        await self._drain(batch)
        if source is not None and batch.total:
            lines = self._settings.openai.cancelled_lines
            await self._run(batch, source, done, "batch_cancelled" if lines else None)
        self._enter(batch, "cancelled")

    async def _drain(self, batch: Batch) -> None:
        seconds = self._settings.openai.cancelling_s
        await self._lifecycle.stay(batch.id, (_PROVIDER, "cancelling"), seconds)

    async def _run(
        self, batch: Batch, source: StoredFile, done: int, unreached_code: str | None
    ) -> Ran:
        settings = self._settings.openai
        output_path, error_path = self._files.new_path(".out"), self._files.new_path(".err")
        ran = await self._workers.run(
            RunOpenAI(
                path=str(source.path),
                endpoint=batch.endpoint,
                output_path=str(output_path),
                error_path=str(error_path),
                seed=settings.seed + crc32(batch.id.encode()),
                moment=int(self._lifecycle.clock.now()),
                done=done,
                unreached_code=unreached_code,
                shuffle=settings.shuffle,
                body_as_string=settings.body_as_string,
                error_style=settings.error_style,
                used=sorted(self._spent),
            )
        )
        assert isinstance(ran, Ran)
        self._spent.update(ran.spent)
        batch.completed, batch.failed = ran.completed, ran.failed
        batch.usage = (ran.input_tokens, ran.output_tokens)
        batch.output_file = self._keep(batch, output_path, "output", ran.output_lines)
        batch.error_file = self._keep(batch, error_path, "error", ran.error_lines)
        return ran

    def _keep(self, batch: Batch, path: Path, what: str, lines: int) -> StoredFile | None:
        if lines == 0 and self._settings.openai.empty_files not in {what, "both"}:
            path.unlink()
            return None
        lifetime_s = batch.output_life_s if batch.output_life_s is not None else 30 * 86_400.0
        name = f"{batch.id}_{what}.jsonl"
        return self._files.add(batch.project, path, name, "batch_output", lifetime_s)


def _file_missing(file_id: str) -> LineProblem:
    return LineProblem(
        "invalid_request",
        f"The file '{file_id}' was not found or your organization does not have access to it.",
        None,
        "file_id",
    )


def _token_limit(batch: Batch, limit: int) -> LineProblem:
    return LineProblem(
        "token_limit_exceeded",
        f"Enqueued token limit reached for {batch.model} in organization org-{batch.project}. "
        f"Limit: {limit:,} enqueued tokens. Please try again once some in_progress batches have "
        "been completed.",
    )

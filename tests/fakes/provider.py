"""Clients of a `ProviderServer`: the control plane, the data plane and their factory.

Two flavours, as of the real ones: OpenAI-like (no idempotency, uploads get an id) and Bedrock-like
(a client token replays, uploads lie where we put them). Faults are drawn from the world's seed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from batchinference.errors import Permanent, Retry, Stalled
from batchinference.model.batch import (
    TOO_LATE,
    Accepted,
    Account,
    BatchView,
    CancelOutcome,
    Limits,
    OutcomeUnknown,
    Page,
    RefusalKind,
    Refused,
    SubmissionID,
    SubmitOutcome,
    Traits,
)
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.ports import ObjectStore, ResolvedProvider, ResultLine
from fakes.server import ProviderServer, StoredBatch
from fakes.world import World


class Flavour(StrEnum):
    """Whose manners a client has."""

    OPENAI = "openai"
    BEDROCK = "bedrock"


@dataclass
class Faults:
    """Probabilities, per call.

    Attributes:
        lost: the create call took hold and its answer did not come back.
        dropped: the create call broke before it reached the server.
        straggling: its answer is lost and it takes hold only after a while.
        hanging: it takes hold, or not, and nothing comes back until the client gives up.
        doubled: something between us and an OpenAI-like server sends it twice.
        throttled, quota: certain refusals.
        flaky: any other call answers Retry, half of the time after it took hold.
    """

    lost: float = 0.0
    dropped: float = 0.0
    straggling: float = 0.0
    hanging: float = 0.0
    doubled: float = 0.0
    throttled: float = 0.0
    quota: float = 0.0
    flaky: float = 0.0
    straggle_s: float = 20.0
    hang_s: float = 60.0


CREATE_FAULTS = ("lost", "dropped", "straggling", "hanging", "doubled", "throttled", "quota")
"""What can go wrong with a create call, as members of `Faults`."""


class FakeProvider:
    """`ports.BatchProvider` of one server."""

    def __init__(
        self,
        server: ProviderServer,
        world: World | None = None,
        *,
        flavour: Flavour = Flavour.OPENAI,
        faults: Faults | None = None,
    ) -> None:
        self.server = server
        self.flavour = flavour
        self.faults = faults or Faults()
        self.traits = Traits(
            echoes_submission=server.habits.echoes,
            resend_window_s=server.habits.replay_s * 0.9 if flavour is Flavour.BEDROCK else 0.0,
        )
        self._world = world or World()
        self._closed = False

    async def check(self) -> Account:
        await self._call("check")
        return Account(id=self.server.account)

    def create_request(
        self, run: Run, submission: SubmissionID, input_ref: str
    ) -> Mapping[str, Any]:
        named = {
            "tag": submission.tag,
            "shard": str(submission.shard),
            "ordinal": str(submission.ordinal),
            "content": submission.content_hash,
        }
        model = str(run.spec.get("model", ""))
        if self.flavour is Flavour.OPENAI:
            return {
                "input_file_id": input_ref,
                "endpoint": "/v1/chat/completions",
                "metadata": named,
            }
        return {
            "modelId": model,
            "jobName": "-".join(named.values()),
            "clientRequestToken": hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32],
            "inputDataConfig": {"s3InputDataConfig": {"s3Uri": input_ref}},
        }

    async def submit(
        self, request: Mapping[str, Any], may_send: Callable[[], bool]
    ) -> SubmitOutcome:
        draw = self._world.random.random()
        sent_at = self._now()
        async with self._world.effect("provider.create"):
            if not may_send():
                return TOO_LATE
            self._count("create")
            self._world.trace(f"create {_name(request)}")
            if self.server.locked_out:
                return Refused(RefusalKind.CREDENTIALS, "401", "the key is not valid")
            if self.server.outage:
                return OutcomeUnknown("the connection was refused by a proxy")
            outcome, wait = self._create(request, draw, sent_at)
        if wait:
            await asyncio.sleep(wait)
        self._world.trace(f"create {_name(request)} -> {_short(outcome)}")
        return outcome

    def _create(
        self, request: Mapping[str, Any], draw: float, sent_at: datetime
    ) -> tuple[SubmitOutcome, float]:
        faults = self.faults
        for name in CREATE_FAULTS:
            draw -= getattr(faults, name)
            if draw < 0:
                return self._create_badly(name, request, sent_at)
        batch = self._commit(request, sent_at)
        if batch is None:
            return OutcomeUnknown("ConflictException: the token is of another request"), 0.0
        return Accepted(self._view(batch)), 0.0

    def _create_badly(
        self, fault: str, request: Mapping[str, Any], sent_at: datetime
    ) -> tuple[SubmitOutcome, float]:
        world, faults = self._world, self.faults
        world.trace(f"create {_name(request)} fault {fault}")
        match fault:
            case "lost":
                self._commit(request, sent_at)
                return OutcomeUnknown("500 after the batch was made"), 0.0
            case "dropped":
                return OutcomeUnknown("connection reset"), 0.0
            case "straggling":
                world.later(
                    faults.straggle_s * world.random.random(), self._commit, request, sent_at
                )
                return OutcomeUnknown("time-out"), 0.0
            case "hanging":
                if world.chance(0.5):
                    self._commit(request, sent_at)
                return OutcomeUnknown("time-out"), faults.hang_s
            case "doubled":
                batch = self._commit(request, sent_at)
                if batch is not None and self.flavour is Flavour.OPENAI:
                    self._commit(request, sent_at, again=True)
                return (Accepted(self._view(batch)) if batch else OutcomeUnknown("409")), 0.0
            case "throttled":
                return Refused(RefusalKind.THROTTLED, "429", "slow down", retry_after_s=2.0), 0.0
            case _:
                return Refused(RefusalKind.QUOTA, "quota", "too many active batches"), 0.0

    def _commit(
        self, request: Mapping[str, Any], sent_at: datetime, *, again: bool = False
    ) -> StoredBatch | None:
        openai = self.flavour is Flavour.OPENAI
        ref = (
            request["input_file_id"]
            if openai
            else request["inputDataConfig"]["s3InputDataConfig"]["s3Uri"]
        )
        token = "" if openai else str(request["clientRequestToken"])
        batch = self.server.commit(
            request,
            submission_in(request),
            str(ref),
            self._now(),
            token=token,
            doubled=again,
            sent_at=sent_at,
        )
        if batch is not None:
            self._world.trace(f"COMMIT {batch.id} {_name(request)} {batch.fate} {batch.rows}")
        return batch

    async def page(self, cursor: str | None, since: datetime | None) -> Page:
        await self._call("list")
        shown = self.server.listed(self._now())
        if cursor is not None:
            ids = [b.id for b in shown]
            # A cursor is the last id of the page before: what came in meanwhile shifts nothing.
            shown = shown[ids.index(cursor) + 1 :] if cursor in ids else []
        size = self.server.habits.page_size
        batches = shown[:size]
        more = len(shown) > size
        if self.server.lists_partly:
            # As the adapters do: what can't be followed further is said, and is no end.
            self.traits = replace(self.traits, lists_complete=not more)
            more = False
        elif not more:
            self.traits = replace(self.traits, lists_complete=True)
        if since is not None and batches and batches[-1].committed_at < since:
            more = False
        views = tuple(self._view(b, self._as_of()) for b in batches)
        await self._world.pause()
        return Page(views, batches[-1].id if more else None)

    async def get(self, batch_id: str) -> BatchView | None:
        await self._call("get")
        found, as_of = self.server.lookup(batch_id, self._now()), self._as_of()
        view = self._view(found, as_of) if found and as_of >= found.committed_at else None
        await self._world.pause()
        return view

    async def cancel(self, batch_id: str) -> CancelOutcome:
        async with self._world.effect("provider.cancel"):
            self._demand("cancel")
            found = self.server.lookup(batch_id, self._now())
            if found is None:
                outcome = CancelOutcome.NOT_FOUND
            elif self.server.cancel(found, self._now()):
                outcome = CancelOutcome.ACCEPTED
            else:
                outcome = CancelOutcome.ALREADY_OVER
            self._world.trace(f"CANCEL {batch_id} -> {outcome.value}")
            self._maybe_lose("cancel")
        return outcome

    async def input_readable(self, input_ref: str) -> bool:
        await self._call("file")
        return self.server.has_file(input_ref)

    async def delete_input(self, input_ref: str) -> None:
        async with self._world.effect("provider.delete"):
            self._demand("delete")
            self.server.delete_file(input_ref, self._now())
            self._world.trace(f"DELETE {input_ref}")
            self._maybe_lose("delete")

    async def close(self) -> None:
        self._closed = True

    # ---- faults

    async def _call(self, name: str) -> None:
        await self._world.pause()
        self._demand(name)

    def _demand(self, name: str) -> None:
        assert not self._closed, "a closed client was called"
        self._count(name)
        if self.server.locked_out:
            raise Stalled(Reason.CREDENTIALS_REJECTED, "the key is not valid")
        if self.server.outage or self._world.chance(self.faults.flaky / 2):
            raise Retry(Reason.PROVIDER_UNAVAILABLE, f"{name}: 503")

    def _maybe_lose(self, name: str) -> None:
        if self._world.chance(self.faults.flaky / 2):
            raise Retry(Reason.PROVIDER_UNAVAILABLE, f"{name}: the answer was lost")

    def _count(self, name: str) -> None:
        self.server.calls[name] = self.server.calls.get(name, 0) + 1

    def _now(self) -> datetime:
        return self._world.clock.now()

    def _as_of(self) -> datetime:
        """How things stand for a reader: as they are, or as they were a little while ago."""
        stale = self.server.habits.stale_s
        return self._now() - timedelta(seconds=stale * self._world.random.random() if stale else 0)

    def _view(self, batch: StoredBatch, as_of: datetime | None = None) -> BatchView:
        now = max(as_of or self._now(), batch.committed_at)
        state = batch.state_at(now)
        processed = batch.processed_by(now)
        failed = sum(row in batch.error_rows for row in processed)
        ended = batch.ended_at(now)
        named = ended is not None and now >= ended + timedelta(
            seconds=self.server.habits.file_lag_s
        )
        has_files = named and not batch.failed_in_validation()
        return BatchView(
            id=batch.id,
            state=state,
            raw_state=state.value.lower(),
            submission=batch.submission if self.server.habits.echoes else None,
            input_ref=batch.input_ref,
            created_at=batch.committed_at,
            ended_at=ended,
            total=len(batch.rows),
            completed=len(processed) - failed,
            failed=failed,
            files=(f"out:{batch.id}",) if has_files else (),
            failure=batch.failure() if state.is_over and not batch.cancels else None,
        )


def submission_in(request: Mapping[str, Any]) -> SubmissionID | None:
    """The submission that a create request names."""
    if "metadata" in request:
        named = request["metadata"]
        if "tag" not in named:
            return None
        return SubmissionID(
            named["tag"], int(named["shard"]), int(named["ordinal"]), named["content"]
        )
    parts = str(request.get("jobName", "")).split("-")
    if len(parts) != 4:
        return None
    return SubmissionID(parts[0], int(parts[1]), int(parts[2]), parts[3])


def _name(request: Mapping[str, Any]) -> str:
    named = submission_in(request)
    return f"{named.tag[:6]} shard {named.shard} #{named.ordinal}" if named else "foreign"


def _short(outcome: SubmitOutcome) -> str:
    match outcome:
        case Accepted(batch):
            return batch.id
        case Refused(kind):
            return f"refused {kind.value}"
        case OutcomeUnknown(message):
            return f"unknown ({message})"


class FakeBatchData:
    """`ports.BatchData` of one server: canonical lines, nothing translated."""

    def __init__(self, server: ProviderServer, now: datetime, *, flavour: Flavour) -> None:
        self._server = server
        self._now = now
        self._flavour = flavour

    def encode(self, row: int, request: Mapping[str, Any], model: str) -> bytes:
        body = {**request["body"], "model": model}
        line = {"custom_id": request["custom_id"], "url": request.get("url"), "body": body}
        return json.dumps(line, separators=(",", ":")).encode()

    def upload(self, staging: ObjectStore, uri: str, run: Run, submission: SubmissionID) -> str:
        info = staging.head(uri)
        if info is None:
            raise Retry(Reason.STAGING_UNAVAILABLE, f"{uri} is not there")
        data = b"".join(staging.read(info))
        if self._flavour is Flavour.OPENAI:
            return self._server.upload(data, self._now, f"-{run.key[:6]}")
        place = f"{run.staging.uri}input/{submission.shard}/{submission.ordinal}/"
        return self._server.store_at(place, data, self._now)

    def open_results(self, files: Sequence[str]) -> Iterator[bytes]:
        for name in files:
            batch = self._server.batches[name.removeprefix("out:")]
            if batch.files_gone:
                raise Permanent("AnswerLost", f"{name} is gone")
            yield from self._server.result_lines(batch, self._now)

    def decode(self, line: bytes) -> ResultLine:
        try:
            found = json.loads(line)
            wire_id = found["custom_id"]
        except (ValueError, KeyError, TypeError):
            return ResultLine(wire_id="", status_code=0, error_code="InvalidLine")
        if found.get("unbilled"):
            return ResultLine(wire_id, 0, error_code="batch_expired", unbilled=True)
        response = found["response"]
        body, status = response["body"], response["status_code"]
        if status != 200:
            error = body["error"]
            return ResultLine(
                wire_id, status, body=body, error_code=error["code"], error_message=error["message"]
            )
        usage = body["usage"]
        return ResultLine(
            wire_id,
            status,
            body=body,
            input_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
        )

    def delete_files(self, run: Run) -> None:
        for ref in self._server.files_of(run):
            self._server.delete_file(ref, self._now)


class FakeFactory:
    """`ports.ProviderFactory` over servers by the endpoint that a provider's settings name.

    Attributes:
        claim_holds, claim_taken: asked by `holds_claim` and `taken_by`.
    """

    def __init__(
        self,
        servers: dict[str, ProviderServer],
        world: World | None = None,
        *,
        faults: Faults | None = None,
    ) -> None:
        self.servers = servers
        self.faults = faults or Faults()
        self.claim_holds: Callable[[Run, ResolvedProvider], bool] = lambda _run, _resolved: True
        self.claim_taken: Callable[[Run, ResolvedProvider], str] = lambda _run, _resolved: ""
        self._world = world or World()

    def connect(self, resolved: ResolvedProvider) -> FakeProvider:
        settings = resolved.pin_settings
        role = "apiKey" if "openAI" in settings else "bedrock"
        if not resolved.secrets.get(role):
            raise Stalled(Reason.SECRET_NOT_FOUND, f"no Secret for {role}")
        return FakeProvider(
            self.servers[endpoint(settings)],
            self._world,
            flavour=flavour_of(settings),
            faults=self.faults,
        )

    def default_limits(self, settings: Mapping[str, Any], model: str, operation: str) -> Limits:
        given = settings.get("limits", {})
        return Limits(
            max_records_per_batch=given.get("maxRecordsPerBatch", 50_000),
            max_bytes_per_batch=given.get("maxBytesPerBatch", 100_000_000),
            max_bytes_per_record=given.get("maxBytesPerRecord", 1_000_000),
            min_records_per_batch=given.get("minRecordsPerBatch", 1),
            max_active_batches=given.get("maxActiveBatches"),
            max_enqueued_tokens=given.get("maxEnqueuedTokens"),
        )

    def holds_claim(self, run: Run, resolved: ResolvedProvider) -> bool:
        return self.claim_holds(run, resolved)

    def taken_by(self, run: Run, resolved: ResolvedProvider) -> str:
        return self.claim_taken(run, resolved)


def flavour_of(settings: Mapping[str, Any]) -> Flavour:
    """Which flavour a provider's settings ask for."""
    return Flavour.OPENAI if "openAI" in settings else Flavour.BEDROCK


def endpoint(settings: Mapping[str, Any]) -> str:
    """What tells servers apart in a provider's settings."""
    if "openAI" in settings:
        return str(settings["openAI"]["baseURL"])
    return str(settings["bedrock"]["serviceRoleARN"])

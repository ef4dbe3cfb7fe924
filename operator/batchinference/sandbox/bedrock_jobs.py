"""Bedrock's model invocation jobs: what they are and how they live to their end.

Owns jobs and their states. Must not know HTTP; `bedrock_service` answers calls, `bedrock_data`
moves bytes.
"""

import asyncio
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

from .bedrock_data import InputUnreadable, JobData
from .clock import iso8601
from .dialects import family_id
from .faults import Rule
from .lifecycle import Lifecycle
from .settings import InForce
from .work import CheckBedrock, CheckedBedrock, Ran, RunBedrock
from .workers import Workers

TERMINAL = frozenset({"Completed", "PartiallyCompleted", "Failed", "Stopped", "Expired"})
_PROVIDER = "bedrock"
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_HELD_RATIO = 0.5  # how far a job comes while it is held in progress
_DEFAULT_TIMEOUT_H = 24


@dataclass(slots=True)
class Job:
    """A job of one account and region. Times in Unix seconds."""

    id: str
    scope: str
    request: dict[str, Any]
    token: str
    submit_time: float
    expiration_time: float
    doom: Rule | None = None
    status: str = "Submitted"
    message: str | None = None
    records: int = 0  # lines of the input, known once validation has read them
    total: int = 0
    success: int = 0
    errors: int = 0
    measured: bool = False  # counters are real, the job ran
    stops: int = 0
    replays: int = 0
    expire_now: bool = False
    history: list[tuple[str, float]] = field(default_factory=list)

    @property
    def account(self) -> str:
        """Return the account's number."""
        return self.scope.partition("/")[0]

    @property
    def arn(self) -> str:
        """Return the job's ARN."""
        account, _, region = self.scope.partition("/")
        return f"arn:aws:bedrock:{region}:{account}:model-invocation-job/{self.id}"

    @property
    def name(self) -> str:
        """Return the job's name."""
        return str(self.request["jobName"])

    @property
    def is_over(self) -> bool:
        """Tell whether the job has reached an end."""
        return self.status in TERMINAL

    @property
    def output_prefix(self) -> str:
        """Return the URI under which the results stand, with a final slash."""
        uri: str = self.request["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"]
        return f"{uri.rstrip('/')}/{self.id}/"


class Jobs:
    """The jobs of all accounts; none is ever forgotten."""

    def __init__(
        self, lifecycle: Lifecycle, workers: Workers, settings: InForce, data: JobData
    ) -> None:
        self._lifecycle = lifecycle
        self._workers = workers
        self._settings = settings
        self._data = data
        self._jobs: dict[str, Job] = {}
        self._by_token: dict[tuple[str, str], Job] = {}
        self._by_name: dict[tuple[str, str], Job] = {}
        self._spent: set[str] = set()
        self._io = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sandbox-s3")

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def get(self, job_id: str, scope: str) -> Job | None:
        """Return a job by its 12-character id."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.scope == scope else None

    def with_token(self, token: str, scope: str) -> Job | None:
        """Return the job that was created with a client request token."""
        return self._by_token.get((scope, token))

    def with_name(self, name: str, scope: str) -> Job | None:
        """Return the newest job of a name."""
        return self._by_name.get((scope, name))

    def active(self, model_id: str, scope: str) -> int:
        """Count the submitted and running jobs of a model."""
        return sum(
            job.scope == scope
            and not job.is_over
            and family_id(job.request["modelId"]) == family_id(model_id)
            for job in self._jobs.values()
        )

    def listed(self, scope: str) -> list[Job]:
        """List an account's jobs as far as lists show them already, oldest first."""
        shown = self._lifecycle.clock.now() - self._settings.bedrock.list_lag_s
        return [
            job for job in self._jobs.values() if job.scope == scope and job.submit_time <= shown
        ]

    def accept(self, scope: str, request: dict[str, Any], token: str, doom: Rule | None) -> Job:
        """Create a job and start its life."""
        now = self._lifecycle.clock.now()
        life_s = self._settings.bedrock.expire_after_s
        if life_s is None:
            life_s = request.get("timeoutDurationInHours", _DEFAULT_TIMEOUT_H) * 3600.0
        job = Job(
            id="".join(secrets.choice(_ID_LETTERS) for _ in range(12)),
            scope=scope,
            request=request,
            token=token,
            submit_time=now,
            expiration_time=now + life_s,
            doom=doom,
        )
        job.history.append((job.status, now))
        self._jobs[job.id] = job
        self._by_token[scope, token] = job
        self._by_name[scope, job.name] = job
        self._lifecycle.start(job.id, self._live(job))
        return job

    def stop_job(self, job: Job) -> None:
        """Ask a job that is not over to end."""
        job.stops += 1
        if job.status != "Stopping":
            self._enter(job, "Stopping")
            self._lifecycle.poke(job.id)

    def expire(self, job: Job) -> None:
        """End a job's time now."""
        job.expire_now = True
        self._lifecycle.poke(job.id)

    def clear(self) -> None:
        """Forget everything; for a new test, never during one."""
        self._jobs.clear()
        self._by_token.clear()
        self._by_name.clear()
        self._spent.clear()

    def close(self) -> None:
        """Let go of the threads."""
        self._io.shutdown(wait=True, cancel_futures=True)

    def view(self, job: Job) -> dict[str, Any]:
        """Render a job as Get and List do."""
        total, processed, success, errors = self._counters(job)
        shown: dict[str, Any] = {
            "jobArn": job.arn,
            "jobName": job.name,
            "modelId": job.request["modelId"],
            "clientRequestToken": job.token,
            "roleArn": job.request["roleArn"],
            "status": job.status,
            "submitTime": iso8601(job.submit_time),
            "lastModifiedTime": iso8601(job.history[-1][1]),
            "inputDataConfig": job.request["inputDataConfig"],
            "outputDataConfig": job.request["outputDataConfig"],
            "timeoutDurationInHours": job.request.get("timeoutDurationInHours", _DEFAULT_TIMEOUT_H),
            "jobExpirationTime": iso8601(job.expiration_time),
            "modelInvocationType": job.request.get("modelInvocationType", "InvokeModel"),
            "totalRecordCount": total,
            "processedRecordCount": processed,
            "successRecordCount": success,
            "errorRecordCount": errors,
        }
        if "vpcConfig" in job.request:
            shown["vpcConfig"] = job.request["vpcConfig"]
        if job.message is not None:
            shown["message"] = job.message
        if job.is_over:
            shown["endTime"] = iso8601(job.history[-1][1])
        return shown

    def _counters(self, job: Job) -> tuple[int, int, int, int]:
        if job.measured:
            return job.total, job.success + job.errors, job.success, job.errors
        if job.status == "InProgress":
            done = self._reached(job)
            return job.total, done, done, 0
        return 0, 0, 0, 0

    def _reached(self, job: Job) -> int:
        settings = self._settings.bedrock
        begun = next((moment for status, moment in job.history if status == "InProgress"), None)
        if begun is None:
            return 0
        elapsed = self._lifecycle.clock.now() - begun
        ratio = min(1.0, elapsed / settings.in_progress_s) if settings.in_progress_s else 1.0
        if self._lifecycle.is_held((_PROVIDER, "InProgress")):
            ratio = min(ratio, _HELD_RATIO)
        return int(job.total * ratio)

    def _cut(self, job: Job) -> int:
        ratio = self._settings.bedrock.partial_ratio
        return self._reached(job) if ratio is None else int(job.total * ratio)

    def _enter(self, job: Job, status: str) -> None:
        job.status = status
        job.history.append((status, self._lifecycle.clock.now()))

    def _fail(self, job: Job, message: str) -> None:
        job.message = message
        self._enter(job, "Failed")

    async def _stay(self, job: Job, seconds: float) -> None:
        await self._lifecycle.stay(
            job.id,
            (_PROVIDER, job.status),
            seconds,
            lambda: job.stops > 0 or job.expire_now,
            job.expiration_time,
        )

    def _time_is_up(self, job: Job) -> bool:
        return job.expire_now or self._lifecycle.clock.now() >= job.expiration_time

    async def _live(self, job: Job) -> None:
        folder = self._data.folder_of(job.id)
        try:
            await self._live_in(job, folder)
        finally:
            await asyncio.get_running_loop().run_in_executor(None, self._data.drop, folder)

    async def _live_in(self, job: Job, folder: Path) -> None:
        settings = self._settings.bedrock
        await self._stay(job, settings.submitted_s)
        if await self._ended_early(job):
            return
        self._enter(job, "Validating")
        await self._stay(job, settings.validating_s)
        if await self._ended_early(job):
            return
        loop = asyncio.get_running_loop()
        try:
            inputs = await loop.run_in_executor(
                self._io, self._data.fetch, folder, job.request, job.account
            )
        except InputUnreadable as error:
            self._fail(job, str(error))
            return
        checked = await self._workers.run(
            CheckBedrock(
                paths=[str(path) for path in inputs.paths],
                keys=inputs.keys,
                job_arn=job.arn,
                min_records=settings.min_records,
                max_records=settings.max_records,
                max_records_per_file=settings.max_records_per_file,
                max_file_bytes=settings.max_file_bytes,
                max_job_bytes=settings.max_job_bytes,
            )
        )
        assert isinstance(checked, CheckedBedrock)
        job.records = checked.records
        if await self._ended_early(job):
            return
        if checked.message is not None or job.doom is not None:
            doom_text = job.doom.message if job.doom is not None else None
            self._fail(job, checked.message or doom_text or "The job failed on demand.")
            return
        self._enter(job, "Scheduled")
        await self._stay(job, settings.scheduled_s)
        if await self._ended_early(job):
            return
        job.total = checked.records
        self._enter(job, "InProgress")
        await self._stay(job, settings.in_progress_s)
        done, end = job.total, "Completed"
        if job.stops:
            done, end = self._cut(job), "Stopped"
        elif self._time_is_up(job):
            done, end = self._cut(job), "PartiallyCompleted"
        outputs = [path.with_name(f"{path.name}.out") for path in inputs.paths]
        ran = await self._run(job, inputs.paths, outputs, done)
        if job.stops and end == "Completed":
            end = "Stopped"  # the stop came while the last records were written
        elif ran.expired and end == "Completed":
            end = "PartiallyCompleted"
        if end == "Stopped":
            await self._drain(job)
        manifest = None
        if end != "Stopped" or settings.stopped_manifest:
            manifest = self._manifest(ran)
        try:
            await loop.run_in_executor(
                self._io, self._data.store, job.output_prefix, inputs, outputs, manifest
            )
        except InputUnreadable as error:
            self._fail(job, str(error))
            return
        job.success, job.errors, job.measured = ran.completed, ran.failed, True
        self._enter(job, end)

    async def _ended_early(self, job: Job) -> bool:
        """End a job that was stopped or ran out of time before it ran."""
        if job.stops:
            await self._drain(job)
            self._enter(job, "Stopped")
        elif self._time_is_up(job):
            job.message = "The job expired before it could be started."
            self._enter(job, "Expired")
        else:
            return False
        return True

    async def _drain(self, job: Job) -> None:
        seconds = self._settings.bedrock.stopping_s
        await self._lifecycle.stay(job.id, (_PROVIDER, "Stopping"), seconds)

    async def _run(self, job: Job, paths: list[Path], outputs: list[Path], done: int) -> Ran:
        settings = self._settings.bedrock
        ran = await self._workers.run(
            RunBedrock(
                paths=[str(path) for path in paths],
                output_paths=[str(path) for path in outputs],
                model_id=job.request["modelId"],
                invocation_type=job.request.get("modelInvocationType", "InvokeModel"),
                seed=settings.seed + crc32(job.id.encode()),
                moment=int(self._lifecycle.clock.now()),
                done=done,
                unreached=settings.unreached,
                shuffle=settings.shuffle,
                code_as_string=settings.code_as_string,
                converse_nulls=settings.converse_nulls,
                used=sorted(self._spent),
            )
        )
        assert isinstance(ran, Ran)
        self._spent.update(ran.spent)
        return ran

    @staticmethod
    def _manifest(ran: Ran) -> dict[str, int]:
        return {
            "totalRecordCount": ran.total,
            "processedRecordCount": ran.completed + ran.failed,
            "successRecordCount": ran.completed,
            "errorRecordCount": ran.failed,
            "inputTokenCount": ran.input_tokens,
            "outputTokenCount": ran.output_tokens,
        }

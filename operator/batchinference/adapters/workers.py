"""`ports.TaskRunner` over warm child processes of this one.

Owns the processes, which task goes to which, and what follows when one dies. It must not know what
tasks do. Tasks and secrets go through a pipe; a child ends with its parent, by the end of its
standard input and by the kernel.

Which task is next: never more than all but one worker on long ones, so that short ones need not
wait for hours; among runs, one of the account with the fewest tasks under way, so that a slow
provider takes no more workers than it must; then the one with the fewest itself, then the one
served longest ago.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from batchinference.adapters.task_wire import (
    HEADER,
    is_farewell,
    is_report,
    read_answer,
    task_frame,
    unpack,
)
from batchinference.errors import BatchInferenceError
from batchinference.model.status import Reason
from batchinference.model.work import (
    Checkpoint,
    FaultKind,
    Task,
    TaskFault,
    TaskKind,
    TaskResult,
)
from batchinference.ports import Metrics, TaskListener

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "batchinference.app.worker")
"""What a worker process runs; it is given `--spool <folder>` too."""

LONG_BYTES = 32 << 20
"""Bytes of input from which on a task is a long one."""

_FRAME_LIMIT = 256 << 20
_SHORT = {TaskKind.ADMIT, TaskKind.CLEAN, TaskKind.RELEASE}
_RESPAWN_FIRST_S = 0.5
_RESPAWN_MOST_S = 30.0
_END_S = 2.0


@dataclass(slots=True, eq=False)
class _Job:
    """A task that is queued or under way."""

    task: Task
    listener: TaskListener
    long: bool
    stopped: bool = False


@dataclass(slots=True, eq=False)
class _Worker:
    """A place for a process; the processes in it come and go.

    Attributes:
        job: what it works on.
        ready: it has imported everything and said so, and has not taken its leave.
        answered: it was ready once.
        farewell: it said that it ends itself, and why.
    """

    number: int
    spool: Path
    process: Process | None = None
    job: _Job | None = None
    ready: bool = False
    life: asyncio.Task[None] | None = None
    answered: bool = False
    farewell: str = ""


class WorkerPool:
    """Implements `ports.TaskRunner`. `open` before the first task, `close` at the end.

    To be used from one event loop, in the main thread: a child dies with the thread that made it.
    """

    def __init__(
        self,
        spool: Path,
        *,
        workers: int = 2,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Prepare a pool; nothing is started.

        Args:
            spool: a folder on local disk for the tasks' files, of this pool alone. What a killed
                operator left in it is removed.
            workers: processes, at least one.
            command: what a process runs.
            environment: of the processes; `inherited_environment` when not given.
            metrics: told of tasks under way and of deaths.
        """
        self._spool = spool
        self._command = tuple(command)
        self._metrics = metrics
        self._environment = dict(inherited_environment() if environment is None else environment)
        self._workers = [_Worker(n, spool / f"worker-{n}") for n in range(max(1, workers))]
        self._jobs: dict[str, _Job] = {}
        self._queues: dict[str, deque[_Job]] = {}
        self._served: dict[str, int] = {}
        self._turns = itertools.count(1)
        self._open = False
        self._closing = asyncio.Event()

    @property
    def queued(self) -> int:
        """Tasks that wait for a worker."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def running(self) -> int:
        """Tasks under way."""
        return sum(worker.job is not None for worker in self._workers)

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that are there."""
        return tuple(w.process.pid for w in self._workers if w.process is not None)

    def open(self) -> None:
        """Start the processes; they get warm in the background.

        Raises:
            OSError: the spool folder can't be made.
        """
        self._spool.mkdir(parents=True, exist_ok=True)
        for left in self._spool.glob("worker-*"):
            shutil.rmtree(left, ignore_errors=True)
        self._open = True
        for worker in self._workers:
            worker.life = asyncio.get_running_loop().create_task(
                self._live(worker), name=f"worker {worker.number}"
            )

    async def close(self) -> None:
        """End all processes and what they do. Tasks under way are not reported: they are made
        anew from the journal.
        """
        self._open = False
        self._queues.clear()
        self._jobs.clear()
        for worker in self._workers:
            if worker.job is not None:
                worker.job.stopped = True
            if worker.process is not None and worker.process.stdin is not None:
                worker.process.stdin.close()  # the end of its input ends it
        self._closing.set()
        # Lives are not cancelled: a process that is just being made would be left without one.
        lives = [worker.life for worker in self._workers if worker.life is not None]
        if lives:
            await asyncio.wait(lives, timeout=_END_S)
        for worker in self._workers:
            _kill(worker)
        await asyncio.gather(*lives, return_exceptions=True)
        with suppress(OSError):
            self._spool.rmdir()

    # ------------------------------------------------------------ ports.TaskRunner

    def start(self, task: Task, listener: TaskListener) -> None:
        """See `ports.TaskRunner.start`."""
        if task.id in self._jobs:
            return
        job = self._jobs[task.id] = _Job(task, listener, _is_long(task))
        self._queues.setdefault(task.run.key, deque()).append(job)
        self._dispatch()

    def stop(self, run_key: str) -> None:
        """See `ports.TaskRunner.stop`. A worker that works for the run is killed."""
        for job in self._queues.pop(run_key, ()):
            self._jobs.pop(job.task.id, None)
        for worker in self._workers:
            if worker.job is not None and worker.job.task.run.key == run_key:
                worker.job.stopped = True
                self._jobs.pop(worker.job.task.id, None)
                _kill(worker)

    # ------------------------------------------------------------ which task goes where

    def _dispatch(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.job is None and (job := self._next()) is not None:
                self._hand(worker, job)
        if self._metrics is not None:
            self._metrics.gauge("tasks_queued", self.queued)
            self._metrics.gauge("tasks_running", self.running)

    def _next(self) -> _Job | None:
        """Take the next task out of its queue; None when none may run now."""
        working = [worker.job for worker in self._workers if worker.job is not None]
        long_ones = sum(job.long for job in working)
        room = long_ones < max(1, len(self._workers) - 1)
        best: tuple[int, int, int] | None = None
        chosen: tuple[str, _Job] | None = None
        for key, queue in self._queues.items():
            job = next((job for job in queue if room or not job.long), None)
            if job is None:
                continue
            account = job.task.run.provider.account
            shared = sum(other.task.run.provider.account == account for other in working)
            busy = sum(other.task.run.key == key for other in working)
            rank = (shared, busy, self._served.get(key, 0))
            if best is None or rank < best:
                best, chosen = rank, (key, job)
        if chosen is None:
            return None
        key, job = chosen
        self._queues[key].remove(job)
        if self._queues[key]:
            self._served[key] = next(self._turns)
        else:
            del self._queues[key]
            self._served.pop(key, None)
        return job

    def _hand(self, worker: _Worker, job: _Job) -> None:
        assert worker.process is not None
        assert worker.process.stdin is not None
        worker.job = job
        try:
            worker.process.stdin.write(task_frame(job.task))
        except (ConnectionError, RuntimeError) as fault:
            log.debug("worker %d can't be written to: %s", worker.number, fault)
            _kill(worker)  # its life sees the end and settles the job

    # ------------------------------------------------------------ a worker's life

    async def _live(self, worker: _Worker) -> None:
        wait_s = 0.0
        while await self._still_open(wait_s):
            worker.answered, worker.farewell = False, ""
            try:
                worker.process = await asyncio.create_subprocess_exec(
                    *self._command,
                    "--spool",
                    str(worker.spool),
                    stdin=PIPE,
                    stdout=PIPE,  # stderr is ours: its log lines go where ours go
                    env=self._environment,
                    start_new_session=True,  # Ctrl-C is for us
                )
                if not self._open:
                    _kill(worker)
                await self._listen(worker, worker.process)
                status = await worker.process.wait()
            except OSError:
                log.exception("worker %d can't be started", worker.number)
                status = 127
            finally:
                worker.ready = False
                _kill(worker)
                await asyncio.to_thread(shutil.rmtree, worker.spool, ignore_errors=True)
                worker.process = None
            self._settle_death(worker, status)
            # One that dies before it ever answered will die again.
            first = _RESPAWN_FIRST_S
            wait_s = 0.0 if worker.answered else min(max(first, wait_s * 2), _RESPAWN_MOST_S)

    async def _still_open(self, wait_s: float) -> bool:
        """Whether the pool is open, after a wait that ends early when it is closed."""
        if self._open and wait_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._closing.wait()
        return self._open

    async def _listen(self, worker: _Worker, process: Process) -> None:
        """Take in what a process says until it ends or talks nonsense."""
        assert process.stdout is not None
        while True:
            try:
                (length,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
                if length > _FRAME_LIMIT:
                    raise BatchInferenceError(f"a frame of {length} bytes")  # noqa: TRY301
                message = unpack(await process.stdout.readexactly(length))
                answer = read_answer(message)
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            except BatchInferenceError:
                log.exception("worker %d is killed: it can't be understood", worker.number)
                process.kill()
                return
            if answer is None:
                worker.ready = worker.answered = True
            elif is_farewell(message) and isinstance(answer, TaskFault):
                worker.ready, worker.farewell = False, answer.message
            if answer is not None and worker.job is not None:
                self._tell(worker, answer)
            self._dispatch()

    def _tell(self, worker: _Worker, answer: Checkpoint | TaskResult) -> None:
        job = worker.job
        assert job is not None
        if not is_report(answer):
            worker.job = None
            self._jobs.pop(job.task.id, None)
        if job.stopped:
            return
        try:
            if isinstance(answer, Checkpoint):
                job.listener.report(job.task, answer)
            else:
                job.listener.done(job.task, answer)
        except Exception:
            log.exception("task %s: its listener failed", job.task.id)

    def _settle_death(self, worker: _Worker, status: int) -> None:
        job, worker.job = worker.job, None
        if not self._open:
            return
        if job is not None and job.stopped:
            log.info("worker %d was ended with its task %s", worker.number, job.task.id)
            return
        if worker.farewell:
            log.warning("worker %d has ended itself: %s", worker.number, worker.farewell)
            return
        how = _how(status)
        if self._metrics is not None:
            self._metrics.count("worker_deaths_total")
        log.error(
            "worker %d %s",
            worker.number,
            how,
            extra={"task": job.task.id if job else "", "exit_status": status},
        )
        if job is not None:
            worker.job = job
            self._tell(
                worker,
                TaskFault(
                    FaultKind.RETRY,
                    Reason.WORKER_LOST,
                    f"The worker process {how} during {job.task.kind}; the step is repeated",
                ),
            )


def _is_long(task: Task) -> bool:
    run, kind = task.run, task.kind
    if kind in _SHORT:
        return False
    if kind in {TaskKind.UPLOAD, TaskKind.COLLECT} and task.shard is not None:
        shard = next((shard for shard in run.shards if shard.index == task.shard), None)
        return shard is None or shard.size >= LONG_BYTES
    size = run.staged.size if run.staged else run.input.size if run.input else LONG_BYTES
    return size >= LONG_BYTES


def _kill(worker: _Worker) -> None:
    if worker.process is not None and worker.process.returncode is None:
        worker.process.kill()


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"


def inherited_environment() -> dict[str, str]:
    """This process's environment. OPENAI_* would change what the SDK does behind our settings."""
    return {name: text for name, text in os.environ.items() if not name.startswith("OPENAI_")}

"""A task runner over a function, with seeded delays and workers that die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, Task, TaskFault, TaskReport, TaskResult
from batchinference.ports import TaskListener
from fakes.world import Process, World, current_process

Perform = Callable[[Task, Callable[[TaskReport], None]], TaskResult]
"""Does a task: given the task and where to report, gives the result."""


class WorkerDied(BaseException):
    """Raised inside a `Perform` where its worker is killed; what it did until then stands."""


@dataclass
class _Job:
    """A task under way."""

    task: Task
    listener: TaskListener
    process: Process | None
    stopped: bool = False
    reports: list[TaskReport] = field(default_factory=list)


class FakeRunner:
    """`ports.TaskRunner` of one process.

    The function runs at once, at one moment between two delays; its reports and its result come
    one after another later, so that a death in between loses them as a pipe would.

    Attributes:
        orphan_share: how often a worker outlives the operator that started it and does its work.
        started: ids of all tasks that were started.
    """

    def __init__(
        self,
        perform: Perform,
        world: World | None = None,
        *,
        orphan_share: float = 0.0,
        slots: int = 2,
    ) -> None:
        self._perform = perform
        self._world = world or World()
        self._orphan_share = orphan_share
        self._slots = slots
        self._queued: list[_Job] = []
        self._busy: dict[str, _Job] = {}
        self.started: list[str] = []

    def start(self, task: Task, listener: TaskListener) -> None:
        process = current_process()
        if process is not None and not process.alive:
            return
        if task.id in self._busy or any(j.task.id == task.id for j in self._queued):
            return
        self.started.append(task.id)
        self._queued.append(_Job(task, listener, process))
        self._next()

    def stop(self, run_key: str) -> None:
        self._queued = [j for j in self._queued if j.task.run.key != run_key]
        for job in list(self._busy.values()):
            if job.task.run.key == run_key:
                job.stopped = True
                del self._busy[job.task.id]
        self._next()

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or under way."""
        return not self._queued and not self._busy

    def _next(self) -> None:
        while self._queued and len(self._busy) < self._slots:
            job = self._queued.pop(0)
            self._busy[job.task.id] = job
            self._world.trace(f"task {job.task.id} starts")
            delay = self._world.delay()
            if self._world.chance(self._orphan_share):
                # This worker does not notice its parent's death: its effects stand all the same.
                self._world.later(delay, self._work, job)
            else:
                self._later(job, delay, self._work, job)

    def _later(self, job: _Job, delay: float, callback: Callable[..., Any], *args: Any) -> None:
        if job.process is None:
            self._world.later(delay, callback, *args)
        else:
            job.process.later(delay, callback, *args)

    def _work(self, job: _Job) -> None:
        if job.stopped:
            return
        name = f"task.{job.task.kind.value}"
        try:
            self._crash_point(job, name, "before")
            try:
                result = self._perform(job.task, job.reports.append)
            except WorkerDied:
                result = TaskFault(FaultKind.RETRY, Reason.WORKER_LOST, "the worker died")
            self._crash_point(job, name, "after")
        except asyncio.CancelledError:
            return  # the operator died here
        self._world.trace(f"task {job.task.id} -> {_short(result)}")
        self._report(job, result)

    def _crash_point(self, job: _Job, name: str, when: str) -> None:
        if job.process is not None and current_process() is job.process:
            self._world.crash_point(name, when)

    def _report(self, job: _Job, result: TaskResult) -> None:
        """Reports first, one by one, then the result."""
        if job.stopped or (job.process is not None and not job.process.alive):
            return
        delay = self._world.delay()
        if job.reports:
            report = job.reports.pop(0)
            self._later(job, delay, self._tell, job, report, result)
        else:
            self._later(job, delay, self._finish, job, result)

    def _tell(self, job: _Job, report: TaskReport, result: TaskResult) -> None:
        process = current_process()
        if not job.stopped and (process is None or process.alive):
            job.listener.report(job.task, report)
            self._report(job, result)

    def _finish(self, job: _Job, result: TaskResult) -> None:
        if not job.stopped:
            self._busy.pop(job.task.id, None)
            job.listener.done(job.task, result)
            self._next()


def _short(result: TaskResult) -> str:
    if isinstance(result, TaskFault):
        return f"{result.kind.value} {result.reason}: {result.message}"
    return type(result).__name__

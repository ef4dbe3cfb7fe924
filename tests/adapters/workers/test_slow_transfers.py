"""What becomes of a worker process whose transfer is too slow."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.stub import Answer, Stub
from batchinference.adapters.workers import WorkerPool
from batchinference.model.run import RunPhase
from batchinference.model.work import Admitted, FaultKind, Task, TaskFault, TaskKind, TaskResult
from builders import run_of

CHILD = Path(__file__).with_name("slow_child.py")
SOON_S = 60.0
"""Far above what a process needs to begin, far below what the trickle takes: bytes x 5 ms."""


class Listener:
    """Remembers what it hears, and lets tests wait for it."""

    def __init__(self) -> None:
        self.results: dict[str, TaskResult] = {}
        self.news = asyncio.Event()

    def report(self, *_report: object) -> None:
        raise AssertionError("these tasks report nothing")

    def done(self, task: Task, result: TaskResult) -> None:
        self.results[task.id] = result
        self.news.set()

    async def result_of(self, task: Task) -> TaskResult:
        async with asyncio.timeout(SOON_S):
            while task.id not in self.results:
                self.news.clear()
                await self.news.wait()
        return self.results[task.id]


class Deaths:
    """Metrics of which one counts."""

    def __init__(self) -> None:
        self.counted: list[str] = []

    def count(self, name: str, **_labels: str) -> None:
        self.counted.append(name)

    def gauge(self, *_args: object, **_labels: str) -> None:
        pass

    def observe(self, *_args: object, **_labels: str) -> None:
        pass


def task(name: str, **work: str) -> Task:
    run = replace(run_of(name, shards=0), phase=RunPhase.ADMITTING)
    return Task(TaskKind.ADMIT, run, inline=json.dumps(work))


@asynccontextmanager
async def opened(spool: Path, workers: int, metrics: Deaths) -> AsyncIterator[WorkerPool]:
    command = (sys.executable, str(CHILD))
    pool = WorkerPool(spool, workers=workers, command=command, metrics=metrics)
    pool.open()
    try:
        yield pool
    finally:
        await pool.close()


@pytest.fixture
async def deaths() -> Deaths:
    return Deaths()


async def test_a_worker_ends_itself_over_a_slow_transfer_and_no_other_task_is_lost(
    tmp_path: Path, deaths: Deaths
) -> None:
    listener, spool = Listener(), tmp_path / "spool"
    async with opened(spool, 1, deaths) as pool:
        with Stub(lambda _asked: Answer(bytes(1 << 16), trickle=5)) as stub:
            slow, behind = task("slow", url=stub.url), [task(f"behind-{n}") for n in range(3)]
            for asked in (slow, *behind):
                pool.start(asked, listener)
            fault = await listener.result_of(slow)
            for asked in behind:
                assert isinstance(await listener.result_of(asked), Admitted)
        assert len(stub.asked) == 1
        assert not list(spool.rglob("half-done"))
    assert isinstance(fault, TaskFault)
    assert (fault.kind, fault.reason) == (FaultKind.RETRY, "StorageUnavailable")
    assert "GetObject of s3://b/key was given up after" in fault.message
    assert "slower than 1024 KiB/s" in fault.message
    assert "look at the endpoint" in fault.message
    assert list(listener.results) == [asked.id for asked in (slow, *behind)]
    assert deaths.counted == [], "a process that ended itself on purpose is no lost worker"

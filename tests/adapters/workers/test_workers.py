"""The pool of worker processes, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from batchinference.adapters.workers import LONG_BYTES, WorkerPool
from batchinference.model.run import RunPhase
from batchinference.model.staging import InputSnapshot
from batchinference.model.work import (
    Admitted,
    Checkpoint,
    FaultKind,
    Task,
    TaskFault,
    TaskKind,
    TaskReport,
    TaskResult,
)
from builders import run_of, shard_of

CHILD = Path(__file__).with_name("child.py")
COMMAND = (sys.executable, str(CHILD))


@dataclass
class Listener:
    """Remembers what it hears, and lets tests wait for it."""

    heard: list[tuple[str, Any]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, task: Task, report: TaskReport) -> None:
        self.heard.append((task.id, report))
        self.news.set()

    def done(self, task: Task, result: TaskResult) -> None:
        self.heard.append((task.id, result))
        self.news.set()

    def results(self) -> dict[str, TaskResult]:
        return {name: said for name, said in self.heard if not isinstance(said, Checkpoint)}

    def order(self) -> list[str]:
        return [name for name, said in self.heard if not isinstance(said, Checkpoint)]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def result_of(self, task: Task) -> TaskResult:
        await self.until(lambda: task.id in self.results())
        return self.results()[task.id]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what happens in other processes."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def task(name: str = "a", kind: TaskKind = TaskKind.ADMIT, size: int = 0, **work: Any) -> Task:
    snapshot = InputSnapshot("s3://x/y", 1, size, "f")
    run = replace(run_of(name, shards=0), phase=RunPhase.ADMITTING, input=snapshot)
    return Task(kind, run, inline=json.dumps(work))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@asynccontextmanager
async def opened(spool: Path, workers: int = 2) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(spool, workers=workers, command=COMMAND)
    pool.open()
    try:
        yield pool
    finally:
        await pool.close()
    assert pool.pids == ()


@pytest.fixture
async def pool(spool: Path) -> AsyncIterator[WorkerPool]:
    async with opened(spool) as made:
        yield made


@pytest.fixture
async def single(spool: Path) -> AsyncIterator[WorkerPool]:
    async with opened(spool, workers=1) as made:
        yield made


async def test_a_task_is_performed_and_its_reports_come_before_its_result(
    pool: WorkerPool,
) -> None:
    listener, asked = Listener(), task(report=3)
    pool.start(asked, listener)
    assert isinstance(await listener.result_of(asked), Admitted)
    said = [said for _, said in listener.heard]
    reports = [one for one in said[:3] if isinstance(one, Checkpoint)]
    assert [(one.shard.index, one.cursor.offset) for one in reports] == [(0, 0), (1, 9), (2, 18)]
    assert len(said) == 4


async def test_a_task_that_is_under_way_is_not_started_again(
    pool: WorkerPool, tmp_path: Path
) -> None:
    listener, asked = Listener(), task(wait_for=str(tmp_path / "go"))
    pool.start(asked, listener)
    await until(lambda: pool.running == 1)
    pool.start(asked, listener)
    assert (pool.running, pool.queued) == (1, 0)
    (tmp_path / "go").touch()
    await listener.result_of(asked)
    pool.start(asked, listener)  # and afterwards it may be
    await listener.until(lambda: len(listener.order()) == 2)


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ("stalled", TaskFault(FaultKind.STALLED, "BucketNotFound", "no bucket", 1.5)),
        ("waiting", TaskFault(FaultKind.WAITING, "DiskFull", "no room")),
    ],
)
async def test_a_fault_comes_back_as_a_value(pool: WorkerPool, how: str, want: TaskFault) -> None:
    listener, asked = Listener(), task(**{"raise": how})
    pool.start(asked, listener)
    assert await listener.result_of(asked) == want


async def test_a_foreign_exception_tells_its_type_and_not_its_text(
    spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listener, asked = Listener(), task(**{"raise": "foreign", "record": "my-secret-prompt"})
    async with opened(spool) as pool:
        pool.start(asked, listener)
        fault = await listener.result_of(asked)
    assert isinstance(fault, TaskFault)
    assert fault.kind is FaultKind.RETRY
    assert "ValueError" in fault.message
    said = capfd.readouterr().err
    assert "child.py" in said  # where it happened
    assert "my-secret-prompt" not in fault.message + said


async def test_what_a_library_prints_does_not_disturb_the_answers(
    spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listener, asked = Listener(), task(print="hello from a library")
    async with opened(spool) as pool:
        pool.start(asked, listener)
        assert isinstance(await listener.result_of(asked), Admitted)
    said = capfd.readouterr().err
    assert "hello from a library" in said
    assert "and past Python" in said


async def test_a_worker_logs_json_lines_without_secrets(
    spool: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    listener, asked = Listener(), task(log="using sk-abcdef0123456789")
    async with opened(spool) as pool:
        pool.start(asked, listener)
        await listener.result_of(asked)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line[:1] == "{"]
    (line,) = [line for line in lines if line["logger"] == "batchinference.child"]
    assert line["message"] == "using sk-***"
    assert line["level"] == "warning"


@pytest.mark.parametrize(("how", "said"), [("kill", "SIGKILL"), ("exit", "status 3")])
async def test_a_worker_that_dies_loses_its_task_and_is_replaced(
    single: WorkerPool, how: str, said: str
) -> None:
    listener, doomed, next_one = Listener(), task("a", die=how), task("b")
    single.start(doomed, listener)
    fault = await listener.result_of(doomed)
    assert isinstance(fault, TaskFault)
    assert (fault.kind, fault.reason) == (FaultKind.RETRY, "WorkerLost")
    assert said in fault.message
    single.start(next_one, listener)
    assert isinstance(await listener.result_of(next_one), Admitted)


async def test_kill_9_in_the_middle_of_a_task_leaves_no_files_behind(
    single: WorkerPool, spool: Path, tmp_path: Path
) -> None:
    listener = Listener()
    busy = task(leave=True, touch=str(tmp_path / "begun"), wait_for=str(tmp_path / "never"))
    single.start(busy, listener)
    await until((tmp_path / "begun").exists)
    (pid,) = single.pids
    assert list(spool.rglob("half-done"))
    os.kill(pid, signal.SIGKILL)
    fault = await listener.result_of(busy)
    assert isinstance(fault, TaskFault)
    assert fault.reason == "WorkerLost"
    assert not list(spool.rglob("half-done"))


async def test_stop_ends_queued_and_running_tasks_of_one_run_alone(
    pool: WorkerPool, tmp_path: Path
) -> None:
    listener = Listener()
    never = str(tmp_path / "never")
    running = task("a", touch=str(tmp_path / "a-begun"), wait_for=never)
    queued = replace(running, kind=TaskKind.RELEASE)
    other = task("b", touch=str(tmp_path / "b-begun"), wait_for=str(tmp_path / "go"))
    for asked in (running, other, queued):
        pool.start(asked, listener)
    await until(lambda: (tmp_path / "a-begun").exists() and (tmp_path / "b-begun").exists())
    before = set(pool.pids)
    pool.stop(running.run.key)
    assert pool.queued == 0
    (tmp_path / "go").touch()
    assert isinstance(await listener.result_of(other), Admitted)
    await until(lambda: len(pool.pids) == 2 and set(pool.pids) != before)
    assert len(set(pool.pids) & before) == 1  # one was replaced, the other's worker lives
    again = task("a")
    pool.start(again, listener)  # the run may start over
    assert isinstance(await listener.result_of(again), Admitted)
    assert set(listener.results()) == {other.id, again.id}
    assert listener.order().count(again.id) == 1  # the stopped one said nothing, ever


async def test_short_tasks_do_not_wait_behind_long_ones(pool: WorkerPool, tmp_path: Path) -> None:
    listener = Listener()
    go = str(tmp_path / "go")
    long_ones = [task(f"long-{n}", TaskKind.STAGE, LONG_BYTES, wait_for=go) for n in range(3)]
    for asked in long_ones:
        pool.start(asked, listener)
    await until(lambda: pool.running == 1)
    short_ones = [task(f"short-{n}") for n in range(5)]
    for asked in short_ones:
        pool.start(asked, listener)
    await listener.until(lambda: len(listener.order()) == 5)
    assert listener.order() == [asked.id for asked in short_ones]
    assert (pool.running, pool.queued) == (1, 2)
    (tmp_path / "go").touch()
    await listener.until(lambda: len(listener.order()) == 8)


async def test_small_stagings_use_every_worker(pool: WorkerPool, tmp_path: Path) -> None:
    listener, go = Listener(), str(tmp_path / "go")
    for n in range(2):
        pool.start(task(f"small-{n}", TaskKind.STAGE, 1000, wait_for=go), listener)
    await until(lambda: pool.running == 2)
    (tmp_path / "go").touch()
    await listener.until(lambda: len(listener.order()) == 2)


async def test_a_run_with_many_tasks_does_not_hold_up_another(
    single: WorkerPool, tmp_path: Path
) -> None:
    listener, go = Listener(), str(tmp_path / "go")
    single.start(task("first", wait_for=go), listener)
    await until(lambda: single.running == 1)
    shards = tuple(shard_of(n) for n in range(4))
    many = replace(run_of("many", shards=4), shards=shards)
    for shard in shards:
        single.start(Task(TaskKind.UPLOAD, many, shard.index, 1, inline="{}"), listener)
    one = task("one")
    single.start(one, listener)
    (tmp_path / "go").touch()
    await listener.until(lambda: len(listener.order()) == 6)
    assert listener.order().index(one.id) <= 2


async def test_a_slow_account_leaves_the_free_worker_to_another(
    pool: WorkerPool, tmp_path: Path
) -> None:
    def of_account(account: str, name: str, **work: Any) -> Task:
        plain = task(name, **work)
        pinned = replace(plain.run.provider, account=account)
        return replace(plain, run=replace(plain.run, provider=pinned))

    listener, gates = Listener(), [tmp_path / "first", tmp_path / "second"]
    slow = [of_account("slow", f"held-{n}", wait_for=str(gate)) for n, gate in enumerate(gates)]
    for held in slow:
        pool.start(held, listener)
    await until(lambda: pool.running == len(slow))
    queued = [of_account("slow", f"slow-{n}") for n in range(5)]
    other = of_account("other", "other")
    for waiting in (*queued, other):
        pool.start(waiting, listener)
    gates[0].touch()
    await listener.until(lambda: len(listener.order()) == 7)
    assert listener.order()[:2] == [slow[0].id, other.id]
    gates[1].touch()
    await listener.result_of(slow[1])


async def test_secrets_are_in_no_argument_and_no_environment(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    secret = "sk-" + "s3cr3t" * 5
    asked = replace(
        task(touch=str(tmp_path / "begun"), wait_for=str(tmp_path / "go")),
        connections={"provider": {"secrets": {"apiKey": {"value": secret}}}},
    )
    pool.start(asked, listener)
    await until((tmp_path / "begun").exists)
    for pid in pool.pids:
        for file in ("environ", "cmdline"):
            assert secret not in Path(f"/proc/{pid}/{file}").read_text()
    (tmp_path / "go").touch()
    result = await listener.result_of(asked)
    assert isinstance(result, Admitted)
    assert result.snapshot.size == len(secret)  # it got there all the same


async def test_settings_of_the_sdks_are_not_inherited(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "https://elsewhere.example")
    pool, listener = WorkerPool(spool, workers=1, command=COMMAND), Listener()
    pool.open()
    asked = task(environment="OPENAI_BASE_URL")
    pool.start(asked, listener)
    result = await listener.result_of(asked)
    await pool.close()
    assert isinstance(result, Admitted)
    assert result.snapshot.source == "absent"


async def test_closing_ends_the_processes_in_the_middle_of_their_tasks(
    spool: Path, tmp_path: Path
) -> None:
    pool, listener = WorkerPool(spool, workers=2, command=COMMAND), Listener()
    pool.open()
    pool.start(task(touch=str(tmp_path / "begun"), wait_for=str(tmp_path / "never")), listener)
    await until((tmp_path / "begun").exists)
    pids = pool.pids
    await pool.close()
    assert not any(alive(pid) for pid in pids)
    assert listener.heard == []


async def test_what_a_killed_operator_left_is_removed(spool: Path) -> None:
    (spool / "worker-7" / "run").mkdir(parents=True)
    (spool / "of-somebody-else").mkdir()
    async with opened(spool):
        assert [path.name for path in spool.iterdir()] == ["of-somebody-else"]


async def test_a_child_ends_when_its_input_does(tmp_path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        *COMMAND,
        "--spool",
        str(tmp_path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    await child.stdout.readexactly(4)  # it is ready
    child.stdin.close()
    async with asyncio.timeout(10):
        assert await child.wait() == 0


def test_children_die_with_an_operator_that_is_killed(tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from batchinference.adapters.workers import WorkerPool
async def main():
    pool = WorkerPool(Path({str(tmp_path)!r}), workers=2, command={COMMAND!r})
    pool.open()
    while not all(worker.ready for worker in pool._workers):
        await asyncio.sleep(0.01)
    print(*pool.pids, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    operator = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert operator.stdout is not None
    with operator.stdout:
        pids = [int(pid) for pid in operator.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        operator.kill()
        operator.wait()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_a_worker_that_cannot_start_is_tried_again_ever_more_slowly(spool: Path) -> None:
    waits: list[float] = []

    class Impatient(WorkerPool):
        async def _still_open(self, wait_s: float) -> bool:
            waits.append(wait_s)
            return await super()._still_open(min(wait_s, 0.001))

    pool = Impatient(spool, workers=1, command=(*COMMAND, "--broken"))
    pool.open()
    await until(lambda: len(waits) >= 4)
    await pool.close()
    assert waits[:4] == [0.0, 0.5, 1.0, 2.0]


async def test_a_warm_worker_answers_in_milliseconds(single: WorkerPool) -> None:
    listener = Listener()
    warm = task("warm")
    single.start(warm, listener)
    await listener.result_of(warm)
    took = []
    for n in range(50):
        asked = task(f"n{n}")
        started = time.perf_counter()
        single.start(asked, listener)
        await listener.result_of(asked)
        took.append(time.perf_counter() - started)
    median_ms = sorted(took)[25] * 1000
    print(f"round trip of a task: {median_ms:.2f} ms")
    assert median_ms < 50  # a generous bound for busy machines

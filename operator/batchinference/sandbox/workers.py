"""Where heavy work runs: small tasks in threads, large ones in worker processes.

So the HTTP side stays responsive while tens of thousands of records are answered. Owns the
worker processes. Must not know what a task does.
"""

import asyncio
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import msgspec

from .work import CheckBedrock, Outcome, RunBedrock, Task

_SMALL_BYTES = 1 << 20  # below this a process costs more than it saves


class WorkerFailed(Exception):
    """A worker process died or reported a bug; its last words are the message."""


class _Failure(msgspec.Struct, tag=True):
    message: str


def perform(task: Task) -> Outcome:
    """Do a task here and now."""
    from . import bedrock_work, openai_work, work  # noqa: PLC0415  # only where work is done

    match task:
        case work.CheckOpenAI():
            return openai_work.check(task)
        case work.RunOpenAI():
            return openai_work.run(task)
        case work.CheckBedrock():
            return bedrock_work.check(task)
        case work.RunBedrock():
            return bedrock_work.run(task)


class Workers:
    """Runs tasks; at most `processes` large ones at a time."""

    def __init__(self, processes: int = 1) -> None:
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="sandbox-work")
        self._large = ThreadPoolExecutor(max_workers=processes, thread_name_prefix="sandbox-large")
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        self._started: list[subprocess.Popen[bytes]] = []

    async def run(self, task: Task) -> Outcome:
        """Perform a task off the event loop.

        Raises:
            WorkerFailed: the worker process broke.
        """
        loop = asyncio.get_running_loop()
        if _input_bytes(task) < _SMALL_BYTES:
            return await loop.run_in_executor(self._threads, perform, task)
        return await loop.run_in_executor(self._large, self._ask, task)

    def _ask(self, task: Task) -> Outcome:
        process = self._start() if self._idle.empty() else self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise WorkerFailed(f"a worker process ended with code {process.wait()}")
        self._idle.put(process)
        outcome: Outcome | _Failure = msgspec.json.decode(answer, type=Outcome | _Failure)
        if isinstance(outcome, _Failure):
            raise WorkerFailed(outcome.message)
        return outcome

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End the worker processes; a task that runs is finished first."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._large.shutdown(wait=True, cancel_futures=True)
        for process in self._started:
            if process.stdin is not None:
                process.stdin.close()  # end of input ends the worker
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _input_bytes(task: Task) -> int:
    paths = task.paths if isinstance(task, CheckBedrock | RunBedrock) else [task.path]
    return sum(Path(path).stat().st_size for path in paths)


def main() -> None:
    """Serve tasks on standard input until it closes, so a worker never outlives its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole process group
        signal.signal(number, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        outcome: Outcome | _Failure
        try:
            outcome = perform(msgspec.json.decode(line, type=Task))
        except Exception as error:  # noqa: BLE001  # reported to the parent, which raises it
            outcome = _Failure(f"{type(error).__name__}: {error}")
        sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

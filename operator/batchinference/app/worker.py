"""The worker process: takes tasks from standard input, performs them, answers on standard output.

Started by `adapters.workers`, one task at a time. Whatever else a library prints goes to standard
error; secrets come with the tasks and stay in memory. The process ends with its parent, and ends
itself over a transfer that is too slow: what hangs in a library's call can't be stopped otherwise.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from batchinference.adapters import task_wire
from batchinference.adapters.transfers import TRANSFERS, Transfers
from batchinference.errors import Fault, Permanent, Retry, Stalled, Waiting
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, Task, TaskFault, TaskReport, TaskResult
from batchinference.telemetry.logs import configure_from_environment

log = logging.getLogger(__name__)

Perform = Callable[[Task, Path, Callable[[TaskReport], None]], TaskResult]
"""Does a task, given a folder for its files and where to report."""

_PR_SET_PDEATHSIG = 1

_KINDS = (
    (Stalled, FaultKind.STALLED),
    (Waiting, FaultKind.WAITING),
    (Retry, FaultKind.RETRY),
    (Permanent, FaultKind.PERMANENT),
)


_WATCH_S = 1.0
_TOO_SLOW = 75
"""Exit status, for the process table alone: the farewell says it to the operator."""


class _Answers:
    """Standard output, for one frame at a time."""

    def __init__(self) -> None:
        """Take it for answers alone; what libraries print goes to standard error."""
        sys.stdout.flush()
        self._stream = os.fdopen(os.dup(1), "wb")
        self._lock = threading.Lock()
        os.dup2(2, 1)

    def send(self, frame: bytes) -> None:
        with self._lock:
            self._send(frame)

    def _send(self, frame: bytes) -> None:
        self._stream.write(frame)
        self._stream.flush()

    def watch(self, transfers: Transfers, every_s: float) -> None:
        """End the process over a transfer that is too slow, with its fault as the last answer."""
        while True:
            time.sleep(every_s)
            if transfers.too_slow() is None:
                continue
            with self._lock:
                # Asked again: while the lock was taken by its answer, the task may have ended.
                slow = transfers.too_slow()
                if slow is not None:
                    fault = TaskFault(FaultKind.RETRY, slow.reason, slow.message, slow.after_s)
                    self._send(task_wire.farewell_frame(fault))
                    os._exit(_TOO_SLOW)


def serve(
    perform: Perform,
    arguments: Sequence[str] | None = None,
    *,
    transfers: Transfers = TRANSFERS,
    watch_s: float = _WATCH_S,
) -> None:
    """Perform tasks until standard input ends; then the process is over at once.

    Args:
        perform: does a task.
        arguments: the command line's.
        transfers: where tasks count what they move.
        watch_s: seconds between two looks at it.
    """
    parser = argparse.ArgumentParser(prog="batchinference.app.worker")
    parser.add_argument("--spool", type=Path, required=True)
    spool: Path = parser.parse_args(arguments).spool
    _die_with_parent()
    configure_from_environment()
    answers = _Answers()
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    # Read all the time, so that the end of the input is seen in the middle of a task too.
    threading.Thread(target=_read, args=(tasks,), daemon=True, name="tasks").start()
    watch = (transfers, watch_s)
    threading.Thread(target=answers.watch, args=watch, daemon=True, name="transfers").start()
    answers.send(task_wire.ready())
    while True:
        task = tasks.get()
        answers.send(task_wire.result_frame(_perform(perform, task, spool, answers)))


def _perform(perform: Perform, task: Task, spool: Path, answers: _Answers) -> TaskResult:
    def report(what: TaskReport) -> None:
        answers.send(task_wire.report_frame(what))

    try:
        return perform(task, spool, report)
    except Fault as fault:
        kind = next(kind for cls, kind in _KINDS if isinstance(fault, cls))
        return TaskFault(kind, fault.reason, fault.message, fault.after_s)
    except Exception as fault:  # noqa: BLE001 - a task must answer, whatever broke in it
        # The text of a foreign exception may hold records: only its type is told, and its frames.
        frames = "".join(traceback.format_tb(fault.__traceback__))
        log.error("task %s failed with %s\n%s", task.id, type(fault).__name__, frames)  # noqa: TRY400
        return TaskFault(
            FaultKind.RETRY,
            Reason.INTERNAL_ERROR,
            f"{task.kind} failed with {type(fault).__name__}; see the worker's log",
        )


def _read(tasks: queue.SimpleQueue[Task]) -> None:
    try:
        while (message := task_wire.read_frame(sys.stdin.buffer)) is not None:
            tasks.put(task_wire.read_task(message))
    except Exception:
        log.exception("the operator can't be understood")
        os._exit(1)
    # Not sys.exit: that would end this thread alone, and a task may run for hours.
    os._exit(0)


def _die_with_parent() -> None:
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def main() -> None:
    """What `python -m batchinference.app.worker` runs."""
    # Imported here: tests serve other work without the weight of the SDKs.
    from batchinference.app.bench import ConnectionsCache, workbench  # noqa: PLC0415
    from batchinference.tasks.run import perform  # noqa: PLC0415

    cache = ConnectionsCache()

    def work(task: Task, spool: Path, report: Callable[[TaskReport], None]) -> TaskResult:
        provider, kube = task.connections["provider"], task.connections["kube"]
        connections = cache.of(task.run, provider["settings"], provider["secrets"], kube)
        return perform(task, workbench(task, connections, spool), report)

    serve(work)


if __name__ == "__main__":
    main()

"""`perform`: one task, from a value to a value. Owns the mapping of exceptions to `TaskFault`s.

A message never holds record contents: of an exception that nobody expected only its type and place
are told.
"""

from __future__ import annotations

import errno
import gc
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchinference.errors import Fault, InvalidObject
from batchinference.model.run import Shard
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, Task, TaskFault, TaskKind, TaskResult
from batchinference.ports import SourceChanged
from batchinference.tasks.admit import admit
from batchinference.tasks.clean import clean, release
from batchinference.tasks.collect import collect
from batchinference.tasks.finish import finish
from batchinference.tasks.pool import pool
from batchinference.tasks.stage import stage
from batchinference.tasks.upload import upload
from batchinference.tasks.workbench import Report, Workbench

_log = logging.getLogger(__name__)

_GC_THRESHOLD = 100_000

_FULL = {errno.ENOSPC, errno.EDQUOT}


def perform(task: Task, bench: Workbench, report: Report) -> TaskResult:
    """Do the task. What keeps it from being done comes back as a TaskFault; nothing is raised but
    what ends a process. Every task may be run again after a crash at any point.
    """
    try:
        with _few_collections():
            return _perform(task, bench, report)
    except Fault as fault:
        return TaskFault.of(fault)
    except SourceChanged as changed:
        is_input = task.kind in {TaskKind.ADMIT, TaskKind.STAGE}
        reason = Reason.INPUT_CHANGING if is_input else Reason.STAGING_UNAVAILABLE
        return TaskFault(FaultKind.RETRY, reason, str(changed))
    except InvalidObject as invalid:
        return TaskFault(FaultKind.STALLED, Reason.INVALID_SPEC, str(invalid))
    except OSError as error:
        if error.errno in _FULL:
            return TaskFault(
                FaultKind.WAITING,
                Reason.DISK_FULL,
                f"The worker's disk under {bench.spool} is full; the task goes on when there is "
                "room",
            )
        return _unexpected(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the task did not die of it
        return _unexpected(error)


@contextmanager
def _few_collections() -> Iterator[None]:
    """Look for cycles rarely: records make none, and looking took a tenth of the time."""
    thresholds = gc.get_threshold()
    gc.set_threshold(_GC_THRESHOLD, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _perform(task: Task, bench: Workbench, report: Report) -> TaskResult:
    run = task.run
    match task.kind:
        case TaskKind.ADMIT:
            return admit(run, bench, task.replaces)
        case TaskKind.STAGE:
            return stage(run, bench, report)
        case TaskKind.UPLOAD:
            assert task.ordinal is not None
            return upload(run, _shard(task), task.ordinal, bench)
        case TaskKind.COLLECT:
            return collect(run, _shard(task), bench, failing_s=task.failing_s)
        case TaskKind.POOL:
            return pool(run, task.sources, bench)
        case TaskKind.FINISH:
            return finish(run, bench, may_go_on=task.may_go_on)
        case TaskKind.CLEAN:
            return clean(run, bench)
        case TaskKind.RELEASE:
            return release(run, bench)


def _shard(task: Task) -> Shard:
    assert task.shard is not None
    return task.run.shards[task.shard]


def _unexpected(error: Exception) -> TaskFault:
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f" at {Path(last.filename).name}:{last.lineno}" if last else ""
    name = type(error).__name__
    # Frames only: the text of an exception may quote a record.
    _log.error("task failed with %s\n%s", name, "".join(traceback.format_tb(error.__traceback__)))
    return TaskFault(FaultKind.RETRY, Reason.INTERNAL_ERROR, f"{name}{place}; see the worker's log")

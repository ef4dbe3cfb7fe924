"""How tasks, their reports and their results cross the pipe between the operator and a worker.

A frame is four bytes of length and a JSON object. Both sides are of one version: a worker is a
child of the operator that talks to it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import msgspec

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode, encode
from batchinference.model.work import (
    Admitted,
    Checkpoint,
    Cleaned,
    FaultKind,
    Finished,
    Pooled,
    ShardCollected,
    StageDone,
    Task,
    TaskFault,
    TaskReport,
    TaskResult,
    Uploaded,
)

HEADER = struct.Struct(">I")

_REPORTS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Checkpoint,)}
_RESULTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Admitted,
        StageDone,
        Uploaded,
        ShardCollected,
        Pooled,
        Finished,
        Cleaned,
    )
}


def ready() -> bytes:
    """The frame of a worker that has imported everything and waits for a task."""
    return _frame({"ready": True})


def task_frame(task: Task) -> bytes:
    """The frame that hands a task to a worker, secrets and all."""
    return _frame({"task": encode(task)})


def report_frame(report: TaskReport) -> bytes:
    """The frame of a report."""
    return _frame({"report": _tagged(report)})


def result_frame(result: TaskResult) -> bytes:
    """The frame of a result, the last one of its task."""
    if isinstance(result, TaskFault):
        return _frame(_fault(result))
    return _frame({"result": _tagged(result)})


def farewell_frame(fault: TaskFault) -> bytes:
    """The frame of a fault for which the worker ends itself: it must be given no other task."""
    return _frame({**_fault(fault), "farewell": True})


def read_task(message: Mapping[str, Any]) -> Task:
    """The task in a message to a worker.

    Raises:
        InvalidObject: it is none.
    """
    return decode(Task, message.get("task"), "task")


def read_answer(message: Mapping[str, Any]) -> TaskReport | TaskResult | None:
    """The report or result in a message of a worker; None for the one that says it is ready.

    Raises:
        InvalidObject: it is none of these.
    """
    if "report" in message:
        report: TaskReport = _untagged(message["report"], _REPORTS, "report")
        return report
    if "result" in message:
        result: TaskResult = _untagged(message["result"], _RESULTS, "result")
        return result
    if "fault" in message:
        kind, reason, text, after_s = message["fault"]
        return TaskFault(FaultKind(kind), reason, text, after_s)
    if "ready" in message:
        return None
    raise InvalidObject("", f"a worker sent {sorted(message)}")


def is_report(answer: TaskReport | TaskResult) -> bool:
    """Whether the task goes on after this."""
    return isinstance(answer, TaskReport)


def is_farewell(message: Mapping[str, Any]) -> bool:
    """Whether the worker that sent the message ends now."""
    return bool(message.get("farewell"))


def read_frame(stream: BinaryIO) -> Mapping[str, Any] | None:
    """The next message of a blocking stream, None at its end.

    Raises:
        EOFError: the stream ended inside of a frame.
    """
    header = _exactly(stream, HEADER.size)
    if not header:
        return None
    (length,) = HEADER.unpack(header)
    return unpack(_exactly(stream, length))


def unpack(content: bytes) -> Mapping[str, Any]:
    """The message in a frame's content.

    Raises:
        InvalidObject: it is no JSON object.
    """
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.MsgspecError as fault:
        raise InvalidObject("", f"a frame holds no message: {fault}") from None


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if content and len(content) < size:
        raise EOFError("the stream ended inside of a frame")
    return content


def _frame(message: Mapping[str, Any]) -> bytes:
    content = msgspec.json.encode(message)
    return HEADER.pack(len(content)) + content


def _fault(fault: TaskFault) -> dict[str, Any]:
    # Not by the codec: seconds are a float, which the journal's codec refuses.
    return {"fault": [fault.kind, fault.reason, fault.message, fault.after_s]}


def _tagged(value: Any) -> dict[str, Any]:
    return {"kind": type(value).__name__, "value": encode(value)}


def _untagged(message: Any, kinds: Mapping[str, type[Any]], path: str) -> Any:
    kind = kinds.get(message.get("kind", "")) if isinstance(message, dict) else None
    if kind is None:
        raise InvalidObject(path, f"must be one of {', '.join(kinds)}")
    return decode(kind, message.get("value"), path)

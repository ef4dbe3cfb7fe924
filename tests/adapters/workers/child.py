"""A worker process with tiny work: what it does stands in the inline text of its task."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from batchinference.app.worker import serve
from batchinference.errors import Stalled, Waiting
from batchinference.model.run import Shard, ShardState
from batchinference.model.staging import Cursor, InputSnapshot
from batchinference.model.work import Admitted, Checkpoint, Task, TaskReport, TaskResult


def perform(task: Task, spool: Path, report: Callable[[TaskReport], None]) -> TaskResult:
    work = json.loads(task.inline or "{}")
    if "report" in work:
        for number in range(work["report"]):
            shard = Shard(number, ShardState.STAGED, 1, number, number, 9, 1, "0" * 64)
            report(Checkpoint(shard, Cursor(0, 9 * number, number, number, 0)))
    if "print" in work:
        print(work["print"], flush=True)
        os.write(1, b"and past Python\n")
    if "log" in work:
        import logging

        logging.getLogger("batchinference.child").warning(work["log"])
    if "leave" in work:
        spool.mkdir(parents=True, exist_ok=True)
        (spool / "half-done").write_text("bytes")
    if "touch" in work:
        Path(work["touch"]).touch()
    if "wait_for" in work:
        while not Path(work["wait_for"]).exists():
            time.sleep(0.005)
    if work.get("die") == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if work.get("die") == "exit":
        os._exit(3)
    if work.get("raise") == "stalled":
        raise Stalled("BucketNotFound", "no bucket", after_s=1.5)
    if work.get("raise") == "waiting":
        raise Waiting("DiskFull", "no room")
    if work.get("raise") == "foreign":
        raise ValueError(f"quoting the record: {work['record']}")
    if "environment" in work:
        return Admitted(InputSnapshot(os.environ.get(work["environment"], "absent"), 1, 1, "x"))
    secret = task.connections.get("provider", {}).get("secrets", {}).get("apiKey", {}).get("value")
    return Admitted(InputSnapshot(f"pid {os.getpid()}", 1, len(secret or ""), "x"))


if __name__ == "__main__":
    if "--broken" in sys.argv:
        sys.exit(5)
    serve(perform)

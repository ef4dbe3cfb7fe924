"""A worker process whose tasks read from object storage, held to a brisk pace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from batchinference.adapters.s3 import S3Store
from batchinference.adapters.transfers import Pace, Transfers
from batchinference.app.worker import serve
from batchinference.model.staging import InputSnapshot
from batchinference.model.work import Admitted, Task, TaskReport, TaskResult

TRANSFERS = Transfers(Pace(idle_s=0.15, answer_s=0.0, least_bytes_per_s=1 << 20))


def perform(task: Task, spool: Path, report: Callable[[TaskReport], None]) -> TaskResult:
    work = json.loads(task.inline or "{}")
    if "url" in work:
        spool.mkdir(parents=True)
        (spool / "half-done").touch()
        s3 = {"endpointURL": work["url"], "region": "us-east-1"}
        settings = {"storage": {"s3": {**s3, "credentialsSecretRef": {"name": "aws"}}}}
        secrets = {"storage": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}}
        S3Store(settings, secrets, transfers=TRANSFERS).get("s3://b/key")
    return Admitted(InputSnapshot("s3://b/key", 1, 1, "x"))


if __name__ == "__main__":
    serve(perform, transfers=TRANSFERS, watch_s=0.02)

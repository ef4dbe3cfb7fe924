"""UPLOAD: hand one staged shard to the provider, for one ordinal alone."""

from __future__ import annotations

from batchinference.core.keys import submission_id
from batchinference.model.run import Run, Shard
from batchinference.model.work import Uploaded
from batchinference.tasks.layout import layout
from batchinference.tasks.workbench import Workbench


def upload(run: Run, shard: Shard, ordinal: int, bench: Workbench) -> Uploaded:
    """Upload it. Raises as `ports.BatchData.upload`."""
    uri = layout(run).shard(shard.index)
    submission = submission_id(run, shard, ordinal)
    return Uploaded(bench.data.upload(bench.staging, uri, run, submission))

"""CLEAN and RELEASE: remove what is ours to remove. Both may be run again at any point."""

from __future__ import annotations

from batchinference.model.run import Run
from batchinference.model.work import Cleaned
from batchinference.tasks.admit import claim_of
from batchinference.tasks.layout import layout
from batchinference.tasks.workbench import Workbench


def clean(run: Run, bench: Workbench) -> Cleaned:
    """After the manifest stands: the provider's files, then staging."""
    bench.data.delete_files(run)
    bench.staging.delete_prefix(layout(run).prefix)
    return Cleaned()


def release(run: Run, bench: Workbench) -> Cleaned:
    """Of a run that never submitted: the claim first, so that the place is free whatever fails
    afterwards; then staging; then uploads that were never used.
    """
    bench.output.release(claim_of(run))
    bench.staging.delete_prefix(layout(run).prefix)
    if run.shards:
        bench.data.delete_files(run)
    return Cleaned()

"""UPLOAD: hand one staged shard to the provider, for one ordinal alone."""

from __future__ import annotations

import hashlib

from batchinference.core.keys import submission_id
from batchinference.errors import Retry, Stalled
from batchinference.model.run import Run, Shard
from batchinference.model.status import Reason
from batchinference.model.work import Uploaded
from batchinference.ports import ObjectInfo, ObjectStore
from batchinference.tasks import spool
from batchinference.tasks.layout import layout
from batchinference.tasks.workbench import Workbench


def upload(run: Run, shard: Shard, ordinal: int, bench: Workbench) -> Uploaded:
    """Upload it, if it is what the journal says: another operator that was late may have staged
    an input over it that was changed since, and its answers would be joined to other records.

    Raises as `ports.BatchData.upload`, and:
        Stalled: the staged bytes are gone or are others.
        Retry: they were overwritten meanwhile.
    """
    uri = layout(run).shard(shard.index)
    sound = _verified(shard, bench.staging, uri)
    submission = submission_id(run, shard, ordinal)
    input_ref = bench.data.upload(bench.staging, uri, run, submission)
    if spool.staged(bench.staging, uri).etag != sound.etag:
        # Perhaps by the same bytes: the next try looks.
        raise Retry(Reason.STAGING_UNAVAILABLE, f"{uri} was overwritten while it was sent")
    return Uploaded(input_ref)


def _verified(shard: Shard, store: ObjectStore, uri: str) -> ObjectInfo:
    info = spool.staged(store, uri)
    digest = hashlib.sha256()
    for chunk in store.read(info):
        digest.update(chunk)
    if digest.hexdigest() != shard.sha256:
        raise Stalled(
            Reason.STAGING_UNAVAILABLE,
            f"{uri} is not what was staged as shard {shard.index} (its sha256 began with "
            f"{shard.sha256[:12]}): somebody has overwritten it, so no batch is made of it. Bring "
            "the earlier version of the object back, or cancel the job and create it anew",
        )
    return info

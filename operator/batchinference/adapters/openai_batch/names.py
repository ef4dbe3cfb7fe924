"""How a batch and its files say which submission they are (protocol 1.3), and back.

Pure. The metadata keys and the file name are found again by later releases: never change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchinference.model.batch import SubmissionID

RUN = "batchinference_run"
SHARD = "batchinference_shard"
ORDINAL = "batchinference_ordinal"
HASH = "batchinference_hash"


def metadata(submission: SubmissionID) -> dict[str, str]:
    """The batch's metadata; values must be strings."""
    return {
        RUN: submission.tag,
        SHARD: str(submission.shard),
        ORDINAL: str(submission.ordinal),
        HASH: submission.content_hash,
    }


def submission_of(metadata: Any) -> SubmissionID | None:
    """The submission that metadata names; None where it is not ours or was not kept whole."""
    if not isinstance(metadata, Mapping):
        return None
    tag, shard, ordinal = metadata.get(RUN), metadata.get(SHARD), metadata.get(ORDINAL)
    if not isinstance(tag, str) or not tag:
        return None
    try:
        return SubmissionID(tag, int(str(shard)), int(str(ordinal)), str(metadata.get(HASH) or ""))
    except ValueError:
        return None


def file_name(submission: SubmissionID) -> str:
    """The name of the file uploaded for one ordinal; servers insist on the suffix."""
    return (
        f"{file_prefix(submission.tag)}{submission.shard:05d}-o{submission.ordinal}"
        f"-{submission.content_hash[:12]}.jsonl"
    )


def file_prefix(tag: str) -> str:
    """What the names of all files of a run begin with."""
    return f"{tag}-s"

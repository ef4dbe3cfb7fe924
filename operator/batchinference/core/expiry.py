"""When the object of a finished run is deleted: `ttlSecondsAfterFinished`. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode
from batchinference.model.job import BatchInferenceJob
from batchinference.model.metadata import ObjectMeta
from batchinference.model.status import JobStatus

_MARKS = (
    ("argocd.argoproj.io/tracking-id", "Argo CD"),
    ("argocd.argoproj.io/instance", "Argo CD"),
    ("kustomize.toolkit.fluxcd.io/name", "Flux"),
    ("helm.toolkit.fluxcd.io/name", "Flux"),
    ("meta.helm.sh/release-name", "Helm"),
)
"""Annotations and labels by which tools know what is theirs; the most telling first."""


def expires_at(job: BatchInferenceJob) -> datetime | None:
    """When a finished job's time has come; None when it has none, or is not finished.

    It counts from the later of the run's end and the object's creation (protocol 7.7): an object
    that finds its finished run again is there for as long as any other.
    """
    ttl = job.spec.ttl_seconds_after_finished
    if ttl is None:
        return None
    try:
        ended = decode(JobStatus, job.status, ignore_unknown=True).completion_time
    except InvalidObject:
        return None
    if ended is None:
        return None
    return max(ended, job.metadata.creation_time or ended) + timedelta(seconds=ttl)


def manager_of(meta: ObjectMeta) -> str:
    """The tool that would create the object again; "" when there is no sign of one."""
    marks = {**meta.labels, **meta.annotations}
    return next((tool for mark, tool in _MARKS if mark in marks), "")


def recreation_warning(job: BatchInferenceJob) -> str:
    """What comes of a time to live where a tool manages the object; "" where none does."""
    tool, ttl = manager_of(job.metadata), job.spec.ttl_seconds_after_finished
    if not tool or ttl is None:
        return ""
    return (
        f"`ttlSecondsAfterFinished: {ttl}` deletes this object after its run, and {tool}, which "
        "manages it, creates it again: it then shows its finished run and pays nothing, but it "
        f"comes and goes. Take the field away, or create such jobs outside of {tool}"
    )

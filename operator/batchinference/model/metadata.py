"""The metadata that every Kubernetes object carries, as far as the operator reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from batchinference.model.codec import decode, wire

GROUP = "batchinference.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

PAUSED = f"{GROUP}/paused"
"""Annotation; "true" on a job, or on a provider object: nothing new begins."""


@dataclass(frozen=True, slots=True)
class ObjectMeta:
    """Identity and life of an object.

    A manifest that no API server has seen has neither uid nor times; `generate_name` is "" where
    the name was given, and `namespace` is "" for cluster-scoped kinds.
    """

    name: str = ""
    namespace: str = ""
    generate_name: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_time: datetime | None = field(default=None, metadata=wire("creationTimestamp"))
    deletion_time: datetime | None = field(default=None, metadata=wire("deletionTimestamp"))
    finalizers: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_being_deleted(self) -> bool:
        """Whether somebody has asked for its deletion."""
        return self.deletion_time is not None

    @property
    def is_paused(self) -> bool:
        """Whether somebody put the annotation on it that holds it."""
        return self.annotations.get(PAUSED) == "true"


def parse_metadata(manifest: Mapping[str, Any]) -> ObjectMeta:
    """The metadata of any object; what we do not read (managedFields) is ignored.

    Works on an object whose spec does not decode, so that its status can say so.

    Raises:
        InvalidObject: a member has the wrong type.
    """
    return decode(ObjectMeta, manifest.get("metadata", {}), "metadata", ignore_unknown=True)

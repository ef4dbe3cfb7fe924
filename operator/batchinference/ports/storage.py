"""Where a worker's bytes are: object stores, and the places that results go to.

Synchronous, one worker and one task at a time. What is written where is decided in `tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode_time
from batchinference.model.work import Holder


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object. `version` is "" where the store has no versions."""

    uri: str
    size: int
    etag: str
    version: str = ""


class ObjectWriter(Protocol):
    """A streaming write that becomes visible as a whole or not at all."""

    def write(self, data: bytes) -> None:
        """Append. Buffers at most one part."""

    def commit(self) -> ObjectInfo:
        """Make it visible."""

    def abort(self) -> None:
        """Forget it; also what happens to a writer that is dropped without commit."""


class ObjectStore(Protocol):
    """Objects by URI. Faults: `BucketNotFound`, `AccessDenied`, `CredentialsRejected` (Stalled),
    `DiskFull` (Waiting), network trouble (Retry).
    """

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        """The object, or None."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Everything under a prefix, in byte order of keys."""

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """The bytes from `start`, in chunks of about 1 MiB, resumed over broken connections.
        Raises SourceChanged when the object is no longer the one in `info` (ETag, version).
        """

    def get(self, uri: str, limit: int = 1 << 20) -> bytes | None:
        """A small object whole, or None. Larger than `limit` raises Permanent."""

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """A small object whole. False when it was there already and `only_if_absent`."""

    def writer(self, uri: str) -> ObjectWriter:
        """Start a streaming write."""

    def copy(self, source: str, target: str) -> None:
        """Copy inside the store."""

    def delete(self, uri: str) -> None:
        """Delete; absent is fine."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything under a prefix that ends in "/"."""


class SourceChanged(Exception):
    """The input is no longer what it was when the pass began; staging restarts."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What `_run.json`, or the claimed ConfigMap, says (protocol 3).

    Attributes:
        since: when the journal was begun that it was made with; "" where that is not known.
        replaces: key of the run whose place was taken over and whose results are not removed yet.
    """

    run_key: str
    run_tag: str
    installation: str
    description: str = ""
    since: str = ""
    replaces: str = ""

    def is_later_than(self, other: Claim) -> bool:
        """Whether this very run began anew after that: the place is that life's by now."""
        same = (self.run_key, self.installation) == (other.run_key, other.installation)
        try:
            return same and decode_time(self.since) > decode_time(other.since)
        except InvalidObject:  # not known, or not written by us
            return False


class ResultPlace(Protocol):
    """An output place: a prefix in an object store, or ConfigMaps in the job's namespace."""

    uri: str

    def claim(self, claim: Claim) -> Holder | None:
        """Claim it with a conditional create. None = this journal's claim stands there."""

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is still ours."""

    def taken_by(self, claim: Claim) -> str:
        """The other installation that has this very run now; "" where none has."""

    def has_later(self, claim: Claim) -> bool:
        """Whether a later life of this very run holds it: see `Claim.is_later_than`."""

    def release(self, claim: Claim) -> None:
        """Remove the claim if it is ours and no manifest stands."""

    def part(self, kind: str, number: int) -> ObjectWriter:
        """Write part `number` of `results` or `errors`; an older manifest goes before it."""

    def part_uri(self, kind: str, number: int) -> str:
        """Where that part is, for the manifest."""

    def write_manifest(self, manifest: Mapping[str, Any]) -> str:
        """Write the manifest, last; returns its URI. Parts that it does not list are gone then."""


@runtime_checkable
class Replaceable(Protocol):
    """Optional capability of a ResultPlace: `outputPolicy: Replace`."""

    def replace(self, claim: Claim, holder: Holder) -> bool:
        """Claim the place of a finished run, then remove its results, the manifest first. One that
        is cut short is finished by the next `claim`; nobody trusts what it leaves.

        False when the holder is another one by now; nothing is touched then.
        """

"""An output place under a prefix of an object store (protocol 3). Owns its file names.

_run.json                 the claim: run key, run tag, installation
results/part-00000.jsonl  every record, in input order; .parquet where the job says so
errors/part-00000.jsonl   those of them without an answer
manifest.json             written last; a reader may trust what it lists and nothing else
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol, runtime_checkable

import msgspec

from batchinference.errors import Retry, Stalled
from batchinference.model.status import Reason
from batchinference.model.work import Holder
from batchinference.ports import Claim, ObjectInfo, ObjectStore, ObjectWriter, SourceChanged

_DOCUMENT_LIMIT = 16 << 20
_KINDS = ("results", "errors")
_PART = re.compile(r"(results|errors)/part-\d{5,}\.(jsonl|parquet)")


@runtime_checkable
class UnfinishedWrites(Protocol):
    """Optional capability of an ObjectStore in which a writer that dies leaves something behind:
    invisible, and paid for.
    """

    def abort_writes(self, prefix: str, is_ours: Callable[[str], bool]) -> None:
        """Forget the streaming writes under a prefix, of the URIs that are ours; those that can't
        be looked at or removed are left.
        """


@runtime_checkable
class UnfinishedParts(Protocol):
    """Optional capability of a ResultPlace: see `UnfinishedWrites`."""

    def abort_parts(self) -> None:
        """Forget parts whose writer died. To be called by who holds the claim."""


@runtime_checkable
class ConditionalWrites(Protocol):
    """Optional capability of an ObjectStore: write on condition of what is there."""

    def put_over(self, info: ObjectInfo, data: bytes) -> bool:
        """Put a small object in place of that one; False when it is another one by now."""


class _Manifest(msgspec.Struct, rename="camel"):
    run_key: str = ""
    final: bool = True


class PrefixPlace:
    """See `ports.ResultPlace`, `ports.Replaceable` and `UnfinishedParts`.

    One object serves one task: the parts written are counted here.
    """

    def __init__(self, store: ObjectStore, uri: str, suffix: str = "jsonl") -> None:
        """`suffix`: of the parts' names, which tells their format."""
        self._store = store
        self._suffix = suffix
        self.uri = uri if uri.endswith("/") else f"{uri}/"
        self._begun = False
        self._written: set[str] = set()

    # ------------------------------------------------------------ the claim

    def claim(self, claim: Claim) -> Holder | None:
        """See `ports.ResultPlace.claim`.

        A finished run finds itself as the holder, `finished` being set; one that the claim of
        another journal of it is in, too. A place without a claim
        that has results all the same belongs to somebody we don't know: nothing is overwritten.
        """
        found = self._claim()
        if found is None:
            if self._has_results():
                what = "results or a manifest without a claim of this operator"
                return Holder("", "", "", description=what)
            if self._store.put(self._claim_uri, _encode_claim(claim), only_if_absent=True):
                return None
            found = self._claim()
            if found is None:  # made and removed in between: somebody else is at work here
                raise Retry(Reason.OUTPUT_CONFLICT, f"The claim in {self.uri} came and went")
        finished = self._finished()
        finished_key = None if finished is None else finished.run_key
        if _is_same(found, claim) and finished_key != claim.run_key:
            if found.replaces:
                self._empty()  # a takeover was cut short
            if (found.since, found.run_tag) == (claim.since, claim.run_tag):
                return None
        return Holder(
            found.run_key,
            found.run_tag,
            found.installation,
            finished=finished_key == found.run_key,
            description=found.description,
            final=finished is not None and finished.final and finished_key == found.run_key,
        )

    def holds(self, claim: Claim) -> bool:
        """See `ports.ResultPlace.holds`."""
        found = self._claim()
        return found is not None and _is_same(found, claim)

    def taken_by(self, claim: Claim) -> str:
        """See `ports.ResultPlace.taken_by`."""
        found = self._claim()
        same = found is not None and found.run_key == claim.run_key
        return found.installation if same and found and not _is_same(found, claim) else ""

    def has_later(self, claim: Claim) -> bool:
        """See `ports.ResultPlace.has_later`."""
        found = self._claim()
        return found is not None and found.is_later_than(claim)

    def release(self, claim: Claim) -> None:
        """See `ports.ResultPlace.release`."""
        finished = self._finished()
        if self.holds(claim) and (finished is None or finished.run_key != claim.run_key):
            self._store.delete(self._claim_uri)

    def replace(self, claim: Claim, holder: Holder) -> bool:
        """See `ports.Replaceable`. The claim changes hands first, and says that there is something
        left to remove.
        """
        if holder.run_key == claim.run_key:
            return self._hand_over(holder, claim)
        if not self._hand_over(holder, replace(claim, replaces=holder.run_key)):
            return False
        self._empty()
        return True

    def _hand_over(self, holder: Holder, claim: Claim) -> bool:
        """Write the claim in place of that holder's; False when that one is not there any more."""
        info = self._store.head(self._claim_uri)
        if info is None:
            return False
        try:
            found = _decode_claim(b"".join(self._store.read(info)))
        except (SourceChanged, msgspec.MsgspecError):
            return False
        if not _is_holder(found, holder):
            return False
        if not isinstance(self._store, ConditionalWrites):
            raise Stalled(
                Reason.OUTPUT_CONFLICT,
                f"What holds '{self.uri}' can't be replaced: the store writes nothing on condition "
                "of what is there. Create the job with another `spec.output`",
            )
        return self._store.put_over(info, _encode_claim(claim))

    def _empty(self) -> None:
        """Remove another run's results, first of all the manifest, which readers trust; then the
        claim has nothing left to say of them.
        """
        self._store.delete(self._manifest_uri)
        for kind in _KINDS:
            # Parts alone: somebody's own place may lie below.
            for info in list(self._store.list(f"{self.uri}{kind}/")):
                if self._is_part(info.uri):
                    self._store.delete(info.uri)
        self.abort_parts()
        found = self._claim()
        if found is not None and found.replaces:
            self._hand_over(_as_holder(found), replace(found, replaces=""))

    # ------------------------------------------------------------ the results

    def part(self, kind: str, number: int) -> ObjectWriter:
        """See `ports.ResultPlace.part`."""
        self._begin()
        uri = self.part_uri(kind, number)
        self._written.add(uri)
        return self._store.writer(uri)

    def part_uri(self, kind: str, number: int) -> str:
        """See `ports.ResultPlace.part_uri`."""
        return f"{self.uri}{kind}/part-{number:05d}.{self._suffix}"

    def write_manifest(self, manifest: Mapping[str, Any]) -> str:
        """See `ports.ResultPlace.write_manifest`."""
        self._begin()
        for kind in _KINDS:
            for info in list(self._store.list(f"{self.uri}{kind}/")):
                if self._is_part(info.uri) and info.uri not in self._written:
                    self._store.delete(info.uri)
        self._store.put(self._manifest_uri, msgspec.json.format(msgspec.json.encode(manifest)))
        return self._manifest_uri

    def _begin(self) -> None:
        """Take away what an earlier finish left: first of all the manifest, which readers trust."""
        if self._begun:
            return
        self._store.delete(self._manifest_uri)
        self.abort_parts()
        self._begun = True

    def abort_parts(self) -> None:
        """See `UnfinishedParts.abort_parts`."""
        if isinstance(self._store, UnfinishedWrites):
            for kind in _KINDS:
                self._store.abort_writes(f"{self.uri}{kind}/", self._is_part)

    def _is_part(self, uri: str) -> bool:
        return _PART.fullmatch(uri.removeprefix(self.uri)) is not None

    # ------------------------------------------------------------ what stands there

    @property
    def _claim_uri(self) -> str:
        return f"{self.uri}_run.json"

    @property
    def _manifest_uri(self) -> str:
        return f"{self.uri}manifest.json"

    def _claim(self) -> Claim | None:
        data = self._store.get(self._claim_uri)
        if data is None:
            return None
        try:
            return _decode_claim(data)
        except msgspec.MsgspecError:
            return Claim("", "", "", f"{self._claim_uri}, which is no claim of this operator")

    def _finished(self) -> _Manifest | None:
        """What the manifest says, of no run for a foreign one; None for none."""
        data = self._store.get(self._manifest_uri, _DOCUMENT_LIMIT)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=_Manifest)
        except msgspec.MsgspecError:
            return _Manifest()

    def manifest(self) -> tuple[str, bytes] | None:
        """See `tasks.manifest.ReadableResults`."""
        data = self._store.get(self._manifest_uri, _DOCUMENT_LIMIT)
        return None if data is None else (self._manifest_uri, data)

    def _has_results(self) -> bool:
        if self._store.head(self._manifest_uri) is not None:
            return True
        return any(True for kind in _KINDS for _ in self._store.list(f"{self.uri}{kind}/"))


class _ClaimDocument(msgspec.Struct, rename="camel"):
    run_key: str
    run_tag: str
    installation: str
    description: str = ""
    since: str = ""
    replaces: str = ""


def _encode_claim(claim: Claim) -> bytes:
    return msgspec.json.encode(_ClaimDocument(**asdict(claim)))


def _decode_claim(data: bytes) -> Claim:
    return Claim(**msgspec.structs.asdict(msgspec.json.decode(data, type=_ClaimDocument)))


def _as_holder(found: Claim) -> Holder:
    return Holder(found.run_key, found.run_tag, found.installation)


def _is_holder(found: Claim, holder: Holder) -> bool:
    known = (holder.run_key, holder.run_tag, holder.installation)
    return (found.run_key, found.run_tag, found.installation) == known


def _is_same(found: Claim, claim: Claim) -> bool:
    return (found.run_key, found.installation) == (claim.run_key, claim.installation)

"""An output place under a prefix of an object store (protocol 3). Owns its file names.

_run.json                 the claim: run key, run tag, installation
results/part-00000.jsonl  every record, in input order
errors/part-00000.jsonl   those of them without an answer
manifest.json             written last; a reader may trust what it lists and nothing else
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec

from batchinference.errors import Retry
from batchinference.model.status import Reason
from batchinference.model.work import Holder
from batchinference.ports import Claim, ObjectStore, ObjectWriter

_DOCUMENT_LIMIT = 16 << 20
_KINDS = ("results", "errors")
_PART = re.compile(r"(results|errors)/part-\d{5,}\.jsonl")


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


class _Manifest(msgspec.Struct, rename="camel"):
    run_key: str = ""


class PrefixPlace:
    """See `ports.ResultPlace`, `ports.Replaceable` and `UnfinishedParts`.

    One object serves one task: the parts written are counted here.
    """

    def __init__(self, store: ObjectStore, uri: str) -> None:
        self._store = store
        self.uri = uri if uri.endswith("/") else f"{uri}/"
        self._begun = False
        self._written: set[str] = set()

    # ------------------------------------------------------------ the claim

    def claim(self, claim: Claim) -> Holder | None:
        """See `ports.ResultPlace.claim`.

        A finished run finds itself as the holder, `finished` being set. A place without a claim
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
        finished_key = self._finished_key()
        if _is_same(found, claim) and finished_key != claim.run_key:
            if finished_key is not None:
                self._empty()  # a takeover was cut short
            return None
        return Holder(
            found.run_key,
            found.run_tag,
            found.installation,
            finished=finished_key == found.run_key,
            description=found.description,
        )

    def holds(self, claim: Claim) -> bool:
        """See `ports.ResultPlace.holds`."""
        found = self._claim()
        return found is not None and _is_same(found, claim)

    def release(self, claim: Claim) -> None:
        """See `ports.ResultPlace.release`."""
        if self.holds(claim) and self._finished_key() != claim.run_key:
            self._store.delete(self._claim_uri)

    def replace(self, claim: Claim, holder: Holder) -> bool:
        """See `ports.Replaceable`. The claim changes hands first: a takeover that is cut short
        after it is finished by the next `claim`.
        """
        found = self._claim()
        if found is None or (found.run_key, found.run_tag) != (holder.run_key, holder.run_tag):
            return False
        self._store.put(self._claim_uri, _encode_claim(claim))
        self._empty()
        return self.holds(claim)

    def _empty(self) -> None:
        """Remove another run's results. The manifest goes last: while it stands, the next claim
        knows that there is something left to remove.
        """
        for kind in _KINDS:
            self._store.delete_prefix(f"{self.uri}{kind}/")
        self._store.delete(self._manifest_uri)

    # ------------------------------------------------------------ the results

    def part(self, kind: str, number: int) -> ObjectWriter:
        """See `ports.ResultPlace.part`."""
        self._begin()
        uri = self.part_uri(kind, number)
        self._written.add(uri)
        return self._store.writer(uri)

    def part_uri(self, kind: str, number: int) -> str:
        """See `ports.ResultPlace.part_uri`."""
        return f"{self.uri}{kind}/part-{number:05d}.jsonl"

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

    def _finished_key(self) -> str | None:
        """The run key in the manifest; "" for a foreign one, None for none."""
        data = self._store.get(self._manifest_uri, _DOCUMENT_LIMIT)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=_Manifest).run_key
        except msgspec.MsgspecError:
            return ""

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


def _encode_claim(claim: Claim) -> bytes:
    document = _ClaimDocument(claim.run_key, claim.run_tag, claim.installation, claim.description)
    return msgspec.json.encode(document)


def _decode_claim(data: bytes) -> Claim:
    found = msgspec.json.decode(data, type=_ClaimDocument)
    return Claim(found.run_key, found.run_tag, found.installation, found.description)


def _is_same(found: Claim, claim: Claim) -> bool:
    return (found.run_key, found.installation) == (claim.run_key, claim.installation)

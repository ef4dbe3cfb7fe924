"""`ports.ResultPlace` over ConfigMaps in the job's namespace: the output of tiny runs.

The first ConfigMap, of the name that the job gave, is the claim; it and `<name>-1`, `<name>-2` ...
hold the results. The keys are `results.jsonl` and `errors.jsonl`; a file that does not fit goes on
under the same key in the next number. Nothing in them may be read before the manifest's annotation
stands on the first. No owner reference: results outlive the job.

A ConfigMap that does not carry our claim is never written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec

from batchinference.adapters.kube.blocking import ConfigMaps
from batchinference.adapters.kube.config_map_uri import ConfigMapURI, parse
from batchinference.adapters.kube.names import (
    CLAIM_ANNOTATION,
    FIELD_MANAGER,
    JOB_ANNOTATION,
    MANAGED_BY,
    MANIFEST_ANNOTATION,
    RESULTS_LABEL,
)
from batchinference.errors import Permanent, Retry, Stalled
from batchinference.model.status import Reason
from batchinference.model.work import Holder
from batchinference.ports import Claim, ObjectInfo

MAX_RECORDS = 500
"""Records of a run whose results go to ConfigMaps."""

MANIFEST = "manifest.json"

PART_BYTES = 300 * 1024
"""Size at which a part is to be closed, so that ordinary parts are a key of one ConfigMap each."""

_FILES = {"results": ("results.jsonl", 400 * 1024), "errors": ("errors.jsonl", 400 * 1024)}
"""Key of each file, and its bytes in one ConfigMap; with the manifest they stay below 900 KiB."""

_MANIFEST_LIMIT = 100 * 1024
_TRIES = 5

_Change = Callable[[dict[str, Any]], None]


class _Final(msgspec.Struct):
    final: bool = True


class ConfigMapPlace:
    """See `ports.ResultPlace` and `ports.Replaceable`.

    One object serves one task: the numbers of a file's second and later parts are counted here.
    """

    def __init__(self, config_maps: ConfigMaps, uri: str, ours: Claim, job: str) -> None:
        """Make a view of the place; no call is made yet.

        Args:
            config_maps: the client.
            uri: `configmap://<namespace>/<name>`.
            ours: without it standing in the place nothing is written.
            job: `namespace/name` of the run's job, for people who find the ConfigMap.
        """
        self.uri = uri
        self._config_maps = config_maps
        self._where = parse(uri)
        self._ours = ours
        self._job = job
        self._begun = False
        self._next = dict.fromkeys(_FILES, 0)
        self._records = dict.fromkeys(_FILES, 0)
        self._starts: dict[tuple[str, int], int] = {}

    # ------------------------------------------------------------ the claim

    def claim(self, claim: Claim) -> Holder | None:
        """See `ports.ResultPlace.claim`.

        A finished run finds itself as the holder, `finished` being set; one that the claim of
        another journal of it is in, too. A ConfigMap that is not of
        this operator's making has a holder without a key.
        """
        for _ in range(_TRIES):
            manifest = self._manifest(0, _text(claim))
            if self._config_maps.create(self._where.namespace, manifest) is not None:
                return None
            found = self._first()
            if found is not None:
                if not _is_of(found, claim) or _has_manifest(found):
                    return self._holder(found)
                self._finish_takeover(found)
                return None if _is_by(found, claim) else self._holder(found)
        raise Retry(Reason.OBJECT_CHANGING, f"{self.uri} is created and deleted by others")

    def holds(self, claim: Claim) -> bool:
        """See `ports.ResultPlace.holds`."""
        found = self._first()
        return found is not None and _is_of(found, claim)

    def taken_by(self, claim: Claim) -> str:
        """See `ports.ResultPlace.taken_by`."""
        first = self._first()
        found = None if first is None else _decoded(first)
        if found is None or found.run_key != claim.run_key:
            return ""
        return "" if found.installation == claim.installation else found.installation

    def has_later(self, claim: Claim) -> bool:
        """See `ports.ResultPlace.has_later`."""
        first = self._first()
        found = None if first is None else _decoded(first)
        return found is not None and found.is_later_than(claim)

    def release(self, claim: Claim) -> None:
        """See `ports.ResultPlace.release`."""
        for _ in range(_TRIES):
            found = self._first()
            if found is None or not _is_of(found, claim) or _has_manifest(found):
                return
            # The continuations first: without the claim nobody would know whose they are.
            self._delete_from(1, claim)
            version = found["resourceVersion"]
            if self._config_maps.delete(self._where.namespace, self._where.name, version=version):
                return
        raise Retry(Reason.OBJECT_CHANGING, f"{self.uri} is being changed by others")

    def replace(self, claim: Claim, holder: Holder) -> bool:
        """See `ports.Replaceable`. The manifest goes with the claim, in one write, and the
        continuations afterwards.
        """
        for _ in range(_TRIES):
            found = self._first()
            if found is None or not _is_holder(found, holder):
                return False
            theirs = holder.run_key if holder.run_key != claim.run_key else ""
            taken = self._manifest(0, _text(replace(claim, replaces=theirs)))
            taken["metadata"]["resourceVersion"] = found["resourceVersion"]
            if self._config_maps.replace(self._where.namespace, taken) is not None:
                self._finish_takeover(taken["metadata"])
                return True
        raise Retry(Reason.OBJECT_CHANGING, f"{self.uri} is being changed by others")

    def _finish_takeover(self, metadata: Mapping[str, Any]) -> None:
        """Remove what is left of the run whose place this was; then the claim has nothing left to
        say of it.
        """
        ours = _decoded(metadata)
        if ours is None or not ours.replaces:
            return
        self._delete_from(1, replace(ours, run_key=ours.replaces))

        def settle(config_map: dict[str, Any]) -> None:
            annotations = config_map["metadata"]["annotations"]
            annotations[CLAIM_ANNOTATION] = _text(replace(ours, replaces=""))

        self._change(0, settle)

    # ------------------------------------------------------------ the results

    def part(self, kind: str, number: int) -> ConfigMapPart:
        """See `ports.ResultPlace.part`. Parts of one kind are written in order, from 0.

        Raises:
            Stalled: OutputConflict, the claim is gone or another's.
        """
        self._begin()
        if number == 0:
            self._next[kind] = self._records[kind] = 0
        self._starts[kind, number] = self._next[kind]
        return ConfigMapPart(self, kind, self.part_uri(kind, number))

    def part_uri(self, kind: str, number: int) -> str:
        """See `ports.ResultPlace.part_uri`: where the part begins."""
        key, _ = _FILES[kind]
        name = self._name(self._starts.get((kind, number), number))
        return str(ConfigMapURI(self._where.namespace, name, key))

    def write_manifest(self, manifest: Mapping[str, Any]) -> str:
        """See `ports.ResultPlace.write_manifest`. Content and annotation come in one write."""
        self._begin()
        self._delete_from(max(1, *self._next.values()), self._ours)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode()
        if len(text.encode()) > _MANIFEST_LIMIT:
            raise Permanent(Reason.TOO_LARGE, f"The manifest would take {len(text)} characters")

        def write(config_map: dict[str, Any]) -> None:
            data = config_map.setdefault("data", {})
            for kind, (key, _) in _FILES.items():
                if not self._next[kind]:  # of an earlier finish, which had such records
                    data.pop(key, None)
            data[MANIFEST] = text
            digest = hashlib.sha256(text.encode()).hexdigest()
            config_map["metadata"]["annotations"][MANIFEST_ANNOTATION] = digest

        self._change(0, write)
        return str(ConfigMapURI(self._where.namespace, self._where.name, MANIFEST))

    def manifest(self) -> tuple[str, bytes] | None:
        """The manifest that stands there, and where; None without one."""
        found = self._config_maps.get(self._where.namespace, self._where.name)
        text = (found or {}).get("data", {}).get(MANIFEST)
        if text is None:
            return None
        where = ConfigMapURI(self._where.namespace, self._where.name, MANIFEST)
        return str(where), str(text).encode()

    def count(self, kind: str, records: int) -> None:
        """Count records of a file; for the writer of a part.

        Raises:
            Permanent: InputTooLarge, more than ConfigMaps may hold.
        """
        self._records[kind] += records
        if self._records[kind] > MAX_RECORDS:
            raise Permanent(
                Reason.TOO_LARGE,
                f"At most {MAX_RECORDS} records may have their results in ConfigMaps. Use "
                "`spec.output.s3`.",
            )

    def store_piece(self, kind: str, text: str) -> None:
        """Write the next piece of a file; for the writer of a part."""
        key, _ = _FILES[kind]
        number = self._next[kind]

        def write(config_map: dict[str, Any]) -> None:
            config_map.setdefault("data", {})[key] = text

        self._change(number, write)
        self._next[kind] = number + 1

    def _begin(self) -> None:
        """Check the claim, and make what is there unreadable while it is written."""
        if self._begun:
            return
        found = self._first()
        if found is None or not _is_of(found, self._ours):
            raise Stalled(
                Reason.OUTPUT_CONFLICT,
                f"ConfigMap {self._where.namespace}/{self._where.name} no longer carries the claim "
                "of this run, so its results have no place. Delete or rename what is there.",
            )

        def hide(config_map: dict[str, Any]) -> None:
            config_map["metadata"]["annotations"].pop(MANIFEST_ANNOTATION, None)
            config_map.get("data", {}).pop(MANIFEST, None)

        if _has_manifest(found):
            self._change(0, hide)
        self._begun = True

    def _change(self, number: int, change: _Change) -> None:
        """Change a ConfigMap of ours, made if it is not there.

        Raises:
            Stalled: OutputConflict, it is there and not ours.
        """
        namespace, name = self._where.namespace, self._name(number)
        for _ in range(_TRIES):
            found = self._config_maps.get(namespace, name)
            if found is None and number:
                made = self._manifest(number, _text(self._ours))
                change(made)
                if self._config_maps.create(namespace, made) is not None:
                    return
                continue
            if found is None or not _is_of(found["metadata"], self._ours):
                raise Stalled(
                    Reason.OUTPUT_CONFLICT,
                    f"ConfigMap {namespace}/{name} is in the way of the results and was not made "
                    "by this run. Rename or delete it.",
                )
            change(found)
            if self._config_maps.replace(namespace, found) is not None:
                return
        raise Retry(
            Reason.OBJECT_CHANGING, f"ConfigMap {namespace}/{name} is being changed by others"
        )

    def _delete_from(self, number: int, claim: Claim) -> None:
        """Delete our continuations from that number on."""
        while True:
            name = self._name(number)
            found = self._config_maps.get(self._where.namespace, name, metadata_only=True)
            if found is None or not _is_of(found["metadata"], claim):
                return
            self._config_maps.delete(self._where.namespace, name)
            number += 1

    # ------------------------------------------------------------ shapes

    def _first(self) -> dict[str, Any] | None:
        found = self._config_maps.get(self._where.namespace, self._where.name, metadata_only=True)
        return None if found is None else found["metadata"]

    def _name(self, number: int) -> str:
        return f"{self._where.name}-{number}" if number else self._where.name

    def _manifest(self, number: int, claim: str) -> dict[str, Any]:
        job = {JOB_ANNOTATION: self._job} if self._job else {}
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": self._name(number),
                "labels": {MANAGED_BY: FIELD_MANAGER, RESULTS_LABEL: "part" if number else "claim"},
                "annotations": {**job, CLAIM_ANNOTATION: claim},
            },
        }

    def _holder(self, metadata: Mapping[str, Any]) -> Holder:
        name = f"ConfigMap {self._where.namespace}/{self._where.name}"
        found = _decoded(metadata)
        if found is None:
            return Holder("", "", "", description=f"{name} was not made by this operator")
        finished = _has_manifest(metadata)
        return Holder(
            found.run_key,
            found.run_tag,
            found.installation,
            finished=finished,
            description=metadata["annotations"].get(JOB_ANNOTATION, name),
            final=finished and self._is_final(),
        )

    def _is_final(self) -> bool:
        """Whether the manifest says that its run never goes on."""
        _, text = self.manifest() or ("", b"")
        with suppress(msgspec.MsgspecError):
            return msgspec.json.decode(text, type=_Final).final
        return False


class ConfigMapPart:
    """See `ports.ObjectWriter`. Splits at line ends as far as a line fits at all.

    What was written is unreadable until the manifest stands, whose checksums cover whole parts.
    """

    def __init__(self, place: ConfigMapPlace, kind: str, uri: str) -> None:
        self._place = place
        self._kind = kind
        self._uri = uri
        self._limit = _FILES[kind][1]
        self._buffer = bytearray()
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        """See `ports.ObjectWriter.write`. Raises as `ConfigMapPlace.count`."""
        self._place.count(self._kind, data.count(b"\n"))
        self._hash.update(data)
        self._size += len(data)
        self._buffer += data
        while len(self._buffer) > self._limit:
            self._store(self._cut())

    def commit(self) -> ObjectInfo:
        """See `ports.ObjectWriter.commit`."""
        if self._buffer or not self._size:
            self._store(len(self._buffer))
        return ObjectInfo(self._uri, self._size, self._hash.hexdigest())

    def abort(self) -> None:
        """See `ports.ObjectWriter.abort`. Pieces that were stored are overwritten the next time."""
        self._buffer.clear()

    def _cut(self) -> int:
        end = self._buffer.rfind(b"\n", 0, self._limit) + 1
        if end:
            return end
        end = self._limit  # one line above the limit: it goes on in the next ConfigMap
        while self._buffer[end] & 0xC0 == 0x80:  # never inside of a UTF-8 character
            end -= 1
        return end

    def _store(self, end: int) -> None:
        self._place.store_piece(self._kind, self._buffer[:end].decode())
        del self._buffer[:end]


def _text(claim: Claim) -> str:
    return msgspec.json.encode(claim).decode()


def _decoded(metadata: Mapping[str, Any]) -> Claim | None:
    """The claim on a ConfigMap, None where there is none of ours."""
    text = (metadata.get("annotations") or {}).get(CLAIM_ANNOTATION)
    try:
        return None if text is None else msgspec.json.decode(text, type=Claim)
    except msgspec.MsgspecError:
        return None


def _is_of(metadata: Mapping[str, Any], claim: Claim) -> bool:
    found = _decoded(metadata)
    mine = (claim.run_key, claim.installation)
    return found is not None and (found.run_key, found.installation) == mine


def _is_by(metadata: Mapping[str, Any], claim: Claim) -> bool:
    """Whether the claim was made with this very journal."""
    found = _decoded(metadata)
    made = (claim.since, claim.run_tag)
    return found is not None and (found.since, found.run_tag) == made


def _is_holder(metadata: Mapping[str, Any], holder: Holder) -> bool:
    found = _decoded(metadata)
    known = (holder.run_key, holder.run_tag, holder.installation)
    return found is not None and (found.run_key, found.run_tag, found.installation) == known


def _has_manifest(metadata: Mapping[str, Any]) -> bool:
    return MANIFEST_ANNOTATION in (metadata.get("annotations") or {})

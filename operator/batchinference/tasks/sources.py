"""The places an input can come from, as `InputSource`s, and its fingerprint.

Everything goes through an ObjectStore but inline text. Knows the names of formats only to refuse
what this version can't read, instead of reading it wrongly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchinference.errors import Permanent, Stalled
from batchinference.model.staging import InputSnapshot
from batchinference.model.status import Reason
from batchinference.ports import ObjectInfo, ObjectStore, SourceChanged
from batchinference.tasks.workbench import InputSource

MAX_OBJECTS = 50_000
"""Objects of one input; their list is held in memory."""

_UNREADABLE = {
    ".gz": "compressed inputs are not read yet; unpack it",
    ".zst": "compressed inputs are not read yet; unpack it",
    ".parquet": "Parquet is not read yet; convert it to JSON lines",
    ".csv": "CSV is not read yet; convert it to JSON lines",
}


@dataclass(frozen=True, slots=True)
class StoreSource:
    """An object, or every object under a prefix that ends in "/", in byte order of their keys.

    Under a prefix, names with a part that starts with "." or "_" are left out, as everywhere in
    data lakes, and empty objects too: they are markers.
    """

    store: ObjectStore
    uri: str
    version: str = ""
    format: str = ""

    def objects(self) -> Sequence[ObjectInfo]:
        """See `InputSource.objects`."""
        if not self.uri.endswith("/"):
            info = self.store.head(self.uri, self.version)
            if info is None:
                which = f" with version {self.version}" if self.version else ""
                raise Stalled(
                    Reason.INPUT_NOT_FOUND,
                    f"There is no input object {self.uri}{which}; it is looked for again",
                )
            self._check(info.uri)
            return (info,)
        found: list[ObjectInfo] = []
        for info in self.store.list(self.uri):
            name = info.uri.removeprefix(self.uri)
            if not info.size or any(part[:1] in {".", "_"} for part in name.split("/")):
                continue
            self._check(info.uri)
            found.append(info)
            if len(found) > MAX_OBJECTS:
                raise Permanent(
                    Reason.TOO_LARGE,
                    f"There are more than {MAX_OBJECTS} objects under {self.uri}; combine them",
                )
        if not found:
            raise Stalled(
                Reason.INPUT_NOT_FOUND,
                f"There is no input object under {self.uri} (empty ones and names that start with "
                "a dot or an underscore don't count); it is looked for again",
            )
        return tuple(found)

    def _check(self, uri: str) -> None:
        for suffix, why in _UNREADABLE.items():
            named = self.format == "JSONL" and suffix == ".csv"  # the job says what it is
            if uri.lower().endswith(suffix) and not named:
                raise Stalled(Reason.NOT_IMPLEMENTED, f"{uri}: {why}")

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """See `InputSource.read`."""
        return self.store.read(info, start)


@dataclass(frozen=True, slots=True)
class InlineSource:
    """The text of `spec.input.inline`. None = it is not known any more."""

    text: str | None

    def objects(self) -> Sequence[ObjectInfo]:
        """See `InputSource.objects`."""
        data = self._data()
        return (ObjectInfo("inline", len(data), hashlib.sha256(data).hexdigest()),)

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """See `InputSource.read`."""
        data = self._data()
        if hashlib.sha256(data).hexdigest() != info.etag:
            raise SourceChanged("the inline input is another one now")
        if start < len(data):
            yield data[start:]

    def _data(self) -> bytes:
        if self.text is None:
            raise Stalled(
                Reason.INPUT_NOT_FOUND,
                "The inline input is known only from the object, and that is not there",
            )
        return self.text.encode()


def input_source(
    spec_input: Mapping[str, Any],
    *,
    inline: str | None,
    namespace: str,
    store: ObjectStore | None,
    config_maps: ObjectStore | None,
) -> InputSource:
    """The source that a job's `spec.input` names.

    Args:
        spec_input: as in the manifest; inline text may be left out of it.
        inline: the inline text, from the task.
        namespace: the job's, where a ConfigMap is.
        store: for S3.
        config_maps: for `configmap://namespace/name/key` URIs.

    Raises:
        Stalled: it names a place for which there is no connection.
    """
    s3, ref = spec_input.get("s3"), spec_input.get("configMapKeyRef")
    if s3:
        if store is None:
            raise Stalled(
                Reason.STORAGE_MISSING, "The provider object has no `storage` for the S3 input"
            )
        return StoreSource(
            store, s3["uri"], s3.get("versionID", ""), spec_input.get("format") or ""
        )
    if ref:
        if config_maps is None:
            raise Stalled(Reason.STORAGE_MISSING, "ConfigMaps can't be read here")
        uri = f"configmap://{namespace}/{ref['name']}/{ref['key']}"
        return StoreSource(config_maps, uri, format="JSONL")
    return InlineSource(inline)


def snapshot(objects: Sequence[ObjectInfo]) -> InputSnapshot:
    """What the input is at one time; two equal fingerprints mean the same bytes."""
    digest = hashlib.sha256()
    for info in objects:
        for part in (info.uri, info.version, info.etag, str(info.size)):
            encoded = part.encode()
            digest.update(b"%d:%b" % (len(encoded), encoded))
    first = objects[0].uri if objects else ""
    more = f" and {len(objects) - 1} more" if len(objects) > 1 else ""
    size = sum(info.size for info in objects)
    return InputSnapshot(f"{first}{more}", len(objects), size, digest.hexdigest())

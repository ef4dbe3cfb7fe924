"""The places an input can come from, as `InputSource`s, and its fingerprint.

Everything goes through an ObjectStore but inline text. What is packed, or a table, is read as the
lines of JSON that it comes to (`records.formats`): always the same ones.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchinference.errors import Permanent, Stalled
from batchinference.model.job import InputFormat
from batchinference.model.staging import InputSnapshot
from batchinference.model.status import Reason
from batchinference.ports import ObjectInfo, ObjectStore, SourceChanged
from batchinference.records.formats.compression import refuse_packed, unpacked
from batchinference.records.formats.csv_rows import csv_lines
from batchinference.records.formats.naming import Compression, Encoding, encoding_of
from batchinference.records.formats.parquet_rows import parquet_lines
from batchinference.tasks.workbench import InputSource

_INLINE = "inline"
"""In place of a URI; without a suffix."""

MAX_OBJECTS = 50_000
"""Objects of one input; their list is held in memory."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How objects are read.

    Attributes:
        stated: the job's `spec.input.format`; None = by each object's name.
        spool: see `input_source`.
        has_rows: likewise.
    """

    stated: InputFormat | None = None
    spool: Path | None = None
    has_rows: bool = False

    def encoding(self, uri: str) -> Encoding:
        """What the object of that URI holds."""
        return encoding_of(uri, self.stated)

    def check(self, uri: str) -> None:
        """Refuse what can't be this job's input.

        Raises:
            Permanent: a table, and the job has no template for its rows.
        """
        if self.encoding(uri).is_table and not self.has_rows:
            raise Permanent(
                Reason.INVALID_SPEC,
                f"{uri} holds a table, and the job has no `promptTemplate`: rows are not requests. "
                "Create the job with one, or with `input.format: JSONL` if that is what "
                "the object holds",
            )

    def lines(self, info: ObjectInfo, chunks: Iterator[bytes], start: int) -> Iterator[bytes]:
        """What the object holds as lines of JSON, from that byte of them on.

        Raises:
            Permanent: InputUnreadable.
        """
        encoding = self.encoding(info.uri)
        if encoding.compression is not Compression.NONE:
            chunks = unpacked(chunks, encoding.compression, info.uri, info.size)
        if encoding.format is InputFormat.PARQUET:
            chunks = self._parquet(info, chunks)
        elif encoding.format is InputFormat.CSV:
            chunks = csv_lines(refuse_packed(chunks, info.uri), info.uri)
        for chunk in chunks:
            if start < len(chunk):
                yield chunk[start:] if start else chunk
            start = max(0, start - len(chunk))

    def _parquet(self, info: ObjectInfo, chunks: Iterator[bytes]) -> Iterator[bytes]:
        # Its index is at the end, and its columns lie apart.
        with tempfile.NamedTemporaryFile(dir=self.spool, suffix=".parquet") as copy:
            for chunk in chunks:
                copy.write(chunk)
            copy.flush()
            yield from parquet_lines(Path(copy.name), info.uri)


@dataclass(frozen=True, slots=True)
class StoreSource:
    """An object, or every object under a prefix that ends in "/", in byte order of their keys.

    Under a prefix, names with a part that starts with "." or "_" are left out, as everywhere in
    data lakes, and empty objects too: they are markers.
    """

    store: ObjectStore
    uri: str
    version: str = ""
    reading: Reading = field(default_factory=Reading)

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
        self.reading.check(uri)

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """See `InputSource.read`."""
        if self.reading.encoding(info.uri).is_plain:
            return self.store.read(info, start)
        return self.reading.lines(info, self.store.read(info), start)

    def is_table(self, info: ObjectInfo) -> bool:
        """See `InputSource.is_table`."""
        return self.reading.encoding(info.uri).is_table


@dataclass(frozen=True, slots=True)
class InlineSource:
    """The text of `spec.input.inline`. None = it is not known any more."""

    text: str | None
    reading: Reading = field(default_factory=Reading)

    def objects(self) -> Sequence[ObjectInfo]:
        """See `InputSource.objects`."""
        self.reading.check(_INLINE)
        data = self._data()
        return (ObjectInfo(_INLINE, len(data), hashlib.sha256(data).hexdigest()),)

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """See `InputSource.read`."""
        data = self._data()
        if hashlib.sha256(data).hexdigest() != info.etag:
            raise SourceChanged("the inline input is another one now")
        if self.reading.encoding(info.uri).is_plain:
            yield data[start:]
        else:
            yield from self.reading.lines(info, iter([data]), start)

    def is_table(self, info: ObjectInfo) -> bool:
        """See `InputSource.is_table`."""
        return self.reading.encoding(info.uri).is_table

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
    spool: Path | None = None,
    has_rows: bool = False,
) -> InputSource:
    """The source that a job's `spec.input` names.

    Args:
        spec_input: as in the manifest; inline text may be left out of it.
        inline: the inline text, from the task.
        namespace: the job's, where a ConfigMap is.
        store: for S3.
        config_maps: for `configmap://namespace/name/key` URIs.
        spool: a folder on local disk for what can't be read as a stream.
        has_rows: the job has a prompt template, so that tables may be read.

    Raises:
        Stalled: it names a place for which there is no connection.
    """
    stated = spec_input.get("format")
    reading = Reading(InputFormat(stated) if stated else None, spool, has_rows)
    s3, ref = spec_input.get("s3"), spec_input.get("configMapKeyRef")
    if s3:
        if store is None:
            raise Stalled(
                Reason.STORAGE_MISSING, "The provider object has no `storage` for the S3 input"
            )
        return StoreSource(store, s3["uri"], s3.get("versionID", ""), reading)
    if ref:
        if config_maps is None:
            raise Stalled(Reason.STORAGE_MISSING, "ConfigMaps can't be read here")
        uri = f"configmap://{namespace}/{ref['name']}/{ref['key']}"
        return StoreSource(config_maps, uri, reading=reading)
    return InlineSource(inline, reading)


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

"""An ObjectStore in memory, with the faults that real ones have."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from batchinference.errors import Permanent, Stalled
from batchinference.model.status import Reason
from batchinference.ports import ObjectInfo, SourceChanged


class Crash(BaseException):
    """The process died here: nothing that comes after it happens."""


@dataclass
class MemoryStore:
    """Objects by URI.

    Attributes:
        chunk: bytes of one read.
        missing_buckets: `scheme://bucket` prefixes that are not there.
        before: called with (operation, uri) before every operation; raises to make it fail, or
            changes the store to make the world move on.
        calls: how often each operation was called.
        open_writers: streaming writes that were neither committed nor aborted.
    """

    chunk: int = 1 << 20
    objects: dict[str, bytes] = field(default_factory=dict)
    missing_buckets: set[str] = field(default_factory=set)
    before: Callable[[str, str], None] | None = None
    calls: Counter[str] = field(default_factory=Counter)
    versions: dict[tuple[str, str], bytes] = field(default_factory=dict)
    open_writers: list[MemoryWriter] = field(default_factory=list)

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        self._called("head", uri)
        data = self.versions.get((uri, version)) if version else self.objects.get(uri)
        return None if data is None else _info(uri, data, version)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._called("list", prefix)
        for uri in sorted(self.objects, key=str.encode):
            if uri.startswith(prefix):
                yield _info(uri, self.objects[uri])

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        at = start
        while True:
            self._called("read", info.uri)
            if info.version:
                data = self.versions.get((info.uri, info.version))
            else:
                data = self.objects.get(info.uri)
            if data is None or _info(info.uri, data).etag != info.etag:
                raise SourceChanged(f"{info.uri} is another object now")
            if at >= len(data):
                return
            yield data[at : at + self.chunk]
            at += self.chunk

    def get(self, uri: str, limit: int = 1 << 20) -> bytes | None:
        self._called("get", uri)
        data = self.objects.get(uri)
        if data is not None and len(data) > limit:
            raise Permanent(Reason.TOO_LARGE, f"{uri} has {len(data)} bytes, more than {limit}")
        return data

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        self._called("put", uri)
        if only_if_absent and uri in self.objects:
            return False
        self.objects[uri] = data
        return True

    def put_over(self, info: ObjectInfo, data: bytes) -> bool:
        self._called("put_over", info.uri)
        found = self.objects.get(info.uri)
        if found is None or _info(info.uri, found).etag != info.etag:
            return False
        self.objects[info.uri] = data
        return True

    def writer(self, uri: str) -> MemoryWriter:
        self._called("writer", uri)
        self.open_writers.append(MemoryWriter(self, uri))
        return self.open_writers[-1]

    def abort_writes(self, prefix: str, is_ours: Callable[[str], bool]) -> None:
        self._called("abort_writes", prefix)
        for writer in [w for w in self.open_writers if w.uri.startswith(prefix)]:
            if is_ours(writer.uri):
                self.open_writers.remove(writer)

    def copy(self, source: str, target: str) -> None:
        self._called("copy", target)
        self.objects[target] = self.objects[source]

    def delete(self, uri: str) -> None:
        self._called("delete", uri)
        self.objects.pop(uri, None)

    def delete_prefix(self, prefix: str) -> None:
        assert prefix.endswith("/"), prefix
        self._called("delete_prefix", prefix)
        for uri in [u for u in self.objects if u.startswith(prefix)]:
            del self.objects[uri]

    def under(self, prefix: str) -> dict[str, bytes]:
        """What is under a prefix, for assertions."""
        return {u: data for u, data in sorted(self.objects.items()) if u.startswith(prefix)}

    def called(self, operation: str, uri: str) -> None:
        self._called(operation, uri)

    def _called(self, operation: str, uri: str) -> None:
        self.calls[operation] += 1
        if self.before is not None:
            self.before(operation, uri)
        for bucket in self.missing_buckets:
            if uri.startswith(bucket + "/"):
                raise Stalled(Reason.BUCKET_NOT_FOUND, f"There is no bucket {bucket}")


@dataclass(eq=False)
class MemoryWriter:
    """A write that becomes visible on commit."""

    store: MemoryStore
    uri: str
    parts: list[bytes] = field(default_factory=list)
    is_over: bool = False

    def write(self, data: bytes) -> None:
        assert not self.is_over
        self.store.called("write", self.uri)
        self.parts.append(data)

    def commit(self) -> ObjectInfo:
        assert not self.is_over
        self.store.called("commit", self.uri)
        self._end()
        data = b"".join(self.parts)
        self.store.objects[self.uri] = data
        return _info(self.uri, data)

    def abort(self) -> None:
        self.store.called("abort", self.uri)
        self._end()
        self.parts.clear()

    def _end(self) -> None:
        self.is_over = True
        if self in self.store.open_writers:
            self.store.open_writers.remove(self)


def _info(uri: str, data: bytes, version: str = "") -> ObjectInfo:
    return ObjectInfo(uri, len(data), hashlib.md5(data).hexdigest(), version)

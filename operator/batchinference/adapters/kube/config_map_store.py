"""`ports.ObjectStore` over numbered, compressed ConfigMaps: the staging of tiny runs.

An object is a head, named by its path, and pieces that the head lists. The head is written last, so
an object is there as a whole or not at all. Everything carries the store's label, so that what a
crash left behind is found when the store is emptied.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from batchinference.adapters.kube.blocking import ConfigMaps
from batchinference.adapters.kube.config_map_uri import PIECE, ConfigMapURI, parse
from batchinference.adapters.kube.names import (
    FIELD_MANAGER,
    MANAGED_BY,
    OBJECT_ANNOTATION,
    PATH_ANNOTATION,
    STAGING_LABEL,
)
from batchinference.errors import BatchInferenceError, Permanent, Retry
from batchinference.model.status import Reason
from batchinference.ports import ObjectInfo, SourceChanged

_CHUNK = 1 << 20
_DATA = "data.zlib"
_TRIES = 5


@dataclass(frozen=True, slots=True)
class _Head:
    """What the head of an object says of it.

    Attributes:
        sha256: of the content; the object's ETag.
        pieces: the ConfigMaps that hold the compressed bytes, in order; the head holds the rest.
    """

    size: int
    sha256: str
    pieces: tuple[str, ...] = ()


class ConfigMapStore:
    """See `ports.ObjectStore`. URIs are `configmap://<namespace>/<store>/<path>`."""

    def __init__(self, config_maps: ConfigMaps) -> None:
        self._config_maps = config_maps

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        """See `ports.ObjectStore.head`. There are no versions."""
        del version
        where = parse(uri)
        found = self._config_maps.get(where.namespace, _name(where), metadata_only=True)
        return None if found is None else _info(where, found["metadata"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ports.ObjectStore.list`."""
        where = parse(prefix)
        infos = []
        for metadata in self._mine(where):
            annotations = metadata["annotations"]
            if OBJECT_ANNOTATION in annotations:
                path = annotations[PATH_ANNOTATION]
                infos.append(_info(ConfigMapURI(where.namespace, where.name, path), metadata))
        yield from sorted(infos, key=lambda info: info.uri.encode())

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """See `ports.ObjectStore.read`."""
        where = parse(info.uri)
        found = self._config_maps.get(where.namespace, _name(where))
        if found is None or _head(found["metadata"]).sha256 != info.etag:
            raise SourceChanged(f"{info.uri} changed while it was read")
        skip = start
        for plain in self._unpacked(where, found):
            if skip >= len(plain):
                skip -= len(plain)
                continue
            yield plain[skip:]
            skip = 0

    def get(self, uri: str, limit: int = _CHUNK) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        where = parse(uri)
        for _ in range(_TRIES):
            found = self._config_maps.get(where.namespace, _name(where))
            if found is None:
                return None
            size = _head(found["metadata"]).size
            if size > limit:
                raise Permanent("ObjectTooLarge", f"{uri} has {size} bytes, {limit} were expected")
            with suppress(SourceChanged):  # replaced while it was read
                return b"".join(self._unpacked(where, found))
        raise Retry(Reason.OBJECT_CHANGING, f"{uri} changed {_TRIES} times while it was read")

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """See `ports.ObjectStore.put`."""
        writer = ConfigMapWriter(self._config_maps, uri)
        try:
            writer.write(data)
            return writer.publish(only_if_absent=only_if_absent)
        except BaseException:
            writer.abort()
            raise

    def writer(self, uri: str) -> ConfigMapWriter:
        """See `ports.ObjectStore.writer`."""
        return ConfigMapWriter(self._config_maps, uri)

    def copy(self, source: str, target: str) -> None:
        """See `ports.ObjectStore.copy`."""
        info = self.head(source)
        if info is None:
            raise Permanent("ObjectNotFound", f"{source} is not there")
        writer = self.writer(target)
        try:
            for chunk in self.read(info):
                writer.write(chunk)
            writer.commit()
        except BaseException:
            writer.abort()
            raise

    def delete(self, uri: str) -> None:
        """See `ports.ObjectStore.delete`."""
        where = parse(uri)
        found = self._config_maps.get(where.namespace, _name(where), metadata_only=True)
        if found is None:
            return
        self._config_maps.delete(where.namespace, _name(where))  # the head first: then it is gone
        for piece in _head(found["metadata"]).pieces:
            self._config_maps.delete(where.namespace, piece)

    def delete_prefix(self, prefix: str) -> None:
        """See `ports.ObjectStore.delete_prefix`. Takes pieces along that no head lists."""
        where = parse(prefix)
        for metadata in list(self._mine(where)):
            self._config_maps.delete(where.namespace, metadata["name"])

    def _mine(self, where: ConfigMapURI) -> Iterator[dict[str, Any]]:
        selector = f"{STAGING_LABEL}={where.name}"
        for metadata in self._config_maps.list_metadata(where.namespace, selector):
            path = (metadata.get("annotations") or {}).get(PATH_ANNOTATION)
            if path is not None and path.startswith(where.path):
                yield metadata

    def _unpacked(self, where: ConfigMapURI, head: Mapping[str, Any]) -> Iterator[bytes]:
        unpack = zlib.decompressobj()
        for name in _head(head["metadata"]).pieces:
            piece = self._config_maps.get(where.namespace, name)
            if piece is None:
                raise SourceChanged(f"{where} was replaced while it was read")
            yield from _inflated(unpack, _bytes(piece))
        yield from _inflated(unpack, _bytes(head))
        if rest := unpack.flush():
            yield rest


class ConfigMapWriter:
    """See `ports.ObjectWriter`."""

    def __init__(self, config_maps: ConfigMaps, uri: str) -> None:
        self._config_maps = config_maps
        self._where = parse(uri)
        self._token = secrets.token_hex(4)
        self._pack = zlib.compressobj()
        self._hash = hashlib.sha256()
        self._size = 0
        self._buffer = bytearray()
        self._pieces: list[str] = []

    def write(self, data: bytes) -> None:
        """See `ports.ObjectWriter.write`."""
        self._hash.update(data)
        self._size += len(data)
        self._buffer += self._pack.compress(data)
        while len(self._buffer) > PIECE:
            self._store_piece()

    def commit(self) -> ObjectInfo:
        """See `ports.ObjectWriter.commit`."""
        self.publish(only_if_absent=False)
        return ObjectInfo(str(self._where), self._size, self._hash.hexdigest())

    def publish(self, *, only_if_absent: bool) -> bool:
        """Make it visible; False when it was there already and `only_if_absent`."""
        self._buffer += self._pack.flush()
        while len(self._buffer) > PIECE:
            self._store_piece()
        namespace, name = self._where.namespace, _name(self._where)
        head = _Head(self._size, self._hash.hexdigest(), tuple(self._pieces))
        manifest = _manifest(self._where, name, bytes(self._buffer), head)
        for _ in range(_TRIES):
            if self._config_maps.create(namespace, manifest) is not None:
                return True
            if only_if_absent:
                self.abort()
                return False
            old = self._config_maps.get(namespace, name, metadata_only=True)
            if old is None:
                continue
            manifest["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            if self._config_maps.replace(namespace, manifest) is not None:
                for piece in _head(old["metadata"]).pieces:
                    self._config_maps.delete(namespace, piece)
                return True
            del manifest["metadata"]["resourceVersion"]
        raise Retry(Reason.OBJECT_CHANGING, f"{self._where} is being written by others")

    def abort(self) -> None:
        """See `ports.ObjectWriter.abort`."""
        with suppress(BatchInferenceError):  # what stays behind goes with the prefix
            for piece in self._pieces:
                self._config_maps.delete(self._where.namespace, piece)
        self._pieces.clear()

    def _store_piece(self) -> None:
        name = f"{_name(self._where)}-{self._token}-{len(self._pieces) + 1}"
        manifest = _manifest(self._where, name, bytes(self._buffer[:PIECE]), None)
        self._pieces.append(name)
        if self._config_maps.create(self._where.namespace, manifest) is None:
            raise Retry(Reason.OBJECT_CHANGING, f"ConfigMap {name} exists already")
        del self._buffer[:PIECE]


def _name(where: ConfigMapURI) -> str:
    return f"{where.name}-{hashlib.sha256(where.path.encode()).hexdigest()[:16]}"


def _manifest(where: ConfigMapURI, name: str, data: bytes, head: _Head | None) -> dict[str, Any]:
    annotations = {PATH_ANNOTATION: where.path}
    if head is not None:
        annotations[OBJECT_ANNOTATION] = msgspec.json.encode(head).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "labels": {MANAGED_BY: FIELD_MANAGER, STAGING_LABEL: where.name},
            "annotations": annotations,
        },
        "binaryData": {_DATA: base64.b64encode(data).decode()},
    }


def _bytes(config_map: Mapping[str, Any]) -> bytes:
    return base64.b64decode((config_map.get("binaryData") or {}).get(_DATA, ""))


def _inflated(unpack: Any, data: bytes) -> Iterator[bytes]:
    """Bounded chunks, however well the bytes were compressed."""
    while data:
        if plain := unpack.decompress(data, _CHUNK):
            yield plain
        data = unpack.unconsumed_tail


def _head(metadata: Mapping[str, Any]) -> _Head:
    text = (metadata.get("annotations") or {}).get(OBJECT_ANNOTATION)
    if text is None:
        raise Permanent(
            "NotAnObject", f"ConfigMap {metadata['namespace']}/{metadata['name']} is not ours"
        )
    return msgspec.json.decode(text, type=_Head)


def _info(where: ConfigMapURI, metadata: Mapping[str, Any]) -> ObjectInfo:
    head = _head(metadata)
    return ObjectInfo(str(where), head.size, head.sha256)

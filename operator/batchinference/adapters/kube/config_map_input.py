"""A key of a user's ConfigMap as an object to read. Never written: it is not ours."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import NoReturn

from batchinference.adapters.kube.blocking import ConfigMaps
from batchinference.adapters.kube.config_map_uri import parse
from batchinference.errors import Permanent
from batchinference.ports import ObjectInfo, ObjectWriter, SourceChanged

_CHUNK = 1 << 20


class ConfigMapInput:
    """See `ports.ObjectStore`, for `configmap://<namespace>/<name>/<key>`; read-only.

    The ETag is the content's hash, and not the resourceVersion, so that a label put on the
    ConfigMap while it is read is no change of the input.
    """

    def __init__(self, config_maps: ConfigMaps) -> None:
        self._config_maps = config_maps

    def head(self, uri: str, version: str = "") -> ObjectInfo | None:
        """See `ports.ObjectStore.head`. There are no versions."""
        del version
        data = self._data(uri)
        return None if data is None else ObjectInfo(uri, len(data), _etag(data))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The object of that very URI, if it is there."""
        info = self.head(prefix)
        if info is not None:
            yield info

    def read(self, info: ObjectInfo, start: int = 0) -> Iterator[bytes]:
        """See `ports.ObjectStore.read`."""
        data = self._data(info.uri)
        if data is None or _etag(data) != info.etag:
            raise SourceChanged(f"{info.uri} changed while it was read")
        for begin in range(start, len(data), _CHUNK):
            yield data[begin : begin + _CHUNK]

    def get(self, uri: str, limit: int = _CHUNK) -> bytes | None:
        """See `ports.ObjectStore.get`."""
        data = self._data(uri)
        if data is not None and len(data) > limit:
            raise Permanent("ObjectTooLarge", f"{uri} has {len(data)} bytes, at most {limit} fit")
        return data

    def put(self, uri: str, data: bytes, *, only_if_absent: bool = False) -> bool:
        """Refused: it is the user's."""
        del data, only_if_absent
        _refuse(uri)

    def writer(self, uri: str) -> ObjectWriter:
        """Refused: it is the user's."""
        _refuse(uri)

    def copy(self, source: str, target: str) -> None:
        """Refused: it is the user's."""
        del source
        _refuse(target)

    def delete(self, uri: str) -> None:
        """Refused: it is the user's."""
        _refuse(uri)

    def delete_prefix(self, prefix: str) -> None:
        """Refused: it is the user's."""
        _refuse(prefix)

    def _data(self, uri: str) -> bytes | None:
        where = parse(uri)
        found = self._config_maps.get(where.namespace, where.name)
        if found is None:
            return None
        if (text := (found.get("data") or {}).get(where.path)) is not None:
            return str(text).encode()
        packed = (found.get("binaryData") or {}).get(where.path)
        return None if packed is None else base64.b64decode(packed)


def _etag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _refuse(uri: str) -> NoReturn:
    raise Permanent("ReadOnly", f"{uri} is an input and is never written")

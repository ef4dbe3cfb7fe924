"""URIs of data in ConfigMaps: `configmap://namespace/name`, with a path or a key behind it."""

from __future__ import annotations

from dataclasses import dataclass

from batchinference.errors import Permanent

SCHEME = "configmap://"

PIECE = 900 * 1024
"""Bytes that we put into one ConfigMap; the API server stops at 1 MiB, labels and all."""


@dataclass(frozen=True, slots=True)
class ConfigMapURI:
    """The parts of such a URI; `path` is "" where there is none, and a key where it is one."""

    namespace: str
    name: str
    path: str = ""

    def __str__(self) -> str:
        path = f"/{self.path}" if self.path else ""
        return f"{SCHEME}{self.namespace}/{self.name}{path}"


def parse(uri: str) -> ConfigMapURI:
    """Take a URI apart.

    Raises:
        Permanent: it is none.
    """
    namespace, _, rest = uri.removeprefix(SCHEME).partition("/")
    name, _, path = rest.partition("/")
    if not uri.startswith(SCHEME) or not namespace or not name:
        raise Permanent("InvalidURI", f"{uri} is not of the form {SCHEME}namespace/name")
    return ConfigMapURI(namespace, name, path)

"""How calls leave the pod: through which proxy, whose certificates are believed, how long to wait.

Owns that every SDK goes by the same rules, whatever it would read of the environment by itself:
proxies are those of HTTPS_PROXY, HTTP_PROXY and NO_PROXY; certificates are checked against the
public authorities and those of one file for the whole pod, or, where a provider object names its
own authorities, against these alone. It must not know what is called.
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from email.utils import mktime_tz, parsedate_tz
from pathlib import Path
from urllib.parse import urlsplit

from batchinference.errors import InvalidObject, Stalled
from batchinference.model.status import Reason

CA_FILE = "BATCH_INFERENCE_CA_FILE"
"""Names a file with certificates in PEM that are believed besides the public ones."""

PATIENCE_S = 10.0
"""Seconds that a call waits by itself when a server asks for patience; beyond that it fails, and
who made it waits, holding no thread and no worker."""

_LEAST_S = 1.0
_DAY_S = 86_400.0
_SCHEMES = ("https", "http")


class TooLate(Exception):
    """A call that must not be made any more was about to leave."""


def check() -> None:
    """Look at the environment once, when a process begins.

    Raises:
        InvalidObject: a proxy or the certificates can't be used; names the variable.
    """
    for scheme in _SCHEMES:
        name, proxy = _variable(f"{scheme}_proxy")
        if proxy and (urlsplit(proxy).scheme not in _SCHEMES or not urlsplit(proxy).hostname):
            raise InvalidObject(name, "must be a proxy's address, such as http://proxy:3128")
    try:
        trust(authorities())
    except (OSError, ValueError) as error:
        path = os.environ.get(CA_FILE, "")
        raise InvalidObject(CA_FILE, f"{path} holds no readable certificates in PEM") from error


# ---------------------------------------------------------------- proxies


def proxy_of(url: str) -> str:
    """The proxy that leads to a URL; "" = directly. Loopback is never behind one."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if not host or _is_loopback(host):
        return ""
    _, proxy = _variable(f"{parts.scheme}_proxy")
    _, excepted = _variable("no_proxy")
    port = parts.port or {"https": 443, "http": 80}.get(parts.scheme)
    if not proxy or any(_matches(entry, host, port) for entry in excepted.split(",")):
        return ""
    return proxy


def _variable(name: str) -> tuple[str, str]:
    """The variable in lower case, which wins as it does elsewhere, or else in upper case."""
    for spelled in (name, name.upper()):
        if found := os.environ.get(spelled, "").strip():
            has_scheme = "://" in found or name == "no_proxy"
            return spelled, found if has_scheme else f"http://{found}"
    return name.upper(), ""


def _matches(entry: str, host: str, port: int | None) -> bool:
    """Whether an entry of NO_PROXY names the host: `*`, an address, a network, a name with all
    that is under it, each with or without a port.
    """
    entry = entry.strip().lower()
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        pass  # one of the two is a name
    name, _, only = entry.rpartition(":") if entry.count(":") == 1 else (entry, "", "")
    if only and only != str(port):
        return False
    name = name.removeprefix("*").removeprefix(".")
    return bool(entry) and (not name or host == name or host.endswith(f".{name}"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---------------------------------------------------------------- certificates


def authorities() -> str:
    """The certificates of the pod's file, in PEM; "" without one.

    Raises:
        OSError: the file can't be read.
    """
    path = os.environ.get(CA_FILE, "")
    return Path(path).read_text(encoding="ascii") if path else ""


def trust(pem: str) -> ssl.SSLContext | None:
    """A context that believes these authorities alone; None for none.

    Raises:
        ValueError: there is no certificate in it.
    """
    if not pem:
        return None
    try:
        context = ssl.create_default_context(cadata=pem)
    except ssl.SSLError as error:
        raise ValueError("no readable certificate in PEM") from error
    if not context.get_ca_certs():
        raise ValueError("no certificate of an authority")
    return context


def checked(pem: str, field_path: str) -> str:
    """The authorities that a provider object names, when they can be used.

    Raises:
        Stalled: they can't.
    """
    try:
        trust(pem)
    except ValueError as error:
        raise Stalled(
            Reason.INVALID_SPEC, f"{field_path}: holds no readable certificate in PEM."
        ) from error
    return pem


def stored(pem: str) -> str:
    """A file with these authorities, for libraries that take no text. It belongs to this user
    alone, and the same text gives the same file.

    Raises:
        OSError: it can't be written, or somebody else has taken its place.
    """
    folder = Path(tempfile.gettempdir()) / f"batch-inference-ca-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    held = folder.lstat()
    if held.st_uid != os.getuid() or held.st_mode & 0o077 or folder.is_symlink():
        raise OSError(f"{folder} is somebody else's")
    path = folder / f"{hashlib.sha256(pem.encode()).hexdigest()}.pem"
    if not path.exists():
        half = folder / f"{path.stem}.{os.getpid()}"
        half.write_text(pem, encoding="ascii")
        half.replace(path)
    return str(path)


# ---------------------------------------------------------------- patience


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, as a number or as a date.

    None when it does not say, or nonsense, or less than a second: our own waits, which grow, are
    longer than that, and a server that is in trouble is not to be asked at once for ever.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        said = headers.get(name, "")
        try:
            wait = float(said) / unit
        except ValueError:
            date = parsedate_tz(said)
            wait = max(0.0, mktime_tz(date) - time.time()) if date else math.nan
        if _LEAST_S <= wait <= _DAY_S:
            return wait
    return None

"""Which storage locations a job may name: the prefix rules of docs/reference/inferenceprovider.md.

A prefix matches when the bucket is equal and the key, compared byte by byte, starts with it.
Everything that could be read in two ways (empty or dotted segments, percent-encoding) is refused.
"""

from __future__ import annotations

from collections.abc import Iterable

from batchinference.errors import Stalled
from batchinference.model.status import Reason

_SCHEME = "s3://"


def oddity(uri: str) -> str:
    """What about a URI could be read in two ways, as the end of a sentence; "" for nothing."""
    bucket, _, key = uri.removeprefix(_SCHEME).partition("/")
    if not uri.startswith(_SCHEME) or not bucket:
        return "must look like 's3://bucket/key'"
    if "%" in uri or "\\" in uri or any(ord(c) < 0x20 or ord(c) == 0x7F for c in uri):
        return "must not contain '%', '\\' or control characters"
    if any(segment in {"", ".", ".."} for segment in key.removesuffix("/").split("/") if key):
        return "must not contain empty, '.' or '..' segments"
    return ""


def allowed_places(prefixes: Iterable[str], namespace: str) -> tuple[str, ...]:
    """A provider's allowed prefixes as they are for a namespace."""
    return tuple(p.replace("${namespace}", namespace) for p in prefixes)


def is_inside(uri: str, places: Iterable[str]) -> bool:
    """Whether the URI lies in one of the places; a place that is no prefix holds nothing."""
    return any(_is_prefix(p) and uri.startswith(p) for p in places)


def what_is_allowed(places: Iterable[str]) -> str:
    """The end of the sentence about a location that is outside."""
    named = ", ".join(f"'{p}'" for p in places) or "nothing"
    return (
        f"is outside of what the provider allows this namespace: {named} "
        "(`spec.storage.s3.allowedPrefixes` of the provider)"
    )


def check_location(uri: str, what: str) -> None:
    """Refuse a URI that could be read in two ways.

    Raises:
        Stalled: `LocationNotAllowed`; `what` names the field.
    """
    problem = oddity(uri)
    if problem:
        raise Stalled(Reason.LOCATION_NOT_ALLOWED, f"`{what}` {problem}, not '{uri}'")


def check_allowed(uri: str, what: str, prefixes: Iterable[str], namespace: str) -> None:
    """Refuse a URI outside the provider's allowed prefixes. No prefixes allow nothing.

    Raises:
        Stalled: `LocationNotAllowed`; `what` names the field.
    """
    check_location(uri, what)
    places = allowed_places(prefixes, namespace)
    if not is_inside(uri, places):
        text = f"`{what}` '{uri}' {what_is_allowed(places)}"
        raise Stalled(Reason.LOCATION_NOT_ALLOWED, text)


def _is_prefix(uri: str) -> bool:
    """Whether it names a bucket and ends where a path segment does."""
    return uri.startswith(_SCHEME) and uri.endswith("/") and uri != _SCHEME


def _holds(place: str, uri: str) -> bool:
    """Whether the place is the URI, or a prefix over it."""
    return place == uri or (place.endswith("/") and uri.startswith(place))


def all_staging(staging: str) -> str:
    """Where this installation's staging is, of all runs of a provider; `staging` is one run's."""
    return staging.removesuffix("/").rpartition("/")[0] + "/"


def check_apart(places: Iterable[tuple[str, str]]) -> None:
    """Refuse places that lie in one another (protocol 3.4): pairs of (field, URI).

    Raises:
        Stalled: `LocationNotAllowed`.
    """
    seen: list[tuple[str, str]] = []
    for what, uri in places:
        for other, place in seen:
            if _holds(place, uri) or _holds(uri, place):
                raise Stalled(
                    Reason.LOCATION_NOT_ALLOWED,
                    f"`{what}` '{uri}' and `{other}` '{place}' must not overlap",
                )
        seen.append((what, uri))

"""Taking secrets out of text and values before they are logged. The last line, not the first:
code that knows that it holds a secret does not log it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_SECRET_NAMES = re.compile(
    r"api[-_]?key|secret|token(?!s\b|s_|_count|_limit)|password|passwd|authorization|credential"
    r"|private[-_]?key|cookie|signature",
    re.IGNORECASE,
)

_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    # Signed URLs: everything behind the question mark gives access.
    (
        re.compile(r"(https?://[^\s\"'<>?]+)\?[^\s\"'<>]*(?:X-Amz-|Signature=|sig=)[^\s\"'<>]*"),
        rf"\1?{HIDDEN}",
    ),
    (re.compile(r"(https?://)[^\s/@\"']+:[^\s/@\"']+@"), rf"\1{HIDDEN}@"),
    (re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{6,}"), f"sk-{HIDDEN}"),
    (re.compile(r"\b(AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"), rf"\1{HIDDEN}"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), HIDDEN),
    # name=value, "name": "value", Name: value
    (
        re.compile(
            r"((?:api[-_]?key|secret(?!NotFound)[-_a-z]*|(?:session|access|refresh|security|id|bearer)[-_]?token"
            r"|password|authorization|private[-_]?key)[\"']?\s*[:=]\s*[\"']?)"
            r"(?!\*\*\*|Bearer \*|Basic \*)[^\s\"',;&}]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)


def scrub_text(text: str) -> str:
    """The text without what looks like a secret."""
    for pattern, instead in _RULES:
        text = pattern.sub(instead, text)
    return text


def scrub(value: Any, name: str = "") -> Any:
    """A JSON value without secrets; everything under a name that promises one is hidden."""
    if name and _SECRET_NAMES.search(name):
        return HIDDEN
    if isinstance(value, str):
        return scrub_text(value)
    if isinstance(value, Mapping):
        return {str(key): scrub(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [scrub(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return scrub_text(str(value))

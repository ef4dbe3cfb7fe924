"""A fast estimate of a request's input tokens, for limits and budgets. An estimate, never a bill.

Four bytes of body text count as one token, which is about right for English and on the high side
of nothing else: languages of three-byte characters come out near three quarters of the truth. An
inlined image counts as a flat number, since providers bill pixels and not base64.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

IMAGE_TOKENS = 1_000
"""What one inlined image counts as; models bill between 85 and about 1,600."""

_INLINED_FROM = 2_048
"""Bodies below this many bytes are not searched for inlined images: they hold no real one."""

_INLINED = re.compile(rb";base64,[A-Za-z0-9+/=_-]+")


def estimate(body: bytes) -> int:
    """Tokens of a request body as JSON text, at least 1."""
    size = len(body)
    if size >= _INLINED_FROM and b";base64," in body:
        images = 0
        for found in _INLINED.finditer(body):
            images += 1
            size -= found.end() - found.start()
        return (size + 3) // 4 + images * IMAGE_TOKENS
    return (size + 3) // 4 or 1


def estimates(front: bytes, rests: Sequence[memoryview], behind: int) -> list[int]:
    """`estimate` of several bodies, each of them `front` and a rest without its last bytes.

    Args:
        front: what all bodies begin with.
        rests: what follows it.
        behind: how many bytes of each rest are not the body's.
    """
    more = len(front) - behind
    sizes = [len(rest) + more for rest in rests]
    if max(sizes) < _INLINED_FROM:
        return [(size + 3) // 4 for size in sizes]
    return [
        (size + 3) // 4 if size < _INLINED_FROM else estimate(b"".join((front, rest[:-behind])))
        for rest, size in zip(rests, sizes, strict=True)
    ]

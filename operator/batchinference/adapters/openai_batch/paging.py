"""Following a listing to its end over servers that page in their own ways.

Owns when a listing is over, and the difference between "over" and "can't be followed": a server
that ignores `after`, runs in circles or says that there is more without saying where gives
`Unfollowable`, never a false end and never an endless loop. Pure: the caller makes the calls.

A cursor is ours and not the server's. It carries what tells a circle: the id that began some
earlier page, moved on at every power of two of pages (Brent), so any circle is seen within twice
its length and the cursor stays small.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

from batchinference.adapters.openai_batch.view import text, time_of

LIMIT = 100
"""Items asked for per page: the most that OpenAI gives."""


class Unfollowable(Exception):
    """The server says, or lets one suspect, that there is more, and offers no way to it."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a listing goes on.

    Attributes:
        mode: `after` an id, by `offset` (a number in the same parameter), or by the server's own
            `cursor`.
        value: what the server is asked for.
        seen: items so far; pages: pages so far.
        mark: the id that began the page that circles are told by.
        first: creation time of the newest item seen, in seconds; 0 = unknown.
    """

    mode: str = "after"
    value: str = ""
    seen: int = 0
    pages: int = 0
    mark: str = ""
    first: float = 0.0

    def __str__(self) -> str:
        fields = [self.mode, self.value, self.seen, self.pages, self.mark, self.first]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def parse(cls, written: str | None) -> Cursor:
        """The cursor of a string made by `str`, or the beginning."""
        return cls() if written is None else cls(*json.loads(written))

    @property
    def query(self) -> dict[str, Any]:
        """The query parameters for the next page."""
        if not self.pages:
            return {"limit": LIMIT}
        return {"limit": LIMIT, ("cursor" if self.mode == "cursor" else "after"): self.value}

    def by_offset(self) -> Cursor | None:
        """The same place as an offset, for servers that refuse an id; None when it is one."""
        if self.mode != "after" or not self.pages:
            return None
        return replace(self, mode="offset", value=str(self.seen))


def items_of(answer: Any) -> list[Mapping[str, Any]]:
    """The items of a page: `data` of an object, or a bare array.

    Raises:
        Unfollowable: it is neither.
    """
    found = answer.get("data") if isinstance(answer, Mapping) else answer
    if found is None and isinstance(answer, Mapping) and answer.get("object") == "list":
        found = []
    if not isinstance(found, list):
        raise Unfollowable("the answer holds no list")
    return [item for item in found if isinstance(item, Mapping)]


def after(cursor: Cursor, answer: Any, since: datetime | None) -> Cursor | None:
    """Where the listing goes on behind this page; None at its end.

    Args:
        cursor: how this page was asked for.
        answer: the page as the server gave it.
        since: nothing older is needed: the end is also where a listing that is seen to run from
            new to old has passed it.

    Raises:
        Unfollowable: there may be more, and no way leads there.
    """
    items = items_of(answer)
    ids = [text(item.get("id")) for item in items]
    envelope = answer if isinstance(answer, Mapping) else {}
    times = [t.timestamp() for t in (time_of(i.get("created_at")) for i in items) if t]
    first = cursor.first or (times[0] if times else 0.0)
    if since is not None and _has_passed(since, times, first, len(items)):
        return None
    paging = envelope.get("paging")
    if isinstance(paging, Mapping):
        following = text(paging.get("next_cursor"))
        return _next(cursor, "cursor", following, ids, first) if following else None
    has_more = envelope.get("has_more")
    if has_more is False:
        return None
    last = next((i for i in reversed(ids) if i), "")
    if not last and has_more is True:
        last = text(envelope.get("last_id"))
        if not last or last == cursor.value:
            raise Unfollowable("the server says that there is more behind an empty page")
    if not last:
        return None
    return _next(cursor, "after" if cursor.mode == "cursor" else cursor.mode, last, ids, first)


def _next(cursor: Cursor, mode: str, value: str, ids: Sequence[str], first: float) -> Cursor:
    begins = next((i for i in ids if i), value)
    repeated = cursor.pages and (
        cursor.mark in ids or (cursor.mode != "offset" and value == cursor.value)
    )
    if repeated:
        raise Unfollowable("the server gives the same batches again")
    pages, seen = cursor.pages + 1, cursor.seen + len(ids)
    # The mark moves on at powers of two, so that a circle of any length is met.
    mark = begins if pages & (pages - 1) == 0 else cursor.mark
    return Cursor(mode, str(seen) if mode == "offset" else value, seen, pages, mark, first)


def _has_passed(since: datetime, times: Sequence[float], first: float, items: int) -> bool:
    """Whether the listing is beyond `since`. Order is not promised, so it must have been seen."""
    if not times or len(times) != items or times[-1] >= since.timestamp():
        return False
    falling = all(a >= b for a, b in pairwise(times))
    return falling and first > times[-1]

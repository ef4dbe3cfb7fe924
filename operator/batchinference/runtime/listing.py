"""Reading a listing of an account's batches to its end, or knowing that it was not.

Owns the bound on one listing. Knows nothing of runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from batchinference.errors import Retry
from batchinference.model.batch import BatchView
from batchinference.model.status import Reason
from batchinference.ports import BatchProvider

MOST_PAGES = 500
"""Pages of one listing: half a million batches."""


class ListingCut(Retry):
    """A listing that has more pages than are read: what it did not show may be there."""


async def listing(
    client: BatchProvider, since: datetime, call_timeout_s: float, most_pages: int | None = None
) -> AsyncIterator[BatchView]:
    """Every batch of the account since then, page by page: whoever gets to the end has seen all
    that the provider lists. Where the end is, only the adapter says: it knows the provider's order.
    `most_pages` is `MOST_PAGES` where it is not given.

    Raises:
        ListingCut: there is more.
        TimeoutError: a page took too long.
        Stalled, Retry.
    """
    cursor: str | None = None
    most_pages = MOST_PAGES if most_pages is None else most_pages
    for _ in range(most_pages):
        async with asyncio.timeout(call_timeout_s):
            page = await client.page(cursor, since)
        for view in page.batches:
            yield view
        cursor = page.cursor
        if cursor is None:
            return
    raise ListingCut(
        Reason.PROVIDER_UNAVAILABLE,
        f"The listing of batches since {since:%Y-%m-%d %H:%M} has more than {most_pages} pages",
    )

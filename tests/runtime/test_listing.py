"""Listings that do not come to their end are never evidence of absence."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from batchinference.errors import Retry
from batchinference.model.batch import BatchView, SubmissionID
from batchinference.runtime import listing as module
from batchinference.runtime.listing import ListingCut, listing
from builders import START
from fakes.provider import FakeProvider, Faults
from fakes.server import Habits, ProviderServer
from fakes.world import World

PAGE = 2


class Late(World):
    """Long after everything was made."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = self  # type: ignore[assignment]

    def now(self) -> datetime:
        return START + timedelta(days=2)


def provider(batches: int, **faults: Any) -> FakeProvider:
    server = ProviderServer("acme", Habits(page_size=PAGE))
    for n in range(batches):
        at = START + timedelta(hours=n)
        server.commit({}, SubmissionID("tag", n, 1, "hash"), server.upload(b"", at), at)
    return FakeProvider(server, Late(), faults=Faults(**faults))


async def read(client: FakeProvider, since: datetime = START) -> list[BatchView]:
    return [view async for view in listing(client, since, 5.0)]


@pytest.mark.parametrize("batches", [0, 1, PAGE, PAGE * 3, PAGE * 3 + 1])
async def test_a_listing_is_read_to_its_end(batches: int) -> None:
    assert len(await read(provider(batches))) == batches


async def test_a_listing_with_too_many_pages_says_that_there_is_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MOST_PAGES", 3)
    assert len(await read(provider(PAGE * 3))) == PAGE * 3
    with pytest.raises(ListingCut, match="more than 3 pages"):
        await read(provider(PAGE * 3 + 1))


async def test_a_listing_that_breaks_half_way_is_no_listing() -> None:
    client, seen = provider(PAGE * 3), []

    async def read_on() -> None:
        async for view in listing(client, START, 5.0):
            seen.append(view)
            client.faults.flaky = 2.0

    with pytest.raises(Retry):
        await read_on()
    assert len(seen) == PAGE


async def test_a_page_that_hangs_is_given_up() -> None:
    client = provider(PAGE)

    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    client.page = never  # type: ignore[assignment, method-assign]
    with pytest.raises(TimeoutError):
        [view async for view in listing(client, START, 0.01)]


async def test_the_order_of_a_page_is_not_taken_for_the_end() -> None:
    """A server may list from old to new: only its adapter knows where `since` has been passed."""
    client = provider(PAGE * 2)
    page = client.page

    async def old_first(cursor: str | None, since: datetime | None) -> Any:
        del since
        found = await page(cursor, None)
        aged = tuple(replace(v, created_at=START - timedelta(days=9)) for v in found.batches)
        return replace(found, batches=aged)

    client.page = old_first  # type: ignore[method-assign]
    assert len(await read(client)) == PAGE * 2

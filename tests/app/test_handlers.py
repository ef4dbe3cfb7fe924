"""The feed's handlers as plain functions, and what kopf is told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, cast

import aiohttp
import kopf
import pytest

from batchinference.adapters.kube.names import FINALIZER
from batchinference.app import handlers


class Feed:
    def __init__(self) -> None:
        self.heard: list[tuple[str, str | None, Mapping[str, Any]]] = []

    def __call__(self, kind: str, event: str | None, body: Mapping[str, Any]) -> None:
        self.heard.append((kind, event, body))


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (None, "a listing"),
        ("ADDED", "a new object"),
        ("MODIFIED", "a changed one"),
        ("DELETED", "one that is gone"),
    ],
)
async def test_every_event_is_passed_on_as_it_is(event: str | None, reason: str) -> None:
    feed, body = Feed(), {"metadata": {"name": "triage"}}
    observe = handlers.observer("BatchInferenceJob", feed)
    assert await observe(event={"type": event, "object": body}, logger=None, memo=None) is None
    assert feed.heard == [("BatchInferenceJob", event, body)], reason
    assert feed.heard[0][2] is body  # nothing is copied


async def test_a_feed_that_fails_does_not_fail_the_watch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    await handlers.observer("BatchInferenceJob", broken)(event={"type": None, "object": {}})
    assert "was not understood" in caplog.text


def test_every_kind_has_one_event_handler_with_a_name_of_its_own() -> None:
    registry = registry_of(Feed())
    found = registry._watching.get_all_handlers()
    assert {h.id for h in found} == {
        "feed-batchinferencejob",
        "feed-inferenceprovider",
        "feed-clusterinferenceprovider",
    }
    assert len(found) == 3
    # Any of these would make kopf write finalizers or annotations onto objects.
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._indexing.get_all_handlers()


def registry_of(feed: Feed) -> Any:
    session = cast("Any", lambda: None)
    return handlers.build_registry(feed, server="https://127.0.0.1:1", session=session)


def test_the_connections_are_enough_for_every_stream() -> None:
    assert handlers.watch_connections(()) > 3
    assert handlers.watch_connections(tuple("abcde")) > 11


def test_kopf_is_told_to_write_nothing() -> None:
    settings = handlers.build_settings()
    assert settings.peering.standalone
    assert settings.scanning.disabled
    assert not settings.posting.enabled
    assert settings.persistence.finalizer != FINALIZER  # kopf takes its own off every object


async def test_a_login_gives_a_fresh_bounded_session(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[aiohttp.ClientSession] = []

    def session() -> aiohttp.ClientSession:
        made.append(aiohttp.ClientSession())
        return made[-1]

    log_in = handlers.login("https://api:1", session, lambda: 0.0)
    context = await log_in()
    assert isinstance(context, kopf.AiohttpSession)
    assert (context.server, context.aiohttp_session) == ("https://api:1", made[0])
    await made[0].close()


async def test_rejected_credentials_are_tried_ever_more_slowly_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("batchinference.app.handlers.asyncio.sleep", sleep)
    now = 0.0
    log_in = handlers.login("https://api:1", cast("Any", object), lambda: now)
    for _ in range(6):
        await log_in()
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]
    with pytest.raises(kopf.PermanentError, match="6 times"):
        await log_in()
    now = 601.0  # and a rejection now and then, as tokens rotate, is no reason to give up
    await log_in()
    assert len(waits) == 5


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_process_whose_watches_do_not_end_is_ended(
    monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    ended, exited = asyncio.Event(), asyncio.Event()
    codes: list[int] = []

    async def operator(**_: Any) -> None:
        ended.set()
        if hangs:
            await exited.wait()

    def end(code: int) -> None:
        codes.append(code)
        exited.set()

    monkeypatch.setattr(kopf, "operator", operator)
    monkeypatch.setattr(handlers, "_KOPF_ENDS_S", 0.0)
    monkeypatch.setattr(os, "_exit", end)
    await handlers.watch(kopf.OperatorRegistry(), [], asyncio.Event(), ended)
    assert codes == ([1] if hangs else [])

"""What is asked of a provider, and what runs are told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from batchinference.core.follow import batch_missing
from batchinference.core.outcomes import BatchMissing, BatchSeen, Outcome
from batchinference.errors import Retry, Stalled
from batchinference.model.batch import SubmissionID
from batchinference.model.run import RunPhase, ShardState, SubmissionState
from batchinference.runtime import listing
from batchinference.runtime.clients import Clients
from batchinference.runtime.credentials import Credentials
from batchinference.runtime.entry import Entry
from batchinference.runtime.following import Following
from batchinference.runtime.settings import RuntimeSettings
from builders import START, run_of, shard_of, submission_of
from fakes.clock import VirtualClock
from fakes.kube import FakeKube
from fakes.provider import FakeFactory
from fakes.server import Habits, ProviderServer
from fakes.world import World
from unit.core.given import setting

GIVEN_UP = replace(submission_of(1, SubmissionState.FENCED), batch_id="", accepted_at=None)
AT = START + timedelta(minutes=1)


class Later(VirtualClock):
    """A clock on which all that was made is an hour old."""

    def now(self) -> datetime:
        return START + timedelta(hours=1)


class Post:
    """One account, its runs, and what they were told."""

    def __init__(self, **habits: Any) -> None:
        self.server = ProviderServer("acme", Habits(**{"work_s": 86400.0, **habits}))
        self.entries: dict[str, Entry] = {}
        self.told: list[tuple[str, Outcome]] = []
        self.kube = kube = FakeKube()
        kube.secrets["ml", "openai"] = {"api-key": "secret"}
        kube.secrets["ml", "aws"] = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret"}
        others = {"https://other.test/v1": ProviderServer("other", Habits())}
        servers = {"https://openai.test/v1": self.server, **others}
        factory = FakeFactory(servers, World(clock=Later()))
        self.clients = Clients(factory, Credentials(kube, VirtualClock(), 30.0), 30.0)
        self.following = Following(
            self.clients, lambda *told: self.told.append(told), RuntimeSettings()
        )

    def run(self, name: str, *, given_up: bool = False, batches: int = 0) -> Entry:
        run = run_of(name, shards=1 + batches)
        if given_up:
            queued = shard_of(0, ShardState.QUEUED, submissions=(GIVEN_UP,))
            run = run.with_shard(queued)
        entry = Entry(run.key, run=run)
        self.entries[run.key] = entry
        for n in range(1, 1 + batches):
            made = replace(submission_of(1), batch_id=self.batch(entry, n))
            shard = shard_of(n, ShardState.SUBMITTED, submissions=(made,))
            run = run.with_shard(shard)
        entry.run = run
        return entry

    def batch(self, entry: Entry, shard: int, at: datetime = AT, ref: str = "") -> str:
        assert entry.run is not None
        named = SubmissionID(entry.run.tag, shard, 1, "hash")
        line = b'{"custom_id": "r0000000000", "body": {}}'
        where = self.server.store_at(ref or f"input-{len(self.server.batches)}", line, at)
        made = self.server.commit({}, named, where, at)
        assert made is not None
        return made.id

    async def ask(self) -> dict[str, int]:
        """Ask once; how many calls of which kind that took."""
        self.server.calls.clear()
        await self.following.ask(self.entries.values())
        return dict(self.server.calls)

    def seen(self) -> list[tuple[str, str]]:
        return [(k, o.view.id) for k, o in self.told if isinstance(o, BatchSeen)]


@pytest.fixture
async def post() -> AsyncIterator[Post]:
    made = Post()
    yield made
    await made.clients.close()


async def test_nothing_is_asked_where_nothing_is_looked_for(post: Post) -> None:
    post.run("a")
    assert await post.ask() == {}


async def test_a_few_batches_are_asked_for_one_by_one_and_many_by_listing(post: Post) -> None:
    post.run("a", batches=3)
    assert await post.ask() == {"get": 3}
    post.run("b", batches=1)
    assert await post.ask() == {"list": 1}
    assert len({batch for _, batch in post.seen()}) == 4


async def test_what_was_given_up_is_looked_for_by_listing_also_with_nothing_live(
    post: Post,
) -> None:
    entry = post.run("a", given_up=True)
    assert await post.ask() == {"list": 1}
    assert post.told == []
    late = post.batch(entry, 0)
    await post.ask()
    assert post.seen() == [(entry.key, late)]


@pytest.mark.parametrize("reason", ["CredentialsRejected", "AccessDenied"])
async def test_secrets_are_read_again_when_polling_is_refused(
    post: Post, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    entry = post.run("a", batches=1)
    assert entry.run is not None
    connected = await post.clients.of_run(entry.run.provider)

    async def refused(_batch_id: str) -> None:
        raise Stalled(reason, "not with this key")

    monkeypatch.setattr(connected.client, "get", refused)
    post.kube.secrets["ml", "openai"] = {"api-key": "mended"}
    with pytest.raises(Stalled, match=reason):
        await post.ask()
    assert await post.ask() == {"get": 1}


async def test_a_run_that_is_over_looks_for_nothing(post: Post) -> None:
    entry = post.run("a", given_up=True)
    assert entry.run is not None
    entry.run = replace(entry.run, phase=RunPhase.PARKED)
    assert await post.ask() == {}


async def test_of_two_batches_that_appear_the_older_one_is_told_first(post: Post) -> None:
    entry = post.run("a", given_up=True)
    old = post.batch(entry, 0)
    new = post.batch(entry, 0, AT + timedelta(seconds=9))
    await post.ask()
    assert post.seen() == [(entry.key, old), (entry.key, new)]


async def test_where_no_metadata_is_echoed_the_input_tells_whose_a_batch_is() -> None:
    post = Post(echoes=False)
    post.run("b", given_up=False, batches=1)
    entry = post.run("a", given_up=True)
    late = post.batch(entry, 0, ref=GIVEN_UP.input_ref)
    post.batch(entry, 0, ref="file-of-nobody")
    await post.ask()
    assert (entry.key, late) in post.seen()
    assert len(post.seen()) == 2, "the live one of the other run, and the late one"
    await post.clients.close()


async def test_a_listing_that_is_cut_leaves_the_rest_to_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    post = Post(page_size=2)
    monkeypatch.setattr(listing, "MOST_PAGES", 1)
    post.run("a", batches=5)
    assert await post.ask() == {"list": 1, "get": 3}
    assert len(post.seen()) == 5
    await post.clients.close()


async def test_a_batch_that_a_listing_does_not_show_is_asked_for_before_it_is_missed(
    post: Post,
) -> None:
    entry = post.run("a", batches=4)
    hidden, gone, *_ = post.server.batches.values()
    hidden.visible_at = START + timedelta(days=9)
    gone.vanishes_at = START
    assert await post.ask() == {"list": 1, "get": 2}
    assert (entry.key, hidden.id) in post.seen()
    assert [o for _, o in post.told if isinstance(o, BatchMissing)] == [BatchMissing(gone.id)]


async def test_an_end_is_told_until_the_journal_has_it_and_nothing_else_twice(post: Post) -> None:
    entry = post.run("a", batches=2)
    _, ended = post.server.batches.values()
    ended.end_at = ended.valid_at
    for _ in range(2):
        await post.ask()
        for _, outcome in post.told:
            assert isinstance(outcome, BatchSeen)
            entry.notes = entry.notes.with_views([outcome.view])
    assert [batch for _, batch in post.seen()].count(ended.id) == 2
    assert len(post.seen()) == 3


async def test_an_account_that_does_not_answer_is_told_to_the_caller(post: Post) -> None:
    post.run("a", batches=1)
    post.server.outage = True
    with pytest.raises(Retry):
        await post.ask()


async def test_another_server_s_word_on_a_run_is_not_believed(post: Post) -> None:
    victim = post.run("a", given_up=True)
    assert victim.run is not None
    elsewhere = {**victim.run.provider.settings}
    elsewhere["openAI"] = {**elsewhere["openAI"], "baseURL": "https://other.test/v1"}
    victim.run = replace(victim.run, provider=replace(victim.run.provider, settings=elsewhere))
    post.run("b", batches=4)
    post.batch(victim, 0)
    await post.ask()
    assert victim.key not in {key for key, _ in post.seen()}


async def test_what_was_denied_is_told_again_once_it_is_seen_unchanged(post: Post) -> None:
    entry = post.run("a", batches=1)
    await post.ask()
    ((key, batch_id),) = post.seen()
    entry.notes = replace(entry.notes, views={o.view.id: o.view for _, o in post.told})
    await post.ask()
    assert len(post.told) == 1, "nothing new"
    entry.notes = batch_missing(entry.notes, BatchMissing(batch_id), setting())
    await post.ask()
    assert post.seen() == [(key, batch_id)] * 2

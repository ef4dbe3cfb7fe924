"""What every `ports.BatchProvider` must do, adapters over HTTP and the fake alike.

Subclass `ProviderConformance` in a test module and give it a fixture `bench` that is fresh: an
account without batches, in which batches run until they are let go.
"""

from __future__ import annotations

import json
from typing import Protocol

import pytest

from batchinference.errors import Stalled
from batchinference.model.batch import (
    TOO_LATE,
    Accepted,
    BatchState,
    BatchView,
    CancelOutcome,
    OutcomeUnknown,
    RefusalKind,
    Refused,
    SubmissionID,
)
from batchinference.model.run import Run
from batchinference.ports import BatchProvider
from builders import anytime


class Bench(Protocol):
    """One implementation and the strings of the world behind it."""

    provider: BatchProvider
    run: Run
    unknown_id: str

    async def upload(self, submission: SubmissionID) -> str:
        """Put a good input where the provider reads it; returns the input_ref."""

    async def lose_next_answer(self) -> None:
        """The next create call takes hold, and its answer does not come back."""

    async def refuse_next(self) -> RefusalKind:
        """The next create call is refused for a reason that passes; says which."""

    async def finish(self) -> None:
        """Let every batch that runs come to its end."""

    async def locked_out(self) -> BatchProvider:
        """A client whose credentials are rejected."""


def submission(bench: Bench, shard: int = 0, ordinal: int = 1) -> SubmissionID:
    return SubmissionID(bench.run.tag, shard, ordinal, f"{shard:04x}{ordinal:08x}")


async def submit(bench: Bench, shard: int = 0, ordinal: int = 1) -> BatchView:
    named = submission(bench, shard, ordinal)
    request = bench.provider.create_request(bench.run, named, await bench.upload(named))
    outcome = await bench.provider.submit(request, anytime)
    assert isinstance(outcome, Accepted), outcome
    return outcome.batch


async def listing(provider: BatchProvider) -> list[BatchView]:
    found: list[BatchView] = []
    cursor, pages = None, 0
    while True:
        page = await provider.page(cursor, None)
        found += page.batches
        cursor, pages = page.cursor, pages + 1
        if cursor is None:
            return found
        assert pages < 100, "the listing does not end"


async def ended(bench: Bench, batch_id: str) -> BatchView:
    for _ in range(600):
        await bench.finish()
        view = await bench.provider.get(batch_id)
        assert view is not None
        if view.state.is_over:
            return view
    raise AssertionError(f"{batch_id} does not end")


class ProviderConformance:
    async def test_a_trial_names_the_same_account_each_time(self, bench: Bench) -> None:
        first = await bench.provider.check()
        assert first.id
        assert await bench.provider.check() == first

    async def test_the_request_is_the_same_each_time_and_fits_a_journal(self, bench: Bench) -> None:
        named = submission(bench)
        ref = await bench.upload(named)
        request = bench.provider.create_request(bench.run, named, ref)
        assert request == bench.provider.create_request(bench.run, named, ref)
        assert json.loads(json.dumps(request)) == request

    async def test_a_batch_says_everywhere_which_submission_it_is(self, bench: Bench) -> None:
        accepted = await submit(bench)
        found = await bench.provider.get(accepted.id)
        assert found is not None
        for view in (accepted, found, *await listing(bench.provider)):
            assert view.id == accepted.id
            assert view.submission == submission(bench)
            assert view.input_ref == accepted.input_ref != ""

    async def test_a_listing_shows_every_batch_once_and_ends(self, bench: Bench) -> None:
        made = [(await submit(bench, shard)).id for shard in range(4)]
        assert sorted(view.id for view in await listing(bench.provider)) == sorted(made)

    async def test_ordinals_of_a_shard_are_batches_of_their_own(self, bench: Bench) -> None:
        first, second = await submit(bench), await submit(bench, ordinal=2)
        assert first.id != second.id
        assert second.submission == submission(bench, ordinal=2)

    async def test_a_batch_that_nobody_made_is_none(self, bench: Bench) -> None:
        assert await bench.provider.get(bench.unknown_id) is None
        assert await bench.provider.cancel(bench.unknown_id) is CancelOutcome.NOT_FOUND

    async def test_a_batch_that_is_let_go_completes(self, bench: Bench) -> None:
        view = await ended(bench, (await submit(bench)).id)
        assert view.state is BatchState.COMPLETED
        assert view.files
        assert view.failure is None
        assert view.ended_at is not None

    async def test_a_cancel_is_accepted_and_later_says_that_it_is_over(self, bench: Bench) -> None:
        batch = await submit(bench)
        assert await bench.provider.cancel(batch.id) is CancelOutcome.ACCEPTED
        view = await ended(bench, batch.id)
        assert view.state in {BatchState.CANCELLED, BatchState.COMPLETED}
        over = await bench.provider.cancel(batch.id)
        # Some servers accept the cancel of what is cancelled; none may call it unknown.
        assert over in {CancelOutcome.ALREADY_OVER, CancelOutcome.ACCEPTED}

    async def test_cancelling_what_completed_says_that_it_is_over(self, bench: Bench) -> None:
        batch = await ended(bench, (await submit(bench)).id)
        assert await bench.provider.cancel(batch.id) is CancelOutcome.ALREADY_OVER

    async def test_an_input_is_readable_until_it_is_deleted(self, bench: Bench) -> None:
        ref = await bench.upload(submission(bench))
        assert await bench.provider.input_readable(ref)
        await bench.provider.delete_input(ref)
        assert not await bench.provider.input_readable(ref)
        await bench.provider.delete_input(ref)

    async def test_a_lost_answer_is_unknown_and_the_listing_settles_it(self, bench: Bench) -> None:
        named = submission(bench)
        request = bench.provider.create_request(bench.run, named, await bench.upload(named))
        await bench.lose_next_answer()
        assert isinstance(await bench.provider.submit(request, anytime), OutcomeUnknown)
        assert [view.submission for view in await listing(bench.provider)] == [named]

    async def test_a_repeated_request_makes_no_second_batch_where_the_traits_say_so(
        self, bench: Bench
    ) -> None:
        named = submission(bench)
        request = bench.provider.create_request(bench.run, named, await bench.upload(named))
        first, again = [await bench.provider.submit(request, anytime) for _ in range(2)]
        assert isinstance(first, Accepted)
        assert isinstance(again, Accepted)
        replayed = bench.provider.traits.resend_window_s > 0
        assert (first.batch.id == again.batch.id) is replayed
        assert len(await listing(bench.provider)) == (1 if replayed else 2)

    async def test_what_would_come_too_late_is_not_sent(self, bench: Bench) -> None:
        named = submission(bench)
        request = bench.provider.create_request(bench.run, named, await bench.upload(named))
        assert await bench.provider.submit(request, lambda: False) == TOO_LATE
        assert await listing(bench.provider) == []
        assert isinstance(await bench.provider.submit(request, anytime), Accepted)

    async def test_a_certain_refusal_leaves_no_batch(self, bench: Bench) -> None:
        named = submission(bench)
        request = bench.provider.create_request(bench.run, named, await bench.upload(named))
        kind = await bench.refuse_next()
        outcome = await bench.provider.submit(request, anytime)
        assert isinstance(outcome, Refused)
        assert outcome.kind is kind
        assert await listing(bench.provider) == []

    async def test_rejected_credentials_stall_and_refuse(self, bench: Bench) -> None:
        named = submission(bench)
        request = bench.provider.create_request(bench.run, named, await bench.upload(named))
        stranger = await bench.locked_out()
        with pytest.raises(Stalled) as stalled:
            await stranger.check()
        assert stalled.value.reason == "CredentialsRejected"
        outcome = await stranger.submit(request, anytime)
        assert isinstance(outcome, Refused)
        assert outcome.kind is RefusalKind.CREDENTIALS
        await stranger.close()
        assert await listing(bench.provider) == []

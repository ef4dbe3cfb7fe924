"""What every `ports.Journals` must do.

Subclass `JournalsConformance` in a test module and give it a fixture `journals` that is empty.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from batchinference.errors import Permanent, Superseded
from batchinference.model.run import MAX_SHARDS, RunPhase
from batchinference.ports import Journals
from builders import digest, run_of


class JournalsConformance:
    async def test_a_run_comes_back_as_it_was_written(self, journals: Journals) -> None:
        run = run_of(shards=3, submitted=2)
        version = await journals.create(run)
        assert await journals.get(run.key) == (run, version)

    async def test_no_journal_is_none(self, journals: Journals) -> None:
        assert await journals.get("0" * 40) is None
        assert list(await journals.unended()) == []

    async def test_creating_twice_is_superseded_and_changes_nothing(
        self, journals: Journals
    ) -> None:
        run = run_of()
        version = await journals.create(run)
        with pytest.raises(Superseded):
            await journals.create(replace(run, phase=RunPhase.STAGING))
        assert await journals.get(run.key) == (run, version)

    async def test_a_write_with_the_current_version_gives_a_new_one(
        self, journals: Journals
    ) -> None:
        run = run_of()
        first = await journals.create(run)
        changed = replace(run, phase=RunPhase.STAGING)
        second = await journals.write(changed, first)
        assert second != first
        assert await journals.get(run.key) == (changed, second)

    async def test_a_write_with_an_old_version_is_superseded_and_changes_nothing(
        self, journals: Journals
    ) -> None:
        run = run_of()
        first = await journals.create(run)
        changed = replace(run, phase=RunPhase.STAGING)
        second = await journals.write(changed, first)
        with pytest.raises(Superseded):
            await journals.write(replace(run, phase=RunPhase.FINISHING), first)
        assert await journals.get(run.key) == (changed, second)

    async def test_a_write_to_a_journal_that_is_not_there_is_superseded(
        self, journals: Journals
    ) -> None:
        run = run_of()
        with pytest.raises(Superseded):
            await journals.write(run, "1")
        assert await journals.get(run.key) is None

    async def test_only_the_newest_version_is_current(self, journals: Journals) -> None:
        run = run_of()
        assert not await journals.is_current(run.key, "1"), "there is none"
        first = await journals.create(run)
        assert await journals.is_current(run.key, first)
        second = await journals.write(replace(run, phase=RunPhase.STAGING), first)
        assert await journals.is_current(run.key, second)
        assert not await journals.is_current(run.key, first)

    async def test_of_two_writers_one_wins(self, journals: Journals) -> None:
        run = run_of()
        version = await journals.create(run)
        won = []
        for phase in (RunPhase.STAGING, RunPhase.FINISHING):
            try:
                await journals.write(replace(run, phase=phase), version)
                won.append(phase)
            except Superseded:
                continue
        stored = await journals.get(run.key)
        assert len(won) == 1
        assert stored is not None
        assert stored[0].phase is won[0]

    async def test_every_journal_but_receipts_is_listed_with_its_version(
        self, journals: Journals
    ) -> None:
        phases = [p for p in RunPhase if p is not RunPhase.ENDED]
        runs = [run_of(name=f"job-{phase}", phase=phase) for phase in phases]
        versions = {run.key: await journals.create(run) for run in runs}
        await journals.create(run_of(name="over", phase=RunPhase.ENDED))
        ends = run_of(name="ends")
        version = await journals.create(ends)
        await journals.write(replace(ends, phase=RunPhase.ENDED), version)
        listed = {key: (run, version) for key, run, version in await journals.unended()}
        assert listed == {run.key: (run, versions[run.key]) for run in runs}

    async def test_receipts_are_listed_apart_and_deleted_as_they_were_seen(
        self, journals: Journals
    ) -> None:
        live, over = run_of("live"), run_of("over", phase=RunPhase.ENDED)
        await journals.create(live)
        version = await journals.create(over)
        assert [found async for found in journals.ended()] == [(over, version)]
        changed = await journals.write(replace(over, ordinal_floor=7), version)
        with pytest.raises(Superseded):
            await journals.delete(over.key, version)
        assert await journals.get(over.key) is not None
        await journals.delete(over.key, changed)
        assert await journals.get(over.key) is None
        await journals.delete(over.key, changed)
        assert [found async for found in journals.ended()] == []

    async def test_the_largest_run_fits(self, journals: Journals) -> None:
        run = run_of(shards=MAX_SHARDS, submitted=MAX_SHARDS)
        version = await journals.create(run)
        assert await journals.get(run.key) == (run, version)

    async def test_one_that_does_not_fit_is_refused_for_good(self, journals: Journals) -> None:
        run = run_of()
        noise = {str(n): digest(f"noise {n}") for n in range(60_000)}  # does not compress away
        with pytest.raises(Permanent) as refused:
            await journals.create(replace(run, spec=noise))
        assert refused.value.reason == "JournalTooLarge"
        assert await journals.get(run.key) is None

    async def test_times_keep_their_fractions(self, journals: Journals) -> None:
        run = run_of()
        odd = replace(run, created_at=run.created_at + timedelta(microseconds=1))
        await journals.create(odd)
        stored = await journals.get(odd.key)
        assert stored is not None
        assert stored[0].created_at == odd.created_at

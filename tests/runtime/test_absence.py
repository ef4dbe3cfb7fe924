"""What a provider's files don't have, end to end: what is paid for again, and what never is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builders import job
from fakes.server import StoredBatch
from runtime.house import HABITS, House, play, ref


def test_records_that_the_provider_counts_as_answered_never_go_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that loses the lines of some records when a batch is cancelled, and counts them."""

    def has_line(batch: StoredBatch, row: str) -> bool:
        return not (batch.cancels and row in batch.rows[:2])

    monkeypatch.setattr(StoredBatch, "has_line", has_line)

    async def scene(house: House) -> None:
        await house.operator()
        house.give(job(), records=20)
        await house.until(lambda: house.state() == "Running")
        (batch,) = house.server.batches.values()
        await house.until(lambda: len(batch.processed_by(house.clock.now())) >= 5)
        house.kube.delete(ref())
        await house.until(lambda: house.job() is None)
        house.give(job(), records=20)
        await house.until(lambda: house.state() == "Failed")
        assert len(house.server.batches) == 1
        lines = house.workers.results("s3://data/ml/out/triage/") or []
        assert [(line["error"] or {}).get("code") for line in lines].count("AnswerLost") == 17

    play(scene, habits=replace(HABITS, work_s=1200, cancel_s=5))

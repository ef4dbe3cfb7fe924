"""Counts runs for the metrics: what there is now, and what has just ended.

Reads entries and objects, and decides nothing. Labels are bounded: kinds of provider and states,
never names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from batchinference.clock import Clock
from batchinference.model.run import Ending, Run, RunPhase, ShardState
from batchinference.model.status import Reason
from batchinference.ports import Metrics
from batchinference.runtime.entry import Entry
from batchinference.runtime.store import Store

COUNT_EVERY_S = 15.0

_ENDINGS = {ending.value for ending in Ending}
_UNSURE = {ShardState.UNKNOWN, ShardState.FENCING}


class Census:
    """Tells the metrics about runs."""

    def __init__(
        self, entries: Mapping[str, Entry], store: Store, clock: Clock, metrics: Metrics
    ) -> None:
        self._entries = entries
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._told: set[tuple[str, str]] = set()
        self._accounts: set[str] = set()

    async def run(self) -> None:
        """Count now and then, for the process's life."""
        while True:
            self.count()
            await self._clock.sleep(COUNT_EVERY_S)

    def count(self) -> None:
        """Set the gauges."""
        jobs: Counter[tuple[str, str]] = Counter()
        queued: Counter[str] = Counter()
        unsure = keyless = stuck = 0
        oldest = None
        for entry in self._entries.values():
            run = entry.run
            if run is None:
                continue
            jobs[provider_kind(run), _state(run)] += 1
            if run.is_over:
                continue
            oldest = run.created_at if oldest is None else min(oldest, run.created_at)
            queued[run.provider.account] += entry.queued
            keyless += Reason.CREDENTIALS_GONE in entry.reasons
            stuck += Reason.PROVIDER_STUCK in entry.reasons
            unsure += sum(shard.state in _UNSURE for shard in run.shards)
        for key, job in self._store.jobs():
            known = self._entries.get(key)
            state = str(job.status.get("state", ""))
            if state in _ENDINGS and (known is None or known.run is None):
                jobs["", state] += 1
        for provider, state in self._told | set(jobs):
            self._metrics.gauge("jobs", jobs[provider, state], provider=provider, state=state)
        self._told |= set(jobs)
        self._accounts |= set(queued)
        for account in self._accounts:
            self._metrics.gauge("queued_shards", queued[account], account=account)
        self._metrics.gauge("unknown_outcomes", unsure)
        self._metrics.gauge("runs_without_credentials", keyless)
        self._metrics.gauge("runs_with_stuck_batches", stuck)
        self._metrics.gauge(
            "oldest_unfinished_job_timestamp_seconds", oldest.timestamp() if oldest else 0
        )

    def ended(self, run: Run) -> None:
        """A run has just ended."""
        provider = provider_kind(run)
        ending = run.verdict.ending.value if run.verdict else ""
        self._metrics.count("jobs_finished_total", provider=provider, ending=ending)
        if run.results is not None:
            for direction, tokens in (
                ("input", run.results.input_tokens),
                ("output", run.results.output_tokens),
            ):
                self._metrics.count("tokens_total", tokens, provider=provider, direction=direction)
            if run.results.cost:
                currency = run.results.currency
                cost = float(run.results.cost)
                self._metrics.count("cost_total", cost, provider=provider, currency=currency)


def provider_kind(run: Run) -> str:
    """Which provider, as the member of the union is called; "" of a receipt."""
    return next((k for k in ("openAI", "bedrock") if k in run.provider.settings), "")


def _state(run: Run) -> str:
    if run.is_over and run.phase is not RunPhase.PARKED and run.verdict is not None:
        return run.verdict.ending.value
    return run.phase.value

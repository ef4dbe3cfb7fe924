"""Shards that never go to the provider as they are: their records go on in other shards.

A batch that the provider refuses as too large lowers the run's limits, and what is above them is
cut again (protocol 8). Records of which some may have an answer by now are pooled anew
(`core.late`). Here is which shards these are and what is learned from a refusal; `tasks.pool` cuts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from batchinference.core.draft import Draft
from batchinference.core.effects import StartTask
from batchinference.core.transitions import ShardInput, step_shard
from batchinference.model.batch import BatchFailure, BatchLimit, Limits
from batchinference.model.run import Run, RunPhase, Shard, ShardState
from batchinference.model.work import TaskKind

_QUOTA_TRIES = 3
"""So often a quota refuses a shard that may be above it before it is cut: our count of tokens is an
estimate, and the provider may be slow to count down.
"""


def learned(run: Run, shard: Shard, failure: BatchFailure | None) -> Run:
    """The run with what the refusal of that shard taught: lower limits, if it was too large."""
    if failure is None or not is_too_large(shard, failure):
        return run
    return replace(run, limits=_lowered(run.limits, shard, failure))


def is_too_large(shard: Shard, failure: BatchFailure) -> bool:
    """Whether the shard must be cut before it can go; one record can't be."""
    if shard.rows < 2:
        return False
    if failure.exceeds is not None:
        return True
    if not failure.quota or not failure.most:
        return False
    above = shard.tokens > failure.most
    return above or (shard.put_backs >= _QUOTA_TRIES and 2 * shard.tokens > failure.most)


def _lowered(limits: Limits, shard: Shard, failure: BatchFailure) -> Limits:
    """At least the shard is above the new limits, so that every refusal gets on."""
    most = failure.most
    match failure.exceeds:
        case BatchLimit.RECORDS:
            least = min(limits.max_records_per_batch, _below(shard.rows, most))
            return replace(limits, max_records_per_batch=least)
        case BatchLimit.BYTES:
            least = min(limits.max_bytes_per_batch, _below(shard.size, most))
            return replace(limits, max_bytes_per_batch=least)
        case _:
            before = limits.max_enqueued_tokens
            least = _below(shard.tokens, most)
            least = least if before is None else min(before, least)
            return replace(limits, max_enqueued_tokens=least)


def _below(amount: int, most: int | None) -> int:
    """The limit that was named, if that is less than what was refused; else half of that."""
    if most is not None and 0 < most < amount:
        return most
    return max(1, amount // 2)


def with_oversized_apart(run: Run) -> Run:
    """No shard asks for a place that is above the run's limits and can be cut."""
    for shard in run.shards:
        if shard.state is ShardState.QUEUED and _exceeds(shard, run.limits):
            run = run.with_shard(step_shard(shard, ShardInput.REGROUP) or shard)
    return run


def _exceeds(shard: Shard, limits: Limits) -> bool:
    most_tokens = limits.max_enqueued_tokens
    return shard.rows > 1 and (
        shard.rows > limits.max_records_per_batch
        or shard.size > limits.max_bytes_per_batch
        or (most_tokens is not None and shard.tokens > most_tokens)
    )


def origins(run: Run, sources: Iterable[int]) -> set[int]:
    """These shards, and all that their records were pooled from."""
    found: set[int] = set()
    ahead = set(sources)
    while ahead:
        found |= ahead
        ahead = {n for index in ahead for n in run.shards[index].sources} - found
    return found


def regroup(draft: Draft) -> bool:
    """Cut anew what can't go as it is, as soon as nothing that had its records is under way."""
    run = draft.run
    if run.phase is not RunPhase.RUNNING or run.cancel is not None:
        return False
    ready = tuple(
        shard.index
        for shard in run.shards
        if shard.state is ShardState.REGROUPED
        and not shard.pooled
        and all(run.shards[n].state.is_settled for n in origins(run, shard.sources))
    )
    if ready and not (draft.held or draft.observed.full):
        draft.want(StartTask(TaskKind.POOL, sources=ready))
    return bool(ready)

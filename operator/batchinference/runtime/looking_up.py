"""Whether the provider has the batch of a submission whose answer was lost (protocol 5).

Owns what counts as that batch, and what a listing that broke off says. Must not know what follows.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from batchinference.core.effects import LookUp
from batchinference.core.outcomes import LookedUp
from batchinference.errors import Fault
from batchinference.model.batch import BatchView
from batchinference.model.run import Run
from batchinference.ports import Metrics
from batchinference.runtime.clients import Connected
from batchinference.runtime.following import MARGIN, age
from batchinference.runtime.listing import ListingCut, listing

logger = logging.getLogger(__name__)


async def look_up(
    run: Run, effect: LookUp, connected: Connected, timeout_s: float, metrics: Metrics
) -> LookedUp:
    """Ask once; each call may take `timeout_s`.

    Raises:
        Stalled, Retry, TimeoutError: the provider can't be asked.
    """
    shard = run.shards[effect.shard]
    claimed = [s.claimed_at for s in shard.submissions if s.ordinal == effect.ordinal]
    since: datetime = min(claimed, default=run.created_at) - MARGIN
    complete, found = True, []
    try:
        async for view in listing(connected.client, since, timeout_s):
            if _is_that(view, run, effect):
                found.append(view)  # noqa: PERF401 - what was seen before a break counts
    except (Fault, TimeoutError) as broken:
        if not found and not isinstance(broken, ListingCut):
            raise
        logger.warning("Run %s, shard %s: %s", run.key[:12], effect.shard, broken)
        complete = False
    if found:
        metrics.count("duplicate_submissions_prevented_total", layer="lookup")
        oldest, *others = sorted(found, key=age)
        return LookedUp(effect.shard, effect.ordinal, oldest, others=tuple(others))
    readable = True
    if not effect.fenced:
        async with asyncio.timeout(timeout_s):
            readable = await connected.client.input_readable(effect.input_ref)
    # Only now: it is while they are followed that listings turn out to have no end.
    complete = complete and connected.client.traits.lists_complete
    return LookedUp(effect.shard, effect.ordinal, None, readable, complete)


def _is_that(view: BatchView, run: Run, effect: LookUp) -> bool:
    named = view.submission
    if named is None:
        return bool(effect.input_ref) and view.input_ref == effect.input_ref
    return (named.tag, named.shard, named.ordinal) == (run.tag, effect.shard, effect.ordinal)

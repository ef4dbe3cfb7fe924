"""Batches that the provider should long have ended (protocol 8).

A provider ends a batch by itself when its window is over. One that it does not end is not waited
for in silence; whether it still will, nobody but a person can find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from batchinference.core.decisions import ask_of_batch
from batchinference.core.draft import Draft
from batchinference.model.run import Shard, Submission
from batchinference.model.status import Reason

_HOURS = {"m": 1 / 60, "h": 1.0, "d": 24.0}
_WINDOW_H = 24.0
"""Both providers' own default."""

_LONGEST = timedelta(days=365)


def window(settings: Mapping[str, Any]) -> timedelta:
    """How long the provider may take for a batch, by the settings that it was submitted with."""
    told = settings.get("openAI", {}).get("completionWindow")
    if told is not None:
        hours = float(told[:-1]) * _HOURS[told[-1]]
        return timedelta(hours=min(hours, _LONGEST / timedelta(hours=1)))
    return timedelta(hours=settings.get("bedrock", {}).get("timeoutHours") or _WINDOW_H)


def tell_of_stuck(draft: Draft, shard: Shard, live: Submission) -> None:
    """Stall for a batch that is over its window and the grace after it; wake when it will be."""
    # What a provider says of a batch's age may be anything; the claim is our own.
    until = live.claimed_at + window(draft.run.provider.settings) + _grace(draft)
    if draft.observed.now < until:
        draft.wake(until)
        return
    state = live.batch_state.value if live.batch_state else "unknown"
    text = (
        f"Batch {live.batch_id} of shard {shard.index} was submitted at "
        f"{live.claimed_at:%Y-%m-%dT%H:%M:%SZ} and has not ended (it is {state}), though it had to "
        f"by {until - _grace(draft):%Y-%m-%dT%H:%M:%SZ}. "
        f"{ask_of_batch(draft, shard, live)}"
    )
    draft.stall(Reason.PROVIDER_STUCK, text, until)


def _grace(draft: Draft) -> timedelta:
    return timedelta(seconds=draft.timing.stuck_s)

"""Batches that the provider should long have ended (protocol 8).

A provider ends a batch by itself when its window is over. One that it does not end is not waited
for in silence; whether it still will, nobody but a person can find out.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from batchinference.core.decisions import ask_of_batch
from batchinference.core.draft import Draft
from batchinference.model.run import Shard, Submission
from batchinference.model.status import Reason

_HOURS = {"m": 1 / 60, "h": 1.0, "d": 24.0}
_WINDOW_H = 24.0
"""Both providers' own default."""


def window(settings: Mapping[str, Any]) -> timedelta:
    """How long the provider may take for a batch, by the settings that it was submitted with."""
    told = settings.get("openAI", {}).get("completionWindow")
    if told is not None:
        return timedelta(hours=int(told[:-1]) * _HOURS[told[-1]])
    return timedelta(hours=settings.get("bedrock", {}).get("timeoutHours") or _WINDOW_H)


def tell_of_stuck(draft: Draft, shard: Shard, live: Submission) -> None:
    """Stall for a batch that is over its window and the grace after it; wake when it will be."""
    accepted_at = live.accepted_at or live.claimed_at
    until = _ends_by(draft, accepted_at)
    if draft.observed.now < until:
        draft.wake(until)
        return
    state = live.batch_state.value if live.batch_state else "unknown"
    text = (
        f"Batch {live.batch_id} of shard {shard.index} has been at the provider since "
        f"{accepted_at:%Y-%m-%dT%H:%M:%SZ} and has not ended (it is {state}), though it had to by "
        f"{until - timedelta(seconds=draft.timing.stuck_s):%Y-%m-%dT%H:%M:%SZ}. "
        f"{ask_of_batch(draft, shard, live)}"
    )
    draft.stall(Reason.PROVIDER_STUCK, text, until)


def _ends_by(draft: Draft, accepted_at: datetime) -> datetime:
    grace = timedelta(seconds=draft.timing.stuck_s)
    return accepted_at + window(draft.run.provider.settings) + grace

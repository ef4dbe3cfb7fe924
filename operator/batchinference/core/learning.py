"""What an account has taught about its quotas: pure.

A provider tells its quotas by refusing, and others may use them up, too. So after a refusal of a
model no more batches of it are sent than were there, and one more each time that a while passes in
peace: not every shard has to be refused for itself, uploads and all. Where none was there the wait
until one is tried grows from refusal to refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from batchinference.core.backoff import backoff_s
from batchinference.core.timing import Timing

_REMEMBERED = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Learned:
    """How many batches of a model the account had when it last refused one more.

    Attributes:
        batches: so many.
        since: when it refused.
        in_vain: refusals in a row while it had none.
    """

    batches: int
    since: datetime
    in_vain: int = 0

    def limit(self, now: datetime, timing: Timing) -> int:
        """How many batches may be there now."""
        passed_s = (now - self.since).total_seconds() - self._first_s(timing)
        if passed_s < 0:
            return self.batches
        return self.batches + 1 + int(passed_s // timing.quota_recover_s)

    def rises_at(self, now: datetime, timing: Timing) -> datetime:
        """When there may be one more."""
        steps = self.limit(now, timing) - self.batches
        after_s = self._first_s(timing) + steps * timing.quota_recover_s
        return self.since + timedelta(seconds=after_s)

    def _first_s(self, timing: Timing) -> float:
        if not self.in_vain:
            return timing.quota_recover_s
        return backoff_s(self.in_vain, timing.quota_first_s, timing.quota_most_s)


def refused(before: Learned | None, there: int, now: datetime) -> Learned:
    """The account refused a batch of a model while it had so many others of it."""
    in_vain = 0 if there else 1 + (before.in_vain if before is not None else 0)
    return Learned(there, now, in_vain)


def remembered(learned: Mapping[str, Learned], now: datetime) -> dict[str, Learned]:
    """Without what is too old to say anything."""
    return {model: known for model, known in learned.items() if now < known.since + _REMEMBERED}

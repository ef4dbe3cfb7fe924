"""Which of several operators leads: a Lease that one holds and the others wait for.

Follows client-go's leader election. Another holder's times are never read, only that they changed:
how long ago is told by the own clock, from when the change was seen, so that clocks may differ. A
leader that could not renew for `renew_deadline_s` stops, well before others may take over. Tidiness
alone rests on this: journals and claims keep two leaders from paying twice (docs/adr/0005).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from batchinference.clock import Clock, Randomness
from batchinference.errors import Fault, Superseded
from batchinference.ports.election import Lease, Leases

logger = logging.getLogger(__name__)

JITTER = 1.2
"""Those who wait try up to so many times `retry_period_s` apart, not all at once."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Waits of the election, in seconds.

    Attributes:
        lease_s: others take over so long after the last renewal that they saw.
        renew_deadline_s: a leader that could not renew for so long stops leading.
        retry_period_s: between two tries to take or to renew.
    """

    lease_s: int = 10
    renew_deadline_s: float = 7.0
    retry_period_s: float = 2.0

    @property
    def flaw(self) -> str:
        """What of the waits does not fit together; "" when all does."""
        if self.lease_s <= self.renew_deadline_s:
            return "leaseSeconds must be more than renewDeadlineSeconds"
        if self.renew_deadline_s <= JITTER * self.retry_period_s:
            return f"renewDeadlineSeconds must be more than {JITTER} times retryPeriodSeconds"
        return "" if self.retry_period_s > 0 else "retryPeriodSeconds must be more than 0"


class Election:
    """One candidate."""

    def __init__(
        self, leases: Leases, identity: str, terms: Terms, clock: Clock, randomness: Randomness
    ) -> None:
        """`identity` is this process's alone; another life of it is another candidate."""
        self._leases = leases
        self._identity = identity
        self._terms = terms
        self._clock = clock
        self._randomness = randomness
        self._seen: Lease | None = None
        self._seen_at = 0.0
        self._until = float("-inf")

    @property
    def leader(self) -> str:
        """Who holds the Lease, as far as is known; "" when nobody does."""
        return self._seen.holder if self._seen is not None else ""

    def leads(self) -> bool:
        """Whether this one leads now: it renewed not longer ago than the deadline."""
        return self._clock.elapsed() < self._until

    async def acquire(self) -> None:
        """Wait until this one leads."""
        before = None
        while not await self._try():
            if self.leader != before:
                before = self.leader
                logger.info("%s leads; this one (%s) waits", before or "nobody", self._identity)
            jitter = 1 + (JITTER - 1) * self._randomness.random()
            await self._clock.sleep(self._terms.retry_period_s * jitter)
        logger.info("this one (%s) leads", self._identity)

    async def hold(self) -> None:
        """Renew for as long as that works; whoever returns from this does not lead any more."""
        while True:
            left = max(self._until - self._clock.elapsed(), 0.0)
            await self._clock.sleep(min(self._terms.retry_period_s, left))
            # Also after a pause that was longer than the deadline: if the record is still ours,
            # nobody else has led meanwhile.
            if not await self._try() and not (self.leads() and self.leader == self._identity):
                break
        self._until = float("-inf")
        logger.error("the lease could not be renewed; last held by %s", self.leader or "none")

    async def release(self) -> None:
        """Let somebody else lead at once. Only when nothing goes on any more that needs to lead."""
        held = self._seen
        self._until = float("-inf")
        if held is None or held.holder != self._identity:
            return
        try:
            async with asyncio.timeout(self._terms.retry_period_s):
                await self._leases.write(replace(held, holder="", duration_s=1))
        except (Fault, Superseded, TimeoutError) as fault:
            logger.warning("the lease was not released; it expires by itself: %s", fault)
        else:
            self._seen = None

    async def _try(self) -> bool:
        """Take the Lease or renew it; whether that was done."""
        began = self._clock.elapsed()
        left = self._until - began
        patience = left if left > 0 else self._terms.renew_deadline_s
        try:
            async with asyncio.timeout(patience):
                taken = await self._take()
        except Superseded:
            return False
        except (Fault, TimeoutError) as fault:
            said = str(fault) or f"no answer within {patience:.0f} s"
            logger.warning("the lease can't be asked for: %s", said)
            return False
        if taken:
            # From before the write, since others count from when they see it.
            self._until = began + self._terms.renew_deadline_s
        return taken

    def _is_expired(self, lease: Lease) -> bool:
        return self._clock.elapsed() >= self._seen_at + lease.duration_s

    async def _take(self) -> bool:
        found = await self._leases.read()
        if found != self._seen:
            self._seen, self._seen_at = found, self._clock.elapsed()
        ours = found is not None and found.holder == self._identity
        if found is not None and found.holder and not ours and not self._is_expired(found):
            return False
        now = self._clock.now()
        lease = Lease(
            holder=self._identity,
            duration_s=self._terms.lease_s,
            acquired=found.acquired if ours and found else now,
            renewed=now,
            transitions=found.transitions + (not ours) if found else 0,
            version=found.version if found else "",
        )
        version = await self._leases.write(lease)
        self._seen, self._seen_at = replace(lease, version=version), self._clock.elapsed()
        return True

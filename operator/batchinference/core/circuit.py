"""Whether calls to an account make sense now: a circuit breaker, as values.

Closed, every call is made. After so many passing failures in a row it opens: calls wait, and one at
a time, ever more rarely, is made to see whether the provider is there again. What a call is for is
not known here, nor what came of it besides "answered" or "failed".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from batchinference.core.backoff import backoff_s
from batchinference.core.timing import Timing


@dataclass(frozen=True, slots=True)
class Circuit:
    """One account's circuit.

    Attributes:
        failures: passing failures in a row.
        since: when it opened; None while it is closed.
        probes: probes that failed since then.
        probe_at: when the next one may be made.
        probing: one is under way.
        reason: what the newest failure before it opened said.
    """

    failures: int = 0
    since: datetime | None = None
    probes: int = 0
    probe_at: datetime | None = None
    probing: bool = False
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether calls wait."""
        return self.since is not None

    def may_probe(self, now: datetime) -> bool:
        """Whether it is time to see whether the provider is there again."""
        return self.probe_at is not None and not self.probing and now >= self.probe_at

    def failed(self, reason: str, now: datetime, timing: Timing, jitter: float) -> Circuit:
        """A call failed in a way that passes. While it is open only probes tell anything new."""
        failures = self.failures + 1
        if self.is_open:
            return replace(self, failures=failures)
        if failures < timing.circuit_failures:
            return replace(self, failures=failures, reason=reason)
        return Circuit(failures, now, 0, _next(0, now, timing, jitter), reason=reason)

    def probe(self) -> Circuit:
        """A probe begins."""
        return replace(self, probing=True)

    def probe_failed(self, now: datetime, timing: Timing, jitter: float) -> Circuit:
        """The probe failed, or nobody could make it: the next one comes later."""
        if not self.is_open:
            return self  # another call was answered meanwhile
        probes = self.probes + 1
        at = _next(probes, now, timing, jitter)
        return replace(self, probes=probes, probe_at=at, probing=False)


def _next(probes: int, now: datetime, timing: Timing, jitter: float) -> datetime:
    wait = backoff_s(probes + 1, timing.circuit_first_s, timing.circuit_most_s, jitter)
    return now + timedelta(seconds=wait)

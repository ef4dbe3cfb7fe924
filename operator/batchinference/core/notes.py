"""What one process knows of a run beyond its journal, frozen so that `decide` stays pure.

All of it may be lost at any time: a new process asks again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from batchinference.core.backoff import backoff_s
from batchinference.core.timing import Timing
from batchinference.model.batch import BatchView
from batchinference.model.work import FaultKind, Holder, TaskFault

SubmissionKey = tuple[int, int]
"""Shard and ordinal."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An effect that failed, how often in a row, and since when."""

    fault: TaskFault
    count: int
    since: datetime
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class Look:
    """Listings that did not show a submission: the first of those that count, and the newest.

    Attributes:
        readable, complete: of the newest; see `outcomes.LookedUp`.
    """

    first: datetime
    newest: datetime
    readable: bool = True
    complete: bool = True

    @property
    def counts(self) -> bool:
        """Whether the newest is evidence of absence."""
        return self.readable and self.complete


@dataclass(frozen=True, slots=True)
class Notes:
    """A process's knowledge of one run.

    Attributes:
        inflight: ids of effects under way.
        failures: by effect id.
        uploads: inputs at the provider that no claim names yet.
        looks: absences, since the submission came into its present state.
        views: live batches as last seen, by batch id.
        released: what the run may have left where its provider led before is removed.
        told: what an Event was recorded of: late batches by id, and reasons to wait.
        taking: whose the output place is, as last seen, should it be taken over.
    """

    inflight: frozenset[str] = frozenset()
    failures: Mapping[str, Failure] = field(default_factory=dict)
    uploads: Mapping[SubmissionKey, str] = field(default_factory=dict)
    looks: Mapping[SubmissionKey, Look] = field(default_factory=dict)
    views: Mapping[str, BatchView] = field(default_factory=dict)
    released: bool = False
    told: frozenset[str] = frozenset()
    taking: Holder | None = None

    def with_upload(self, key: SubmissionKey, input_ref: str) -> Notes:
        """An upload that waits for its claim."""
        return replace(self, uploads={**self.uploads, key: input_ref})

    def without_upload(self, key: SubmissionKey) -> Notes:
        """Its claim stands, or it will never be claimed."""
        return replace(self, uploads=_without(self.uploads, key))

    def with_views(self, views: Iterable[BatchView]) -> Notes:
        """Batches as seen now."""
        return replace(self, views={**self.views, **{view.id: view for view in views}})

    def with_absence(
        self, key: SubmissionKey, now: datetime, *, readable: bool = True, complete: bool = True
    ) -> Notes:
        """One more listing without that submission. One that is cut short, or by a client that
        could not read the input, does not count, so counting begins again after it.
        """
        old = self.looks.get(key)
        first = old.first if old is not None and old.counts else now
        look = Look(first, now, readable, complete)
        return replace(self, looks={**self.looks, key: look})

    def without_looks(self, key: SubmissionKey) -> Notes:
        """Start counting absences anew."""
        return replace(self, looks=_without(self.looks, key))

    def without_failure(self, *effect_ids: str) -> Notes:
        """The effects succeeded, or are moot."""
        return replace(self, failures=_without(self.failures, *effect_ids))

    def with_failure(
        self, effect_id: str, fault: TaskFault, now: datetime, timing: Timing, jitter: float
    ) -> Notes:
        """The effect failed once more."""
        old = self.failures.get(effect_id)
        count = old.count + 1 if old else 1
        wait = fault.after_s
        if wait is None and fault.kind in {FaultKind.STALLED, FaultKind.PERMANENT}:
            wait = timing.reference_retry_s
        if wait is None:
            wait = backoff_s(count, timing.retry_first_s, timing.retry_most_s, jitter)
        failure = Failure(
            fault=fault,
            count=count,
            since=old.since if old else now,
            retry_at=now + timedelta(seconds=wait),
        )
        return replace(self, failures={**self.failures, effect_id: failure})

    def retry_now(self, reason: str = "") -> Notes:
        """Something outside changed: forget how long to wait, of what failed for that reason if
        one is given.
        """
        soon = {
            k: replace(f, retry_at=f.since) if reason in {"", f.fault.reason} else f
            for k, f in self.failures.items()
        }
        return replace(self, failures=soon)


def _without(table: Mapping[Any, Any], *keys: Any) -> Mapping[Any, Any]:
    return {k: v for k, v in table.items() if k not in keys}

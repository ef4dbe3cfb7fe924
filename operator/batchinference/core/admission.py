"""Which shards of an account go next: pure, from a frozen view of everybody's demand.

Limits first, then fairness between namespaces (the one with the fewest places goes first; of equals
the one that was served longest ago), then priority inside a namespace, then age.

Runs of one account may bring different limits: of several provider objects, or of one that was
changed. A limit counts what is taken by runs that have that limit or a lower one, over the whole
account; what runs with a higher limit take does not count. So equal limits are the account's; a
provider with a lower one gets that much at most, never holds up those with a higher one, and can't
be starved by them; and all together stay within the highest. A shard whose limit is reached is
passed over.

Nothing starves: once the shard whose turn it is does not fit into its model's queue of tokens,
nothing that counts against the same limit passes it, so that the queue empties until it fits; other
models, and runs with a higher limit, go on. A shard above the limit goes when the queue is empty.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from batchinference.model.batch import Limits


@dataclass(frozen=True, slots=True)
class Demand:
    """A shard that asks for a place, or has one.

    Attributes:
        tokens: estimated input tokens, for the enqueued-token limit.
        since: the age of the job, not of the shard.
    """

    run_key: str
    shard: int
    namespace: str
    model: str
    tokens: int
    priority: int
    since: datetime
    limits: Limits

    @property
    def name(self) -> tuple[str, int]:
        """Which shard of which run."""
        return self.run_key, self.shard


_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_NEVER: Mapping[str, datetime] = {}


def admit(
    waiting: Iterable[Demand],
    placed: Iterable[Demand],
    uploading: Iterable[Demand] = (),
    served: Mapping[str, datetime] = _NEVER,
) -> tuple[Demand, ...]:
    """The waiting shards that may go now besides those already placed, in the order of their turn.

    Args:
        waiting: who asks and could go at once.
        placed: who has a place.
        uploading: whose input is being uploaded, with a place or without.
        served: when each namespace was given its newest place, as far as is known.
    """
    batches, uploads = _Taken(), _Taken()
    tokens: defaultdict[str, _Taken] = defaultdict(_Taken)
    places: Counter[str] = Counter()
    for demand in placed:
        batches.take(demand.limits.max_active_batches, 1)
        tokens[demand.model].take(demand.limits.max_enqueued_tokens, demand.tokens)
        places[demand.namespace] += 1
    for demand in uploading:
        uploads.take(demand.limits.max_concurrent_uploads, 1)
    asking = list(waiting)
    most_batches = _highest(d.limits.max_active_batches for d in asking)
    most_uploads = _highest(d.limits.max_concurrent_uploads for d in asking)

    def is_full() -> bool:
        """Whether nobody fits any more."""
        full = batches.broken(most_batches, 1) or uploads.broken(most_uploads, 1)
        return full is not None

    if is_full():
        return ()  # as it mostly is; so the turns need not be known
    queues: dict[str, deque[Demand]] = {}
    for demand in sorted(asking, key=lambda d: (-d.priority, d.since, d.run_key, d.shard)):
        queues.setdefault(demand.namespace, deque()).append(demand)
    granted: list[Demand] = []
    drained: dict[str, int] = {}
    while queues and not is_full():
        namespace = min(
            queues, key=lambda n: (places[n], served.get(n, _LONG_AGO), queues[n][0].since, n)
        )
        demand = queues[namespace].popleft()
        if not queues[namespace]:
            del queues[namespace]
        limits, model = demand.limits, demand.model
        if batches.broken(limits.max_active_batches, 1) is not None:
            continue
        if uploads.broken(limits.max_concurrent_uploads, 1) is not None:
            continue
        queue = limits.max_enqueued_tokens
        if queue is not None and queue <= drained.get(model, 0):
            continue
        broken = tokens[model].broken(queue, demand.tokens)
        if broken is not None:
            drained[model] = max(broken, drained.get(model, 0))
            continue
        granted.append(demand)
        batches.take(limits.max_active_batches, 1)
        uploads.take(limits.max_concurrent_uploads, 1)
        tokens[model].take(queue, demand.tokens)
        places[namespace] += 1
    return tuple(granted)


class _Taken:
    """How much is taken of something limited, by the limit of those who took it."""

    def __init__(self) -> None:
        self._by_limit: Counter[int] = Counter()

    def take(self, limit: int | None, amount: int) -> None:
        """One with that limit takes so much. None: what it takes counts against nobody."""
        if limit is not None:
            self._by_limit[limit] += amount

    def broken(self, limit: int | None, amount: int) -> int | None:
        """The highest limit that would be broken if one with that limit took so much, too; None if
        it fits. Whoever comes alone always fits.
        """
        if limit is None:
            return None
        found, total = None, 0
        for level in sorted({*self._by_limit, limit}):
            total += self._by_limit[level]
            if level >= limit and total and total + amount > level:
                found = level
        return found


def _highest(limits: Iterable[int | None]) -> int | None:
    """The highest of the limits; None when one of them does not limit."""
    found: int | None = 0
    for limit in limits:
        found = None if found is None or limit is None else max(found, limit)
    return found

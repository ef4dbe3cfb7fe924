"""Which shards of an account go next: pure, from a frozen view of everybody's demand.

Limits first (account and model), then fairness between namespaces (the one with the fewest places
goes first), then priority inside a namespace, then age. A shard whose place would not fit waits
without holding up smaller ones of other models; inside one (namespace, model) order is kept, so
nothing starves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from batchinference.model.batch import Limits


@dataclass(frozen=True, slots=True)
class Demand:
    """A shard that asks for a place, or has one.

    Attributes:
        tokens: estimated input tokens, for the enqueued-token limit.
        since: the age of the job, not of the shard.
        not_before: put back until then.
    """

    run_key: str
    shard: int
    namespace: str
    model: str
    tokens: int
    priority: int
    since: datetime
    limits: Limits
    not_before: datetime | None = None


def admit(
    waiting: Iterable[Demand], placed: Iterable[Demand], now: datetime
) -> frozenset[tuple[str, int]]:
    """The waiting shards that may go now, as (run key, shard), besides those already placed."""
    held = list(placed)
    batches = len(held)
    by_model: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for demand in held:
        by_model[demand.model] += demand.tokens
        places[demand.namespace] += 1
    queues: dict[str, list[Demand]] = {}
    for demand in sorted(waiting, key=lambda d: (-d.priority, d.since, d.run_key, d.shard)):
        if demand.not_before is None or demand.not_before <= now:
            queues.setdefault(demand.namespace, []).append(demand)
    granted: set[tuple[str, int]] = set()
    while queues:
        namespace = min(queues, key=lambda n: (places[n], queues[n][0].since, n))
        demand = queues[namespace].pop(0)
        if not queues[namespace]:
            del queues[namespace]
        limits = demand.limits
        if limits.max_active_batches is not None and batches >= limits.max_active_batches:
            continue
        after = by_model[demand.model] + demand.tokens
        full = limits.max_enqueued_tokens is not None and after > limits.max_enqueued_tokens
        if full and by_model[demand.model]:
            queues = _without_model(queues, namespace, demand.model)
            continue
        granted.add((demand.run_key, demand.shard))
        batches += 1
        by_model[demand.model] = after
        places[namespace] += 1
    return frozenset(granted)


def _without_model(
    queues: dict[str, list[Demand]], namespace: str, model: str
) -> dict[str, list[Demand]]:
    """Keep order inside one namespace and model: what comes behind a full queue waits too."""
    left = [d for d in queues.get(namespace, []) if d.model != model]
    rest = {n: q for n, q in queues.items() if n != namespace}
    return {**rest, namespace: left} if left else rest

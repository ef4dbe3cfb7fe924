"""Which shards of an account go next: pure, from a frozen view of everybody's demand.

Limits first (account and model), then fairness between namespaces (the one with the fewest places
goes first; of equals the one that was served longest ago), then priority inside a namespace, then
age. Nothing starves: once the shard whose turn it is does not fit into a model's queue, no other of
that model passes it, so that the queue empties until it fits; other models go on. A shard above the
limit goes when the queue is empty.
"""

from __future__ import annotations

from collections import Counter
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


_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_NEVER: Mapping[str, datetime] = {}


def admit(
    waiting: Iterable[Demand],
    placed: Iterable[Demand],
    now: datetime,
    served: Mapping[str, datetime] = _NEVER,
) -> tuple[Demand, ...]:
    """The waiting shards that may go now besides those already placed, in the order of their turn.

    A caller with room for fewer takes the first ones.

    Args:
        waiting: who asks.
        placed: who has a place.
        now: for those that were put back until later.
        served: when each namespace was given its newest place, as far as is known.
    """
    held = list(placed)
    by_model: Counter[str] = Counter()
    places: Counter[str] = Counter()
    for demand in held:
        by_model[demand.model] += demand.tokens
        places[demand.namespace] += 1
    queues: dict[str, list[Demand]] = {}
    for demand in sorted(waiting, key=lambda d: (-d.priority, d.since, d.run_key, d.shard)):
        if demand.not_before is None or demand.not_before <= now:
            queues.setdefault(demand.namespace, []).append(demand)
    granted: list[Demand] = []
    full: set[str] = set()
    while queues:
        namespace = min(
            queues, key=lambda n: (places[n], served.get(n, _LONG_AGO), queues[n][0].since, n)
        )
        demand = queues[namespace].pop(0)
        if not queues[namespace]:
            del queues[namespace]
        if demand.model in full:
            continue
        limits = demand.limits
        most = limits.max_active_batches
        if most is not None and len(held) + len(granted) >= most:
            break
        after = by_model[demand.model] + demand.tokens
        over = limits.max_enqueued_tokens is not None and after > limits.max_enqueued_tokens
        if over and by_model[demand.model]:
            full.add(demand.model)
            continue
        granted.append(demand)
        by_model[demand.model] = after
        places[namespace] += 1
    return tuple(granted)

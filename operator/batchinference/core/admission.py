"""Which shards of an account go next: pure, from everybody's demand.

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

What refusals have taught (`core.learning`) limits the batches of a model, whoever's they are.

What has a place is held in sums, so that a decision costs the same however much that is.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from batchinference.model.batch import Limits

_Key = TypeVar("_Key")


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


class Waiting:
    """Shards that ask for a place, by name, with the limits that they bring."""

    def __init__(self, demands: Iterable[Demand] = ()) -> None:
        self._held: dict[tuple[str, int], Demand] = {}
        self._batches: Counter[int | None] = Counter()
        self._uploads: Counter[int | None] = Counter()
        for demand in demands:
            self.add(demand)

    def __iter__(self) -> Iterator[Demand]:
        return iter(self._held.values())

    def get(self, name: tuple[str, int]) -> Demand | None:
        """The demand of that name, if it waits."""
        return self._held.get(name)

    def add(self, demand: Demand) -> None:
        """One more, of a name that is not among them."""
        self._held[demand.name] = demand
        self._count(demand, 1)

    def remove(self, demand: Demand) -> None:
        """One of them waits no more."""
        del self._held[demand.name]
        self._count(demand, -1)

    def _count(self, demand: Demand, sign: int) -> None:
        _sum_up(self._batches, demand.limits.max_active_batches, sign)
        _sum_up(self._uploads, demand.limits.max_concurrent_uploads, sign)

    @property
    def most_batches(self) -> int | None:
        """The highest limit of batches among them; None: one of them has none."""
        return _highest(self._batches)

    @property
    def most_uploads(self) -> int | None:
        """Likewise of uploads at the same time."""
        return _highest(self._uploads)


class Placed:
    """What the shards take that have a place, in sums.

    Attributes:
        number: how many they are.
        tokens: of all of them.
    """

    def __init__(self, demands: Iterable[Demand] = ()) -> None:
        self.number = 0
        self.tokens = 0
        self._batches = _Taken()
        self._queues: defaultdict[str, _Taken] = defaultdict(_Taken)
        self._spaces: Counter[str] = Counter()
        self._models: Counter[str] = Counter()
        for demand in demands:
            self.add(demand)

    def add(self, demand: Demand) -> None:
        """One more has a place."""
        self._count(demand, 1)

    def remove(self, demand: Demand) -> None:
        """One of them has its place no more."""
        self._count(demand, -1)

    def _count(self, demand: Demand, sign: int) -> None:
        tokens = sign * demand.tokens
        self.number += sign
        self.tokens += tokens
        self._batches.take(demand.limits.max_active_batches, sign)
        self._queues[demand.model].take(demand.limits.max_enqueued_tokens, tokens)
        _sum_up(self._spaces, demand.namespace, sign)
        _sum_up(self._models, demand.model, sign)

    def copy(self) -> Placed:
        """The same sums, to go on with."""
        made = Placed()
        made.number, made.tokens = self.number, self.tokens
        made._batches = self._batches.copy()
        made._queues.update((model, taken.copy()) for model, taken in self._queues.items())
        made._spaces.update(self._spaces)
        made._models.update(self._models)
        return made

    def in_namespace(self, namespace: str) -> int:
        """How many of them are of that namespace."""
        return self._spaces[namespace]

    @property
    def models(self) -> Mapping[str, int]:
        """How many of them are of each model."""
        return self._models

    def without_place(self, limit: int | None) -> int | None:
        """See `_Taken.broken`: of one more batch."""
        return self._batches.broken(limit, 1)

    def without_room(self, model: str, limit: int | None, tokens: int) -> int | None:
        """See `_Taken.broken`: of so many more tokens in the queue of a model."""
        return self._queues[model].broken(limit, tokens)


_LONG_AGO = datetime.min.replace(tzinfo=UTC)
_NEVER: Mapping[str, datetime] = {}
_NOTHING: Mapping[str, int] = {}


def admit(
    waiting: Waiting,
    placed: Placed,
    granted: Collection[Demand] = (),
    uploading: Iterable[Demand] = (),
    served: Mapping[str, datetime] = _NEVER,
    learned: Mapping[str, int] = _NOTHING,
) -> tuple[Demand, ...]:
    """The waiting shards that may go now besides those already placed, in the order of their turn.

    Args:
        waiting: who asks and could go at once.
        placed: who has a place.
        granted: who of the waiting has been given a place, and has not made use of it yet.
        uploading: whose input is being uploaded, with a place or without.
        served: when each namespace was given its newest place, as far as is known.
        learned: how many batches of a model may be there at most, as refusals taught.
    """
    taken, uploads = placed.copy(), _Taken()
    for demand in granted:
        taken.add(demand)
    for demand in uploading:
        uploads.take(demand.limits.max_concurrent_uploads, 1)
    most_batches, most_uploads = waiting.most_batches, waiting.most_uploads

    def is_full() -> bool:
        """Whether nobody fits any more."""
        full = taken.without_place(most_batches) or uploads.broken(most_uploads, 1)
        return full is not None

    if is_full():
        return ()  # as it mostly is; so the turns need not be known
    names = {demand.name for demand in granted}
    asking = [demand for demand in waiting if demand.name not in names]
    queues: dict[str, deque[Demand]] = {}
    for demand in sorted(asking, key=lambda d: (-d.priority, d.since, d.run_key, d.shard)):
        queues.setdefault(demand.namespace, deque()).append(demand)
    fresh: list[Demand] = []
    drained: dict[str, int] = {}
    while queues and not is_full():
        namespace = min(
            queues,
            key=lambda n: (
                taken.in_namespace(n),
                served.get(n, _LONG_AGO),
                queues[n][0].since,
                n,
            ),
        )
        demand = queues[namespace].popleft()
        if not queues[namespace]:
            del queues[namespace]
        limits, model = demand.limits, demand.model
        if taken.models[model] >= learned.get(model, taken.number + 1):
            continue
        if taken.without_place(limits.max_active_batches) is not None:
            continue
        if uploads.broken(limits.max_concurrent_uploads, 1) is not None:
            continue
        queue = limits.max_enqueued_tokens
        if queue is not None and queue <= drained.get(model, 0):
            continue
        broken = taken.without_room(model, queue, demand.tokens)
        if broken is not None:
            drained[model] = max(broken, drained.get(model, 0))
            continue
        fresh.append(demand)
        taken.add(demand)
        uploads.take(limits.max_concurrent_uploads, 1)
    return tuple(fresh)


class _Taken:
    """How much is taken of something limited, by the limit of those who took it."""

    def __init__(self) -> None:
        self._by_limit: Counter[int] = Counter()

    def take(self, limit: int | None, amount: int) -> None:
        """One with that limit takes so much. None: what it takes counts against nobody."""
        if limit is not None:
            _sum_up(self._by_limit, limit, amount)

    def copy(self) -> _Taken:
        """The same, to go on with."""
        made = _Taken()
        made._by_limit.update(self._by_limit)
        return made

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


def _sum_up(sums: Counter[_Key], key: _Key, amount: int) -> None:
    """Change one of the sums; what is nothing is not there."""
    sums[key] += amount
    if not sums[key]:
        del sums[key]


def _highest(limits: Iterable[int | None]) -> int | None:
    """The highest of the limits; None when one of them does not limit."""
    found: int | None = 0
    for limit in limits:
        found = None if found is None or limit is None else max(found, limit)
    return found

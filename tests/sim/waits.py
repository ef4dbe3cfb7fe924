"""No run waits without a wake-up: whatever it waits for, something is on its way that ends the wait.

Looked at after every step of an operator, in its memory: an event that nobody would send again is
lost at the moment when nothing is left that could bring it, and not hours later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from batchinference.model.run import RunPhase
from batchinference.model.status import Reason
from batchinference.runtime.demands import share_of
from batchinference.runtime.entry import Entry
from batchinference.runtime.following import live_batches, missing_batches
from batchinference.runtime.operator import Operator
from batchinference.runtime.store import rests

_FOR_PEOPLE = {Reason.INVALID_SPEC, Reason.SPEC_CHANGED}
"""Problems that go away with an edit of the object, which the watch shows; as it shows decisions by
annotation.
"""


def waiting_problems(operator: Operator) -> Iterable[str]:
    """The runs that nothing will wake."""
    for key, entry in operator._entries.items():
        if not _has_wake_up(operator, key, entry):
            yield f"{_described(key, entry)} waits without a wake-up"


def _has_wake_up(operator: Operator, key: str, entry: Entry) -> bool:
    queue = operator._queue
    planned = key in queue._queued or key in queue._working or key in queue._due
    if planned or entry.inflight or entry.mailbox or entry.newer_schema:
        return True
    if entry.run is None:
        job = operator._store.steering(key)
        if job is not None and (job.metadata.is_being_deleted or job.metadata.is_paused):
            return True  # the watch will show that it has gone, or what becomes of it
        is_suspended = job is not None and job.spec.suspend
        return is_suspended or all(map(rests, operator._store.jobs_of(key)))
    if entry.run.phase is RunPhase.ENDED:
        return True
    for_people = entry.held or (entry.problem is not None and entry.problem.reason in _FOR_PEOPLE)
    for_people = for_people or (entry.asks_people and bool(operator._store.jobs_of(key)))
    return for_people or _is_polled(operator, entry) or _waits_for_a_place(operator, entry)


def _is_polled(operator: Operator, entry: Entry) -> bool:
    """Whether its account is asked about what it has at the provider."""
    assert entry.run is not None
    asked = bool(live_batches(entry)) or bool(missing_batches(entry))
    return asked and entry.run.provider.account in operator._accounts._accounts


def _waits_for_a_place(operator: Operator, entry: Entry) -> bool:
    """Whether another shard of the account has the place, and its going will be noticed; or the
    account looks at the demands anyway, or waits for the provider to answer; or a limit that a
    refusal taught rises in a while.
    """
    assert entry.run is not None
    account = operator._accounts._accounts.get(entry.run.provider.account)
    if account is None or not entry.asking:
        return False
    if account.changed.is_set() or operator._circuits.of(account.id).is_open:
        return True
    if entry.run.spec.get("model") in account.learned:
        return True
    mine = {(entry.key, index) for index in entry.asking}
    shares = [s for one in operator._entries.values() if (s := share_of(one)) is not None]
    demands = [d for s in shares if s.account == account.id for d in (*s.placed, *s.uploading)]
    return any(d.name not in mine for d in demands) or bool(account.granted - mine)


def _described(key: str, entry: Entry) -> str:
    run = entry.run
    if run is None:
        return f"the job of run {key[:12]}, which has no journal,"
    shards = " ".join(f"{s.index}:{s.state.value}" for s in run.shards)
    told = entry.problem.reason if entry.problem else "no problem"
    return f"{run.owner.name} ({run.phase.value} [{shards}], {told})"


class StepMetrics:
    """`ports.Metrics` that nobody reads; it only tells when a step of an operator is over."""

    def __init__(self, on_step: Callable[[], None]) -> None:
        self._on_step = on_step

    def count(self, name: str, value: float = 1, **labels: str) -> None: ...
    def observe(self, name: str, value: float, **labels: str) -> None: ...

    def gauge(self, name: str, value: float, **labels: str) -> None:
        if name == "queue_depth":
            self._on_step()

"""What the conditions of a provider object say, and which changes of them are told as Events.

`Ready`: credentials and endpoint were tried. `Reachable`: calls are answered, which credentials
have no part in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

from batchinference.core.problem import Problem
from batchinference.core.view import conditions_in
from batchinference.model.metadata import PAUSED
from batchinference.model.provider import InferenceProvider
from batchinference.model.status import Condition, Reason, settled
from batchinference.ports import Event, ObjectRef

READY = "Ready"
REACHABLE = "Reachable"


def conditions(
    provider: InferenceProvider, problem: Problem | None, failing: str, now: datetime
) -> tuple[Condition, ...]:
    """The conditions of a provider object.

    Args:
        provider: the object, with the conditions that it has.
        problem: what its last trial said; None: it can be used.
        failing: why calls to its account wait; "" while they do not.
        now: the time.
    """
    held = conditions_in(provider.status)
    ready = ("True", Reason.READY, _works(provider))
    reachable = ("True", Reason.ANSWERING, "The provider answers")
    if problem is not None:
        ready = ("False", problem.reason, problem.message)
        reachable = ("Unknown", problem.reason, "See the condition Ready")
    if failing:
        reachable = ("False", Reason.CIRCUIT_OPEN, failing)
    return tuple(
        settled(
            Condition(
                type=kind,
                status=status,
                reason=reason,
                message=message,
                observed_generation=provider.metadata.generation,
                last_transition_time=now.replace(microsecond=0),
            ),
            held.get(kind),
        )
        for kind, (status, reason, message) in ((READY, ready), (REACHABLE, reachable))
    )


def news(
    ref: ObjectRef, before: Mapping[str, Condition], now: Sequence[Condition]
) -> Iterator[Event]:
    """A change of Ready, and the provider lost or there again."""
    for condition in now:
        old = before.get(condition.type)
        said = old and (old.status, old.reason)
        if said == (condition.status, condition.reason):
            continue
        lost = {condition.reason, old.reason if old else ""} & {Reason.CIRCUIT_OPEN}
        if condition.type == READY or lost:
            is_bad = condition.status == "False"
            yield Event(ref, condition.reason, condition.message, warning=is_bad)


def _works(provider: InferenceProvider) -> str:
    tried = "Credentials and endpoint were tried"
    held = f". Annotation `{PAUSED}` holds what is not submitted"
    return tried + held if provider.metadata.is_paused else tried

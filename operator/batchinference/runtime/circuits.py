"""The circuits of all accounts: who hears of calls, and who is told to wait.

A create call of a claimed shard is never held here, since what became of it must stay certain: no
new claims are made instead. Nor is a cancel, which somebody waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from batchinference.clock import Clock, Randomness
from batchinference.core.circuit import Circuit
from batchinference.core.effects import DeleteInput, Effect, LookUp, Search, StartTask
from batchinference.core.timing import Timing
from batchinference.errors import Fault, Retry, Waiting
from batchinference.model.batch import Accepted, NotSent, OutcomeUnknown, RefusalKind, SubmitOutcome
from batchinference.model.run import Run
from batchinference.model.status import Reason
from batchinference.model.work import FaultKind, TaskFault, TaskKind
from batchinference.ports import Metrics

logger = logging.getLogger(__name__)

_CLOSED = Circuit()
_CALLING = {TaskKind.UPLOAD, TaskKind.COLLECT, TaskKind.CLEAN}
"""Tasks that bring data to a provider, or fetch and delete it there."""

_PASSING = {Reason.PROVIDER_UNAVAILABLE, Reason.ENDPOINT_UNREACHABLE}


class Circuits:
    """See the module."""

    def __init__(
        self, clock: Clock, randomness: Randomness, timing: Timing, metrics: Metrics
    ) -> None:
        self._clock = clock
        self._randomness = randomness
        self._timing = timing
        self._metrics = metrics
        self._circuits: dict[str, Circuit] = {}
        self._listeners: list[Callable[[str], None]] = []

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Have it told each account whose circuit opens or closes."""
        self._listeners.append(listener)

    def of(self, account: str) -> Circuit:
        """The account's circuit as it stands."""
        return self._circuits.get(account, _CLOSED)

    def why_open(self, account: str) -> str:
        """Why calls to the account wait, for people; "" while they do not."""
        circuit = self.of(account)
        if circuit.since is None:
            return ""
        return (
            f"The provider fails: calls wait since {_clock_time(circuit.since)}, after "
            f"{self._timing.circuit_failures} failures in a row, of which the last: "
            f"{circuit.reason.rstrip('.')}. One call at a time tries whether it is there again"
        )

    def wait_s(self, account: str) -> float:
        """Seconds until the next probe, spread so that not all who wait come at once; 0 while the
        circuit is closed.
        """
        circuit = self.of(account)
        if circuit.probe_at is None:
            return 0.0
        left = (circuit.probe_at - self._clock.now()).total_seconds()
        return max(left, 0.0) + self._timing.circuit_first_s * (0.5 + self._randomness.random())

    def hold(self, account: str) -> None:
        """Let a call go ahead.

        Raises:
            Waiting: not now; says for how long.
        """
        if told := self.why_open(account):
            raise Waiting(Reason.CIRCUIT_OPEN, told, self.wait_s(account))

    # ---------------------------------------------------------------- what came of calls

    def answered(self, account: str) -> None:
        """The provider answered, whatever it said."""
        before = self._circuits.pop(account, _CLOSED)
        if before.is_open:
            self._changed(account, "Account %s answers again", account)

    def failed(self, account: str, reason: str) -> None:
        """A call failed in a way that passes; `reason` for people."""
        before, now = self.of(account), self._clock.now()
        after = before.failed(reason, now, self._timing, self._randomness.random())
        self._circuits[account] = after
        if after.is_open and not before.is_open:
            self._metrics.count("circuit_opened_total", account=account)
            self._changed(account, "Account %s: %s", account, self.why_open(account))

    def heard(self, account: str, fault: Fault | TaskFault) -> None:
        """A call ended with that fault. One that is not passing says nothing of the provider:
        perhaps nobody was asked.
        """
        kind = fault.kind if isinstance(fault, TaskFault) else None
        is_passing = kind is FaultKind.RETRY or isinstance(fault, Retry)
        if is_passing and fault.reason in _PASSING:
            self.failed(account, fault.message)

    def heard_submit(self, account: str, outcome: SubmitOutcome) -> None:
        """A create call was answered, or not."""
        if isinstance(outcome, NotSent):
            return
        if isinstance(outcome, Accepted):
            self.answered(account)
        elif isinstance(outcome, OutcomeUnknown) or outcome.kind is RefusalKind.THROTTLED:
            self.failed(account, outcome.message)
        else:
            self.answered(account)

    # ---------------------------------------------------------------- probes

    def begin_probe(self, account: str) -> bool:
        """Whether a call may be made that nobody waits for: the circuit is closed, or this is the
        one probe. Then `end_probe` when it did not come to an answer.
        """
        circuit = self.of(account)
        if not circuit.is_open:
            return True
        if not circuit.may_probe(self._clock.now()):
            return False
        self._circuits[account] = circuit.probe()
        return True

    def end_probe(self, account: str) -> None:
        """The call that `begin_probe` allowed is over; one that was answered said so already."""
        circuit = self.of(account)
        if circuit.probing:
            now, jitter = self._clock.now(), self._randomness.random()
            self._circuits[account] = circuit.probe_failed(now, self._timing, jitter)

    def _changed(self, account: str, text: str, *args: object) -> None:
        is_open = self.of(account).is_open
        logger.log(logging.WARNING if is_open else logging.INFO, text, *args)
        self._metrics.gauge("circuit_open", float(is_open), account=account)
        for listener in self._listeners:
            listener(account)


def may_wait(effect: Effect, run: Run) -> bool:
    """Whether nothing is lost when it is done later: not a create call that was claimed, nor a
    cancel. Tasks wait that need the provider's own API; at Bedrock data goes through a store.
    """
    if isinstance(effect, StartTask):
        return effect.kind in _CALLING and "openAI" in run.provider.settings
    return isinstance(effect, LookUp | Search | DeleteInput)


def _clock_time(at: datetime) -> str:
    return at.strftime("%H:%M:%S UTC")

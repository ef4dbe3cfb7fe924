"""Outcomes of one run that are not folded in yet, in their order.

Of a batch that was seen several times meanwhile only the newest sight is kept: an account that is
polled while its runs wait for the API server must not fill the memory. Knows nothing else of what
outcomes mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from batchinference.core.outcomes import BatchSeen, Outcome


class Mailbox:
    """A queue of outcomes."""

    def __init__(self) -> None:
        self._held: dict[int | str, Outcome] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._held.values())

    def put(self, outcome: Outcome) -> None:
        """Add an outcome; a batch that waits already keeps its turn."""
        if isinstance(outcome, BatchSeen):
            self._held[outcome.view.id] = outcome
            return
        self._held[self._next] = outcome
        self._next += 1

    def take(self) -> list[Outcome]:
        """All that is there, oldest first; none of it is there afterwards."""
        taken = list(self._held.values())
        self.clear()
        return taken

    def put_back(self, taken: Iterable[Outcome]) -> None:
        """What was taken could not be used: it comes before what has come since."""
        newer = self.take()
        for outcome in (*taken, *newer):
            self.put(outcome)

    def clear(self) -> None:
        """Forget all."""
        self._held = {}

"""What is known of a life of a run whose journal may be lost; a part of the journal of the next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of a life of this run whose journal may be lost (protocol 2.6).

    Attributes:
        asking: the provider is still to be asked; nothing is submitted before it has answered.
        expected: there was one: a claim of the output place, a status or a batch says so.
        certain: somebody said that there is nothing of it but what the provider lists.
        accepted: the object's status, or a manifest, shows that something was accepted.
        shown: batches that the object's status shows.
        strange: batches that carry the run's tag and do not match what was staged, once the
            provider has answered.
        cancelled: those of them whose cancel the provider took.
    """

    asking: bool = True
    expected: bool = False
    certain: bool = False
    accepted: bool = False
    shown: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()

    @property
    def uncancelled(self) -> tuple[str, ...]:
        """Strange batches that may be live still."""
        return tuple(batch_id for batch_id in self.strange if batch_id not in self.cancelled)

"""The runtime's settings: how long it waits and how much it does at once."""

from __future__ import annotations

from dataclasses import dataclass

from batchinference.core.timing import Timing


@dataclass(frozen=True, slots=True)
class RuntimeSettings(Timing):
    """Waits in seconds and counts; the protocol's waits are inherited.

    Attributes:
        poll_s: how often an account with live batches is asked.
        poll_gets: up to so many live batches are asked one by one instead of by listing.
        provider_check_s: how often a provider that works is tried again.
        provider_retry_s: how often one that does not work is.
        progress_s: the least time between two status writes that only change numbers; also how
            often those of a provider object are counted.
        call_timeout_s: the most that any call but a create may take.
        sweep_s: how often objects are looked for that went without the watch showing it.
        receipts_kept_s: how long the receipt of an ended run without an object is kept; 0 for ever.
        reconcilers: keys worked on at once.
        status_writes: status writes under way at once.
        trials: provider objects that are tried at once; each may take `call_timeout_s`.
        trials_per_namespace: how many of them may be of one namespace.
    """

    poll_s: float = 30.0
    poll_gets: int = 3
    provider_check_s: float = 300.0
    provider_retry_s: float = 30.0
    progress_s: float = 30.0
    call_timeout_s: float = 60.0
    sweep_s: float = 600.0
    receipts_kept_s: float = 0.0
    reconcilers: int = 16
    status_writes: int = 16
    trials: int = 32
    trials_per_namespace: int = 4

"""How long the protocol waits. Every member is a setting; tests use fractions of seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits of the protocol, in seconds.

    Attributes:
        submit_timeout_s: a create call must be over by then (protocol 4.1).
        settle_s: how long a new batch may stay out of listings; longer than the submit timeout.
        reference_grace_s: how long a missing reference, and whatever else may pass by itself, is
            Reconciling before it is Stalled.
        reference_retry_s: how often that, and all that a person must mend, is looked at again.
        retry_first_s, retry_most_s: backoff of passing failures.
        told_after: failures in a row from which on a task's passing failure is shown as Stalled;
            it goes on being retried.
        unreachable_s: likewise for calls to a provider: how long it may be away until a run that
            can't look up, cancel or follow its batches is shown as Stalled.
        circuit_failures: passing failures of an account's calls in a row from which on its calls
            wait.
        circuit_first_s, circuit_most_s: backoff of the calls that try whether it is there again.
        quota_first_s, quota_most_s: backoff of a shard that a quota put back.
        quota_recover_s: how long after a refusal for want of quota one more batch of the model may
            be there than before it, and again one more.
        cancel_release_s: how long a deleted object is held for its cancel calls at most.
        parked_s: how long a run cancelled by deletion can be taken up again.
        max_staging_passes: passes over an input that keeps changing.
        cleaning_s: how long it is tried to remove what an ended run left behind.
        stuck_s: how long after its window a batch may go on until somebody should hear of it.
        answers_kept_s: how long OpenAI keeps answers; after that a run without object and
            credentials, of which nothing was collected, ends.
    """

    submit_timeout_s: float = 60.0
    settle_s: float = 120.0
    reference_grace_s: float = 60.0
    reference_retry_s: float = 30.0
    retry_first_s: float = 2.0
    retry_most_s: float = 300.0
    told_after: int = 6
    unreachable_s: float = 3600.0
    circuit_failures: int = 5
    circuit_first_s: float = 10.0
    circuit_most_s: float = 300.0
    quota_first_s: float = 60.0
    quota_most_s: float = 900.0
    quota_recover_s: float = 300.0
    cancel_release_s: float = 120.0
    parked_s: float = 7 * 86400.0
    max_staging_passes: int = 5
    cleaning_s: float = 7 * 86400.0
    stuck_s: float = 86400.0
    answers_kept_s: float = 30 * 86400.0

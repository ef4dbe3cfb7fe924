"""How long to wait after the n-th failure in a row."""

from __future__ import annotations


def backoff_s(failures: int, first_s: float, most_s: float, jitter: float = 0.5) -> float:
    """Exponential backoff: doubles per failure up to `most_s`, spread by jitter.

    Args:
        failures: failures in a row, 1 for the first.
        first_s: seconds after the first one.
        most_s: the ceiling, in seconds.
        jitter: a number in [0, 1); 0.5 gives the middle. Waits spread over 75 % to 125 %.
    """
    exponent = min(max(failures, 1) - 1, 30)
    return min(first_s * 2.0**exponent, most_s) * (0.75 + 0.5 * jitter)

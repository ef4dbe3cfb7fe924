"""What tokens of a model cost: a part of the journal, like all of `model.run`.

Amounts are decimal strings and per million tokens, so that they stand in a journal exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PriceSource(StrEnum):
    """Who says what a model costs."""

    PROVIDER = "Provider"  # `spec.pricing` of the provider object
    LIBRARY = "Library"  # the price library of this version of the operator


@dataclass(frozen=True, slots=True)
class Price:
    """Prices of one model, of a million tokens each.

    Attributes:
        live_input, live_output: for live calls.
        batch_input, batch_output: for the same in a batch.
        currency: as an ISO 4217 code.
        most_input: input tokens of one request up to which all this holds; None without a bound.
    """

    live_input: str
    live_output: str
    batch_input: str
    batch_output: str
    currency: str
    source: PriceSource
    most_input: int | None = None

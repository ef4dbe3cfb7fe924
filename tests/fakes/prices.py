"""A published price list that a test writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from batchinference.model.price import Price, PriceSource


def price(
    live_input: str = "2",
    live_output: str = "8",
    batch_input: str = "1",
    batch_output: str = "4",
    **members: Any,
) -> Price:
    """A published price; batches at half of it."""
    whole = {"currency": "USD", "source": PriceSource.LIBRARY, **members}
    return Price(live_input, live_output, batch_input, batch_output, **whole)


@dataclass
class FakePrices:
    """See `ports.prices.Prices`. By model."""

    listed: dict[str, Price] = field(default_factory=dict)

    async def of(self, settings: Mapping[str, Any], model: str, now: datetime) -> Price | None:
        return self.listed.get(model)

"""What a run cost: tokens as the answers tell them, at the prices of the provider object.

A model without a price has no cost; nothing is invented, nor made of what is no price. Exact
decimal arithmetic, shown to a millionth of the currency.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode
from batchinference.model.provider import ModelPrice
from batchinference.model.run import Results

_MILLION = Decimal(1_000_000)
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
"""As the provider's definition has it."""


def priced(results: Results, settings: Mapping[str, Any], model: str) -> Results:
    """The results with their cost, where the provider's settings name the model's price."""
    price = _price(settings, model)
    if price is None:
        return results
    live = (
        Decimal(price.input_per_million_tokens) * results.input_tokens
        + Decimal(price.output_per_million_tokens) * results.output_tokens
    ) / _MILLION
    batch = live * (100 - price.batch_discount_percent) / 100
    return replace(
        results, currency=price.currency, cost=_shown(batch), on_demand_cost=_shown(live)
    )


def _price(settings: Mapping[str, Any], model: str) -> ModelPrice | None:
    listed = settings.get("pricing")
    for entry in listed if isinstance(listed, list | tuple) else ():
        try:
            price = decode(ModelPrice, entry, ignore_unknown=True)
        except InvalidObject:
            continue
        if price.model == model and _is_price(price):
            return price
    return None


def _is_price(price: ModelPrice) -> bool:
    numbers = (price.input_per_million_tokens, price.output_per_million_tokens)
    return all(map(_NUMBER.fullmatch, numbers)) and 0 <= price.batch_discount_percent <= 100


def _shown(amount: Decimal) -> str:
    text = f"{amount.quantize(Decimal('0.000001')):f}".rstrip("0")
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction:0<2}"

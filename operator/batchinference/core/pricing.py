"""What tokens cost: the provider object's own prices, and sums that are exact.

A model without a price has no cost; nothing is invented, nor made of what is no price. Sums are
decimal and exact, and shown to a millionth of the currency. It must not know what may be spent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import Any

from batchinference.errors import InvalidObject
from batchinference.model.codec import decode
from batchinference.model.price import Price, PriceSource
from batchinference.model.provider import ModelPrice
from batchinference.model.run import Results, Run

_MILLION = Decimal(1_000_000)
_MILLIONTH = Decimal("0.000001")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")
"""As the definitions have it."""

EXACT = Context(prec=60, rounding=ROUND_HALF_EVEN)
"""Enough digits for any price times any number of tokens that a run can have."""


def amount(text: str) -> Decimal | None:
    """An amount as manifests write it; None for what is none."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def own_price(settings: Mapping[str, Any], model: str) -> Price | None:
    """The price that the provider's settings name for the model; None where they name none."""
    listed = settings.get("pricing")
    for entry in listed if isinstance(listed, list | tuple) else ():
        if not isinstance(entry, Mapping) or entry.get("model") != model:
            continue
        try:
            price = decode(ModelPrice, entry, ignore_unknown=True)
        except InvalidObject:
            continue
        if _is_price(price):
            return _as_price(price)
    return None


def _is_price(price: ModelPrice) -> bool:
    numbers = (price.input_per_million_tokens, price.output_per_million_tokens)
    return all(map(_NUMBER.fullmatch, numbers)) and 0 <= price.batch_discount_percent <= 100


def _as_price(price: ModelPrice) -> Price:
    rest = Decimal(100 - price.batch_discount_percent) / 100

    def discounted(text: str) -> str:
        return f"{EXACT.multiply(Decimal(text), rest):f}"

    return Price(
        live_input=price.input_per_million_tokens,
        live_output=price.output_per_million_tokens,
        batch_input=discounted(price.input_per_million_tokens),
        batch_output=discounted(price.output_per_million_tokens),
        currency=price.currency,
        source=PriceSource.PROVIDER,
    )


@dataclass(frozen=True, slots=True)
class Amounts:
    """What the same tokens cost in batches, and would have cost as live calls."""

    batch: Decimal
    live: Decimal


def amounts(price: Price, input_tokens: int, output_tokens: int) -> Amounts:
    """What so many tokens cost."""

    def total(input_price: str, output_price: str) -> Decimal:
        with localcontext(EXACT):
            whole = Decimal(input_price) * input_tokens + Decimal(output_price) * output_tokens
            return whole / _MILLION

    return Amounts(
        total(price.batch_input, price.batch_output), total(price.live_input, price.live_output)
    )


def used(run: Run) -> tuple[int, int]:
    """Input and output tokens of all answers that were collected."""
    collected = [shard.collected for shard in run.shards if shard.collected]
    return sum(c.input_tokens for c in collected), sum(c.output_tokens for c in collected)


def priced(results: Results, price: Price | None) -> Results:
    """The results with their cost, where the price is known."""
    if price is None:
        return results
    cost = amounts(price, results.input_tokens, results.output_tokens)
    return replace(
        results,
        currency=price.currency,
        cost=shown(cost.batch),
        on_demand_cost=shown(cost.live),
    )


def shown(value: Decimal) -> str:
    """An amount for people, to the next millionth."""
    return _written(value, ROUND_HALF_EVEN)


def shown_bound(value: Decimal) -> str:
    """A bound for people: never less than it is."""
    return _written(value, ROUND_CEILING)


def _written(value: Decimal, rounding: str) -> str:
    text = f"{value.quantize(_MILLIONTH, rounding, EXACT):f}".rstrip("0")
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction:0<2}"

"""Cost: exact, discounted, and never invented."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchinference.core.pricing import amount, own_price, shown, shown_bound
from batchinference.core.pricing import priced as at_price
from batchinference.model.run import Results


def priced(results: Results, settings, model: str) -> Results:
    return at_price(results, own_price(settings, model))


MINI = {"model": "mini", "inputPerMillionTokens": "0.40", "outputPerMillionTokens": "1.60"}


@pytest.mark.parametrize(
    ("price", "tokens", "cost", "on_demand", "reason"),
    [
        (MINI, (1_000_000, 1_000_000), "1.00", "2.00", "half of the live price by default"),
        ({**MINI, "batchDiscountPercent": 0}, (500_000, 0), "0.20", "0.20", "no discount"),
        ({**MINI, "batchDiscountPercent": 100}, (5, 5), "0.00", "0.00001", "all of it"),
        (MINI, (1, 0), "0.00", "0.00", "below a millionth is shown as nothing"),
        (MINI, (3, 7), "0.000006", "0.000012", "exact to a millionth"),
        (MINI, (10**16, 0), "2000000000.00", "4000000000.00", "beyond what floats count"),
    ],
)
def test_cost_is_tokens_times_price_less_the_discount(
    price, tokens, cost, on_demand, reason
) -> None:
    found = priced(
        Results(input_tokens=tokens[0], output_tokens=tokens[1]), {"pricing": [price]}, "mini"
    )
    assert (found.currency, found.cost, found.on_demand_cost) == ("USD", cost, on_demand), reason


@pytest.mark.parametrize(
    "settings", [{}, {"pricing": None}, {"pricing": [{"model": "mini"}]}, {"pricing": [MINI]}]
)
def test_a_model_without_a_price_has_no_cost(settings) -> None:
    results = Results(input_tokens=5)
    assert priced(results, settings, "other") == results


NO_PRICES = ["", "free", "-1", "NaN", "Infinity", "1e999999", "1_000", "٣", "0." + "1" * 60]


@pytest.mark.parametrize("member", ["inputPerMillionTokens", "outputPerMillionTokens"])
@pytest.mark.parametrize("text", NO_PRICES)
def test_a_price_that_is_none_is_no_price(member, text) -> None:
    """The definition refuses it; an object that slipped through must not keep a run from ending."""
    results = Results(input_tokens=5, output_tokens=5)
    assert priced(results, {"pricing": [{**MINI, member: text}]}, "mini") == results
    found = priced(results, {"pricing": [{**MINI, member: text}, MINI]}, "mini")
    assert found.cost, "another entry of the model has one"


@pytest.mark.parametrize("discount", [-1, 101, "half"])
def test_a_discount_that_is_none_is_no_price(discount) -> None:
    results = Results(input_tokens=5)
    price = {**MINI, "batchDiscountPercent": discount}
    assert priced(results, {"pricing": [price]}, "mini") == results


@pytest.mark.parametrize("pricing", ["free", 7, {"model": "mini"}, ["mini"], [None]])
def test_a_price_list_that_is_none_has_no_prices(pricing) -> None:
    results = Results(input_tokens=5)
    assert priced(results, {"pricing": pricing}, "mini") == results


def test_a_provider_s_price_says_who_says_it_and_in_which_currency() -> None:
    found = own_price(
        {"pricing": [{**MINI, "currency": "EUR", "batchDiscountPercent": 20}]}, "mini"
    )
    assert (found.source, found.currency, found.most_input) == ("Provider", "EUR", None)
    assert Decimal(found.batch_output) == Decimal("1.28")


@pytest.mark.parametrize(
    ("text", "value"),
    [("25.00", "25"), ("0", "0"), ("1e3", None), ("-1", None), ("", None), ("1.0000001", None)],
)
def test_an_amount_is_a_plain_decimal_number(text, value) -> None:
    assert amount(text) == (None if value is None else Decimal(value))


@given(st.decimals(min_value=0, max_value=10**15, places=11, allow_nan=False))
def test_a_bound_is_never_shown_smaller_than_it_is(value) -> None:
    assert value <= Decimal(shown_bound(value)) < value + Decimal("0.000001")
    assert abs(Decimal(shown(value)) - value) <= Decimal("0.0000005")

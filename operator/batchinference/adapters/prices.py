"""Published prices, from the library `genai-prices`: what a model costs where its maker is known.

Only what the library ships is used: it makes no call and starts nothing. Importing it takes tens of
milliseconds and a few megabytes, so it is done when a price is first asked for, in a thread.

Who charges is told by the endpoint. A server that only speaks OpenAI's API charges what it likes,
and a deployment on Azure has a name of its user's choice and prices by its kind: neither is looked
up. Bedrock's prices differ between regions. Those of profiles that the library lists by themselves
(`global.`, `regional.`) hold wherever the profile does; all others are those of the United States'
commercial regions, and are used there alone.

A batch costs what the library says of batches, else half of a live call, which is what both
providers publish. A price that depends on the length of a request is told with the length up to
which it holds; a model that is paid for by anything but text has none here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from batchinference.model.price import Price, PriceSource

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

log = logging.getLogger(__name__)

_OPENAI, _BEDROCK = "openai", "aws"
_OPENAI_HOST = "api.openai.com"
_OPENAI_URL = f"https://{_OPENAI_HOST}/v1"
_AWS_DOMAIN = ".amazonaws.com"

_BY_PROFILE = ("global.", "regional.")
"""What the library's ids of Bedrock begin with where its price is that of a profile."""

_OF_TEXT = frozenset(
    {
        "input_mtok",
        "output_mtok",
        "cache_read_mtok",
        "cache_write_mtok",
        "cache_write_5m_mtok",
        "cache_write_1h_mtok",
        "web_searches_kcount",
        "storage_searches_kcount",
    }
)
_BATCH = {"processing": "batch"}
_HALF = Decimal(2)


class LibraryPrices:
    """Implements `ports.Prices`. Keeps what it found, by provider, region, model and day."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], Price | None] = {}
        self._day = ""

    async def of(self, settings: Mapping[str, Any], model: str, now: datetime) -> Price | None:
        """See `ports.Prices.of`."""
        asked = seller(settings, model)
        if asked is None:
            return None
        day = now.astimezone(UTC).date().isoformat()
        if day != self._day:
            self._found, self._day = {}, day
        if asked not in self._found:
            self._found[asked] = await asyncio.to_thread(_look_up, *asked, now)
        return self._found[asked]


def seller(settings: Mapping[str, Any], model: str) -> tuple[str, str, str] | None:
    """Who charges for a model by a published list, as the library's provider, the region ("" where
    there is none) and the model; None where nobody can know.
    """
    if "openAI" in settings:
        url = settings["openAI"].get("baseURL") or _OPENAI_URL
        return (_OPENAI, "", model) if urlsplit(url).hostname == _OPENAI_HOST else None
    bedrock = settings.get("bedrock")
    if bedrock is None:
        return None
    host = urlsplit(bedrock.get("endpointURL") or "").hostname
    if host is not None and not host.endswith(_AWS_DOMAIN):
        return None
    named = _of_arn(model) if model.startswith("arn:") else model
    return (_BEDROCK, bedrock.get("region", ""), named) if named else None


def _of_arn(arn: str) -> str:
    """The model that an ARN names; "" where its resource has a name of its user's choice."""
    _, partition, *_, resource = [*arn.split(":", 5), "", ""][:6]
    kind, _, name = resource.partition("/")
    is_public = kind in {"foundation-model", "inference-profile"}
    return name if is_public and partition == "aws" else ""


def _look_up(provider: str, region: str, model: str, now: datetime) -> Price | None:
    try:
        found = _find(provider, model)
        if found is None or not _holds_in(found, provider, region):
            return None
        return _price(found, now)
    except Exception:  # a price that can't be told is none; nothing else may stop for it
        log.exception("The price of model %s can't be looked up", model)
        return None


def _find(provider: str, model: str) -> ModelInfo | None:
    from genai_prices.data import providers  # noqa: PLC0415 - see the module

    seller_of = next((p for p in providers if p.id == provider), None)
    return seller_of.find_model(model) if seller_of is not None else None


def _holds_in(model: ModelInfo, provider: str, region: str) -> bool:
    if provider != _BEDROCK:
        return True
    if region.startswith(("us-gov-", "cn-", "us-iso")):
        return False
    return model.id.startswith(_BY_PROFILE) or region.startswith("us-")


def _price(model: ModelInfo, now: datetime) -> Price | None:
    live, batch = model.get_prices(now), model.get_prices(now, dict(_BATCH))
    if not _keys(live) <= _OF_TEXT:
        return None
    tiers: list[int] = []
    live_input, live_output = _base(live.input_mtok, tiers), _base(live.output_mtok, tiers)
    batch_input, batch_output = _base(batch.input_mtok, tiers), _base(batch.output_mtok, tiers)
    if live_input is None or batch_input is None:
        return None
    if (live_input, live_output) == (batch_input, batch_output):
        batch_input = live_input / _HALF
        batch_output = None if live_output is None else live_output / _HALF
    nothing = Decimal(0)  # an embedding has no output, and no price of it
    return Price(
        live_input=f"{live_input:f}",
        live_output=f"{live_output or nothing:f}",
        batch_input=f"{batch_input:f}",
        batch_output=f"{batch_output or nothing:f}",
        currency="USD",
        source=PriceSource.LIBRARY,
        most_input=min(tiers, default=None),
    )


def _keys(price: ModelPrice) -> set[str]:
    return {name for name, value in vars(price).items() if value is not None}


def _base(price: Any, tiers: list[int]) -> Decimal | None:
    """The price of short requests; where longer ones begin goes to the tiers."""
    if price is None or isinstance(price, Decimal):
        return price
    tiers += [tier.start for tier in price.tiers]
    base: Decimal = price.base
    return base

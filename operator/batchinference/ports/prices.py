"""What models cost where somebody publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from batchinference.model.price import Price


class Prices(Protocol):
    """A price list. Answers from what it has: it makes no call to anybody."""

    async def of(self, settings: Mapping[str, Any], model: str, now: datetime) -> Price | None:
        """What a model costs now at a provider with these settings (a provider object's spec); None
        where nobody publishes it. Never raises.
        """

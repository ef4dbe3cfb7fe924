"""What a run's model costs now: what its provider object says, else a published price list."""

from __future__ import annotations

from datetime import datetime

from batchinference.core.pricing import own_price
from batchinference.model.price import Price
from batchinference.model.run import Run
from batchinference.ports.prices import Prices
from batchinference.runtime.providers import Providers


class Pricing:
    """Asks for prices."""

    def __init__(self, providers: Providers, published: Prices) -> None:
        self._providers = providers
        self._published = published

    async def of(self, run: Run, now: datetime) -> Price | None:
        """The price; of a run whose provider object is gone, what was known while it was there."""
        settings = self._providers.settings_of(run.provider)
        if settings is None:
            if run.price is not None:
                return run.price
            settings = run.provider.settings
        model = str(run.spec.get("model", ""))
        # Where the run goes is pinned; what that costs may have been corrected since.
        own = own_price(settings, model)
        return own or await self._published.of(run.provider.settings, model, now)

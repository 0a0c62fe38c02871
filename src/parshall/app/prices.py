"""What a model costs, in the form that the model list shows."""

from typing import Any

from parshall.accounting.remote import RemoteAccounting
from parshall.accounting.service import Accounting
from parshall.kernel.credits import wire


class ShownPrices:
    """Prices by the id of the model."""

    def __init__(self, accounting: Accounting | RemoteAccounting) -> None:
        """Asks that accounting."""
        self._accounting = accounting

    async def of(self, model_id: str) -> dict[str, Any]:
        """Credits per million tokens of a model."""
        version = await self._accounting.prices.in_force(model_id)
        price = version.price
        return {
            "input": wire(price.input),
            "cachedInput": wire(price.cached_input),
            "output": wire(price.output),
            "reasoning": wire(price.reasoning),
            "per": "million tokens",
        }

"""The task of a serving process that hears who was removed, shuts them out, and has its services erase them."""

import asyncio

from parshall.kernel.errors import Unavailable
from parshall.kernel.removals import Feed, Removals
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import TokenVerifier

PAUSE_SECONDS = 5.0
"""How long a removed user's token may still work at accounting and chat."""

_logger = log("removals")


class Remover:
    """Runs passes until it is cancelled; a pass that fails is logged and the next one tries again."""

    def __init__(self, feed: Feed, *, verifier: TokenVerifier, services: list[Removals]) -> None:
        """`services` are those that this process serves, auth aside, which removes its own at once."""
        self._feed = feed
        self._verifier = verifier
        self._services = services

    async def run(self) -> None:
        """Hear and erase for ever. What was heard is carried out also while auth is away."""
        while True:
            for step in (self._hear, self._erase):
                try:
                    await step()
                except Unavailable as error:
                    _logger.warning("removals_put_off", reason=error.detail)
                except Exception:
                    _logger.exception("removals_failed")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _hear(self) -> None:
        for each in self._services:
            await each.hear(self._feed)

    async def _erase(self) -> None:
        """Tokens first: what they could begin need not be erased again."""
        recent = [await each.recent() for each in self._services]
        self._verifier.shut_out(frozenset().union(*recent))
        for each in self._services:
            await each.carry_out()

"""What metrics tell that nothing counts by itself: how many now, how far behind, and whether balances add up."""

import asyncio
import time
from collections.abc import Awaitable

from parshall.accounting.service import Accounting
from parshall.chat.reader import Reading
from parshall.chat.service import Chat
from parshall.kernel import metrics
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.errors import Unavailable
from parshall.kernel.telemetry import log

LOOK_SECONDS = 1.0
"""Between two looks at this process; a scrape has it look as well."""
BACKLOG_SECONDS = 5.0
"""Between two looks at the settlements that are pending."""
BOOKS_SECONDS_MIN = 60.0
BOOKS_SHARE = 0.02
"""Of the time, at most, that looking at the books may take: where it takes long it is done less often."""

_logger = log("watch")


class Watch:
    """Looks again and again, until it is cancelled. What cannot be seen now keeps its last value."""

    def __init__(
        self, *, chat: Chat | None, accounting: Accounting | None, readers: set[Reading], clock: Clock
    ) -> None:
        """For the services that this process serves, and the responses that read streams here."""
        self._chat = chat
        self._accounting = accounting
        self._readers = readers
        self._clock = clock
        self._swept_at = time.monotonic()

    def swept(self) -> None:
        """The sweeper has finished a pass."""
        self._swept_at = time.monotonic()

    def look(self) -> None:
        """Look at this process."""
        if self._chat is not None:
            metrics.open_streams.set(len(self._chat.streaming.producers))
            metrics.open_readers.set(len(self._readers))
        metrics.sweep_lag_seconds.set(time.monotonic() - self._swept_at)

    async def look_at_backlog(self) -> None:
        """See how much waits for accounting, and for how long."""
        if self._chat is None:
            return
        count, oldest = await self._chat.streaming.records.unsettled()
        metrics.settlements_pending.set(count)
        age = 0 if oldest is None else max(0, self._clock() - oldest)
        metrics.settlement_pending_oldest_seconds.set(age / SECOND)

    async def look_at_books(self) -> None:
        """See whether balances add up (M1)."""
        if self._accounting is None:
            return
        count = await self._accounting.accounts_that_disagree()
        metrics.ledger_invariant_broken.set(int(count > 0))
        if count:
            _logger.error("balances_disagree", accounts=count, remedy="run parshall audit")

    async def run(self) -> None:
        """Look for ever."""
        await asyncio.gather(self._again_and_again(), self._backlog(), self._books())

    async def _again_and_again(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _backlog(self) -> None:
        while True:
            await _tried(self.look_at_backlog())
            await asyncio.sleep(BACKLOG_SECONDS)

    async def _books(self) -> None:
        while True:
            began = time.monotonic()
            await _tried(self.look_at_books())
            await asyncio.sleep(max(BOOKS_SECONDS_MIN, (time.monotonic() - began) / BOOKS_SHARE))


async def _tried(look: Awaitable[None]) -> None:
    """A look that fails is told, and the next one tries again."""
    try:
        await look
    except Unavailable as error:  # what is down says nothing about this code
        _logger.warning("look_put_off", reason=error.detail)
    except Exception:
        _logger.exception("look_failed")

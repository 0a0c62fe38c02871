"""The housekeeping of a serving process: adopt, settle, expire, announce, forget and trim, again and again."""

import asyncio
from collections.abc import Callable

from parshall.accounting.service import Accounting
from parshall.chat.ports import LogUnavailable
from parshall.chat.streaming import Streaming
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.errors import Unavailable
from parshall.kernel.telemetry import log

SWEEP_SECONDS_MAX = 2.0
SWEEPS_PER_LEASE = 5
NOTICE_EVERY_SWEEPS = 30
TRIM_EVERY_SWEEPS = 150

_logger = log("sweeper")


class Sweeper:
    """Runs passes until it is cancelled; a pass that fails is logged and the next one tries again."""

    def __init__(
        self,
        *,
        streaming: Streaming | None,
        accounting: Accounting | None,
        clock: Clock,
        lease_seconds: float,
        retention_seconds: float,
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """For the services that this process serves; `on_pass` hears of every pass that was finished.

        Passes follow each other several times in `lease_seconds`, within which dead streams are to be adopted. Logs of
        streams that ended more than `retention_seconds` ago are forgotten.
        """
        self._pause = min(SWEEP_SECONDS_MAX, lease_seconds / SWEEPS_PER_LEASE)
        self._streaming = streaming
        self._accounting = accounting
        self._clock = clock
        self._on_pass = on_pass
        self._retention = int(retention_seconds * SECOND)

    async def run(self) -> None:
        """Sweep for ever. Streams come before reservations: adoption settles what expiry would merely return."""
        passes = 0
        while True:
            await asyncio.sleep(self._pause)
            try:
                await self._pass(passes)
                self._on_pass()
            except (Unavailable, LogUnavailable) as error:  # what is down says nothing about this code
                _logger.warning("sweep_put_off", reason=error.detail)
            except Exception:
                _logger.exception("sweep_failed")
            passes += 1

    async def _pass(self, number: int) -> None:
        trims = number % TRIM_EVERY_SWEEPS == 0
        if self._streaming is not None:
            await self._streaming.sweep()
        if self._accounting is not None:
            await self._accounting.expire_due()
            await self._accounting.forget_answers()
            if number % NOTICE_EVERY_SWEEPS == 0:
                await self._accounting.outbox.announce_expiring()
            if trims:
                await self._accounting.outbox.trim()
        if self._streaming is not None and trims:
            await self._streaming.trim(closed_before=self._clock() - self._retention)

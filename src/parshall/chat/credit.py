"""What pays for one stream: its meter, and the next slice in time."""

import asyncio
from collections.abc import Callable

from parshall.chat.meter import Meter, extension
from parshall.chat.ports import Ledger, ProviderFailure
from parshall.kernel.errors import InsufficientCredits, ParshallError
from parshall.kernel.ids import StreamId
from parshall.kernel.tasks import end
from parshall.kernel.telemetry import log

EXTEND_SECONDS_MAX = 5.0

_logger = log("streams")


class Credit:
    """Reserves slice after slice for the meter of a stream."""

    def __init__(self, meter: Meter, ledger: Ledger, stream_id: StreamId, *, slice_tokens: int) -> None:
        """Another model brings another meter. A slice has `slice_tokens` of output."""
        self.meter = meter
        self.failure: ProviderFailure | None = None
        """Why nothing more could be reserved, where that is not for want of credits."""
        self._ledger = ledger
        self._stream_id = stream_id
        self._slice_tokens = slice_tokens
        self._extension: asyncio.Task[None] | None = None

    def look_ahead(self) -> None:
        """Have the next slice reserved once this one runs low."""
        if self.meter.runs_low and self._extension is None:
            self._extension = asyncio.create_task(self._extend())

    async def afford(self, tokens: int, *, wanted: Callable[[], bool]) -> bool:
        """Wait until that many more tokens are paid for; False when they never will be, or are no longer wanted."""
        meter = self.meter
        while not meter.fits(tokens) and not meter.final and wanted():
            if self._extension is None:
                missing = meter.used + tokens - meter.granted
                self._extension = asyncio.create_task(self._extend(missing))
            await self._extension
        return meter.fits(tokens)

    async def close(self) -> None:
        """Reserve nothing more."""
        if self._extension is not None:
            await end(self._extension)

    async def _extend(self, missing: int = 0) -> None:
        """Reserve the next slice (RFC 8506's update interrogation), or `missing` tokens where those are more."""
        meter = self.meter
        step = meter.step = meter.step + 1
        output_tokens = max(self._slice_tokens, missing)
        try:
            async with asyncio.timeout(EXTEND_SECONDS_MAX):
                meter.extend(await extension(self._ledger, self._stream_id, step, output_tokens))
        except InsufficientCredits:
            meter.refuse()
        except (TimeoutError, ParshallError) as error:
            _logger.warning("extension_failed", stream=self._stream_id, reason=str(error) or type(error).__name__)
            self.failure = ProviderFailure(
                "Accounting cannot be reached, so no further output could be paid for; ask again shortly.",
                code="accounting_unavailable",
            )
            meter.refuse()
        finally:
            self._extension = None

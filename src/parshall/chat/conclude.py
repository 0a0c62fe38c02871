"""The end of a stream, in the order that loses nothing: keep the outcome, settle, then close the log."""

import asyncio
import time
from collections.abc import Callable

from parshall.chat.counts import count_end
from parshall.chat.model import Ending, Stream, terminal
from parshall.chat.ports import Lease, Ledger, LogUnavailable, StreamLog
from parshall.chat.records import Records
from parshall.kernel import sse, trace
from parshall.kernel.errors import ParshallError, Unavailable
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Settlement
from parshall.kernel.telemetry import log

SETTLE_SECONDS_MAX = 5.0
"""How long readers wait for the receipt after the last token; what accounting has not answered then is pending."""
END_SECONDS_MAX = 10.0
"""How long a stream that has ended waits for the database that is to keep that; then the sweep ends it by its log."""
END_RETRY_SECONDS = 0.25

_logger = log("streams")


class Concluder:
    """Ends streams. Each step may be the last one that runs: the next start finds it undone and goes on from there."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        stream_log: StreamLog,
        records: Records,
        on_end: Callable[[StreamId], None],
        label: Callable[[str], str],
    ) -> None:
        """The three places in which an end is written. `on_end` hears of it before any reader does.

        `label` says how metrics name a model.
        """
        self.label = label
        self._ledger = ledger
        self._log = stream_log
        self.records = records
        self._on_end = on_end

    async def end(self, stream: Stream, ending: Ending, *, text: str, lease: Lease) -> Stream:
        """Keep how a stream that this process holds has ended, then settle it. Raises LeaseLost, Unavailable."""
        ended = await self._keep_end(stream, ending, text=text, lease=lease)
        self._on_end(stream.id)
        count_end(stream, ending, self.label)
        return await self.settle(ended)

    async def _keep_end(self, stream: Stream, ending: Ending, *, text: str, lease: Lease) -> Stream:
        """Keep how it ended, in spite of a database that is away for a moment: a later sweep would know less.

        An end that was kept without an answer meets itself as LeaseLost; the sweep then settles and closes.
        """
        latest = time.monotonic() + END_SECONDS_MAX
        while True:
            try:
                return await self.records.end(stream, ending, text=text, epoch=lease.epoch)
            except Unavailable as error:
                if time.monotonic() > latest:
                    raise
                _logger.warning("end_not_kept_yet", stream=stream.id, reason=error.detail)
            await asyncio.sleep(END_RETRY_SECONDS)

    async def settle(self, stream: Stream) -> Stream:
        """Have accounting settle an ended stream; without an answer the settlement stays pending for the sweeper."""
        assert stream.ending is not None
        ending = stream.ending
        try:
            with trace.span("settle", stream=stream.id):
                settlement = await self._asked_to_settle(stream, ending)
        except (TimeoutError, ParshallError, OSError) as error:
            _logger.warning("settlement_pending", stream=stream.id, reason=str(error) or type(error).__name__)
            return stream
        return await self._keep(stream, settlement)

    async def _asked_to_settle(self, stream: Stream, ending: Ending) -> Settlement:
        async with asyncio.timeout(SETTLE_SECONDS_MAX):
            return await self._ledger.settle(
                stream_id=stream.id, usage=ending.usage, source=ending.usage_source, outcome=ending.outcome.value
            )

    async def close(self, stream: Stream, lease: Lease, *, next_offset: int) -> None:
        """Append the one terminal event and close the log; a log that is lost is closed by a later sweep."""
        name, data = terminal(stream)
        try:
            await self._log.append(lease, [sse.frame(next_offset, name, data)], first_offset=next_offset)
            await self.seal(stream, lease)
        except LogUnavailable as error:
            _logger.error("log_not_closed", stream=stream.id, reason=str(error))

    async def seal(self, stream: Stream, lease: Lease) -> None:
        """Close a log that already has its terminal event."""
        await self._log.close_stream(lease)
        await self.records.close(stream.id)

    async def _keep(self, stream: Stream, settlement: Settlement) -> Stream:
        await self.records.settle(stream.id, settlement)
        _logger.info(
            "stream_settled",
            stream=stream.id,
            user=stream.user_id,
            outcome=settlement.outcome,
            charged_microcredits=settlement.charged,
        )
        return stream.settled(settlement)

"""What a producer writes to the log of its stream, in order, also while the log is away for a while.

A log that is away sends its readers away too, so nobody sees what it does not hold (S1). The answer goes on meanwhile:
its newest events wait here, within a bound, and are given to the log as soon as it is back.
"""

import asyncio
from collections.abc import Awaitable, Sequence

from parshall.chat.ports import KEPT, Lease, LeaseLost, LogAway, LogLost, LogUnavailable, StreamLog
from parshall.kernel.errors import ParshallError
from parshall.kernel.telemetry import log

WAITING_BYTES_MAX = 256 * 1024
"""The most that waits for a log that is away; a stream with more ends."""
RETRY_SECONDS = 0.25
BACK_SECONDS_MAX = 2.0
"""How long a stream that has ended waits for a log that is away; afterwards the sweep brings the log up to date."""

_logger = log("streams")


class Writer:
    """The events of one stream on their way to the log."""

    def __init__(self, stream_log: StreamLog, lease: Lease, *, next_offset: int) -> None:
        """The log holds every event before `next_offset`."""
        self.next_offset = next_offset
        self._log = stream_log
        self._lease = lease
        self._last_offset = stream_log.bounds.events_max // 2
        self._bytes_max = stream_log.bounds.bytes_max // 2
        self._waiting: list[bytes] = []
        self._bytes_waiting = 0
        self._bytes = 0
        self._retry: asyncio.Task[None] | None = None
        self._lost = False
        self._refusal: ParshallError | None = None

    @property
    def full(self) -> bool:
        """Whether no more of this stream should be written: its end must still find room."""
        return self.next_offset > self._last_offset or self._bytes > self._bytes_max

    def write(self, frames: Sequence[bytes]) -> Awaitable[None]:
        """Have the log keep the next frames, or keep them here while it is away; KEPT where that is done at once.

        Raises, at once or where it is awaited, LeaseLost for a stale lease, LogUnavailable where the log refuses them
        or too many wait: then none of them is kept. Nothing else may be written before it is done.
        """
        if self._refusal is not None:
            raise self._refusal
        if self._retry is not None or self._lost:
            self._wait(frames)
        elif (kept := self._log.append(self._lease, frames, first_offset=self.next_offset)) is not KEPT:
            return self._written(kept, frames)
        self._count(frames)
        return KEPT

    async def _written(self, kept: Awaitable[None], frames: Sequence[bytes]) -> None:
        try:
            await kept
        except LogAway as error:
            self._wait(frames)
            self._retry = asyncio.create_task(self._until_back(), name=f"{self._lease.stream_id}-log")
            _logger.warning("log_waited_for", stream=self._lease.stream_id, reason=error.detail)
        except LogLost:
            self._lose()
        self._count(frames)

    def _count(self, frames: Sequence[bytes]) -> None:
        self.next_offset += len(frames)
        self._bytes += len(frames[0]) if len(frames) == 1 else sum(map(len, frames))

    async def finish(self) -> bool:
        """Wait until the log holds everything that was written, for a while; False if it does not. Raises LeaseLost."""
        if self._retry is not None:
            await asyncio.wait({self._retry}, timeout=BACK_SECONDS_MAX)
        if isinstance(self._refusal, LeaseLost):
            raise self._refusal
        held = self._retry is None and self._refusal is None and not self._lost
        await self.close()
        return held

    async def close(self) -> None:
        """Wait for the log no longer."""
        retry, self._retry = self._retry, None
        if retry is not None:
            retry.cancel()
            await asyncio.gather(retry, return_exceptions=True)

    def _wait(self, frames: Sequence[bytes]) -> None:
        size = sum(map(len, frames))
        if self._bytes_waiting + size > WAITING_BYTES_MAX:
            raise LogUnavailable
        self._bytes_waiting += size
        if not self._lost:
            self._waiting += frames

    def _lose(self) -> None:
        """Go on without the log: nobody reads this stream any more, but its answer is kept and settled."""
        self._lost = True
        self._waiting.clear()
        _logger.error("log_lost", stream=self._lease.stream_id)

    async def _until_back(self) -> None:
        """Give the log what waits until it has it all, or refuses it."""
        try:
            while self._waiting:
                await asyncio.sleep(RETRY_SECONDS)
                await self._give()
        except LogLost:
            self._lose()
        except (LeaseLost, LogUnavailable) as error:
            self._refusal = error
        self._retry = None

    async def _give(self) -> None:
        waiting = tuple(self._waiting)
        try:
            await self._log.append(self._lease, waiting, first_offset=self.next_offset - len(waiting))
        except LogAway:
            return
        del self._waiting[: len(waiting)]
        self._bytes_waiting -= sum(map(len, waiting))

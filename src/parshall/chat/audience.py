"""Who reads a stream and how far; with the last reader that leaves, a stream may end."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from parshall.chat.peers import Elsewhere
from parshall.chat.ports import LogUnavailable
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.telemetry import log

ASK_AGAIN_SECONDS = 1.0
"""While others read a stream that nobody here does: how often they are looked for."""

ASK_SECONDS_MAX = 0.5
"""The end of a stream waits no longer to hear how far others have read: what is charged does not depend on it."""

_logger = log("streams")


class Audience:
    """The readers of one stream that is produced here."""

    def __init__(
        self,
        abandon: Callable[[], None],
        *,
        grace_seconds: float | None,
        elsewhere: Callable[[], Awaitable[Elsewhere]],
        clock: Clock,
    ) -> None:
        """`abandon` is called when nobody has read for `grace_seconds`; None is for streams that need no reader.

        `elsewhere` tells of the readers in other processes.
        """
        self.offset = 0
        """The furthest that any reader was sent, as far as it is known."""
        self._abandon = abandon
        self._grace_seconds = grace_seconds
        self._elsewhere = elsewhere
        self._clock = clock
        self._readers = 0
        self._grace: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None

    def joined(self) -> None:
        """A reader has come."""
        self._readers += 1
        self._wait_no_longer()

    def left(self) -> None:
        """A reader has gone; the last one may take the stream with it, after the grace period."""
        self._readers -= 1
        self.watch()

    def delivered(self, offset: int) -> None:
        """A reader was sent everything up to this offset."""
        self.offset = max(self.offset, offset)

    def watch(self) -> None:
        """Wait for readers, if there are none and the stream needs one."""
        if self._readers == 0 and self._grace_seconds is not None and self._grace is None:
            self._wait(self._grace_seconds)

    async def ask(self) -> Elsewhere | None:
        """Look for readers in other processes; None where nobody can tell now."""
        try:
            found = await self._elsewhere()
        except LogUnavailable as error:
            _logger.warning("audience_unknown", reason=error.detail)
            return None
        self.delivered(found.offset)
        return found

    async def hear(self) -> None:
        """Hear how far readers in other processes were sent, if that is told soon."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ASK_SECONDS_MAX):
                await self.ask()

    async def close(self) -> None:
        """Wait no longer, whoever comes or goes."""
        self._grace_seconds = None
        self._wait_no_longer()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _wait(self, seconds: float) -> None:
        self._grace = asyncio.get_running_loop().call_later(seconds, self._run_out)

    def _wait_no_longer(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _run_out(self) -> None:
        """Nobody here has read for a while: somebody elsewhere may."""
        self._grace = None
        if self._asking is None:
            self._asking = asyncio.create_task(self._judge(), name="audience")

    async def _judge(self) -> None:
        """Abandon the stream, or wait on for what is left of the grace period since the last reader anywhere left."""
        try:
            found = await self.ask()
        finally:
            self._asking = None
        if self._readers or self._grace is not None or self._grace_seconds is None:
            return
        if found is None or found.present:
            self._wait(ASK_AGAIN_SECONDS)
            return
        rest = self._grace_seconds - (self._clock() - found.left_at) / SECOND
        if rest > 0:
            self._wait(rest)
        else:
            self._abandon()

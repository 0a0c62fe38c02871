"""Who reads a stream and how far; with the last reader that leaves, a stream may end."""

import asyncio
from collections.abc import Callable


class Audience:
    """The readers of one stream in this process."""

    def __init__(self, abandon: Callable[[], None], *, grace_seconds: float | None) -> None:
        """`abandon` is called when nobody has read for `grace_seconds`; None is for streams that need no reader."""
        self.offset = 0
        """The furthest that any reader was sent."""
        self._abandon = abandon
        self._grace_seconds = grace_seconds
        self._readers = 0
        self._grace: asyncio.TimerHandle | None = None

    def joined(self) -> None:
        """A reader has come."""
        self._readers += 1
        self.close()

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
            self._grace = asyncio.get_running_loop().call_later(self._grace_seconds, self._abandon)

    def close(self) -> None:
        """Wait no longer."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

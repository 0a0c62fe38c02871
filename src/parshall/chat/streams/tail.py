"""Readers of a live stream: the newest frames at hand, woken when there are more, whatever keeps them."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from parshall.chat.ports import EVENTS_PER_READ_MAX, Lease, LogUnavailable
from parshall.kernel.ids import StreamId

FRAMES_IN_MEMORY_MAX = 1024
"""The newest frames of a live stream kept at hand; readers further behind read from the log."""


class Read(Protocol):
    """Reads kept frames, as StreamLog.read does."""

    async def __call__(self, stream_id: StreamId, *, after: int, limit: int) -> tuple[list[bytes], bool]:
        """At most `limit` frames after that offset, and whether the stream ends with them."""
        ...


@dataclass(slots=True, kw_only=True)
class Feed:
    """What readers here know of a live stream: `last` is the newest offset shown."""

    last: int
    frames: deque[bytes] = field(default_factory=lambda: deque(maxlen=FRAMES_IN_MEMORY_MAX))
    tails: "set[FeedTail]" = field(default_factory=set)
    closed: bool = False
    doubtful: bool = False
    """Whether the log may have lost what is at hand: then readers must ask it."""

    def publish(self, frames: Sequence[bytes]) -> None:
        """Show kept frames to the readers."""
        before = self.last
        self.frames.extend(frames)
        self.last = before + len(frames)
        if self.doubtful:
            self.wake()
            return
        for tail in self.tails:
            tail.show(frames, before)

    def adopt(self, tails: "set[FeedTail]") -> None:
        """Take over the readers of an earlier feed."""
        self.tails |= tails
        for tail in tails:
            tail.feed = self
        self.wake()

    def wake(self) -> None:
        """Let every waiting reader look again."""
        for tail in self.tails:
            tail.wake()

    def cut(self, error: LogUnavailable) -> None:
        """Send every reader away: each gets the error instead of further frames."""
        tails, self.tails = self.tails, set()
        for tail in tails:
            tail.cut(error)

    def after(self, offset: int) -> Sequence[bytes] | None:
        """Frames after `offset` that are at hand; None where the log must be asked."""
        behind = self.last - offset
        skip = len(self.frames) - behind
        if skip < 0 or self.doubtful:
            return None
        if behind <= 0:
            return ()
        if skip == 0 and len(self.frames) <= EVENTS_PER_READ_MAX:
            return list(self.frames)
        stop = min(len(self.frames), skip + EVENTS_PER_READ_MAX)
        return [self.frames[index] for index in range(skip, stop)]

    def since(self, offset: int) -> list[bytes] | None:
        """Every frame after `offset`; None where some are no longer at hand."""
        skip = offset - (self.last - len(self.frames))
        return None if skip < 0 else list(self.frames)[skip:]


@dataclass(slots=True, kw_only=True)
class Live(Feed):
    """A stream that is produced here: `size` is how many bytes the log was given of it."""

    lease: Lease
    size: int = 0


class FeedTail:
    """A reader's place: frames at hand first, else from the log, else wait for the next ones."""

    def __init__(
        self, read: Read, stream_id: StreamId, *, feed: Feed | None, after: int, silence_seconds: float
    ) -> None:
        """Start behind the offset `after`."""
        self.feed = feed
        self._read = read
        self._stream_id = stream_id
        self._after = after
        self._silence = silence_seconds
        self._waiter: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._quiet_since = 0.0
        self._fell_silent = False
        self._closed = False
        self._error: LogUnavailable | None = None
        self.ended = False
        self.push: Callable[[Sequence[bytes]], bool] | None = None
        if feed is not None:
            feed.tails.add(self)

    def __aiter__(self) -> "FeedTail":
        """The tail itself."""
        return self

    async def __anext__(self) -> Sequence[bytes]:
        """The next frames; empty after a silence. Raises LogUnavailable."""
        while not self._closed:
            if self._error is not None:
                self.close()
                raise type(self._error)(self._error.detail)  # one of its own: an exception belongs to one task
            frames = self._at_hand()
            if frames is None:
                frames = await self._next()
            if frames:
                self._after += len(frames)
                return frames
            if self.ended or self._closed:
                break
            if await self._silent():
                return ()
        self.close()
        raise StopAsyncIteration

    def show(self, frames: Sequence[bytes], before: int) -> None:
        """These are kept now, behind the offset `before`: whoever waits for them gets them pushed, or looks."""
        if self._waiter is None or self._waiter.done():
            return
        if self._after == before and frames and self.push is not None and self.push(frames):
            self._after += len(frames)
            self._quiet_since = self._loop.time()
        else:
            self._waiter.set_result(None)

    def wake(self) -> None:
        """Something changed: whoever waits here looks again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cut(self, error: LogUnavailable) -> None:
        """Hand out nothing more but the error."""
        self._error = error
        self.wake()

    def close(self) -> None:
        """Leave the stream."""
        self._closed = True
        if self.feed is not None:
            self.feed.tails.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.wake()

    def _at_hand(self) -> Sequence[bytes] | None:
        """The next frames without asking the log; None where it must be asked."""
        feed = self.feed
        frames = None if feed is None else feed.after(self._after)
        if feed is not None and frames is not None:
            self.ended = feed.closed and not frames
        return frames

    async def _next(self) -> Sequence[bytes]:
        frames, at_end = await self._read(self._stream_id, after=self._after, limit=EVENTS_PER_READ_MAX)
        if not frames:
            news = self._at_hand()  # what came while the log was asked woke nobody
            if news is not None:
                return news
        self.ended = at_end and not frames
        if not frames and not at_end and self.feed is None:
            raise LogUnavailable("This stream is between two producers; come back shortly.")
        return frames

    async def _silent(self) -> bool:
        """Wait for news; True when the silence has lasted long enough to say so.

        One timer a reader, armed again only when it fires: a timer an event would cost more than the event.
        """
        if self._error is not None:
            return False
        self._quiet_since = self._loop.time()
        self._waiter = self._loop.create_future()
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence, self._tick)
        self._fell_silent = False
        try:
            await self._waiter
        finally:
            self._waiter = None
        return self._fell_silent

    def _tick(self) -> None:
        rest = self._quiet_since + self._silence - self._loop.time()
        waiting = self._waiter is not None and not self._waiter.done()
        if rest > 0.001 or not waiting:
            self._timer = self._loop.call_later(max(rest, 0.5), self._tick)
            return
        self._timer = None
        self._fell_silent = True
        self.wake()

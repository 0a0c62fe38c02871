"""A supervisor's look at a stream: its history, then what comes, for as long as the supervisor may look."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from parshall.chat.model import Stream
from parshall.chat.observations import ObservationEnd
from parshall.chat.ports import EVENTS_PER_READ_MAX, LogUnavailable, StreamLog, Tail
from parshall.kernel import sse
from parshall.kernel.telemetry import log

SILENCE_SECONDS = 15.0
CHECK_SECONDS = 5.0
"""How long somebody who may no longer observe goes on seeing events at most."""

_logger = log("observe")


class Observer:
    """Reads a stream beside its readers, and is none of them: a stream that stops when nobody reads is not held by it.

    Iterating gives bytes ready to be sent: `observer` and `history-start`, the events kept so far, `history-end`, then
    each event as it comes. What is not of the stream has no id, so that the last id is always an offset to resume from.
    """

    def __init__(
        self, stream_log: StreamLog, stream: Stream, *, name: str, after: int, may_look: Callable[[], Awaitable[bool]]
    ) -> None:
        """`name` is the observer's; `may_look` is asked again and again, and a failure to answer is a no."""
        self.stream_id = stream.id
        self.offset = after
        """That of the last event handed out."""
        self.ended = False
        self._log = stream_log
        self._stream = stream
        self._name = name
        self._may_look = may_look
        self._allowed = True
        self._left = False
        self._tail: Tail | None = None
        self._chunks = self._read()
        self._watch: asyncio.Task[None] | None = None

    @property
    def end(self) -> ObservationEnd:
        """Why the observer sees no more."""
        if self.ended:
            return ObservationEnd.STREAM_ENDED
        return ObservationEnd.LEFT if self._allowed else ObservationEnd.NOT_ALLOWED

    def __aiter__(self) -> "Observer":
        """The observer itself."""
        return self

    async def __anext__(self) -> bytes:
        """The next bytes; empty after a silence."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._check())
        return await anext(self._chunks)

    def interrupt(self) -> None:
        """End the iteration, whoever waits in it."""
        self._left = True
        if self._tail is not None:
            self._tail.close()

    def leave(self) -> None:
        """Stop observing; may be called again."""
        self.interrupt()
        if self._watch is not None:
            self._watch.cancel()

    async def _read(self) -> AsyncIterator[bytes]:
        yield self._opening()
        try:
            async for chunk in self._history():
                yield chunk
            yield sse.notice("history-end", {"streamingSessionId": self._stream.id, "lastEventId": self.offset})
            async for chunk in self._live():
                yield chunk
        except LogUnavailable as error:
            _logger.warning("observer_cut", stream=self._stream.id, reason=error.detail)
        if not self._allowed:
            yield sse.notice("observer-end", {"reason": "You may no longer observe chat sessions."})

    def _opening(self) -> bytes:
        stream = self._stream
        named = {"observer": self._name, "sessionId": stream.session_id, "streamingSessionId": stream.id}
        observed = {"userId": stream.user_id, "modelId": stream.model_id, "active": stream.is_open}
        begins = {"streamingSessionId": stream.id, "after": self.offset}
        return sse.notice("observer", named | observed) + sse.notice("history-start", begins)

    async def _history(self) -> AsyncIterator[bytes]:
        while not self._left:
            frames, at_end = await self._log.read(self._stream.id, after=self.offset, limit=EVENTS_PER_READ_MAX)
            if frames:
                self.offset += len(frames)
                yield b"".join(frames)
            if at_end or not frames:
                return

    async def _live(self) -> AsyncIterator[bytes]:
        tail = self._tail = await self._log.tail(self._stream.id, after=self.offset, silence_seconds=SILENCE_SECONDS)
        if self._left:  # before there was a tail to close
            tail.close()
        async for frames in tail:
            self.offset += len(frames)
            yield b"".join(frames)
        self.ended = tail.ended

    async def _check(self) -> None:
        while self._allowed:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                self._allowed = await self._may_look()
            except Exception as error:
                _logger.warning("observer_unchecked", reason=str(error))
                self._allowed = False
        self.interrupt()

"""Readers of streams that other processes produce: one blocking connection a node of the engine tells what is new.

Where there is more, the channel of the stream says so, and the stream is read. What a channel says is never lost while
its connection lives; when the connection ends, so do its readers, and whoever comes back reads on from where they were.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

from redis.asyncio import Connection

from parshall.chat.ports import LogAway, LogUnavailable
from parshall.chat.streams.engine import FAILURES, Engine
from parshall.chat.streams.scripts import channel
from parshall.chat.streams.tail import Feed
from parshall.kernel.ids import StreamId
from parshall.kernel.telemetry import log

HEARTBEAT_SECONDS = 5.0
"""A connection that is silent for so long is asked whether it still lives, and given up when it does not answer."""

_logger = log("streams")

Fetch = Callable[[StreamId, Feed, bool], Awaitable[bool]]
"""Brings a feed up to what the log holds, or a new one to its end; False when there is more. Raises LogUnavailable."""


class Following:
    """Every stream that is followed here, and the lines to the engine that tell of them."""

    def __init__(self, engine: Engine, fetch: Fetch) -> None:
        """Nothing is connected before something is followed."""
        self._engine = engine
        self._fetch = fetch
        self._feeds: dict[StreamId, Feed] = {}
        self._ready: dict[StreamId, asyncio.Future[None]] = {}
        self._lines: dict[str, _Line] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._coming: Counter[StreamId] = Counter()
        self._opening = asyncio.Lock()
        self._dirty: dict[StreamId, None] = {}
        self._fetcher: asyncio.Task[None] | None = None

    async def follow(self, stream_id: StreamId) -> Feed:
        """The feed of a stream, up to date and kept so while it has tails. Raises LogUnavailable."""
        self._coming[stream_id] += 1
        try:
            if stream_id not in self._feeds:
                await self._begin(stream_id)
            feed, ready = self._feeds.get(stream_id), self._ready.get(stream_id)
            if ready is not None:
                await asyncio.shield(ready)
            if feed is None or self._feeds.get(stream_id) is not feed:
                raise LogAway
            return feed
        finally:
            self._coming[stream_id] -= 1
            if not self._coming[stream_id]:
                del self._coming[stream_id]

    async def _begin(self, stream_id: StreamId) -> None:
        self._feeds[stream_id] = Feed(last=0)
        self._ready[stream_id] = asyncio.get_running_loop().create_future()
        try:
            await (await self._line(stream_id)).subscribe(stream_id)
        except BaseException:  # whoever waits for the same stream must not wait for ever
            self._drop(stream_id, LogAway())
            raise

    def take(self, stream_id: StreamId) -> Feed | None:
        """A followed stream that is produced here from now on: the feed, which is no longer kept up."""
        ready = self._ready.pop(stream_id, None)
        if ready is not None and not ready.done():
            ready.set_result(None)
        return self._feeds.pop(stream_id, None)

    def cut(self, error: LogUnavailable) -> None:
        """Send every reader away, follow nothing more, and give the lines up: the engine may be elsewhere by now."""
        for stream_id in tuple(self._feeds):
            self._drop(stream_id, error)
        lines, self._lines = self._lines, {}
        for line in lines.values():
            line.task.cancel()
            self._ending.add(line.task)
            line.task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End every tail and give the lines up."""
        for feed in self._feeds.values():
            for tail in tuple(feed.tails):
                tail.close()
        self.cut(LogAway("The stream log is closed."))
        if self._fetcher is not None:
            self._fetcher.cancel()
            self._ending.add(self._fetcher)
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _line(self, stream_id: StreamId) -> "_Line":
        async with self._opening:  # readers that come together share the line that the first one opens
            node = self._engine.node(channel(stream_id))
            line = self._lines.get(node)
            if line is None or line.task.done():
                connection = await self._engine.line(channel(stream_id))
                line = self._lines[node] = _Line(connection, self._heard, self._lost)
            return line

    async def _heard(self, kind: str, stream_id: StreamId, line: "_Line") -> None:
        """Word of a stream: it has more, or is heard from now on, or is no longer served by this node."""
        feed = self._feeds.get(stream_id)
        if kind == "sunsubscribe":
            if stream_id in line.heard:
                self._drop(stream_id, LogAway("The stream has moved within the stream log's cluster."))
                line.heard.discard(stream_id)
        elif feed is None or not (feed.tails or stream_id in self._coming):
            self._feeds.pop(stream_id, None)
            await line.unsubscribe(stream_id)
        else:
            self._dirty[stream_id] = None
            if self._fetcher is None:
                self._fetcher = asyncio.create_task(self._catch_up(), name="log-following")

    def _lost(self, heard: set[StreamId], error: LogAway) -> None:
        for stream_id in tuple(heard):
            self._drop(stream_id, error)

    def _drop(self, stream_id: StreamId, error: LogUnavailable) -> None:
        feed, ready = self._feeds.pop(stream_id, None), self._ready.pop(stream_id, None)
        if feed is not None:
            feed.cut(error)
        if ready is not None and not ready.done():
            ready.set_exception(error)
            ready.exception()  # seen here: who waits for it may have gone

    async def _catch_up(self) -> None:
        """Read whatever is new, of all streams that have something new at once."""
        try:
            while self._dirty:
                dirty, self._dirty = self._dirty, {}
                await asyncio.gather(*(self._catch_up_with(stream_id) for stream_id in dirty))
        finally:
            self._fetcher = None

    async def _catch_up_with(self, stream_id: StreamId) -> None:
        feed = self._feeds.get(stream_id)
        if feed is None:
            return
        try:
            whole = await self._fetch(stream_id, feed, stream_id in self._ready)
        except LogUnavailable as error:
            if self._feeds.get(stream_id) is feed:
                self._drop(stream_id, error)
            return
        if not whole:
            self._dirty[stream_id] = None
        ready = self._ready.pop(stream_id, None)
        if ready is not None and not ready.done():
            ready.set_result(None)


class _Line:
    """One connection that listens to the channels of many streams."""

    def __init__(
        self,
        connection: Connection,
        on_word: Callable[[str, StreamId, "_Line"], Awaitable[None]],
        on_lost: Callable[[set[StreamId], LogAway], None],
    ) -> None:
        self.heard: set[StreamId] = set()
        self._connection = connection
        self._on_word = on_word
        self._on_lost = on_lost
        self._asked = False
        self._ended = False
        self.task = asyncio.get_running_loop().create_task(self._listen(), name="log-line", context=Context())

    async def subscribe(self, stream_id: StreamId) -> None:
        """Listen to a stream from the engine's confirmation on. Raises LogAway."""
        self.heard.add(stream_id)
        await self._say("SSUBSCRIBE", channel(stream_id))

    async def unsubscribe(self, stream_id: StreamId) -> None:
        """Listen to it no longer. Raises LogAway."""
        self.heard.discard(stream_id)
        await self._say("SUNSUBSCRIBE", channel(stream_id))

    async def _say(self, *command: str) -> None:
        if self._ended:  # the connection would connect anew, with nobody to listen
            raise LogAway
        try:
            await self._connection.send_command(*command, check_health=False)
        except FAILURES as error:
            raise LogAway from error

    async def _listen(self) -> None:
        reason = LogAway("The connection to the stream log has ended; come back shortly.")
        try:
            while True:
                await self._take(await self._next())
        except (*FAILURES, LogAway) as error:
            _logger.warning("log_line_lost", reason=str(error) or type(error).__name__)
        finally:
            self._ended = True
            self._on_lost(self.heard, reason)
            await self._connection.disconnect(nowait=True)

    async def _next(self) -> Any:
        """The next thing that the engine says. Raises RedisError, OSError, also where it no longer says anything."""
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    said = await self._connection.read_response(
                        timeout=math.inf, disconnect_on_error=False, push_request=True
                    )
            except TimeoutError:
                if self._asked:
                    raise
                self._asked = True
                await self._say("PING")
                continue
            self._asked = False
            return said

    async def _take(self, said: Any) -> None:
        if not isinstance(said, list) or len(said) != 3 or said[1] is None:
            return
        kind, place = said[0].decode(), said[1].decode()
        await self._on_word(kind, StreamId(place[place.index("{") + 1 : place.index("}")]), self)

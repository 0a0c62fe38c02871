"""Readers of streams that other processes produce: one blocking connection a node of the engine tells what is new.

Where there is more, the channel of the stream says so, and the stream is read. What a channel says is never lost while
its connection lives; when the connection ends, so do its readers, and whoever comes back reads on from where they were.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from parshall.chat.ports import LogAway, LogUnavailable
from parshall.chat.streams.engine import Engine
from parshall.chat.streams.line import Line
from parshall.chat.streams.scripts import channel
from parshall.chat.streams.tail import Feed
from parshall.kernel.ids import StreamId
from parshall.kernel.tasks import end

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
        self._lines: dict[str, Line] = {}
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
            await (await self._line(stream_id)).subscribe(channel(stream_id))
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
            ending = asyncio.create_task(end(line.task), name="log-line-end")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End every tail and give the lines up."""
        for feed in self._feeds.values():
            for tail in tuple(feed.tails):
                tail.close()
        self.cut(LogAway("The stream log is closed."))
        if self._fetcher is not None:
            await end(self._fetcher)
        await asyncio.gather(*self._ending)

    async def _line(self, stream_id: StreamId) -> Line:
        async with self._opening:  # readers that come together share the line that the first one opens
            node = self._engine.node(channel(stream_id))
            line = self._lines.get(node)
            if line is None or line.task.done():
                connection = await self._engine.line(channel(stream_id))
                line = self._lines[node] = Line(connection, self._heard, self._lost)
            return line

    async def _heard(self, kind: str, name: str, _words: bytes, line: Line) -> None:
        """Word of a stream: it has more, or is heard from now on, or is no longer served by this node."""
        stream_id = StreamId(name)
        feed = self._feeds.get(stream_id)
        if kind == "sunsubscribe":
            if stream_id in line.heard:
                self._drop(stream_id, LogAway("The stream has moved within the stream log's cluster."))
                line.heard.discard(stream_id)
        elif feed is None or not (feed.tails or stream_id in self._coming):
            self._feeds.pop(stream_id, None)
            await line.unsubscribe(channel(stream_id))
        else:
            self._dirty[stream_id] = None
            if self._fetcher is None:
                self._fetcher = asyncio.create_task(self._catch_up(), name="log-following")

    def _lost(self, line: Line, error: LogAway) -> None:
        for name in tuple(line.heard):
            self._drop(StreamId(name), error)

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

"""StreamLog on Valkey or Redis: any process may produce a stream, and any process may read it.

What this process produces is shown to its own readers once the engine has acknowledged it; nothing is read back for
them. They ask the engine only where they are far behind.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from parshall.chat.ports import EVENTS_PER_READ_MAX, Bounds, Lease, LeaseLost, LogAway, LogLost, LogUnavailable
from parshall.chat.streams import scripts
from parshall.chat.streams.engine import Engine, Reply, checked
from parshall.chat.streams.following import Following
from parshall.chat.streams.tail import Feed, FeedTail, Live
from parshall.kernel import metrics
from parshall.kernel.clock import INSTANT_MAX, Clock
from parshall.kernel.ids import StreamId
from parshall.kernel.tasks import end

OPEN_SECONDS_MAX = 26 * 3600
"""No stream is open for longer. The engine forgets what nobody closed by itself so long after its retention."""
TRIM_STREAMS_MAX = 64
OFFSET_MAX = 1 << 53
"""Beyond every event: what Lua can count exactly."""


@dataclass(slots=True, kw_only=True)
class _Held(Live):
    owner: str
    expected: int
    """The next offset to be appended; what was asked of the engine and is not answered yet counts."""
    begun: bool = False

    @property
    def token(self) -> str:
        return f"{self.lease.epoch}:{self.owner}"


class _Behind(Exception):
    def __init__(self, last: int, *, unknown: bool) -> None:
        self.last = last
        self.unknown = unknown


class SharedStreamLog:
    """The stream log of several processes."""

    def __init__(
        self, engine: Engine, *, clock: Clock, retention_seconds: float = 24 * 3600, bounds: Bounds | None = None
    ) -> None:
        """What the engine keeps goes by itself some time after the retention, should nobody trim it."""
        self.bounds = bounds or Bounds()
        self._engine = engine
        self._clock = clock
        self._keep = int((retention_seconds + OPEN_SECONDS_MAX) * 1000)
        self._held: dict[StreamId, _Held] = {}
        self._asked_at: float | None = None
        self._following = Following(engine, self._fetch)
        self._tasks: set[asyncio.Task[None]] = set()
        engine.on_lost = self._lost

    # ── Leases ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, stream_id: StreamId, *, owner: str, at: int, until: int) -> Lease | None:
        """Take the stream with the next epoch, unless it is closed or another owner's lease still runs."""
        lease: Lease | None = await self._call(
            scripts.ACQUIRE,
            stream_id,
            *(owner, at, until, self._keep),
            receive=lambda reply: self._acquired(stream_id, owner, until, checked(reply)),
        )
        return lease

    def _acquired(self, stream_id: StreamId, owner: str, until: int, reply: list[int]) -> Lease | None:
        if reply[0] == scripts.FENCED:
            return None
        epoch, last, size = reply
        lease = Lease(stream_id=stream_id, epoch=epoch, expires_at=until)
        previous = self._held.get(stream_id) or self._following.take(stream_id)
        self._held[stream_id] = held = _Held(lease=lease, owner=owner, last=last, expected=last + 1, size=size)
        if previous is not None:
            held.adopt(previous.tails)
        return lease

    async def renew(self, lease: Lease, *, until: int) -> Lease:
        """Hold the lease until `until`."""
        held = self._holding(lease)
        await self._call(scripts.RENEW, lease.stream_id, held.token, until, receive=partial(self._still, held))
        held.lease = replace(lease, expires_at=until)
        return held.lease

    async def release(self, lease: Lease) -> None:
        """End the lease now; the stream stays open for whoever adopts it, and its readers wait for them."""
        held = self._holding(lease)
        self._let_go(held)
        await self._call(scripts.RENEW, lease.stream_id, held.token, 0, receive=partial(self._still, held))

    def _still(self, held: _Held, reply: Reply) -> None:
        answer = checked(reply)[0]
        if answer == scripts.FENCED:
            self._let_go(held)
            raise LeaseLost
        if answer == scripts.UNKNOWN:
            raise LogLost

    async def held(self, stream_ids: Sequence[StreamId], *, at: int) -> set[StreamId]:
        """Ask for all of them in one round trip."""
        found = [self._call(scripts.HOLDER, stream_id, at, receive=checked) for stream_id in stream_ids]
        holders = await asyncio.gather(*found)
        return {stream_id for stream_id, holder in zip(stream_ids, holders, strict=True) if holder}

    # ── Events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def append(self, lease: Lease, frames: Sequence[bytes], *, first_offset: int) -> None:
        """Keep the frames with whatever else this loop turn brings, in one round trip.

        What an engine has forgotten of the stream, as after a failover, is kept again first if it is still at hand.
        """
        held = self._holding(lease)
        mode = scripts.FOLLOW
        if first_offset == 1 and not held.begun:  # only an opening begins at 1; what is there is of one that failed
            mode, held.last = scripts.BEGIN, 0
        elif first_offset != held.expected:
            raise LogUnavailable(f"The log expects event {held.expected} next; the producer has lost its place.")
        held.expected = first_offset + len(frames)
        try:
            await self._append(held, frames, first_offset, mode)
        except _Behind as behind:
            await self._append_again(held, frames, first_offset, behind)

    async def _append_again(self, held: _Held, frames: Sequence[bytes], first_offset: int, behind: _Behind) -> None:
        kept = held.since(behind.last) if first_offset == held.last + 1 else None
        if kept is None or (behind.unknown and held.lease.expires_at <= self._clock()):
            raise LogLost
        held.expected = first_offset + len(frames)
        mode = scripts.RESTORE if behind.unknown else scripts.FOLLOW
        try:
            await self._append(held, [*kept, *frames], behind.last + 1, mode)
        except _Behind as error:
            raise LogLost from error

    def _append(self, held: _Held, frames: Sequence[bytes], first_offset: int, mode: str) -> "asyncio.Future[None]":
        lease = held.lease
        if self._asked_at is None:
            self._asked_at = time.perf_counter()
        return self._call(
            scripts.APPEND,
            lease.stream_id,
            *(held.token, first_offset, self.bounds.events_max, self.bounds.bytes_max, self._keep),
            *(mode, lease.epoch, held.owner, lease.expires_at),
            *frames,
            receive=partial(self._appended, held, frames, first_offset),
        )

    def _appended(self, held: _Held, frames: Sequence[bytes], first_offset: int, reply: Reply) -> None:
        """Show what the engine has kept, and only that (S1); whether or not the producer still waits."""
        self._time()
        try:
            answer = checked(reply)
            match answer[0]:
                case scripts.FENCED:
                    self._let_go(held)
                    raise LeaseLost
                case scripts.UNKNOWN:
                    raise _Behind(0, unknown=True)
                case scripts.BEHIND:
                    raise _Behind(answer[1], unknown=False)
                case scripts.FULL:
                    raise LogUnavailable("The log holds as much of this stream as it may.")
        except Exception:
            held.expected = held.last + 1
            raise
        held.doubtful, held.begun = False, True
        held.publish(frames[max(0, held.last + 1 - first_offset) :])

    def _time(self) -> None:
        """Of all appends that are on their way at once the first is timed: they go out together."""
        if self._asked_at is not None:
            metrics.log_append_seconds.observe(time.perf_counter() - self._asked_at)
            self._asked_at = None

    async def close_stream(self, lease: Lease) -> None:
        """End the stream; its readers end once they have read all of it."""
        held = self._holding(lease)

        def closed(reply: Reply) -> None:
            self._still(held, reply)
            held.closed = True
            if self._held.get(lease.stream_id) is held:
                del self._held[lease.stream_id]
            held.wake()

        at = self._clock()
        await self._call(scripts.CLOSE, lease.stream_id, held.token, at, self._keep, receive=closed)
        await self._engine.run("ZADD", scripts.CLOSED_INDEX, at, lease.stream_id)

    # ── Reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def read(self, stream_id: StreamId, *, after: int, limit: int) -> tuple[list[bytes], bool]:
        """Frames from the engine."""
        limit = min(limit, EVENTS_PER_READ_MAX)
        answer = await self._call(scripts.READ, stream_id, min(after, OFFSET_MAX), limit, receive=checked)
        if answer[0] == scripts.UNKNOWN:
            if stream_id in self._held:
                raise LogLost
            return [], True
        frames = answer[2:]
        return frames, answer[0] == scripts.CLOSED and len(frames) < limit

    async def tail(self, stream_id: StreamId, *, after: int, silence_seconds: float) -> FeedTail:
        """Follow a stream, wherever it is produced. Of an engine that is away, the tail tells as soon as it is read."""
        error: LogUnavailable | None = LogAway() if self._engine.rests else None
        feed: Feed | None = None
        if error is None and stream_id not in self._held:
            try:
                feed = await self._following.follow(stream_id)
            except LogUnavailable as unavailable:
                error = None if stream_id in self._held else unavailable  # it is produced here since
        feed = self._held.get(stream_id, feed)
        tail = FeedTail(self.read, stream_id, feed=feed, after=after, silence_seconds=silence_seconds)
        if error is not None:
            tail.cut(error)
        return tail

    async def _fetch(self, stream_id: StreamId, feed: Feed, first: bool) -> bool:
        """Bring a followed feed up to date, as Following asks; a new one begins at the end of the stream."""
        after = OFFSET_MAX if first else feed.last
        answer = await self._call(scripts.READ, stream_id, after, EVENTS_PER_READ_MAX, receive=checked)
        if answer[0] == scripts.UNKNOWN and not first:
            raise LogLost
        state, last, *frames = (scripts.CLOSED, 0) if answer[0] == scripts.UNKNOWN else answer
        if first:
            feed.last = last
        feed.closed = state == scripts.CLOSED and feed.last + len(frames) >= last
        feed.publish(frames)
        return bool(feed.last >= last)

    # ── Housekeeping ────────────────────────────────────────────────────────────────────────────────────────────────

    async def trim(self, *, closed_before: int) -> int:
        """Forget the events of streams closed before that instant."""
        trimmed, limit = 0, ("LIMIT", 0, TRIM_STREAMS_MAX)
        while due := await self._engine.run("ZRANGEBYSCORE", scripts.CLOSED_INDEX, "-inf", f"({closed_before}", *limit):
            names = [StreamId(name.decode()) for name in due]
            forgotten = [self._call(scripts.FORGET, name, closed_before, receive=checked) for name in names]
            trimmed += sum(answer[0] for answer in await asyncio.gather(*forgotten))
            await self._engine.run("ZREM", scripts.CLOSED_INDEX, *names)
        return trimmed

    async def forget(self, stream_id: StreamId) -> None:
        """Forget a closed stream now; `trim` drops it from its list in time."""
        await self._call(scripts.FORGET, stream_id, INSTANT_MAX, receive=checked)

    async def check(self) -> None:
        """See that the engine answers."""
        await self._engine.run("PING")

    async def close(self) -> None:
        """Carry out what is pending, end every tail, and let the engine go."""
        for held in self._held.values():
            for tail in tuple(held.tails):
                tail.close()
        await self._following.close()
        await end(*self._tasks)
        await self._engine.close()

    def _call(
        self, script: scripts.Script, stream_id: StreamId, *arguments: Any, receive: Any
    ) -> "asyncio.Future[Any]":
        return self._engine.call(script, scripts.keys(stream_id), *arguments, receive=receive)

    def _holding(self, lease: Lease) -> _Held:
        held = self._held.get(lease.stream_id)
        if held is None or held.lease.epoch != lease.epoch:
            raise LeaseLost
        return held

    def _let_go(self, held: _Held) -> None:
        """The stream is produced elsewhere from now on; readers here follow it there."""
        stream_id = held.lease.stream_id
        if self._held.get(stream_id) is held:
            del self._held[stream_id]
            if held.tails:
                task = asyncio.create_task(self._hand_over(stream_id, held), name="log-handover")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, stream_id: StreamId, held: _Held) -> None:
        feed: Feed | None = None
        try:
            feed = await self._following.follow(stream_id)
        except LogUnavailable as error:
            if stream_id not in self._held:
                held.cut(error)
        feed = self._held.get(stream_id, feed)
        if feed is not None:
            feed.adopt(held.tails)

    def _lost(self, away: LogAway) -> None:
        """The engine is away: what it has acknowledged may not outlive that, and readers come back when it is there."""
        for held in self._held.values():
            held.doubtful = True
            held.cut(away)
        self._following.cut(away)

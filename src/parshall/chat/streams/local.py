"""StreamLog in one process: a journal written on the event loop, and SQLite behind it.

Readers are woken once the journal has an event, where it survives a kill of the process. What the journal holds moves
to SQLite together, one row for all that a stream has brought meanwhile: a commit for each event would cost ten times as
much, and so would the hop to a thread. SQLite's write-ahead log is checkpointed by a second connection in a thread.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from parshall.chat.ports import EVENTS_PER_READ_MAX, KEPT, Bounds, Lease, LeaseLost, LogUnavailable
from parshall.chat.streams import pieces
from parshall.chat.streams.journal import Journal
from parshall.chat.streams.tail import FeedTail, Live
from parshall.kernel import metrics
from parshall.kernel.clock import Clock
from parshall.kernel.errors import StartupError
from parshall.kernel.ids import StreamId
from parshall.kernel.telemetry import log

CHECKPOINT_SECONDS = 2.0
MOVE_SECONDS = 1.0
"""How long the journal may hold an event before it moves on."""
MOVE_BYTES = 1 << 20
"""From this size on the journal moves at once."""
APPENDS_PER_TIMED = 8
"""One append in so many is timed: to note the time costs half as much as to write."""
JOURNAL_BYTES_MAX = 16 << 20
"""How much it may hold, and memory with it, while SQLite cannot take it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log_streams (
  key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
  lease_until INTEGER NOT NULL, closed_at INTEGER);
CREATE INDEX IF NOT EXISTS log_streams_closed ON log_streams (closed_at) WHERE closed_at IS NOT NULL;
"""
TRIM_STREAMS_MAX = 8
"""Streams forgotten in one go; more would hold up the loop."""
_TRIMMABLE = "SELECT key FROM log_streams WHERE closed_at < ? LIMIT ?"
_HELD = "SELECT 1 FROM log_streams WHERE id = ? AND lease_until > ? AND closed_at IS NULL"

_logger = log("streams")


@dataclass(slots=True, kw_only=True)
class _Kept(Live):
    key: int


@dataclass(slots=True)
class _Run:
    """What the journal holds of a stream, and SQLite does not."""

    key: int
    first: int
    frames: list[bytes]


class LocalStreamLog:
    """The stream log of a single process; the file must belong to this process alone."""

    def __init__(self, path: Path, *, clock: Clock, bounds: Bounds | None = None) -> None:
        """Open or make the log. Leases of an earlier process are void: it no longer runs. Raises StartupError."""
        self.bounds = bounds or Bounds()
        self._path = path
        self._clock = clock
        self._live: dict[StreamId, _Kept] = {}
        self._unmoved: dict[StreamId, _Run] = {}
        self._moving: asyncio.TimerHandle | None = None
        self._stuck = False
        self._reading = threading.Lock()
        try:
            self._writer = pieces.connect(path)
            self._writer.executescript(_SCHEMA)
            pieces.prepare(self._writer)
            self._writer.execute("UPDATE log_streams SET lease_until = 0 WHERE closed_at IS NULL")
            self._reader = pieces.connect(path)
            self._journal = Journal(path.with_suffix(".journal"))
            self._recover()
        except (sqlite3.DatabaseError, OSError) as error:
            raise StartupError(
                f"The stream log {path} cannot be used ({error}); move it away, no credit is lost."
            ) from error
        self._stopping = threading.Event()
        self._checkpointer = threading.Thread(target=self._checkpoint, name="log-checkpoint", daemon=True)
        self._checkpointer.start()

    async def acquire(self, stream_id: StreamId, *, owner: str, at: int, until: int) -> Lease | None:
        """Take the stream with the next epoch, unless it is closed or somebody's lease still runs."""
        row = self._execute(
            "INSERT INTO log_streams (id, epoch, owner, lease_until) VALUES (?, 1, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1, owner = excluded.owner, "
            "lease_until = excluded.lease_until WHERE lease_until <= ? AND closed_at IS NULL RETURNING key, epoch",
            (stream_id, owner, until, at),
        ).fetchone()
        if row is None:
            return None
        key, epoch = row
        last, size = (0, 0) if epoch == 1 else self._extent(key)
        lease = Lease(stream_id=stream_id, epoch=epoch, expires_at=until)
        previous = self._live.get(stream_id)
        self._live[stream_id] = live = _Kept(key=key, lease=lease, last=last, size=size)
        if previous is not None:
            live.adopt(previous.tails)
        return lease

    async def renew(self, lease: Lease, *, until: int) -> Lease:
        """Hold the lease until `until`."""
        live = self._held(lease)
        self._execute("UPDATE log_streams SET lease_until = ? WHERE key = ?", (until, live.key))
        live.lease = replace(lease, expires_at=until)
        return live.lease

    async def release(self, lease: Lease) -> None:
        """End the lease now; the stream stays open for whoever adopts it."""
        live = self._held(lease)
        self._execute("UPDATE log_streams SET lease_until = 0 WHERE key = ?", (live.key,))

    async def held(self, stream_ids: Sequence[StreamId], *, at: int) -> set[StreamId]:
        """Look each up."""
        return {each for each in stream_ids if self._execute(_HELD, (each, at)).fetchone() is not None}

    def append(self, lease: Lease, frames: Sequence[bytes], *, first_offset: int) -> Awaitable[None]:
        """Keep the frames, then let the readers see them: never the other way round. It is done at once."""
        live = self._held(lease)
        if first_offset != live.last + 1:
            raise LogUnavailable(f"The log expects event {live.last + 1} next; the producer has lost its place.")
        size = live.size + (len(frames[0]) if len(frames) == 1 else sum(map(len, frames)))
        if live.last + len(frames) > self.bounds.events_max or size > self.bounds.bytes_max:
            raise LogUnavailable("The log holds as much of this stream as it may.")
        if self._journal.size > JOURNAL_BYTES_MAX:
            raise LogUnavailable("The stream log cannot be written; free disk space or check the disk.")
        timed = first_offset % APPENDS_PER_TIMED == 1
        began = time.perf_counter() if timed else 0.0
        try:
            self._journal.write(live.key, first_offset, frames)
        except OSError as error:
            raise LogUnavailable(f"The stream log could not be written ({error}).") from error
        if timed:
            metrics.log_append_seconds.observe(time.perf_counter() - began)
        live.size = size
        self._note(live, first_offset, frames)
        live.publish(frames)
        if self._moving is None or self._journal.size > MOVE_BYTES:
            self._plan_move()
        return KEPT

    async def close_stream(self, lease: Lease) -> None:
        """End the stream; its readers end once they have read all of it."""
        live = self._held(lease)
        self._execute("UPDATE log_streams SET closed_at = ?, lease_until = 0 WHERE key = ?", (self._clock(), live.key))
        live.closed = True
        del self._live[lease.stream_id]
        live.wake()

    async def read(self, stream_id: StreamId, *, after: int, limit: int) -> tuple[list[bytes], bool]:
        """Frames from the file, in a thread."""
        if stream_id in self._unmoved:
            self._move()
        return await asyncio.to_thread(self._read, stream_id, after, min(limit, EVENTS_PER_READ_MAX))

    async def tail(self, stream_id: StreamId, *, after: int, silence_seconds: float) -> FeedTail:
        """Follow a stream that is produced here, or read out one that has ended."""
        return FeedTail(
            self.read, stream_id, feed=self._live.get(stream_id), after=after, silence_seconds=silence_seconds
        )

    async def trim(self, *, closed_before: int) -> int:
        """Forget the events of streams closed before that instant."""
        trimmed = 0
        self._move()
        while keys := self._execute(_TRIMMABLE, (closed_before, TRIM_STREAMS_MAX)).fetchall():
            for (key,) in keys:
                self._forget(key)
            trimmed += len(keys)
            await asyncio.sleep(0)  # let live streams commit in between
        return trimmed

    async def forget(self, stream_id: StreamId) -> None:
        """Forget a closed stream now."""
        self._move()
        query = "SELECT key FROM log_streams WHERE id = ? AND closed_at IS NOT NULL"
        for (key,) in self._execute(query, (stream_id,)).fetchall():
            self._forget(key)

    def _forget(self, key: int) -> None:
        """Forget a stream of which the journal holds nothing: it would come back, and perhaps under another's key."""
        pieces.forget(self._writer, key)
        self._execute("DELETE FROM log_streams WHERE key = ?", (key,))

    async def check(self) -> None:
        """See that the file can be read."""
        self._execute("SELECT count(*) FROM log_streams WHERE key = 0", ()).close()

    async def close(self) -> None:
        """Move everything, end every tail, and close the files. What cannot be moved waits for the next start."""
        with suppress(LogUnavailable):
            self._move()
        for live in self._live.values():
            for tail in tuple(live.tails):
                tail.close()
        if self._moving is not None:
            self._moving.cancel()
        self._stopping.set()
        await asyncio.to_thread(self._checkpointer.join)
        with self._reading:
            self._reader.close()
        self._writer.close()
        self._journal.close()

    def _held(self, lease: Lease) -> _Kept:
        live = self._live.get(lease.stream_id)
        if live is None or live.lease.epoch != lease.epoch:
            raise LeaseLost
        return live

    def _execute(self, statement: str, arguments: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._writer.execute(statement, arguments)
        except sqlite3.Error as error:
            raise LogUnavailable(
                f"The stream log could not be written ({error}); free disk space or check the disk."
            ) from error

    def _note(self, live: _Kept, first_offset: int, frames: Sequence[bytes]) -> None:
        run = self._unmoved.get(live.lease.stream_id)
        if run is None:
            self._unmoved[live.lease.stream_id] = _Run(live.key, first_offset, list(frames))
        else:
            run.frames += frames

    def _plan_move(self) -> None:
        if self._journal.size > MOVE_BYTES and not self._stuck:
            self._move_soon()
        elif self._moving is None:
            self._moving = asyncio.get_running_loop().call_later(MOVE_SECONDS, self._move_soon)

    def _move_soon(self) -> None:
        """Move; where SQLite cannot take it now, the journal goes on and it is tried again."""
        self._moving = None
        try:
            self._move()
        except LogUnavailable as error:
            if not self._stuck:
                _logger.warning("log_not_moved", reason=error.detail)
            self._stuck = True
            self._plan_move()

    def _move(self) -> None:
        """Bring everything to SQLite, in one commit, and begin the journal anew. Raises LogUnavailable."""
        if self._unmoved:
            self._insert(self._unmoved.values())
            self._unmoved = {}
            self._journal.clear()
        self._stuck = False

    def _extent(self, key: int) -> tuple[int, int]:
        self._move()
        return pieces.extent(self._writer, key)

    def _insert(self, runs: Iterable[_Run]) -> None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            pieces.insert(self._writer, ((run.key, run.first, run.frames) for run in runs))
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise LogUnavailable(f"The stream log could not be written ({error}).") from error

    def _recover(self) -> None:
        """Move what the process before this one left in the journal; what it had moved already is passed over."""
        runs: dict[int, _Run] = {}
        for record in self._journal.records():
            run = runs.get(record.key)
            if run is None:
                known = self._writer.execute("SELECT 1 FROM log_streams WHERE key = ?", (record.key,)).fetchone()
                first = pieces.extent(self._writer, record.key)[0] + 1
                run = runs[record.key] = _Run(record.key if known else 0, first, [])
            if record.offset == run.first + len(run.frames):
                run.frames.append(record.frame)
        self._insert(run for run in runs.values() if run.key)
        self._journal.clear()

    def _read(self, stream_id: StreamId, after: int, limit: int) -> tuple[list[bytes], bool]:
        with self._reading:
            self._reader.execute("BEGIN")
            try:
                stream = self._reader.execute(
                    "SELECT key, closed_at IS NOT NULL FROM log_streams WHERE id = ?", (stream_id,)
                ).fetchone()
                if stream is None:
                    return [], True
                frames = pieces.read(self._reader, stream[0], after=after, limit=limit)
            finally:
                self._reader.execute("COMMIT")
        return frames, bool(stream[1]) and len(frames) < limit

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the file beside the writers; the loop never pays for that."""
        connection = pieces.connect(self._path)
        try:
            while not self._stopping.wait(CHECKPOINT_SECONDS):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            connection.close()

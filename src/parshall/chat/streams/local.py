"""StreamLog in one process: SQLite on the event loop, one commit per loop turn, readers woken after the commit.

A thread hop per append would cost more than the commit itself, so the write-ahead log is written on the loop with
synchronous=NORMAL (it survives a kill of the process) and checkpointed by a second connection in a thread.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parshall.chat.ports import EVENTS_PER_READ_MAX, Bounds, Lease, LeaseLost, LogUnavailable
from parshall.chat.streams.tail import FeedTail, Live
from parshall.kernel import metrics
from parshall.kernel.clock import Clock
from parshall.kernel.errors import StartupError
from parshall.kernel.ids import StreamId

CHECKPOINT_SECONDS = 2.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log_streams (
  key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, owner TEXT NOT NULL,
  lease_until INTEGER NOT NULL, closed_at INTEGER);
CREATE INDEX IF NOT EXISTS log_streams_closed ON log_streams (closed_at) WHERE closed_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS log_events (
  key INTEGER NOT NULL, position INTEGER NOT NULL, frame BLOB NOT NULL, PRIMARY KEY (key, position)) WITHOUT ROWID;
"""
TRIM_STREAMS_MAX = 8
"""Streams forgotten in one go; more would hold up the loop."""
_TRIMMABLE = "SELECT key FROM log_streams WHERE closed_at < ? LIMIT ?"
_HELD = "SELECT 1 FROM log_streams WHERE id = ? AND lease_until > ? AND closed_at IS NULL"
_INSERT = "INSERT INTO log_events (key, position, frame) VALUES (?, ?, ?)"


_EXTENT = "SELECT coalesce(max(position), 0), coalesce(sum(length(frame)), 0) FROM log_events WHERE key = ?"


@dataclass(slots=True, kw_only=True)
class _Kept(Live):
    key: int


@dataclass(frozen=True, slots=True)
class _Append:
    live: _Kept
    frames: Sequence[bytes]
    first_offset: int
    kept: "asyncio.Future[None]"


class LocalStreamLog:
    """The stream log of a single process; the file must belong to this process alone."""

    def __init__(self, path: Path, *, clock: Clock, bounds: Bounds | None = None) -> None:
        """Open or make the log. Leases of an earlier process are void: it no longer runs. Raises StartupError."""
        self.bounds = bounds or Bounds()
        self._path = path
        self._clock = clock
        self._live: dict[StreamId, _Kept] = {}
        self._pending: list[_Append] = []
        self._pending_since = 0.0
        self._reading = threading.Lock()
        try:
            self._writer = _connect(path)
            self._writer.executescript(_SCHEMA)
            self._writer.execute("UPDATE log_streams SET lease_until = 0 WHERE closed_at IS NULL")
            self._reader = _connect(path)
        except sqlite3.DatabaseError as error:
            raise StartupError(
                f"The stream log {path} cannot be used ({error}); move it away, no credit is lost."
            ) from error
        self._stopping = threading.Event()
        self._checkpointer = threading.Thread(target=self._checkpoint, name="log-checkpoint", daemon=True)
        self._checkpointer.start()

    async def acquire(self, stream_id: StreamId, *, owner: str, at: int, until: int) -> Lease | None:
        """Take the stream with the next epoch, unless it is closed or somebody's lease still runs."""
        self._flush()
        row = self._execute(
            "INSERT INTO log_streams (id, epoch, owner, lease_until) VALUES (?, 1, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1, owner = excluded.owner, "
            "lease_until = excluded.lease_until WHERE lease_until <= ? AND closed_at IS NULL RETURNING key, epoch",
            (stream_id, owner, until, at),
        ).fetchone()
        if row is None:
            return None
        key, epoch = row
        last, size = self._execute(_EXTENT, (key,)).fetchone()
        lease = Lease(stream_id=stream_id, epoch=epoch, expires_at=until)
        previous = self._live.get(stream_id)
        self._live[stream_id] = live = _Kept(key=key, lease=lease, last=last, expected=last + 1, size=size)
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
        self._flush()
        self._execute("UPDATE log_streams SET lease_until = 0 WHERE key = ?", (live.key,))

    async def held(self, stream_ids: Sequence[StreamId], *, at: int) -> set[StreamId]:
        """Look each up."""
        return {each for each in stream_ids if self._execute(_HELD, (each, at)).fetchone() is not None}

    async def append(self, lease: Lease, frames: Sequence[bytes], *, first_offset: int) -> None:
        """Keep the frames with whatever else this loop turn brings, in one commit."""
        live = self._held(lease)
        if first_offset != live.expected:
            raise LogUnavailable(f"The log expects event {live.expected} next; the producer has lost its place.")
        size = live.size + sum(map(len, frames))
        if live.expected + len(frames) - 1 > self.bounds.events_max or size > self.bounds.bytes_max:
            raise LogUnavailable("The log holds as much of this stream as it may.")
        live.expected += len(frames)
        live.size = size
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[None] = loop.create_future()
        if not self._pending:
            self._pending_since = time.perf_counter()
            loop.call_soon(self._flush)
        self._pending.append(_Append(live, frames, first_offset, kept))
        await kept

    async def close_stream(self, lease: Lease) -> None:
        """End the stream; its readers end once they have read all of it."""
        live = self._held(lease)
        self._flush()
        self._execute("UPDATE log_streams SET closed_at = ?, lease_until = 0 WHERE key = ?", (self._clock(), live.key))
        live.closed = True
        del self._live[lease.stream_id]
        live.wake()

    async def read(self, stream_id: StreamId, *, after: int, limit: int) -> tuple[list[bytes], bool]:
        """Frames from the file, in a thread."""
        return await asyncio.to_thread(self._read, stream_id, after, min(limit, EVENTS_PER_READ_MAX))

    async def tail(self, stream_id: StreamId, *, after: int, silence_seconds: float) -> FeedTail:
        """Follow a stream that is produced here, or read out one that has ended."""
        return FeedTail(
            self.read, stream_id, feed=self._live.get(stream_id), after=after, silence_seconds=silence_seconds
        )

    async def trim(self, *, closed_before: int) -> int:
        """Forget the events of streams closed before that instant."""
        trimmed = 0
        while keys := self._execute(_TRIMMABLE, (closed_before, TRIM_STREAMS_MAX)).fetchall():
            for (key,) in keys:
                self._execute("DELETE FROM log_events WHERE key = ?", (key,))
                self._execute("DELETE FROM log_streams WHERE key = ?", (key,))
            trimmed += len(keys)
            await asyncio.sleep(0)  # let live streams commit in between
        return trimmed

    async def check(self) -> None:
        """See that the file can be read."""
        self._execute("SELECT count(*) FROM log_streams WHERE key = 0", ()).close()

    async def close(self) -> None:
        """Commit what is pending, end every tail, and close the file."""
        self._flush()
        for live in self._live.values():
            for tail in tuple(live.tails):
                tail.close()
        self._stopping.set()
        await asyncio.to_thread(self._checkpointer.join)
        with self._reading:
            self._reader.close()
        self._writer.close()

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

    def _flush(self) -> None:
        """Commit everything appended in this loop turn, then let the readers see it: never the other way round."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        try:
            self._commit(pending)
        except sqlite3.Error as error:
            self._refuse(pending, error)
            return
        metrics.log_append_seconds.observe(time.perf_counter() - self._pending_since)
        for append in pending:
            append.live.publish(append.frames)
            if not append.kept.done():
                append.kept.set_result(None)

    def _commit(self, pending: list[_Append]) -> None:
        rows = [
            (append.live.key, append.first_offset + index, frame)
            for append in pending
            for index, frame in enumerate(append.frames)
        ]
        self._writer.execute("BEGIN IMMEDIATE")
        self._writer.executemany(_INSERT, rows)
        self._writer.execute("COMMIT")

    def _refuse(self, pending: list[_Append], error: sqlite3.Error) -> None:
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")
        for append in pending:
            append.live.expected = append.live.last + 1
            append.live.size -= sum(map(len, append.frames))
            if not append.kept.done():
                append.kept.set_exception(LogUnavailable(f"The stream log could not be written ({error})."))

    def _read(self, stream_id: StreamId, after: int, limit: int) -> tuple[list[bytes], bool]:
        with self._reading:
            self._reader.execute("BEGIN")
            try:
                stream = self._reader.execute(
                    "SELECT key, closed_at IS NOT NULL FROM log_streams WHERE id = ?", (stream_id,)
                ).fetchone()
                if stream is None:
                    return [], True
                rows = self._reader.execute(
                    "SELECT frame FROM log_events WHERE key = ? AND position > ? ORDER BY position LIMIT ?",
                    (stream[0], after, limit),
                ).fetchall()
            finally:
                self._reader.execute("COMMIT")
        return [frame for (frame,) in rows], bool(stream[1]) and len(rows) < limit

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the file beside the writers; the loop never pays for that."""
        connection = _connect(self._path)
        try:
            while not self._stopping.wait(CHECKPOINT_SECONDS):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            connection.close()


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0", "cache_size=-8192"):
        connection.execute(f"PRAGMA {pragma}").close()
    return connection

"""Where the local log keeps events for good: rows of SQLite, each with a run of one stream's events."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

_SCHEMA = """
CREATE TABLE IF NOT EXISTS log_events (
  key INTEGER NOT NULL, position INTEGER NOT NULL, frame BLOB NOT NULL, PRIMARY KEY (key, position)) WITHOUT ROWID;
"""
_COLUMNS = "SELECT name FROM pragma_table_info('log_events')"
_ADD = "ALTER TABLE log_events ADD COLUMN events INTEGER NOT NULL DEFAULT 0"
"""How many events the row holds, packed; 0 where it is a single one as it stands, which older versions wrote."""
_INSERT = "INSERT INTO log_events (key, position, events, frame) VALUES (?, ?, ?, ?)"
_EXTENT = """
SELECT coalesce(max(position + max(events, 1) - 1), 0), coalesce(sum(length(frame)), 0) FROM log_events WHERE key = ?"""
_FROM = """
SELECT position, events, frame FROM log_events WHERE key = ?1 AND position >=
  coalesce((SELECT max(position) FROM log_events WHERE key = ?1 AND position <= ?2), 0) ORDER BY position"""
FRAMES_PER_ROW_MAX = 128

_unpack = msgspec.msgpack.Decoder(list[bytes]).decode
_pack = msgspec.msgpack.Encoder().encode


def connect(path: Path) -> sqlite3.Connection:
    """The log's file: a commit is in the kernel's hands without waiting for the disk."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0", "cache_size=-8192"):
        connection.execute(f"PRAGMA {pragma}").close()
    return connection


def prepare(connection: sqlite3.Connection) -> None:
    """Make the table, or bring it forward."""
    connection.executescript(_SCHEMA)
    if ("events",) not in connection.execute(_COLUMNS).fetchall():
        connection.execute(_ADD)


def extent(connection: sqlite3.Connection, key: int) -> tuple[int, int]:
    """The newest offset of a stream, and about how many bytes it has."""
    last, size = connection.execute(_EXTENT, (key,)).fetchone()
    return last, size


def insert(connection: sqlite3.Connection, runs: Iterable[tuple[int, int, Sequence[bytes]]]) -> None:
    """Keep runs of events: key, first offset, frames."""
    connection.executemany(_INSERT, _rows(runs))


def _rows(runs: Iterable[tuple[int, int, Sequence[bytes]]]) -> Iterator[tuple[int, int, int, bytes]]:
    for key, first, frames in runs:
        for start in range(0, len(frames), FRAMES_PER_ROW_MAX):
            part = frames[start : start + FRAMES_PER_ROW_MAX]
            yield key, first + start, len(part), _pack(part)


def read(connection: sqlite3.Connection, key: int, *, after: int, limit: int) -> list[bytes]:
    """At most `limit` frames after that offset."""
    found: list[bytes] = []
    for position, events, content in connection.execute(_FROM, (key, after + 1)):
        frames = _unpack(content) if events else [content]
        found += frames[max(0, after + 1 - position) :]
        if len(found) >= limit:
            break
    return found[:limit]


def forget(connection: sqlite3.Connection, key: int) -> None:
    """Delete a stream's events."""
    connection.execute("DELETE FROM log_events WHERE key = ?", (key,))

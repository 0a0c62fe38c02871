"""The local log's journal: what a kill, a torn write, a full disk or an older version leaves is found again."""

import asyncio
import errno
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from tests.contracts.streamlogs import OTHER, STREAM, Time, frames, take

from parshall.chat.ports import LogUnavailable
from parshall.chat.streams import journal, local
from parshall.chat.streams.journal import Journal, Record
from parshall.chat.streams.local import LocalStreamLog
from parshall.kernel.clock import SECOND


def killed(folder: Path, into: Path) -> LocalStreamLog:
    """What a process finds that starts when another was killed at this moment."""
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*-shm"))
    return LocalStreamLog(into / "streams.db", clock=Time())


def test_a_journal_that_was_cut_anywhere_gives_every_whole_record_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    kept = Journal(path)
    kept.write(1, 1, [b"one", b"", b"three"])
    kept.write(2, 7, [b"seven" * 50])
    kept.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        kept.write(1, 4, [b"late"])
    whole, content = (
        [Record(1, 1, b"one"), Record(1, 2, b""), Record(1, 3, b"three"), Record(2, 7, b"seven" * 50)],
        path.read_bytes(),
    )
    ends = [24 + 3, 24 * 2 + 3, 24 * 3 + 3 + 5, 24 * 4 + 3 + 5 + 250]
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        assert list(Journal(path).records()) == whole[: sum(end <= cut for end in ends)]


def test_a_journal_that_was_damaged_anywhere_gives_nothing_from_there_on(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path).write(1, 1, [b"%d" % offset for offset in range(1, 5)])
    content = path.read_bytes()
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert list(Journal(path).records()) == [Record(1, n, b"%d" % n) for n in range(1, at // 25 + 1)]


def test_a_write_that_the_disk_refuses_half_way_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Journal(tmp_path / "journal")
    kept.write(1, 1, [b"before"])
    write = os.write

    def full(file: int, content: bytes) -> int:
        if len(content) < 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content[:-20])

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        kept.write(1, 2, [b"too much" * 10])
    monkeypatch.undo()
    assert list(Journal(tmp_path / "journal").records()) == [Record(1, 1, b"before")], "what a kill would leave"
    kept.write(1, 2, [b"after"])
    assert list(Journal(tmp_path / "journal").records())[1:] == [Record(1, 2, b"after")]
    assert list(kept.records()) == [Record(1, 1, b"before"), Record(1, 2, b"after")]


async def test_what_moved_before_a_kill_and_is_in_the_journal_still_is_kept_once(tmp_path: Path) -> None:
    """The process dies between the commit to SQLite and the clearing of the journal."""
    (tmp_path / "a").mkdir()
    log = LocalStreamLog(tmp_path / "a" / "streams.db", clock=Time())
    lease = await take(log, time=Time())
    await log.append(lease, frames(1, 5), first_offset=1)
    before = (tmp_path / "a" / "streams.journal").read_bytes()
    await log.read(STREAM, after=0, limit=1)  # moves
    await log.append(lease, frames(6, 2), first_offset=6)
    after = (tmp_path / "a" / "streams.journal").read_bytes()
    (tmp_path / "a" / "streams.journal").write_bytes(before + after)
    found = killed(tmp_path / "a", tmp_path / "b")
    assert await found.read(STREAM, after=0, limit=100) == (frames(1, 7), False)
    assert await found.read(STREAM, after=3, limit=100) == (frames(4, 4), False)
    await found.close()
    await log.close()


async def test_events_behind_a_gap_are_not_kept(tmp_path: Path) -> None:
    """A loss of power may take a move to SQLite back, and not what the journal got after it."""
    path = tmp_path / "streams.db"
    log = LocalStreamLog(path, clock=Time())
    await take(log, time=Time())
    lease = await take(log, OTHER, time=Time())
    await log.append(lease, frames(1, 2), first_offset=1)
    log._journal.write(1, 3, frames(3, 1))
    log._journal.write(99, 1, frames(1, 1))
    found = killed(tmp_path, tmp_path.with_name(f"{tmp_path.name}-found"))
    assert (await found.read(STREAM, after=0, limit=9))[0] == []
    assert (await found.read(OTHER, after=0, limit=9))[0] == frames(1, 2)
    await found.close()
    await log.close()


async def test_a_log_of_an_older_version_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "streams.db"
    with sqlite3.connect(path) as old:
        old.executescript(
            "CREATE TABLE log_streams (key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, epoch INTEGER NOT NULL, "
            "owner TEXT NOT NULL, lease_until INTEGER NOT NULL, closed_at INTEGER);"
            "CREATE TABLE log_events (key INTEGER NOT NULL, position INTEGER NOT NULL, frame BLOB NOT NULL, "
            "PRIMARY KEY (key, position)) WITHOUT ROWID;"
        )
        old.execute("INSERT INTO log_streams VALUES (1, ?, 1, 'old', 0, NULL)", (STREAM,))
        old.executemany("INSERT INTO log_events VALUES (1, ?, ?)", list(enumerate(frames(1, 3), 1)))
    old.close()
    for _ in range(2):
        log = LocalStreamLog(path, clock=Time())
        assert await log.read(STREAM, after=1, limit=9) == (frames(2, 2), False)
        await log.close()
    log = LocalStreamLog(path, clock=Time())
    lease = await take(log, time=Time())
    await log.append(lease, frames(4, 300), first_offset=4)
    assert (await log.read(STREAM, after=1, limit=500))[0] == frames(2, 302)
    assert (await log.read(STREAM, after=200, limit=2))[0] == frames(201, 2)
    await log.close()


async def test_while_sqlite_cannot_take_more_the_journal_keeps_it_within_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "MOVE_BYTES", 1_000)
    monkeypatch.setattr(local, "JOURNAL_BYTES_MAX", 10_000)
    path = tmp_path / "streams.db"
    log = LocalStreamLog(path, clock=Time())
    lease = await take(log, time=Time(), until=SECOND)
    log._writer.execute("PRAGMA busy_timeout=0").close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    kept = 0
    with pytest.raises(LogUnavailable, match="free disk space"):
        for _ in range(1_000):
            await log.append(lease, frames(kept + 1, 10), first_offset=kept + 1)
            kept += 10
    assert 10_000 < log._journal.size < 11_000
    other.execute("ROLLBACK")
    assert (await log.read(STREAM, after=0, limit=1_000))[0] == frames(1, min(kept, 512))
    await log.append(lease, frames(kept + 1, 1), first_offset=kept + 1)
    assert log._journal.size < 100
    other.close()
    await log.close()


async def test_the_journal_moves_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "MOVE_SECONDS", 0.01)
    log = LocalStreamLog(tmp_path / "streams.db", clock=Time())
    lease = await take(log, time=Time())
    await log.append(lease, frames(1, 3), first_offset=1)
    assert log._journal.size > 0
    async with asyncio.timeout(5):
        while log._journal.size:
            await asyncio.sleep(0.005)
    assert (await log.read(STREAM, after=0, limit=9))[0] == frames(1, 3)
    await log.close()


async def test_what_was_forgotten_is_in_no_journal_and_comes_back_in_no_other_stream(tmp_path: Path) -> None:
    log = LocalStreamLog(tmp_path / "streams.db", clock=Time())
    lease = await take(log, time=Time())
    await log.append(lease, frames(1, 3), first_offset=1)
    await log.close_stream(lease)
    await log.forget(STREAM)
    await take(log, OTHER, time=Time())  # SQLite gives it the number that has become free
    found = killed(tmp_path, tmp_path.with_name(f"{tmp_path.name}-found"))
    for each in (log, found):
        assert await each.read(STREAM, after=0, limit=9) == ([], True)
        assert await each.read(OTHER, after=0, limit=9) == ([], False)
        await each.close()

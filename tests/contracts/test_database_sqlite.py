"""What the engine SQLite promises beyond the port Database."""

import asyncio
import contextlib
import errno
import itertools
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, select
from tests import migrated
from tests.contracts.tally_service import WAIT_SECONDS, put, tallies, within

from parshall.kernel.errors import StartupError, Unavailable
from parshall.kernel.grouping import BUSY_MILLISECONDS
from parshall.kernel.sqlite import SqliteDatabase


@pytest.mark.parametrize("content", [b"this is a text and no database " * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_corrupt_file_is_refused_by_name(tmp_path: Path, packages: dict[str, str], content: bytes) -> None:
    path = tmp_path / "ruined.db"
    path.write_bytes(content)
    with pytest.raises(StartupError, match=r"ruined\.db"):
        SqliteDatabase(path, package=packages["newer"])
    assert path.read_bytes() == content


def test_a_missing_folder_is_refused_by_name(tmp_path: Path, packages: dict[str, str]) -> None:
    with pytest.raises(StartupError, match="nowhere"):
        SqliteDatabase(tmp_path / "nowhere" / "some.db", package=packages["newer"])


@pytest.fixture
def database(tmp_path: Path, packages: dict[str, str]) -> SqliteDatabase:
    return SqliteDatabase(tmp_path / "some.db", package=packages["newer"])


def rows(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(tallies)).scalar_one()


# ── What is on the disk ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("brief", [True, False])
async def test_nobody_is_answered_before_the_commit_is_on_the_disk(
    database: SqliteDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    reached, done, files = threading.Event(), threading.Event(), []

    def to_disk(file: int) -> None:
        files.append(os.fstat(file).st_ino)
        reached.set()
        assert done.wait(WAIT_SECONDS)

    monkeypatch.setattr("parshall.kernel.sqlite._to_disk", to_disk)
    written = asyncio.create_task(database.write(put("hits"), brief=brief))
    await asyncio.to_thread(reached.wait, WAIT_SECONDS)
    assert await database.read(rows, brief=brief) == 1, "it is committed"
    await asyncio.sleep(0.02)
    assert not written.done()
    done.set()
    assert await within(written) == "hits"
    assert files == [(tmp_path / "some.db-wal").stat().st_ino]
    await database.close()


@pytest.mark.parametrize("brief", [True, False])
async def test_who_asks_for_less_does_not_wait_for_the_disk(
    tmp_path: Path, packages: dict[str, str], monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    def to_disk(_file: int) -> None:
        raise AssertionError("it was asked to")

    monkeypatch.setattr("parshall.kernel.sqlite._to_disk", to_disk)
    database = SqliteDatabase(tmp_path / "some.db", package=packages["newer"], synchronous="NORMAL")
    assert await within(database.write(put("hits"), brief=brief)) == "hits"
    await database.close()


async def test_an_answer_that_says_what_was_there_already_waits_for_the_disk_too(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it found may be what a neighbour has committed and nobody has heard of yet."""
    done = threading.Event()
    monkeypatch.setattr("parshall.kernel.sqlite._to_disk", lambda _file: done.wait(WAIT_SECONDS))
    first = asyncio.create_task(database.write(put("hits"), brief=True))
    await asyncio.sleep(0.02)
    again = asyncio.create_task(database.write(rows, brief=True))
    await asyncio.sleep(0.02)
    assert not first.done() and not again.done()
    done.set()
    assert await within(again) == 1
    await database.close()


@pytest.mark.parametrize("brief", [True, False])
async def test_a_disk_that_failed_once_is_not_believed_again(
    database: SqliteDatabase, tmp_path: Path, packages: dict[str, str], monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    """Linux may drop the pages that it could not write and report success at the next attempt."""
    await database.write(put("before"), brief=brief)
    failures = iter([OSError(errno.EIO, "Input/output error")])

    def to_disk(_file: int) -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr("parshall.kernel.sqlite._to_disk", to_disk)
    both = (database.write(put(name), brief=brief) for name in ("during", "with it"))
    for outcome in await within(asyncio.gather(*both, return_exceptions=True)):
        assert isinstance(outcome, Unavailable)
        assert "not known" in str(outcome.detail)
    for ask in (database.write(put("after"), brief=brief), database.read(rows, brief=brief)):
        with pytest.raises(Unavailable, match="restart"):
            await within(ask)
    await database.close()
    again = SqliteDatabase(tmp_path / "some.db", package=packages["newer"])
    assert await again.read(rows) >= 1
    assert await again.write(put("after")) == "after"
    await again.close()


async def test_the_log_of_commits_begins_anew_however_many_there_are(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself SQLite begins it anew where nobody has committed while it was moved, which under load is never."""
    monkeypatch.setattr("parshall.kernel.sqlite.CHECKPOINT_SECONDS", 0.005)
    monkeypatch.setattr("parshall.kernel.sqlite.LOG_PAGES_MAX", 100)
    until, number = time.monotonic() + 1, itertools.count()

    async def load() -> None:
        while time.monotonic() < until:
            await database.write(put(f"{next(number)}" + "x" * 2000), brief=True)

    await asyncio.gather(*(load() for _ in range(8)))
    written = await database.read(rows)
    assert written == next(number) > 200
    pages = -1
    while pages < 0:  # somebody else is just moving it
        _, pages, _ = await database.read(lambda c: c.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one())
    assert pages < written / 4, "each row took a page of it at least"
    await database.close()


# ── Others on the same file ─────────────────────────────────────────────────────────────────────────────────────────


async def test_brief_work_that_another_process_is_in_the_way_of_does_not_stop_the_loop(
    database: SqliteDatabase, tmp_path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "some.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        written = asyncio.create_task(database.write(put("hits"), brief=True))
        for _ in range(10):
            began = time.monotonic()
            await asyncio.sleep(0.005)
            assert time.monotonic() - began < BUSY_MILLISECONDS / 2000
            assert await database.read(rows, brief=True) == 0
        assert not written.done()
        other.execute("ROLLBACK")
    assert await within(written) == "hits"
    assert await database.read(rows, brief=True) == 1
    await database.close()


@pytest.mark.parametrize("brief", [True, False])
async def test_a_write_waits_for_another_process_and_then_says_so(
    tmp_path: Path, packages: dict[str, str], monkeypatch: pytest.MonkeyPatch, brief: bool
) -> None:
    monkeypatch.setattr("parshall.kernel.grouping.BUSY_MILLISECONDS", 200)
    path = tmp_path / "some.db"
    database = SqliteDatabase(path, package=packages["newer"])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="try again"):
        await within(database.write(put("hits"), brief=brief))
    other.execute("ROLLBACK")
    other.close()
    assert await within(database.write(put("hits"), brief=brief)) == "hits"
    assert await database.read(rows) == 1
    await database.close()


async def test_two_writers_on_one_file_both_get_through_under_load_without_a_word_of_a_lock(
    tmp_path: Path, packages: dict[str, str]
) -> None:
    """SQLite has no queue for its lock: who waits asks again and again, while the other one takes it at once."""
    path = tmp_path / "some.db"
    busy, other = (SqliteDatabase(path, package=packages["newer"]) for _ in range(2))
    ended, numbers, until = {busy: 0, other: 0}, itertools.count(), time.monotonic() + 1

    async def load(database: SqliteDatabase) -> None:
        while time.monotonic() < until:
            number = next(numbers)
            await database.write(put(f"hits-{number}"), brief=number % 2 == 0)
            ended[database] += 1

    await asyncio.gather(*(load(database) for database in [busy] * 32 + [other] * 4))
    assert min(ended.values()) > 0
    assert await busy.read(rows) == sum(ended.values())
    for database in (busy, other):
        await database.close()


@pytest.mark.parametrize("package", ["parshall.auth", "parshall.accounting", "parshall.chat"])
async def test_the_copies_that_tests_begin_with_are_what_a_new_file_comes_to_be(tmp_path: Path, package: str) -> None:
    await SqliteDatabase(tmp_path / "new.db", package=package).close()
    migrated.copy(package, tmp_path / "copied.db")
    new, copied = (described(tmp_path / name) for name in ("new.db", "copied.db"))
    assert new == copied


def described(path: Path) -> tuple[str, list[str]]:
    """How a file keeps its journal, and all that it holds."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0], list(connection.iterdump())

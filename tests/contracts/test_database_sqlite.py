"""What the engine SQLite promises beyond the port Database."""

import asyncio
import contextlib
import itertools
import sqlite3
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select
from tests import migrated
from tests.contracts.tally_service import put, tallies, within

from parshall.kernel.errors import StartupError, Unavailable
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


@pytest.mark.parametrize(("synchronous", "level"), [("FULL", 2), ("NORMAL", 1)])
async def test_commits_are_as_durable_as_asked(
    tmp_path: Path, packages: dict[str, str], synchronous: str, level: int
) -> None:
    database = SqliteDatabase(tmp_path / "some.db", package=packages["newer"], synchronous=synchronous)
    for ask in (database.write, database.read):
        assert await ask(lambda c: c.exec_driver_sql("PRAGMA synchronous").scalar()) == level
        assert await ask(lambda c: c.exec_driver_sql("PRAGMA journal_mode").scalar()) == "wal"
    await database.close()


async def test_a_write_waits_for_another_process_and_then_says_so(
    tmp_path: Path, packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("parshall.kernel.sqlite.BUSY_MILLISECONDS", 200)
    path = tmp_path / "some.db"
    database = SqliteDatabase(path, package=packages["newer"])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match="try again"):
        await within(database.write(put("hits")))
    other.execute("ROLLBACK")
    other.close()
    assert await within(database.write(put("hits"))) == "hits"
    assert await database.read(lambda c: c.execute(select(func.count()).select_from(tallies)).scalar_one()) == 1
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
            await database.write(put(f"hits-{next(numbers)}"))
            ended[database] += 1

    await asyncio.gather(*(load(database) for database in [busy] * 32 + [other] * 4))
    assert min(ended.values()) > 0
    kept = await busy.read(lambda c: c.execute(select(func.count()).select_from(tallies)).scalar_one())
    assert kept == sum(ended.values())
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

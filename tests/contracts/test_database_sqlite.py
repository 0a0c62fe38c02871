"""What the engine SQLite promises beyond the port Database."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import func, select
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

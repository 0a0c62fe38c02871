"""The laws of the port kernel.database.Database, run on every implementation of it."""

import asyncio
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import DatabaseError, IntegrityError
from tests.contracts.tally_service import BROKEN, FIRST, SECOND, put, tallies, write_package

from parshall.kernel.database import Database, T
from parshall.kernel.errors import StartupError, Unavailable
from parshall.kernel.sqlite import READERS_MAX, SqliteDatabase

WAIT_SECONDS = 30
Open = Callable[..., Database]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The service as it was, as it is, and with a migration that fails."""
    root = tmp_path_factory.mktemp("packages")
    sys.path.insert(0, str(root))
    yield {
        "older": write_package(root / "tally_older", FIRST),
        "newer": write_package(root / "tally_newer", FIRST, SECOND),
        "broken": write_package(root / "tally_broken", FIRST, BROKEN),
    }
    sys.path.remove(str(root))


@pytest.fixture(params=["sqlite"])
async def reopen(tmp_path: Path, packages: dict[str, str]) -> AsyncIterator[Open]:
    """Opens the one database of this test (again), by default as the newer version."""
    opened: list[Database] = []

    def open_(version: str = "newer") -> Database:
        opened.append(SqliteDatabase(tmp_path / "records?of 100%.db", package=packages[version]))
        return opened[-1]

    yield open_
    for database in opened:
        await database.close()


@pytest.fixture
async def database(reopen: Open) -> Database:
    database = reopen()
    await database.write(lambda c: c.execute(insert(tallies).values(name="hits", count=0)).rowcount)
    return database


def count_of(name: str) -> Callable[[Connection], int | None]:
    return lambda c: c.execute(select(tallies.c.count).where(tallies.c.name == name)).scalar()


def add(name: str, amount: int = 1) -> Callable[[Connection], int]:
    statement = update(tallies).where(tallies.c.name == name).values(count=tallies.c.count + amount)
    return lambda c: c.execute(statement.returning(tallies.c.count)).scalar_one()


async def within(awaitable: Awaitable[T]) -> T:
    """A caller that is never answered fails here instead of hanging the run."""
    return await asyncio.wait_for(awaitable, WAIT_SECONDS)


# ── Units of work ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_what_was_written_is_there_for_every_later_read(database: Database) -> None:
    assert await database.write(add("hits", 3)) == 3
    assert await database.read(count_of("hits")) == 3


async def test_what_was_written_is_there_after_closing_and_opening_again(database: Database, reopen: Open) -> None:
    await database.write(add("hits", 3))
    await database.close()
    assert await reopen().read(count_of("hits")) == 3


async def test_an_exception_undoes_the_whole_unit_and_reaches_its_caller(database: Database) -> None:
    def fails(connection: Connection) -> None:
        add("hits")(connection)
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        await database.write(fails)
    assert await database.read(count_of("hits")) == 0


async def test_a_refused_statement_undoes_the_whole_unit(database: Database) -> None:
    with pytest.raises(IntegrityError):
        await database.write(lambda c: (add("hits")(c), put("hits")(c)))
    assert await database.read(count_of("hits")) == 0


@pytest.mark.parametrize("failure", [LookupError, AssertionError, StopIteration, SystemExit])
async def test_a_failing_unit_undoes_nothing_of_its_neighbours(
    database: Database, failure: type[BaseException]
) -> None:
    """All units are queued while the writer is held, so that they share a commit."""
    held = threading.Event()

    def fails(connection: Connection) -> None:
        add("hits", 1000)(connection)
        raise failure

    async def caught() -> str:
        try:
            await database.write(fails)
        except BaseException as error:
            return type(error).__name__
        return "nothing was raised"

    holder = asyncio.create_task(database.write(lambda _c: held.wait(WAIT_SECONDS)))
    neighbours = [database.write(add("hits")) for _ in range(10)]
    units = asyncio.gather(*neighbours[:5], caught(), *neighbours[5:])
    await asyncio.sleep(0.05)
    held.set()
    answers = await within(units)
    assert await holder
    assert answers[5] == {StopIteration: "RuntimeError"}.get(failure, failure.__name__)
    assert [*answers[:5], *answers[6:]] == list(range(1, 11))
    assert await database.read(count_of("hits")) == 10


async def test_concurrent_increments_lose_nothing_and_each_sees_its_own(database: Database) -> None:
    answers = await within(asyncio.gather(*(database.write(add("hits")) for _ in range(500))))
    assert sorted(answers) == list(range(1, 501))
    assert await database.read(count_of("hits")) == 500


async def test_a_cancelled_callers_write_happens_wholly_or_not_at_all(database: Database) -> None:
    def pair(number: int) -> Callable[[Connection], tuple[str, str]]:
        return lambda c: (put(f"left-{number}")(c), put(f"right-{number}")(c))

    tasks = [asyncio.create_task(database.write(pair(number))) for number in range(200)]
    for number, task in enumerate(tasks):
        if number % 2:
            await asyncio.sleep(0)
            task.cancel()
    outcomes = await within(asyncio.gather(*tasks, return_exceptions=True))
    await database.write(add("hits"))
    names = await database.read(lambda c: set(c.execute(select(tallies.c.name)).scalars()))
    for number, outcome in enumerate(outcomes):
        halves = {f"left-{number}", f"right-{number}"} & names
        assert len(halves) in ((2,) if isinstance(outcome, tuple) else (0, 2))


# ── Reads ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_read_sees_one_snapshot_whatever_is_written_meanwhile(database: Database) -> None:
    loop = asyncio.get_running_loop()

    def looks_twice(connection: Connection) -> tuple[int | None, int | None]:
        before = count_of("hits")(connection)
        asyncio.run_coroutine_threadsafe(database.write(add("hits")), loop).result(WAIT_SECONDS)
        return before, count_of("hits")(connection)

    assert await within(database.read(looks_twice)) == (0, 0)
    assert await database.read(count_of("hits")) == 1


async def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseError):
        await database.read(add("hits"))
    assert await database.read(count_of("hits")) == 0
    assert await database.write(add("hits")) == 1


async def test_a_read_that_fails_leaves_the_reader_usable(database: Database) -> None:
    for failure in (LookupError, StopIteration):
        with pytest.raises((LookupError, RuntimeError)):
            await within(database.read(lambda c, failure=failure: (_ for _ in ()).throw(failure)))
    reads = [database.read(count_of("hits")) for _ in range(READERS_MAX * 5)]
    assert await within(asyncio.gather(*reads)) == [0] * READERS_MAX * 5


# ── Closing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_closing_commits_what_was_queued(database: Database, reopen: Open) -> None:
    queued = [asyncio.create_task(database.write(add("hits"))) for _ in range(400)]
    await asyncio.sleep(0)
    await within(database.close())
    assert len(await within(asyncio.gather(*queued))) == 400
    assert await reopen().read(count_of("hits")) == 400


async def test_a_closed_database_refuses_reads_and_writes_and_closes_again(database: Database) -> None:
    await database.close()
    with pytest.raises(Unavailable):
        await database.write(add("hits"))
    with pytest.raises(Unavailable):
        await database.read(count_of("hits"))
    await within(database.close())


async def test_closing_waits_for_running_reads_without_stopping_the_loop(database: Database) -> None:
    loop = asyncio.get_running_loop()

    def needs_the_loop(connection: Connection) -> int | None:
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), loop).result(WAIT_SECONDS)
        return count_of("hits")(connection)

    reading = asyncio.create_task(database.read(needs_the_loop))
    await asyncio.sleep(0.02)
    await within(database.close())
    assert reading.done() and reading.result() == 0


# ── Migrations ──────────────────────────────────────────────────────────────────────────────────────────────────────


def labels(connection: Connection) -> int:
    return connection.exec_driver_sql("SELECT count(*) FROM labels").scalar_one()


async def test_an_older_database_is_brought_forward_with_its_records(reopen: Open) -> None:
    older = reopen("older")
    await older.write(put("kept"))
    with pytest.raises(DatabaseError):
        await older.read(labels)
    await older.close()
    newer = reopen("newer")
    assert await newer.read(labels) == 0
    assert await newer.read(count_of("kept")) == 1


async def test_each_migration_runs_once(reopen: Open) -> None:
    for _ in range(3):
        database = reopen()
        await database.close()
    versions = await reopen().read(lambda c: c.exec_driver_sql("SELECT version_num FROM tally_version").all())
    assert [tuple(row) for row in versions] == [("0002",)]


async def test_a_failing_migration_changes_nothing_and_says_which_database(reopen: Open) -> None:
    older = reopen("older")
    await older.write(put("kept"))
    await older.close()
    with pytest.raises(StartupError, match="records"):
        reopen("broken")
    older = reopen("older")
    assert await older.read(count_of("kept")) == 1
    with pytest.raises(DatabaseError):
        await older.read(labels)


async def test_a_database_of_a_newer_version_is_refused_in_one_sentence(reopen: Open) -> None:
    await reopen("newer").close()
    with pytest.raises(StartupError, match=r"records.*version"):
        reopen("older")


# ── SQLite alone ────────────────────────────────────────────────────────────────────────────────────────────────────


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

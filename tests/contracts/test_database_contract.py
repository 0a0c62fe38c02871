"""The laws of the port kernel.database.Database, run on every implementation of it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Boolean, Connection, bindparam, insert, select, type_coerce, update
from sqlalchemy.exc import DatabaseError, IntegrityError
from tests.contracts.tally_service import WAIT_SECONDS, add, count_of, put, tallies, within

from parshall.kernel.anytext import AnyText
from parshall.kernel.bulk import Bulk, Row, query, run
from parshall.kernel.clock import MINUTE, now
from parshall.kernel.database import Database, T, Work
from parshall.kernel.errors import StartupError, Unavailable
from parshall.kernel.fixed import Fixed
from parshall.kernel.postgres import PostgresDatabase
from parshall.kernel.sqlite import READERS_MAX, SqliteDatabase

Open = Callable[..., Database]


class Brief(SqliteDatabase):
    """All work is brief that does not say otherwise."""

    async def read(self, work: Work[T], *, brief: bool = True) -> T:
        return await super().read(work, brief=brief)

    async def write(self, work: Work[T], *, brief: bool = True) -> T:
        return await super().write(work, brief=brief)


@pytest.fixture(params=["sqlite", "sqlite, briefly", "postgres"])
async def reopen(request: pytest.FixtureRequest, tmp_path: Path, packages: dict[str, str]) -> AsyncIterator[Open]:
    """Opens the one database of this test (again), by default as the newer version."""
    opened: list[Database] = []
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None

    def open_(version: str = "newer", **options: Any) -> Database:
        if url is None:
            path = tmp_path / "records?of 100%.db"
            kind = Brief if "briefly" in request.param else SqliteDatabase
            opened.append(kind(path, package=packages[version], **options))
        else:
            opened.append(PostgresDatabase(url, package=packages[version], **options))
        return opened[-1]

    yield open_
    for database in opened:
        await database.close()


@pytest.fixture
async def database(reopen: Open) -> Database:
    database = reopen()
    await database.write(lambda c: c.execute(insert(tallies).values(name="hits", count=0)).rowcount)
    return database


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


async def test_statements_for_the_driver_are_carried_out_in_their_order(database: Database) -> None:
    bulk = Bulk(tallies, key="name")
    text = f"{bulk.select} WHERE name IN {{keys}} AND count > {{value}} ORDER BY name"

    def work(connection: Connection) -> list[list[Row]]:
        found = query(connection, text, ["a", "b", "c"], 1)
        made = bulk.insert(connection, [("a", 1), ("b", 2), ("c", 3)])
        raised = bulk.update(connection, ("count",), [("a", 10)])
        return run(connection, [found, *made, found, *raised, *bulk.delete(connection, ["b"]), found])

    first, *answers = await database.write(work)
    assert first == []
    assert [each for each in answers if each] == [[("b", 2), ("c", 3)], [("a", 10), ("c", 3)]]
    assert await database.read(count_of("a")) == 10


@pytest.mark.parametrize("odd", ['"', "\\", '","', '\\"', "{}", "", " ", "NULL", "é\u2028\n\t'%s"])
async def test_keys_of_any_letters_are_found_as_they_are(database: Database, odd: str) -> None:
    bulk = Bulk(tallies, key="name")
    names = [odd, f"a{odd}", f"{odd}b{odd}"]

    def work(connection: Connection) -> list[list[Row]]:
        made = bulk.insert(connection, [(name, 1) for name in [*names, "c"]])
        one = query(connection, f"{bulk.select} WHERE name IN {{keys}}", names[:1])
        all_three = query(connection, f"{bulk.select} WHERE name IN {{keys}}", names)
        none = query(connection, f"{bulk.select} WHERE name IN {{keys}}", [])
        return run(connection, [*made, one, all_three, none])[-3:]

    found = [[name for name, _ in rows] for rows in await database.write(work)]
    assert [sorted(each) for each in found] == [[odd], sorted(names), []]


async def test_a_statement_refused_by_the_driver_undoes_the_whole_unit(database: Database) -> None:
    def work(connection: Connection) -> None:
        put("others")(connection)
        run(connection, Bulk(tallies, key="name").insert(connection, [("others again", 1), ("hits", 1)]))

    with pytest.raises(IntegrityError):
        await database.write(work)
    assert await database.write(put("others")) == "others"
    assert await database.read(count_of("hits")) == 0


@pytest.mark.parametrize("failure", [LookupError, AssertionError, StopIteration, SystemExit])
async def test_a_failing_unit_undoes_nothing_of_its_neighbours(
    database: Database, failure: type[BaseException]
) -> None:
    """All units are queued while a writer is held, so that on SQLite they share a commit."""
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

    holder = asyncio.create_task(database.write(lambda _c: held.wait(WAIT_SECONDS), brief=False))
    neighbours = [database.write(add("hits")) for _ in range(10)]
    units = asyncio.gather(*neighbours[:5], caught(), *neighbours[5:])
    await asyncio.sleep(0.05)
    held.set()
    answers = await within(units)
    assert await holder
    assert answers[5] == {StopIteration: "RuntimeError"}.get(failure, failure.__name__)
    assert sorted([*answers[:5], *answers[6:]]) == list(range(1, 11))  # side by side they come in any order
    assert await database.read(count_of("hits")) == 10


async def test_concurrent_increments_lose_nothing_and_each_sees_its_own(database: Database) -> None:
    answers = await within(asyncio.gather(*(database.write(add("hits")) for _ in range(500))))
    assert sorted(answers) == list(range(1, 501))
    assert await database.read(count_of("hits")) == 500


async def test_two_replicas_lose_no_update_of_each_other(database: Database, reopen: Open) -> None:
    replicas = (database, reopen())
    answers = await within(asyncio.gather(*(replicas[n % 2].write(add("hits")) for n in range(200))))
    assert sorted(answers) == list(range(1, 201))
    for replica in replicas:
        assert await replica.read(count_of("hits")) == 200


async def test_what_one_replica_has_acknowledged_the_other_reads_at_once(database: Database, reopen: Open) -> None:
    other = reopen()
    for number in range(1, 50):
        await database.write(add("hits"))
        assert await other.read(count_of("hits")) == number


async def test_of_replicas_that_make_a_row_where_there_is_none_one_does_and_no_one_fails(
    database: Database, reopen: Open
) -> None:
    replicas = (database, reopen())

    def make(name: str) -> Callable[[Connection], str]:
        return lambda c: "found" if count_of(name)(c) is not None else f"made {put(name)(c)}"

    for number in range(20):
        answers = await within(asyncio.gather(*(replicas[n % 2].write(make(f"row-{number}")) for n in range(6))))
        assert sorted(answers) == ["found"] * 5 + [f"made row-{number}"]


async def test_the_version_is_the_same_only_where_nobody_has_written_since(database: Database, reopen: Open) -> None:
    async def now_at() -> object:
        return await database.write(database.version)

    begun = await now_at()
    if begun is None:
        return  # it cannot be told
    assert await now_at() == begun
    other = reopen()
    await other.write(add("hits"))
    after_another = await now_at()
    assert after_another != begun
    await database.write(add("hits"))
    after_itself = await now_at()
    assert after_itself not in (begun, after_another)
    assert await database.write(lambda c: (add("hits")(c), database.version(c))[1]) == await now_at()
    assert await now_at() not in (begun, after_another, after_itself)


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

    assert await within(database.read(looks_twice, brief=False)) == (0, 0)
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


# ── Time ────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_instant_is_that_of_the_clock_that_was_handed_in(reopen: Open) -> None:
    instants = iter([5, 7])
    database = reopen(clock=lambda: next(instants))
    assert await database.write(database.instant) == 5
    assert await database.read(database.instant) == 7


async def test_without_a_clock_the_instant_goes_on_within_a_unit_of_work(database: Database) -> None:
    first, second = await database.read(lambda c: (database.instant(c), database.instant(c)))
    assert abs(first - now()) < MINUTE, "one machine, one time"
    assert first <= second
    assert first < await database.write(database.instant)


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

    reading = asyncio.create_task(database.read(needs_the_loop, brief=False))
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


# ── Statements that never change ────────────────────────────────────────────────────────────────────────────────────

_PUT = Fixed(insert(tallies), "name", "count")
_ADD = Fixed(
    update(tallies).where(tallies.c.name == bindparam("which")).values(count=tallies.c.count + bindparam("more"))
)
_FIND = Fixed(
    select(type_coerce(tallies.c.count, Boolean), type_coerce(tallies.c.name, AnyText), tallies.c.count)
    .where(tallies.c.count >= bindparam("least"), tallies.c.count <= bindparam("most"), tallies.c.count != 7)
    .order_by(tallies.c.count, tallies.c.name)
)
_LABEL = Fixed(select(type_coerce(bindparam("text", type_=AnyText), AnyText)))


async def test_a_fixed_statement_does_what_the_same_one_does_in_the_usual_way(database: Database) -> None:
    await database.write(lambda c: [_PUT.run(c, {"name": name, "count": at}) for at, name in enumerate("abc")])
    assert await database.write(lambda c: _ADD.run(c, {"which": "c", "more": 40})) == 1
    assert await database.write(lambda c: _ADD.run(c, {"which": "nobody", "more": 40})) == 0
    counts = {name: await database.read(count_of(name)) for name in ("a", "b", "c", "hits")}
    assert counts == {"a": 0, "b": 1, "c": 42, "hits": 0}
    bounds = {"most": 50, "least": 1}
    assert await database.read(lambda c: [tuple(row) for row in _FIND.rows(c, bounds)][-1][1:]) == ("c", 42)
    assert await database.read(lambda c: _FIND.row(c, {"least": 5, "most": 6})) is None


async def test_values_of_a_fixed_statement_are_kept_and_given_as_their_types_want_it(database: Database) -> None:
    for text in ("plain", "a\0b", "\ufdd0", "\ufdd00\0"):
        assert await database.read(lambda c, text=text: _LABEL.row(c, {"text": text})) == (text,)
    truth = Fixed(select(type_coerce(bindparam("value", type_=Boolean), Boolean)))
    for value in (True, False):
        row = await database.read(lambda c, value=value: truth.row(c, {"value": value}))
        assert row is not None and row[0] is value


async def test_what_a_fixed_statement_breaks_is_told_as_always_and_undone(database: Database) -> None:
    def work(connection: Connection) -> None:
        _PUT.run(connection, {"name": "new", "count": 1})
        _PUT.run(connection, {"name": "hits", "count": 1})

    with pytest.raises(IntegrityError):
        await database.write(work)
    assert await database.read(count_of("hits")) == 0
    assert await database.read(lambda c: _FIND.rows(c, {"least": 0, "most": 9})) == [(False, "hits", 0)]

"""What the engine PostgreSQL promises beyond the port Database: races, replicas, and servers that come and go."""

import asyncio
import itertools
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from sqlalchemy import Connection, create_engine, inspect, select
from sqlalchemy.exc import IntegrityError
from tests.contracts.tally_service import WAIT_SECONDS, add, count_of, put, tallies, within
from tests.postgres import Server

from parshall.kernel import postgres
from parshall.kernel.bulk import query, run
from parshall.kernel.database import Work
from parshall.kernel.errors import StartupError, Unavailable
from parshall.kernel.postgres import CONNECTIONS, TRIES_MAX, PostgresDatabase

Open = Callable[..., PostgresDatabase]
LOSE_THE_CONNECTION = "SELECT pg_terminate_backend(pg_backend_pid())"


@pytest.fixture
async def reopen(postgres_url: str, packages: dict[str, str]) -> AsyncIterator[Open]:
    """Opens the one database of this test: again, as another replica of the service."""
    opened: list[PostgresDatabase] = []

    def open_(url: str = postgres_url, **options: int) -> PostgresDatabase:
        opened.append(PostgresDatabase(url, package=packages["newer"], **options))
        return opened[-1]

    yield open_
    for database in opened:
        await database.close()


@pytest.fixture
async def database(reopen: Open) -> PostgresDatabase:
    database = reopen()
    await database.write(put("hits"))
    return database


@pytest.fixture
def outside(postgres_url: str) -> Iterator[psycopg.Connection]:
    """Somebody else's connection to the database of this test."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


def meeting(works: int) -> Callable[[], None]:
    """A place where so many units of work wait for each other, on their first run only."""
    barrier, places = threading.Barrier(works), itertools.count()

    def wait() -> None:
        if next(places) < works:
            barrier.wait(WAIT_SECONDS)

    return wait


@pytest.mark.parametrize("default", ["serializable", "repeatable read"])
async def test_whatever_the_server_isolates_by_default_writes_see_what_is_committed_and_reads_a_snapshot(
    default: str, reopen: Open, postgres_url: str, outside: psycopg.Connection
) -> None:
    """Under the others a void would look past the reservation whose account it has waited for."""
    name = outside.info.dbname
    outside.execute(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = '{default}'")
    database = reopen()

    def level(connection: Connection) -> str:
        return str(connection.exec_driver_sql("SHOW transaction_isolation").scalar_one())

    assert (await database.write(level), await database.read(level)) == ("read committed", "repeatable read")


# ── Races ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_unit_that_lost_the_race_for_a_new_row_runs_again_and_finds_it(
    database: PostgresDatabase, reopen: Open
) -> None:
    meet, runs = meeting(2), []

    def make(connection: Connection) -> str:
        runs.append(1)
        if count_of("new")(connection) is not None:
            return "found"
        meet()
        return put("new")(connection)

    other = reopen()
    assert sorted(await within(asyncio.gather(database.write(make), other.write(make)))) == ["found", "new"]
    assert len(runs) == 3


async def test_a_row_that_is_there_for_good_is_refused_after_a_few_runs(database: PostgresDatabase) -> None:
    runs: list[int] = []
    with pytest.raises(IntegrityError):
        await within(database.write(lambda c: (runs.append(1), put("hits")(c))))
    assert len(runs) == TRIES_MAX


async def test_of_two_units_in_a_deadlock_both_succeed(database: PostgresDatabase, reopen: Open) -> None:
    await database.write(put("misses"))
    meet = meeting(2)

    def both(first: str, second: str) -> Callable[[Connection], int]:
        def work(connection: Connection) -> int:
            add(first)(connection)
            meet()
            return add(second)(connection)

        return work

    await within(asyncio.gather(database.write(both("hits", "misses")), reopen().write(both("misses", "hits"))))
    assert await database.read(lambda c: (count_of("hits")(c), count_of("misses")(c))) == (3, 3)


async def test_a_unit_that_hides_a_refused_statement_is_not_called_kept(database: PostgresDatabase) -> None:
    def hides(connection: Connection) -> str:
        add("hits")(connection)
        try:
            put("hits")(connection)
        except IntegrityError:
            pass
        return "done"

    with pytest.raises(RuntimeError, match="went on"):
        await within(database.write(hides))
    assert await database.read(count_of("hits")) == 1


async def test_a_deadlock_that_the_driver_meets_is_run_again(database: PostgresDatabase, reopen: Open) -> None:
    await database.write(put("misses"))
    meet = meeting(2)
    one_more = "UPDATE tallies SET count = count + 1 WHERE name IN {keys}"

    def both(first: str, second: str) -> Callable[[Connection], None]:
        def work(connection: Connection) -> None:
            for name in (first, second):
                run(connection, [query(connection, one_more, [name])])
                meet()

        return work

    await within(asyncio.gather(database.write(both("hits", "misses")), reopen().write(both("misses", "hits"))))
    assert await database.read(lambda c: (count_of("hits")(c), count_of("misses")(c))) == (3, 3)


async def test_what_is_written_is_found_by_index_however_small_a_table_is(database: PostgresDatabase) -> None:
    """A plan that was made when the table was small is kept while it grows."""
    update = "EXPLAIN UPDATE tallies SET count = 1 WHERE name IN {keys}"
    joined = "EXPLAIN UPDATE tallies t SET count = 1 FROM jsonb_array_elements('[[\"hits\"]]') v WHERE t.name = (v->>0)"

    def plans(connection: Connection) -> list[str]:
        found = run(connection, [query(connection, update, ["hits"]), (joined, ())])
        return ["\n".join(row[0] for row in rows) for rows in found]

    for plan in await database.write(plans):
        assert "Index Scan" in plan and "Seq Scan" not in plan and "Hash" not in plan


async def test_a_refusal_that_comes_with_the_commit_reaches_the_caller_and_keeps_nothing(
    database: PostgresDatabase, outside: psycopg.Connection
) -> None:
    outside.execute("CREATE TABLE parts (whole text REFERENCES tallies (name) DEFERRABLE INITIALLY DEFERRED)")

    def orphan(connection: Connection) -> None:
        add("hits")(connection)
        connection.exec_driver_sql("INSERT INTO parts VALUES ('nothing')")

    with pytest.raises(IntegrityError):
        await within(database.write(orphan))
    assert await database.read(count_of("hits")) == 1


async def test_a_lock_that_is_not_given_in_time_is_said_and_nothing_is_kept(
    reopen: Open, outside: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    sooner = postgres.SESSION_OF_WRITES.replace("lock_timeout = '10s'", "lock_timeout = '100ms'")
    assert sooner != postgres.SESSION_OF_WRITES, "a writer says how long it waits"
    monkeypatch.setattr(postgres, "SESSION_OF_WRITES", sooner)
    database = reopen()
    await database.write(put("hits"))
    with outside.transaction():
        outside.execute("SELECT 1 FROM tallies FOR UPDATE")
        with pytest.raises(Unavailable, match="nothing was kept"):
            await within(database.write(add("hits")))
    assert await within(database.write(add("hits"))) == 2


# ── Connections ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_when_every_connection_is_busy_a_unit_is_refused_in_time_and_never_runs(
    database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "BUSY_SECONDS_MAX", 0.2)
    release, busy = threading.Event(), threading.Semaphore(0)

    def holds(connection: Connection) -> None:
        add("hits")(connection) if count_of("held")(connection) else None
        busy.release()
        assert release.wait(WAIT_SECONDS)

    holders = [asyncio.create_task(database.write(holds)) for _ in range(CONNECTIONS // 2)]
    for _ in holders:
        assert await asyncio.to_thread(busy.acquire, timeout=WAIT_SECONDS)
    refused = await within(asyncio.gather(*(database.write(add("hits")) for _ in range(20)), return_exceptions=True))
    assert [type(answer) for answer in refused] == [Unavailable] * 20
    assert all(answer.headers["Retry-After"] == "1" for answer in refused if isinstance(answer, Unavailable))
    assert await within(database.read(count_of("hits"))) == 1, "reads have connections of their own"
    release.set()
    await within(asyncio.gather(*holders))
    assert await within(database.write(add("hits"))) == 2


async def test_more_units_than_there_is_room_for_are_refused_at_once(
    reopen: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "UNITS_MAX", 3)
    database = reopen()
    release = threading.Event()
    held = [asyncio.create_task(database.write(lambda _c: release.wait(WAIT_SECONDS))) for _ in range(3)]
    await asyncio.sleep(0)
    for ask in (database.read, database.write):
        with pytest.raises(Unavailable, match="nothing was kept"):
            await ask(count_of("hits"))
    release.set()
    await within(asyncio.gather(*held))
    assert await within(database.write(put("hits"))) == "hits"


async def test_a_caller_cancelled_while_it_waits_for_a_connection_is_told_so(database: PostgresDatabase) -> None:
    release = threading.Event()
    holders = [asyncio.create_task(database.write(lambda _c: release.wait(WAIT_SECONDS))) for _ in range(CONNECTIONS)]
    waiting = asyncio.create_task(database.write(add("hits")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(waiting)
    release.set()
    await within(asyncio.gather(*holders))
    await database.close()


async def test_a_service_never_has_more_connections_than_it_may(reopen: Open, outside: psycopg.Connection) -> None:
    database = reopen(connections=5)
    await database.write(put("hits"))
    writes, reads = (
        (database.write(add("hits")) for _ in range(100)),
        (database.read(count_of("hits")) for _ in range(100)),
    )
    await within(asyncio.gather(*writes, *reads))
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    row = outside.execute(others).fetchone()
    assert row is not None
    assert 2 <= row[0] <= 5


def through_sqlalchemy(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement)


def through_the_driver(connection: Connection, statement: str) -> None:
    run(connection, [(statement, ())])


both_ways = pytest.mark.parametrize("execute", [through_sqlalchemy, through_the_driver])


@both_ways
async def test_a_connection_lost_before_the_commit_costs_another_run_and_no_error(
    database: PostgresDatabase, execute: Callable[[Connection, str], None]
) -> None:
    for ask, work in ((database.write, add("hits")), (database.read, count_of("hits"))):
        runs: list[int | None] = []

        def loses(connection: Connection, work: Work[int | None] = work, runs: list[int | None] = runs) -> int | None:
            runs.append(work(connection))
            if len(runs) == 1:
                execute(connection, LOSE_THE_CONNECTION)
            return runs[-1]

        assert await within(ask(loses)) == 2
        assert len(runs) == 2


@both_ways
async def test_a_connection_lost_again_and_again_is_given_up(
    database: PostgresDatabase, execute: Callable[[Connection, str], None]
) -> None:
    runs: list[int] = []
    with pytest.raises(Unavailable, match="nothing was kept"):
        await within(database.write(lambda c: (runs.append(1), add("hits")(c), execute(c, LOSE_THE_CONNECTION))))
    assert len(runs) == TRIES_MAX
    assert await database.read(count_of("hits")) == 1


@both_ways
async def test_a_server_that_only_reads_any_more_is_left_for_another(
    reopen: Open, execute: Callable[[Connection, str], None]
) -> None:
    """Behind one name there may be several servers, of which another one has taken over the writing."""
    database = reopen(connections=2)
    await database.write(put("hits"))
    servers: list[object] = []

    def work(connection: Connection) -> int | None:
        servers.append(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar())
        if len(servers) == 1:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        execute(connection, "UPDATE tallies SET count = count + 1 WHERE name = 'hits'")
        return count_of("hits")(connection)

    assert await within(database.write(work)) == 2
    assert len(set(servers)) == len(servers) == 2


async def test_a_connection_lost_during_the_commit_is_said_to_leave_the_outcome_open(
    database: PostgresDatabase, outside: psycopg.Connection
) -> None:
    outside.execute(
        f"""CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM ({LOSE_THE_CONNECTION.removeprefix("SELECT ")}); RETURN NULL; END $$"""
    )
    outside.execute(
        "CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON tallies DEFERRABLE INITIALLY DEFERRED "
        "FOR EACH ROW EXECUTE FUNCTION lose()"
    )
    runs: list[int] = []
    with pytest.raises(Unavailable, match="not known whether"):
        await within(database.write(lambda c: (runs.append(1), add("hits")(c))))
    assert len(runs) == 1, "what may have happened is not done again"
    outside.execute("DROP TRIGGER at_commit ON tallies")
    assert await within(database.write(add("hits"))) == 2


@both_ways
async def test_after_a_restart_of_the_server_no_stale_connection_costs_an_error(
    packages: dict[str, str], execute: Callable[[Connection, str], None]
) -> None:
    add_one = "UPDATE tallies SET count = count + 1 WHERE name = 'hits'"

    def adds(connection: Connection) -> None:
        execute(connection, add_one)

    with Server.start() as server:
        database = PostgresDatabase(server.url(server.create_for(packages["newer"])), package=packages["newer"])
        await database.write(put("hits"))
        await within(asyncio.gather(*(database.write(adds) for _ in range(100))))
        for end in (server.stop, server.kill):
            await asyncio.to_thread(end)
            for ask in (database.write(adds), database.read(count_of("hits"))):
                with pytest.raises(Unavailable):
                    await within(ask)
            await asyncio.to_thread(server.restart)
            answers = [database.write(adds) for _ in range(20)]
            answers += [database.read(count_of("hits")) for _ in range(20)]
            await within(asyncio.gather(*answers))
        assert await database.read(count_of("hits")) == 141
        await database.close()


# ── Start ───────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_replicas_that_start_at_once_on_an_empty_database_all_come_up(reopen: Open) -> None:
    with ThreadPoolExecutor(8) as threads:
        replicas = list(threads.map(lambda _: reopen(connections=2), range(8)))
    await within(asyncio.gather(*(replica.write(put(f"of-{n}")) for n, replica in enumerate(replicas))))
    assert len(await replicas[0].read(lambda c: c.execute(select(tallies.c.name)).all())) == 8


async def test_the_services_share_one_database_without_touching_each_others_tables(postgres_url: str) -> None:
    made: set[str] = set()
    for service in ("auth", "accounting", "chat"):
        await PostgresDatabase(postgres_url, package=f"parshall.{service}").close()
        engine = create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
        with engine.connect() as connection:
            tables = set(inspect(connection).get_table_names())
        engine.dispose()
        assert f"{service}_version" in tables - made
        assert made <= tables
        made = tables


def complaint(url: str, package: str) -> str:
    """What the operator reads; a traceback of it shows no password either."""
    with pytest.raises(StartupError) as caught:
        PostgresDatabase(url, package=package)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_that_does_not_answer_is_named_without_its_password(
    postgres_server: Server, packages: dict[str, str]
) -> None:
    package = packages["newer"]
    assert "records on 127.0.0.1 cannot be reached" in complaint("postgresql://me:s3cret@127.0.0.1:1/records", package)
    missing = postgres_server.url("nowhere").replace("postgres@", "postgres:s3cret@")
    assert "nowhere on 127.0.0.1 cannot be reached" in complaint(missing, package)
    for unreadable in ("postgresql://me:s3cret%@h/records", "postgresql://me:s3cret@h/records?nonsense=s3cret"):
        assert "cannot be read" in complaint(unreadable, package)


def test_a_user_without_rights_is_told_which(
    postgres_server: Server, postgres_url: str, outside: psycopg.Connection, packages: dict[str, str]
) -> None:
    name = postgres_url.rpartition("/")[2]
    outside.execute(f"CREATE ROLE {name}_guest LOGIN")  # type: ignore[arg-type]
    assert "grant its user CREATE" in complaint(postgres_server.url(name, user=f"{name}_guest"), packages["newer"])
    outside.execute(f"DROP ROLE {name}_guest")  # type: ignore[arg-type]


def test_a_server_that_would_forget_commits_is_refused(
    postgres_url: str, outside: psycopg.Connection, packages: dict[str, str]
) -> None:
    name = postgres_url.rpartition("/")[2]
    outside.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')  # type: ignore[arg-type]
    assert "synchronous_commit" in complaint(postgres_url, packages["newer"])

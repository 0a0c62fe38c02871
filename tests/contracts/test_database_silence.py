"""What PostgresDatabase does about a server that takes every byte and never answers."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import Connection
from tests.contracts.tally_service import add, count_of, put
from tests.faultproxy import FaultProxy
from tests.postgres import Server

from parshall.kernel import postgres_silence
from parshall.kernel.bulk import query, run
from parshall.kernel.errors import Unavailable
from parshall.kernel.postgres import PostgresDatabase

SILENCE_SECONDS = 0.4
PROBE_SECONDS = 2
"""The least that libpq takes as a limit."""
MUST_ANSWER_SECONDS = SILENCE_SECONDS + PROBE_SECONDS + 2


@pytest.fixture
def network(postgres_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setattr(postgres_silence, "SILENCE_SECONDS_MAX", SILENCE_SECONDS)
    monkeypatch.setattr(postgres_silence, "PROBE_SECONDS_MAX", PROBE_SECONDS)
    with FaultProxy.to(postgres_server.port) as proxy:
        yield proxy


@pytest.fixture
async def database(network: FaultProxy, postgres_url: str, packages: dict[str, str]) -> AsyncIterator[PostgresDatabase]:
    opened = PostgresDatabase(network.through(postgres_url), package=packages["newer"])
    await opened.write(put("hits"))
    yield opened
    network.heal()
    await opened.close()


def count_in_bulk(connection: Connection) -> list[list[tuple[object, ...]]]:
    return run(connection, [query(connection, "SELECT {value}::int", 1), query(connection, "SELECT {value}::int", 2)])


def sleep(connection: Connection) -> object:
    return connection.exec_driver_sql(f"SELECT pg_sleep({3 * SILENCE_SECONDS}), 7").one()[1]


async def test_a_unit_of_work_under_a_silent_server_is_answered_and_the_next_one_after_it_works(
    database: PostgresDatabase, network: FaultProxy
) -> None:
    network.blackhole()
    began = time.monotonic()
    units = (database.write(add("hits")), database.read(count_of("hits")), database.read(count_in_bulk))
    answers = await asyncio.gather(*units, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Unavailable] * 3, answers
    assert time.monotonic() - began < MUST_ANSWER_SECONDS
    network.heal()
    assert await database.read(count_in_bulk) == [[(1,)], [(2,)]]
    before = await database.read(count_of("hits"))
    await database.write(add("hits"))
    assert await database.read(count_of("hits")) == before + 1


async def test_a_server_that_falls_silent_at_the_commit_leaves_it_unknown(
    database: PostgresDatabase, network: FaultProxy
) -> None:
    def work(connection: Connection) -> None:
        add("hits")(connection)
        network.blackhole()

    with pytest.raises(Unavailable, match="not known whether"):
        await database.write(work)


async def test_a_slow_statement_is_waited_for(database: PostgresDatabase) -> None:
    assert await database.read(sleep) == 7


async def test_a_server_that_only_refuses_further_connections_is_not_silent(
    database: PostgresDatabase, postgres_server: Server, postgres_url: str
) -> None:
    name = postgres_url.rpartition("/")[2]
    slow = asyncio.create_task(database.read(sleep))
    await asyncio.sleep(SILENCE_SECONDS / 2)
    postgres_server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
    assert await slow == 7
    postgres_server.execute(f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS true')


async def test_a_silence_that_ends_in_time_is_no_failure(database: PostgresDatabase, network: FaultProxy) -> None:
    before = await database.read(count_of("hits"))
    network.blackhole()
    writing = asyncio.create_task(database.write(add("hits")))
    await asyncio.sleep(SILENCE_SECONDS / 2)
    network.heal()
    await writing
    assert await database.read(count_of("hits")) == before + 1

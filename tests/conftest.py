"""Settings and fixtures of every test session."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.postgres import Engine, Server
from tests.valkey import Valkey

# No deadline: a slow machine is no fault of the code, and no test states a time. The blob replays a failure elsewhere.
settings.register_profile("parshall", deadline=None, print_blob=True)
settings.load_profile("parshall")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The session's PostgreSQL, started when the first test asks for it. It may forget in a loss of power."""
    with Server.start() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: Server) -> Iterator[str]:
    """A fresh, empty database of the session's server."""
    name = postgres_server.create()
    yield postgres_server.url(name)
    postgres_server.drop(name)


@pytest.fixture(params=["sqlite", "postgres"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    """Both engines of the port Database, one after the other; see tests/postgres.py."""
    server = request.getfixturevalue("postgres_server") if request.param == "postgres" else None
    built = Engine(request.param, tmp_path, server)
    yield built
    await built.renew()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Valkey]:
    """The session's Valkey, started when the first test asks for it."""
    with Valkey.start(durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[Valkey]:
    """The session's cluster: one node with all slots."""
    with Valkey.start(cluster=True, durable=False) as server:
        yield server


@pytest.fixture
def valkey(valkey_server: Valkey) -> Valkey:
    """The session's Valkey, empty."""
    valkey_server.ask("FLUSHALL")
    return valkey_server

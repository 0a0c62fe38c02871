"""Settings and fixtures of every test session."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from tests.postgres import Engine, Server

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

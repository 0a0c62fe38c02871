"""Fixtures of the suites of the ports."""

import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.contracts.streamlogs import Time, opened
from tests.contracts.tally_service import BROKEN, FIRST, SECOND, write_package
from tests.valkey import Valkey

from parshall.chat.streams.shared import SharedStreamLog


@pytest.fixture(scope="session")
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


@pytest.fixture
def time() -> Time:
    """A clock that the test moves."""
    return Time()


@pytest.fixture(params=["single", "cluster"])
def server(request: pytest.FixtureRequest) -> Valkey:
    found: Valkey = request.getfixturevalue("valkey_server" if request.param == "single" else "valkey_cluster")
    found.ask("FLUSHALL")
    return found


@pytest.fixture
async def producer(server: Valkey, time: Time) -> AsyncIterator[SharedStreamLog]:
    async with opened(server.url, time) as log:
        yield log


@pytest.fixture
async def other(server: Valkey, time: Time) -> AsyncIterator[SharedStreamLog]:
    """The log of another process."""
    async with opened(server.url, time) as log:
        yield log


@pytest.fixture
async def mortal() -> AsyncIterator[Valkey]:
    """A server that the test may kill."""
    with Valkey.start() as server:
        yield server

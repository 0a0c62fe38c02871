"""Settings and fixtures of every test session."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from tests import quick
from tests import topology as topologies
from tests.postgres import Engine, Server
from tests.valkey import Valkey

# No deadline: a slow machine is no fault of the code, and no test states a time. The blob replays a failure elsewhere.
settings.register_profile("parshall", deadline=None, print_blob=True)
settings.load_profile("parshall")
SYSTEM = Path(__file__).parent / "system"
LONGEST_FIRST = [SYSTEM.parent / name for name in ("system", "mutants", "simulation", "unit", "contracts", "tidy")]
"""The folders of tests, in the order in which it matters that a file is not the last one that somebody waits for."""


@pytest.hookimpl(optionalhook=True)  # the tests of mutants run without it
def pytest_xdist_auto_num_workers() -> int:
    """A process more than there are processors: tests often wait, for a process that starts or a time that passes."""
    return (os.cpu_count() or 1) + 1


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--topology`, for tests/system."""
    names = (topologies.ONE, topologies.SPLIT, topologies.BOTH)
    parser.addoption("--topology", choices=names, default=topologies.ONE, help="run services in one process, or apart")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With both, a test runs on one after the other."""
    if metafunc.config.getoption("topology") == topologies.BOTH and SYSTEM in metafunc.definition.path.parents:
        names = topologies.choices(topologies.BOTH, list(metafunc.definition.iter_markers()))
        metafunc.parametrize("topology", names, indirect=True, scope="module")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put long files first. Apart from the usual topology, leave out what does not depend on it or says it cannot."""
    items.sort(key=lambda item: _turn(item.path))
    if config.getoption("topology") == topologies.SPLIT:
        config.hook.pytest_deselected(items=[item for item in items if not _has_topology(item)])
        items[:] = [item for item in items if _has_topology(item)]
        for item in items:
            if mark := item.get_closest_marker("one_process"):
                item.add_marker(pytest.mark.skip(reason=mark.args[0]))


def _turn(path: Path) -> int:
    """The place of a file in the order in which they are given out."""
    return next((place for place, folder in enumerate(LONGEST_FIRST) if folder in path.parents), 0)


def _has_topology(item: pytest.Item) -> bool:
    return SYSTEM in item.path.parents and topologies.depends_on_it(item)


def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """A server of a module ends with the topology that it was started on."""
    topologies.stands_on_it(fixturedef, request)


@pytest.fixture(scope="module", autouse=True)
def topology(request: pytest.FixtureRequest) -> Iterator[str]:
    """The one that servers of this module start on."""
    chosen: str = getattr(request, "param", request.config.getoption("topology"))
    topologies.begin(chosen)
    yield chosen
    topologies.end()


@pytest.fixture(scope="module", autouse=True)
def quick_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of Parshall are forked, except in modules that are marked `executed`."""
    before = quick.is_on
    quick.is_on = before and request.node.get_closest_marker("executed") is None
    yield
    quick.is_on = before


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

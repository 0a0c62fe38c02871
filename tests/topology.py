"""Which topology the servers of a test run on: all services in one process, or each in a process of its own.

`--topology split` runs tests/system with the services apart, under the same assertions; `both` runs every test twice.
"""

from typing import Any

import pytest

ONE, SPLIT, BOTH = "one", "split", "both"
STARTS_SERVERS = ("serving", "deployed", "replicas", "Server")
"""Names of which a file that starts servers imports one; to all other files the topology is nothing."""

is_split = False
"""Whether servers that are started now have their services apart, unless a test says so itself."""
_made: list[tuple[pytest.FixtureDef[Any], pytest.FixtureRequest]] = []
"""Fixtures of modules that stand on the present topology, and must not outlive it."""


def begin(topology: str) -> None:
    """From now on servers start so."""
    global is_split
    is_split = topology == SPLIT


def end() -> None:
    """Take down what stands on the topology; fixtures that need it no more know nothing of its change."""
    while _made:
        fixture, request = _made.pop()
        fixture.finish(request)  # type: ignore[arg-type]  # the request that pytest gave with it
    begin(ONE)


def stands_on_it(fixture: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """A fixture is about to be made."""
    if fixture.scope == "module" and fixture.argname != "topology":
        _made.append((fixture, request))


def depends_on_it(item: pytest.Item) -> bool:
    """Whether a test starts servers, and leaves it to the topology how."""
    module = item.getparent(pytest.Module)
    starts = module is not None and any(hasattr(module.obj, name) for name in STARTS_SERVERS)
    return starts and not item.get_closest_marker("apart")


def choices(chosen: str, markers: list[pytest.Mark]) -> list[str]:
    """The topologies that a test of these markers runs on."""
    if any(marker.name in ("one_process", "apart") for marker in markers):
        return [ONE]
    return [ONE, SPLIT] if chosen == BOTH else [chosen]

"""What kill -9 may not take (M8), and what processes may do at once: on both engines, in real processes."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError
from tests.contracts.tally_service import FIRST, SECOND, put, tallies, within, write_package
from tests.postgres import Engine, Server, open_url

from parshall.kernel.database import Database
from parshall.kernel.errors import Unavailable

WRITER = Path(__file__).with_name("acknowledging_writer.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A service that processes of this test can import too."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return write_package(tmp_path / "tally_served", FIRST, SECOND)


def acknowledged_before_a_kill(root: Path, url: str, chance: random.Random) -> set[int]:
    """Killed by us at any moment, or by itself at the most delicate one: when a write has just been acknowledged."""
    itself = chance.random() < 0.5
    arguments = [url, "tally_served.tally", str(chance.randint(1, 400) if itself else 0)]
    folders = os.pathsep.join([str(root), str(ROOT), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(WRITER), *arguments],
        env={**os.environ, "PYTHONPATH": folders},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        if not itself:
            time.sleep(chance.uniform(0.0, 0.4))
            process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    assert process.returncode == -signal.SIGKILL
    return {int(line) for line in lines if line.endswith("\n")}


async def kept(url: str, package: str) -> set[str]:
    database = open_url(url, package)
    names = await database.read(names_kept)
    await database.close()
    return names


def names_kept(connection: Connection) -> set[str]:
    return set(connection.execute(select(tallies.c.name)).scalars())


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.soak)])
async def test_whatever_was_acknowledged_before_kill_9_is_there_afterwards(
    engine: Engine, served: str, tmp_path: Path, rounds: int
) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1_000_000)))
    chance = random.Random(seed)
    for _ in range(rounds):
        acknowledged = acknowledged_before_a_kill(tmp_path, engine.url(served), chance)
        check(acknowledged, await kept(engine.url(served), served), seed)
        await engine.renew()


def check(acknowledged: set[int], names: set[str], seed: int) -> None:
    """Everything acknowledged is there, and nothing by halves."""
    assert acknowledged
    assert {f"{half}-{n}" for n in acknowledged for half in ("left", "right")} <= names, f"replay: SEED={seed}"
    halves = {half: {n.removeprefix(half) for n in names if n.startswith(half)} for half in ("left", "right")}
    assert halves["left"] == halves["right"], f"replay: SEED={seed}"


@asynccontextmanager
async def under_load(database: Database, acknowledged: set[int]) -> AsyncIterator[None]:
    """Writers that never give up: a pair of which it is not known whether it was kept is sent again by its key."""
    numbers, stopping = itertools.count(), asyncio.Event()

    async def writer() -> None:
        for number in numbers:
            while not stopping.is_set():
                try:
                    await database.write(lambda c, n=number: (put(f"left-{n}")(c), put(f"right-{n}")(c)))
                except Unavailable:
                    await asyncio.sleep(0.01)
                    continue
                except IntegrityError:
                    pass  # it had been kept
                acknowledged.add(number)
                break
            if stopping.is_set():
                return

    writers = [asyncio.create_task(writer()) for _ in range(20)]
    try:
        yield
    finally:
        stopping.set()
        await within(asyncio.gather(*writers))


async def grown(acknowledged: set[int], by: int) -> None:
    latest = len(acknowledged) + by
    while len(acknowledged) < latest:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=pytest.mark.soak)])
async def test_a_server_killed_under_load_loses_nothing_acknowledged_and_is_written_to_again(
    served: str, rounds: int
) -> None:
    """The whole server, again and again on the same folder; the writing process stays the same."""
    seed = int(os.environ.get("SEED", random.randrange(1_000_000)))
    chance, acknowledged = random.Random(seed), set[int]()
    with Server.start(fsync=True) as server:
        database = open_url(server.url(server.create_for(served)), served)
        async with under_load(database, acknowledged):
            for _ in range(rounds):
                await within(grown(acknowledged, by=chance.randint(1, 400)))
                await asyncio.to_thread(server.kill)
                before = set(acknowledged)
                await asyncio.to_thread(server.restart)
                check(before, await within(database.read(names_kept)), seed)
                await within(grown(acknowledged, by=20))
        check(acknowledged, await within(database.read(names_kept)), seed)
        await database.close()


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
def test_processes_that_open_a_new_database_at_once_all_come_up(
    request: pytest.FixtureRequest, tmp_path: Path, served: str, name: str
) -> None:
    url = request.getfixturevalue("postgres_url") if name == "postgres" else f"sqlite:///{tmp_path / 'shared.db'}"
    open_once = "from tests.postgres import open_url; import sys; print('ready', flush=True); "
    open_once += "sys.stdin.readline(); open_url(sys.argv[1], sys.argv[2])"
    command = [sys.executable, "-c", open_once, url, served]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, env=environment, text=True, **pipes) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    complaints = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), complaints

"""What kill -9 may not take (M8), and what two processes may do at once, on a real file in real processes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.contracts.tally_service import FIRST, SECOND, tallies, write_package

from parshall.kernel.sqlite import SqliteDatabase

WRITER = Path(__file__).with_name("acknowledging_writer.py")
ROOT = Path(__file__).parents[2]


def acknowledged_before_a_kill(root: Path, path: Path, chance: random.Random) -> set[int]:
    """Killed by us at any moment, or by itself at the most delicate one: when a write has just been acknowledged."""
    itself = chance.random() < 0.5
    arguments = [str(path), "tally_served.tally", str(chance.randint(1, 400) if itself else 0)]
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


async def kept(path: Path, package: str) -> set[str]:
    database = SqliteDatabase(path, package=package)
    names = await database.read(lambda c: set(c.execute(select(tallies.c.name)).scalars()))
    await database.close()
    return names


@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.soak)])
async def test_whatever_was_acknowledged_before_kill_9_is_there_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = write_package(tmp_path / "tally_served", FIRST, SECOND)
    seed = int(os.environ.get("SEED", random.randrange(1_000_000)))
    chance = random.Random(seed)
    for number in range(rounds):
        path = tmp_path / f"round-{number}.db"
        acknowledged = acknowledged_before_a_kill(tmp_path, path, chance)
        assert acknowledged
        names = await kept(path, package)
        assert {f"{half}-{n}" for n in acknowledged for half in ("left", "right")} <= names, f"replay: SEED={seed}"
        halves = {half: {n.removeprefix(half) for n in names if n.startswith(half)} for half in ("left", "right")}
        assert halves["left"] == halves["right"], f"replay: SEED={seed}"


def test_processes_that_open_a_new_database_at_once_all_come_up(tmp_path: Path) -> None:
    write_package(tmp_path / "tally_served", FIRST, SECOND)
    path = tmp_path / "shared.db"
    open_once = "from parshall.kernel.sqlite import SqliteDatabase as D; from pathlib import Path; import sys; "
    open_once += "sys.stdin.readline(); D(Path(sys.argv[1]), package='tally_served.tally')"
    command = [sys.executable, "-c", open_once, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    processes = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    time.sleep(1.5)  # until all of them have imported what they need
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    complaints = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), complaints

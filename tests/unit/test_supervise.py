"""Supervised processes start in stages, are brought back, and end in order with their parent, however it ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SECONDS_MAX = 20

CHILD = """
import os, signal, sys, time
name, folder = sys.argv[1:3]
record = open(folder + "/record", "a", buffering=1)
def end(number, frame):
    if os.path.exists(folder + "/" + name + ".stubborn"):
        return print(name, "stays", file=record)
    time.sleep(0.1)
    print(name, "ended", file=record)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print(name, "began", os.getpid(), file=record)
if os.path.exists(folder + "/" + name + ".broken"):
    sys.exit("broken")
print('{"event": "record"}', file=sys.stderr)
print("is ready, by", os.environ["GIVEN"])
sys.stdin.read()
print(name, "orphaned", file=record)
"""

PARENT = """
import asyncio, sys
from parshall.app import supervise
from parshall.app.supervise import Child
folder = sys.argv[1]
supervise.FAILURES_MAX = 3
def child(name):
    command = (sys.executable, folder + "/child.py", name, folder)
    return Child(name=name, command=command, ready="is ready", environment={"GIVEN": "hand"})
stages = [[child("auth")], [child("chat-1"), child("chat-2")]]
code = asyncio.run(supervise.supervise(stages, stop_seconds=2.5, on_ready=lambda: print("all ready", flush=True)))
sys.exit(code)
"""


class Parent:
    """A supervising process with three children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("child.py", CHILD), ("parent.py", PARENT)):
            (folder / name).write_text(textwrap.dedent(text))
        command = [sys.executable, str(folder / "parent.py"), str(folder)]
        with (folder / "output").open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def record(self) -> list[str]:
        """What the children did, without their numbers."""
        path = self.folder / "record"
        lines = path.read_text().splitlines() if path.exists() else []
        return [" ".join(line.split()[:2]) for line in lines]

    def pids(self, name: str) -> list[int]:
        lines = (self.folder / "record").read_text().splitlines()
        return [int(line.split()[2]) for line in lines if line.startswith(f"{name} began")]

    def output(self) -> str:
        return (self.folder / "output").read_text()

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS_MAX
        while not holds():
            assert time.monotonic() < deadline, f"{self.record()}\n{self.output()}"
            time.sleep(0.02)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS_MAX)


@contextmanager
def parent(folder: Path) -> Iterator[Parent]:
    running = Parent(folder)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


def test_stages_start_in_order_and_end_in_the_opposite_order(tmp_path: Path) -> None:
    with parent(tmp_path) as running:
        running.until(lambda: "all ready" in running.output())
        assert running.stop() == 0
        record = running.record()
    assert record[0] == "auth began" and record[-1] == "auth ended"
    assert sorted(record[1:3]) == ["chat-1 began", "chat-2 began"]
    assert sorted(record[3:5]) == ["chat-1 ended", "chat-2 ended"]


def test_ctrl_c_which_goes_to_the_whole_group_ends_the_children_in_order_too(tmp_path: Path) -> None:
    with parent(tmp_path) as running:
        running.until(lambda: "all ready" in running.output())
        os.killpg(running.process.pid, signal.SIGINT)
        assert running.process.wait(SECONDS_MAX) == 0
        assert running.record()[-1] == "auth ended"


def test_lines_name_their_child_and_records_stay_as_they_are(tmp_path: Path) -> None:
    with parent(tmp_path) as running:
        running.until(lambda: "all ready" in running.output())
        running.stop()
        lines = running.output().splitlines()
    assert lines.count('{"event": "record"}') == 3
    assert {"auth: is ready, by hand", "chat-1: is ready, by hand", "chat-2: is ready, by hand"} <= set(lines)


def test_a_child_that_dies_is_named_and_comes_back_alone(tmp_path: Path) -> None:
    with parent(tmp_path) as running:
        running.until(lambda: "all ready" in running.output())
        os.kill(running.pids("chat-1")[0], signal.SIGKILL)
        running.until(lambda: len(running.pids("chat-1")) == 2)
        assert "chat-1 has ended (signal SIGKILL); it starts again" in running.output()
        assert [len(running.pids(name)) for name in ("auth", "chat-2")] == [1, 1]
        running.until(lambda: running.output().count("chat-1: is ready") == 2)
        assert running.stop() == 0


@pytest.mark.parametrize("later", [False, True], ids=["at-the-start", "later"])
def test_a_child_that_cannot_start_ends_all_with_an_exit_code(tmp_path: Path, later: bool) -> None:
    broken = tmp_path / "chat-2.broken"
    if not later:
        broken.touch()
    with parent(tmp_path) as running:
        if later:
            running.until(lambda: "all ready" in running.output())
            broken.touch()
            os.kill(running.pids("chat-2")[0], signal.SIGKILL)
        assert running.process.wait(SECONDS_MAX) == 1
        assert running.record()[-1] == "auth ended" and "chat-2 did not start (code 1)" in running.output()
        assert ("3 times in a row; everything ends" in running.output()) is later


@pytest.mark.parametrize("hurried", [False, True], ids=["in-time", "by-a-second-signal"])
def test_a_child_that_does_not_end_is_killed_and_the_exit_code_tells(tmp_path: Path, hurried: bool) -> None:
    (tmp_path / "chat-1.stubborn").touch()
    with parent(tmp_path) as running:
        running.until(lambda: "all ready" in running.output())
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.until(lambda: {"chat-1 stays", "chat-2 ended"} <= set(running.record()))
        assert (running.stop() if hurried else running.process.wait(SECONDS_MAX)) == 1
        assert (time.monotonic() - began < 2) is hurried
        assert (running.record()[-1] == "auth ended") is not hurried
        assert "chat-1 did not end in time and was killed" in running.output()


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with parent(tmp_path) as running:
        running.until(lambda: "all ready" in running.output())
        running.process.kill()
        running.until(lambda: sum(line.endswith("orphaned") for line in running.record()) == 3)

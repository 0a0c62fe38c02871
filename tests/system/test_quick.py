"""A program that is forked by tests/quick.py is, to itself and to all others, one that was exec'd."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from tests import quick
from tests.scraping import TOKEN, scrape
from tests.serving import Server

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every program is executed"),
    pytest.mark.one_process("it is about one program"),
]
Popen = Callable[..., "subprocess.Popen[str]"]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
TOLD = """
import atexit, json, os, random, signal, subprocess, sys, threading
import parshall.app.tracing
atexit.register(print, "the end")
kept = {name: signal.getsignal(number) for name, number in signal.Signals.__members__.items()}
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path,
    "environment": dict(os.environ),
    "libc": {name: subprocess.getoutput("printenv " + name) for name in ("PARSHALL_A", "PARSHALL_GONE")},
    "folder": os.getcwd(),
    "group is the parent's": os.getpgrp() == os.getpgid(os.getppid()) and os.getsid(0) == os.getsid(os.getppid()),
    "parent": os.getppid(),
    "main": __name__,
    "file": __file__,
    "signals": {name: str(handler) for name, handler in kept.items()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")),
    "threads": threading.active_count(),
    "streams": [sys.stdin.read(), sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.line_buffering],
    "executable": sys.executable,
    "umask": os.umask(0),
}))
print("to stderr", file=sys.stderr)
sys.exit(7)
"""
ALIKE = """
import json, random, uuid
from parshall.app import tracing
print(json.dumps([random.random(), uuid.uuid4().hex, tracing.told_of("x")["service.instance.id"]]))
"""


@pytest.fixture(params=[subprocess.Popen, quick.Popen], ids=["executed", "forked"])
def popen(request: pytest.FixtureRequest) -> Popen:
    made: Popen = request.param
    return made


def program(folder: Path, code: str) -> list[str]:
    file = folder / "program.py"
    file.write_text(code)
    return [sys.executable, str(file)]


def both(command: list[str], *, told: str = "", **options: Any) -> list[tuple[str, str, int]]:
    """What it prints and its exit code: exec'd, then forked."""
    ended = []
    for popen in (subprocess.Popen, quick.Popen):
        with popen(command, **PIPES, **options) as process:
            assert getattr(process, "is_forked", False) == (popen is quick.Popen)
            ended.append((*process.communicate(told, timeout=60), process.returncode))
    return ended


def test_a_forked_program_is_given_what_an_executed_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSHALL_GONE", "only the tests have it")
    own = {name: value for name, value in os.environ.items() if name != "PARSHALL_GONE"} | {"PARSHALL_A": "ä b\n"}
    executed, forked = both([*program(tmp_path, TOLD), "a", "--b=ü"], told="said", env=own, cwd=tmp_path)
    assert forked == executed and executed[2] == 7 and executed[0].endswith("the end\n")
    found = json.loads(forked[0].splitlines()[0])
    assert found["parent"] == os.getpid() and found["environment"] == own and found["argv"][1:] == ["a", "--b=ü"]


def test_forks_have_nothing_random_in_common(tmp_path: Path) -> None:
    answers = [quick.run(program(tmp_path, ALIKE), capture_output=True, text=True, check=True) for _ in range(2)]
    one, other = (json.loads(answer.stdout) for answer in answers)
    assert not set(one) & set(other)


def test_what_an_interpreter_reads_as_it_starts_is_not_forked_past(tmp_path: Path) -> None:
    command = program(tmp_path, "import sys; print(sys.flags.utf8_mode, sys.stdout.encoding)")
    options = {"env": {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}}
    assert quick.run(command, capture_output=True, text=True, **options).stdout.split() == ["0", "iso8859-1"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_that_ends_it_is_told_as_one(popen: Popen, number: signal.Signals, tmp_path: Path) -> None:
    command = program(tmp_path, "import time; print('begun', flush=True); time.sleep(60)")
    process = popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "begun\n" and process.poll() is None
    os.kill(process.pid, number)
    with process:
        assert process.wait(30) == -number and process.poll() == -number
    assert not psutil.pid_exists(process.pid)


def test_an_orphan_of_a_forked_program_is_not_left_to_the_tests(tmp_path: Path) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    orphan = psutil.Process(int(quick.run(program(tmp_path, code), stdout=subprocess.PIPE, text=True).stdout))
    assert orphan.ppid() != os.getpid()
    orphan.kill()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ([str(quick.PARSHALL), "version"], 0),
        ([sys.executable, "-m", "parshall", "up", "--port", "70000"], 2),
        ([str(quick.PARSHALL), "up", "--demo"], 1),
    ],
    ids=["done", "wrong usage", "wrong settings"],
)
def test_a_command_says_the_same_and_ends_with_the_same_code(command: list[str], code: int, tmp_path: Path) -> None:
    settings = {"PARSHALL_HOME_DIR": str(tmp_path), "PARSHALL_EMBEDDED_MODEL": "off"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
    executed, forked = both(command, env=kept | settings)
    assert forked == executed and forked[2] == code


def test_a_forked_server_answers_and_ends_as_an_executed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"EMBEDDED_MODEL": "off", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "METRICS_TOKEN": TOKEN}
    shown: list[tuple[Any, ...]] = []
    port = 0
    for forks in (False, True):
        monkeypatch.setattr(quick, "is_on", forks)
        server = Server(home=tmp_path / str(forks), settings=settings, port=port, split=False).start()
        assert server.process is not None and server.process.is_forked == forks
        scraped, port = scrape(server.url), server.port
        began = psutil.Process(server.process.pid).create_time()
        assert scraped.sum("process_start_time_seconds") == pytest.approx(began, abs=2)
        described = httpx2.get(server.url + "/openapi.json").json()
        shown.append((described, scraped.names, server.stop()[0], [line for line in server.output if line[0] != "{"]))
    executed, forked = shown
    assert forked == executed and forked[2] == 0


@pytest.mark.parametrize(("forks", "cost"), [(False, "m=65536,t=3,p=4"), (True, "m=8,t=1,p=1")])
def test_a_hash_costs_what_it_must_but_in_a_fork(
    forks: bool, cost: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "is_on", forks)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PARSHALL_")}
    own = kept | {"PARSHALL_HOME_DIR": str(tmp_path), "PARSHALL_EMBEDDED_MODEL": "off"}
    command = [quick.PARSHALL, "users", "add", "ann", "--email", "ann@example.org", "--password-stdin"]
    quick.run(command, input="a-password\n", env=own, capture_output=True, text=True, check=True)
    with contextlib.closing(sqlite3.connect(tmp_path / "auth.db")) as connection:
        ((found,),) = connection.execute("SELECT password_hash FROM users")
    assert found.startswith(f"$argon2id$v=19${cost}$")

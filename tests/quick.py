"""`Popen` and `run` as in subprocess, for programs of ours: they begin as forks of a process that has imported all.

What comes is a process like any other and a child of the tests. Where a fork could differ, the program is exec'd: see
`Popen`, and the mark `executed`.
"""

import atexit
import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PARSHALL = Path(sys.executable).with_name("parshall")
ZYGOTE = Path(__file__).with_name("zygote.py")
READ_LATE = ("PARSHALL_", "OTEL_", "PYTEST_")
"""Variables that nothing reads as it is imported by tests/zygote.py. Where another is not as it was there, we exec."""
PLAIN = (True, None, None, None, -1, False, -1)
"""Signals restored, the user, groups, umask, session and process group left as they are."""
ANSWER_BYTES_MAX = 64
PR_SET_CHILD_SUBREAPER = 36

is_on = sys.platform == "linux"
"""Whether programs are forked at all; not in modules that are marked `executed`."""
_lock = threading.Lock()


class _Zygote:
    """The process that forks, and the variables that it was started with."""

    def __init__(self) -> None:
        self.environment = _read_early(os.environ)
        self._asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with asked:
            self._process = subprocess.Popen(
                [sys.executable, str(ZYGOTE), str(asked.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[asked.fileno()],
            )
        atexit.register(self.end)

    def fork(self, request: Any, streams: list[int]) -> int:
        """The id of a new child of ours, which does what the request names."""
        with _taking_orphans():
            socket.send_fds(self._asking, [json.dumps(request).encode()], streams)
            child, done = (self._asking.recv(ANSWER_BYTES_MAX) for _ in range(2))
        assert done, "the zygote has ended"
        return int(child)

    def end(self) -> None:
        """It ends as nobody can ask it any more."""
        self._asking.close()
        self._process.wait()


_zygotes: list[_Zygote] = []


class Popen(subprocess.Popen[str]):
    """subprocess.Popen in all but how the process begins: by a fork, if it runs a Python program, which gets arguments,
    variables, a folder and its three streams, and nothing else.
    """

    is_forked = False

    def _execute_child(
        self, args: Any, executable: Any, preexec: Any, close: Any, passed: Any, cwd: Any, env: Any, *more: Any
    ) -> None:
        shell, pipes, rest = more[2], more[3:9], more[9:]
        plain = (executable, preexec, close, tuple(passed), shell, rest) == (None, None, True, (), False, PLAIN)
        arguments = _of_python(args) if is_on and plain else []
        streams = [number if given == -1 else given for number, given in enumerate((pipes[0], pipes[3], pipes[5]))]
        child = arguments and _forked(arguments, os.environ if env is None else env, cwd or Path.cwd(), streams)
        if child:
            self.pid, self._child_created, self.is_forked = child, True, True
            self._close_pipe_fds(*pipes)
        else:
            super()._execute_child(args, executable, preexec, close, passed, cwd, env, *more)


def _forked(arguments: list[str], environment: Mapping[str, str], folder: Path, streams: list[int]) -> int | None:
    """The id of a fork; None where one could differ."""
    with _lock:
        if not _zygotes:
            _zygotes.append(_Zygote())
        if _zygotes[0].environment != _read_early(environment):
            return None
        return _zygotes[0].fork((arguments, dict(environment), str(folder)), streams)


def run(
    command: Sequence[str | Path],
    *,
    input: str | None = None,
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = False,
    **options: Any,
) -> "subprocess.CompletedProcess[str]":
    """subprocess.run, by such a Popen."""
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) if capture_output else {}
    pipes |= {} if input is None else {"stdin": subprocess.PIPE}
    with Popen(command, **pipes, **options) as process:
        try:
            output, errors = process.communicate(input, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


def _of_python(command: Any) -> list[str]:
    """What Python is to run: a file, or -m and a module, and the arguments of that; empty if the command is no such."""
    program, *arguments = [os.fspath(word) for word in command]
    if program == str(PARSHALL):
        return [program, *arguments]
    python = program == sys.executable and arguments and (arguments[0] == "-m" or arguments[0].endswith(".py"))
    return arguments if python else []


def _read_early(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that an interpreter or a library may have read before it runs a program."""
    return {name: value for name, value in environment.items() if not name.startswith(READ_LATE)}


@contextlib.contextmanager
def _taking_orphans() -> Iterator[None]:
    """While the block runs, whoever loses its parent among our descendants becomes our child."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)

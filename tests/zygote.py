"""Forks that become Python programs: `python tests/zygote.py DESCRIPTOR` has imported Parshall, which took its seconds.

Only tests/quick.py starts it and asks it, over the socket of that number. It has one thread and no event loop, and has
opened nothing but that socket: a fork of it is where an exec'd interpreter is once it has imported the same, but
that it hashes passwords cheaply.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import Any

MODULES = ("parshall.cli.main", "parshall.app.server", "parshall.app.split", "parshall.app.workers")
LIBRARIES = ("aiohttp.web", "bpe_openai")
CHEAP = {"passes": 1, "memory_kib": 8, "lanes": 1}
"""A hash takes a third of a second of CPU by default, which tests/unit/test_auth_passwords.py holds."""
REQUEST_BYTES_MAX = 1 << 18
STREAMS = (0, 1, 2)


def fork(asked: socket.socket) -> tuple[Any, list[int]]:
    """Answer requests until the socket closes; in a fork, return its request and the descriptors that came with it."""
    while True:
        text, streams = b"", []
        with contextlib.suppress(KeyboardInterrupt):  # a Ctrl-C at the tests ends us by the end of who asks
            text, streams, _, _ = socket.recv_fds(asked, REQUEST_BYTES_MAX, len(STREAMS))
        if not text:
            sys.exit()
        between = os.fork()
        if between == 0:
            if child := os.fork():
                asked.send(str(child).encode())
                os._exit(0)
            return json.loads(text), streams
        os.waitpid(between, 0)  # now the child belongs to who asked, its next ancestor that takes orphans
        for descriptor in streams:
            os.close(descriptor)
        asked.send(b"done")


def become(arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]) -> None:
    """Take over what a process is given as it starts."""
    for number, descriptor in zip(STREAMS, streams, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]  # it is the usual one
    sys.orig_argv = [sys.executable, *arguments]


def run(arguments: list[str]) -> None:
    """Do what `python ARGUMENTS` does: run a file, or a module after `-m`."""
    if arguments[0] == "-m":
        sys.path[0], sys.argv = str(Path.cwd()), arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[0], sys.argv = str(Path(arguments[0]).resolve().parent), arguments
        runpy.run_path(arguments[0], run_name="__main__")


def prepare() -> None:
    """Have forks hash passwords for next to nothing, and put routes together faster, as whoever did so before."""
    from parshall.app.surface import surface, words_of
    from parshall.auth.passwords import PasswordHasher

    PasswordHasher.__init__.__kwdefaults__.update(CHEAP)  # the defaults of its options
    words_of(surface())


def main() -> None:
    """Import, then fork on request."""
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        for name in (*MODULES, *LIBRARIES):
            importlib.import_module(name)
        prepare()
        gc.collect()
        gc.freeze()  # so that no collection in a fork copies what it shares
        (arguments, environment, folder), streams = fork(asked)
    become(arguments, environment, folder, streams)
    run(arguments)


if __name__ == "__main__":
    main()

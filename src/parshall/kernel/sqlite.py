"""Database on SQLite: one writer that commits a group of transactions at a time, and readers on WAL snapshots."""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import QueuePool

from parshall.kernel.clock import Clock, now
from parshall.kernel.database import T, Work, carry_out, migrate, told
from parshall.kernel.errors import StartupError, Unavailable

GROUP_MAX = 256
"""Transactions that may share one commit."""
READERS_MAX = 4
STATEMENTS_PREPARED = 512
"""Per connection: every size of every statement over many rows (kernel.bulk) and the rest beside."""
BUSY_MILLISECONDS = 5000
"""How long to wait for another process (a command on the same machine) that holds the write lock."""

_CLOSING = "The database is closing; try again shortly."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    work: Callable[[Connection], Any]
    answer: "Future[Any]"


class SqliteDatabase:
    """The embedded engine. `synchronous=FULL` makes a commit survive power loss, `NORMAL` a kill of the process."""

    def __init__(
        self, path: Path, *, package: str, synchronous: Literal["FULL", "NORMAL"] = "FULL", clock: Clock = now
    ) -> None:
        """Open (or make) the file and bring its tables forward. Raises StartupError with one sentence."""
        self._path = path
        self._clock = clock
        self._engine = _engine(path, synchronous)
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS_MAX, thread_name_prefix=f"read-{path.stem}")
        self._closed = False
        try:
            connection = _migrated(self._engine, package)
        except DatabaseError as error:
            problem = f"The database {path} cannot be used ({error.orig}); restore it or move it away."
            raise StartupError(problem) from error
        except CommandError as error:
            problem = f"The database {path} is of another version ({error}); start the newest version."
            raise StartupError(problem) from error
        self._writer = threading.Thread(
            target=self._write_groups, args=(connection,), name=f"write-{path.stem}", daemon=True
        )
        self._writer.start()

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a snapshot in a reader thread."""
        if self._closed:
            raise Unavailable(_CLOSING)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Queue `work` for the writer; returns once its group is committed.

        A caller that is cancelled meanwhile does not undo it: whoever must know asks again by id.
        """
        if self._closed:
            raise Unavailable(_CLOSING)
        unit = _Unit(work=work, answer=Future())
        unit.answer.set_running_or_notify_cancel()  # from here on it cannot be cancelled, only answered
        self._queue.put(unit)
        return cast(T, await asyncio.shield(asyncio.wrap_future(unit.answer)))

    def instant(self, connection: Connection) -> int:  # noqa: ARG002 - another engine asks its server
        """The clock that was handed in: a file has none of its own, and all its writers share this machine's."""
        return self._clock()

    def version(self, connection: Connection) -> Hashable:
        """The commits of others on the file, as SQLite tells them, and the rows that this connection has changed."""
        driver = connection.connection.driver_connection
        assert driver is not None
        return (*driver.execute("PRAGMA data_version").fetchone(), driver.total_changes)

    async def close(self) -> None:
        """Commit what is queued, then close every connection."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        self._engine.dispose()

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                return carry_out(work, connection)
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def _write_groups(self, connection: Connection) -> None:
        with connection:
            while (group := self._next_group()) is not None:
                _commit_group(connection, group)

    def _next_group(self) -> list[_Unit] | None:
        first = self._queue.get()
        if first is None:
            return None
        group = [first]
        while len(group) < GROUP_MAX and not self._queue.empty():
            unit = self._queue.get()
            if unit is None:
                self._queue.put(None)
                break
            group.append(unit)
        return group


def _commit_group(connection: Connection, group: list[_Unit]) -> None:
    """Run each unit behind a savepoint of its own, commit once, then answer all of them."""
    answers: list[tuple[_Unit, Any, BaseException | None]] = []
    try:
        _execute(connection, "BEGIN IMMEDIATE")
        for unit in group:
            answers.append((unit, *_attempt(connection, unit)))
        _execute(connection, "COMMIT")
    except Exception as error:
        # SQLite itself rolls back on some errors (a full disk), and a broken disk may refuse even this: the next
        # group then fails at its BEGIN, but no caller is left waiting.
        with suppress(sqlite3.Error):
            _execute(connection, "ROLLBACK")
        refused = Unavailable(f"The database could not commit ({type(error).__name__}); nothing was kept, try again.")
        refused.__cause__ = error
        answers = [(unit, None, refused) for unit in group]
    for unit, result, failure in answers:
        if failure is not None:
            unit.answer.set_exception(failure)
        else:
            unit.answer.set_result(result)


def _attempt(connection: Connection, unit: _Unit) -> tuple[Any, BaseException | None]:
    _execute(connection, "SAVEPOINT unit")
    try:
        result = carry_out(unit.work, connection)
    except BaseException as error:  # whatever it is belongs to the caller: the writer must outlive every unit
        _execute(connection, "ROLLBACK TO unit")
        _execute(connection, "RELEASE unit")
        return None, told(error, connection) if isinstance(error, sqlite3.Error) else error
    _execute(connection, "RELEASE unit")
    return result, None


def _execute(connection: Connection, statement: str) -> None:
    """A statement that begins or ends something; SQLAlchemy's own way would take longer than all of them together."""
    driver = connection.connection.driver_connection
    assert driver is not None
    driver.execute(statement).close()


def _migrated(engine: Engine, package: str) -> Connection:
    """The one connection that may write, with the tables brought forward."""
    with ExitStack() as undo:
        undo.callback(engine.dispose)
        connection = undo.enter_context(engine.connect())
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        migrate(connection, package)
        connection.exec_driver_sql("COMMIT")
        undo.pop_all()
    return connection


def _engine(path: Path, synchronous: str) -> Engine:
    """An engine whose transactions we begin ourselves: pysqlite's own begin would come too late for IMMEDIATE."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=READERS_MAX + 1,
        max_overflow=0,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,  # they hold password hashes and what people wrote
        connect_args={"check_same_thread": False, "cached_statements": STATEMENTS_PREPARED},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in (
            f"busy_timeout={BUSY_MILLISECONDS}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            f"fullfsync={synchronous == 'FULL'}",  # macOS: a plain fsync leaves the data in the drive's cache
            "foreign_keys=ON",
            "query_only=ON",
            "cache_size=-16384",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine

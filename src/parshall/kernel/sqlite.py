"""Database on SQLite: one writer that commits a group of transactions at a time, and readers on WAL snapshots."""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import QueuePool

from parshall.kernel.database import T, Work, migrate
from parshall.kernel.errors import StartupError, Unavailable

GROUP_MAX = 256
"""Transactions that may share one commit."""
READERS_MAX = 4
BUSY_MILLISECONDS = 5000
"""How long to wait for another process (a command on the same machine) that holds the write lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    work: Callable[[Connection], Any]
    answer: "Future[Any]"


class SqliteDatabase:
    """The embedded engine. `synchronous=FULL` makes a commit survive power loss, `NORMAL` a kill of the process."""

    def __init__(self, path: Path, *, package: str, synchronous: Literal["FULL", "NORMAL"] = "FULL") -> None:
        """Open (or make) the file and bring its tables forward. Raises StartupError with one sentence."""
        self._path = path
        self._engine = _engine(path, synchronous)
        self._queue: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(READERS_MAX, thread_name_prefix=f"read-{path.stem}")
        self._closed = False
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                migrate(connection, package)
                connection.exec_driver_sql("COMMIT")
        except DatabaseError as error:
            self._engine.dispose()
            raise StartupError(
                f"The database {path} cannot be used ({error.orig}); restore it or move it away."
            ) from error
        self._writer = threading.Thread(target=self._write_groups, name=f"write-{path.stem}", daemon=True)
        self._writer.start()

    async def read(self, work: Work[T]) -> T:
        """Run `work` on a snapshot in a reader thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Work[T]) -> T:
        """Queue `work` for the writer; returns once its group is committed.

        A caller that is cancelled meanwhile does not undo it: whoever must know asks again by id.
        """
        if self._closed:
            raise Unavailable("The database is closing; try again shortly.")
        unit = _Unit(work=work, answer=Future())
        self._queue.put(unit)
        return cast(T, await asyncio.shield(asyncio.wrap_future(unit.answer)))

    async def close(self) -> None:
        """Commit what is queued, then close every connection."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown(wait=True)
        self._engine.dispose()

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                return work(connection)
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def _write_groups(self) -> None:
        with self._engine.connect() as connection:
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
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        for unit in group:
            answers.append((unit, *_attempt(connection, unit)))
        connection.exec_driver_sql("COMMIT")
    except Exception as error:
        if connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("ROLLBACK")
        refused = Unavailable(f"The database could not commit ({type(error).__name__}); nothing was kept, try again.")
        refused.__cause__ = error
        answers = [(unit, None, refused) for unit in group]
    for unit, result, failure in answers:
        if failure is not None:
            unit.answer.set_exception(failure)
        else:
            unit.answer.set_result(result)


def _attempt(connection: Connection, unit: _Unit) -> tuple[Any, BaseException | None]:
    connection.exec_driver_sql("SAVEPOINT unit")
    try:
        result = unit.work(connection)
    except Exception as error:
        connection.exec_driver_sql("ROLLBACK TO unit")
        connection.exec_driver_sql("RELEASE unit")
        return None, error
    connection.exec_driver_sql("RELEASE unit")
    return result, None


def _engine(path: Path, synchronous: str) -> Engine:
    """An engine whose transactions we begin ourselves: pysqlite's own begin would come too late for IMMEDIATE."""
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=QueuePool,
        pool_size=READERS_MAX + 1,
        max_overflow=0,
        isolation_level="AUTOCOMMIT",
        connect_args={"check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in (
            f"busy_timeout={BUSY_MILLISECONDS}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            "cache_size=-16384",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine

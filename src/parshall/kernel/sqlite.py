"""Database on SQLite: one connection that commits a group of transactions at a time, and readers on WAL snapshots.

Brief work is carried out on the event loop, because a change of threads costs more than it does. A thread waits for the
disk: SQLite commits to the write-ahead log without waiting, the thread then has the operating system write that out,
and only then is anybody answered.
"""

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import QueuePool

from parshall.kernel.clock import Clock, now
from parshall.kernel.database import T, Work, carry_out, migrate, told
from parshall.kernel.errors import StartupError, Unavailable
from parshall.kernel.grouping import BUSY_MILLISECONDS, Answer, Unit, committed, driver_of
from parshall.kernel.telemetry import log

GROUP_MAX = 256
"""Transactions that may share one commit."""
READERS_MAX = 4
STATEMENTS_PREPARED = 512
"""Per connection: every size of every statement over many rows (kernel.bulk) and the rest beside."""
CHECKPOINT_SECONDS = 1.0
"""How long after a commit the write-ahead log is moved into the file."""
LOG_PAGES_MAX = 16_384
"""Of the write-ahead log. A longer one is moved while nobody writes, so that it can begin anew."""
MOVES_MORE = 2
"""Moves before that, each of what was written during the one before it: ever less is left for when nobody may write."""
CHECKPOINT_BUSY_MILLISECONDS = 50
"""How long that may keep others from writing, where a long read is in its way."""

_CLOSING = "The database is closing; try again shortly."
_DISK_FAILED = (
    "The disk failed while a change was being kept, so it is not known which of the last ones were; "
    "check it and restart, then send the same request with the same id or key again."
)

_logger = log("database")


@dataclass(slots=True)
class _Group:
    """Transactions that share a commit."""

    units: Sequence[Unit]
    loop: asyncio.AbstractEventLoop
    answers: Sequence[Answer] | None
    """Of all units, once the group is carried out."""


class SqliteDatabase:
    """The embedded engine. `synchronous=FULL` makes a commit survive power loss, `NORMAL` a kill of the process."""

    def __init__(
        self, path: Path, *, package: str, synchronous: Literal["FULL", "NORMAL"] = "FULL", clock: Clock = now
    ) -> None:
        """Open (or make) the file and bring its tables forward. Raises StartupError with one sentence."""
        self._path = path
        self._clock = clock
        self._engine = _engine(path)
        self._readers = ThreadPoolExecutor(READERS_MAX, thread_name_prefix=f"read-{path.stem}")
        self._closed = False
        self._failed = False
        self._waiting: list[Unit] = []
        self._planned = False
        self._under_way: _Group | None = None
        self._lent = False
        self._drained: asyncio.Future[None] | None = None
        self._checkpoint: asyncio.TimerHandle | None = None
        try:
            self._connection = _migrated(self._engine, package)
            self._log = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC) if synchronous == "FULL" else None
        except (DatabaseError, OSError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            problem = f"The database {path} cannot be used ({reason}); restore it or move it away."
            raise StartupError(problem) from error
        except CommandError as error:
            problem = f"The database {path} is of another version ({error}); start the newest version."
            raise StartupError(problem) from error
        self._groups: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._keep_groups, name=f"write-{path.stem}", daemon=True)
        self._thread.start()

    async def read(self, work: Work[T], *, brief: bool = False) -> T:
        """Run `work` on a snapshot, in a reader thread unless it is brief."""
        self._check()
        if brief and not self._lent:
            return self._glance(work)
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    async def write(self, work: Work[T], *, brief: bool = False) -> T:
        """Run `work` in the next group; returns once that is on the disk.

        A caller that is cancelled meanwhile does not undo it: whoever must know asks again by id.
        """
        self._check()
        unit = Unit(work=work, brief=brief, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(unit)
        self._plan()
        return cast(T, await unit.answer)

    def instant(self, connection: Connection) -> int:  # noqa: ARG002 - another engine asks its server
        """The clock that was handed in: a file has none of its own, and all its writers share this machine's."""
        return self._clock()

    def version(self, connection: Connection) -> Hashable:
        """The commits of others on the file, as SQLite tells them, and the rows that this connection has changed."""
        driver = driver_of(connection)
        return (*driver.execute("PRAGMA data_version").fetchone(), driver.total_changes)

    async def close(self) -> None:
        """Commit what is queued, then close every connection."""
        if self._closed:
            return
        self._closed = True
        if self._waiting or self._under_way is not None:
            self._drained = asyncio.get_running_loop().create_future()
            await self._drained
        self._groups.put(None)
        await asyncio.to_thread(self._thread.join)
        if self._checkpoint is not None:
            self._checkpoint.cancel()
        await asyncio.to_thread(self._readers.shutdown)
        self._connection.close()
        self._engine.dispose()
        if self._log is not None:
            os.close(self._log)

    def _check(self) -> None:
        if self._closed:
            raise Unavailable(_CLOSING)
        if self._failed:
            raise Unavailable(_DISK_FAILED)

    # ── On the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _glance(self, work: Work[T]) -> T:
        """On the connection that writes, which is between two groups: another one would read its pages anew."""
        driver = driver_of(self._connection)
        changed = driver.total_changes
        driver.execute("BEGIN").close()
        try:
            return carry_out(work, self._connection)
        finally:
            driver.execute("ROLLBACK").close()
            if driver.total_changes != changed:
                raise told(sqlite3.OperationalError("attempt to write in a read"), self._connection)

    def _plan(self) -> None:
        """Take a group when this turn of the loop is over: whoever comes until then is in it."""
        if self._waiting and not self._planned and self._under_way is None:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Take the next group: one at a time, so that all who come meanwhile make the one behind it."""
        self._planned = False
        units, self._waiting = self._waiting[:GROUP_MAX], self._waiting[GROUP_MAX:]
        brief = all(unit.brief for unit in units)
        answers = committed(self._connection, units, patient=False) if brief else None
        self._under_way = group = _Group(units, asyncio.get_running_loop(), answers)
        self._lent = answers is None
        if self._lent or self._log is not None:
            self._groups.put(group)
        else:
            self._come_back(group)

    def _come_back(self, group: _Group) -> None:
        """Answer a group that is kept."""
        self._under_way = None
        self._lent = False
        for unit, result, failure in group.answers or ():
            if unit.answer.done():  # its caller was cancelled
                continue
            if failure is not None:
                unit.answer.set_exception(failure)
            else:
                unit.answer.set_result(result)
        self._plan()
        if self._drained is not None and not self._waiting:
            self._drained.set_result(None)
        if self._checkpoint is None and not self._closed:
            self._checkpoint = group.loop.call_later(CHECKPOINT_SECONDS, self._begin_checkpoint)

    def _begin_checkpoint(self) -> None:
        self._checkpoint = None
        if not self._closed:
            self._readers.submit(self._move_log)

    # ── In threads ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep_groups(self) -> None:
        """Bring groups to the disk, after carrying out those that the loop did not."""
        while (group := self._groups.get()) is not None:
            if group.answers is None:
                group.answers = committed(self._connection, group.units, patient=True)
            if not self._kept():
                group.answers = [(unit, None, Unavailable(_DISK_FAILED)) for unit in group.units]
            with suppress(RuntimeError):  # the loop has ended, and everybody with it who waited
                group.loop.call_soon_threadsafe(self._come_back, group)

    def _kept(self) -> bool:
        """Whether all commits are as durable as they have to be."""
        if self._log is not None and not self._failed:
            try:
                _to_disk(self._log)
            except OSError as error:  # the system may have dropped what it could not write: ask it no more
                _logger.critical("disk_failed", path=str(self._path), reason=str(error))
                self._failed = True
        return not self._failed

    def _read(self, work: Work[T]) -> T:
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            try:
                return carry_out(work, connection)
            finally:
                connection.exec_driver_sql("ROLLBACK")

    def _move_log(self) -> None:
        """Move the write-ahead log into the file: in a commit it would be the loop that waits for that."""
        try:
            with self._engine.connect() as connection:
                driver = driver_of(connection)
                if _moved(driver) >= LOG_PAGES_MAX:  # somebody wrote at each moment at which it could have begun anew
                    for _ in range(MOVES_MORE):
                        _moved(driver)
                    driver.execute(f"PRAGMA busy_timeout={CHECKPOINT_BUSY_MILLISECONDS}").close()
                    try:
                        driver.execute("PRAGMA wal_checkpoint(RESTART)").close()
                    finally:
                        driver.execute(f"PRAGMA busy_timeout={BUSY_MILLISECONDS}").close()
        except (sqlite3.Error, DatabaseError) as error:
            _logger.warning("checkpoint_failed", path=str(self._path), reason=str(error))


def _moved(driver: sqlite3.Connection) -> int:
    """Move what is in the write-ahead log while others go on writing it; its length in pages."""
    [(_, pages, _)] = driver.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return int(pages)


def _to_disk(file: int) -> None:
    """See that what was written to the file survives a loss of power. Raises OSError."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: a plain fsync leaves the data in the drive's cache
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(file)


def _migrated(engine: Engine, package: str) -> Connection:
    """The one connection that may write, with the tables brought forward."""
    with ExitStack() as undo:
        undo.callback(engine.dispose)
        connection = undo.enter_context(engine.connect())
        connection.exec_driver_sql("PRAGMA query_only=OFF")
        connection.exec_driver_sql("PRAGMA wal_autocheckpoint=0")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        migrate(connection, package)
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA busy_timeout=0")  # from now on it is for us to wait, or not
        undo.pop_all()
    return connection


def _engine(path: Path) -> Engine:
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
            "synchronous=NORMAL",  # a commit is brought to the disk by us
            "checkpoint_fullfsync=ON",
            "foreign_keys=ON",
            "query_only=ON",
            "cache_size=-16384",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    return engine

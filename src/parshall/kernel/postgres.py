"""Database on PostgreSQL: every unit of work a transaction of its own, on a bounded number of connections."""

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
from alembic.util import CommandError
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, ExceptionContext, create_engine, event
from sqlalchemy.exc import DatabaseError, DBAPIError
from sqlalchemy.pool import QueuePool

from parshall.kernel.bulk import run
from parshall.kernel.clock import Clock
from parshall.kernel.database import T, Work, carry_out, migrate, told
from parshall.kernel.errors import StartupError, Unavailable
from parshall.kernel.postgres_silence import AttentiveConnection, ServerSilent

CONNECTIONS = 8
"""Connections of one service in one process, half of them for reads: a burst of these must not keep writes out."""
BUSY_SECONDS_MAX = 5.0
"""How long a unit of work waits for a free connection."""
UNITS_MAX = 4096
"""Units that may run or wait at once: beyond it, memory would be spent on answers that come too late anyway."""
TRIES_MAX = 4
"""Runs of one unit, where a neighbour or a restarted server was in its way."""
PAUSE_SECONDS_MAX = 0.01
"""Before another run: two units that met in a deadlock should not meet again."""
PREPARED_AFTER_RUNS = 2
CONNECTION_OPTIONS = {
    "connect_timeout": "3",
    # A server that vanished without a word is noticed within about ten seconds, not within the system's two hours.
    "keepalives": "1",
    "keepalives_idle": "4",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
SESSION = "SET lock_timeout = '10s'; SET idle_in_transaction_session_timeout = '30s'"
"""No replica that hangs in a transaction may hold the others up for longer."""
SESSION_OF_WRITES = (
    f"{SESSION}; SET default_transaction_isolation = 'read committed'; "
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off"
)
"""Each statement sees what was committed before it, whatever the server's default is: who has waited for a lock would
else look past what its holder has done.

Writes find their rows by index. A plan that reads a table whole because it was small, or not yet analyzed, when the
statement was prepared would be kept while the table grows."""

_UNIQUE_VIOLATION = "23505"
_RACES = frozenset({"40001", "40P01", _UNIQUE_VIOLATION})
"""Serialization failure, deadlock, and a row that somebody else made between the look and the insert."""
_GOING = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""The server ended the connection, or is about to: shutdown, crash of a neighbour, start, idle for too long."""
_CONNECTION_CLASS = "08"
_NOT_NOW_CLASSES = frozenset({"53", _CONNECTION_CLASS})
_NOT_NOW = _GOING | {"55P03", "57014"}
"""Also a lock that was not given in time, and a statement that ran too long."""
_READ_ONLY = "25006"
"""To a write: this server is no longer the one that writes, but there may be another behind the same name."""
_UNKNOWN_CLASSES = frozenset({_CONNECTION_CLASS, "57", "58", "XX"})
"""Errors at a commit that do not say whether it happened; every other one says that it did not."""

_CLOSING = "The database is closing; try again shortly."
_BUSY = "Every connection to the database is busy; nothing was kept, try again shortly."
_UNREACHABLE = "The database cannot be reached; nothing was kept, try again shortly."
_CONTENDED = "Other changes were in the way of this one; nothing was kept, try again shortly."
_UNKNOWN = (
    "The connection to the database broke during the commit, so it is not known whether the change was kept; "
    "send the same request with the same id or key again."
)
_INSTANT = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class PostgresDatabase:
    """The shared engine: several processes (replicas) may open one database, each with its own connections.

    A write is a READ COMMITTED transaction, a read a read-only REPEATABLE READ one. A unit of work runs again when a
    neighbour was in its way or its connection broke before the commit; one that broke during the commit is answered
    with Unavailable, because it may have happened.
    """

    def __init__(self, url: str, *, package: str, clock: Clock | None = None, connections: int = CONNECTIONS) -> None:
        """Connect and bring the tables of `package` forward; one replica does, others wait. Raises StartupError.

        `url` is any URL of libpq. Without a `clock` the server's own tells the time.
        """
        assert connections >= 2
        self._clock = clock
        self._closed = False
        options = _options(url, package)
        self._name = f"{options.get('dbname', 'of the user')} on {options.get('host', 'this machine')}"
        writers, readers = connections - connections // 2, connections // 2
        self._write_engine = _engine(options, writers, read_only=False)
        self._read_engine = _engine(options, readers, read_only=True)
        self._writers = ThreadPoolExecutor(writers, thread_name_prefix=f"write-{package}")
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix=f"read-{package}")
        self._room = threading.BoundedSemaphore(UNITS_MAX)
        try:
            self._start(package)
        except BaseException:
            self._dispose()
            raise

    async def read(self, work: Work[T], *, brief: bool = False) -> T:  # noqa: ARG002 - every round trip is long
        """Run `work` on a snapshot. Raises Unavailable where no connection is to be had."""
        return await self._answer(self._readers, self._read, work)

    async def write(self, work: Work[T], *, brief: bool = False) -> T:  # noqa: ARG002 - every round trip is long
        """Run `work` in a transaction; returns once it is committed.

        A caller that is cancelled meanwhile does not undo it: whoever must know asks again by id.
        """
        return await self._answer(self._writers, self._write, work)

    def instant(self, connection: Connection) -> int:
        """The server's clock at this moment, which all replicas share, or the one that was handed in."""
        if self._clock is not None:
            return self._clock()
        [[(instant,)]] = run(connection, [(_INSTANT, ())])  # in one round trip with the BEGIN
        return int(instant)

    def version(self, connection: Connection) -> None:
        """The server counts for nobody what replicas write."""

    async def close(self) -> None:
        """Finish what is under way or waits, then close every connection."""
        if self._closed:
            return
        self._closed = True
        await asyncio.to_thread(self._dispose)

    def _start(self, package: str) -> None:
        try:
            with self._write_engine.begin() as connection:
                _check_settings(connection)
                _hold(connection, package)
                migrate(connection, package)
        except StartupError as error:
            raise StartupError(f"The database {self._name} {error}") from error
        except CommandError as error:
            problem = f"The database {self._name} is of another version ({error}); start the newest version."
            raise StartupError(problem) from error
        except DatabaseError as error:
            raise StartupError(f"The database {self._name} {_complaint(error)}") from error

    def _dispose(self) -> None:
        self._writers.shutdown()
        self._readers.shutdown()
        self._write_engine.dispose()
        self._read_engine.dispose()

    async def _answer(self, threads: ThreadPoolExecutor, run: Callable[[Work[T]], T], work: Work[T]) -> T:
        """The result of `work`, or Unavailable when it has not begun in time."""
        if self._closed:
            raise Unavailable(_CLOSING)
        if not self._room.acquire(blocking=False):
            raise Unavailable(_BUSY)
        unit: Future[T] = threads.submit(run, work)
        unit.add_done_callback(lambda _unit: self._room.release())
        # Only a unit that no thread has taken up yet can be cancelled, so nothing is undone that has begun.
        patience = asyncio.get_running_loop().call_later(BUSY_SECONDS_MAX, unit.cancel)
        try:
            return await asyncio.shield(asyncio.wrap_future(unit))
        except asyncio.CancelledError:
            if unit.cancelled() and not _is_cancelled():
                raise Unavailable(_BUSY) from None
            raise
        finally:
            patience.cancel()

    def _write(self, work: Work[T]) -> T:
        return _again(lambda: _written(self._write_engine, work))

    def _read(self, work: Work[T]) -> T:
        return _again(lambda: _seen(self._read_engine, work))


def _written(engine: Engine, work: Work[T]) -> T:
    with _connected(engine) as connection:
        result = carry_out(work, connection)
        _commit(connection)
        return result


def _seen(engine: Engine, work: Work[T]) -> T:
    with _connected(engine) as connection:
        return carry_out(work, connection)


@contextmanager
def _connected(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction, which is undone unless it is committed."""
    with engine.connect() as connection:
        connection.begin()  # statements of kernel.bulk go past SQLAlchemy, which would not notice that one has begun
        try:
            yield connection
        except psycopg.Error as error:
            driver = connection.connection.driver_connection
            lost = driver is None or driver.closed or error.sqlstate in _GOING or error.sqlstate == _READ_ONLY
            if lost:
                connection.invalidate(error)
                engine.dispose()  # the others too, as `drop_all_when_one_is_lost` below
            raise told(error, connection, lost=lost) from error


def _commit(connection: Connection) -> None:
    """Commit. Raises Unavailable when it may have happened, DBAPIError when it has not."""
    driver = connection.connection.driver_connection
    assert driver is not None
    if driver.info.transaction_status is TransactionStatus.INERROR:  # the server would roll back and call it done
        raise RuntimeError("a unit of work went on after the database had refused one of its statements")
    try:
        connection.commit()
    except DBAPIError as error:
        state = _state(error)
        if state is None or state[:2] in _UNKNOWN_CLASSES:
            raise Unavailable(_UNKNOWN) from error
        raise


def _again(attempt: Callable[[], T]) -> T:
    """The result of `attempt`, which is made again when that can help. Raises what the last one raised, for callers."""
    for tries_left in reversed(range(TRIES_MAX)):
        try:
            return attempt()
        except DBAPIError as error:
            _judge(error, last=not tries_left)
        time.sleep(random.uniform(0, PAUSE_SECONDS_MAX))  # noqa: S311 - no secret
    raise AssertionError("the last attempt returns or raises")


def _judge(error: DBAPIError, *, last: bool) -> None:
    """Return when another run can help; else raise what the caller should see."""
    state = _state(error)
    if error.connection_invalidated:
        if last or isinstance(error.orig, ServerSilent):  # who waited for that has waited long enough
            raise Unavailable(_UNREACHABLE) from error
    elif state in _RACES:
        if last:
            raise error if state == _UNIQUE_VIOLATION else Unavailable(_CONTENDED) from error
    elif state is None and isinstance(error.orig, psycopg.OperationalError):
        raise Unavailable(_UNREACHABLE) from error  # it could not even be connected to
    elif state in _NOT_NOW or (state or "")[:2] in _NOT_NOW_CLASSES:
        raise Unavailable(_UNREACHABLE) from error
    else:
        raise error


def _state(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _options(url: str, package: str) -> dict[str, Any]:
    """What libpq makes of the URL, over our own defaults. Raises StartupError without a word of the URL's content."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        raise StartupError(
            "The PostgreSQL URL cannot be read; write it as postgresql://user:password@host:port/database, "
            "with special characters percent-encoded."
        ) from None  # the cause quotes the password
    return {**CONNECTION_OPTIONS, "application_name": package, **given}


def _engine(options: dict[str, Any], connections: int, *, read_only: bool) -> Engine:
    engine = create_engine(
        "postgresql+psycopg://",
        connect_args={**options, "prepare_threshold": PREPARED_AFTER_RUNS},
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        use_native_hstore=False,
        hide_parameters=True,  # they hold password hashes and what people wrote
    )

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, _arguments: object, named: dict[str, Any]) -> psycopg.Connection:
        return AttentiveConnection.connect(**named)

    @event.listens_for(engine, "connect")
    def prepare(connection: psycopg.Connection, _record: object) -> None:
        connection.execute(SESSION if read_only else SESSION_OF_WRITES)
        connection.commit()
        if read_only:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.read_only = True

    @event.listens_for(engine, "handle_error")
    def drop_all_when_one_is_lost(context: ExceptionContext) -> None:
        """A server that goes sends word before it closes; the other connections would each cost a run to find out."""
        state = getattr(context.original_exception, "sqlstate", None)
        if state in _GOING or (state == _READ_ONLY and not read_only):
            context.is_disconnect = True

    return engine


# ── Start ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_settings(connection: Connection) -> None:
    """Refuse a server that would forget what it has acknowledged, or that cannot keep every letter."""
    commit, encoding = connection.exec_driver_sql(
        "SELECT current_setting('synchronous_commit'), current_setting('server_encoding')"
    ).one()
    if commit == "off":
        raise StartupError("has synchronous_commit off and so could lose acknowledged changes; turn it on.")
    if encoding != "UTF8":
        raise StartupError(f"has the encoding {encoding}; create it with ENCODING 'UTF8'.")


def _hold(connection: Connection, package: str) -> None:
    """Let one replica at a time bring the tables forward, however long it takes."""
    service = package.rpartition(".")[2]
    digest = hashlib.sha256(f"parshall {service}".encode()).digest()
    connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({int.from_bytes(digest[:8], signed=True)})")


def _complaint(error: DatabaseError) -> str:
    """What the operator can do about an error at start, as the end of a sentence."""
    state = _state(error)
    reason = " ".join(str(error.orig).split())
    if state is None or state in _GOING or state[:2] in _NOT_NOW_CLASSES:
        return f"cannot be reached ({reason}); start it, or correct the URL."
    if state == "42501":
        return f"lacks a right ({reason}); grant its user CREATE and USAGE on the schema."
    return f"cannot be used ({reason}); restore it, or name another one."

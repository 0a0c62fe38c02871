"""The port to a service's records: units of work run in transactions, and migrations brought forward on start."""

from collections.abc import Callable, Hashable
from importlib.resources import as_file, files
from typing import Any, Protocol, TypeVar

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

T = TypeVar("T")
Work = Callable[[Connection], T]
"""A unit of work: synchronous, free of other I/O, safe to run again after a failure. It never commits.

It lets the errors of its statements pass: PostgreSQL refuses every statement after a failed one.
"""


class Database(Protocol):
    """Transactions on one service's records. Implemented by SqliteDatabase and PostgresDatabase.

    `brief` work touches few rows, all by their keys. An engine within the process carries it out on the event loop.
    """

    async def read(self, work: Work[T], *, brief: bool = False) -> T:
        """Run `work` on a consistent snapshot; a write in it fails. Raises Unavailable once closed."""
        ...

    async def write(self, work: Work[T], *, brief: bool = False) -> T:
        """Run `work` in a transaction and return its result once that is durable; an exception undoes all of it.

        Raises Unavailable where nothing could be kept, where it is not known whether it was, and once closed.
        """
        ...

    def instant(self, connection: Connection) -> int:
        """Microseconds since the epoch by the database's clock: what is due is the same to every replica."""
        ...

    def version(self, connection: Connection) -> Hashable:
        """What is the same at two moments of two writes only where nobody has written in between; None: cannot tell.

        Whoever compares the end of one write with the beginning of another still holds what it knew of the records.
        """
        ...

    async def close(self) -> None:
        """Finish what is under way and release every connection."""
        ...


async def answers(database: Database) -> None:
    """Raises unless the database gives an answer."""
    await database.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())


def carry_out(work: Work[T], connection: Connection) -> T:
    """The result of `work`, which may fail with anything."""
    try:
        return work(connection)
    except StopIteration as error:  # a future refuses to carry it: the caller would wait for ever
        raise RuntimeError("a unit of work raised StopIteration") from error


def told(error: Exception, connection: Connection, *, lost: bool = False) -> DBAPIError:
    """An error of the driver, of a statement that it was given directly (kernel.bulk), as SQLAlchemy tells the others.

    `lost` says whether the connection went with it.
    """
    driver: Any = connection.dialect.dbapi
    found = DBAPIError.instance(None, None, error, driver.Error, hide_parameters=True, connection_invalidated=lost)
    assert isinstance(found, DBAPIError)
    return found


def migrate(connection: Connection, package: str) -> None:
    """Bring the tables of the service `package` (such as `parshall.auth`) forward to its newest migration.

    Migrations live in `<package>/migrations/versions`; the revision reached is kept in the table
    `<service>_version`, so that services may share a database. The caller owns the transaction.
    """
    service = package.rpartition(".")[2]
    with as_file(files(package) / "migrations") as folder:
        script = ScriptDirectory(str(folder))
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": f"{service}_version",
                "fn": lambda revision, _context: script._upgrade_revs("head", revision),
            },
        )
        with Operations.context(context):
            context.run_migrations()

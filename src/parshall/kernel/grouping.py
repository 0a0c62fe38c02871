"""Transactions that share one commit on SQLite."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from parshall.kernel.database import carry_out, told
from parshall.kernel.errors import Unavailable

BUSY_MILLISECONDS = 5000
"""How long to wait for another process (a command on the same machine) that holds the write lock."""
BUSY_PAUSE_SECONDS = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One transaction and who waits for it."""

    work: Callable[[Connection], Any]
    brief: bool
    answer: "asyncio.Future[Any]"


Answer = tuple[Unit, Any, BaseException | None]
"""What a unit came to, or why it did not."""


def committed(connection: Connection, units: Sequence[Unit], *, patient: bool) -> Sequence[Answer] | None:
    """Run each unit behind a savepoint of its own and commit once; the answers, which nobody may hear yet.

    None where another process holds the file's lock and we are not patient enough to wait for it.
    """
    answers: list[Answer] = []
    try:
        if not _begun(connection, patient=patient):
            return None
        if len(units) == 1:
            answers = [_alone(connection, units[0])]
        else:
            answers = [(unit, *_attempt(connection, unit)) for unit in units]
            _execute(connection, "COMMIT")
    except Exception as error:
        # SQLite itself rolls back on some errors (a full disk), and a broken disk may refuse even this: the next
        # group then fails at its BEGIN, but no caller is left waiting.
        with suppress(sqlite3.Error):
            _execute(connection, "ROLLBACK")
        refused = Unavailable(f"The database could not commit ({type(error).__name__}); nothing was kept, try again.")
        refused.__cause__ = error
        answers = [(unit, None, refused) for unit in units]
    return answers


def _begun(connection: Connection, *, patient: bool) -> bool:
    """Whether the write lock is ours; the patient wait for it and then raise sqlite3.OperationalError."""
    until = time.monotonic() + BUSY_MILLISECONDS / 1000
    while True:
        try:
            _execute(connection, "BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or (patient and time.monotonic() >= until):
                raise
            if not patient:
                return False
            time.sleep(BUSY_PAUSE_SECONDS)
        else:
            return True


def _alone(connection: Connection, unit: Unit) -> Answer:
    """The one unit of a group needs no savepoint."""
    try:
        result = carry_out(unit.work, connection)
    except BaseException as error:  # as below
        _execute(connection, "ROLLBACK")
        return unit, None, _of_unit(error, connection)
    _execute(connection, "COMMIT")
    return unit, result, None


def _attempt(connection: Connection, unit: Unit) -> tuple[Any, BaseException | None]:
    _execute(connection, "SAVEPOINT unit")
    try:
        result = carry_out(unit.work, connection)
    except BaseException as error:  # whatever it is belongs to the caller: the writer must outlive every unit
        _execute(connection, "ROLLBACK TO unit")
        _execute(connection, "RELEASE unit")
        return None, _of_unit(error, connection)
    _execute(connection, "RELEASE unit")
    return result, None


def _of_unit(error: BaseException, connection: Connection) -> BaseException:
    return told(error, connection) if isinstance(error, sqlite3.Error) else error


def _execute(connection: Connection, statement: str) -> None:
    """A statement that begins or ends something; SQLAlchemy's own way would take longer than all of them together."""
    driver_of(connection).execute(statement).close()


def driver_of(connection: Connection) -> sqlite3.Connection:
    """What SQLAlchemy's connection stands for."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver

"""Rows in the order of their accounts, read in large pieces from one snapshot by either engine."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from parshall.accounting.pricing import Price
from parshall.kernel.errors import Unavailable

Row = tuple[Any, ...]


class Unreadable(Unavailable):
    """The database broke off in the middle of its rows."""

    code = "records_unreadable"
    title = "Records unreadable"
    default = "The database cannot be read to the end; check its server or its disk, and try again."


ROWS_PER_READ = 10_000
"""Large enough that a trip to the server costs nothing, small enough to be no burden on memory."""
SORT_MEBIBYTES = 64

_SORTED = (
    # A cursor is by default planned for its first rows; here all are wanted, and sorting once in one go beats looking
    # up each row where it lies.
    "SET LOCAL cursor_tuple_fraction = 1",
    f"SET LOCAL work_mem = '{SORT_MEBIBYTES}MB'",
)
_OF_ALL = {
    "accounts": "SELECT {account}, available, reserved, number, head FROM accounts{only} ORDER BY {order}",
    "grants": (
        "SELECT {account}, id, amount, remaining, expires_at, priority, created_at FROM grants{only} ORDER BY {order}"
    ),
    "transfers": (
        "SELECT {account}, number, kind, amount, grant_id, reservation_id, at, available_after, note, hash "
        "FROM transfers{only} ORDER BY {order}, number"
    ),
    # Ended ones in the order of their settlements, so that few are held at a time; running ones, and those whose place
    # is not known, behind them.
    "reservations": (
        "SELECT {account}, id, state, reserved, parts, charged, uncollected, balance_after, transfers_from, "
        "transfers_to, ended_at, outcome, price_version, usage_source, used_input_tokens, used_cached_input_tokens, "
        "used_output_tokens, used_reasoning_tokens FROM reservations{only} "
        "ORDER BY {order}, coalesce(nullif(transfers_from, 0), 9223372036854775807), transfers_to, id"
    ),
}

_MEMBERSHIPS = (
    "SELECT m.organisation_id, m.id, m.user_id, m.day, m.day_used, m.month, m.month_used, m.total_used, r.on_day, "
    "r.amount FROM members m LEFT JOIN (SELECT member_id, counted_on AS on_day, CAST(sum(CASE WHEN state = 'active' "
    "THEN reserved ELSE coalesce(charged, 0) END) AS BIGINT) AS amount FROM reservations WHERE member_id <> '' "
    "GROUP BY member_id, counted_on) r ON r.member_id = m.id{only} ORDER BY m.organisation_id, m.id"
)


class Ordered:
    """Rows that begin with an account id, ascending; taken one account at a time."""

    def __init__(self, rows: Iterator[Row]) -> None:
        """`rows` is read no further ahead than one row."""
        self._rows = rows
        self._next = next(rows, None)

    @property
    def account_id(self) -> str | None:
        """Whose row comes next; None at the end. Raises Unreadable for what is no account id."""
        if self._next is None:
            return None
        if not isinstance(self._next[0], str):
            raise Unreadable(f"A record names the account {self._next[0]!r}, which is no text; restore a backup.")
        return self._next[0]

    def of(self, account_id: str) -> Iterator[Row]:
        """The rows of that account, if its turn has come. To be read to the end before the next account's."""
        row = self._next
        if row is None or row[0] != account_id:
            return
        for each in chain((row,), self._rows):
            if each[0] != account_id:
                self._next = each
                return
            yield each
        self._next = None


def open_rows(connection: Connection, account_id: str | None) -> dict[str, Ordered]:
    """Accounts, grants, transfers and reservations, of all accounts or of one, as one snapshot holds them.

    They are ordered by code points: as SQLite orders text, as PostgreSQL does in the collation "C", and as Python does.
    """
    if _is_postgres(connection):
        for setting in _SORTED:
            connection.exec_driver_sql(setting)
    return {name: Ordered(_read(connection, name, account_id)) for name in _OF_ALL}


def memberships(connection: Connection, organisation_id: str | None) -> Iterator[Row]:
    """Each membership (of all organisations or of one) with each day on which its streams count, and what they come to.

    Organisation, membership, user, day, used that day, month, used that month, used in all; a day, microcredits.
    """
    only = "" if organisation_id is None else f" WHERE m.organisation_id = {_mark(connection)}"
    return _rows(connection, "members", _MEMBERSHIPS.format(only=only), organisation_id)


def prices(connection: Connection) -> dict[str, Price]:
    """Every price that ever was in force, by its version; what is below zero is no price."""
    rows = connection.exec_driver_sql("SELECT version, input, cached_input, output, reasoning FROM prices")
    return {
        version: Price(input=read, cached_input=cached, output=written, reasoning=thought)
        for version, read, cached, written, thought in rows
        if min(read, cached, written, thought) >= 0
    }


def count_transfers(connection: Connection, account_id: str | None) -> int:
    """How many transfers there should be, for the progress: the accounts know without a look at the transfers."""
    only, values = ("", ()) if account_id is None else (f" WHERE id = {_mark(connection)}", (account_id,))
    counted = connection.exec_driver_sql(f"SELECT coalesce(sum(number), 0) FROM accounts{only}", values).scalar_one()  # noqa: S608 - no value stands in it
    return int(counted) if isinstance(counted, (int, Decimal)) else 0


def _mark(connection: Connection) -> str:
    """How a value is marked in a statement."""
    return "%s" if _is_postgres(connection) else "?"


def _is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


def _read(connection: Connection, name: str, account_id: str | None) -> Iterator[Row]:
    column = "id" if name == "accounts" else "account_id"
    query = _OF_ALL[name].format(
        account=column,
        order=f'{column} COLLATE "C"' if _is_postgres(connection) else column,
        only="" if account_id is None else f" WHERE {column} = {_mark(connection)}",
    )
    return _rows(connection, name, query, account_id)


def _rows(connection: Connection, name: str, query: str, value: str | None) -> Iterator[Row]:
    postgres = _is_postgres(connection)
    driver = connection.connection.driver_connection
    assert driver is not None
    cursor = driver.cursor(name=f"audit_{name}") if postgres else driver.cursor()
    try:
        cursor.execute(query, () if value is None else (value,))
        yield from _pieces(cursor)
    except connection.dialect.loaded_dbapi.Error as error:
        raise Unreadable(
            f"The database broke off while its {name} were read ({error}); check it and try again."
        ) from error
    finally:
        cursor.close()


def _pieces(cursor: Any) -> Iterable[Row]:
    while rows := cursor.fetchmany(ROWS_PER_READ):
        yield from rows

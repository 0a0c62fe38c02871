"""Statements over many rows at once, each in the form in which its engine is quick."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Connection, Integer, Table

Row = tuple[Any, ...]
Statement = tuple[str, tuple[Any, ...]]
"""A statement in its engine's own words, and what it binds."""

_CHUNKS = (128, 64, 32, 16, 8, 4, 2, 1)
"""Rows per statement on SQLite. Few sizes, so that every statement stays prepared; one step of the engine for many
rows, because each step gives up the interpreter lock and must win it back from the event loop."""


def run(connection: Connection, statements: Sequence[Statement]) -> list[list[Row]]:
    """Carry out statements in their order and give the rows of each as plain tuples: none for a change.

    They go to the driver itself, on PostgreSQL all in one round trip. The driver's errors pass as they are: the
    database that runs the unit of work says what they mean.
    """
    driver: Any = connection.connection.driver_connection
    if not is_postgres(connection):
        return [driver.execute(*statement).fetchall() for statement in statements]
    with driver.pipeline():
        cursors = [driver.execute(*statement) for statement in statements]
    return [[] if cursor.rownumber is None else cursor.fetchall() for cursor in cursors]


def query(connection: Connection, text: str, *values: Any) -> Statement:
    """A query with a value for each mark in it. Where the value is a list, the mark is `IN {keys}` or `FROM {list}`.

    A `{list}` is a table of one column, `each`; any other value has the mark `{value}`.
    """
    postgres = is_postgres(connection)
    bound = (_list(each, postgres) if isinstance(each, (list, tuple)) else each for each in values)
    return _marked(text, postgres), tuple(bound)


def is_postgres(connection: Connection) -> bool:
    """Whether the engine is PostgreSQL."""
    return connection.dialect.name == "postgresql"


class Bulk:
    """One table's statements for many rows. A row is a tuple of plain values in the order of the columns named.

    On PostgreSQL the rows travel as one JSON array: one parameter, one plan, whatever their number. On SQLite they are
    the VALUES of a statement. Table and column names come from the code, never from a caller.
    """

    def __init__(self, table: Table, *, key: str) -> None:
        """`key` is the column by which rows are found and updated."""
        self._table = table
        self._key = key
        self._columns = tuple(column.name for column in table.columns)
        self.select = f"SELECT {', '.join(map(_quoted, self._columns))} FROM {table.name}"  # noqa: S608 - names of ours
        """The beginning of a query for whole rows."""

    def insert(self, connection: Connection, rows: Sequence[Row]) -> list[Statement]:
        """Add rows. They may leave out columns at the end that can be absent: all alike, as the first one does."""
        if not rows:
            return []
        columns = self._columns[: len(rows[0])]
        if is_postgres(connection):
            return [(_insert_json(self._table, columns), (_json(rows),))]
        return [(_insert_values(self._table, columns, size), chunk) for size, chunk in _chunked(rows)]

    def delete(self, connection: Connection, keys: Sequence[str]) -> list[Statement]:
        """Remove the rows whose key is among `keys`."""
        if not keys:
            return []
        text = f"DELETE FROM {self._table.name} WHERE {_quoted(self._key)} IN {{keys}}"  # noqa: S608 - names of ours
        return [query(connection, text, keys)]

    def update(self, connection: Connection, columns: tuple[str, ...], rows: Sequence[Row]) -> list[Statement]:
        """Set `columns` of the rows whose key is the first value of each tuple; the rest are the columns' values."""
        if not rows:
            return []
        if is_postgres(connection):
            return [(_update_json(self._table, self._key, columns), (_json(rows),))]
        return [(_update_values(self._table, self._key, columns, size), chunk) for size, chunk in _chunked(rows)]


def _quoted(name: str) -> str:
    return f'"{name}"'


def _list(keys: Sequence[str], postgres: bool) -> str:
    return _array(keys) if postgres else msgspec.json.encode(keys).decode()


def _array(keys: Sequence[str]) -> str:
    """The keys as PostgreSQL writes an array of text; the driver's own way took a third of a ledger batch's CPU."""
    if not keys:
        return "{}"
    text = '","'.join(keys)
    if "\\" in text or text.count('"') > 2 * (len(keys) - 1):
        text = '","'.join(key.replace("\\", "\\\\").replace('"', '\\"') for key in keys)
    return f'{{"{text}"}}'


@lru_cache(maxsize=256)
def _marked(text: str, postgres: bool) -> str:
    if postgres:
        marks = {"IN {keys}": "= ANY(%s::text[])", "{list}": "unnest(%s::text[]) AS each", "{value}": "%s"}
    else:
        each = "SELECT value AS each FROM json_each(?)"
        marks = {"{keys}": f"({each})", "{list}": f"({each})", "{value}": "?"}
    for mark, meaning in marks.items():
        text = text.replace(mark, meaning)
    return text


def _json(rows: Sequence[Row]) -> str:
    return msgspec.json.encode(rows).decode()


def _chunked(rows: Sequence[Row]) -> list[tuple[int, Row]]:
    """The rows in chunks of the sizes above, the values of each chunk in one flat tuple."""
    chunks: list[tuple[int, Row]] = []
    start = 0
    for size in _CHUNKS:
        while len(rows) - start >= size:
            chunks.append((size, tuple(chain.from_iterable(rows[start : start + size]))))
            start += size
    return chunks


@lru_cache(maxsize=256)
def _insert_values(table: Table, columns: tuple[str, ...], size: int) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    row = f"({', '.join('?' * len(columns))})"
    return f"INSERT INTO {table.name} ({names}) VALUES {', '.join([row] * size)}"  # noqa: S608 - names of ours


@lru_cache(maxsize=256)
def _insert_json(table: Table, columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    values = ", ".join(_taken(table, name, place) for place, name in enumerate(columns))
    return f"INSERT INTO {table.name} ({names}) SELECT {values} FROM jsonb_array_elements(%s::jsonb) v"  # noqa: S608 - names of ours


@lru_cache(maxsize=256)
def _update_values(table: Table, key: str, columns: tuple[str, ...], size: int) -> str:
    changes = ", ".join(f'"{name}" = v.column{place}' for place, name in enumerate(columns, start=2))
    row = f"({', '.join('?' * (len(columns) + 1))})"
    values = ", ".join([row] * size)
    return f'UPDATE {table.name} SET {changes} FROM (VALUES {values}) AS v WHERE {table.name}."{key}" = v.column1'  # noqa: S608 - names of ours


@lru_cache(maxsize=256)
def _update_json(table: Table, key: str, columns: tuple[str, ...]) -> str:
    changes = ", ".join(f'"{name}" = {_taken(table, name, place)}' for place, name in enumerate(columns, start=1))
    found = _taken(table, key, 0)
    return f'UPDATE {table.name} t SET {changes} FROM jsonb_array_elements(%s::jsonb) v WHERE t."{key}" = {found}'  # noqa: S608 - names of ours


def _taken(table: Table, name: str, place: int) -> str:
    kind = table.columns[name].type
    text = f"(v->>{place})"
    return f"{text}::bigint" if isinstance(kind, (BigInteger, Integer)) else text

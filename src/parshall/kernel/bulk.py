"""Statements over many rows at once, each in the form in which its engine is quick."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Connection, Integer, Table

Row = tuple[Any, ...]

_CHUNKS = (64, 16, 4, 1)
"""Rows per statement on SQLite. Few sizes, so that every statement stays prepared; one step of the engine for many
rows, because each step gives up the interpreter lock and must win it back from the event loop."""


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

    def find(self, connection: Connection, keys: Sequence[str], *, condition: str = "") -> list[Row]:
        """Whole rows whose key is among `keys`, in no order; `condition` narrows them further."""
        if not keys:
            return []
        narrowed = f" AND {condition}" if condition else ""
        chosen = ", ".join(f'"{name}"' for name in self._columns)
        return fetch(
            connection,
            f'SELECT {chosen} FROM {self._table.name} WHERE "{self._key}" IN {{keys}}{narrowed}',  # noqa: S608 - names of ours
            keys,
        )

    def insert(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Add rows. They may leave out columns at the end that can be absent: all alike, as the first one does.

        Raises IntegrityError where one is there already.
        """
        if not rows:
            return
        columns = self._columns[: len(rows[0])]
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(_insert_json(self._table, columns), (_json(rows),))
            return
        for size, chunk in _chunked(rows):
            connection.exec_driver_sql(_insert_values(self._table, columns, size), chunk)

    def delete(self, connection: Connection, keys: Sequence[str]) -> None:
        """Remove the rows whose key is among `keys`."""
        if not keys:
            return
        postgres = connection.dialect.name == "postgresql"
        query = f'DELETE FROM {self._table.name} WHERE "{self._key}" IN {{keys}}'  # noqa: S608 - names of ours
        connection.exec_driver_sql(_with_lists(query, postgres), (_list(keys, postgres),))

    def update(self, connection: Connection, columns: tuple[str, ...], rows: Sequence[Row]) -> None:
        """Set `columns` of the rows whose key is the first value of each tuple; the rest are the columns' values."""
        if not rows:
            return
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(_update_json(self._table, self._key, columns), (_json(rows),))
            return
        for size, chunk in _chunked(rows):
            connection.exec_driver_sql(_update_values(self._table, self._key, columns, size), chunk)


def fetch(connection: Connection, query: str, *keys: Sequence[str]) -> list[Row]:
    """The rows of a query as plain tuples. Each list of keys stands for the next `IN {keys}` or `FROM {list}`.

    A `{list}` is a table of one column, `each`.
    """
    postgres = connection.dialect.name == "postgresql"
    result = connection.exec_driver_sql(_with_lists(query, postgres), tuple(_list(each, postgres) for each in keys))
    assert result.cursor is not None, "a query has rows"
    rows = list(result.cursor.fetchall())
    result.close()
    return rows


def _list(keys: Sequence[str], postgres: bool) -> list[str] | str:
    return list(keys) if postgres else msgspec.json.encode(list(keys)).decode()


@lru_cache(maxsize=256)
def _with_lists(query: str, postgres: bool) -> str:
    source = "unnest(%s::text[]) AS each" if postgres else "(SELECT value AS each FROM json_each(?))"
    return query.replace("{keys}", f"(SELECT each FROM {source})").replace("{list}", source)  # noqa: S608 - names of ours


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

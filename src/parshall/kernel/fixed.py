"""Statements that never change: compiled once, then given to the driver itself with their values.

SQLAlchemy's own execution of a small statement takes ten times as long as SQLite's, most of it for what such a one
does not need: a cache key, an execution context, a result with named columns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.sql import ClauseElement

from parshall.kernel.bulk import Row

Processor = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compiled:
    text: str
    order: tuple[str, ...] | None
    """The names of the values in their order; None where the driver takes them by name."""
    constants: Mapping[str, Any]
    binding: Mapping[str, Processor]
    results: tuple[tuple[int, Processor], ...]


class Fixed:
    """One statement; the values of its parameters are given at each call.

    The driver's errors pass as they are: the database that runs the unit of work says what they mean.
    """

    def __init__(self, statement: Executable, *names: str) -> None:
        """`names` are the columns of an insert that brings none of its own."""
        assert isinstance(statement, ClauseElement)
        self._statement = statement
        self._names = names
        self._made: dict[str, _Compiled] = {}

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Carry it out; how many rows it has changed."""
        changed: int = self._cursor(connection, values).rowcount
        return changed

    def rows(self, connection: Connection, values: Mapping[str, Any]) -> list[Row]:
        """The rows that it finds, as tuples in the order of its columns."""
        found: list[Row] = self._cursor(connection, values).fetchall()
        results = self._made[connection.dialect.name].results
        return [_processed(row, results) for row in found] if results else found

    def row(self, connection: Connection, values: Mapping[str, Any]) -> Row | None:
        """The one row that it finds, if it finds any."""
        found = self.rows(connection, values)
        assert len(found) <= 1
        return found[0] if found else None

    def _cursor(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        made = self._made.get(connection.dialect.name) or self._make(connection.dialect)
        if made.constants:
            values = {**made.constants, **values}
        if made.binding:
            values = {**values, **{name: change(values[name]) for name, change in made.binding.items()}}
        driver: Any = connection.connection.driver_connection
        return driver.execute(made.text, values if made.order is None else [values[name] for name in made.order])

    def _make(self, dialect: Dialect) -> _Compiled:
        compiled: Any = self._statement.compile(dialect=dialect, column_keys=list(self._names) or None)
        binds = {name: bind.type.dialect_impl(dialect) for name, bind in compiled.binds.items()}
        changes = {name: kind.bind_processor(dialect) for name, kind in binds.items()}
        columns = [column.type.dialect_impl(dialect) for column in getattr(self._statement, "selected_columns", ())]
        results = [column.result_processor(dialect, None) for column in columns]
        made = self._made[dialect.name] = _Compiled(
            text=compiled.string,
            order=None if compiled.positiontup is None else tuple(compiled.positiontup),
            constants={name: bind.value for name, bind in compiled.binds.items() if not bind.required},
            binding={name: change for name, change in changes.items() if change is not None},
            results=tuple((at, change) for at, change in enumerate(results) if change is not None),
        )
        return made


def _processed(row: Row, results: tuple[tuple[int, Processor], ...]) -> Row:
    values = list(row)
    for at, change in results:
        values[at] = change(values[at])
    return tuple(values)

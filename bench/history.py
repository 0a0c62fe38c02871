"""Builds a ledger with a long, right history by bulk, to measure what reads it: `build(url, transfers)`.

Streams of many accounts take turns, as they do in life, so that the transfers of one account lie far apart on
PostgreSQL's disk. What is built is what the rules of accounting would have booked, which an audit confirms.
"""

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
from sqlalchemy import Table

from parshall.accounting.books import stored_parts
from parshall.accounting.chain import GENESIS, link
from parshall.accounting.model import State
from parshall.accounting.pricing import Price, PriceVersion
from parshall.accounting.tables import accounts, grants, prices, reservations, transfers
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO
from parshall.kernel.ids import new_id
from parshall.kernel.metering import UsageSource
from parshall.kernel.postgres import PostgresDatabase
from parshall.kernel.sqlite import SqliteDatabase

PACKAGE = "parshall.accounting"
SQLITE = "sqlite:///"
START = 1_800_000_000 * SECOND
TRANSFERS_PER_ACCOUNT = 500
ROWS_PER_WRITE = 50_000
GRANTED = 40_000
HELD = 1000
"""Microcredits that a stream reserves; most of it is charged."""
VOIDED_EVERY = 16
"""One stream in so many is voided."""
PRICE = PriceVersion.of(
    "bench", Price(input=MICRO, cached_input=MICRO, output=MICRO, reasoning=MICRO), effective_from=0, set_by="bench"
)
"""A token costs a microcredit."""

Row = tuple[Any, ...]


class Writer(Protocol):
    """Adds many rows to a table at once."""

    def write(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows, each with the values of all columns."""
        ...


@dataclass(slots=True)
class _Account:
    """An account while its history is made; it uses up one grant after the other."""

    id: str
    available: int = 0
    number: int = 0
    head: str = GENESIS
    grant_id: str = ""
    remaining: int = 0
    grants: list[Row] = field(default_factory=list)

    def post(self, kind: str, amount: int, change: int, *, at: int, stream: str | None = None) -> Row:
        """The row of the next transfer, which changes what is available by `change`."""
        self.available += change
        self.remaining += change
        self.number += 1
        entry = (self.id, self.number, kind, amount, self.grant_id, stream, at, self.available, "")
        self.head = link(self.head, entry)
        return (*entry, self.head)

    def renew(self, at: int) -> Iterator[Row]:
        """Use up what is left of a grant that is too small for a stream, and issue the next."""
        if self.remaining:
            yield self.post("deduct", self.remaining, -self.remaining, at=at)
        self.close_grant()
        self.grant_id = new_id()
        yield self.post("grant", GRANTED, GRANTED, at=at)

    def close_grant(self) -> None:
        """Keep the row of the grant in use as it stands now."""
        if self.grant_id:
            order = len(self.grants)
            terms = (START + 365 * DAY + order, 0, START + order, "bench", "", 0)
            self.grants.append((self.grant_id, self.id, GRANTED, self.remaining, *terms))


def build(url: str, count: int, *, hot: bool = False) -> str:
    """Make the tables of accounting in an empty database and fill them with at least `count` transfers.

    With `hot` every other stream is of one account, which so owns about half of the history (a little less: the
    streams that are voided, with two transfers for three, are its own). The first account's id, which is the hot one's.
    """
    if url.startswith(SQLITE):
        path = Path(url.removeprefix(SQLITE))
        asyncio.run(SqliteDatabase(path, package=PACKAGE).close())
        with _Sqlite(path) as writer:
            return _fill(writer, count, hot=hot)
    asyncio.run(PostgresDatabase(url, package=PACKAGE).close())
    with psycopg.connect(url) as connection:
        first = _fill(_Postgres(connection), count, hot=hot)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    return first


def _fill(writer: Writer, count: int, *, hot: bool) -> str:
    """Write everything; the first account's id."""
    held = _accounts(count, hot=hot)
    writer.write(prices, [(PRICE.version, PRICE.model_id, 0, MICRO, MICRO, MICRO, MICRO, PRICE.set_by)])
    moved: list[Row] = []
    streams: list[Row] = []
    for number, account in enumerate(_turns(held, count, hot=hot)):
        at = START + number * SECOND // 100
        if account.remaining < HELD:
            moved += account.renew(at)
        rows, stream = _stream(account, number, at)
        moved += rows
        streams.append(stream)
        if len(moved) >= ROWS_PER_WRITE:
            writer.write(transfers, moved)
            writer.write(reservations, streams)
            moved, streams = [], []
    writer.write(transfers, moved)
    writer.write(reservations, streams)
    for account in held:
        account.close_grant()
    writer.write(accounts, [(each.id, each.available, 0, each.number, each.head, START) for each in held])
    writer.write(grants, [row for each in held for row in each.grants])
    return held[0].id


def _accounts(count: int, *, hot: bool) -> list[_Account]:
    """As many as share `count` transfers in turn; where one is hot, the others share half of them."""
    others = max(1, count // TRANSFERS_PER_ACCOUNT // (2 if hot else 1))
    return [_Account(id=new_id()) for _ in range(others + hot)]


def _turns(held: Sequence[_Account], count: int, *, hot: bool) -> Iterator[_Account]:
    """The accounts in turn, the hot one before each of the others, until there are enough transfers."""
    while sum(account.number for account in held) < count:
        if not hot:
            yield from held
            continue
        for account in held[1:]:
            yield held[0]
            yield account


def _stream(account: _Account, number: int, at: int) -> tuple[list[Row], Row]:
    """A reservation with its transfers, settled or voided ten seconds later."""
    stream = f"stream-{at // SECOND}-{number:032x}"
    used = 0 if number % VOIDED_EVERY == 0 else 500 + number % 400
    end = at + 10 * SECOND
    rows = [account.post("reserve", HELD, -HELD, at=at, stream=stream)]
    first = account.number + 1
    if used:
        rows.append(account.post("charge", used, 0, at=end, stream=stream))
    rows.append(account.post("release", HELD - used, HELD - used, at=end, stream=stream))
    state = State.SETTLED if used else State.VOIDED
    whose = (stream, account.id, account.id, PRICE.model_id, PRICE.version)
    parts = stored_parts([(account.grant_id, HELD)])
    tokens = (0, HELD, HELD, HELD, HELD, 0, at, end + 60 * SECOND, HELD, HELD, end + 60 * SECOND, 1, "", 0)
    usage = (0, 0, used, 0, UsageSource.PROVIDER.value, "completed") if used else (*(None,) * 5, "voided")
    outcome = (used, 0 if used else None, account.available, first, account.number + 1)
    return rows, (*whose, state.value, HELD, parts, *tokens, end, *usage, *outcome)


# ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Sqlite:
    """Rows into a file that nobody else uses, without a thought for the loss of power."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path)
        for pragma in ("synchronous=OFF", "cache_size=-1000000", "wal_autocheckpoint=20000"):
            self._connection.execute(f"PRAGMA {pragma}")

    def __enter__(self) -> "_Sqlite":
        return self

    def __exit__(self, *_raised: object) -> None:
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def write(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows in one transaction."""
        marks = ", ".join("?" * len(table.columns))
        with self._connection:
            self._connection.executemany(f"INSERT INTO {table.name} ({_columns(table)}) VALUES ({marks})", rows)


class _Postgres:
    """Rows by COPY."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def write(self, table: Table, rows: Sequence[Row]) -> None:
        """Add rows in one transaction."""
        statement = f"COPY {table.name} ({_columns(table)}) FROM STDIN"
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
        self._connection.commit()


def _columns(table: Table) -> str:
    return ", ".join(f'"{column.name}"' for column in table.columns)

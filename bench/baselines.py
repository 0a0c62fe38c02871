"""The least that could be called a ledger, on the same engines: what Parshall's is held against.

None of them knows grants, prices, replays or a chain, and on PostgreSQL an operation is one statement, so that it takes
one round trip. Everything is on the disk before an operation returns.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from typing import Any

import psycopg
from bench.history import SQLITE
from bench.measuring import Books

START = 10**15
AMOUNT = 40
CHARGED = AMOUNT - 1
Opened = Callable[[str, int], AbstractAsyncContextManager[Books]]
"""Opens books of so many accounts in the empty database at a URL."""


# ── SQLite: one connection; an operation runs on the loop, because a thread would only make it slower ───────────────


class _OneStatement:
    """An UPDATE to reserve, one to settle, nothing else kept."""

    tables = "CREATE TABLE accounts (id INTEGER PRIMARY KEY, available INTEGER NOT NULL, reserved INTEGER NOT NULL);"

    def __init__(self, database: sqlite3.Connection, accounts: int) -> None:
        database.executescript(self.tables)
        database.execute("BEGIN")
        database.executemany("INSERT INTO accounts VALUES (?, ?, 0)", [(n, START) for n in range(accounts)])
        database.execute("COMMIT")
        self._database = database
        self._start = START * accounts

    async def reserve(self, account: int) -> int:
        """The account."""
        reserved = self._database.execute(
            "UPDATE accounts SET available = available - ?1, reserved = reserved + ?1 WHERE id = ?2 "
            "AND available >= ?1",
            (AMOUNT, account),
        )
        assert reserved.rowcount == 1
        return account

    async def settle(self, account: int) -> None:
        """Return what was not charged."""
        self._database.execute(
            "UPDATE accounts SET available = available + 1, reserved = reserved - ? WHERE id = ?", (AMOUNT, account)
        )

    async def check(self, pairs: int) -> None:
        """Nothing held; what was charged is what the balances lack."""
        left, held = self._database.execute("SELECT sum(available), sum(reserved) FROM accounts").fetchone()
        assert (left, held) == (self._start - pairs * CHARGED, 0)


class _Naive(_OneStatement):
    """What one would write first: a transaction to reserve, one to settle, a row for each and its movements."""

    tables = (
        _OneStatement.tables
        + """
        CREATE TABLE reservations
            (id INTEGER PRIMARY KEY, account INTEGER NOT NULL, amount INTEGER NOT NULL, charged INTEGER);
        CREATE TABLE transfers
            (id INTEGER PRIMARY KEY, account INTEGER NOT NULL, reservation INTEGER, amount INTEGER NOT NULL);
        """
    )

    async def reserve(self, account: int) -> int:
        """The id of the reservation."""
        run = self._database.execute
        run("BEGIN IMMEDIATE")
        (available,) = run("SELECT available FROM accounts WHERE id = ?", (account,)).fetchone()
        assert available >= AMOUNT
        run("UPDATE accounts SET available = available - ?1, reserved = reserved + ?1 WHERE id = ?2", (AMOUNT, account))
        made = run("INSERT INTO reservations (account, amount) VALUES (?, ?)", (account, AMOUNT)).lastrowid
        run("COMMIT")
        assert made is not None
        return made

    async def settle(self, reservation: int) -> None:
        """Close it, charge, return the rest, book the movement."""
        run = self._database.execute
        run("BEGIN IMMEDIATE")
        query = "SELECT account, amount FROM reservations WHERE id = ? AND charged IS NULL"
        account, amount = run(query, (reservation,)).fetchone()
        run("UPDATE reservations SET charged = ? WHERE id = ?", (CHARGED, reservation))
        run("UPDATE accounts SET available = available + 1, reserved = reserved - ? WHERE id = ?", (amount, account))
        movement = (account, reservation, CHARGED)
        run("INSERT INTO transfers (account, reservation, amount) VALUES (?, ?, ?)", movement)
        run("COMMIT")


@asynccontextmanager
async def one_statement(url: str, accounts: int) -> AsyncIterator[Books]:
    """SQLite, a statement and so a transaction for each operation."""
    with _connected(url) as database:
        yield _OneStatement(database, accounts)


@asynccontextmanager
async def naive(url: str, accounts: int) -> AsyncIterator[Books]:
    """SQLite, a transaction of several statements for each operation."""
    with _connected(url) as database:
        yield _Naive(database, accounts)


def _connected(url: str) -> "closing[sqlite3.Connection]":
    """A connection in WAL mode, with an fsync for each commit."""
    database = sqlite3.connect(url.removeprefix(SQLITE), isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    return closing(database)


# ── PostgreSQL: so many connections, each operation one prepared statement on whichever is free ─────────────────────

_TABLES = """
CREATE TABLE accounts
    (id bigint PRIMARY KEY, balance bigint NOT NULL, held bigint NOT NULL DEFAULT 0) WITH (fillfactor = 50);
CREATE SEQUENCE resseq CACHE 50;
CREATE TABLE reservations
    (id bigint PRIMARY KEY DEFAULT nextval('resseq'), account_id bigint NOT NULL, amount bigint NOT NULL, actual bigint,
     state smallint NOT NULL DEFAULT 0, created timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 70);
CREATE TABLE entries
    (id bigserial PRIMARY KEY, account_id bigint NOT NULL, reservation_id bigint NOT NULL, amount bigint NOT NULL);
"""
_RESERVE = """
WITH a AS (UPDATE accounts SET held = held + %(amount)s
           WHERE id = %(account)s AND balance - held >= %(amount)s RETURNING id)
INSERT INTO reservations (account_id, amount) SELECT id, %(amount)s FROM a RETURNING id
"""
_SETTLE = """
WITH r AS (UPDATE reservations SET state = 1, actual = %(charged)s
           WHERE id = %(reservation)s AND state = 0 RETURNING id, account_id, amount),
     a AS (UPDATE accounts SET balance = balance - %(charged)s, held = held - r.amount
           FROM r WHERE accounts.id = r.account_id)
INSERT INTO entries (account_id, reservation_id, amount) SELECT account_id, id, %(charged)s FROM r
"""
_SUMS = """
SELECT (SELECT sum(balance) FROM accounts)::bigint, (SELECT sum(held) FROM accounts)::bigint,
       (SELECT coalesce(sum(amount), 0) FROM entries)::bigint, (SELECT count(*) FROM reservations WHERE state = 0)
"""


class _Statements:
    """Connections in turn."""

    def __init__(self, cursors: list[psycopg.AsyncCursor[Any]], accounts: int) -> None:
        self._free: asyncio.Queue[psycopg.AsyncCursor[Any]] = asyncio.Queue()
        for each in cursors:
            self._free.put_nowait(each)
        self._start = START * accounts

    async def reserve(self, account: int) -> int:
        """The id of the reservation."""
        cursor = await self._free.get()
        await cursor.execute(_RESERVE, {"account": account, "amount": AMOUNT})
        made = await cursor.fetchone()
        self._free.put_nowait(cursor)
        assert made is not None
        return int(made[0])

    async def settle(self, reservation: int) -> None:
        """Close it, charge, return the rest, book the movement."""
        cursor = await self._free.get()
        await cursor.execute(_SETTLE, {"reservation": reservation, "charged": CHARGED})
        self._free.put_nowait(cursor)
        assert cursor.rowcount == 1

    async def check(self, pairs: int) -> None:
        """Nothing held or open; what was charged is what the balances lack, and is on record."""
        cursor = await self._free.get()
        await cursor.execute(_SUMS)
        charged = pairs * CHARGED
        assert await cursor.fetchone() == (self._start - charged, 0, charged, 0)


def connections(count: int) -> Opened:
    """PostgreSQL, a statement for each operation, on so many connections at once."""

    @asynccontextmanager
    async def opened(url: str, accounts: int) -> AsyncIterator[Books]:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_TABLES)
            fill = "INSERT INTO accounts SELECT number, %s, 0 FROM generate_series(0, %s) number"
            connection.execute(fill, (START, accounts - 1))
            connection.execute("VACUUM ANALYZE")
        async with AsyncExitStack() as stack:
            cursors = []
            for _ in range(count):
                connecting = psycopg.AsyncConnection.connect(url, autocommit=True, prepare_threshold=0)
                cursors.append((await stack.enter_async_context(await connecting)).cursor(binary=True))
            yield _Statements(cursors, accounts)

    return opened

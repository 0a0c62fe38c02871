"""Measures the ledger: pairs of reserve and settle a second, beside naive SQLite: `python bench/ledger.py`.

All of it runs in this process, on files in one folder, with synchronous=FULL, in turn. After each turn the books are
checked: nothing is held, and what was charged is what the balances lack.
"""

import argparse
import asyncio
import itertools
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from parshall.accounting.service import Accounting
from parshall.kernel import clock
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.ids import StreamId, UserId, new_stream_id
from parshall.kernel.metering import Usage, UsageSource
from parshall.kernel.sqlite import SqliteDatabase

ACCOUNTS = 200
STREAMS_AT_ONCE = 64
START = 1_000_000 * MICRO
AMOUNT = 40
USAGE = Usage(input_tokens=100, output_tokens=200)


class Nobody:
    """A directory that is never asked: the bench names accounts by id."""

    async def resolve(self, who: str) -> UserId:
        """The id that was given."""
        return UserId(who)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One way to keep the books, measured for a while; `rate` takes a folder and a time and answers pairs a second."""

    name: str
    rate: Callable[[Path, float], float]


def parshall(accounts: int, at_once: int) -> Callable[[Path, float], float]:
    """Accounting as the server uses it, asked by `at_once` streams at a time."""
    return lambda folder, seconds: uvloop.run(_parshall(folder, seconds, accounts, at_once))


async def _parshall(folder: Path, seconds: float, accounts: int, at_once: int) -> float:
    database = SqliteDatabase(folder / "ledger.db", package="parshall.accounting")
    accounting = Accounting(database, directory=Nobody(), clock=clock.now, reservation_seconds=360)
    await accounting.start()
    ids = [UserId(f"account-{number}") for number in range(accounts)]
    for account in ids:
        until = clock.now() + clock.DAY
        await accounting.allocate(account, Credits(START), expires_at=until, granted_by="bench")
    began = time.perf_counter()
    done = sum(await asyncio.gather(*(_streams(accounting, ids, began + seconds) for _ in range(at_once))))
    rate = done / (time.perf_counter() - began)
    cost = await accounting.prices.calculate("flow", USAGE)
    balances = [await accounting.balance(account) for account in ids]
    assert all(balance.reserved == 0 for balance in balances)
    assert sum(balance.available for balance in balances) == START * accounts - done * cost
    await accounting.close()
    return rate


async def _streams(accounting: Accounting, accounts: Sequence[UserId], end: float) -> int:
    """Reserve and settle, stream after stream, as a turn does it."""
    for done in itertools.count():
        if time.perf_counter() >= end:
            return done
        stream: StreamId = new_stream_id(at=clock.now())
        await accounting.reserve(
            stream_id=stream,
            user_id=random.choice(accounts),
            model_id="flow",
            input_tokens=USAGE.input_tokens,
            output_tokens_max=1024,
            slice_tokens=256,
        )
        await accounting.settle(stream_id=stream, usage=USAGE, source=UsageSource.PROVIDER, outcome="completed")
    raise AssertionError("unreachable")


def one_statement(accounts: int) -> Callable[[Path, float], float]:
    """The least that can be called a ledger: an UPDATE to reserve, one to settle, nothing else kept."""

    def rate(folder: Path, seconds: float) -> float:
        database = _opened(folder)
        database.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, available INTEGER, reserved INTEGER)")
        database.executemany("INSERT INTO accounts VALUES (?, ?, 0)", [(n, START) for n in range(accounts)])
        done, began = 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            account = random.randrange(accounts)
            database.execute(
                "UPDATE accounts SET available = available - ?1, reserved = reserved + ?1 WHERE id = ?2 "
                "AND available >= ?1",
                (AMOUNT, account),
            )
            database.execute(
                "UPDATE accounts SET available = available + 1, reserved = reserved - ? WHERE id = ?", (AMOUNT, account)
            )
            done += 1
        taken = time.perf_counter() - began
        (left, held) = database.execute("SELECT sum(available), sum(reserved) FROM accounts").fetchone()
        assert held == 0 and left == START * accounts - done * (AMOUNT - 1)
        database.close()
        return done / taken

    return rate


def naive(accounts: int) -> Callable[[Path, float], float]:
    """What one would write first: a transaction to reserve and one to settle, with a row for each and its movements."""

    def rate(folder: Path, seconds: float) -> float:
        database = _opened(folder)
        database.executescript(_NAIVE_TABLES)
        database.executemany("INSERT INTO accounts VALUES (?, ?, 0)", [(n, START) for n in range(accounts)])
        done, began = 0, time.perf_counter()
        while time.perf_counter() < began + seconds:
            reservation = _naive_reserve(database, random.randrange(accounts))
            _naive_settle(database, reservation)
            done += 1
        taken = time.perf_counter() - began
        (left, held) = database.execute("SELECT sum(available), sum(reserved) FROM accounts").fetchone()
        assert held == 0 and left == START * accounts - done * (AMOUNT - 1)
        database.close()
        return done / taken

    return rate


_NAIVE_TABLES = """
CREATE TABLE accounts (id INTEGER PRIMARY KEY, available INTEGER NOT NULL, reserved INTEGER NOT NULL);
CREATE TABLE reservations (id INTEGER PRIMARY KEY, account INTEGER NOT NULL, amount INTEGER NOT NULL, charged INTEGER);
CREATE TABLE transfers (id INTEGER PRIMARY KEY, account INTEGER NOT NULL, reservation INTEGER, amount INTEGER NOT NULL);
"""


def _naive_reserve(database: sqlite3.Connection, account: int) -> int:
    database.execute("BEGIN IMMEDIATE")
    (available,) = database.execute("SELECT available FROM accounts WHERE id = ?", (account,)).fetchone()
    assert available >= AMOUNT
    database.execute(
        "UPDATE accounts SET available = available - ?1, reserved = reserved + ?1 WHERE id = ?2", (AMOUNT, account)
    )
    made = database.execute("INSERT INTO reservations (account, amount) VALUES (?, ?)", (account, AMOUNT)).lastrowid
    database.execute("COMMIT")
    assert made is not None
    return made


def _naive_settle(database: sqlite3.Connection, reservation: int) -> None:
    database.execute("BEGIN IMMEDIATE")
    query = "SELECT account, amount FROM reservations WHERE id = ? AND charged IS NULL"
    account, amount = database.execute(query, (reservation,)).fetchone()
    database.execute("UPDATE reservations SET charged = ? WHERE id = ?", (amount - 1, reservation))
    database.execute(
        "UPDATE accounts SET available = available + 1, reserved = reserved - ? WHERE id = ?", (amount, account)
    )
    movement = (account, reservation, amount - 1)
    database.execute("INSERT INTO transfers (account, reservation, amount) VALUES (?, ?, ?)", movement)
    database.execute("COMMIT")


def _opened(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    return database


TURNS = (
    Turn(name="one statement an operation, one account", rate=one_statement(1)),
    Turn(name="naive SQLite, one account", rate=naive(1)),
    Turn(name="naive SQLite, many accounts", rate=naive(ACCOUNTS)),
    Turn(name="Parshall, one account, one stream at a time", rate=parshall(1, 1)),
    Turn(name="Parshall, one hot account", rate=parshall(1, STREAMS_AT_ONCE)),
    Turn(name="Parshall, many accounts", rate=parshall(ACCOUNTS, STREAMS_AT_ONCE)),
)
BASELINE = TURNS[1].name


def main() -> None:
    """Measure in turn, print the table, keep the raw results where asked to."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=3.0)
    arguments.add_argument("--folder", type=Path, help="measure the disk that this folder is on")
    arguments.add_argument("--out", type=Path, help="keep the raw results in this JSON file")
    given = arguments.parse_args()
    rates: dict[str, list[float]] = {turn.name: [] for turn in TURNS}
    for number in range(given.rounds):
        for turn in TURNS:
            with tempfile.TemporaryDirectory(prefix="parshall-bench-", dir=given.folder) as folder:
                rates[turn.name].append(turn.rate(Path(folder), given.seconds))
            print(f"round {number}  {turn.name:44} {rates[turn.name][-1]:8.0f} pairs/s", file=sys.stderr)
        if given.out:
            given.out.write_text(json.dumps(rates, indent=1))
    print(_table(rates))


def _table(rates: dict[str, list[float]]) -> str:
    rows = ["| books | pairs/s | of naive SQLite |", "|---|---|---|"]
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates[BASELINE], strict=True)]
        spread = f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"
        rows.append(f"| {name} | {spread} | {statistics.median(ratios):.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()

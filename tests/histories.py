"""A scripted history in which everything happens that can happen to credits, and ways to tamper with its records."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text
from tests.postgres import Engine

from parshall.accounting.audit import Report, audit
from parshall.accounting.changes import Terms
from parshall.accounting.pricing import Price
from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.database import Database
from parshall.kernel.errors import InsufficientCredits
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource

PACKAGE = "parshall.accounting"
START = 1_800_000_000 * SECOND
RESERVATION_SECONDS = 30
PEOPLE = ("Bob", "ann", "a-b", "a_b", "Zoë", "zoe")
"""Languages and programs disagree on the order of these."""
FEW = ("Bob", "ann")
HASHED = ("account_id", "number", "kind", "amount", "grant_id", "reservation_id", "at", "available_after", "note")


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


@dataclass
class History:
    """A ledger with a clock of its own; a token read costs one microcredit, a token written three."""

    engine: Engine
    at: int = START
    streams: int = 0
    database: Database = field(init=False)
    ledger: Accounting = field(init=False)

    def __post_init__(self) -> None:
        self.database = self.engine.open(PACKAGE, clock=lambda: self.at)
        self.ledger = Accounting(
            self.database, directory=Nobody(), clock=lambda: self.at, reservation_seconds=RESERVATION_SECONDS
        )

    async def begin(self) -> None:
        price = Price(input=MICRO, cached_input=MICRO // 2, output=3 * MICRO, reasoning=3 * MICRO)
        await self.ledger.prices.put("*", price, set_by="test")

    async def grant(self, who: str, amount: int, *, seconds: int = 86_400, priority: int = 0) -> None:
        until = self.at + seconds * SECOND
        await self.ledger.allocate(
            UserId(who), Credits(amount), expires_at=until, granted_by="root", priority=priority, notes="wélcome \u2028"
        )

    async def reserve(self, who: str, *, read: int = 10, most: int = 100, piece: int = 20) -> StreamId:
        self.streams += 1
        stream_id = StreamId(f"stream-1800000000-{self.streams:032x}")
        asked = {"input_tokens": read, "output_tokens_max": most, "slice_tokens": piece}
        await self.ledger.reserve(stream_id=stream_id, user_id=UserId(who), model_id="any", **asked)
        return stream_id

    async def settle(self, stream_id: StreamId, *, read: int = 10, written: int = 5) -> None:
        usage = Usage(input_tokens=read, output_tokens=written)
        await self.ledger.settle(stream_id=stream_id, usage=usage, source=UsageSource.PROVIDER, outcome="completed")

    async def audit(self, **how: Any) -> Report:
        return await self.database.read(lambda c: audit(c, **how))

    async def close(self) -> None:
        await self.ledger.close()


async def everything(engine: Engine, people: Sequence[str] = PEOPLE) -> History:
    """Every kind of transfer and every way in which a reservation can end, for several people; one still runs."""
    history = History(engine)
    await history.begin()
    for who in people:
        await _ordinary(history, who)
        await _unlucky(history, who)
    await history.grant("ann", 400)
    running = await history.reserve("ann")
    await history.ledger.extend(stream_id=running, step=1, output_tokens=10)
    return history


async def _ordinary(history: History, who: str) -> None:
    ledger = history.ledger
    await history.grant(who, 300)
    await history.grant(who, 150, seconds=500)
    await history.grant(who, 40, priority=1)
    await history.settle(await history.reserve(who))
    history.at += SECOND
    extended = await history.reserve(who)
    beside = await history.reserve(who)
    for step in (1, 2):
        await ledger.extend(stream_id=extended, step=step, output_tokens=10)
    await history.settle(extended, written=60)  # more than was reserved
    await history.settle(beside, read=0, written=0)
    await ledger.void(stream_id=await history.reserve(who))
    await ledger.deduct(UserId(who), Credits(7), note="an image")
    terms = Terms(expires_at=history.at + DAY, granted_by="root", notes="corrected")
    await ledger.adjust(UserId(who), -11, terms)
    await ledger.set_balance(UserId(who), Credits(260), terms)


async def _unlucky(history: History, who: str) -> None:
    ledger = history.ledger
    forgotten = await history.reserve(who)
    late = await history.reserve(who)
    history.at += (RESERVATION_SECONDS + 1) * SECOND
    assert await ledger.expire_due() == 2
    await history.settle(late, written=9)
    await history.grant(who, 60, seconds=20)  # falls due under the stream that is paid from it
    surprised = await history.reserve(who, piece=10)
    history.at += 21 * SECOND
    await history.settle(surprised, written=2)
    dear = await history.reserve(who)
    await history.settle(dear, written=500)  # more than there is: the rest is uncollected
    nothing = await history.ledger.receipt(forgotten)
    assert nothing.charged == 0
    try:
        await history.reserve(who)
    except InsufficientCredits:
        await history.grant(who, 90, seconds=5)
        history.at += 10 * SECOND
        await ledger.expire_due()


# ── Tampering ───────────────────────────────────────────────────────────────────────────────────────────────────────


Deed = str | Callable[[Connection], None]


def tamper(engine: Engine, *deeds: Deed) -> None:
    """Do what only somebody with the keys to the database can: change its records behind the program's back."""

    def work(connection: Connection) -> None:
        _forge(connection, deeds)
        connection.commit()

    engine.look(PACKAGE, work)


def tampered(engine: Engine, *deeds: Deed) -> Report:
    """What an audit says of tampered records; the tampering is undone afterwards."""

    def work(connection: Connection) -> Report:
        _forge(connection, deeds)
        return audit(connection)

    return engine.look(PACKAGE, work)


def _forge(connection: Connection, deeds: Sequence[Deed]) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL session_replication_role = replica"))
    else:
        connection.exec_driver_sql("BEGIN")  # the driver would not begin for a DROP
        for change in ("update", "delete"):
            connection.execute(text(f"DROP TRIGGER IF EXISTS transfers_no_{change}"))
    for deed in deeds:
        if isinstance(deed, str):
            assert connection.execute(text(deed)).rowcount == 1, "the change hits what it is meant for"
        else:
            deed(connection)


def rehash(account_id: str) -> Deed:
    """Number and chain an account's transfers anew, and make the account fit: what a careful forger would do."""

    def work(connection: Connection) -> None:
        query = text("SELECT * FROM transfers WHERE account_id = :id ORDER BY number")
        rows = [dict(row) for row in connection.execute(query, {"id": account_id}).mappings()]
        connection.execute(text("DELETE FROM transfers WHERE account_id = :id"), {"id": account_id})
        head = ""
        for number, row in enumerate(rows, start=1):
            row["number"] = number
            written = json.dumps([row[name] for name in HASHED], ensure_ascii=False, separators=(",", ":"))
            head = row["hash"] = hashlib.sha256((head + written).encode()).hexdigest()
            names = ", ".join(f'"{name}"' for name in row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO transfers ({names}) VALUES ({values})"), row)
        change = text("UPDATE accounts SET number = :number, head = :head WHERE id = :id")
        connection.execute(change, {"id": account_id, "number": len(rows), "head": head})

    return work

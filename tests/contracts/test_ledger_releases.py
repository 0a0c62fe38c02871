"""What a released version left behind is brought forward whole: balances, statements, receipts, running streams."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, create_engine, insert, inspect, text
from tests.contracts.replicas import Nobody
from tests.ledgers import check_books, read_books
from tests.postgres import open_url

from parshall.accounting.changes import Terms
from parshall.accounting.model import ReservationEnded, State
from parshall.accounting.once import Once
from parshall.accounting.service import Accounting
from parshall.accounting.tables import metadata
from parshall.kernel.clock import SECOND
from parshall.kernel.credits import Credits
from parshall.kernel.errors import KeyReused
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Usage, UsageSource

T = TypeVar("T")
PACKAGE = "parshall.accounting"
RELEASES = Path(__file__).with_name("releases")
SAID: dict[str, Any] = json.loads((RELEASES / "0.1.0.json").read_text())
PEOPLE = ("ann", "bob", "eve")
EVE = UserId("eve")
ROOT = Path(__file__).parents[2]

MANY = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1200)
INSERT INTO grants SELECT 'many-' || i, 'many', 1, 1, 1900000000000000, 0, i, 'root', '' FROM n;
INSERT INTO transfers (account_id, grant_id, kind, amount, debit, credit, at, available_after, note)
SELECT 'many', id, 'grant', 1, 'issued', 'available', created_at, created_at, '' FROM grants
WHERE account_id = 'many' ORDER BY created_at;
INSERT INTO reservations (id, account_id, model_id, price_version, state, reserved, input_tokens, output_tokens,
output_tokens_max, step, created_at, expires_at) SELECT 'stream-' || id, 'many', 'any', 'smollm2-135m@' ||
'1970-01-01T00:00:00.000000Z', 'active', 0, 0, 1, 1, 0, created_at, expires_at FROM grants WHERE account_id = 'many';
INSERT INTO slices SELECT id, 0, '', 0, 1, expires_at, 1 FROM reservations WHERE account_id = 'many';
"""
"""More of everything than a step of the migration takes at once."""
KILLED = """
import os, signal, sys
from parshall.accounting import chain
from tests.postgres import open_url
left, link = int(sys.argv[2]), chain.link
def dying(*given):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return link(*given)
chain.link = dying
open_url(sys.argv[1], "parshall.accounting")
"""


def stream(number: int) -> StreamId:
    return StreamId(f"stream-1800000000-{number:08x}")


def outside(url: str) -> Engine:
    return create_engine(url.replace("postgresql://", "postgresql+psycopg://"))


def restored(path: Path) -> str:
    """The database of the release as a file; its address."""
    database = sqlite3.connect(path)
    database.executescript((RELEASES / "0.1.0.sql").read_text())
    database.close()
    return f"sqlite:///{path}"


def at_first_revision(connection: Connection) -> None:
    script = ScriptDirectory(str(files(PACKAGE) / "migrations"))
    opts = {"version_table": "accounting_version", "fn": lambda revision, _: script._upgrade_revs("0001", revision)}
    context = MigrationContext.configure(connection, opts=opts)
    with Operations.context(context):
        context.run_migrations()


def copied(source: str, target: str) -> None:
    """The same records on the other engine, for which that revision exists too."""
    tables = MetaData()
    old, new = outside(source), outside(target)
    with old.connect() as reading, new.begin() as writing:
        at_first_revision(writing)
        tables.reflect(writing)
        for table in tables.sorted_tables:
            rows = reading.execute(table.select()).mappings().all()
            if rows and table.name != "accounting_version":
                writing.execute(insert(table), [dict(row) for row in rows])
    old.dispose()
    new.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where the history of the release is."""
    made = restored(tmp_path / "accounting.db")
    if request.param == "sqlite":
        return made
    target: str = request.getfixturevalue("postgres_url")
    copied(made, target)
    return target


def opened(url: str, at: int = SAID["at"]) -> Accounting:
    """The ledger of today on those records."""
    database = open_url(url, PACKAGE, lambda: at)
    return Accounting(database, directory=Nobody(), clock=lambda: at, reservation_seconds=30)


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Accounting]:
    made = opened(url)
    yield made
    await made.close()


def check(url: str) -> None:
    look(url, lambda connection: check_books(read_books(connection)))


def look(url: str, work: Callable[[Connection], T]) -> T:
    engine = outside(url)
    with engine.connect() as connection:
        seen = work(connection)
    engine.dispose()
    return seen


async def test_the_books_check_out_with_a_chain_for_each_account(ledger: Accounting, url: str) -> None:
    check(url)


async def test_balances_grants_and_prices_are_what_the_release_said(ledger: Accounting) -> None:
    for who in PEOPLE:
        assert json.loads(json.dumps(asdict(await ledger.balance(UserId(who))))) == SAID["balances"][who]
    assert [asdict(each) for each in await ledger.grants_all()] == SAID["grants"]
    assert [asdict(each) for each in await ledger.prices.all()] == SAID["prices"]


async def test_statements_say_what_they_said_with_numbers_of_their_own_for_each_account(ledger: Accounting) -> None:
    for who in PEOPLE:
        statement = await ledger.statement(UserId(who), after=0, limit=500)
        assert [each.number for each in statement] == list(range(1, len(statement) + 1))
        now = [(each.kind, each.amount, each.grant_id, each.at, each.available_after, each.note) for each in statement]
        assert now == [told(each) for each in SAID["statements"][who]]


def told(entry: Any) -> tuple[Any, ...]:
    moved = entry["movement"]
    deducted = (moved["kind"], moved["debit"]) == ("charge", "available")  # the release had one word for both
    kind = "deduct" if deducted else moved["kind"]
    return (kind, moved["amount"], moved["grant_id"], entry["at"], entry["available_after"], moved["note"])


async def test_receipts_say_what_they_said_and_name_the_same_transfers(ledger: Accounting) -> None:
    for name, said in SAID["receipts"].items():
        receipt = await ledger.receipt(StreamId(name))
        for field in ("state", "reserved", "output_tokens", "step", "expires_at", "ended_at", "price_version"):
            assert getattr(receipt, field) == said[field]
        assert receipt.user_id == receipt.account_id == said["account_id"]
        assert (None if receipt.usage is None else asdict(receipt.usage)) == said["usage"]
        if said["settlement"] is None:
            assert receipt.settlement is None
            continue
        now = receipt.settlement.stored()
        account = SAID["statements"][said["account_id"]]
        numbers = [place for place, each in enumerate(account, 1) if each["id"] in said["settlement"]["transfers"]]
        assert now == said["settlement"] | {"transfers": numbers}


async def test_a_repeated_settlement_or_void_gives_the_answer_of_then(ledger: Accounting) -> None:
    for number, outcome in enumerate(("settled", "settled", "settled", "voided", "expired", "expired"), 1):
        receipt = await ledger.receipt(stream(number))
        assert receipt.state == outcome
        if receipt.usage is not None:
            usage = receipt.usage
            again = {"usage": usage, "source": UsageSource.PROVIDER, "outcome": "completed"}
            assert await ledger.settle(stream_id=stream(number), **again) == receipt.settlement
            with pytest.raises(KeyReused):
                await ledger.settle(**{**again, "stream_id": stream(number), "outcome": "stopped"})
        assert await ledger.void(stream_id=stream(number)) == receipt.settlement
    with pytest.raises(ReservationEnded):
        await ledger.settle(stream_id=stream(4), usage=Usage(), source=UsageSource.PROVIDER, outcome="completed")


async def test_a_repeated_reservation_or_extension_gives_the_slice_of_then(ledger: Accounting) -> None:
    before = await ledger.balance(EVE)
    whole = await ledger.reserve_whole(stream_id=stream(9), user_id=EVE, model_id="any", tokens=15)
    assert (whole.output_tokens, whole.final) == (15, True)
    again = {"user_id": EVE, "model_id": "any", "input_tokens": 3, "output_tokens_max": 100}
    assert (await ledger.reserve(stream_id=stream(8), slice_tokens=20, **again)).output_tokens == 20
    for other in ({"stream_id": stream(8), "slice_tokens": 21}, {"stream_id": stream(9), "slice_tokens": 20}):
        with pytest.raises(KeyReused):
            await ledger.reserve(**again, **other)
    assert await ledger.balance(EVE) == before
    extended = await ledger.extend(stream_id=stream(7), step=1, output_tokens=20)
    assert (extended.output_tokens, extended.expires_at) == (40, SAID["receipts"][stream(7)]["expires_at"])
    with pytest.raises(KeyReused):
        await ledger.extend(stream_id=stream(7), step=1, output_tokens=19)


async def test_a_running_stream_goes_on_at_its_own_price_and_is_settled(ledger: Accounting, url: str) -> None:
    assert (await ledger.extend(stream_id=stream(7), step=2, output_tokens=10)).output_tokens == 50
    usage = Usage(input_tokens=10, output_tokens=50)
    settled = await ledger.settle(stream_id=stream(7), usage=usage, source=UsageSource.COUNTED, outcome="completed")
    assert (settled.charged, settled.reserved) == (10 + 2 * 50, 10 + 3 * 50)
    assert (await ledger.void(stream_id=stream(8))) is not None
    sweeping = opened(url, at=SAID["at"] + 60 * SECOND)
    assert await sweeping.expire_due() == 3, "two streams and a grant"
    assert (await sweeping.receipt(stream(9))).state is State.EXPIRED
    assert (await sweeping.balance(EVE)).available == 400
    assert (await sweeping.balance(UserId("bob"))).available == 0
    await sweeping.close()
    check(url)


async def test_a_key_that_the_release_answered_is_not_done_again(ledger: Accounting) -> None:
    terms = Terms(expires_at=SAID["at"] + SECOND, granted_by="root")
    work = ledger.allocating("ann", Credits(25), terms)
    once = Once.of("ann", 25, caller=UserId("root"), operation="allocate", key="k1")
    before = await ledger.balance(UserId("ann"))
    assert await ledger.answer_once(work, render=str, status=201, once=once) == SAID["once"]
    assert await ledger.balance(UserId("ann")) == before


async def test_the_tables_are_those_that_the_statements_are_written_for(ledger: Accounting, url: str) -> None:
    def compare(connection: Connection) -> None:
        there = inspect(connection)
        for table in metadata.sorted_tables:
            columns = {(each["name"], each["nullable"]) for each in there.get_columns(table.name)}
            assert columns == {(each.name, each.nullable) for each in table.columns}
            key = there.get_pk_constraint(table.name)["constrained_columns"]
            assert key == [each.name for each in table.primary_key]
        assert set(there.get_table_names()) == {*metadata.tables, "accounting_version"}

    look(url, compare)


async def test_a_ledger_larger_than_one_step_of_the_migration_is_brought_forward_whole(tmp_path: Path) -> None:
    path = tmp_path / "accounting.db"
    url = restored(path)
    database = sqlite3.connect(path)
    database.execute("INSERT INTO accounts VALUES ('many', 1200, 0, 1)")
    database.executescript(MANY)
    database.close()
    ledger = opened(url)
    assert (await ledger.receipt(StreamId("stream-many-1200"))).first_output_tokens == 1
    last = await ledger.statement(UserId("many"), after=1199, limit=500)
    assert [(each.number, each.available_after) for each in last] == [(1200, 1200)]
    assert look(url, lambda c: c.execute(text("SELECT count(*) FROM reservations")).scalar_one()) == 1210
    await ledger.close()
    check(url)


@pytest.mark.parametrize("calls", [1, 20, 35])
async def test_a_migration_killed_halfway_is_undone_and_the_next_start_makes_it(url: str, calls: int) -> None:
    folders = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", KILLED, url, str(calls)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": folders}, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    revision = look(url, lambda c: c.execute(text("SELECT version_num FROM accounting_version")).scalar_one())
    assert revision == "0001"
    ledger = opened(url)
    assert (await ledger.balance(EVE)).available == SAID["balances"]["eve"]["available"]
    await ledger.close()
    check(url)


async def test_replicas_that_start_at_once_on_the_records_of_a_release_bring_them_forward_once(url: str) -> None:
    ledgers = await asyncio.gather(*(asyncio.to_thread(opened, url) for _ in range(4)))
    for ledger in ledgers:
        assert (await ledger.balance(EVE)).available == SAID["balances"]["eve"]["available"]
        await ledger.close()
    check(url)

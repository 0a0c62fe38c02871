"""Laws of the ledger where several replicas keep it on one PostgreSQL."""

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection
from tests.ledgers import check_books, read_books
from tests.postgres import Server, open_url

from parshall.accounting import store
from parshall.accounting.service import Accounting
from parshall.kernel.bulk import Row, Statement, run
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.ids import StreamId, UserId

ANN = UserId("ann")
ONE = StreamId("stream-1800000000-a1b2c3d4")
START = 1_800_000_000 * SECOND


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


def replica(url: str) -> Accounting:
    database = open_url(url, "parshall.accounting", lambda: START)
    return Accounting(database, directory=Nobody(), clock=lambda: START, reservation_seconds=30)


async def test_a_void_that_meets_a_reservation_being_made_elsewhere_returns_everything(
    postgres_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other replica commits after this one has looked for accounts to hold, and before it reads the stream."""
    name = postgres_server.create_for("parshall.accounting")
    here, there = replica(postgres_server.url(name)), replica(postgres_server.url(name))
    await here.start()
    await here.allocate(ANN, Credits(MICRO), expires_at=START + DAY, granted_by="root")
    loop = asyncio.get_running_loop()

    def hold_and_wait(connection: Connection, statements: Sequence[Statement]) -> list[list[Row]]:
        monkeypatch.setattr(store, "run", run)
        held = run(connection, statements[:1])
        reserving = there.reserve(
            stream_id=ONE, user_id=ANN, model_id="any", input_tokens=1, output_tokens_max=9, slice_tokens=9
        )
        asyncio.run_coroutine_threadsafe(reserving, loop).result(30)
        return held + run(connection, statements[1:])

    monkeypatch.setattr(store, "run", hold_and_wait)
    settlement = await here.void(stream_id=ONE)
    assert settlement is not None
    assert settlement.outcome == "voided"
    assert (await here.balance(ANN)).available == MICRO
    check_books(await here._database.read(read_books))
    await here.close()
    await there.close()
    postgres_server.drop(name)

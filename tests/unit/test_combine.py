"""The combiner takes up whatever waits, however its batches end."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from pathlib import Path

import pytest
from sqlalchemy import Connection
from tests import migrated

from parshall.accounting.books import Books
from parshall.accounting.combine import Combiner, Operation
from parshall.accounting.ended import void
from parshall.accounting.service import Accounting
from parshall.kernel import clock
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.database import T, Work
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.sqlite import SqliteDatabase

ANN = UserId("ann")
ONE = StreamId("stream-1800000000-a1b2c3d4")


class Nobody:
    """A directory for a ledger that is only given ids."""

    async def resolve(self, who: str) -> UserId:
        return UserId(who)


class Gated:
    """A database whose commits are made known only once the gate is open: all those that wait, in one turn."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.database = database
        self.gate = asyncio.Event()
        self.waiting = 0
        self.batches = 0

    async def read(self, work: Work[T], *, brief: bool = False) -> T:
        return await self.database.read(work, brief=brief)

    async def write(self, work: Work[T], *, brief: bool = False) -> T:
        answer = await self.database.write(work, brief=brief)
        self.waiting += 1
        self.batches += 1
        await self.gate.wait()
        self.waiting -= 1
        return answer

    def instant(self, connection: Connection) -> int:
        return self.database.instant(connection)

    def version(self, connection: Connection) -> Hashable:
        return self.database.version(connection)

    async def close(self) -> None:
        await self.database.close()

    async def hold(self, count: int) -> None:
        """Wait until so many batches are written and not yet known to be."""
        while self.waiting < count:
            await asyncio.sleep(0.001)


@pytest.fixture
async def gated(tmp_path: Path) -> AsyncIterator[Gated]:
    database = Gated(migrated.opened(tmp_path / "ledger.db", "parshall.accounting"))
    yield database
    database.gate.set()
    await database.close()


def _accounts(books: Books) -> int:
    return len(books.accounts)


async def test_who_asks_again_in_the_turn_in_which_the_last_batch_ends_is_taken_up(gated: Gated) -> None:
    combiner = Combiner(gated)

    async def twice() -> list[int]:
        return [await combiner.run(Operation(_accounts)), await combiner.run(Operation(_accounts))]

    async with asyncio.timeout(5):
        asking = asyncio.create_task(twice())
        await gated.hold(1)
        gated.gate.set()
        assert await asking == [0, 0]


async def test_what_arrives_while_a_batch_is_written_makes_one_batch(gated: Gated) -> None:
    combiner = Combiner(gated)
    first = asyncio.create_task(combiner.run(Operation(_accounts)))
    await gated.hold(1)
    rest = [asyncio.create_task(combiner.run(Operation(_accounts))) for _ in range(9)]
    await asyncio.sleep(0.01)
    gated.gate.set()
    await asyncio.gather(first, *rest)
    assert gated.batches == 2


async def test_what_a_batch_that_was_undone_had_changed_is_nowhere_kept(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path / "ledger.db", package="parshall.accounting")
    accounting = Accounting(database, directory=Nobody(), clock=clock.now, reservation_seconds=30)
    await accounting.start()
    await accounting.allocate(ANN, Credits(MICRO), expires_at=clock.now() + clock.DAY, granted_by="root")
    await accounting.reserve_whole(stream_id=ONE, user_id=ANN, model_id="any", tokens=9)

    def breaks(books: Books) -> None:
        void(books, ONE)
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        await accounting._combiner.run(Operation(breaks, stream_id=ONE))
    settlement = await accounting.void(stream_id=ONE)
    assert settlement is not None and settlement.transfers, "it returned what was held"
    assert (await accounting.balance(ANN)).available == MICRO
    await accounting.close()


async def test_a_stream_beyond_those_kept_ends_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parshall.accounting.kept.KEPT_MAX", 2)
    monkeypatch.setattr("parshall.accounting.kept.GRANTS_KEPT_MAX", 4)
    database = SqliteDatabase(tmp_path / "ledger.db", package="parshall.accounting")
    accounting = Accounting(database, directory=Nobody(), clock=clock.now, reservation_seconds=30)
    await accounting.start()
    await accounting.allocate(ANN, Credits(MICRO), expires_at=clock.now() + clock.DAY, granted_by="root")
    streams = [StreamId(f"stream-1800000000-{number:08x}") for number in range(5)]
    sizes = set()
    for stream_id in streams:
        await accounting.reserve_whole(stream_id=stream_id, user_id=ANN, model_id="any", tokens=9)
        sizes.add(len(accounting._combiner._kept.accounts))
    assert sizes == {0, 1}
    assert set(accounting._combiner._kept.running) == set(streams[-2:])
    for stream_id in streams:
        assert await accounting.void(stream_id=stream_id) is not None
    assert (await accounting.balance(ANN)).available == MICRO
    assert not accounting._combiner._kept.running
    await accounting.close()

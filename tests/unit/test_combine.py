"""The combiner takes up whatever waits, however its batches end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection
from tests import migrated

from parshall.accounting.books import Books
from parshall.accounting.combine import Combiner, Operation
from parshall.kernel.database import T, Work
from parshall.kernel.sqlite import SqliteDatabase


class Gated:
    """A database whose commits are made known only once the gate is open: all those that wait, in one turn."""

    def __init__(self, database: SqliteDatabase) -> None:
        self.database = database
        self.gate = asyncio.Event()
        self.waiting = 0
        self.batches = 0

    async def read(self, work: Work[T]) -> T:
        return await self.database.read(work)

    async def write(self, work: Work[T]) -> T:
        answer = await self.database.write(work)
        self.waiting += 1
        self.batches += 1
        await self.gate.wait()
        self.waiting -= 1
        return answer

    def instant(self, connection: Connection) -> int:
        return self.database.instant(connection)

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

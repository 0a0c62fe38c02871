"""Laws of idempotency keys on both engines: one change a key, the same answer while it is kept, and a bound to that."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, insert, text
from tests.contracts.test_usage_contract import ANN, START, World
from tests.postgres import Engine

from parshall.accounting.changes import Terms
from parshall.accounting.once import Once
from parshall.accounting.queries import FORGOTTEN_PER_TRANSACTION_MAX, KEY_RETENTION
from parshall.accounting.service import FORGETTING_TRANSACTIONS_MAX
from parshall.accounting.tables import idempotency
from parshall.kernel.clock import DAY
from parshall.kernel.credits import Credits
from parshall.kernel.errors import KeyReused
from parshall.kernel.ids import UserId


@pytest.fixture
async def world(engine: Engine) -> AsyncIterator[World]:
    made = World(engine)
    await made.accounting.start()
    yield made
    await made.accounting.close()


async def grant(world: World, key: str, amount: int = 5) -> str:
    once = Once.of(ANN, amount, caller=UserId("root"), operation="allocate", key=key)
    work = world.accounting.allocating(ANN, Credits(amount), Terms(expires_at=START + 90 * DAY, granted_by="root"))
    return await world.accounting.answer_once(work, render=lambda made: made.id, status=201, once=once)


async def posted(world: World) -> int:
    return (await world.accounting.balance(ANN)).available


async def kept(world: World) -> int:
    def count(connection: Connection) -> int:
        return connection.execute(text("SELECT count(*) FROM idempotency")).scalar_one()

    return await world.database.read(count)


async def test_a_key_gives_its_first_answer_to_the_last_microsecond_of_its_retention(world: World) -> None:
    first = await grant(world, "k")
    for world.at in (START, START + KEY_RETENTION - 1):
        assert await world.accounting.forget_answers() == 0
        assert await grant(world, "k") == first
        with pytest.raises(KeyReused):
            await grant(world, "k", 6)
    assert await posted(world) == 5


@pytest.mark.parametrize("swept", [True, False])
async def test_past_its_retention_a_key_is_new_swept_or_not(world: World, swept: bool) -> None:
    first = await grant(world, "k")
    world.at = START + KEY_RETENTION
    if swept:
        assert await world.accounting.forget_answers() == 1
    second = await grant(world, "k", 6)
    assert second != first
    assert await grant(world, "k", 6) == second
    assert (await posted(world), await kept(world)) == (11, 1)


async def test_a_sweep_takes_only_what_is_due(world: World) -> None:
    await grant(world, "old")
    world.at += 1
    young = await grant(world, "young")
    world.at = START + KEY_RETENTION
    assert await world.accounting.forget_answers() == 1
    assert await grant(world, "young") == young


async def test_a_sweep_is_bounded_and_the_next_goes_on(world: World) -> None:
    bound = FORGOTTEN_PER_TRANSACTION_MAX * FORGETTING_TRANSACTIONS_MAX
    due = [
        {"scope": "s", "key": f"k{number}", "hash": "", "status": 200, "body": "", "created_at": START}
        for number in range(bound + 7)
    ]
    await world.database.write(lambda connection: connection.execute(insert(idempotency), due) and None)
    world.at = START + KEY_RETENTION
    assert [await world.accounting.forget_answers() for _ in range(3)] == [bound, 7, 0]


async def test_one_key_at_many_replicas_at_once_changes_the_books_once(engine: Engine, world: World) -> None:
    """Also where the account is new, so that there is no row of it to hold."""
    worlds = [world, *(World(engine) for _ in range(3 if engine.name == "postgres" else 0))]
    answers = await asyncio.gather(*(grant(each, "k") for each in worlds for _ in range(4)))
    assert len(set(answers)) == 1
    assert await posted(world) == 5
    for each in worlds[1:]:
        await each.accounting.close()


async def test_a_key_past_its_retention_at_many_replicas_at_once_changes_the_books_once_more(
    engine: Engine, world: World
) -> None:
    await grant(world, "k")
    worlds = [world, *(World(engine) for _ in range(3 if engine.name == "postgres" else 0))]
    for each in worlds:
        each.at = START + KEY_RETENTION
    work = [grant(each, "k") for each in worlds for _ in range(4)]
    answers = await asyncio.gather(*work, *(each.accounting.forget_answers() for each in worlds))
    assert len(set(answers[: len(work)])) == 1
    assert await posted(world) == 10
    for each in worlds[1:]:
        await each.accounting.close()

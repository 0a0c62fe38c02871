"""Laws of the price list on both engines: versions from an instant on, never rewritten, and named by every receipt."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.contracts.test_usage_contract import ANN, START, World
from tests.postgres import Engine

from parshall.accounting.model import PriceConflict
from parshall.accounting.pricing import DEFAULT_PRICES, Price
from parshall.accounting.service import Accounting
from parshall.kernel.clock import DAY, SECOND, rfc3339
from parshall.kernel.credits import MICRO, Credits
from parshall.kernel.errors import Invalid
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Settlement, Usage, UsageSource

CHEAP = Price.of(input=MICRO, output=2 * MICRO)
DEAR = Price.of(input=10 * MICRO, output=20 * MICRO)
STREAM = StreamId("stream-1800000000-00000001")


@pytest.fixture
async def world(engine: Engine) -> AsyncIterator[World]:
    made = World(engine)
    await made.accounting.start()
    yield made
    await made.accounting.close()


async def reserve(world: World, stream_id: StreamId = STREAM, model: str = "any") -> None:
    await world.accounting.reserve(
        stream_id=stream_id, user_id=ANN, model_id=model, input_tokens=10, output_tokens_max=10, slice_tokens=10
    )


async def settle(world: World, stream_id: StreamId = STREAM) -> Settlement:
    usage = Usage(input_tokens=10, output_tokens=10)
    return await world.accounting.settle(
        stream_id=stream_id, usage=usage, source=UsageSource.COUNTED, outcome="completed"
    )


async def test_a_price_holds_from_its_instant_on_and_not_a_microsecond_before(world: World) -> None:
    prices = world.accounting.prices
    await prices.put("any", CHEAP, set_by="root")
    await prices.put("any", DEAR, set_by="root", effective_from=START + DAY)
    world.at = START + DAY - 1
    assert (await prices.in_force("any")).price == CHEAP
    world.at += 1
    assert (await prices.in_force("any")).price == DEAR


async def test_a_price_for_the_past_is_refused(world: World) -> None:
    with pytest.raises(Invalid):
        await world.accounting.prices.put("any", CHEAP, set_by="root", effective_from=START - 1)
    assert (await world.accounting.prices.in_force("any")).model_id == "*"


async def test_from_one_instant_there_is_one_price(world: World) -> None:
    prices = world.accounting.prices
    first = await prices.put("any", CHEAP, set_by="root", effective_from=START + DAY)
    assert await prices.put("any", CHEAP, set_by="sue", effective_from=START + DAY) == first
    with pytest.raises(PriceConflict):
        await prices.put("any", DEAR, set_by="root", effective_from=START + DAY)


async def test_of_two_replicas_that_price_one_instant_at_once_one_wins(engine: Engine, world: World) -> None:
    other = world
    if engine.name == "postgres":
        other = World(engine)
    asked = [
        each.accounting.prices.put("any", price, set_by="root", effective_from=START + DAY)
        for price in (CHEAP, DEAR)
        for each in (world, other)
    ]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    kept = [each for each in answers if not isinstance(each, BaseException)]
    assert len(kept) == 2 and kept[0] == kept[1]
    assert [type(each) for each in answers if isinstance(each, BaseException)] == [PriceConflict, PriceConflict]
    if other is not world:
        await other.accounting.close()


async def test_the_default_prices_are_written_once_however_many_replicas_start(engine: Engine) -> None:
    worlds = [World(engine) for _ in range(4 if engine.name == "postgres" else 1)]
    await asyncio.gather(*(each.accounting.start() for each in worlds))
    listed = await worlds[0].accounting.prices.all()
    assert {each.model_id: each.price for each in listed} == DEFAULT_PRICES
    for each in worlds:
        await each.accounting.close()


async def test_a_model_without_a_price_costs_what_any_model_does_until_it_has_one(world: World) -> None:
    prices = world.accounting.prices
    assert (await prices.in_force("any")).version == "*@1970-01-01T00:00:00.000000Z"
    await prices.put("any", CHEAP, set_by="root")
    assert (await prices.in_force("any")).price == CHEAP
    assert (await prices.in_force("other")).model_id == "*"


async def test_a_receipt_names_the_price_that_the_stream_began_at(world: World) -> None:
    await world.accounting.allocate(ANN, Credits(1000), expires_at=START + 9 * DAY, granted_by="root")
    await world.accounting.prices.put("any", CHEAP, set_by="root")
    await reserve(world)
    world.at += SECOND
    await world.accounting.prices.put("any", DEAR, set_by="root")
    settled = await settle(world)
    assert (settled.price_version, settled.charged) == (f"any@{rfc3339(START)}", 30)
    second = StreamId("stream-1800000000-00000002")
    await reserve(world, second)
    assert (await settle(world, second)).price_version == f"any@{rfc3339(START + SECOND)}"
    assert (await world.accounting.receipt(STREAM)).price_version == f"any@{rfc3339(START)}"


async def test_loading_a_list_again_makes_no_versions(world: World) -> None:
    prices = world.accounting.prices
    wanted = [("any", CHEAP), ("other", DEAR)]
    made = await prices.put_all(wanted, set_by="cli")
    assert [(each.model_id, each.price, each.effective_from) for each in made] == [(*each, START) for each in wanted]
    world.at += 1
    assert await prices.put_all(wanted, set_by="cli") == []
    (changed,) = await prices.put_all([("any", DEAR), ("other", DEAR)], set_by="cli")
    assert changed.version == f"any@{rfc3339(START + 1)}"


async def test_a_list_is_loaded_whole_or_not_at_all(world: World) -> None:
    prices = world.accounting.prices
    await prices.put("taken", CHEAP, set_by="root")
    with pytest.raises(PriceConflict):
        await prices.put_all([("any", CHEAP), ("taken", DEAR)], set_by="cli")
    assert (await prices.in_force("any")).model_id == "*"


async def test_the_list_has_what_is_in_force_and_what_is_to_come(engine: Engine, world: World) -> None:
    prices = world.accounting.prices
    await prices.put("any", CHEAP, set_by="root")
    world.at += 1
    await prices.put("any", DEAR, set_by="root")
    await prices.put("any", CHEAP, set_by="root", effective_from=START + DAY)
    listed = [each.effective_from for each in await prices.all() if each.model_id == "any"]
    assert listed == [START + 1, START + DAY]
    assert isinstance(world.accounting, Accounting)

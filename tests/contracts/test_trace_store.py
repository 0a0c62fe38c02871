"""Traces on both engines: bounded in count and time, and a switch of one process is followed by another."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.postgres import Engine

from parshall.chat import trace_store
from parshall.chat.debugging import By, TraceKeeper, Traces
from parshall.chat.trace_store import KEPT_MICROSECONDS, SWITCHES_MAX, TRACES_MAX
from parshall.kernel import clock
from parshall.kernel.clock import MINUTE
from parshall.kernel.database import Database
from parshall.kernel.errors import Conflict, NotFound
from parshall.kernel.fingerprints import Fingerprints
from parshall.kernel.headertrace import Mode, Switched, Tracing

ID = "stream-1620847252-a1b2c3d4"
BY = By(id="root", name="root")


def document(number: int, *, at: int, stream_id: str | None = ID, parent: str | None = None) -> dict[str, Any]:
    return {"id": f"{number:032x}", "parent": parent, "streamingSessionId": stream_id, "at": at, "kind": "request"}


def tracing() -> Tracing:
    return Tracing(mode=Mode.OFF, fingerprints=Fingerprints(b"x" * 16), service="chat", clock=clock.now)


@pytest.fixture
async def database(engine: Engine) -> AsyncIterator[Database]:
    made = engine.open("parshall.chat")
    yield made
    await made.close()


async def test_traces_are_read_in_order_and_kept_within_bounds(database: Database) -> None:
    now = clock.now()
    old, fresh = now - KEPT_MICROSECONDS - 1, [document(n, at=now - n) for n in range(TRACES_MAX + 20)]
    fresh += [document(10**6, at=old), document(10**6 + 1, at=now, stream_id=None, parent=f"{7:032x}")]
    for start in range(0, len(fresh), 500):
        batch = fresh[start : start + 500]
        await database.write(lambda c, batch=batch: trace_store.add_traces(c, batch))
    await database.write(lambda c: trace_store.forget_traces(c, now=now))
    found = await database.read(lambda c: trace_store.list_traces(c, ID, since=old - 1))
    assert len(found) == trace_store.SHOWN_MAX
    assert [each["at"] for each in found] == sorted(each["at"] for each in found)
    assert found[-1]["at"] == now
    count = await database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM header_traces").scalar())
    assert count is not None and TRACES_MAX - 1 <= count <= TRACES_MAX
    one = await database.read(lambda c: trace_store.list_traces(c, f"{7:032x}", since=0))
    assert [each["id"] for each in one] == [f"{7:032x}", f"{10**6 + 1:032x}"]


async def test_a_switch_of_one_process_is_followed_by_another_until_it_is_over(database: Database) -> None:
    at = clock.now()
    traces = Traces(database, people=None, clock=lambda: at)
    other = tracing()
    keeper = TraceKeeper(database, tracing=other, clock=lambda: at)
    made = await traces.switch_on(user=None, stream_id=ID, minutes=2, by=BY)
    await traces.switch_on(user="ann", stream_id=None, minutes=5, by=BY)
    await keeper.look()
    assert other.switched == Switched(users=frozenset({"ann"}), streams=frozenset({ID}))
    at += 2 * MINUTE
    await keeper.look()
    assert other.switched == Switched(users=frozenset({"ann"}))
    with pytest.raises(NotFound):
        await traces.switch_off(made.id, by=BY)
    assert [each.user_id for each in await traces.switch_off(None, by=BY)] == ["ann"]
    await keeper.look()
    assert not other.switched and other.is_idle


async def test_no_more_switches_are_on_at_once_than_may(database: Database) -> None:
    traces = Traces(database, people=None, clock=clock.now)
    for number in range(SWITCHES_MAX):
        await traces.switch_on(user=f"user{number}", stream_id=None, minutes=5, by=BY)
    with pytest.raises(Conflict, match="turn some off"):
        await traces.switch_on(user="one more", stream_id=None, minutes=5, by=BY)


async def test_the_task_keeps_what_comes_and_what_waits_at_its_end(database: Database) -> None:
    made = tracing()
    keeper = TraceKeeper(database, tracing=made, clock=clock.now)
    assert made.sink is not None
    task = asyncio.create_task(keeper.run())
    made.sink(document(1, at=clock.now()))
    traces = Traces(database, people=None, clock=clock.now)
    async with asyncio.timeout(10):
        while not await database.read(lambda c: trace_store.list_traces(c, ID, since=0)):
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    made.sink(document(2, at=clock.now()))
    await keeper.flush()
    assert len(await traces.read(ID, by=BY)) == 2


async def test_what_cannot_be_kept_is_dropped_and_the_next_is_kept(database: Database) -> None:
    made = tracing()
    keeper = TraceKeeper(database, tracing=made, clock=clock.now)
    keeper.keep({"id": "without anything else"})
    await keeper.flush()
    for number in range(1000):
        keeper.keep(document(number, at=clock.now()))
    await keeper.flush()
    found = await database.read(lambda c: trace_store.list_traces(c, ID, since=0))
    assert 0 < len(found) <= 512

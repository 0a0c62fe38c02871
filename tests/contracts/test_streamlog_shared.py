"""What the shared stream log owes to its other processes: what one keeps, every other can read, and none can spoil."""

import asyncio
from typing import Any

import pytest
from tests.contracts.streamlogs import MOMENT, NEVER, OTHER, STREAM, Time, drain, frames, next_of, opened, take
from tests.valkey import Valkey

from parshall.chat.ports import Lease, LeaseLost, LogUnavailable
from parshall.chat.streams import scripts
from parshall.chat.streams.shared import SharedStreamLog
from parshall.chat.streams.tail import FRAMES_IN_MEMORY_MAX
from parshall.kernel.clock import SECOND

# ── Readers elsewhere ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reader_in_another_process_sees_everything_as_it_comes(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 3), first_offset=1)
    tail = await other.tail(STREAM, after=1, silence_seconds=60)
    assert await next_of(tail) == frames(2, 2)
    for offset in range(4, 30):
        await producer.append(lease, frames(offset, 1), first_offset=offset)
        assert await next_of(tail) == frames(offset, 1)
    await producer.close_stream(lease)
    assert await asyncio.wait_for(drain(tail), MOMENT) == [] and tail.ended


async def test_readers_elsewhere_at_every_offset_get_exactly_the_rest(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 10), first_offset=1)
    tails = [await other.tail(STREAM, after=after, silence_seconds=60) for after in range(21)]
    reading = [asyncio.create_task(drain(tail)) for tail in tails]
    for offset in range(11, 21):
        await producer.append(lease, frames(offset, 1), first_offset=offset)
    await producer.close_stream(lease)
    for after, seen in enumerate(await asyncio.wait_for(asyncio.gather(*reading), 5)):
        assert seen == frames(after + 1, 20 - after)


async def test_a_reader_elsewhere_may_come_before_the_first_event_and_be_far_behind(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    tail = await other.tail(STREAM, after=0, silence_seconds=60)
    count = FRAMES_IN_MEMORY_MAX + 700
    for first in range(1, count, 100):
        await producer.append(lease, frames(first, 100), first_offset=first)
    await producer.close_stream(lease)
    seen = await asyncio.wait_for(drain(tail), 5)
    assert seen == frames(1, len(seen)) and len(seen) >= count


async def test_a_reader_elsewhere_gets_all_of_what_was_appended_at_once(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    tail = await other.tail(STREAM, after=0, silence_seconds=60)
    await producer.append(lease, frames(1, 2000), first_offset=1)
    seen: list[bytes] = []
    while len(seen) < 2000:
        seen += await next_of(tail)
    assert seen == frames(1, 2000)
    tail.close()


async def test_an_unknown_stream_ends_at_once(other: SharedStreamLog) -> None:
    tail = await other.tail(STREAM, after=0, silence_seconds=60)
    assert await asyncio.wait_for(drain(tail), MOMENT) == [] and tail.ended


async def test_readers_follow_a_stream_from_one_process_to_another(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    """Those of the process that lost it, and those of the one that took it."""
    lease = await take(producer, time=time, until=time() + SECOND)
    await producer.append(lease, frames(1, 2), first_offset=1)
    reading = [
        asyncio.create_task(drain(await log.tail(STREAM, after=0, silence_seconds=60))) for log in (producer, other)
    ]
    await asyncio.sleep(0.05)
    time.now += SECOND
    fresh = await take(other, time=time)
    await other.append(fresh, frames(3, 1), first_offset=3)
    with pytest.raises(LeaseLost):
        await producer.renew(lease, until=NEVER)  # this is how the first one learns of it
    await other.append(fresh, frames(4, 1), first_offset=4)
    await other.close_stream(fresh)
    for seen in await asyncio.wait_for(asyncio.gather(*reading), 5):
        assert seen == frames(1, 4)


async def test_readers_that_wait_cost_the_engine_nothing(
    server: Valkey, producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    """Nobody polls, and all readers of a process share one connection that waits."""
    leases = [await take(producer, stream, time=time) for stream in (STREAM, OTHER)]
    tails = [await other.tail(lease.stream_id, after=0, silence_seconds=60) for lease in leases for _ in range(20)]
    reading = [asyncio.create_task(drain(tail)) for tail in tails]
    await asyncio.sleep(0.1)
    assert sum(int(client["ssub"]) > 0 for client in clients(server)) == 1
    looks = [commands(server), commands(server)]
    await asyncio.sleep(0.5)
    looks.append(commands(server))
    assert looks[2] - looks[1] == looks[1] - looks[0], "all that the engine was asked is for its counters"
    for lease in leases:
        await producer.close_stream(lease)
    await asyncio.wait_for(asyncio.gather(*reading), MOMENT)


async def test_a_stream_that_nobody_reads_any_more_is_no_longer_followed(
    server: Valkey, producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    tail = await other.tail(STREAM, after=0, silence_seconds=60)
    tail.close()
    await producer.append(lease, frames(1, 1), first_offset=1)
    await asyncio.sleep(0.1)
    assert all(client["ssub"] == "0" for client in clients(server))
    again = await other.tail(STREAM, after=0, silence_seconds=60)
    await producer.append(lease, frames(2, 1), first_offset=2)
    assert (await next_of(again))[:1] == frames(1, 1)
    again.close()


async def test_a_reader_that_comes_back_while_the_stream_is_let_go_is_not_cut(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    """The engine's word that nobody follows any more comes late: somebody does again."""
    lease = await take(producer, time=time)
    for offset in range(1, 200):
        (await other.tail(STREAM, after=0, silence_seconds=60)).close()
        appending = asyncio.create_task(producer.append(lease, frames(offset, 1), first_offset=offset))
        for _ in range(offset % 20):
            await asyncio.sleep(0)
        tail = await other.tail(STREAM, after=offset - 1, silence_seconds=60)
        assert await next_of(tail) == frames(offset, 1)
        tail.close()
        await appending


def commands(server: Valkey) -> int:
    return int(server.ask("INFO", "stats")["total_commands_processed"])


def clients(server: Valkey) -> list[dict[str, str]]:
    lines = server.ask("CLIENT", "LIST").decode().splitlines()
    return [dict(word.partition("=")[::2] for word in line.split()) for line in lines]


# ── Fencing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_of_two_producers_that_race_exactly_one_follows(
    producer: SharedStreamLog, other: SharedStreamLog, time: Time
) -> None:
    """Both believe that they hold the stream, and append at once: from the adoption on every event is the adopter's."""
    stale = await take(producer, time=time, until=time() + SECOND)

    async def produce(log: SharedStreamLog, lease: Lease, name: bytes, first: int) -> int:
        offset = first
        try:
            while offset < first + 200:
                await log.append(lease, [b"%s %d" % (name, offset)], first_offset=offset)
                offset += 1
        except LeaseLost:
            pass
        return offset - first

    racing = asyncio.create_task(produce(producer, stale, b"stale", 1))
    await asyncio.sleep(0.01)
    time.now += SECOND
    fresh = await take(other, time=time)
    kept, _ = await other.read(STREAM, after=0, limit=512)
    assert await produce(other, fresh, b"fresh", len(kept) + 1) == 200
    assert await racing == len(kept)
    logged, _ = await other.read(STREAM, after=0, limit=512)
    expected = [b"stale %d" % n for n in range(1, len(kept) + 1)]
    expected += [b"fresh %d" % n for n in range(len(kept) + 1, len(kept) + 201)]
    assert logged == expected


async def test_of_many_that_adopt_at_once_one_does(server: Valkey, time: Time) -> None:
    async with opened(server.url, time) as one, opened(server.url, time) as two:
        answers = await asyncio.gather(
            *(
                log.acquire(STREAM, owner=f"{n}", at=time(), until=NEVER)
                for n in range(10)
                for log in (one, two)
                if (n % 2 == 0) == (log is one)
            )
        )
        assert len([lease for lease in answers if lease is not None]) == 1


async def test_a_lease_whose_grant_was_lost_is_granted_to_its_owner_again(
    producer: SharedStreamLog, time: Time
) -> None:
    await producer.append(await take(producer, time=time), [b"session of an opening that failed"], first_offset=1)
    again = await take(producer, time=time)
    assert again.epoch == 2
    await producer.append(again, frames(1, 2), first_offset=1)
    await producer.append(again, frames(3, 1), first_offset=3)
    assert await producer.read(STREAM, after=0, limit=10) == (frames(1, 3), False)
    with pytest.raises(LogUnavailable):
        await producer.append(again, frames(1, 2), first_offset=1)


# ── What is kept ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_every_key_of_a_stream_is_in_one_slot_and_goes_by_itself(
    server: Valkey, producer: SharedStreamLog, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 2), first_offset=1)
    names = scripts.keys(STREAM)
    assert {name[name.index("{") : name.index("}")] for name in names} == {"{" + STREAM}
    day = 24 * 3600 * 1000
    assert all(day < server.ask("PTTL", name) <= 3 * day for name in names[:2])
    await producer.close_stream(lease)
    assert all(day < server.ask("PTTL", name) <= 3 * day for name in names[:2])


async def test_appends_of_one_loop_turn_share_a_round_trip(
    server: Valkey, producer: SharedStreamLog, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    trips: list[int] = []
    send = producer._engine._send

    async def counted(calls: Any, **how: Any) -> Any:
        trips.append(len(calls))
        return await send(calls, **how)

    leases = [
        await producer.acquire(f"stream-1620847252-{n:08x}", owner="x", at=time(), until=NEVER) for n in range(50)
    ]  # type: ignore[arg-type]
    for lease in leases:
        assert lease is not None
        await producer.append(lease, frames(1, 1), first_offset=1)
    monkeypatch.setattr(producer._engine, "_send", counted)
    await asyncio.gather(*(producer.append(lease, frames(2, 1), first_offset=2) for lease in leases))
    assert trips == [50]

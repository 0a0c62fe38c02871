"""The shared stream log and an engine that dies, falls silent, is full, forgets, and comes back."""

import asyncio
import contextlib
import random
import time as seconds
from collections.abc import Callable

import pytest
import uvloop
from tests.contracts.streamlogs import MOMENT, NEVER, OTHER, STREAM, Time, drain, frames, next_of, opened, take
from tests.faultproxy import FaultProxy
from tests.valkey import Valkey, unused_port

from parshall.chat.ports import LeaseLost, LogAway, LogLost, LogUnavailable
from parshall.chat.streams import scripts
from parshall.chat.streams.address import Address
from parshall.chat.streams.engine import ANSWER_SECONDS_MAX, Engine, checked
from parshall.chat.streams.shared import SharedStreamLog
from parshall.chat.streams.tail import FRAMES_IN_MEMORY_MAX, Feed, FeedTail
from parshall.kernel.clock import SECOND
from parshall.kernel.ids import StreamId


async def test_when_the_engine_dies_readers_are_sent_away_and_nothing_unlogged_was_shown(
    mortal: Valkey, time: Time
) -> None:
    async with opened(mortal.url, time) as log, opened(mortal.url, time) as elsewhere:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 3), first_offset=1)
        tails = [await each.tail(STREAM, after=0, silence_seconds=60) for each in (log, elsewhere)]
        assert [await next_of(tail) for tail in tails] == [frames(1, 3)] * 2
        mortal.kill()
        with pytest.raises(LogAway):
            await log.append(lease, frames(4, 1), first_offset=4)
        for tail in tails:
            with pytest.raises(LogUnavailable):
                await next_of(tail)
        late = await log.tail(STREAM, after=0, silence_seconds=60)
        with pytest.raises(LogUnavailable):
            await next_of(late)
        mortal.restart()
        await asyncio.sleep(0.3)
        await log.append(lease, frames(4, 2), first_offset=4)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 5), False)
        assert await next_of(await elsewhere.tail(STREAM, after=2, silence_seconds=60)) == frames(3, 3)


async def test_an_append_whose_answer_was_lost_is_repeated_without_a_trace(mortal: Valkey, time: Time) -> None:
    async with opened(mortal.url, time) as log:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 1), first_offset=1)
        mortal.freeze()
        with pytest.raises(LogAway):
            await log.append(lease, frames(2, 3), first_offset=2)
        began = seconds.monotonic()
        with pytest.raises(LogAway):
            await log.append(lease, frames(2, 3), first_offset=2)
        assert seconds.monotonic() - began < 0.2, "it has just been found to be away: nobody waits for that again"
        mortal.thaw()  # now it carries out what nobody waits for any more
        await asyncio.sleep(0.3)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 4), False)
        await log.append(lease, frames(2, 5), first_offset=2)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 6), False)
        assert int(mortal.ask("HGET", scripts.keys(STREAM)[0], "size")) == len(b"".join(frames(1, 6)))


async def test_an_append_that_arrives_late_changes_nothing(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    """As from a connection that was given up, and that the engine reads after its successor."""
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 2), first_offset=1)
    held = producer._held[STREAM]
    for first, mode in ((2, scripts.FOLLOW), (1, scripts.RESTORE)):
        await producer.append(lease, frames(held.expected, 3), first_offset=held.expected)
        before = server.ask("HGETALL", scripts.keys(STREAM)[0])
        await producer._append(held, [b"late"], first, mode)
        assert server.ask("HGETALL", scripts.keys(STREAM)[0]) == before
    assert await producer.read(STREAM, after=0, limit=20) == (frames(1, 8), False)
    await take(producer, time=time)
    with pytest.raises(LeaseLost):
        await producer._append(held, [b"late"], 1, scripts.BEGIN)
    assert await producer.read(STREAM, after=0, limit=20) == (frames(1, 8), False)


async def test_a_log_is_closed_also_to_the_lease_that_closed_it(producer: SharedStreamLog, time: Time) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 1), first_offset=1)
    held = producer._held[STREAM]
    await producer.close_stream(lease)
    producer._held[STREAM] = held  # as if the answer had been lost
    with pytest.raises(LeaseLost):
        await producer.append(lease, frames(2, 1), first_offset=2)
    producer._held[STREAM] = held
    await producer.close_stream(lease)
    assert await producer.read(STREAM, after=0, limit=10) == (frames(1, 1), True)


async def test_a_reader_of_a_running_stream_that_was_lost_is_not_told_that_it_has_ended(
    mortal: Valkey, time: Time
) -> None:
    async with opened(mortal.url, time) as log:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 3), first_offset=1)
        mortal.kill()
        with pytest.raises(LogAway):
            await log.append(lease, frames(4, 1), first_offset=4)
        mortal.forget()
        mortal.restart()
        await asyncio.sleep(0.3)
        tail = await log.tail(STREAM, after=3, silence_seconds=60)
        with pytest.raises(LogUnavailable):
            await next_of(tail)
        assert not tail.ended


async def test_a_stream_whose_events_were_evicted_is_lost_and_not_empty(
    producer: SharedStreamLog, other: SharedStreamLog, server: Valkey, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 3), first_offset=1)
    server.ask("DEL", scripts.keys(STREAM)[1])
    with pytest.raises(LogLost):
        await producer.read(STREAM, after=0, limit=10)
    assert await other.read(STREAM, after=0, limit=10) == ([], True)


async def test_what_comes_while_a_doubtful_log_is_asked_is_not_missed() -> None:
    feed, asked, answered = Feed(last=2, doubtful=True), asyncio.Event(), asyncio.Event()

    async def read(_: StreamId, *, after: int, limit: int) -> tuple[list[bytes], bool]:
        asked.set()
        await answered.wait()
        return [], False

    tail = FeedTail(read, STREAM, feed=feed, after=2, silence_seconds=60)
    waiting = asyncio.create_task(next_of(tail))
    await asyncio.wait_for(asked.wait(), MOMENT)
    feed.doubtful = False
    feed.publish(frames(3, 1))
    answered.set()
    assert await waiting == frames(3, 1)
    tail.close()


async def test_what_the_engine_forgot_of_a_live_stream_is_kept_again(mortal: Valkey, time: Time) -> None:
    async with opened(mortal.url, time) as log:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 5), first_offset=1)
        mortal.kill()
        mortal.forget()
        mortal.restart()
        await log.append(lease, frames(6, 1), first_offset=6)
        assert await log.read(STREAM, after=0, limit=10) == (frames(1, 6), False)
        tail = await log.tail(STREAM, after=3, silence_seconds=60)
        assert await next_of(tail) == frames(4, 3)


async def test_the_last_moments_that_an_engine_lost_are_kept_again(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    """As after a failover to a replica that lagged behind."""
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 5), first_offset=1)
    go_back(server, to=2)
    await producer.append(lease, frames(6, 1), first_offset=6)
    assert await producer.read(STREAM, after=0, limit=10) == (frames(1, 6), False)


def go_back(server: Valkey, *, to: int) -> None:
    """Have the engine hold the stream as it was at an earlier event."""
    lease, events, _, _ = scripts.keys(STREAM)
    server.ask("DEL", events)
    for offset in range(1, to + 1):
        server.ask("XADD", events, f"{offset}-0", "f", frames(offset, 1)[0])
    server.ask("HSET", lease, "last", to)


async def test_until_its_producer_has_kept_them_again_nobody_is_shown_what_the_engine_lost(
    mortal: Valkey, time: Time
) -> None:
    """S1 over a restart: what is at hand was acknowledged once, and is in the log no more."""
    async with opened(mortal.url, time) as log:
        lease = await take(log, time=time)
        await log.append(lease, frames(1, 5), first_offset=1)
        mortal.kill()
        with pytest.raises(LogAway):
            await log.append(lease, frames(6, 1), first_offset=6)
        mortal.restart()
        go_back(mortal, to=2)
        await asyncio.sleep(0.3)
        tail = await log.tail(STREAM, after=0, silence_seconds=0.1)
        assert await next_of(tail) == frames(1, 2)
        assert await next_of(tail) == []
        await log.append(lease, frames(6, 1), first_offset=6)
        assert await next_of(tail) == frames(3, 4)


async def test_a_reader_that_goes_while_it_is_being_connected_leaves_others_to_follow(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    lease = await take(producer, time=time)
    for turns in range(25):
        async with opened(server.url, time) as fresh:
            going = asyncio.create_task(fresh.tail(STREAM, after=0, silence_seconds=60))
            staying = asyncio.create_task(fresh.tail(STREAM, after=turns, silence_seconds=60))
            for _ in range(turns):
                await asyncio.sleep(0)
            going.cancel()
            tail = await asyncio.wait_for(staying, MOMENT)
            await producer.append(lease, frames(turns + 1, 1), first_offset=turns + 1)
            try:
                assert await next_of(tail) == frames(turns + 1, 1)
            except LogAway:  # told to come back: it does
                again = await asyncio.wait_for(fresh.tail(STREAM, after=turns, silence_seconds=60), MOMENT)
                assert await next_of(again) == frames(turns + 1, 1)


async def test_a_stream_that_was_lost_beyond_what_is_at_hand_is_lost(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    lease = await take(producer, time=time)
    for first in range(1, FRAMES_IN_MEMORY_MAX + 200, 100):
        await producer.append(lease, frames(first, 100), first_offset=first)
    server.ask("FLUSHALL")
    held = producer._held[STREAM]
    with pytest.raises(LogLost):
        await producer.append(lease, frames(held.expected, 1), first_offset=held.expected)


@pytest.mark.parametrize("begun", [0, 2])
async def test_a_stale_producer_does_not_begin_a_lost_stream_anew(
    producer: SharedStreamLog, server: Valkey, time: Time, begun: int
) -> None:
    lease = await take(producer, time=time, until=time() + SECOND)
    if begun:
        await producer.append(lease, frames(1, begun), first_offset=1)
    server.ask("FLUSHALL")
    time.now += SECOND
    with pytest.raises(LogLost):
        await producer.append(lease, frames(begun + 1, 1), first_offset=begun + 1)
    assert server.ask("DBSIZE") == 0


async def test_an_engine_that_is_full_keeps_what_it_has_and_takes_more_later(
    producer: SharedStreamLog, server: Valkey, time: Time
) -> None:
    lease = await take(producer, time=time)
    await producer.append(lease, frames(1, 1), first_offset=1)
    server.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(LogAway):
            await producer.append(lease, frames(2, 2), first_offset=2)
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)
    await producer.append(lease, frames(2, 2), first_offset=2)
    assert await producer.read(STREAM, after=0, limit=10) == (frames(1, 3), False)


async def test_an_engine_that_has_become_a_replica_is_left_for_whoever_has_its_address_now(
    mortal: Valkey, time: Time
) -> None:
    async with opened(mortal.url, time) as log, opened(mortal.url, time) as elsewhere:
        lease = await take(log, time=time)
        tails = [await each.tail(STREAM, after=0, silence_seconds=60) for each in (log, elsewhere)]
        before = connections(mortal)
        mortal.ask("CONFIG", "SET", "replica-read-only", "yes")
        mortal.ask("REPLICAOF", "127.0.0.1", unused_port())
        for each in (log, elsewhere):
            with pytest.raises(LogAway):
                await each.acquire(OTHER, owner="x", at=time(), until=NEVER)
        for tail in tails:
            with pytest.raises(LogUnavailable):
                await next_of(tail)
        mortal.ask("REPLICAOF", "NO", "ONE")
        await asyncio.sleep(0.3)
        await log.append(lease, frames(1, 1), first_offset=1)
        assert await next_of(await elsewhere.tail(STREAM, after=0, silence_seconds=60)) == frames(1, 1)
        assert not before & connections(mortal)


def connections(server: Valkey) -> set[bytes]:
    listed = server.ask("CLIENT", "LIST").splitlines()
    return {line.split()[0] for line in listed if b"name=parshall" in line}


async def test_a_half_open_line_is_given_up(mortal: Valkey, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parshall.chat.streams.line.HEARTBEAT_SECONDS", 0.2)
    async with opened(mortal.url, time) as log, opened(mortal.url, time) as elsewhere:
        await take(log, time=time)
        tail = await elsewhere.tail(STREAM, after=0, silence_seconds=60)
        reading = asyncio.create_task(drain(tail))
        await asyncio.sleep(0.5)
        assert not reading.done(), "an engine that answers is not given up"
        mortal.freeze()
        with pytest.raises(LogUnavailable):
            await asyncio.wait_for(reading, 3)
        mortal.thaw()


# ── Whatever happens ────────────────────────────────────────────────────────────────────────────────────────────────


class Follower:
    """A reader in some process that comes back whenever it is sent away."""

    def __init__(self, log: SharedStreamLog) -> None:
        self.log = log
        self.seen: list[bytes] = []
        self.returns = 0

    async def read(self) -> None:
        ended = False
        while not ended:
            try:
                tail = await self.log.tail(STREAM, after=len(self.seen), silence_seconds=0.2)
                async for batch in tail:
                    self.seen += batch
                ended = tail.ended
            except LogUnavailable:
                self.returns += 1
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("rounds", [4, pytest.param(60, marks=pytest.mark.soak)])
async def test_whatever_the_engine_does_every_reader_gets_every_event_once_and_in_order(
    mortal: Valkey, time: Time, rounds: int, record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(10**6)
    record_property("seed", seed)
    chance = random.Random(seed)
    async with opened(mortal.url, time) as log, opened(mortal.url, time) as elsewhere:
        lease = await take(log, time=time)
        followers = [Follower(each) for each in (log, log, elsewhere, elsewhere)]
        reading = [asyncio.create_task(follower.read()) for follower in followers]
        count, stopping = 0, False

        async def produce() -> None:
            nonlocal count
            while not stopping:
                many = chance.randrange(1, 5)
                try:
                    await log.append(lease, frames(count + 1, many), first_offset=count + 1)
                    count += many
                except LogAway:
                    await asyncio.sleep(0.05)
                await asyncio.sleep(chance.random() / 200)

        producing = asyncio.create_task(produce())
        for _ in range(rounds):
            await asyncio.sleep(chance.random() / 3)
            mortal.kill()
            await asyncio.sleep(chance.random() / 3)
            await asyncio.to_thread(mortal.restart)
        await asyncio.sleep(0.5)
        stopping = True
        await asyncio.wait_for(producing, 10)
        await log.close_stream(lease)
        await asyncio.wait_for(asyncio.gather(*reading), 10)
        assert count > 10 and sum(follower.returns for follower in followers) >= rounds
        for follower in followers:
            assert follower.seen == frames(1, count), seed


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_however_connections_break_every_call_is_answered(server: Valkey, run: Callable[..., None]) -> None:
    """On the loop that serves: uvloop has an error of its own for a connection that broke a moment ago."""

    async def call(engine: Engine, number: int, over: asyncio.Event) -> None:
        keys = scripts.keys(StreamId(f"stream-1620847252-{number:08x}"))
        while not over.is_set():
            async with asyncio.timeout(ANSWER_SECONDS_MAX + 2):
                with contextlib.suppress(LogAway):
                    await (engine.call(scripts.READ, keys, 0, 1, receive=checked) if number % 2 else engine.run("PING"))
            await asyncio.sleep(0.001 * number)

    async def calls(proxy: FaultProxy) -> None:
        engine = await Engine.connect(Address.parse(proxy.through(server.url)))
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for number in range(6):
                tasks.create_task(call(engine, number, over))
            for _ in range(100):
                await asyncio.sleep(0.005)
                await asyncio.to_thread(proxy.reset)
                engine._rest_until = 0.0
            over.set()
        await engine.close()

    with FaultProxy.to(server.port) as proxy:
        proxy.slow(0.002)
        run(calls(proxy))

"""The laws of the StreamLog port, run on every implementation of it."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import count
from pathlib import Path

import pytest
from tests.contracts.streamlogs import NEVER, OTHER, STREAM, Time, drain, frames, take
from tests.valkey import Valkey

from parshall.chat.ports import EVENTS_PER_READ_MAX, Bounds, Lease, LeaseLost, LogUnavailable, StreamLog
from parshall.chat.streams.address import Address
from parshall.chat.streams.engine import Engine
from parshall.chat.streams.local import LocalStreamLog
from parshall.chat.streams.shared import SharedStreamLog
from parshall.chat.streams.tail import FRAMES_IN_MEMORY_MAX
from parshall.kernel.clock import SECOND

Open = Callable[[], Awaitable[StreamLog]]
"""Opens the log; a second call opens what the first left behind."""


@pytest.fixture(params=["local", "valkey", "cluster"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path, time: Time) -> Open:
    return opener(request, request.param, tmp_path, time, Bounds())


def opener(request: pytest.FixtureRequest, kind: str, folder: Path, time: Time, bounds: Bounds) -> Open:
    if kind == "local":
        folders = (folder / str(number) for number in count())

        async def local() -> StreamLog:
            """The first in a folder of its own; every further one in a copy, as a kill at this moment leaves it."""
            own = next(folders)
            if (folder / "0").exists():
                shutil.copytree(folder / "0", own, ignore=shutil.ignore_patterns("*-shm"))
            else:
                own.mkdir()
            return LocalStreamLog(own / "streams.db", clock=time, bounds=bounds)

        return local
    server: Valkey = request.getfixturevalue(f"valkey_{'cluster' if kind == 'cluster' else 'server'}")
    server.ask("FLUSHALL")

    async def shared() -> StreamLog:
        return SharedStreamLog(await Engine.connect(Address.parse(server.url)), clock=time, bounds=bounds)

    return shared


@pytest.fixture
async def log(open_log: Open) -> AsyncIterator[StreamLog]:
    opened = await open_log()
    yield opened
    await opened.close()


async def test_what_was_appended_is_read_in_order(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    await log.append(lease, frames(1, 3), first_offset=1)
    await log.append(lease, frames(4, 2), first_offset=4)
    assert await log.read(STREAM, after=0, limit=100) == (frames(1, 5), False)


async def test_reading_after_any_offset_yields_exactly_the_rest(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    await log.append(lease, frames(1, 20), first_offset=1)
    await log.close_stream(lease)
    for after in range(21):
        tail = await log.tail(STREAM, after=after, silence_seconds=5)
        assert await drain(tail) == frames(after + 1, 20 - after)
        assert tail.ended


async def test_a_tail_sees_the_past_then_the_present_without_gap_or_duplicate(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    await log.append(lease, frames(1, 3), first_offset=1)
    reading = asyncio.create_task(drain(await log.tail(STREAM, after=1, silence_seconds=5)))
    for offset in range(4, 60):
        await log.append(lease, frames(offset, 1), first_offset=offset)
        if offset % 7 == 0:
            await asyncio.sleep(0)
    await log.close_stream(lease)
    assert await reading == frames(2, 58)


async def test_a_reader_far_behind_a_live_stream_gets_all_of_it(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    count = FRAMES_IN_MEMORY_MAX + 2 * EVENTS_PER_READ_MAX
    for first in range(1, count, 64):
        await log.append(lease, frames(first, 64), first_offset=first)
    tail = await log.tail(STREAM, after=0, silence_seconds=5)
    seen: list[bytes] = []
    while len(seen) < count:
        batch = await anext(tail)
        assert len(batch) <= EVENTS_PER_READ_MAX
        seen += batch
    assert seen == frames(1, count)
    tail.close()


async def test_many_readers_see_the_same(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    readers = [asyncio.create_task(drain(await log.tail(STREAM, after=n % 3, silence_seconds=5))) for n in range(30)]
    for offset in range(1, 40):
        await log.append(lease, frames(offset, 1), first_offset=offset)
    await log.close_stream(lease)
    for number, reader in enumerate(readers):
        assert await reader == frames(number % 3 + 1, 39 - number % 3)


async def append(log: StreamLog, lease: Lease, frames: Sequence[bytes], first_offset: int) -> None:
    await log.append(lease, frames, first_offset=first_offset)


async def test_no_event_is_shown_that_a_new_process_would_not_find(open_log: Open, time: Time) -> None:
    """S1, the hard way: whatever a tail hands out is kept at that moment."""
    log = await open_log()
    lease = await take(log, time=time)
    tail = await log.tail(STREAM, after=0, silence_seconds=5)
    appends = [asyncio.create_task(append(log, lease, frames(n, 1), n)) for n in range(1, 30)]
    seen = 0
    while seen < 29:
        seen += len(await anext(tail))
        witness = await open_log()
        kept, _ = await witness.read(STREAM, after=0, limit=100)
        await witness.close()
        assert kept == frames(1, len(kept)) and len(kept) >= seen
    await asyncio.gather(*appends)
    tail.close()
    await log.close()


async def test_silence_is_told_and_the_tail_goes_on(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    tail = await log.tail(STREAM, after=0, silence_seconds=0.05)
    assert await anext(tail) == ()
    assert await anext(tail) == ()
    await log.append(lease, frames(1, 1), first_offset=1)
    assert list(await anext(tail)) == frames(1, 1)
    tail.close()


async def test_closing_a_tail_ends_whoever_waits_in_it(log: StreamLog, time: Time) -> None:
    await take(log, time=time)
    tail = await log.tail(STREAM, after=0, silence_seconds=60)
    waiting = asyncio.create_task(drain(tail))
    await asyncio.sleep(0.01)
    tail.close()
    assert await asyncio.wait_for(waiting, 1) == []
    assert not tail.ended


async def test_a_lease_excludes_others_until_it_expires(log: StreamLog, time: Time) -> None:
    await take(log, time=time, until=time() + 10 * SECOND)
    assert await log.acquire(STREAM, owner="b", at=time(), until=NEVER) is None
    time.now += 10 * SECOND
    adopted = await log.acquire(STREAM, owner="b", at=time(), until=NEVER)
    assert adopted is not None and adopted.epoch == 2


async def test_held_is_what_a_lease_runs_on(log: StreamLog, time: Time) -> None:
    asked = [STREAM, OTHER]
    assert await log.held(asked, at=time()) == set()
    lease = await take(log, time=time, until=time() + 10 * SECOND)
    await log.append(lease, frames(1, 1), first_offset=1)
    assert await log.held(asked, at=time()) == {STREAM}
    assert await log.held([OTHER], at=time()) == set()
    assert await log.held(asked, at=time() + 10 * SECOND) == set()
    renewed = await log.renew(lease, until=time() + 20 * SECOND)
    assert await log.held(asked, at=time() + 10 * SECOND) == {STREAM}
    await log.release(renewed)
    assert await log.held(asked, at=time()) == set()
    await log.close_stream(await take(log, time=time))
    assert await log.held(asked, at=time()) == set()
    assert await log.held([], at=time()) == set()


async def test_a_stale_producer_can_neither_append_nor_close_nor_renew(log: StreamLog, time: Time) -> None:
    stale = await take(log, time=time, until=time() + SECOND)
    await log.append(stale, frames(1, 1), first_offset=1)
    time.now += SECOND
    fresh = await take(log, time=time)
    with pytest.raises(LeaseLost):
        await log.append(stale, frames(2, 1), first_offset=2)
    with pytest.raises(LeaseLost):
        await log.close_stream(stale)
    with pytest.raises(LeaseLost):
        await log.renew(stale, until=NEVER)
    await log.append(fresh, [b"adopted\n\n"], first_offset=2)
    assert await log.read(STREAM, after=0, limit=10) == ([*frames(1, 1), b"adopted\n\n"], False)


async def test_readers_follow_a_stream_through_its_adoption(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    await log.append(lease, frames(1, 2), first_offset=1)
    reading = asyncio.create_task(drain(await log.tail(STREAM, after=0, silence_seconds=5)))
    await asyncio.sleep(0.01)
    await log.release(lease)
    fresh = await take(log, time=time)
    await log.append(fresh, frames(3, 1), first_offset=3)
    await log.close_stream(fresh)
    assert await asyncio.wait_for(reading, 2) == frames(1, 3)


async def test_a_renewed_lease_outlives_its_first_term(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time, until=time() + SECOND)
    renewed = await log.renew(lease, until=time() + 20 * SECOND)
    time.now += 10 * SECOND
    assert await log.acquire(STREAM, owner="b", at=time(), until=NEVER) is None
    await log.append(renewed, frames(1, 1), first_offset=1)


async def test_a_released_stream_can_be_adopted_at_once(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    await log.append(lease, frames(1, 1), first_offset=1)
    await log.release(lease)
    assert await log.acquire(STREAM, owner="b", at=time(), until=NEVER) is not None


async def test_nothing_follows_the_close(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    await log.append(lease, frames(1, 1), first_offset=1)
    await log.close_stream(lease)
    with pytest.raises(LeaseLost):
        await log.append(lease, frames(2, 1), first_offset=2)
    time.now += 1_000 * SECOND
    assert await log.acquire(STREAM, owner="b", at=time(), until=NEVER) is None
    assert await log.read(STREAM, after=0, limit=10) == (frames(1, 1), True)


async def test_what_was_appended_survives_the_process(open_log: Open, time: Time) -> None:
    first = await open_log()
    lease = await take(first, time=time, until=time() + SECOND)
    await first.append(lease, frames(1, 3), first_offset=1)
    second = await open_log()  # the first was not closed: as after a kill
    time.now += SECOND
    adopted = await take(second, time=time)
    assert adopted.epoch == 2
    assert await second.read(STREAM, after=0, limit=10) == (frames(1, 3), False)
    await second.append(adopted, frames(4, 1), first_offset=4)
    assert (await second.read(STREAM, after=3, limit=10))[0] == frames(4, 1)
    await second.close()
    await first.close()


async def test_streams_do_not_mix(log: StreamLog, time: Time) -> None:
    one, two = await take(log, time=time), await take(log, OTHER, time=time)
    await asyncio.gather(
        log.append(one, [b"one"], first_offset=1),
        log.append(two, [b"two"], first_offset=1),
    )
    assert (await log.read(STREAM, after=0, limit=10))[0] == [b"one"]
    assert (await log.read(OTHER, after=0, limit=10))[0] == [b"two"]


async def test_an_offset_is_never_written_twice(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    await log.append(lease, frames(1, 2), first_offset=1)
    with pytest.raises(LogUnavailable):
        await log.append(lease, [b"again"], first_offset=2)
    assert (await log.read(STREAM, after=0, limit=10))[0] == frames(1, 2)


async def test_a_refused_append_does_not_take_others_with_it(log: StreamLog, time: Time) -> None:
    """Appends share a commit; one that cannot be kept must not lose its neighbour's."""
    one, two = await take(log, time=time), await take(log, OTHER, time=time)
    await log.append(one, frames(1, 1), first_offset=1)
    answers = await asyncio.gather(
        append(log, one, [b"again"], 1),
        append(log, two, frames(1, 1), 1),
        return_exceptions=True,
    )
    assert isinstance(answers[0], LogUnavailable)
    assert answers[1] is None
    assert (await log.read(OTHER, after=0, limit=10))[0] == frames(1, 1)


async def test_a_cancelled_append_is_kept_or_not_but_never_half(log: StreamLog, time: Time) -> None:
    lease = await take(log, time=time)
    appending = asyncio.create_task(append(log, lease, frames(1, 5), 1))
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    await asyncio.sleep(0.01)
    kept, _ = await log.read(STREAM, after=0, limit=10)
    assert kept in ([], frames(1, 5))
    await log.append(lease, frames(len(kept) + 1, 1), first_offset=len(kept) + 1)


SMALL = Bounds(events_max=10, bytes_max=200)


@pytest.mark.parametrize("many", [frames(11, 1), [b"x" * 200]])
@pytest.mark.parametrize("bounded", ["local", "valkey", "cluster"])
async def test_a_stream_takes_no_more_than_its_bounds_and_can_be_read_and_closed_then(
    request: pytest.FixtureRequest, tmp_path: Path, time: Time, bounded: str, many: list[bytes]
) -> None:
    log = await opener(request, bounded, tmp_path, time, SMALL)()
    assert log.bounds == SMALL
    lease = await take(log, time=time)
    count = 10 if len(many[0]) < 100 else 1
    await log.append(lease, frames(1, count), first_offset=1)
    with pytest.raises(LogUnavailable):
        await log.append(lease, many, first_offset=count + 1)
    assert await log.read(STREAM, after=0, limit=20) == (frames(1, count), False)
    await log.close_stream(lease)
    assert await log.read(STREAM, after=0, limit=20) == (frames(1, count), True)
    await log.close()


async def test_a_log_that_answers_says_so(log: StreamLog) -> None:
    assert await log.check() is None  # type: ignore[func-returns-value]


async def test_trimming_forgets_closed_streams_only(log: StreamLog, time: Time) -> None:
    old, running = await take(log, time=time), await take(log, OTHER, time=time)
    await log.append(old, frames(1, 2), first_offset=1)
    await log.append(running, frames(1, 2), first_offset=1)
    await log.close_stream(old)
    assert await log.trim(closed_before=time()) == 0
    time.now += SECOND
    assert await log.trim(closed_before=time()) == 1
    assert await log.read(STREAM, after=0, limit=10) == ([], True)
    assert (await log.read(OTHER, after=0, limit=10))[0] == frames(1, 2)


async def test_a_closed_stream_is_forgotten_when_told_and_no_other(log: StreamLog, time: Time) -> None:
    old, running = await take(log, time=time), await take(log, OTHER, time=time)
    await log.append(old, frames(1, 2), first_offset=1)
    await log.append(running, frames(1, 2), first_offset=1)
    await log.close_stream(old)
    for stream_id in (STREAM, OTHER, STREAM):
        await log.forget(stream_id)
    assert await log.read(STREAM, after=0, limit=10) == ([], True)
    assert (await log.read(OTHER, after=0, limit=10))[0] == frames(1, 2)
    time.now += SECOND
    await log.trim(closed_before=time())


async def test_closing_the_log_ends_every_tail(open_log: Open, time: Time) -> None:
    log = await open_log()
    await take(log, time=time)
    reading = asyncio.create_task(drain(await log.tail(STREAM, after=0, silence_seconds=60)))
    await asyncio.sleep(0.01)
    await log.close()
    assert await asyncio.wait_for(reading, 2) == []
    await log.close()  # a shutdown may close it twice

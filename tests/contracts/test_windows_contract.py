"""The contract of moving windows, held by those of one process and those that replicas share on a real Valkey."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from tests.faultproxy import FaultProxy
from tests.valkey import Valkey

from parshall.kernel import windows
from parshall.kernel.windows import WINDOW_SECONDS, LocalWindows, SharedWindows, Windows

SOON = 3
"""A window that a test can wait for, in seconds."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with Valkey.start(durable=False) as server:
        yield server


@pytest.fixture(params=["local", "shared"])
async def counting(request: pytest.FixtureRequest) -> AsyncIterator[Windows]:
    if request.param == "local":
        made: Windows = LocalWindows()
    else:
        server: Valkey = request.getfixturevalue("valkey")
        server.ask("FLUSHALL")
        made = SharedWindows(server.url)
    yield made
    await made.close()


async def hits(counting: Windows, caller: str, most: int, times: int) -> list[bool]:
    return [count is not None and count.fits for count in [await counting.hit(caller, most) for _ in range(times)]]


async def test_as_many_fit_as_may_and_what_is_left_counts_down(counting: Windows) -> None:
    counts = [await counting.hit("ann", 3) for _ in range(5)]
    assert [(c.fits, c.left) for c in counts if c] == [(True, 2), (True, 1), (True, 0), (False, 0), (False, 0)]
    assert all(c and WINDOW_SECONDS - 2 < c.seconds <= WINDOW_SECONDS for c in counts)


async def test_callers_do_not_count_for_each_other(counting: Windows) -> None:
    assert await hits(counting, "ann", 2, 3) == [True, True, False]
    assert await hits(counting, "bob", 2, 3) == [True, True, False]


async def test_of_many_at_once_exactly_as_many_fit_as_may(counting: Windows) -> None:
    counts = await asyncio.gather(*(counting.hit("ann", 10) for _ in range(40)))
    assert sum(count is not None and count.fits for count in counts) == 10


async def test_the_window_moves(counting: Windows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "WINDOW_SECONDS", SOON)
    assert await hits(counting, "ann", 2, 1) == [True]
    await asyncio.sleep(SOON / 2)
    assert await hits(counting, "ann", 2, 2) == [True, False]
    count = await counting.hit("ann", 2)
    assert count is not None and 0 < count.seconds <= SOON / 2
    await asyncio.sleep(count.seconds + 0.1)
    assert await hits(counting, "ann", 2, 2) == [True, False], "one has left the window, and only one"


@given(st.lists(st.tuples(st.floats(0, WINDOW_SECONDS), st.sampled_from("ab")), max_size=60), st.integers(1, 5))
def test_no_window_holds_more_than_may_be_and_none_is_refused_without_cause(
    steps: list[tuple[float, str]], most: int
) -> None:
    now = 1000.0
    local, admitted = LocalWindows(clock=lambda: now), dict[str, list[float]](a=[], b=[])
    for pause, caller in steps:
        now += pause
        recent = [at for at in admitted[caller] if at > now - WINDOW_SECONDS]
        count = asyncio.run(local.hit(caller, most))
        assert count.fits == (len(recent) < most)
        if count.fits:
            admitted[caller].append(now)
            recent.append(now)
        assert (count.left, count.seconds) == (most - len(recent), pytest.approx(recent[0] + WINDOW_SECONDS - now))


async def test_who_is_silent_for_a_window_is_forgotten_and_never_are_too_many_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "CALLERS_MAX", 100)
    now = 0.0
    local = LocalWindows(clock=lambda: now)
    for number in range(300):
        await local.hit(str(number), 5)
        assert len(local._callers) <= 100
    assert (await local.hit("299", 5)).left == 3, "who called last is still counted"
    now = WINDOW_SECONDS
    for _ in range(100):
        await local.hit("again", 5)
    assert list(local._callers) == ["again"]


# ── Shared ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_replicas_that_name_one_store_share_its_windows(valkey: Valkey) -> None:
    valkey.ask("FLUSHALL")
    replicas = [SharedWindows(valkey.url) for _ in range(3)]
    counts = await asyncio.gather(*(replicas[n % 3].hit("ann", 7) for n in range(30)))
    assert sum(count is not None and count.fits for count in counts) == 7
    assert all(0 < ttl <= WINDOW_SECONDS for ttl in (valkey.ask("TTL", key) for key in valkey.ask("KEYS", "*")))
    for replica in replicas:
        await replica.close()


@contextlib.asynccontextmanager
async def shared(url: str) -> AsyncIterator[SharedWindows]:
    made = SharedWindows(url)
    yield made
    await made.close()


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_a_store_that_is_away_counts_nothing_keeps_nobody_waiting_and_is_found_again(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "STORE_AWAY_SECONDS", 0.5)
    with Valkey.start(durable=False) as server:
        async with shared(server.url) as counting:
            assert await hits(counting, "ann", 1, 2) == [True, False]
            server.freeze() if how == "frozen" else server.kill()
            with structlog.testing.capture_logs() as logs:
                began = time.monotonic()
                assert [await counting.hit("ann", 1) for _ in range(50)] == [None] * 50
                assert time.monotonic() - began < 3 * windows.STORE_SECONDS_MAX
                await asyncio.sleep(0.6)
                assert await counting.hit("ann", 1) is None
            assert [entry["event"] for entry in logs] == ["limits_store_away"], "one warning a minute"
            server.thaw() if how == "frozen" else server.restart()
            await asyncio.sleep(0.6)
            count = await counting.hit("bob", 1)
            assert count is not None and count.fits


async def test_a_store_that_refuses_us_counts_nothing() -> None:
    with Valkey.start(durable=False, password="secret") as server:
        async with shared(server.url.replace("secret", "wrong")) as counting:
            assert await counting.hit("ann", 1) is None
        async with shared(server.url) as counting:
            assert await hits(counting, "ann", 1, 2) == [True, False]


async def test_a_key_of_another_kind_in_the_store_refuses_nobody(valkey: Valkey) -> None:
    valkey.ask("FLUSHALL")
    async with shared(valkey.url) as counting:
        await counting.hit("ann", 1)
        (key,) = valkey.ask("KEYS", "*")
        valkey.ask("SET", key, "nonsense")
        assert await counting.hit("ann", 1) is None


def test_a_store_whose_connections_break_refuses_nobody(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the loop that serves, which has an error of its own for a connection that broke a moment ago."""
    monkeypatch.setattr(windows, "STORE_AWAY_SECONDS", 0.0)

    async def count(counting: SharedWindows, over: asyncio.Event) -> None:
        while not over.is_set():
            counted = await counting.hit("ann", 1_000_000)
            assert counted is None or counted.fits

    async def counts(proxy: FaultProxy) -> None:
        counting, over = SharedWindows(proxy.through(valkey.url)), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(count(counting, over))
            for _ in range(100):
                await asyncio.sleep(0.005)
                await asyncio.to_thread(proxy.reset)
            over.set()
        await counting.close()

    with FaultProxy.to(valkey.port) as proxy:
        proxy.slow(0.002)
        uvloop.run(counts(proxy))

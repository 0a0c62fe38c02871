"""Measures books as fast as they go and then at half of that: the time of every reserve and every settle.

Saturated, each of N streams reserves and settles and begins anew. At half load streams arrive by a clock (Poisson, the
same in every run) whether or not those before them have ended, and the time of a reserve counts from the instant at
which it was due: who is late for everybody looks as slow as it is. A settle is due once its reserve is answered.
"""

import asyncio
import ctypes
import itertools
import math
import os
import random
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

SEED = 20261124
WARM_UP_SECONDS_MAX = 0.5
"""Not counted: connections are opened, statements prepared and compiled, as in a server that has run for a while."""

Result = dict[str, Any]


class Books(Protocol):
    """What is measured; accounts are numbered from 0."""

    async def reserve(self, account: int) -> Any:
        """Hold credits of the account, durably; what `settle` needs to know of it."""
        ...

    async def settle(self, reserved: Any) -> None:
        """Charge less than was held and return the rest, durably."""
        ...

    async def check(self, pairs: int) -> None:
        """Assert that nothing is held and that exactly so many pairs were charged."""
        ...


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that each operation took; arrays, because a list of floats would be the collector's to walk through."""

    reserve: "array[float]" = field(default_factory=lambda: array("d"))
    settle: "array[float]" = field(default_factory=lambda: array("d"))


async def measure(books: Books, *, accounts: int, at_once: int, seconds: float) -> Result:
    """Rates (pairs a second), times (milliseconds) and CPU of this process (microseconds a pair); checks the books."""
    choose = random.Random(SEED)
    warm = await _saturated(books, choose, accounts, at_once, min(WARM_UP_SECONDS_MAX, seconds / 4))
    began, cpu = time.perf_counter(), time.process_time()
    full = await _saturated(books, choose, accounts, at_once, seconds)
    taken, cpu = time.perf_counter() - began, time.process_time() - cpu
    pairs = len(full.settle)
    began_half, before_half = time.perf_counter(), time.process_time()
    half = await _arriving(books, choose, accounts, pairs / taken / 2, seconds)
    taken_half, cpu_half = time.perf_counter() - began_half, time.process_time() - before_half
    await books.check(len(warm.settle) + pairs + len(half.settle))
    return {
        "pairs_per_second": pairs / taken,
        "cpu_us_per_pair": cpu / pairs * 1e6,
        "half_pairs_per_second": len(half.settle) / taken_half,
        "half_cpu_us_per_pair": cpu_half / len(half.settle) * 1e6,
        **_percentiles("full", full.reserve + full.settle),
        **_percentiles("full_reserve", full.reserve),
        **_percentiles("full_settle", full.settle),
        **_percentiles("half_reserve", half.reserve),
        **_percentiles("half_settle", half.settle),
    }


async def _saturated(books: Books, choose: random.Random, accounts: int, at_once: int, seconds: float) -> Times:
    times = Times()
    end = time.perf_counter() + seconds

    async def stream() -> None:
        while (now := time.perf_counter()) < end:
            await _pair(books, choose.randrange(accounts), times, due=now)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(stream())
    return times


async def _arriving(books: Books, choose: random.Random, accounts: int, rate: float, seconds: float) -> Times:
    times = Times()
    async with asyncio.TaskGroup() as group:
        async for due in _clock(_poisson(rate, seconds)):
            group.create_task(_pair(books, choose.randrange(accounts), times, due=due))
    return times


async def _pair(books: Books, account: int, times: Times, *, due: float) -> None:
    reserved = await books.reserve(account)
    answered = time.perf_counter()
    times.reserve.append(answered - due)
    await books.settle(reserved)
    times.settle.append(time.perf_counter() - answered)


def _percentiles(name: str, seconds: "array[float]") -> Result:
    """Milliseconds within which half, and 99 of 100, were done."""
    ordered = sorted(seconds)
    return {f"{name}_p{p}": ordered[math.ceil(len(ordered) * p / 100) - 1] * 1e3 for p in (50, 99)}


# ── Arrivals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _poisson(rate: float, seconds: float) -> Sequence[float]:
    """Instants from now on; at least one."""
    gaps = random.Random(SEED)
    steps = (gaps.expovariate(rate) for _ in range(max(1, round(rate * seconds))))
    return list(itertools.accumulate(steps, initial=time.perf_counter()))[1:]


async def _clock(dues: Sequence[float]) -> AsyncIterator[float]:
    """Each instant once it has come."""
    loop = asyncio.get_running_loop()
    rung = asyncio.Event()

    def ring() -> None:
        os.read(alarm, 8)
        rung.set()

    with _alarm() as alarm:
        loop.add_reader(alarm, ring)
        try:
            for due in dues:
                if due > time.perf_counter():
                    rung.clear()
                    _set(alarm, due)
                    await rung.wait()
                yield due
        finally:
            loop.remove_reader(alarm)


class _TimerSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


_LIBC = ctypes.CDLL(None, use_errno=True)
_NOT_BLOCKING = os.O_NONBLOCK
_ABSOLUTE = 1


@contextmanager
def _alarm() -> Iterator[int]:
    """A timer of Linux as a file: those of the event loop are a millisecond coarse, which is more than some operations.

    Python has it from 3.13 on (os.timerfd_create).
    """
    alarm = _checked(_LIBC.timerfd_create(time.CLOCK_MONOTONIC, _NOT_BLOCKING))
    try:
        yield alarm
    finally:
        os.close(alarm)


def _set(alarm: int, at: float) -> None:
    """Let it ring at that instant of `time.perf_counter`, which is the same clock."""
    whole = int(at)
    spec = _TimerSpec(0, 0, whole, int((at - whole) * 1e9))
    _checked(_LIBC.timerfd_settime(alarm, _ABSOLUTE, ctypes.byref(spec), None))


def _checked(answer: int) -> int:
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return answer

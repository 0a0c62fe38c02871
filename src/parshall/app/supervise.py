"""Child processes under one parent: started in stages, their lines relayed, brought back when they die, ended in order.

Children run in process groups of their own, so that Ctrl-C reaches the parent alone, which then ends them in order.
When the parent dies, however it does, each sees the end of its standard input (`end_with_parent`).
"""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO

START_SECONDS_MAX = 120.0
"""How long a child may take to become ready: a database may be brought forward, a model loaded."""
STEADY_SECONDS = 10.0
"""A child that was ready and has lived for so long does not count as failing when it dies."""
FAILURES_MAX = 6
"""Failures in a row after which all end: whoever started the parent can tell then that something is wrong."""
PAUSE_SECONDS_MIN = 0.25
PAUSE_SECONDS_MAX = 10.0
RELAY_SECONDS_MAX = 1.0
"""How long the last lines of a child that has ended are waited for; a grandchild may hold its output open."""
LINE_BYTES_MAX = 1 << 20
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MARK = "SUPERVISED_BY_PARSHALL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A process to keep running: ready once a line of its standard output holds `ready`.

    `environment` is added to the parent's; `descriptors` are open files that it inherits under the same numbers.
    `on_end` is told the id of each of its processes that has ended.
    """

    name: str
    command: tuple[str, ...]
    ready: str
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    descriptors: tuple[int, ...] = ()
    on_end: Callable[[int], None] = lambda _process_id: None


def parshall(*arguments: str) -> tuple[str, ...]:
    """The command that runs this very program with these arguments."""
    return (sys.executable, "-m", "parshall", *arguments)


def end_with_parent(end: Callable[[], None]) -> None:
    """In a child: have the running loop call `end` once the parent is gone. In any other process nothing happens."""
    if MARK not in os.environ:
        return
    loop, standard_input = asyncio.get_running_loop(), 0

    def look() -> None:
        if not os.read(standard_input, 4096):
            loop.remove_reader(standard_input)
            end()

    loop.add_reader(standard_input, look)


async def supervise(
    stages: Sequence[Sequence[Child]], *, stop_seconds: float, on_ready: Callable[[], None] = lambda: None
) -> int:
    """Keep all children running until SIGINT or SIGTERM; the exit code, 0 where all that ran then ended in order.

    A stage starts when the one before it is ready, and ends before that one does; it is killed after `stop_seconds`,
    or at a second signal. `on_ready` is called once, when all are ready. A child that is not at the first start, or
    fails FAILURES_MAX times in a row later, ends all with the exit code 1.
    """
    stop, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in SIGNALS:
        loop.add_signal_handler(number, signalled)
    started: list[list[_Kept]] = []
    try:
        await _first(stop.wait(), _run(stages, started, on_ready))
    finally:
        orderly = [await _end(stage, hurry, stop_seconds) for stage in reversed(started)]
        for number in SIGNALS:
            loop.remove_signal_handler(number)
    return 0 if stop.is_set() and all(orderly) else 1


async def _run(stages: Sequence[Sequence[Child]], started: "list[list[_Kept]]", on_ready: Callable[[], None]) -> None:
    """Start all, and return once one of them cannot be kept running."""
    for stage in stages:
        kept = [_Kept(child) for child in stage]
        started.append(kept)
        if not all(await asyncio.gather(*(each.start() for each in kept))):
            return
    on_ready()
    await _first(*(each.keep() for stage in started for each in stage))


async def _end(stage: "Sequence[_Kept]", hurry: asyncio.Event, stop_seconds: float) -> bool:
    """End the children of a stage together; whether those that still ran did so in order and in time."""
    running = [kept for kept in stage if kept.signal(signal.SIGTERM)]
    with suppress(TimeoutError):
        async with asyncio.timeout(stop_seconds):
            await _first(hurry.wait(), _all(kept.ended() for kept in running))
    for kept in running:
        if kept.signal(signal.SIGKILL):
            _say(f"{kept.name} did not end in time and was killed")
    codes = [await kept.ended() for kept in running]
    return all(code in (0, -signal.SIGTERM) for code in codes)  # a child that has just begun knows no signals yet


class _Kept:
    """A child, and the process that it is at present."""

    def __init__(self, child: Child) -> None:
        self.name = child.name
        self._child = child
        self._process: Process | None = None
        self._relays: asyncio.Future[Any] | None = None
        self._is_ready = asyncio.Event()
        self._started_at = 0.0

    async def start(self) -> bool:
        """Start it; whether it became ready. One that did not has ended."""
        child, self._started_at = self._child, time.monotonic()
        self._is_ready.clear()
        self._process = process = await asyncio.create_subprocess_exec(
            *child.command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=os.environ | child.environment | {MARK: "1", "PYTHONUNBUFFERED": "1"},
            pass_fds=child.descriptors,
            process_group=0,
        )
        assert process.stdout is not None and process.stderr is not None
        self._relays = asyncio.gather(self._relay(process.stdout, sys.stdout), self._relay(process.stderr, sys.stderr))
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS_MAX):
                await _first(self._is_ready.wait(), self.ended())
        if not self._is_ready.is_set():
            self.signal(signal.SIGKILL)
            _say(f"{self.name} did not start ({_reason(await self.ended())})")
        return self._is_ready.is_set()

    async def keep(self) -> None:
        """Start it again whenever it has ended; return once it has failed too often in a row."""
        failures = 0
        while True:
            reason = _reason(await self.ended())
            steady = self._is_ready.is_set() and time.monotonic() - self._started_at > STEADY_SECONDS
            failures = 1 if steady else failures + 1
            if failures >= FAILURES_MAX:
                _say(f"{self.name} has ended ({reason}) {failures} times in a row; everything ends")
                return
            pause = min(PAUSE_SECONDS_MIN * 2**failures, PAUSE_SECONDS_MAX)
            _say(f"{self.name} has ended ({reason}); it starts again in {pause:g} s")
            await asyncio.sleep(pause)
            await self.start()

    def signal(self, number: int) -> bool:
        """Send it a signal; whether it runs."""
        if self._process is None or self._process.returncode is not None:
            return False
        self._process.send_signal(number)
        return True

    async def ended(self) -> int:
        """Its exit code, once it has ended and its last lines are relayed."""
        assert self._process is not None and self._relays is not None
        code = await self._process.wait()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._relays), RELAY_SECONDS_MAX)
        self._child.on_end(self._process.pid)
        return code

    async def _relay(self, source: asyncio.StreamReader, target: TextIO) -> None:
        """Pass its lines on; what is no record names the child."""
        rest = b""
        while chunk := await source.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                lines, rest = [*lines, rest], b""
            self._pass_on(lines, target)
        self._pass_on([rest] if rest else [], target)

    def _pass_on(self, lines: Iterable[bytes], target: TextIO) -> None:
        for line in lines:
            text = line.decode(errors="replace")
            if target is sys.stdout and self._child.ready in text:
                self._is_ready.set()
            _say(text if text.startswith("{") else f"{self.name}: {text}", target)


def _say(text: str, target: TextIO | None = None) -> None:
    """One line. Whoever read our output may have gone; that ends no service."""
    target = target or sys.stderr
    with suppress(OSError):
        target.write(f"{text}\n")
        target.flush()


def _reason(code: int) -> str:
    return f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


async def _all(works: Iterable[Coroutine[Any, Any, Any]]) -> None:
    await asyncio.gather(*works)


async def _first(*works: Coroutine[Any, Any, Any]) -> None:
    """Return when the first of these is done; the others are cancelled. Raises what one of them has raised."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()

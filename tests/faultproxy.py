"""A TCP proxy whose network can be made slow, narrow, broken or silent while connections run through it."""

# It stands between a server and its PostgreSQL or Valkey, or between a client and a server:
#
#     with FaultProxy.to(database.port) as proxy:
#         url = proxy.through(database.url(name))     # the same address, by way of the proxy
#         … proxy.blackhole(); … proxy.heal(); …
#
# Everything runs on an event loop in a thread of its own; a method returns once what it asks for is in force.

import asyncio
import contextlib
import random
import re
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
READ_BYTES_MAX = 16_384
CHUNKS_MAX = 64
"""Chunks that are on their way in one direction; more are not read, so that the sender feels it."""
PATIENCE_SECONDS = 10
ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER: close without waiting, which sends RST."""


@dataclass(eq=False)
class Link:
    """One connection through the proxy: both its ends, and the task that carries it."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    task: "asyncio.Task[None] | None" = None

    @property
    def ends(self) -> list[asyncio.StreamWriter]:
        return [end for end in (self.near, self.far) if end is not None]


@dataclass
class FaultProxy:
    """Carries each connection to the first of `targets()`, ports of this machine, that takes it; to none: a reset."""

    targets: Callable[[], Sequence[int]]
    port: int = 0
    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0
    """In each direction of each connection; 0 is no limit."""
    links: set[Link] = field(default_factory=set)
    accepted: int = 0
    """Connections so far."""
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None

    @classmethod
    @contextlib.contextmanager
    def to(cls, port: int) -> Iterator["FaultProxy"]:
        """A proxy to one port of this machine."""
        with cls(lambda: (port,)).running() as proxy:
            yield proxy

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Listen while the block runs, then drop every connection."""
        thread = threading.Thread(target=self._loop.run_forever, name="faultproxy", daemon=True)
        thread.start()
        self._open.set()
        try:
            self._on_loop(self._listen)
            yield self
        finally:
            self._on_loop(self._end)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(PATIENCE_SECONDS)
            self._loop.close()

    def through(self, url: str) -> str:
        """The same URL by way of this proxy."""
        return re.sub(r"(127\.0\.0\.1|localhost):\d+", f"127.0.0.1:{self.port}", url, count=1)

    # ── Faults ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def slow(self, seconds: float, *, jitter: float = 0.0, bytes_per_second: float = 0.0) -> None:
        """Delay each chunk by `seconds` give or take `jitter`, in order, and pass no more than so many bytes."""
        self.latency_seconds, self.jitter_seconds, self.bytes_per_second = seconds, jitter, bytes_per_second

    def cut(self) -> None:
        """Close every open connection in order (FIN); new ones pass."""
        self._on_loop(lambda: self._drop(reset=False))

    def reset(self) -> None:
        """Break every open connection (RST); new ones pass."""
        self._on_loop(lambda: self._drop(reset=True))

    def blackhole(self) -> None:
        """Accept and pass nothing, on open connections neither; what was sent meanwhile arrives after `heal`."""
        self._on_loop(self._shut)

    def refuse(self) -> None:
        """Break every open connection and refuse new ones."""
        self._on_loop(self._close_door)

    def heal(self) -> None:
        """Pass everything again, at once."""
        self.slow(0)
        self._on_loop(self._listen)

    # ── On the loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _on_loop(self, act: Callable[[], T]) -> T:
        async def acting() -> T:
            answer = act()
            return await answer if asyncio.iscoroutine(answer) else answer

        return asyncio.run_coroutine_threadsafe(acting(), self._loop).result(PATIENCE_SECONDS)

    async def _listen(self) -> None:
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, backlog=512)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        self._open.clear()

    async def _close_door(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._drop(reset=True)

    async def _end(self) -> None:
        await self._close_door()
        self._open.set()

    async def _drop(self, *, reset: bool) -> None:
        links = tuple(self.links)
        for link in links:
            for end in link.ends:
                _break(end) if reset else end.close()
            if link.task is not None:
                link.task.cancel()
        await asyncio.gather(*(link.task for link in links if link.task is not None), return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = Link(writer, task=asyncio.current_task())
        self.links.add(link)
        try:
            await self._carry(link, reader)
        except (OSError, asyncio.CancelledError):
            for end in link.ends:
                _break(end)  # what one end has broken is broken for the other; one that closes already goes on so
        finally:
            for end in link.ends:
                end.close()
            self.links.discard(link)

    async def _carry(self, link: Link, near: asyncio.StreamReader) -> None:
        await self._open.wait()
        far, link.far = await self._reach()
        async with _both() as tasks:
            tasks.create_task(self._pump(near, link.far))
            tasks.create_task(self._pump(far, link.near))

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for port in self.targets():
            with contextlib.suppress(OSError):
                return await asyncio.open_connection("127.0.0.1", port)
        raise ConnectionRefusedError

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction: chunks wait in a queue until they are due, so that delay does not narrow the way."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)
        async with _both() as tasks:
            tasks.create_task(self._take(reader, waiting))
            tasks.create_task(self._give(waiting, writer))

    async def _take(self, reader: asyncio.StreamReader, waiting: "asyncio.Queue[tuple[float, bytes]]") -> None:
        due = 0.0
        while True:
            chunk = await reader.read(READ_BYTES_MAX)
            now = self._loop.time()
            late = max(0.0, self.latency_seconds + random.uniform(-1, 1) * self.jitter_seconds)
            busy = len(chunk) / self.bytes_per_second if self.bytes_per_second else 0.0
            due = max(due, now + late) + busy
            await waiting.put((due, chunk))
            if not chunk:
                return

    async def _give(self, waiting: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        while True:
            due, chunk = await waiting.get()
            if (seconds := due - self._loop.time()) > 0:
                await asyncio.sleep(seconds)
            await self._open.wait()
            if not chunk:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()


@contextlib.asynccontextmanager
async def _both() -> AsyncIterator[asyncio.TaskGroup]:
    """Both tasks until they end; the error of the first that fails."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _break(end: asyncio.StreamWriter) -> None:
    """Close with RST, unless it closes already."""
    made = end.get_extra_info("socket")
    if made is not None and not end.is_closing():
        with contextlib.suppress(OSError):
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        end.transport.abort()

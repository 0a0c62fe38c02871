"""A proxy between a client and a server that does one thing wrong, whatever else passes byte for byte."""

import asyncio
import contextlib
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace

Fields = list[tuple[str, str]]
ID = "x-streaming-session-id"
STREAM = "text/event-stream"
IDLE_SECONDS = 3.0
"""A shorter stand-in for the usual timeouts, below the 15 s of the server's pings."""


@dataclass(kw_only=True)
class Head:
    """A request or response line with its headers."""

    line: str
    fields: Fields

    @property
    def is_stream(self) -> bool:
        return self.value("content-type").startswith(STREAM)

    @property
    def is_preflight(self) -> bool:
        return self.line.startswith("OPTIONS ")

    def value(self, name: str) -> str:
        return next((value for given, value in self.fields if given.lower() == name), "")

    def drop(self, *prefixes: str) -> None:
        self.fields = [(name, value) for name, value in self.fields if not name.lower().startswith(prefixes)]

    def replace(self, name: str, value: str) -> None:
        self.fields = [(given, value if given.lower() == name else old) for given, old in self.fields]

    def wire(self) -> bytes:
        return "\r\n".join([self.line, *(f"{name}: {value}" for name, value in self.fields), "", ""]).encode("latin-1")


@dataclass(kw_only=True)
class Wrong:
    """What a proxy does wrong. `request` and `response` change heads in place."""

    request: Callable[[Head], None] = lambda _head: None
    response: Callable[[Head, Head], None] = lambda _asked, _head: None
    gzips: bool = False
    holds: bool = False
    caches: bool = False
    is_old: bool = False
    idle_seconds: float | None = None
    kept: dict[str, tuple[Head, bytes]] = field(default_factory=dict)


class BadProxy:
    """Proxies on free loopback ports, on an event loop in a thread of its own."""

    def __init__(self, upstream: str) -> None:
        """`upstream` is the URL of the server."""
        self._host, _, port = upstream.removeprefix("http://").partition(":")
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self, wrong: Wrong) -> str:
        """A proxy that does this wrong; its URL."""
        server = asyncio.run_coroutine_threadsafe(self._open(wrong), self._loop).result(5)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Stop listening and cut what is open."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _open(self, wrong: Wrong) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._serve(wrong, reader, writer)
            except (OSError, asyncio.IncompleteReadError):  # a TimeoutError among them: the silence was too long
                pass
            finally:
                self._tasks.discard(task)
                await _end(writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        return server

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, wrong: Wrong, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of one connection."""
        asked = await _head(reader)
        body = await reader.readexactly(int(asked.value("content-length") or 0))
        key = asked.line
        if wrong.caches and key in wrong.kept:
            head, kept = wrong.kept[key]
            writer.write(head.wire() + kept)
            await writer.drain()
            return
        wrong.request(asked)
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        try:
            up_writer.write(asked.wire() + body)
            await up_writer.drain()
            await self._answer(wrong, asked, up_reader, writer)
        finally:
            await _end(up_writer)

    async def _answer(
        self, wrong: Wrong, asked: Head, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await _head(upstream)
        pieces = _pieces(replace(head), upstream, wrong.idle_seconds)
        wrong.response(asked, head)
        packer = None
        if wrong.gzips and head.is_stream and "gzip" in asked.value("accept-encoding"):
            head.fields.append(("content-encoding", "gzip"))
            packer = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
        if wrong.is_old:
            head.line = head.line.replace("HTTP/1.1", "HTTP/1.0")
            head.drop("transfer-encoding", "connection")
        framed = _chunk if head.value("transfer-encoding") == "chunked" else bytes
        body = b""
        held = [head.wire()]
        async for piece in pieces:
            held.append(framed(piece if packer is None else packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)))
            body += held[-1]
            if not (wrong.holds and head.is_stream):
                writer.writelines(held)
                held = []
                await writer.drain()
        rest = framed(packer.flush()) if packer else b""
        end = rest + (b"0\r\n\r\n" if framed is _chunk else b"")
        writer.writelines([*held, end])
        await writer.drain()
        if wrong.caches and asked.line.startswith("GET "):
            wrong.kept[asked.line] = (head, body + end)


@contextlib.contextmanager
def bad_proxies(upstream: str) -> Iterator[BadProxy]:
    """Proxies in front of a server."""
    proxies = BadProxy(upstream)
    try:
        yield proxies
    finally:
        proxies.close()


async def _head(reader: asyncio.StreamReader) -> Head:
    text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *fields = text.rstrip("\r\n").split("\r\n")
    pairs = [tuple(each.split(": ", 1)) if ": " in each else (each.rstrip(":"), "") for each in fields]
    return Head(line=line, fields=[(pair[0], pair[1]) for pair in pairs])


async def _pieces(head: Head, reader: asyncio.StreamReader, idle_seconds: float | None) -> AsyncIterator[bytes]:
    """The body of a message as it comes. Raises TimeoutError after a silence that is too long."""
    if head.value("transfer-encoding") == "chunked":
        while size := int(await asyncio.wait_for(reader.readuntil(b"\r\n"), idle_seconds), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    elif length := int(head.value("content-length") or 0):
        yield await reader.readexactly(length)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


async def _end(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(Exception):
        await writer.wait_closed()

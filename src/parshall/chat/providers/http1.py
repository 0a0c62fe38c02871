"""Requests to one server over HTTP/1.1 (RFC 9112) whose answers are given away as they arrive.

aiohttp, which everything else here uses, queues what was read, wakes a task and lets that fetch it. For every event of
a stream that costs more than all that is then done with it.
"""

import asyncio
import socket
import ssl
from collections.abc import Sequence

import aiohappyeyeballs
import httptools
import yarl

from parshall.chat.providers.reply import Lost, Malformed, Reply

HEAD_BYTES_MAX = 65_536
ADDRESSES_SECONDS = 10.0
"""How long the addresses of a name are remembered."""
NEXT_ADDRESS_SECONDS = 0.25
"""How long one of them is tried alone (RFC 8305)."""

Fields = Sequence[tuple[bytes, bytes]]


class _Connection(asyncio.Protocol):
    """One connection: a request and its answer after the other."""

    transport: asyncio.Transport

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._reply: Reply | None = None
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._reading = True
        self._usable = True
        self._timer: asyncio.TimerHandle | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the connection is closed."""

    # ── What the client asks ────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_open(self) -> bool:
        """Whether another request can go out."""
        return self._usable and not self.transport.is_closing()

    def ask(self, request: bytes) -> Reply:
        """Send a request; the last answer was whole."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._head_bytes = 0
        self._reply = reply = Reply(self)
        self.transport.write(request)
        return reply

    def end(self, *, whole: bool) -> None:
        """The answer is over; use the connection again, or cut it."""
        self._reply = None
        if not (whole and self._usable and self._client.keep(self)):
            self.transport.abort()
            return
        self.go_on()
        self._timer = asyncio.get_running_loop().call_later(self._client.keepalive_seconds, self.transport.abort)

    def hold(self) -> None:
        """Read no more for now."""
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def go_on(self) -> None:
        """Read again."""
        if not self._reading and not self.transport.is_closing():
            self._reading = True
            self.transport.resume_reading()

    # ── What the transport tells ────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # no other kind comes
        """It is there."""
        self.transport = transport
        self._client.connections.add(self)

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        reply = self._reply
        if reply is None:  # nothing was asked
            self._usable = False
            self.transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(reply, Malformed())
            return
        if not reply.status:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._fail(reply, Malformed())
            return
        reply.give()

    def eof_received(self) -> bool:
        """The server says no more; close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone. Where nothing else tells the length of a body, that is its end (RFC 9112 §6.3)."""
        self._usable = False
        self._client.forget(self)
        self.gone.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if (reply := self._reply) is None:
            return
        if exc is None and reply.status and _ends_with_connection(reply):
            reply.end()
            reply.give()
        else:
            reply.lose(Lost())

    def _fail(self, reply: Reply, lost: Lost) -> None:
        self._usable = False
        reply.give()  # what is right of it
        reply.lose(lost)
        self.transport.abort()

    # ── What the parser tells ───────────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """A head begins; a second one is of an answer to nothing."""
        self._headers = []
        if self._reply is None or self._reply.status:
            self._usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; of a trailer none is wanted."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole; of an interim answer (1xx) nothing is wanted."""
        status, reply = self._parser.get_status_code(), self._reply
        if status >= 200 and reply is not None and not reply.status:
            reply.headers = self._headers
            reply.has_begun(status, self._parser.get_http_version())

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self._usable and self._reply is not None:
            self._reply.pieces.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole, unless it was an interim one."""
        reply = self._reply
        if self._usable and reply is not None and reply.status:
            reply.end()
            self._usable = self._parser.should_keep_alive()


class Client:
    """Requests to one server. Connections whose answers were whole are used again."""

    def __init__(self, server: yarl.URL, *, connect_seconds: float, keepalive_seconds: float) -> None:
        """`server` is an http or https URL, of which scheme, host and port count. A connection that is not used again
        within `keepalive_seconds` is closed.
        """
        assert server.host is not None
        self.keepalive_seconds = keepalive_seconds
        self.connections: set[_Connection] = set()
        """All that are open."""
        self._host = server.host
        self._port = server.port or 0
        self._named = server.host_port_subcomponent or ""
        self._connect_seconds = connect_seconds
        self._idle: dict[_Connection, None] = {}
        self._closed = False
        self._addresses: list[aiohappyeyeballs.AddrInfoType] = []
        self._addresses_until = 0.0
        self._tls: ssl.SSLContext | None = None
        if server.scheme == "https":
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])

    async def ask(self, method: str, target: str, fields: Fields, body: bytes | None = None) -> Reply:
        """Send a request and wait for the head of its answer. Raises Lost, and OSError where none can be sent.

        Nothing is sent twice. `fields` go behind Host.
        """
        connection = self._usable() or await self._connect()
        lines = [f"{method} {target} HTTP/1.1".encode("ascii"), b"Host: " + self._named.encode("ascii")]
        lines += [b"%b: %b" % field for field in fields]
        if body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        reply = connection.ask(b"\r\n".join(lines) + b"\r\n\r\n" + (body or b""))
        try:
            await reply.begun
        except BaseException:
            reply.close()
            raise
        return reply

    async def close(self) -> None:
        """Cut every connection; answers that are not whole are lost."""
        self._closed = True
        for connection in tuple(self.connections):
            connection.transport.abort()
        await asyncio.gather(*(connection.gone for connection in self.connections))

    def keep(self, connection: _Connection) -> bool:
        """Whether a connection may wait for the next request."""
        if self._closed or not connection.is_open:
            return False
        self._idle[connection] = None
        return True

    def forget(self, connection: _Connection) -> None:
        """It is closed."""
        self.connections.discard(connection)
        self._idle.pop(connection, None)

    def _usable(self) -> _Connection | None:
        """The connection that was used last: the others may grow old."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_seconds):
                addresses = await self._resolved()
                line = await aiohappyeyeballs.start_connection(
                    addresses, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS, interleave=1
                )
                try:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self),
                        sock=line,
                        ssl=self._tls,
                        server_hostname=self._host if self._tls else None,
                    )
                except BaseException:
                    line.close()
                    raise
        except TimeoutError as error:
            raise ConnectionError("it took too long to connect") from error
        if self._closed:
            connection.transport.abort()
            raise Lost
        return connection

    async def _resolved(self) -> Sequence[aiohappyeyeballs.AddrInfoType]:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._addresses_until:
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = list(found)
            self._addresses_until = loop.time() + ADDRESSES_SECONDS
        return self._addresses


def _ends_with_connection(reply: Reply) -> bool:
    return reply.header("content-length") is None and reply.header("transfer-encoding") is None

"""The client of a provider over HTTP/1.1: what a server may send, in whatever pieces, and what it may not."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path

import pytest
import pytest_asyncio
import yarl
from tests.nginx import certificate

from parshall.chat.providers.http1 import HEAD_BYTES_MAX, Client
from parshall.chat.providers.reply import WAITING_BYTES_MAX, Lost, Malformed, Reply, Silent

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]
FIELDS = [(b"Accept", b"text/event-stream")]
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
WHOLE = OK + b"Content-Length: 5\r\n\r\nhello"


class Server:
    """Hands every connection to the test."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[Line] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []

    @property
    def connections(self) -> int:
        return len(self.writers)

    def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.lines.put_nowait((reader, writer))

    async def asked(self, line: Line | None = None) -> tuple[bytes, Line]:
        """The head of the next request, on that connection or a new one."""
        line = line or await self.lines.get()
        return await line[0].readuntil(b"\r\n\r\n"), line


@pytest.fixture
def server() -> Server:
    return Server()


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with asyncio.timeout(20), await asyncio.start_server(server, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        made = Client(yarl.URL(f"http://127.0.0.1:{port}/v1"), connect_seconds=2, keepalive_seconds=5)
        yield made
        await made.close()
        for writer in server.writers:
            writer.close()


async def ask(client: Client, server: Server, answer: bytes, *, line: Line | None = None) -> tuple[Reply, Line]:
    """Ask, and have the server answer with these bytes."""
    asking = asyncio.create_task(client.ask("POST", "/v1/x", FIELDS, b"{}"))
    _, line = await server.asked(line)
    await line[0].readexactly(2)
    line[1].write(answer)
    return await asking, line


async def body_of(reply: Reply) -> bytes:
    pieces: list[bytes] = []
    await reply.each(pieces.append)
    return b"".join(pieces)


async def test_a_request_is_what_rfc_9112_says(client: Client, server: Server) -> None:
    asking = asyncio.create_task(client.ask("POST", "/v1/x", FIELDS, b"{}"))
    head, line = await server.asked()
    assert head.split(b"\r\n")[0] == b"POST /v1/x HTTP/1.1"
    fields = dict(field.split(b": ", 1) for field in head.split(b"\r\n")[1:-2])
    assert fields.pop(b"Host").startswith(b"127.0.0.1:")
    assert fields == {b"Content-Length": b"2", b"Accept": b"text/event-stream"}
    assert await line[0].readexactly(2) == b"{}"
    line[1].write(WHOLE)
    reply = await asking
    assert (reply.status, reply.version, await body_of(reply)) == (200, "1.1", b"hello")
    reply.close()
    asking = asyncio.create_task(client.ask("GET", "/v1/y", ()))
    head, _ = await server.asked(line)
    assert b"content-length" not in head.lower()
    line[1].write(WHOLE)
    (await asking).close()


@pytest.mark.parametrize(
    ("answer", "body", "ends_with_connection"),
    [
        (WHOLE, b"hello", False),
        (CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nTrailer: t\r\n\r\n", b"hello", False),
        (OK + b"\r\nhello", b"hello", True),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + WHOLE, b"hello", False),
        (OK + b"Content-Length: 0\r\n\r\n", b"", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", False),
    ],
    ids=["length", "chunked", "end of connection", "HTTP/1.0", "interim answers", "empty", "no content"],
)
@pytest.mark.parametrize("cut", [1, 7, 10_000])
async def test_an_answer_is_the_same_however_it_is_cut(
    client: Client, server: Server, answer: bytes, body: bytes, ends_with_connection: bool, cut: int
) -> None:
    asking = asyncio.create_task(client.ask("POST", "/v1/x", FIELDS, b"{}"))
    _, (_, writer) = await server.asked()

    async def say() -> None:
        for at in range(0, len(answer), cut):
            writer.write(answer[at : at + cut])
            await writer.drain()
            await asyncio.sleep(0)
        if ends_with_connection:
            writer.close()

    saying = asyncio.create_task(say())
    reply = await asking
    assert reply.status in (200, 204)
    assert reply.header("link") is None, "of interim answers nothing is left"
    assert await body_of(reply) == body
    await saying
    reply.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 2OO OK\r\n\r\n",
        OK + b"Content-Length: five\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"X: " + b"y" * (HEAD_BYTES_MAX + 1),
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    ],
    ids=["another protocol", "status", "length", "two lengths", "a long head", "an upgrade"],
)
async def test_what_is_not_http_is_refused_and_its_connection_cut(
    client: Client, server: Server, answer: bytes
) -> None:
    asking = asyncio.create_task(client.ask("POST", "/v1/x", FIELDS, b"{}"))
    _, line = await server.asked()
    line[1].write(answer)
    with pytest.raises(Malformed):
        await asking
    with contextlib.suppress(ConnectionError):
        await line[0].read()
    assert not client.connections


@pytest.mark.parametrize(
    ("rest", "body"),
    [(b"zz\r\n", b"hel"), (b"", b"hel"), (b"5\r\nlo", b"hello")],
    ids=["a wrong chunk", "nothing", "half a chunk"],
)
async def test_what_came_before_an_answer_breaks_is_given_away(
    client: Client, server: Server, rest: bytes, body: bytes
) -> None:
    reply, (_, writer) = await ask(client, server, CHUNKED + b"3\r\nhel\r\n" + rest)
    pieces: list[bytes] = []
    reading = asyncio.create_task(reply.each(pieces.append))
    await asyncio.sleep(0.02)
    writer.close()
    with pytest.raises(Lost):
        await reading
    assert b"".join(pieces) == body
    reply.close()


async def test_a_connection_serves_again_once_its_answer_was_whole_and_only_then(
    client: Client, server: Server
) -> None:
    reply, line = await ask(client, server, WHOLE)
    assert await body_of(reply) == b"hello"
    reply.close()
    again, _ = await ask(client, server, CHUNKED + b"3\r\nhel\r\n", line=line)
    assert server.connections == 1
    again.close()  # in the middle
    assert not await line[0].read()
    await ask(client, server, WHOLE)
    assert server.connections == 2


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n", WHOLE])
async def test_a_connection_that_the_server_ends_or_speaks_on_unasked_serves_no_more(
    client: Client, server: Server, said: bytes
) -> None:
    reply, line = await ask(client, server, WHOLE)
    await body_of(reply)
    reply.close()
    line[1].write(said)
    if not said:
        line[1].close()
    while client.connections:
        await asyncio.sleep(0.005)
    reply, _ = await ask(client, server, WHOLE)
    assert (await body_of(reply), server.connections) == (b"hello", 2)


@pytest.mark.parametrize("answer", [OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", WHOLE + WHOLE])
async def test_a_connection_whose_server_says_so_or_says_too_much_serves_no_more(
    client: Client, server: Server, answer: bytes
) -> None:
    reply, _ = await ask(client, server, answer)
    assert await body_of(reply) == b"hello", "of a second answer nothing is taken"
    reply.close()
    await ask(client, server, WHOLE)
    assert server.connections == 2


async def test_a_connection_that_nobody_uses_is_closed(server: Server) -> None:
    async with asyncio.timeout(10), await asyncio.start_server(server, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = Client(yarl.URL(f"http://127.0.0.1:{port}"), connect_seconds=2, keepalive_seconds=0.05)
        reply, line = await ask(client, server, WHOLE)
        await body_of(reply)
        reply.close()
        with contextlib.suppress(ConnectionError):
            assert await line[0].read() == b""
        line[1].close()
        await client.close()


async def test_pieces_are_given_one_after_the_other_and_the_server_waits(client: Client, server: Server) -> None:
    reply, (_, writer) = await ask(client, server, OK + b"\r\n")
    taken: list[bytes] = []
    gates: list[asyncio.Future[None]] = []

    def take(piece: bytes) -> Awaitable[None]:
        assert all(gate.done() for gate in gates), "the piece before is still being taken"
        taken.append(piece)
        gates.append(asyncio.get_running_loop().create_future())
        return gates[-1]

    reading = asyncio.create_task(reply.each(take))
    sent = b"x" * 1_000
    writer.write(sent)
    while not taken:
        await asyncio.sleep(0.005)
    total = 64 * WAITING_BYTES_MAX
    writer.write(b"y" * total)
    flowing = asyncio.create_task(writer.drain())
    await asyncio.sleep(0.2)
    assert sum(map(len, reply.pieces)) < 8 * WAITING_BYTES_MAX, "what is not taken is not read without end"
    assert len(taken) == 1
    writer.close()
    while not reading.done():
        if not gates[-1].done():
            gates[-1].set_result(None)
        await asyncio.sleep(0)
    await reading
    await flowing
    assert b"".join(taken) == sent + b"y" * total
    reply.close()


async def test_what_who_takes_raises_is_raised_and_only_once(client: Client, server: Server) -> None:
    reply, (_, writer) = await ask(client, server, OK + b"\r\n")

    def refuse(_piece: bytes) -> None:
        raise KeyError("no more")

    reading = asyncio.create_task(reply.each(refuse))
    await asyncio.sleep(0)
    writer.write(b"one")
    with pytest.raises(KeyError):
        await reading
    writer.write(b"two")
    writer.close()
    assert await body_of(reply) == b"two"
    reply.close()


async def test_pieces_are_taken_in_the_context_of_who_reads(client: Client, server: Server) -> None:
    """A connection belongs to no request: its first one must not be named in the logs of all that follow."""
    whose: ContextVar[str] = ContextVar("whose", default="nobody")
    seen: list[str] = []
    line: Line | None = None
    for name in ("first", "second"):
        whose.set(name)
        reply, line = await ask(client, server, CHUNKED, line=line)
        reading = asyncio.create_task(reply.each(lambda _piece: seen.append(whose.get())))
        await asyncio.sleep(0.01)
        line[1].write(b"1\r\nx\r\n0\r\n\r\n")
        await reading
        reply.close()
    assert (seen, server.connections) == (["first", "second"], 1)


@pytest.mark.parametrize("end", [lambda reply: reply.lose(Silent()), None], ids=["no longer waited for", "cancelled"])
async def test_an_answer_that_is_given_up_ends_its_connection(
    client: Client, server: Server, end: Callable[[Reply], None] | None
) -> None:
    reply, (reader, _) = await ask(client, server, CHUNKED)
    reading = asyncio.create_task(body_of(reply))
    await asyncio.sleep(0.01)
    if end is None:
        reading.cancel()
    else:
        end(reply)
    with pytest.raises(asyncio.CancelledError if end is None else Silent):
        await reading
    reply.close()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    assert not client.connections


async def test_a_caller_that_gives_up_before_the_head_leaves_no_connection(client: Client, server: Server) -> None:
    asking = asyncio.create_task(client.ask("POST", "/v1/x", FIELDS, b"{}"))
    _, (reader, _) = await server.asked()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    with contextlib.suppress(ConnectionError):
        await reader.read()
    assert not client.connections


async def test_a_body_is_read_up_to_a_limit(client: Client, server: Server) -> None:
    reply, _ = await ask(client, server, OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 600)
    assert await reply.read(500) == b"x" * 500
    reply.close()
    reply, _ = await ask(client, server, WHOLE)
    assert await reply.read(500) == b"hello"


async def test_the_end_of_a_body_is_waited_for_only_so_long(client: Client, server: Server) -> None:
    reply, line = await ask(client, server, CHUNKED + b"1\r\nx\r\n")
    await reply.finish(0.02)
    line[1].write(b"0\r\n\r\n")
    await reply.finish(5)
    reply.close()
    await ask(client, server, WHOLE, line=line)
    assert server.connections == 1


async def test_closing_the_client_loses_what_is_not_whole_and_lets_nobody_begin(server: Server, client: Client) -> None:
    reply, _ = await ask(client, server, CHUNKED)
    reading = asyncio.create_task(body_of(reply))
    await asyncio.sleep(0.01)
    await client.close()
    with pytest.raises(Lost):
        await reading
    reply.close()
    with pytest.raises(Lost):
        await client.ask("POST", "/v1/x", FIELDS, b"{}")


async def test_a_server_that_is_not_there_is_an_error_of_the_connection() -> None:
    client = Client(yarl.URL("http://127.0.0.1:9"), connect_seconds=2, keepalive_seconds=1)
    with pytest.raises(OSError):
        await client.ask("POST", "/", FIELDS, b"")
    await client.close()


@pytest.mark.parametrize("trusted", [True, False])
async def test_over_tls_only_a_server_that_is_vouched_for_is_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    certificate(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "fullchain.pem"))
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(tmp_path / "fullchain.pem", tmp_path / "privkey.pem")
    async with asyncio.timeout(10), await asyncio.start_server(server, "127.0.0.1", 0, ssl=own) as listening:
        port = listening.sockets[0].getsockname()[1]
        client = Client(yarl.URL(f"https://127.0.0.1:{port}"), connect_seconds=5, keepalive_seconds=5)
        if trusted:
            reply, (_, writer) = await ask(client, server, CHUNKED + b"5\r\nhello\r\n0\r\n\r\n")
            assert await body_of(reply) == b"hello"
            reply.close()
            await client.close()
            writer.close()
        else:
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.ask("POST", "/", FIELDS, b"secret")
            await client.close()
            assert server.connections == 0

"""The laws of a connection: who takes what waits is left alone, who does not is cut, and nobody else."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from parshall.app.connection import Connection, connections
from parshall.kernel.pushing import push_of

SECONDS = 0.15
BYTES = 1000


class Line(asyncio.Transport):
    """A transport whose unsent bytes the test sets."""

    def __init__(self, own: socket.socket) -> None:
        super().__init__({"socket": own})
        self.unsent = 0
        self.aborted = False
        self.high: int | None = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        self.unsent += len(data)

    def is_closing(self) -> bool:
        return self.aborted

    def close(self) -> None:
        self.aborted = True

    def abort(self) -> None:
        self.aborted = True


async def answer(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 100, "more_body": False})


@pytest.fixture
async def made() -> Any:
    config = uvicorn.Config(answer, http=connections(stall_seconds=SECONDS, buffer_bytes=BYTES), lifespan="off")
    config.load()
    protocol: Any = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
    with socket.socket() as own:
        line = Line(own)
        protocol.connection_made(line)
        await request(protocol)
        yield protocol, line


async def request(protocol: Connection) -> None:
    protocol.data_received(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0.01)


async def test_a_client_that_takes_nothing_is_cut(made: tuple[Connection, Line]) -> None:
    protocol, line = made
    assert line.high == BYTES
    line.unsent = 5 * BYTES
    protocol.pause_writing()
    await asyncio.sleep(SECONDS / 2)
    assert not line.aborted
    await asyncio.sleep(SECONDS)
    assert line.aborted


async def test_a_client_that_takes_too_little_is_cut(made: tuple[Connection, Line]) -> None:
    protocol, line = made
    line.unsent = 5 * BYTES
    protocol.pause_writing()
    for _ in range(4):
        line.unsent -= BYTES // 10
        await asyncio.sleep(SECONDS / 2)
    assert line.aborted


async def test_a_client_that_takes_enough_of_a_long_answer_is_left_alone(made: tuple[Connection, Line]) -> None:
    protocol, line = made
    line.unsent = 50 * BYTES
    protocol.pause_writing()
    for _ in range(12):
        line.unsent -= BYTES
        await asyncio.sleep(SECONDS / 2)
    assert not line.aborted


async def test_a_client_that_has_caught_up_is_left_alone(made: tuple[Connection, Line]) -> None:
    protocol, line = made
    line.unsent = 2 * BYTES
    protocol.pause_writing()
    protocol.resume_writing()
    await asyncio.sleep(2 * SECONDS)
    assert not line.aborted


async def test_the_rest_of_an_answer_has_to_be_taken_though_nothing_was_ever_blocked(
    made: tuple[Connection, Line],
) -> None:
    _, line = made
    assert 0 < line.unsent < BYTES
    await asyncio.sleep(2 * SECONDS)
    assert line.aborted


async def test_a_rest_that_was_taken_cuts_nobody(made: tuple[Connection, Line]) -> None:
    _, line = made
    line.unsent = 0
    await asyncio.sleep(2 * SECONDS)
    assert not line.aborted


async def test_another_request_is_given_its_own_time(made: tuple[Connection, Line]) -> None:
    protocol, line = made
    await asyncio.sleep(SECONDS * 0.7)
    line.unsent = 0
    await request(protocol)
    await asyncio.sleep(SECONDS * 0.5)
    assert not line.aborted


async def test_a_connection_that_is_gone_is_not_cut(made: tuple[Connection, Line]) -> None:
    protocol, line = made
    protocol.connection_lost(ConnectionResetError())
    await asyncio.sleep(2 * SECONDS)
    assert not line.aborted


# ── Pieces of a body besides `send` ─────────────────────────────────────────────────────────────────────────────────


class Held(Line):
    """A transport that keeps what is written to it."""

    def __init__(self, own: socket.socket) -> None:
        super().__init__(own)
        self.written = b""
        self.fault: Exception | None = None

    def write(self, data: Any) -> None:
        if self.fault is not None:
            raise self.fault
        self.written += data

    def pause_reading(self) -> None:
        """The next request waits for its turn."""

    def resume_reading(self) -> None:
        """Its turn has come."""


class Streaming:
    """An application whose answers wait for the test: `steps` are the messages that it sends one after the other."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.steps: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        while (message := await self.steps.get()) is not None:
            await send(message)

    async def step(self, *messages: Any) -> None:
        for message in messages:
            self.steps.put_nowait(message)
        await asyncio.sleep(0.01)


START = {"type": "http.response.start", "status": 200, "headers": []}
END = {"type": "http.response.body", "body": b"", "more_body": False}


@pytest.fixture
async def streaming() -> Any:
    app = Streaming()
    config = uvicorn.Config(app, http=connections(stall_seconds=SECONDS, buffer_bytes=BYTES), lifespan="off")
    config.load()
    protocol: Any = config.http_protocol_class(config=config, server_state=ServerState(), app_state={})
    with socket.socket() as own:
        line = Held(own)
        protocol.connection_made(line)
        yield protocol, line, app


async def test_a_piece_is_pushed_into_a_body_that_has_begun_and_is_not_over(
    streaming: tuple[Connection, Held, Streaming],
) -> None:
    protocol, line, app = streaming
    await request(protocol)
    push = push_of(app.scopes[0])
    assert push is not None and not push(b"early")
    await app.step(START)
    line.written = b""
    assert push(b"one") and push(b"x" * 17)
    await app.step({"type": "http.response.body", "body": b"two", "more_body": True})
    assert line.written == b"3\r\none\r\n11\r\n" + b"x" * 17 + b"\r\n3\r\ntwo\r\n"
    protocol.pause_writing()
    assert not push(b"while the client is behind")
    protocol.resume_writing()
    line.fault = RuntimeError("the handler is closed")
    assert not push(b"into a connection that is just closing")
    line.fault = None
    await app.step(END, None)
    assert line.written.endswith(b"two\r\n0\r\n\r\n") and not push(b"late")


async def test_nothing_is_pushed_into_the_answer_to_the_next_request_nor_to_who_has_gone(
    streaming: tuple[Connection, Held, Streaming],
) -> None:
    protocol, line, app = streaming
    await request(protocol)
    await app.step(START)
    await request(protocol)  # it waits for its turn
    first = push_of(app.scopes[0])
    assert first is not None and not first(b"one")
    await app.step(END, None, START)
    line.written = b""
    second = push_of(app.scopes[1])
    assert second is not None and not first(b"one") and second(b"two")
    assert line.written == b"3\r\ntwo\r\n"
    protocol.connection_lost(None)
    assert not second(b"three") and line.written == b"3\r\ntwo\r\n"
    await app.step(None)


@pytest.mark.parametrize("head", ["HTTP/1.0", "a length"])
async def test_a_body_whose_length_is_told_otherwise_is_not_pushed_into(
    streaming: tuple[Connection, Held, Streaming], head: str
) -> None:
    protocol, line, app = streaming
    old = head == "HTTP/1.0"
    protocol.data_received(b"GET /x HTTP/1.%d\r\nHost: x\r\n\r\n" % (not old))
    await asyncio.sleep(0.01)
    await app.step(START | {"headers": [] if old else [(b"content-length", b"3")]})
    line.written = b""
    push = push_of(app.scopes[0])
    pushed = push is not None and push(b"one")
    assert pushed == (b"one" in line.written) and not (pushed and not old)
    await app.step({"type": "http.response.body", "body": b"" if pushed else b"one", "more_body": False}, None)

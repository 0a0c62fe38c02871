"""The laws of a connection: who takes what waits is left alone, who does not is cut, and nobody else."""

import asyncio
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from parshall.app.connection import Connection, connections

SECONDS = 0.05
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

"""Events that go to a reader at once, and those that have to take the other way: each exactly once, in order."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.contracts.streamlogs import STREAM

from parshall.chat.reader import PUSHED_MAX, Reader
from parshall.chat.streams.tail import Feed, FeedTail
from parshall.kernel.pushing import TAKES, Push, push_of


class Connection:
    """A server's `send`, and whether it would go through; `fault` is raised by the next one."""

    def __init__(self) -> None:
        self.free = True
        self.waits = False
        self.fault: Exception | None = None
        self.sent: list[bytes] = []

    async def send(self, message: Any) -> None:
        if self.fault is not None:
            raise self.fault
        if self.waits:
            await asyncio.sleep(3600)
        self.sent.append(message["body"])


def test_a_piece_is_sent_at_once_or_not_at_all() -> None:
    connection = Connection()
    push = Push(connection.send, lambda: connection.free)
    assert push(b"one")
    connection.free = False
    assert not push(b"two")
    connection.free, connection.waits = True, True
    assert not push(b"three")
    connection.waits, connection.fault = False, RuntimeError("the connection is closing")
    assert not push(b"four")
    assert connection.sent == [b"one"]


def test_only_a_server_that_tells_is_pushed_to() -> None:
    connection = Connection()
    assert push_of({"type": "http"}, connection.send) is None
    found = push_of({"type": "http", "extensions": {TAKES: {"now": lambda: True}}}, connection.send)
    assert found is not None and found(b"one") and connection.sent == [b"one"]


async def nothing(*_: Any, **__: Any) -> tuple[list[bytes], bool]:
    return [], False


async def test_whatever_is_pushed_or_fetched_a_reader_gets_every_event_once_and_in_order() -> None:
    feed, connection = Feed(last=0), Connection()
    tail = FeedTail(nothing, STREAM, feed=feed, after=0, silence_seconds=60)
    reader = Reader(tail, None, after=0)
    reader.push_to(Push(connection.send, lambda: connection.free))

    async def read() -> None:
        async for piece in reader:
            connection.sent.append(piece)

    reading, said, pushed = asyncio.create_task(read()), [], 0
    for number in range(200):
        frames: Sequence[bytes] = [b"%d " % (10 * number + index) for index in range(1 + number % (PUSHED_MAX + 2))]
        connection.free, connection.fault = number % 3 != 0, RuntimeError() if number % 7 == 0 else None
        said += frames
        before = len(connection.sent)
        feed.publish(frames)
        pushed += len(connection.sent) - before
        if number % 5:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert b"".join(connection.sent) == b"".join(said)
    assert 20 < pushed < 150, "both ways were taken"
    reader.leave()
    await reading

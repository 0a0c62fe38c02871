"""Events that go to a reader at once, and those that have to take the other way: each exactly once, in order."""

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.contracts.streamlogs import STREAM

from parshall.chat.reader import PUSHED_MAX, Reader
from parshall.chat.streams.tail import Feed, FeedTail
from parshall.kernel.pushing import push_of, pushing


class Connection:
    """A server that takes pieces besides `send` while it is free."""

    def __init__(self) -> None:
        self.free = True
        self.sent: list[bytes] = []

    def push(self, piece: bytes) -> bool:
        if self.free:
            self.sent.append(piece)
        return self.free


def test_only_a_server_that_offers_it_is_pushed_to() -> None:
    connection = Connection()
    assert push_of({"type": "http"}) is None
    scope = {"type": "http", "extensions": {"other": {}}}
    found = push_of(pushing(scope, connection.push))
    assert found is not None and found(b"one") and connection.sent == [b"one"]
    assert scope["extensions"] == {"other": {}}, "whoever has the scope keeps what it had"


async def nothing(*_: Any, **__: Any) -> tuple[list[bytes], bool]:
    return [], False


async def test_whatever_is_pushed_or_fetched_a_reader_gets_every_event_once_and_in_order() -> None:
    feed, connection = Feed(last=0), Connection()
    tail = FeedTail(nothing, STREAM, feed=feed, after=0, silence_seconds=60)
    reader = Reader(tail, None, after=0)
    reader.push_to(connection.push)

    async def read() -> None:
        async for piece in reader:
            connection.sent.append(piece)

    reading, said, pushed = asyncio.create_task(read()), [], 0
    for number in range(200):
        frames: Sequence[bytes] = [b"%d " % (10 * number + index) for index in range(1 + number % (PUSHED_MAX + 2))]
        connection.free = number % 3 != 0 and number % 7 != 0
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

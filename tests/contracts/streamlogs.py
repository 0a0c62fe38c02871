"""What the suites of the port StreamLog share."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from parshall.chat.ports import Lease, StreamLog, Tail
from parshall.chat.streams.address import Address
from parshall.chat.streams.engine import Engine
from parshall.chat.streams.shared import SharedStreamLog
from parshall.kernel.clock import SECOND
from parshall.kernel.ids import StreamId

STREAM = StreamId("stream-1620847252-a1b2c3d4")
OTHER = StreamId("stream-1620847252-ffffffff")
NEVER = 10**18


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now


MOMENT = 1.0
"""Within this many seconds a tail must have woken, on a busy machine."""


def frames(first: int, count: int) -> list[bytes]:
    return [b"id: %d\n\n" % offset for offset in range(first, first + count)]


async def take(log: StreamLog, stream: StreamId = STREAM, *, time: Time, until: int = NEVER) -> Lease:
    lease = await log.acquire(stream, owner="test", at=time(), until=until)
    assert lease is not None
    return lease


async def drain(tail: Tail) -> list[bytes]:
    return [frame async for batch in tail for frame in batch]


@asynccontextmanager
async def opened(url: str, time: Time) -> AsyncIterator[SharedStreamLog]:
    log = SharedStreamLog(await Engine.connect(Address.parse(url)), clock=time)
    try:
        yield log
    finally:
        await log.close()


async def next_of(tail: Tail) -> list[bytes]:
    return list(await asyncio.wait_for(anext(tail), MOMENT))

"""The transactions on a stream's record that its producer, or whoever adopts it, makes."""

from collections.abc import AsyncIterator, Sequence
from functools import partial

from sqlalchemy import Connection

from parshall.chat import backlog, store
from parshall.chat.model import Ending, Message, Stream
from parshall.chat.ports import LeaseLost
from parshall.kernel.clock import Clock
from parshall.kernel.database import Database
from parshall.kernel.ids import StreamId, new_id
from parshall.kernel.metering import Settlement

PAGE_STREAMS = 200


class Records:
    """What chat durably knows of its streams."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        """`database` is chat's own."""
        self._database = database
        self._clock = clock

    async def find(self, stream_id: StreamId) -> Stream | None:
        """The stream of that id."""
        return await self._database.read(lambda c: store.find_stream(c, stream_id), brief=True)

    async def answer(self, stream_id: StreamId) -> str:
        """The text that a stream has left in the history."""
        return await self._database.read(lambda c: store.answer_of(c, stream_id), brief=True)

    async def unfinished(self) -> AsyncIterator[Sequence[Stream]]:
        """Streams that still need something done, oldest first, a page at a time."""
        after = (0, "")
        while page := await self._database.read(partial(store.unfinished_streams, after=after, limit=PAGE_STREAMS)):
            yield page
            after = (page[-1].created_at, page[-1].id)

    async def unsettled(self) -> tuple[int, int | None]:
        """How many streams have ended and are not settled, and when the first of them ended (microseconds)."""
        return await self._database.read(backlog.unsettled)

    async def add(self, stream: Stream) -> None:
        """Keep a stream without a message. Raises IntegrityError where its id is known or its chat session has one."""
        await self._database.write(lambda c: store.add_stream(c, stream), brief=True)

    async def forget(self, stream_id: StreamId) -> None:
        """Undo a turn that never began."""
        await self._database.write(lambda c: store.forget_stream(c, stream_id), brief=True)

    async def claim(self, stream_id: StreamId, *, epoch: int) -> bool:
        """Fence earlier producers; False when it has already ended."""
        return await self._database.write(lambda c: store.claim_stream(c, stream_id, epoch=epoch), brief=True)

    async def move(self, stream: Stream, *, epoch: int) -> None:
        """Keep the model that answers from now on. Raises LeaseLost if another producer holds the stream."""
        if not await self._database.write(lambda c: store.move_stream(c, stream, epoch=epoch), brief=True):
            raise LeaseLost

    async def end(self, stream: Stream, ending: Ending, *, text: str, epoch: int) -> Stream:
        """Keep the answer and how it ended, in one transaction. Raises LeaseLost if another producer was faster."""

        def work(connection: Connection) -> None:
            if not store.end_stream(connection, stream.id, ending, epoch=epoch):
                raise LeaseLost
            if text:
                store.add_message(connection, stream.session_id, _answer(stream, ending, text))
            store.change_session(connection, stream.session_id, updated_at=ending.ended_at)

        await self._database.write(work, brief=True)
        return stream.ended(ending)

    async def settle(self, stream_id: StreamId, settlement: Settlement) -> None:
        """Keep what accounting answered."""
        await self._database.write(lambda c: store.settle_stream(c, stream_id, settlement), brief=True)

    async def close(self, stream_id: StreamId) -> None:
        """Note that the log is closed."""
        await self._database.write(lambda c: store.close_stream(c, stream_id, at=self._clock()), brief=True)


def _answer(stream: Stream, ending: Ending, text: str) -> Message:
    return Message(
        id=new_id(),
        role="assistant",
        content=text,
        stream_id=stream.id,
        tokens=ending.usage.output_tokens,
        created_at=ending.ended_at,
    )

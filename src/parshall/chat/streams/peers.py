"""Peers over the engine of the shared log: a channel for each process, and a list of who reads for each stream."""

import asyncio
import contextlib

from parshall.chat.peers import Attendance, Elsewhere, OnStop
from parshall.chat.ports import LogAway
from parshall.chat.streams import scripts
from parshall.chat.streams.engine import REST_SECONDS, Engine, checked
from parshall.chat.streams.line import Line
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.ids import StreamId
from parshall.kernel.tasks import end
from parshall.kernel.telemetry import log

ATTEND_SECONDS = 1.0
"""How often a process says again what it reads."""
ABSENT_SECONDS = 5.0
"""A process that has not said so for this long reads no more."""

_logger = log("streams")


class SharedPeers:
    """The processes that use the same engine. It is not closed here."""

    shared = True

    def __init__(self, engine: Engine, *, owner: str, clock: Clock) -> None:
        """`owner` names this process in its leases."""
        self._engine = engine
        self._owner = owner
        self._clock = clock
        self._on_stop: OnStop = lambda _: None
        self._tasks: list[asyncio.Task[None]] = []
        self._readers: dict[StreamId, _Readers] = {}

    def listen(self, on_stop: OnStop) -> None:
        """Hear what others ask of this process, over every loss of the engine."""
        assert not self._tasks
        self._on_stop = on_stop
        self._tasks = [
            asyncio.create_task(self._listen(), name="peers-inbox"),
            asyncio.create_task(self._attend(), name="peers-attendance"),
        ]

    async def stop(self, stream_id: StreamId) -> bool:
        """Ask the holder of the stream's lease; whether there is one."""
        at = self._clock()
        holder = await self._engine.call(scripts.HOLDER, scripts.keys(stream_id), at, receive=checked)
        if not holder:
            return False
        await self._engine.run("SPUBLISH", scripts.inbox(holder[0].decode()), stream_id)
        return True

    def readers(self, stream_id: StreamId) -> Attendance:
        """One count for all readers here of that stream."""
        found = self._readers.get(stream_id)
        if found is None:
            found = self._readers[stream_id] = _Readers(self, stream_id)
        return found

    async def elsewhere(self, stream_id: StreamId) -> Elsewhere:
        """Who reads, of those who have said so lately."""
        answer = await self._engine.call(scripts.AUDIENCE, scripts.keys(stream_id), self._clock(), receive=checked)
        return Elsewhere(present=answer[0] > 0, left_at=int(answer[1]), offset=answer[2])

    async def close(self) -> None:
        """Take leave of every stream, and listen no longer."""
        for readers in tuple(self._readers.values()):
            self.tell(readers, reading=False)
        self._readers.clear()
        await end(*self._tasks)

    def tell(self, readers: "_Readers", *, reading: bool) -> None:
        """Say that readers are here, or no more. One that is lost is said again, or found out."""
        if not reading and self._readers.get(readers.stream_id) is readers:
            del self._readers[readers.stream_id]
        at = self._clock()
        till = at + int(ABSENT_SECONDS * SECOND) if reading else 0
        keep = int(ABSENT_SECONDS * 1000) * 2
        keys = scripts.keys(readers.stream_id)
        with contextlib.suppress(LogAway):
            self._engine.call(
                scripts.ATTEND, keys, *(self._owner, at, till, readers.offset, keep), receive=lambda _: None
            )

    async def _attend(self) -> None:
        while True:
            await asyncio.sleep(ATTEND_SECONDS)
            for readers in tuple(self._readers.values()):
                self.tell(readers, reading=True)

    async def _listen(self) -> None:
        channel = scripts.inbox(self._owner)
        while True:
            with contextlib.suppress(LogAway):
                line = Line(await self._engine.line(channel), self._heard, lambda *_: None)
                try:
                    await line.subscribe(channel)
                    await asyncio.wait({line.task})
                finally:
                    await end(line.task)
            await asyncio.sleep(REST_SECONDS)

    async def _heard(self, kind: str, _name: str, words: bytes, _line: Line) -> None:
        if kind == "smessage":
            self._on_stop(StreamId(words.decode("ascii", "replace")))


class _Readers:
    """The readers here of one stream that another process produces."""

    def __init__(self, peers: SharedPeers, stream_id: StreamId) -> None:
        self.stream_id = stream_id
        self.offset = 0
        self._peers = peers
        self._count = 0

    def joined(self) -> None:
        """A reader has come."""
        self._count += 1
        if self._count == 1:
            self._peers.tell(self, reading=True)

    def left(self) -> None:
        """A reader has gone."""
        self._count -= 1
        if self._count == 0:
            self._peers.tell(self, reading=False)

    def delivered(self, offset: int) -> None:
        """A reader was sent everything up to this offset."""
        self.offset = max(self.offset, offset)

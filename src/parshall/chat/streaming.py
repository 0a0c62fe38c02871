"""The use cases of streams: ask, attach, stop, acknowledge, recover."""

import asyncio
import contextlib

from parshall.chat.catalog import Catalog
from parshall.chat.conclude import Concluder
from parshall.chat.failover import Failover
from parshall.chat.model import Stream, StreamForgotten
from parshall.chat.openings import OPENING_SECONDS_MAX, Limits, Openings
from parshall.chat.peers import Peers
from parshall.chat.ports import Ledger, LogUnavailable, StreamLog, Tail
from parshall.chat.producers import Producers
from parshall.chat.reader import Reader
from parshall.chat.records import Records
from parshall.chat.recovery import Recovery
from parshall.chat.slots import Slots
from parshall.chat.turn import Parts
from parshall.kernel.clock import INSTANT_MAX, SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.errors import NotFound, Unavailable
from parshall.kernel.ids import StreamId
from parshall.kernel.tokens import Principal, Role

SILENCE_SECONDS = 15.0
"""After this long without an event a reader is sent a comment, so that no proxy cuts the connection."""
STOP_SECONDS_MAX = 8.0
"""How long who stops a stream waits for another process to end it."""
STOP_AGAIN_SECONDS = 1.0
END = 2**53
"""Behind every event."""


class Streaming:
    """Streams of this process and of the log."""

    def __init__(
        self,
        *,
        database: Database,
        stream_log: StreamLog,
        peers: Peers,
        owner: str,
        ledger: Ledger,
        catalog: Catalog,
        clock: Clock,
        limits: Limits,
    ) -> None:
        """`database` is chat's own; `stream_log` may be shared with `peers`, among which this process is `owner`."""
        self.records = Records(database, clock=clock)
        self._log = stream_log
        self._peers = peers
        self._catalog = catalog
        self._clock = clock
        slots = Slots(per_user=limits.streams_per_user_max, in_all=limits.streams_max)
        self.producers = Producers(stream_log, clock=clock, lease_seconds=limits.lease_seconds, on_end=slots.release)
        concluder = Concluder(
            ledger=ledger, stream_log=stream_log, records=self.records, on_end=slots.release, label=catalog.label
        )
        failover = Failover(catalog=catalog, ledger=ledger, records=self.records, slice_tokens=limits.slice_tokens)
        parts = Parts(
            ledger=ledger,
            stream_log=stream_log,
            peers=peers,
            concluder=concluder,
            failover=failover,
            retries=limits.retries,
            clock=clock,
            slice_tokens=limits.slice_tokens,
            stream_seconds_max=limits.stream_seconds_max,
            grace_seconds=limits.grace_seconds,
        )
        self.openings = Openings(
            database=database,
            catalog=catalog,
            producers=self.producers,
            parts=parts,
            owner=owner,
            limits=limits,
            slots=slots,
        )
        self._recovery = Recovery(parts, producers=self.producers, openings=self.openings, owner=owner)
        peers.listen(self.producers.stop)
        self.ask = self.openings.ask

    @property
    def draining(self) -> bool:
        """Whether this process takes no new streams."""
        return self.openings.closed

    # ── Attach ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def find(self, stream_id: StreamId, *, caller: Principal) -> Stream:
        """The stream of that id, for its owner or a supervisor. Raises NotFound."""
        await self.openings.opened(stream_id)
        stream = await self.records.find(stream_id)
        if stream is None or (stream.user_id != caller.user_id and not caller.role.covers(Role.SUPERVISOR)):
            raise NotFound("There is no such stream, or it is not yours.")
        return stream

    async def begun(self, stream_id: StreamId) -> Stream | None:
        """The stream of that id once it has its first event; None where nothing came of it."""
        await self.openings.opened(stream_id)
        stream = await self.records.find(stream_id)
        return stream if stream is not None and await self.openings.began(stream) else None

    async def attach(self, stream_id: StreamId, *, after: int) -> Reader:
        """A reader of the events after that offset.

        Raises StreamForgotten once the log no longer holds them, NotFound for a stream that came to nothing.
        """
        producer = self.producers.get(stream_id)
        tail = await self._log.tail(stream_id, after=after, silence_seconds=SILENCE_SECONDS)
        if producer is None and await self.openings.empty(stream_id):
            tail.close()
            await self._begun_elsewhere(stream_id)
            tail = await self._log.tail(stream_id, after=after, silence_seconds=SILENCE_SECONDS)
        attendance = self._peers.readers(stream_id) if producer is None else producer.audience
        return Reader(tail, attendance, after=after)

    async def _begun_elsewhere(self, stream_id: StreamId) -> None:
        """Wait for the first event of a stream that another process is opening."""
        stream = await self.records.find(stream_id)
        if stream is None or not await self.openings.began(stream):
            raise NotFound("This stream could not be begun; ask again.")
        if await self.openings.empty(stream_id):
            current = await self.records.find(stream_id)
            if current is not None and current.closed_at is None:  # its process died, or is about to go on
                raise Unavailable("This stream is being recovered; try again shortly.", retry_after=1)
            raise StreamForgotten

    # ── Stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self, stream: Stream) -> Stream:
        """Have a stream end now, wherever it is produced, and return it ended; one that has ended stays as it is.

        Raises Unavailable where nobody could end it in time.
        """
        if self.producers.get(stream.id) is not None:
            self.producers.stop(stream.id)
            await self.producers.ended(stream.id)
        current = await self.records.find(stream.id)
        if current is not None and current.ending is None:
            await self._stop_elsewhere(current)
            current = await self.records.find(stream.id)
        if current is None or current.ending is None:
            raise Unavailable("This stream is being recovered; try again shortly.", retry_after=1)
        return current

    async def _stop_elsewhere(self, stream: Stream) -> None:
        """Ask its producer again and again, for what is said may be lost; one without a producer is ended here."""
        tail = await self._log.tail(stream.id, after=END, silence_seconds=SILENCE_SECONDS)
        try:
            async with asyncio.timeout(STOP_SECONDS_MAX):
                while await self._peers.stop(stream.id) or not await self._recovery.rescue(stream.id):
                    if await _is_over(tail, STOP_AGAIN_SECONDS):
                        break
        except (TimeoutError, LogUnavailable):
            return  # what has become of it, its record tells
        finally:
            tail.close()

    # ── Running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def recover(self) -> int:
        """Finish what earlier processes left behind, before this one opens anything; how many streams moved on."""
        return await self.sweep() if self._peers.shared else await self._recovery.sweep(undo_before=INSTANT_MAX)

    async def sweep(self) -> int:
        """Adopt, settle and close whatever no producer will; how many streams moved on."""
        return await self._recovery.sweep(undo_before=self._clock() - int(OPENING_SECONDS_MAX * SECOND))

    async def trim(self, *, closed_before: int) -> int:
        """Forget the events of streams closed before that instant; how many."""
        return await self._log.trim(closed_before=closed_before)

    async def forget(self, stream_id: StreamId) -> None:
        """Forget the events of a stream that is closed."""
        await self._log.forget(stream_id)

    def drain(self) -> None:
        """Take no new streams from now on."""
        self.openings.closed = True

    async def end_producers(self, *, drain_seconds: float) -> None:
        """Let running streams finish for a while, interrupt and settle the rest. May be called again."""
        await self.openings.close()
        await self.producers.shut_down(drain_seconds=drain_seconds)

    async def close(self, *, drain_seconds: float) -> None:
        """End every producer in order, then the log and the providers."""
        await self.end_producers(drain_seconds=drain_seconds)
        await self._catalog.close()
        await self._peers.close()
        await self._log.close()


async def _is_over(tail: Tail, seconds: float) -> bool:
    """Wait so long for the end of a stream; whether it came."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for _ in tail:
                pass
            return True
    return False

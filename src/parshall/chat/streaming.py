"""The use cases of streams: ask, attach, stop, acknowledge, recover."""

import asyncio
import contextlib
import uuid
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from parshall.chat import store
from parshall.chat.catalog import Catalog
from parshall.chat.conclude import Concluder
from parshall.chat.failover import Attempt, Conversation, Failover, Retries
from parshall.chat.frames import model_frame
from parshall.chat.meter import Meter
from parshall.chat.model import (
    DEFAULT_TITLE,
    Ask,
    ChatSession,
    Message,
    Outcome,
    Stream,
    StreamActive,
    StreamForgotten,
    title_from,
)
from parshall.chat.ports import Lease, Ledger, LogAway, Prompt, Provider, StreamLog
from parshall.chat.producers import Producers
from parshall.chat.reader import Reader
from parshall.chat.records import Records
from parshall.chat.recovery import Recovery
from parshall.chat.slots import Slots
from parshall.chat.turn import Parts, Producer
from parshall.kernel import sse
from parshall.kernel.clock import INSTANT_MAX, SECOND, Clock
from parshall.kernel.credits import wire
from parshall.kernel.database import Database
from parshall.kernel.errors import InsufficientCredits, KeyReused, NotFound, ParshallError, Unavailable
from parshall.kernel.ids import SessionId, StreamId, UserId, new_id, new_stream_id
from parshall.kernel.metering import Slice
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import Principal, Role

SILENCE_SECONDS = 15.0
"""After this long without an event a reader is sent a comment, so that no proxy cuts the connection."""
RESERVE_SECONDS_MAX = 5.0
RETRIES = Retries()
OPENING_SECONDS_MAX = 30.0
"""No opening takes longer from its record to its first event; one that seems to is dead."""

_logger = log("streams")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The deployment's limits on streams; times in seconds, `streams_…` in streams that run at once."""

    output_tokens_max: int
    slice_tokens: int
    stream_seconds_max: float
    lease_seconds: float
    grace_seconds: float
    streams_per_user_max: int
    streams_max: int
    retries: Retries = RETRIES


class Streaming:
    """Streams of this process and of the log."""

    def __init__(
        self,
        *,
        database: Database,
        stream_log: StreamLog,
        ledger: Ledger,
        catalog: Catalog,
        clock: Clock,
        limits: Limits,
    ) -> None:
        """`database` is chat's own; `stream_log` may be shared with other processes."""
        self.records = Records(database, clock=clock)
        self._database = database
        self._log = stream_log
        self._ledger = ledger
        self._catalog = catalog
        self._clock = clock
        self._limits = limits
        self._owner = uuid.uuid4().hex
        self._opening: dict[StreamId, asyncio.Task[None]] = {}
        self._draining = False
        self._slots = Slots(per_user=limits.streams_per_user_max, in_all=limits.streams_max)
        free = self._slots.release
        self.producers = Producers(stream_log, clock=clock, lease_seconds=limits.lease_seconds, on_end=free)
        concluder = Concluder(ledger=ledger, stream_log=stream_log, records=self.records, on_end=free)
        self._parts = Parts(
            ledger=ledger,
            stream_log=stream_log,
            concluder=concluder,
            failover=Failover(
                catalog=catalog,
                ledger=ledger,
                records=self.records,
                slice_tokens=limits.slice_tokens,
            ),
            retries=limits.retries,
            clock=clock,
            slice_tokens=limits.slice_tokens,
            stream_seconds_max=limits.stream_seconds_max,
            grace_seconds=limits.grace_seconds,
        )
        self._recovery = Recovery(
            producers=self.producers,
            stream_log=stream_log,
            ledger=ledger,
            records=self.records,
            concluder=concluder,
            clock=clock,
        )

    @property
    def draining(self) -> bool:
        """Whether this process takes no new streams."""
        return self._draining

    # ── Ask ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, ask: Ask, *, user_id: UserId, session_id: SessionId, proposed: StreamId | None) -> StreamId:
        """Begin the stream of a turn, or find the one that this very request began before.

        When it returns, the message is kept, the credits are reserved and the opening events are in the log. Raises
        NotFound, KeyReused, StreamActive, TooManyStreams, InsufficientCredits, Unavailable and what choosing a model
        raises; then nothing of the request is kept.
        """
        stream_id = proposed or new_stream_id(at=self._clock())
        fingerprint = ask.fingerprint(user_id=user_id, session_id=session_id)
        while True:
            await self.opened(stream_id)
            known = await self.records.find(stream_id) if proposed else None
            if stream_id not in self._opening:
                break
        if known is not None:
            if not known.repeats(user_id=user_id, session_id=session_id, fingerprint=fingerprint):
                raise KeyReused("This streaming session id was used for another request; make a new one.")
            return stream_id
        if self._draining:
            raise Unavailable("The server is restarting; try again shortly.", retry_after=2)
        self._slots.take(stream_id, user_id)  # no await from here to the task: what takes a slot will release it
        opening = asyncio.create_task(self._open(ask, stream_id, user_id, session_id, fingerprint))
        self._opening[stream_id] = opening
        opening.add_done_callback(lambda _: self._end_opening(stream_id))
        await asyncio.shield(opening)  # a caller that hangs up must not leave the opening half done
        return stream_id

    async def opened(self, stream_id: StreamId) -> None:
        """Wait while a stream of that id is being opened, whatever comes of it."""
        while (opening := self._opening.get(stream_id)) is not None:
            await asyncio.wait({opening})

    def _end_opening(self, stream_id: StreamId) -> None:
        """An opening is over: it has left a producer, whose end releases the slot, or nothing."""
        del self._opening[stream_id]
        if stream_id not in self.producers:
            self._slots.release(stream_id)

    async def _open(
        self, ask: Ask, stream_id: StreamId, user_id: UserId, session_id: SessionId, fingerprint: str
    ) -> None:
        session, history = await self._conversation(session_id, user_id)
        choice = await self._catalog.choose(ask.model_id or session.model_id)
        conversation = Conversation(history=history, ask=ask, output_tokens_max=self._limits.output_tokens_max)
        prompt, input_tokens = await conversation.prompt(choice)
        stream = Stream(
            id=stream_id,
            session_id=session_id,
            user_id=user_id,
            fingerprint=fingerprint,
            requested_model=ask.model_id,
            model_id=choice.card.id,
            fallback_applied=choice.fallback_applied,
            on_disconnect=ask.on_disconnect,
            input_tokens=input_tokens,
            epoch=1,
            created_at=self._clock(),
        )
        await self._record(stream, session, ask)
        await self._begin(stream, prompt, choice.provider, conversation)

    async def _conversation(self, session_id: SessionId, user_id: UserId) -> tuple[ChatSession, list[Message]]:
        def work(connection: Connection) -> tuple[ChatSession, list[Message]]:
            session = store.find_session(connection, session_id, user_id=user_id)
            if session is None:
                raise NotFound("There is no such chat session, or it is not yours.")
            return session, store.list_messages(connection, session_id)

        return await self._database.read(work)

    async def _record(self, stream: Stream, session: ChatSession, ask: Ask) -> None:
        """Keep the message and the stream together; from here on the id can be found."""
        message = Message(
            id=new_id(),
            role="user",
            content=ask.message,
            stream_id=stream.id,
            tokens=0,
            created_at=stream.created_at,
        )
        title = title_from(ask.message) if session.title == DEFAULT_TITLE else session.title

        def work(connection: Connection) -> None:
            active = store.open_stream(connection, stream.session_id)
            if active is not None:
                raise StreamActive(streamingSessionId=active)
            store.add_stream(connection, stream)
            store.add_message(connection, stream.session_id, message)
            store.change_session(connection, stream.session_id, title=title, updated_at=stream.created_at)

        try:
            await self._database.write(work)
        except IntegrityError as error:
            raise StreamActive from error

    async def _begin(self, stream: Stream, prompt: Prompt, provider: Provider, conversation: Conversation) -> None:
        """Reserve, log the opening events, and start the producer; undo the record if any of it fails."""
        try:
            granted = await self._reserve(stream, prompt)
            lease = await self._log_opening(stream, granted)
            if lease.epoch != stream.epoch:  # an opening that failed before left its lease in the log
                await self.records.claim(stream.id, epoch=lease.epoch)
        except BaseException as error:
            if not isinstance(error, InsufficientCredits):
                await self._void(stream.id)
            await self.records.forget(stream.id)
            raise
        meter = Meter(granted, output_tokens_max=prompt.output_tokens_max)
        first = Attempt(stream=stream, provider=provider, prompt=prompt, meter=meter)
        self.producers.start(Producer(first, conversation, lease=lease, parts=self._parts))

    async def _reserve(self, stream: Stream, prompt: Prompt) -> Slice:
        try:
            async with asyncio.timeout(RESERVE_SECONDS_MAX):
                return await self._ledger.reserve(
                    stream_id=stream.id,
                    user_id=stream.user_id,
                    model_id=stream.model_id,
                    input_tokens=stream.input_tokens,
                    output_tokens_max=prompt.output_tokens_max,
                    slice_tokens=min(self._limits.slice_tokens, prompt.output_tokens_max),
                )
        except TimeoutError as error:
            raise Unavailable("Accounting does not answer, so nothing was reserved; try again shortly.") from error

    async def _log_opening(self, stream: Stream, granted: Slice) -> Lease:
        lease = await self._log.acquire(
            stream.id, owner=self._owner, at=self._clock(), until=self.producers.lease_until()
        )
        if lease is None:
            raise KeyReused("This streaming session id was used before; make a new one.")
        session = {
            "streamingSessionId": stream.id,
            "sessionId": stream.session_id,
            "modelId": stream.model_id,
            "reservedCredits": wire(granted.reserved),
            "resumed": False,
        }
        model = model_frame(stream.model_id, 2, fallback_applied=stream.fallback_applied)
        await self._log.append(lease, [sse.frame(1, "session", session, retry=True), model], first_offset=1)
        return lease

    async def _void(self, stream_id: StreamId) -> None:
        """Return a reservation that may or may not have been made; failing that, it expires by itself."""
        try:
            await self._ledger.void(stream_id=stream_id)
        except ParshallError as error:
            _logger.warning("void_failed", stream=stream_id, reason=error.detail)

    # ── Attach ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def find(self, stream_id: StreamId, *, caller: Principal) -> Stream:
        """The stream of that id, for its owner or a supervisor. Raises NotFound."""
        await self.opened(stream_id)
        stream = await self.records.find(stream_id)
        if stream is None or (stream.user_id != caller.user_id and not caller.role.covers(Role.SUPERVISOR)):
            raise NotFound("There is no such stream, or it is not yours.")
        return stream

    async def attach(self, stream_id: StreamId, *, after: int) -> Reader:
        """A reader of the events after that offset. Raises StreamForgotten once the log no longer holds them."""
        producer = self.producers.get(stream_id)
        tail = await self._log.tail(stream_id, after=after, silence_seconds=SILENCE_SECONDS)
        if producer is None and await self._forgotten(stream_id):
            tail.close()
            raise StreamForgotten
        return Reader(tail, producer, after=after)

    async def _forgotten(self, stream_id: StreamId) -> bool:
        """Whether the log no longer holds a stream. One that is away says nothing: its tail sends the reader away."""
        with contextlib.suppress(LogAway):
            return await self._log.read(stream_id, after=0, limit=1) == ([], True)
        return False

    # ── Stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self, stream: Stream) -> Stream:
        """Have a stream end now and return it ended; one that has ended already stays as it is.

        Raises Unavailable for a stream that waits to be adopted from a process that died.
        """
        producer = self.producers.get(stream.id)
        if producer is not None:
            producer.stop(Outcome.STOPPED)
            await self.producers.ended(stream.id)
        current = await self.records.find(stream.id)
        if current is None or current.ending is None:
            raise Unavailable("This stream is being recovered; try again shortly.", retry_after=1)
        return current

    # ── Running ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def recover(self) -> int:
        """Finish what an earlier process left behind, before this one opens anything; how many streams moved on."""
        assert not self._opening
        return await self._recovery.sweep(opening=self._opening, undo_before=INSTANT_MAX)

    async def sweep(self) -> int:
        """Adopt, settle and close whatever no producer will; how many streams moved on."""
        undo_before = self._clock() - int(OPENING_SECONDS_MAX * SECOND)
        return await self._recovery.sweep(opening=self._opening, undo_before=undo_before)

    async def trim(self, *, closed_before: int) -> int:
        """Forget the events of streams closed before that instant; how many."""
        return await self._log.trim(closed_before=closed_before)

    def drain(self) -> None:
        """Take no new streams from now on."""
        self._draining = True

    async def end_producers(self, *, drain_seconds: float) -> None:
        """Let running streams finish for a while, interrupt and settle the rest. May be called again."""
        self.drain()
        await asyncio.gather(*self._opening.values(), return_exceptions=True)
        await self.producers.shut_down(drain_seconds=drain_seconds)

    async def close(self, *, drain_seconds: float) -> None:
        """End every producer in order, then the log and the providers."""
        await self.end_producers(drain_seconds=drain_seconds)
        await self._catalog.close()
        await self._log.close()

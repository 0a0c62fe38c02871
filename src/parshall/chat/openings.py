"""Opening a stream: keep the message, reserve, log the first events, start the producer; or find it done before.

Any process may be asked, and several at once for the same stream: its record, which can be made once, decides.
"""

import asyncio
import contextlib
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from parshall.chat import store
from parshall.chat.catalog import Catalog, Choice
from parshall.chat.failover import Attempt, Conversation, Retries
from parshall.chat.frames import model_frame
from parshall.chat.meter import Meter
from parshall.chat.model import DEFAULT_TITLE, Ask, ChatSession, Message, Stream, StreamActive, title_from
from parshall.chat.ports import Lease, LeaseLost, LogAway, LogUnavailable, Prompt
from parshall.chat.producers import Producers
from parshall.chat.slots import Slots, too_many
from parshall.chat.turn import Parts, Producer
from parshall.chat.undoing import Undoing
from parshall.kernel import sse, trace
from parshall.kernel.clock import SECOND
from parshall.kernel.credits import wire
from parshall.kernel.database import Database
from parshall.kernel.errors import InsufficientCredits, KeyReused, NotFound, ParshallError, Unavailable
from parshall.kernel.ids import SessionId, StreamId, UserId, new_id, new_stream_id
from parshall.kernel.metering import Slice

BRIEF_MESSAGES_MAX = 100
"""A longer conversation is not read on the event loop, which it would hold up."""
RESERVE_SECONDS_MAX = 5.0
RETRIES = Retries()
OPENING_SECONDS_MAX = 30.0
"""No opening takes longer from its record to its first event; one that seems to is dead."""
LATE_SECONDS = OPENING_SECONDS_MAX / 2
"""An opening that took so long was perhaps taken for dead, by a process whose clock differs from this one's."""
LOOK_SECONDS = 0.05
"""How often a stream that another process is just opening is looked for."""


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


class _OpenedElsewhere(Exception):
    """Another process was faster with the very same stream."""


class Openings:
    """The streams that this process is about to produce."""

    def __init__(
        self,
        *,
        database: Database,
        catalog: Catalog,
        producers: Producers,
        parts: Parts,
        owner: str,
        limits: Limits,
        slots: Slots,
    ) -> None:
        """`database` is chat's own, `owner` names this process in leases."""
        self._database = database
        self._records = parts.concluder.records
        self._catalog = catalog
        self._producers = producers
        self._parts = parts
        self._owner = owner
        self._limits = limits
        self._slots = slots
        self._tasks: dict[StreamId, asyncio.Task[None]] = {}
        self._undoing = Undoing(records=self._records, ledger=parts.ledger, clock=parts.clock)
        self.closed = False
        """Whether this process takes no new streams."""

    def __contains__(self, stream_id: object) -> bool:
        """Whether that stream is being opened here, or undone."""
        return stream_id in self._tasks or stream_id in self._undoing

    async def ask(self, ask: Ask, *, user_id: UserId, session_id: SessionId, proposed: StreamId | None) -> StreamId:
        """Begin the stream of a turn, or find the one that this very request began before, here or elsewhere.

        When it returns, the message is kept, the credits are reserved and the opening events are in the log. Raises
        NotFound, KeyReused, StreamActive, TooManyStreams, InsufficientCredits, Unavailable and what choosing a model
        raises; then nothing of the request is kept.
        """
        stream_id = proposed or new_stream_id(at=self._parts.clock())
        fingerprint = ask.fingerprint(user_id=user_id, session_id=session_id)
        while True:
            known = await self._known(stream_id) if proposed else None
            if known is None:
                try:
                    await self._start(ask, stream_id, user_id, session_id, fingerprint, named=proposed is not None)
                except _OpenedElsewhere:
                    continue
            elif not known.repeats(user_id=user_id, session_id=session_id, fingerprint=fingerprint):
                raise KeyReused("This streaming session id was used for another request; make a new one.")
            return stream_id

    async def opened(self, stream_id: StreamId) -> None:
        """Wait while a stream of that id is being opened here, whatever comes of it."""
        while (opening := self._tasks.get(stream_id)) is not None:
            await asyncio.wait({opening})

    async def began(self, stream: Stream) -> bool:
        """Wait while another process may be opening the stream; False where nothing came of it."""
        while await self._may_begin(stream):
            await asyncio.sleep(LOOK_SECONDS)
            found = await self._records.find(stream.id)
            if found is None:
                return False
            stream = found
        return True

    async def close(self) -> None:
        """Take no new streams, and wait for those that are being opened."""
        self.closed = True
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._undoing.close()

    async def empty(self, stream_id: StreamId) -> bool:
        """Whether the log holds nothing of a stream. One that is away says nothing: its tail sends the reader away."""
        with contextlib.suppress(LogAway):
            return await self._parts.stream_log.read(stream_id, after=0, limit=1) == ([], True)
        return False

    async def _may_begin(self, stream: Stream) -> bool:
        """Whether a stream that has no events yet is still to get its first one from another process."""
        if not self._parts.peers.shared or stream.ending is not None or stream.id in self._producers:
            return False
        recent = self._parts.clock() - stream.created_at < OPENING_SECONDS_MAX * SECOND
        return recent and await self.empty(stream.id)

    async def _known(self, stream_id: StreamId) -> Stream | None:
        """The stream of that id, begun; where there is none, nothing is awaited after that was seen."""
        while True:
            await self.opened(stream_id)
            await self._undoing.make_way(stream_id)
            known = await self._records.find(stream_id)
            if stream_id in self._tasks:
                continue
            if known is not None and stream_id not in self._producers and self._undoing.failed(known):
                await self._undoing.undo(known, void=False)
                continue
            if known is None or await self.began(known):
                return known

    async def _start(
        self, ask: Ask, stream_id: StreamId, user_id: UserId, session_id: SessionId, fingerprint: str, *, named: bool
    ) -> None:
        if self.closed:
            raise Unavailable("The server is restarting; try again shortly.", retry_after=2)
        self._slots.take(stream_id, user_id)  # no await from here to the task: what takes a slot will release it
        opening = asyncio.create_task(self._open(ask, stream_id, user_id, session_id, fingerprint, named=named))
        self._tasks[stream_id] = opening
        opening.add_done_callback(lambda _: self._end_opening(stream_id))
        await asyncio.shield(opening)  # a caller that hangs up must not leave the opening half done

    def _end_opening(self, stream_id: StreamId) -> None:
        """An opening is over: it has left a producer, whose end releases the slot, or nothing."""
        del self._tasks[stream_id]
        if stream_id not in self._producers:
            self._slots.release(stream_id)

    async def _open(
        self, ask: Ask, stream_id: StreamId, user_id: UserId, session_id: SessionId, fingerprint: str, *, named: bool
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
            created_at=self._parts.clock(),
        )
        try:
            await self._record(stream, session, ask)
        except Unavailable:  # it may have been kept
            await self._undoing.undo(stream, void=False)
            raise
        await self._begin(stream, prompt, choice, conversation, named=named)

    async def _conversation(self, session_id: SessionId, user_id: UserId) -> tuple[ChatSession, list[Message]]:
        def work(connection: Connection, most: int) -> tuple[ChatSession, list[Message]]:
            session = store.find_session(connection, session_id, user_id=user_id)
            if session is None:
                raise NotFound("There is no such chat session, or it is not yours.")
            return session, store.list_messages(connection, session_id, most=most)

        session, history = await self._database.read(lambda c: work(c, BRIEF_MESSAGES_MAX + 1), brief=True)
        if len(history) > BRIEF_MESSAGES_MAX:
            session, history = await self._database.read(lambda c: work(c, store.ALL_MESSAGES))
        return session, history

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
                raise _OpenedElsewhere if active == stream.id else StreamActive(streamingSessionId=active)
            if self._parts.peers.shared:
                self._check_limits(connection, stream.user_id)
            store.add_stream(connection, stream)
            store.add_message(connection, stream.session_id, message)
            store.change_session(connection, stream.session_id, title=title, updated_at=stream.created_at)

        try:
            await self._database.write(work, brief=True)
        except IntegrityError as error:
            same = await self._records.find(stream.id) is not None
            raise _OpenedElsewhere if same else StreamActive from error

    def _check_limits(self, connection: Connection, user_id: UserId) -> None:
        """Count the streams of all processes. Raises TooManyStreams.

        A user's count is exact. That of the deployment may be passed by what is begun in the same instant: to be exact,
        every opening would wait for every other.
        """
        mine, in_all = store.count_open(connection, user_id)
        if mine >= self._limits.streams_per_user_max:
            raise too_many(user_limit=self._limits.streams_per_user_max)
        if in_all >= self._limits.streams_max:
            raise too_many(deployment_limit=self._limits.streams_max)

    async def _begin(
        self, stream: Stream, prompt: Prompt, choice: Choice, conversation: Conversation, *, named: bool
    ) -> None:
        """Reserve, log the opening events, and start the producer; undo the turn if any of it fails.

        A client that has named the stream may come back with the same id, once what was away is there again.
        """
        began_at = asyncio.get_running_loop().time()
        try:
            with trace.span("reserve", stream=stream.id):
                granted = await self._reserve(stream, prompt)
            lease = await self._log_opening(stream, granted)
            late = asyncio.get_running_loop().time() - began_at > LATE_SECONDS
            if lease.epoch != stream.epoch or late:  # an opening that failed before left its lease in the log
                await self._claim(stream, lease)
        except BaseException as error:
            keep = named and isinstance(error, Unavailable | LogUnavailable)
            late = isinstance(error, Unavailable) or not isinstance(error, ParshallError)  # perhaps asked, not answered
            await self._undoing.undo(stream, void=not isinstance(error, InsufficientCredits), keep=keep, late=late)
            raise
        meter = Meter(granted, output_tokens_max=prompt.output_tokens_max)
        first = Attempt(
            stream=stream, provider=choice.provider, provider_name=choice.card.provider, prompt=prompt, meter=meter
        )
        self._producers.start(Producer(first, conversation, lease=lease, parts=self._parts))

    async def _claim(self, stream: Stream, lease: Lease) -> None:
        """See that the record is still there, and bind it to the lease: a process that slept may have been undone."""
        if not await self._records.claim(stream.id, epoch=lease.epoch):
            raise Unavailable("The server was held up, so nothing was begun; try again.", retry_after=1)

    async def _reserve(self, stream: Stream, prompt: Prompt) -> Slice:
        try:
            async with asyncio.timeout(RESERVE_SECONDS_MAX):
                return await self._parts.ledger.reserve(
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
        lease = await self._lease(stream.id)
        session = {
            "streamingSessionId": stream.id,
            "sessionId": stream.session_id,
            "modelId": stream.model_id,
            "reservedCredits": wire(granted.reserved),
            "resumed": False,
        }
        model = model_frame(stream.model_id, 2, fallback_applied=stream.fallback_applied)
        try:
            await self._parts.stream_log.append(
                lease, [sse.frame(1, "session", session, retry=True), model], first_offset=1
            )
        except LogUnavailable:  # should the client come back to another process, nobody may be in its way
            with contextlib.suppress(LeaseLost, LogUnavailable):
                await self._parts.stream_log.release(lease)
            raise
        return lease

    async def _lease(self, stream_id: StreamId) -> Lease:
        log, at = self._parts.stream_log, self._parts.clock()
        lease = await log.acquire(stream_id, owner=self._owner, at=at, until=self._producers.lease_until())
        if lease is not None:
            return lease
        if await log.held([stream_id], at=at):  # by a process that could not begin it, until its lease runs out
            raise Unavailable("A moment ago this stream was being begun elsewhere; try again shortly.")
        raise KeyReused("This streaming session id was used before; make a new one.")

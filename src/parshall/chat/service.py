"""The use cases of chat sessions; those of streams are in `streaming`."""

from dataclasses import dataclass, replace
from typing import Literal

from sqlalchemy import Connection

from parshall.chat import erasing, mismatch, store
from parshall.chat.catalog import Catalog
from parshall.chat.model import (
    DEFAULT_TITLE,
    ChatSession,
    Message,
    Stream,
    StreamActive,
    StreamForgotten,
    StreamIdMismatch,
    comparison,
)
from parshall.chat.ports import ModelCard
from parshall.chat.reader import Reader
from parshall.chat.streaming import Streaming
from parshall.kernel.clock import Clock
from parshall.kernel.database import Database
from parshall.kernel.errors import NotFound
from parshall.kernel.ids import MalformedStreamId, SessionId, StreamId, UserId, new_id, parse_stream_id
from parshall.kernel.removals import Removals
from parshall.kernel.tokens import Principal

RETENTION_SECONDS = 24 * 3600
STOPS_BEFORE_DELETE_MAX = 3
ERASED_AT_ONCE = 50
"""Chat sessions of a removed user; the rest follows in the next pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A chat session with all that is shown of it."""

    session: ChatSession
    messages: list[Message]
    streams: list[Stream]


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """What came of a client's update: the stream as it ended, and how the client's text compares."""

    stream: Stream
    comparison: Literal["exact", "prefix", "different"]


class Chat:
    """Chat sessions of all users; every use names the user and sees only theirs."""

    def __init__(
        self,
        database: Database,
        *,
        streaming: Streaming,
        catalog: Catalog,
        clock: Clock,
        retention_seconds: float = RETENTION_SECONDS,
    ) -> None:
        """`database` is chat's own; the events of a stream are kept `retention_seconds` after its end."""
        self.streaming = streaming
        self.catalog = catalog
        self._database = database
        self._clock = clock
        self._retention_seconds = retention_seconds
        self.removals = Removals(database, erasing.chat_removals, clock=clock, erase=self.erase)

    async def create(
        self, *, user_id: UserId, title: str | None, first: str | None, model_id: str | None, source: str | None
    ) -> ChatSession:
        """A new chat session; `first` becomes its first message, unanswered until a stream is asked for."""
        at = self._clock()
        session = ChatSession(
            id=SessionId(new_id()),
            user_id=user_id,
            title=title or DEFAULT_TITLE,
            model_id=model_id,
            source=source,
            created_at=at,
            updated_at=at,
        )

        def work(connection: Connection) -> None:
            store.add_session(connection, session)
            if first:
                message = Message(id=new_id(), role="user", content=first, stream_id=None, tokens=0, created_at=at)
                store.add_message(connection, session.id, message)

        await self._database.write(work, brief=True)
        return session

    async def page(
        self, *, user_id: UserId, text: str | None, number: int, per_page: int
    ) -> tuple[list[ChatSession], int]:
        """Page `number` (from 1) of the user's chat sessions, last used first; and how many there are in all."""
        offset = (number - 1) * per_page
        return await self._database.read(
            lambda c: store.list_sessions(c, user_id=user_id, text=text, offset=offset, limit=per_page)
        )

    async def get(self, session_id: SessionId, *, user_id: UserId) -> Conversation:
        """A chat session of the user. Raises NotFound."""

        def work(connection: Connection) -> Conversation:
            session = _own(connection, session_id, user_id)
            return Conversation(
                session=session,
                messages=store.list_messages(connection, session_id),
                streams=store.session_streams(connection, session_id),
            )

        return await self._database.read(work)

    async def change(
        self, session_id: SessionId, *, user_id: UserId, title: str | None, model_id: str | None
    ) -> ChatSession:
        """Set the title or the model of a chat session. Raises NotFound."""
        given = {"title": title, "model_id": model_id}
        values = {name: value for name, value in given.items() if value is not None}

        def work(connection: Connection) -> ChatSession:
            session = _own(connection, session_id, user_id)
            at = self._clock()
            store.change_session(connection, session_id, updated_at=at, **values)
            return replace(session, updated_at=at, title=title or session.title, model_id=model_id or session.model_id)

        return await self._database.write(work, brief=True)

    async def delete(self, session_id: SessionId, *, user_id: UserId) -> None:
        """Forget a chat session; a stream in it is stopped and settled first. Raises NotFound, StreamActive."""

        def work(connection: Connection) -> StreamId | None:
            _own(connection, session_id, user_id)
            store.hold_session(connection, session_id)
            active = store.open_stream(connection, session_id)
            if active is None:
                store.remove_session(connection, session_id)
            return active

        for _ in range(STOPS_BEFORE_DELETE_MAX):
            active = await self._database.write(work)
            if active is None:
                return
            stream = await self.streaming.records.find(active)
            if stream is not None:
                await self.streaming.stop(stream)
        raise StreamActive("New answers keep starting in this chat session; try again.")

    async def erase(self, user_id: UserId) -> bool:
        """Forget all chat sessions of a removed user with what was said in them; whether nothing is left.

        A running stream is stopped first, and everything of it settled: until then its chat session stays. Raises
        Unavailable where a stream cannot be ended now.
        """
        sessions, total = await self.page(user_id=user_id, text=None, number=1, per_page=ERASED_AT_ONCE)
        erased = [await self._erase(session.id, user_id) for session in sessions]
        await self._database.write(lambda connection: erasing.unname_observer(connection, user_id))
        return all(erased) and total == len(sessions)

    async def _erase(self, session_id: SessionId, user_id: UserId) -> bool:
        """The log goes before the records by which it is found, so that a crash in between leaves nothing behind."""
        streams = await self._database.read(lambda connection: store.session_streams(connection, session_id))
        for stream in streams:
            if stream.ending is None:
                await self.streaming.stop(stream)
        streams = await self._database.read(lambda connection: store.session_streams(connection, session_id))
        if any(stream.closed_at is None or stream.settlement is None for stream in streams):
            return False
        for stream in streams:
            await self.streaming.forget(stream.id)
        await self._database.write(lambda connection: erasing.blank_streams(connection, session_id))
        await self.delete(session_id, user_id=user_id)
        return True

    # ── Ids that clients name ───────────────────────────────────────────────────────────────────────────────────────

    async def stream(self, named: str, *, caller: Principal) -> Stream:
        """The stream that a client names, for its owner or a supervisor.

        Raises MalformedStreamId, and NotFound alike for somebody else's stream and for none; both with the reason.
        """
        stream_id = mismatch.named_id(named)
        try:
            return await self.streaming.find(stream_id, caller=caller)
        except NotFound as error:
            reason = self._unknown(stream_id)
            raise NotFound(mismatch.sentence(reason), **mismatch.refused(reason)) from error

    async def attach(self, stream_id: StreamId, *, after: int) -> Reader:
        """A reader of a stream's events after an offset. Raises StreamForgotten, with the reason."""
        try:
            return await self.streaming.attach(stream_id, after=after)
        except StreamForgotten as error:
            stream = await self.streaming.records.find(stream_id)
            reason = mismatch.Reason.LOG_LOST
            if stream is not None:
                reason = mismatch.of_forgotten(stream, at=self._clock(), retention_seconds=self._retention_seconds)
            raise StreamForgotten(mismatch.sentence(reason), **mismatch.refused(reason)) from error

    async def acknowledge(self, session_id: SessionId, *, user_id: UserId, named: str, text: str) -> Acknowledgement:
        """Take a client's word that it is done with a stream, and compare its text with the log's.

        Raises NotFound for the chat session and StreamIdMismatch, with the reason, for the id.
        """
        conversation = await self.get(session_id, user_id=user_id)
        stream = await self._named(conversation, named, user_id)
        ended = await self.streaming.stop(stream)
        server = await self.streaming.records.answer(stream.id)
        return Acknowledgement(stream=ended, comparison=comparison(client=text, server=server))

    async def _named(self, conversation: Conversation, named: str, user_id: UserId) -> Stream:
        """The stream of a chat session that a client names; otherwise a mismatch that says what is wrong with it."""
        for stream in conversation.streams:
            if stream.id == named:
                return stream
        details: dict[str, str | None] = {
            "expected": conversation.streams[-1].id if conversation.streams else None,
            "received": None,
        }
        try:
            stream_id = parse_stream_id(named)
        except MalformedStreamId:
            reason = mismatch.malformation(named)
        else:
            details["received"] = stream_id
            other = await self.streaming.records.find(stream_id)
            if other is not None and other.user_id == user_id:
                reason = mismatch.Reason.OTHER_CHAT_SESSION
                details["sessionId"] = other.session_id
            else:
                reason = self._unknown(stream_id)
        detail = f"Streaming session ID mismatch: {mismatch.sentence(reason)}"
        raise StreamIdMismatch(detail, details={**details, "reason": reason.value}, **mismatch.refused(reason))

    def _unknown(self, stream_id: StreamId) -> mismatch.Reason:
        return mismatch.of_unknown(stream_id, at=self._clock(), retention_seconds=self._retention_seconds)

    async def models(self) -> list[ModelCard]:
        """The models on offer."""
        return await self.catalog.cards()


def _own(connection: Connection, session_id: SessionId, user_id: UserId) -> ChatSession:
    session = store.find_session(connection, session_id, user_id=user_id)
    if session is None:
        raise NotFound("There is no such chat session, or it is not yours.")
    return session

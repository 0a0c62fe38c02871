"""The use cases of supervisors: look for users, read their chats, observe a stream live; each look is on record."""

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from parshall.chat import store
from parshall.chat.model import ChatSession, Stream
from parshall.chat.observations import (
    Observation,
    ObservationKind,
    add_observation,
    end_observation,
    list_observations,
)
from parshall.chat.observer import Observer
from parshall.chat.ports import StreamLog
from parshall.chat.service import Chat, Conversation
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.errors import Forbidden, NotFound
from parshall.kernel.ids import SessionId, StreamId, UserId, new_id
from parshall.kernel.tokens import Principal, Role

REPLAY_SECONDS = 60
"""How long after its end a stream can still be observed."""
AVAILABLE_SESSIONS_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A user as auth knows them now."""

    id: UserId
    username: str
    email: str
    role: Role


class People(Protocol):
    """Who is who: auth knows, chat asks."""

    async def find(self, who: str) -> Person | None:
        """The user with this id, username or e-mail address."""
        ...

    async def search(self, text: str, *, limit: int) -> list[Person]:
        """Users whose name or address contains the text."""
        ...


class SessionNotActive(NotFound):
    """Nothing runs in that chat session, or has ended just now; `availableSessions` says where something does."""

    code = "session_not_active"
    title = "Chat session not active"
    default = "No stream runs in this chat session; `availableSessions` names those in which one does."


class Supervision:
    """What supervisors may see of others' chats. Nothing is shown before the look is kept in the audit log."""

    def __init__(self, database: Database, *, chat: Chat, stream_log: StreamLog, people: People, clock: Clock) -> None:
        """`database` is chat's own."""
        self._database = database
        self._chat = chat
        self._log = stream_log
        self._people = people
        self._clock = clock

    # ── Observe ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def observe(self, session_id: SessionId, *, by: Principal, after: int) -> "tuple[Observation, Observer]":
        """Begin to observe the stream that runs in a chat session, or ended less than REPLAY_SECONDS ago.

        Raises SessionNotActive, and Forbidden for who is no supervisor any more, whatever the token says.
        """
        if not await self._may_look(by.user_id):
            raise Forbidden("You may no longer observe chat sessions; log in again.")
        stream = await self._observable(session_id)
        observation = self._look("stream", stream.session_id, stream.user_id, by, stream_id=stream.id, after=after)
        await self._database.write(lambda c: add_observation(c, observation))
        observer = Observer(
            self._log, stream, name=by.username, after=after, may_look=lambda: self._may_look(by.user_id)
        )
        return observation, observer

    async def observed(self, observation: Observation, observer: Observer) -> None:
        """Keep how an observation ended."""
        at, shown_to, end = self._clock(), observer.offset, observer.end
        await self._database.write(lambda c: end_observation(c, observation.id, at=at, shown_to=shown_to, end=end))

    async def observations(
        self, *, user: str | None, observer: str | None, after: str | None, limit: int
    ) -> list[Observation]:
        """The audit log, newest first; of the looks at one user, or by one. Raises NotFound."""
        user_id = None if user is None else await self._id_of(user)
        observer_id = None if observer is None else await self._id_of(observer)
        return await self._database.read(
            lambda c: list_observations(c, user_id=user_id, observer_id=observer_id, after=after, limit=limit)
        )

    async def _may_look(self, user_id: UserId) -> bool:
        person = await self._people.find(user_id)
        return person is not None and person.role.covers(Role.SUPERVISOR)

    async def _observable(self, session_id: SessionId) -> Stream:
        since = self._clock() - REPLAY_SECONDS * SECOND
        stream = await self._database.read(lambda c: store.latest_stream(c, session_id))
        if stream is not None:
            stream = await self._chat.streaming.begun(stream.id)
        if stream is None or (stream.ending is not None and stream.ending.ended_at <= since):
            running = await self._database.read(lambda c: store.running_streams(c, limit=AVAILABLE_SESSIONS_MAX))
            raise SessionNotActive(
                availableSessions=[
                    {"sessionId": each.session_id, "userId": each.user_id, "streamingSessionId": each.id}
                    for each in running
                ]
            )
        return stream

    # ── Read ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def search(self, text: str, *, limit: int) -> list[Person]:
        """Users whose name or address contains the text."""
        return await self._people.search(text, limit=limit)

    async def sessions_of(
        self, who: str, *, text: str | None, number: int, per_page: int
    ) -> tuple[list[ChatSession], int]:
        """A page of a user's chat sessions, as the user sees them. Raises NotFound."""
        return await self._chat.page(user_id=await self._id_of(who), text=text, number=number, per_page=per_page)

    async def read(self, who: str, session_id: SessionId, *, by: Principal) -> Conversation:
        """A user's chat session, as the user sees it. Raises NotFound."""
        user_id = await self._id_of(who)
        conversation = await self._chat.get(session_id, user_id=user_id)
        look = self._look("session", session_id, user_id, by)

        def work(connection: Connection) -> None:
            add_observation(connection, look)

        await self._database.write(work)
        return conversation

    async def _id_of(self, who: str) -> UserId:
        person = await self._people.find(who)
        if person is None:
            raise NotFound("There is no such user.")
        return person.id

    def _look(
        self,
        kind: ObservationKind,
        session_id: SessionId,
        user_id: UserId,
        by: Principal,
        *,
        stream_id: StreamId | None = None,
        after: int = 0,
    ) -> Observation:
        return Observation(
            id=new_id(),
            kind=kind,
            session_id=session_id,
            stream_id=stream_id,
            user_id=user_id,
            observer_id=by.user_id,
            observer_name=by.username,
            began_at=self._clock(),
            shown_after=after,
        )

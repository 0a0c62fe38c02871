"""The audit log of supervision: who watched or read whose chat, from when to when, and how much was shown."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from sqlalchemy import BigInteger, Column, Connection, Row, String, Table, and_, insert, literal, select, tuple_, update

from parshall.chat.store import metadata
from parshall.kernel.errors import NotFound
from parshall.kernel.ids import SessionId, StreamId, UserId

OBSERVATIONS_PER_PAGE_MAX = 500

ObservationKind = Literal["stream", "session", "headers"]


class ObservationEnd(StrEnum):
    """Why an observer sees no more."""

    STREAM_ENDED = "stream_ended"
    LEFT = "left"
    NOT_ALLOWED = "not_allowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look of an observer at somebody's chat: live at a stream (`stream`), at what is kept (`session`), or at the
    headers that were traced of a stream (`headers`).

    Of a stream, the events behind offset `shown_after` up to `shown_to` were sent. Without `ended_at` it still runs, or
    ran when its process died.
    """

    id: str
    kind: ObservationKind
    session_id: SessionId
    stream_id: StreamId | None
    user_id: UserId
    observer_id: UserId
    observer_name: str
    began_at: int
    shown_after: int
    shown_to: int | None = None
    ended_at: int | None = None
    end: str | None = None


observations = Table(
    "observations",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(10), nullable=False),
    Column("session_id", String(32), nullable=False),
    Column("stream_id", String(64)),
    Column("user_id", String(64), nullable=False),  # who was observed
    Column("observer_id", String(64), nullable=False),
    Column("observer_name", String(255), nullable=False),  # as it was then
    Column("began_at", BigInteger, nullable=False),
    Column("shown_after", BigInteger, nullable=False),
    Column("shown_to", BigInteger),
    Column("ended_at", BigInteger),
    Column("end", String(20)),
)

_ADD = insert(observations)


def add_observation(connection: Connection, observation: Observation) -> None:
    """Note an observation, before anything of it is shown."""
    connection.execute(_ADD, {column.name: getattr(observation, column.name) for column in observations.c})


def end_observation(
    connection: Connection, observation_id: str, *, at: int, shown_to: int, end: ObservationEnd
) -> None:
    """Note how an observation ended."""
    statement = update(observations).where(observations.c.id == observation_id)
    connection.execute(statement.values(ended_at=at, shown_to=shown_to, end=end.value))


def list_observations(
    connection: Connection, *, user_id: UserId | None, observer_id: UserId | None, after: str | None, limit: int
) -> list[Observation]:
    """Newest first, behind the one with the id `after`; of one user, by one observer. Raises NotFound for `after`."""
    named = {"user_id": user_id, "observer_id": observer_id}
    condition = and_(True, *(observations.c[name] == value for name, value in named.items() if value is not None))
    if after is not None:
        place = (observations.c.began_at, observations.c.id)
        last = connection.execute(select(*place).where(observations.c.id == after)).one_or_none()
        if last is None:
            raise NotFound("There is no observation with the id `after`; begin without it.")
        condition &= tuple_(*place) < tuple_(literal(last.began_at), literal(last.id))
    order = (observations.c.began_at.desc(), observations.c.id.desc())
    rows = connection.execute(select(observations).where(condition).order_by(*order).limit(limit))
    return [_observation(row) for row in rows]


def _observation(row: Row[Any]) -> Observation:
    return Observation(**row._asdict())

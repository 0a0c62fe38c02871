"""Chat's tables and the statements on them; nothing here commits."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from parshall.chat.model import ChatSession, Ending, Message, Outcome, Stream
from parshall.kernel.anytext import AnyText
from parshall.kernel.fixed import Fixed
from parshall.kernel.ids import SessionId, StreamId, UserId
from parshall.kernel.metering import Settlement, Usage, UsageSource

metadata = MetaData()

chat_sessions = Table(
    "chat_sessions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user_id", String(64), nullable=False),
    Column("title", String(100), nullable=False),
    Column("model_id", String(200)),
    Column("source", String(50)),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

messages = Table(
    "messages",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("session_id", String(32), ForeignKey("chat_sessions.id", ondelete="CASCADE"), nullable=False),
    Column("role", String(10), nullable=False),
    Column("content", AnyText, nullable=False),
    Column("stream_id", String(64)),
    Column("tokens", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

streams = Table(
    "streams",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("session_id", String(32), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("requested_model", String(200)),
    Column("model_id", String(200), nullable=False),
    Column("fallback_applied", Boolean, nullable=False),
    Column("on_disconnect", String(10), nullable=False),
    Column("input_tokens", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("ending", Text),
    Column("settlement", Text),
    Column("closed_at", BigInteger),
)


_OF_SESSION = tuple(each.name for each in fields(ChatSession))
_OF_MESSAGE = tuple(each.name for each in fields(Message))

# Built once: putting a statement together costs several times its execution.
_ADD_SESSION = insert(chat_sessions)
_SESSION = Fixed(
    select(*(chat_sessions.c[name] for name in _OF_SESSION)).where(
        chat_sessions.c.id == bindparam("session"), chat_sessions.c.user_id == bindparam("user")
    )
)
_HOLD = select(chat_sessions.c.id).where(chat_sessions.c.id == bindparam("session")).with_for_update()
ALL_MESSAGES = 2**31 - 1
_ADD_MESSAGE = Fixed(insert(messages), *messages.c.keys())
# A question and its answer may share an instant on a coarse clock; the role then keeps them in order.
_MESSAGES = Fixed(
    select(*(messages.c[name] for name in _OF_MESSAGE))
    .where(messages.c.session_id == bindparam("session"))
    .order_by(messages.c.created_at, messages.c.role.desc(), messages.c.id)
    .limit(bindparam("most"))
)
_NEW = tuple(
    column.name for column in streams.c if column.name not in ("ended_at", "ending", "settlement", "closed_at")
)
_ADD_STREAM = Fixed(insert(streams), *_NEW)
_STREAM = select(streams).where(streams.c.id == bindparam("stream"))
_OPEN = Fixed(select(streams.c.id).where(streams.c.session_id == bindparam("session"), streams.c.ended_at.is_(None)))
_IN_TURN = select(func.pg_advisory_xact_lock(func.hashtextextended(bindparam("key"), 0)))
_COUNT_OPEN = select(func.count().filter(streams.c.user_id == bindparam("user")), func.count()).where(
    streams.c.ended_at.is_(None)
)
_END = Fixed(
    update(streams)
    .where(
        streams.c.id == bindparam("stream"),
        streams.c.ended_at.is_(None),
        streams.c.epoch == bindparam("producer_epoch"),
    )
    .values(ended_at=bindparam("at"), ending=bindparam("end"))
)
_SETTLE = Fixed(
    update(streams)
    .where(streams.c.id == bindparam("stream"), streams.c.settlement.is_(None))
    .values(settlement=bindparam("answered"))
)
_CLOSE = Fixed(update(streams).where(streams.c.id == bindparam("stream")).values(closed_at=bindparam("at")))


# ── Chat sessions ───────────────────────────────────────────────────────────────────────────────────────────────────


def add_session(connection: Connection, session: ChatSession) -> None:
    """Keep a new chat session."""
    connection.execute(_ADD_SESSION, asdict(session))


def find_session(connection: Connection, session_id: SessionId, *, user_id: UserId) -> ChatSession | None:
    """The user's chat session of that id; None for somebody else's."""
    row = _SESSION.row(connection, {"session": session_id, "user": user_id})
    return None if row is None else ChatSession(**dict(zip(_OF_SESSION, row, strict=True)))


def hold_session(connection: Connection, session_id: SessionId) -> None:
    """Keep others from beginning a stream in it until the transaction ends, where writers run side by side."""
    connection.execute(_HOLD, {"session": session_id})


def list_sessions(
    connection: Connection, *, user_id: UserId, text: str | None, offset: int, limit: int
) -> tuple[list[ChatSession], int]:
    """A page of the user's chat sessions that contain `text`, last used first; and how many there are in all."""
    condition = chat_sessions.c.user_id == user_id
    if text:
        spoken = select(messages.c.session_id).where(messages.c.content.icontains(text, autoescape=True))
        condition &= or_(chat_sessions.c.title.icontains(text, autoescape=True), chat_sessions.c.id.in_(spoken))
    total = connection.execute(select(func.count()).select_from(chat_sessions).where(condition)).scalar_one()
    order = (chat_sessions.c.updated_at.desc(), chat_sessions.c.id)
    rows = connection.execute(select(chat_sessions).where(condition).order_by(*order).offset(offset).limit(limit))
    return [ChatSession(**row._asdict()) for row in rows], total


def change_session(connection: Connection, session_id: SessionId, **values: object) -> None:
    """Set columns of a chat session."""
    bound = {f"new_{name}": value for name, value in values.items()}
    _changing(tuple(values)).run(connection, {"session": session_id, **bound})


@cache
def _changing(columns: tuple[str, ...]) -> Fixed:
    """Built once for each set of columns, of which there are few."""
    statement = update(chat_sessions).where(chat_sessions.c.id == bindparam("session"))
    return Fixed(statement.values({name: bindparam(f"new_{name}") for name in columns}))


def remove_session(connection: Connection, session_id: SessionId) -> None:
    """Forget a chat session and its messages; the records of its streams stay, for the books."""
    connection.execute(delete(messages).where(messages.c.session_id == session_id))
    connection.execute(delete(chat_sessions).where(chat_sessions.c.id == session_id))


# ── Messages ────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_message(connection: Connection, session_id: SessionId, message: Message) -> None:
    """Append a message to a chat session."""
    _ADD_MESSAGE.run(connection, {"session_id": session_id, **{name: getattr(message, name) for name in _OF_MESSAGE}})


def list_messages(connection: Connection, session_id: SessionId, *, most: int = ALL_MESSAGES) -> list[Message]:
    """The messages of a chat session, oldest first, and so many at most."""
    rows = _MESSAGES.rows(connection, {"session": session_id, "most": most})
    return [Message(**dict(zip(_OF_MESSAGE, row, strict=True))) for row in rows]


def answer_of(connection: Connection, stream_id: StreamId) -> str:
    """The answer that a stream left behind; empty when it left none."""
    query = select(messages.c.content).where(messages.c.stream_id == stream_id, messages.c.role == "assistant")
    return connection.execute(query).scalar_one_or_none() or ""


# ── Streams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_stream(connection: Connection, stream: Stream) -> None:
    """Keep a new stream. The table refuses a second open stream in one chat session (IntegrityError)."""
    _ADD_STREAM.run(connection, {name: getattr(stream, name) for name in _NEW})


def forget_stream(connection: Connection, stream_id: StreamId) -> None:
    """Undo `add_stream` and the message that came with it: the turn never began."""
    connection.execute(delete(messages).where(messages.c.stream_id == stream_id))
    connection.execute(delete(streams).where(streams.c.id == stream_id, streams.c.ended_at.is_(None)))


def find_stream(connection: Connection, stream_id: StreamId) -> Stream | None:
    """The stream of that id."""
    row = connection.execute(_STREAM, {"stream": stream_id}).one_or_none()
    return None if row is None else _stream(row)


def open_stream(connection: Connection, session_id: SessionId) -> StreamId | None:
    """The stream that still runs in a chat session."""
    row = _OPEN.row(connection, {"session": session_id})
    return None if row is None else StreamId(row[0])


def count_open(connection: Connection, user_id: UserId) -> tuple[int, int]:
    """How many streams of the user are open, and how many in all.

    Two transactions that count for one user follow each other, so that the second one sees what the first adds.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(_IN_TURN, {"key": f"streams of {user_id}"})
    mine, in_all = connection.execute(_COUNT_OPEN, {"user": user_id}).one()
    return mine, in_all


def latest_stream(connection: Connection, session_id: SessionId) -> Stream | None:
    """The stream that runs in a chat session, or ran last; None too once the chat session is deleted."""
    query = (
        select(streams)
        .join(chat_sessions, chat_sessions.c.id == streams.c.session_id)
        .where(streams.c.session_id == session_id)
        .order_by(streams.c.created_at.desc(), streams.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _stream(row)


def running_streams(connection: Connection, *, limit: int) -> list[Stream]:
    """Streams that may still be generating, newest first."""
    query = select(streams).where(streams.c.ended_at.is_(None)).order_by(streams.c.created_at.desc()).limit(limit)
    return [_stream(row) for row in connection.execute(query)]


def session_streams(connection: Connection, session_id: SessionId) -> list[Stream]:
    """All streams of a chat session, oldest first."""
    query = select(streams).where(streams.c.session_id == session_id).order_by(streams.c.created_at, streams.c.id)
    return [_stream(row) for row in connection.execute(query)]


def claim_stream(connection: Connection, stream_id: StreamId, *, epoch: int) -> bool:
    """Fence every earlier producer of an open stream; False if it has ended or a later epoch holds it."""
    statement = update(streams).where(streams.c.id == stream_id, streams.c.ended_at.is_(None), streams.c.epoch <= epoch)
    return connection.execute(statement.values(epoch=epoch)).rowcount == 1


def move_stream(connection: Connection, stream: Stream, *, epoch: int) -> bool:
    """Record the model that took an open stream over, and its prompt; False if it has ended or another holds it."""
    held = (streams.c.id == stream.id, streams.c.ended_at.is_(None), streams.c.epoch == epoch)
    names = ("model_id", "fallback_applied", "input_tokens")
    moved = update(streams).where(*held).values({name: getattr(stream, name) for name in names})
    return connection.execute(moved).rowcount == 1


def end_stream(connection: Connection, stream_id: StreamId, ending: Ending, *, epoch: int) -> bool:
    """Record how a stream ended; False if it already has, or another producer holds it (S5)."""
    values = {"stream": stream_id, "producer_epoch": epoch, "at": ending.ended_at, "end": _dump(ending)}
    return _END.run(connection, values) == 1


def settle_stream(connection: Connection, stream_id: StreamId, settlement: Settlement) -> None:
    """Record what accounting answered."""
    _SETTLE.run(connection, {"stream": stream_id, "answered": json.dumps(settlement.stored())})


def close_stream(connection: Connection, stream_id: StreamId, *, at: int) -> None:
    """Record that the log of a stream is closed."""
    _CLOSE.run(connection, {"stream": stream_id, "at": at})


def unfinished_streams(connection: Connection, *, after: tuple[int, str], limit: int) -> Sequence[Stream]:
    """Streams with something left to do: not ended, not settled, or with a log that is not closed.

    Oldest first, behind the one that was created at `after[0]` with the id `after[1]`.
    """
    left = or_(streams.c.closed_at.is_(None), streams.c.settlement.is_(None))
    later = tuple_(streams.c.created_at, streams.c.id) > tuple_(literal(after[0]), literal(after[1]))
    query = select(streams).where(left, later).order_by(streams.c.created_at, streams.c.id).limit(limit)
    return [_stream(row) for row in connection.execute(query)]


def _dump(ending: Ending) -> str:
    return json.dumps(asdict(ending))


def _load(text: str) -> Ending:
    stored: dict[str, Any] = json.loads(text)
    return Ending(
        **{
            **stored,
            "outcome": Outcome(stored["outcome"]),
            "usage": Usage(**stored["usage"]),
            "usage_source": UsageSource(stored["usage_source"]),
        }
    )


def _stream(row: Row[Any]) -> Stream:
    values = row._asdict()
    del values["ended_at"]
    ending, settlement = values.pop("ending"), values.pop("settlement")
    return Stream(
        **values,
        ending=None if ending is None else _load(ending),
        settlement=None if settlement is None else Settlement.restore(json.loads(settlement)),
    )

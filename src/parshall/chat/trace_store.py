"""Traces of headers as they are kept, and the switches that have them made; bounded in size, count and time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Row,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
)

from parshall.chat.store import metadata
from parshall.kernel.clock import DAY
from parshall.kernel.exchange import Document, shortened

TRACES_MAX = 5_000
"""Kept at most, of all streams; the oldest go first."""
KEPT_MICROSECONDS = DAY
DOCUMENT_BYTES_MAX = 64 * 1024
SHOWN_MAX = 500
"""Of one stream: requests and calls, the newest ones."""
SWITCHES_MAX = 100
_CHARS_OF_A_LARGE_ONE = 60
_FIELDS_OF_A_LARGE_ONE = 20

traces = Table(
    "header_traces",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("parent", String(32)),
    Column("stream_id", String(64)),
    Column("at", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
)
switches = Table(
    "header_switches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user_id", String(64)),
    Column("stream_id", String(64)),
    Column("set_by", String(255), nullable=False),
    Column("set_at", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
)

_ADD = insert(traces)
_SET = insert(switches)
_IN_FORCE = select(switches).where(switches.c.until > bindparam("now")).order_by(switches.c.set_at, switches.c.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Until when the requests of a user, or those about a stream, are traced, and who wants that."""

    id: str
    user_id: str | None
    stream_id: str | None
    set_by: str
    set_at: int
    until: int


# ── Traces ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_traces(connection: Connection, documents: Sequence[Document]) -> None:
    """Keep some."""
    connection.execute(
        _ADD,
        [
            {
                "id": each["id"],
                "parent": each["parent"],
                "stream_id": each["streamingSessionId"],
                "at": each["at"],
                "document": fitted(each),
            }
            for each in documents
        ],
    )


def list_traces(connection: Connection, named: str, *, since: int) -> list[Document]:
    """The requests about a stream, or the one with that id, and what was called for them; eldest first."""
    own = or_(traces.c.stream_id == named, traces.c.id == named, traces.c.parent == named)
    newest = select(traces.c.document, traces.c.at).where(own, traces.c.at > since)
    rows = connection.execute(newest.order_by(traces.c.at.desc(), traces.c.id.desc()).limit(SHOWN_MAX))
    return [msgspec.json.decode(row.document) for row in reversed(rows.all())]


def recent_traces(connection: Connection, *, since: int, limit: int) -> list[Document]:
    """The newest requests, newest first."""
    statement = select(traces.c.document).where(traces.c.at > since, traces.c.parent.is_(None))
    rows = connection.execute(statement.order_by(traces.c.at.desc(), traces.c.id.desc()).limit(limit))
    return [msgspec.json.decode(row.document) for row in rows]


def forget_traces(connection: Connection, *, now: int) -> None:
    """Forget what is older than KEPT_MICROSECONDS, what is more than TRACES_MAX, and switches that are over."""
    connection.execute(delete(switches).where(switches.c.until <= now))
    connection.execute(delete(traces).where(traces.c.at <= now - KEPT_MICROSECONDS))
    if (connection.scalar(select(func.count()).select_from(traces)) or 0) > TRACES_MAX:
        order = select(traces.c.at).order_by(traces.c.at.desc()).offset(TRACES_MAX).limit(1)
        eldest = connection.scalar(order)
        if eldest is not None:
            connection.execute(delete(traces).where(traces.c.at <= eldest))


def fitted(document: Document) -> str:
    """The document as JSON of at most DOCUMENT_BYTES_MAX; what is too large loses the ends of values, then fields."""
    text = msgspec.json.encode(document)
    if len(text) > DOCUMENT_BYTES_MAX:
        text = msgspec.json.encode(_smaller(document, _CHARS_OF_A_LARGE_ONE, None))
    if len(text) > DOCUMENT_BYTES_MAX:
        text = msgspec.json.encode(_smaller(document, _CHARS_OF_A_LARGE_ONE, _FIELDS_OF_A_LARGE_ONE))
    return text.decode()


def _smaller(value: Any, characters: int, fields: int | None) -> Any:
    if isinstance(value, dict):
        return {name: _smaller(inner, characters, fields) for name, inner in value.items()}
    if isinstance(value, list):
        return [_smaller(inner, characters, fields) for inner in value[:fields]]
    return shortened(value, characters) if isinstance(value, str) and len(value) > 2 * characters else value


# ── Switches ────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_switch(connection: Connection, switch: Switch) -> None:
    """Trace from now on."""
    connection.execute(_SET, {column.name: getattr(switch, column.name) for column in switches.c})


def switches_in_force(connection: Connection, *, now: int) -> list[Switch]:
    """Those that are on, eldest first."""
    return [_switch(row) for row in connection.execute(_IN_FORCE, {"now": now})]


def remove_switches(connection: Connection, named: str | None, *, now: int) -> list[Switch]:
    """Turn off one by its id, those of a user or a stream, or all (None); which they were. Old ones go as well."""
    found = [
        each
        for each in switches_in_force(connection, now=now)
        if named is None or named in (each.id, each.user_id, each.stream_id)
    ]
    ids = [each.id for each in found]
    connection.execute(delete(switches).where(or_(switches.c.id.in_(ids), switches.c.until <= now)))
    return found


def _switch(row: Row[Any]) -> Switch:
    return Switch(**row._asdict())

"""Usage as the database adds it up: ended reservations and recorded use, by service, day, model and user."""

import json
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Float,
    Select,
    Subquery,
    Table,
    cast,
    func,
    insert,
    literal_column,
    select,
    union_all,
)

from parshall.accounting.activity import CHAT, GROUPS_MAX, RECENT_MAX, Groups, Record, Recorded, Report, Span, Sum
from parshall.accounting.tables import reservations, usage_records
from parshall.kernel.clock import DAY, rfc3339
from parshall.kernel.credits import MICRO

_MICRO: ColumnElement[int] = literal_column(str(MICRO))
_DAY: ColumnElement[int] = literal_column(str(DAY))
"""Written out: to PostgreSQL an expression in GROUP BY is another one than in SELECT where both have parameters."""


def add_record(connection: Connection, recorded: Recorded) -> None:
    """Keep what a service recorded."""
    record = recorded.record
    values = {name: getattr(record, name) for name in Record.__slots__}
    metadata = json.dumps(recorded.metadata, separators=(",", ":"), allow_nan=False)
    connection.execute(insert(usage_records).values(**values, metadata=metadata))


def report(connection: Connection, user_id: str | None, span: Span) -> Report:
    """All of a span, of one user or of everybody; what each statement returns is bounded, whatever there is."""
    used = union_all(_streams(user_id, span), _recorded(user_id, span)).subquery("used")
    total = _total(connection, select(*_sums(used)))
    by_user = None if user_id is not None else _groups(connection, used, used.c.user_id)
    return Report(
        span=span,
        total=total,
        by_service=_groups(connection, used, used.c.service),
        by_day=_days(connection, used),
        by_model=_groups(connection, used, used.c.model_id),
        by_user=by_user,
        recent=_recent(connection, user_id, span),
    )


# ── What is added up ────────────────────────────────────────────────────────────────────────────────────────────────


def _streams(user_id: str | None, span: Span) -> Select[Any]:
    """Reservations by the instant at which they ended; those that were voided or expired cost nothing."""
    c = reservations.c
    query = select(
        c.id,
        c.user_id,
        literal_column(f"'{CHAT}'").label("service"),
        c.outcome.label("operation"),
        c.model_id,
        func.coalesce(c.used_input_tokens, 0).label("input_tokens"),
        func.coalesce(c.used_output_tokens, 0).label("output_tokens"),
        func.coalesce(c.charged, 0).label("credits"),
        c.ended_at.label("at"),
    )
    query = _within(query, reservations, c.ended_at, user_id, span)
    # What ends was made before: so the index on user and creation bounds the search too.
    return query if user_id is None else query.where(c.created_at < span.until)


def _recorded(user_id: str | None, span: Span) -> Select[Any]:
    query = select(*(usage_records.c[name] for name in Record.__slots__))
    return _within(query, usage_records, usage_records.c.at, user_id, span)


def _within(query: Select[Any], table: Table, at: Column[int], user_id: str | None, span: Span) -> Select[Any]:
    query = query.where(at >= span.since, at < span.until)
    return query if user_id is None else query.where(table.c.user_id == user_id)


# ── Sums ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _sums(used: Subquery) -> tuple[ColumnElement[Any], ...]:
    """Whole credits and microcredits apart: so no sum of any number of records leaves 64 bits, which SQLite refuses."""
    return (
        func.count().label("records"),
        func.sum(used.c.credits // _MICRO),
        func.sum(used.c.credits % _MICRO),
        func.sum(used.c.input_tokens),
        func.sum(used.c.output_tokens),
    )


def _sum(row: Any) -> Sum:
    records, whole, rest, read, written = (int(value or 0) for value in row)
    return Sum(records, whole * MICRO + rest, read, written)


def _total(connection: Connection, query: Select[Any]) -> Sum:
    return _sum(connection.execute(query).one())


def _groups(connection: Connection, used: Subquery, key: ColumnElement[Any]) -> Groups:
    """The sums of the most credits, dearest first; records that have no such thing (no model) are left out."""
    known = select(*_sums(used)).where(key.is_not(None))
    dearest = func.sum(cast(used.c.credits, Float)).desc()
    ranked = known.add_columns(key).group_by(key).order_by(dearest, key).limit(GROUPS_MAX + 1)
    rows = connection.execute(ranked).all()
    named = {row[-1]: _sum(row[:-1]) for row in rows[:GROUPS_MAX]}
    if len(rows) <= GROUPS_MAX:
        return Groups(named=named)
    rest = _total(connection, known)
    for each in named.values():
        rest -= each
    return Groups(named=named, rest=rest)


def _days(connection: Connection, used: Subquery) -> Groups:
    """By day (UTC), oldest first; their number is bounded by the span."""
    day = used.c.at // _DAY
    rows = connection.execute(select(*_sums(used), day.label("day")).group_by(day).order_by(day))
    return Groups(named={rfc3339(int(row[-1]) * DAY)[:10]: _sum(row[:-1]) for row in rows})


def _recent(connection: Connection, user_id: str | None, span: Span) -> list[Record]:
    """The newest of both tables: each gives as many as are wanted, in the order of its index."""
    found: list[Record] = []
    for query, at in (
        (_streams(user_id, span), reservations.c.ended_at),
        (_recorded(user_id, span), usage_records.c.at),
    ):
        rows = connection.execute(query.order_by(at.desc()).limit(RECENT_MAX)).mappings()
        found += [Record(**{name: row[name] for name in Record.__slots__}) for row in rows]
    return sorted(found, key=lambda each: (-each.at, each.id))[:RECENT_MAX]

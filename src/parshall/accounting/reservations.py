"""Reservations as rows: what they hold of which grant, the slices they were answered with, and how they ended."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, bindparam, insert, literal_column, or_, select, update

from parshall.accounting.model import Part, Reservation, State
from parshall.accounting.tables import reservation_parts, reservations, slices
from parshall.kernel.credits import Credits
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage

_ACTIVE: ColumnElement[str] = literal_column("'active'")
"""Written out, not bound: only so do the planners see that the partial index of the migration applies."""

_Row = TypeVar("_Row", bound=tuple[Any, ...])

# What every stream reads many times is built once: building a statement costs more than running it.
_FIND = select(reservations).where(reservations.c.id == bindparam("stream"))
_PARTS = (
    select(reservation_parts.c.grant_id, reservation_parts.c.amount)
    .where(reservation_parts.c.reservation_id == bindparam("stream"))
    .order_by(reservation_parts.c.position)
)
_SLICE = select(slices).where(slices.c.reservation_id == bindparam("stream"), slices.c.step == bindparam("step"))


def add_reservation(connection: Connection, reservation: Reservation) -> None:
    """A new, active reservation."""
    kept = ("id", "account_id", "model_id", "price_version", "reserved", "step", "created_at", "expires_at")
    tokens = ("input_tokens", "output_tokens", "output_tokens_max")
    values = {name: getattr(reservation, name) for name in kept + tokens}
    connection.execute(insert(reservations).values(**values, state=State.ACTIVE.value))


def find_reservation(connection: Connection, stream_id: StreamId) -> Reservation | None:
    """The reservation of a stream, if there is one."""
    row = connection.execute(_FIND, {"stream": stream_id}).one_or_none()
    return None if row is None else _reservation(row)


def grow(connection: Connection, reservation: Reservation, *, output_tokens: int, extra: int, expires_at: int) -> bool:
    """One step further: all output it now pays for, `extra` more microcredits held. False if it has moved on."""
    row = connection.execute(
        update(reservations)
        .where(
            reservations.c.id == reservation.id,
            reservations.c.state == State.ACTIVE.value,
            reservations.c.step == reservation.step,
        )
        .values(
            step=reservations.c.step + 1,
            output_tokens=output_tokens,
            reserved=reservations.c.reserved + extra,
            expires_at=expires_at,
        )
        .returning(reservations.c.id)
    ).one_or_none()
    return row is not None


def end(connection: Connection, stream_id: StreamId, *, state: State, settlement: Settlement, at: int) -> bool:
    """End an active reservation without usage, voided or expired. False if it has ended already (M3)."""
    row = connection.execute(
        update(reservations)
        .where(reservations.c.id == stream_id, reservations.c.state == State.ACTIVE.value)
        .values(state=state.value, ended_at=at, settlement=_stored(settlement))
        .returning(reservations.c.id)
    ).one_or_none()
    return row is not None


def end_with_usage(
    connection: Connection,
    stream_id: StreamId,
    *,
    state: State,
    settlement: Settlement,
    usage: Usage,
    source: str,
    fingerprint: str,
    at: int,
) -> bool:
    """Settle a reservation that is active, or expired and never settled. False if it has ended already (M3)."""
    row = connection.execute(
        update(reservations)
        .where(
            reservations.c.id == stream_id,
            reservations.c.state.in_((State.ACTIVE.value, State.EXPIRED.value)),
            reservations.c.end_hash.is_(None),
        )
        .values(
            state=state.value,
            ended_at=at,
            reserved=settlement.reserved,
            settlement=_stored(settlement),
            end_hash=fingerprint,
            usage_source=source,
            used_input_tokens=usage.input_tokens,
            used_cached_input_tokens=usage.cached_input_tokens,
            used_output_tokens=usage.output_tokens,
            used_reasoning_tokens=usage.reasoning_tokens,
        )
        .returning(reservations.c.id)
    ).one_or_none()
    return row is not None


def _stored(settlement: Settlement) -> str:
    return json.dumps(settlement.stored(), separators=(",", ":"))


# ── Parts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_parts(connection: Connection, stream_id: StreamId, parts: Sequence[Part]) -> None:
    """Append what was taken; a first part from the grant that gave last joins its row, so that rows stay few."""
    held = list(find_parts(connection, stream_id))
    position = len(held)
    for part in parts:
        if held and held[-1].grant_id == part.grant_id:
            connection.execute(
                update(reservation_parts)
                .where(reservation_parts.c.reservation_id == stream_id, reservation_parts.c.position == position - 1)
                .values(amount=reservation_parts.c.amount + part.amount)
            )
            continue
        connection.execute(
            insert(reservation_parts).values(
                reservation_id=stream_id, position=position, grant_id=part.grant_id, amount=part.amount
            )
        )
        held.append(part)
        position += 1


def find_parts(connection: Connection, stream_id: StreamId) -> tuple[Part, ...]:
    """All that the reservation ever took, in order."""
    rows = connection.execute(_PARTS, {"stream": stream_id})
    return tuple(Part(grant_id=row.grant_id, amount=row.amount) for row in rows)


# ── Slices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_slice(connection: Connection, stream_id: StreamId, granted: Slice, *, step: int, fingerprint: str) -> None:
    """Remember the answer to a reservation (step 0) or an extension."""
    connection.execute(
        insert(slices).values(
            reservation_id=stream_id,
            step=step,
            hash=fingerprint,
            reserved=granted.reserved,
            output_tokens=granted.output_tokens,
            expires_at=granted.expires_at,
            final=int(granted.final),
        )
    )


def find_slice(connection: Connection, stream_id: StreamId, *, step: int) -> tuple[str, Slice] | None:
    """The fingerprint of the request at that step and its first answer, if it was answered."""
    row = connection.execute(_SLICE, {"stream": stream_id, "step": step}).one_or_none()
    if row is None:
        return None
    granted = Slice(
        reserved=Credits(row.reserved),
        output_tokens=row.output_tokens,
        expires_at=row.expires_at,
        final=bool(row.final),
    )
    return row.hash, granted


# ── Lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def due_reservations(connection: Connection, *, at: int, limit: int) -> list[StreamId]:
    """Active reservations whose time is up, in the order in which to hold their accounts."""
    rows = connection.execute(
        select(reservations.c.id)
        .where(reservations.c.state == _ACTIVE, reservations.c.expires_at <= at)
        .order_by(reservations.c.account_id, reservations.c.id)
        .limit(limit)
    )
    return [StreamId(row.id) for row in rows]


def active_reservations(connection: Connection, account_id: UserId | None, *, limit: int) -> list[Reservation]:
    """Running reservations of one account or of all, newest first."""
    return _listed(connection, account_id, reservations.c.state == _ACTIVE, limit=limit)


def recent_reservations(
    connection: Connection, account_id: UserId | None, *, since: int, limit: int
) -> list[Reservation]:
    """Reservations of one account or of all that run or were made or ended since then, newest first."""
    lately = or_(reservations.c.state == _ACTIVE, reservations.c.created_at >= since, reservations.c.ended_at >= since)
    return _listed(connection, account_id, lately, limit=limit)


def _listed(
    connection: Connection, account_id: UserId | None, condition: ColumnElement[bool], *, limit: int
) -> list[Reservation]:
    query = select(reservations).where(condition)
    if account_id is not None:
        query = query.where(reservations.c.account_id == account_id)
    query = query.order_by(reservations.c.created_at.desc(), reservations.c.id.desc()).limit(limit)
    return [_reservation(row) for row in connection.execute(query)]


def _reservation(row: Row[_Row]) -> Reservation:
    plain = {name: row._mapping[name] for name in Reservation.__slots__ if name not in ("state", "usage", "settlement")}
    return Reservation(
        **plain,
        state=State(row.state),
        usage=_usage(row),
        settlement=None if row.settlement is None else Settlement.restore(json.loads(row.settlement)),
    )


def _usage(row: Row[_Row]) -> Usage | None:
    if row.used_input_tokens is None:
        return None
    return Usage(
        input_tokens=row.used_input_tokens,
        cached_input_tokens=row.used_cached_input_tokens,
        output_tokens=row.used_output_tokens,
        reasoning_tokens=row.used_reasoning_tokens,
    )

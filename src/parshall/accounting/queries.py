"""What is read of the books outside a batch: balances, statements, grants, lists of streams, prices, answered keys."""

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
)

from parshall.accounting.model import Account, Balance, Grant, Kind, PriceConflict, Reservation, State, Transfer
from parshall.accounting.pricing import ANY_MODEL, Price, PriceVersion
from parshall.accounting.tables import accounts, grants, idempotency, prices, reservations, slices, transfers
from parshall.kernel.clock import DAY
from parshall.kernel.credits import Credits
from parshall.kernel.errors import KeyReused, NotFound
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Slice

KEY_RETENTION = DAY
"""How long an idempotency key keeps its answer, in microseconds by the database's clock."""
FORGOTTEN_PER_TRANSACTION_MAX = 500

_NOTHING: ColumnElement[int] = literal_column("0")
_ACTIVE: ColumnElement[str] = literal_column("'active'")
"""Written out, not bound: only so do the planners see that the partial indexes of the migrations apply."""

_Row = TypeVar("_Row", bound=tuple[Any, ...])

# What runs often is built once: building a statement costs more than running it.
_IN_FORCE = (
    select(prices)
    .where(prices.c.model_id == bindparam("model"), prices.c.effective_from <= bindparam("instant"))
    .order_by(prices.c.effective_from.desc())
    .limit(1)
)
_GRANT = [column for column in grants.columns if column.name != "announced"]
_HELD = select(*_GRANT).where(grants.c.account_id == bindparam("account"), grants.c.remaining > _NOTHING)
_ACCOUNT = select(accounts.c.available, accounts.c.reserved).where(accounts.c.id == bindparam("account"))
_ENTRIES = (
    select(transfers)
    .where(transfers.c.account_id == bindparam("account"), transfers.c.number > bindparam("after"))
    .order_by(transfers.c.number)
    .limit(bindparam("most"))
)
_RESERVATION = select(reservations).where(reservations.c.id == bindparam("stream"))
_SLICE = select(slices).where(slices.c.reservation_id == bindparam("stream"), slices.c.step == bindparam("step"))
_DUE = (
    select(reservations.c.id)
    .where(reservations.c.state == _ACTIVE, reservations.c.expires_at <= bindparam("instant"))
    .order_by(reservations.c.expires_at)
    .limit(bindparam("most"))
)
_WITH_DUE_GRANTS = (
    select(grants.c.account_id)
    .where(grants.c.expires_at <= bindparam("instant"), grants.c.remaining > _NOTHING)
    .distinct()
    .limit(bindparam("most"))
)
_KEY = select(idempotency).where(idempotency.c.scope == bindparam("scope"), idempotency.c.key == bindparam("key"))
_FORGET = delete(idempotency).where(
    idempotency.c.scope == bindparam("scope"),
    idempotency.c.key == bindparam("key"),
    idempotency.c.created_at <= bindparam("before"),
)
_IDENTITY = (idempotency.c.scope, idempotency.c.key)
_FORGET_OLDEST = delete(idempotency).where(
    idempotency.c.created_at <= bindparam("before"),
    tuple_(*_IDENTITY).in_(
        select(*_IDENTITY)
        .where(idempotency.c.created_at <= bindparam("before"))
        .order_by(idempotency.c.created_at)
        .limit(FORGOTTEN_PER_TRANSACTION_MAX)
    ),
)
_VERSION = select(prices).where(prices.c.version == bindparam("version"))

# ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_account(connection: Connection, account_id: str) -> Account:
    """The account; an empty one where it was never opened."""
    row = connection.execute(_ACCOUNT, {"account": account_id}).one_or_none()
    available, reserved = (0, 0) if row is None else row
    return Account(id=account_id, available=Credits(available), reserved=Credits(reserved))


def balance(connection: Connection, account_id: str, *, at: int) -> Balance:
    """What the account holds at that instant; a grant that is due counts as gone even before it is booked so."""
    held = [grant for grant in held_grants(connection, account_id) if not grant.due(at=at)]
    return Balance(
        account_id=account_id,
        available=Credits(sum(grant.remaining for grant in held)),
        reserved=find_account(connection, account_id).reserved,
        grants=tuple(held),
    )


def entries(connection: Connection, account_id: str, *, after: int, limit: int) -> list[Transfer]:
    """An account's transfers behind the one numbered `after`, oldest first, at most `limit`."""
    rows = connection.execute(_ENTRIES, {"account": account_id, "after": after, "most": limit})
    return [Transfer(row[0], row[1], Kind(row[2]), *row[3:]) for row in rows]


# ── Grants ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_grant(connection: Connection, grant_id: str) -> Grant:
    """The grant. Raises NotFound."""
    row = connection.execute(select(*_GRANT).where(grants.c.id == grant_id)).one_or_none()
    if row is None:
        raise NotFound("There is no such grant.")
    return _grant(row)


def held_grants(connection: Connection, account_id: str) -> list[Grant]:
    """The account's grants that still hold credits, due ones included, in order of use."""
    rows = connection.execute(_HELD, {"account": account_id})
    return sorted((_grant(row) for row in rows), key=lambda grant: grant.rank)


def accounts_with_due_grants(connection: Connection, *, at: int, limit: int) -> list[str]:
    """Accounts with a grant that has expired and still holds credits."""
    return list(connection.execute(_WITH_DUE_GRANTS, {"instant": at, "most": limit}).scalars())


def all_grants(connection: Connection, *, after: str | None, limit: int) -> list[Grant]:
    """Every account's grants, oldest first, behind the grant `after`. Raises NotFound for an unknown `after`."""
    query = select(*_GRANT).order_by(grants.c.created_at, grants.c.id).limit(limit)
    if after is not None:
        last = find_grant(connection, after)
        query = query.where(tuple_(grants.c.created_at, grants.c.id) > tuple_(last.created_at, last.id))
    return [_grant(row) for row in connection.execute(query)]


def _grant(row: Sequence[Any]) -> Grant:
    return Grant(*row)


# ── Reservations ────────────────────────────────────────────────────────────────────────────────────────────────────


def find_reservation(connection: Connection, stream_id: StreamId) -> Reservation | None:
    """The reservation of a stream, if there is one."""
    row = connection.execute(_RESERVATION, {"stream": stream_id}).one_or_none()
    return None if row is None else _reservation(row)


def slice_at(connection: Connection, stream_id: StreamId, step: int) -> tuple[int, Slice]:
    """What the extension numbered `step` asked for and its first answer."""
    row = connection.execute(_SLICE, {"stream": stream_id, "step": step}).one()
    granted = Slice(
        reserved=Credits(row.reserved),
        output_tokens=row.output_tokens,
        expires_at=row.expires_at,
        final=bool(row.final),
    )
    return row.asked, granted


def due_reservations(connection: Connection, *, at: int, limit: int) -> list[StreamId]:
    """Active reservations whose time is up, longest due first."""
    return list(connection.execute(_DUE, {"instant": at, "most": limit}).scalars())


def active_reservations(connection: Connection, user_id: str | None, *, limit: int) -> list[Reservation]:
    """Running reservations of one user or of all, newest first."""
    return _listed(connection, user_id, reservations.c.state == _ACTIVE, limit=limit)


def recent_reservations(connection: Connection, user_id: str | None, *, since: int, limit: int) -> list[Reservation]:
    """Reservations of one user or of all that run or were made or ended since then, newest first."""
    lately = or_(reservations.c.state == _ACTIVE, reservations.c.created_at >= since, reservations.c.ended_at >= since)
    return _listed(connection, user_id, lately, limit=limit)


def _listed(
    connection: Connection, user_id: str | None, condition: ColumnElement[bool], *, limit: int
) -> list[Reservation]:
    query = select(reservations).where(condition)
    if user_id is not None:
        query = query.where(reservations.c.user_id == user_id)
    query = query.order_by(reservations.c.created_at.desc(), reservations.c.id.desc()).limit(limit)
    return [_reservation(row) for row in connection.execute(query)]


def _reservation(row: Sequence[Any]) -> Reservation:
    found = Reservation(*row)
    found.state = State(found.state)
    return found


# ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def price_in_force(connection: Connection, model_id: str, *, at: int) -> PriceVersion | None:
    """The price of a model at that instant, or of any model where it has none of its own."""
    for named in (model_id, ANY_MODEL):
        row = connection.execute(_IN_FORCE, {"model": named, "instant": at}).one_or_none()
        if row is not None:
            return _price(row)
    return None


def find_price(connection: Connection, version: str) -> PriceVersion:
    """The price of a version that a reservation names."""
    return _price(connection.execute(_VERSION, {"version": version}).one())


def any_price(connection: Connection) -> bool:
    """Whether any price was ever set."""
    return connection.execute(select(prices.c.version).limit(1)).one_or_none() is not None


def current_prices(connection: Connection, *, at: int) -> list[PriceVersion]:
    """Per model the price in force at that instant and those to come."""
    older = prices.alias()
    in_force = (
        select(func.max(older.c.effective_from))
        .where(older.c.model_id == prices.c.model_id, older.c.effective_from <= at)
        .scalar_subquery()
    )
    rows = connection.execute(
        select(prices)
        .where(prices.c.effective_from >= func.coalesce(in_force, 0))
        .order_by(prices.c.model_id, prices.c.effective_from)
    )
    return [_price(row) for row in rows]


def add_price(connection: Connection, price: PriceVersion) -> PriceVersion:
    """Keep a price; the same one again changes nothing. Raises PriceConflict for another from the same instant."""
    known = connection.execute(_VERSION, {"version": price.version}).one_or_none()
    if known is not None:
        if _price(known).price != price.price:
            raise PriceConflict
        return _price(known)
    connection.execute(
        insert(prices).values(
            version=price.version,
            model_id=price.model_id,
            effective_from=price.effective_from,
            set_by=price.set_by,
            **{name: getattr(price.price, name) for name in Price.__slots__},
        )
    )
    return price


def _price(row: Row[_Row]) -> PriceVersion:
    return PriceVersion(
        version=row.version,
        model_id=row.model_id,
        effective_from=row.effective_from,
        price=Price(input=row.input, cached_input=row.cached_input, output=row.output, reasoning=row.reasoning),
        set_by=row.set_by,
    )


# ── Answered keys ───────────────────────────────────────────────────────────────────────────────────────────────────


def answered(connection: Connection, scope: str, key: str, *, fingerprint: str, at: int) -> str | None:
    """The body that this idempotency key was answered with, if it was. Raises KeyReused for another request (M4).

    One past its retention is as unknown as if it had been swept already, and is, to make room for its next use.
    """
    row = connection.execute(_KEY, {"scope": scope, "key": key}).one_or_none()
    if row is None:
        return None
    if row.created_at <= at - KEY_RETENTION:
        connection.execute(_FORGET, {"scope": scope, "key": key, "before": at - KEY_RETENTION})
        return None
    if row.hash != fingerprint:
        raise KeyReused("This Idempotency-Key was already used for another request; make a new one.")
    return str(row.body)


def keep_answer(
    connection: Connection, scope: str, key: str, *, fingerprint: str, status: int, body: str, at: int
) -> None:
    """Remember the answer to an idempotency key."""
    connection.execute(
        insert(idempotency).values(scope=scope, key=key, hash=fingerprint, status=status, body=body, created_at=at)
    )


def forget_answers(connection: Connection, *, at: int) -> int:
    """Delete the oldest keys past their retention, at most FORGOTTEN_PER_TRANSACTION_MAX; how many."""
    return connection.execute(_FORGET_OLDEST, {"before": at - KEY_RETENTION}).rowcount

"""Accounts, grants, transfers, prices and answered keys as rows; balances change nowhere but in `post`."""

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Row, bindparam, func, insert, literal_column, select, tuple_, update

from parshall.accounting.model import Account, Book, Grant, Kind, Movement, Part, PriceConflict, Transfer
from parshall.accounting.pricing import ANY_MODEL, Price, PriceVersion
from parshall.accounting.tables import accounts, grants, idempotency, prices, transfers
from parshall.kernel.credits import Credits
from parshall.kernel.errors import KeyReused, NotFound
from parshall.kernel.ids import UserId

_NOTHING: ColumnElement[int] = literal_column("0")
"""Written out, not bound: only so do the planners see that the partial indexes of the migration apply."""

_Row = TypeVar("_Row", bound=tuple[Any, ...])

# The statements that every stream runs many times are built once: building one costs more than running it.
_HOLD = (
    update(accounts)
    .where(accounts.c.id == bindparam("account"))
    .values(available=accounts.c.available)
    .returning(accounts.c.available, accounts.c.reserved)
)
_APPLY = (
    update(accounts)
    .where(
        accounts.c.id == bindparam("account"),
        accounts.c.available + bindparam("by") >= 0,
        accounts.c.reserved + bindparam("reserved_by") >= 0,
    )
    .values(
        available=accounts.c.available + bindparam("by"),
        reserved=accounts.c.reserved + bindparam("reserved_by"),
    )
    .returning(accounts.c.available)
)
_APPLY_TO_GRANT = (
    update(grants)
    .where(
        grants.c.id == bindparam("grant"),
        grants.c.account_id == bindparam("account"),
        grants.c.remaining + bindparam("by") >= 0,
        grants.c.remaining + bindparam("by") <= grants.c.amount,
    )
    .values(remaining=grants.c.remaining + bindparam("by"))
    .returning(grants.c.id)
)
_RECORD = insert(transfers).returning(transfers.c.id)
_IN_FORCE = (
    select(prices)
    .where(prices.c.model_id == bindparam("model"), prices.c.effective_from <= bindparam("instant"))
    .order_by(prices.c.effective_from.desc())
    .limit(1)
)
_HELD = select(grants).where(grants.c.account_id == bindparam("account"), grants.c.remaining > _NOTHING)

# ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def hold_account(connection: Connection, account_id: UserId, *, at: int) -> Account:
    """The account, opened if it is new, and locked until the transaction ends: the UPDATE serialises its writers."""
    row = connection.execute(_HOLD, {"account": account_id}).one_or_none()
    if row is None:
        connection.execute(insert(accounts).values(id=account_id, available=0, reserved=0, created_at=at))
        return Account(id=account_id, available=Credits(0), reserved=Credits(0))
    return Account(id=account_id, available=Credits(row.available), reserved=Credits(row.reserved))


def find_account(connection: Connection, account_id: UserId) -> Account:
    """The account; an empty one where it was never opened."""
    row = connection.execute(select(accounts).where(accounts.c.id == account_id)).one_or_none()
    if row is None:
        return Account(id=account_id, available=Credits(0), reserved=Credits(0))
    return Account(id=account_id, available=Credits(row.available), reserved=Credits(row.reserved))


# ── Transfers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def post(connection: Connection, account_id: UserId, movement: Movement, *, at: int) -> Transfer:
    """Record a movement and apply it to the account and the grant that it names, each guarded against overdraft (M2).

    Whoever posts has held the account and seen that the amount is there; that a guard refuses is a broken invariant.
    """
    available, reserved = movement.change_of(Book.AVAILABLE), movement.change_of(Book.RESERVED)
    if available and movement.grant_id is not None:
        _change_grant(connection, account_id, movement.grant_id, available)
    row = connection.execute(_APPLY, {"account": account_id, "by": available, "reserved_by": reserved}).one_or_none()
    if row is None:
        raise AssertionError(f"{movement.kind} of {movement.amount} would overdraw account {account_id}")
    number = connection.execute(
        _RECORD,
        {
            "account_id": account_id,
            "grant_id": movement.grant_id,
            "kind": movement.kind.value,
            "amount": movement.amount,
            "debit": movement.debit.value,
            "credit": movement.credit.value,
            "reservation_id": movement.reservation_id,
            "at": at,
            "available_after": row.available,
            "note": movement.note,
        },
    ).scalar_one()
    return Transfer(id=number, account_id=account_id, at=at, available_after=row.available, movement=movement)


def _change_grant(connection: Connection, account_id: UserId, grant_id: str, change: int) -> None:
    asked = {"grant": grant_id, "account": account_id, "by": change}
    changed = connection.execute(_APPLY_TO_GRANT, asked).one_or_none()
    if changed is None:
        raise AssertionError(f"grant {grant_id} cannot change by {change}")


def entries(connection: Connection, account_id: UserId, *, after: int, limit: int) -> list[Transfer]:
    """An account's transfers behind the one numbered `after`, oldest first, at most `limit`."""
    rows = connection.execute(
        select(transfers)
        .where(transfers.c.account_id == account_id, transfers.c.id > after)
        .order_by(transfers.c.id)
        .limit(limit)
    )
    return [_transfer(row) for row in rows]


def _transfer(row: Row[_Row]) -> Transfer:
    return Transfer(
        id=row.id,
        account_id=row.account_id,
        at=row.at,
        available_after=row.available_after,
        movement=Movement(
            kind=Kind(row.kind),
            amount=row.amount,
            debit=Book(row.debit),
            credit=Book(row.credit),
            grant_id=row.grant_id,
            reservation_id=row.reservation_id,
            note=row.note,
        ),
    )


# ── Grants ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def add_grant(connection: Connection, grant: Grant) -> None:
    """A new grant, still empty: the posting of its movement fills it."""
    connection.execute(
        insert(grants).values({name: getattr(grant, name) for name in Grant.__slots__} | {"remaining": 0})
    )


def find_grant(connection: Connection, grant_id: str) -> Grant:
    """The grant. Raises NotFound."""
    row = connection.execute(select(grants).where(grants.c.id == grant_id)).one_or_none()
    if row is None:
        raise NotFound("There is no such grant.")
    return _grant(row)


def held_grants(connection: Connection, account_id: UserId) -> list[Grant]:
    """The account's grants that still hold credits, due ones included, in order of use."""
    rows = connection.execute(_HELD, {"account": account_id})
    return sorted((_grant(row) for row in rows), key=lambda grant: grant.rank)


def accounts_with_due_grants(connection: Connection, *, at: int, limit: int) -> list[UserId]:
    """Accounts with a grant that has expired and still holds credits, in the order in which to hold them."""
    rows = connection.execute(
        select(grants.c.account_id)
        .where(grants.c.expires_at <= at, grants.c.remaining > _NOTHING)
        .distinct()
        .order_by(grants.c.account_id)
        .limit(limit)
    )
    return [UserId(row.account_id) for row in rows]


def all_grants(connection: Connection, *, after: str | None, limit: int) -> list[Grant]:
    """Every account's grants, oldest first, behind the grant `after`. Raises NotFound for an unknown `after`."""
    query = select(grants).order_by(grants.c.created_at, grants.c.id).limit(limit)
    if after is not None:
        last = find_grant(connection, after)
        query = query.where(tuple_(grants.c.created_at, grants.c.id) > tuple_(last.created_at, last.id))
    return [_grant(row) for row in connection.execute(query)]


def _grant(row: Row[_Row]) -> Grant:
    return Grant(**row._mapping)


def expire_grants(connection: Connection, account_id: UserId, *, at: int) -> int:
    """Book every due grant of a held account as expired; how many."""
    due = [grant for grant in held_grants(connection, account_id) if grant.due(at=at)]
    for grant in due:
        expire = Movement(
            kind=Kind.EXPIRE,
            amount=grant.remaining,
            debit=Book.AVAILABLE,
            credit=Book.EXPIRED,
            grant_id=grant.id,
        )
        post(connection, account_id, expire, at=at)
    return len(due)


def move_parts(
    connection: Connection,
    account_id: UserId,
    parts: tuple[Part, ...],
    movement: tuple[Kind, Book, Book],
    *,
    at: int,
    reservation_id: str | None = None,
    note: str = "",
) -> list[int]:
    """Post one transfer per part, as `movement` (kind, debit, credit) says; their numbers."""
    kind, debit, credit = movement
    posted: list[int] = []
    for part in parts:
        moved = Movement(
            kind=kind,
            amount=part.amount,
            debit=debit,
            credit=credit,
            grant_id=part.grant_id,
            reservation_id=reservation_id,
            note=note,
        )
        posted.append(post(connection, account_id, moved, at=at).id)
    return posted


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
    return _price(connection.execute(select(prices).where(prices.c.version == version)).one())


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
    known = connection.execute(select(prices).where(prices.c.version == price.version)).one_or_none()
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


def answered(connection: Connection, scope: str, key: str, *, fingerprint: str) -> str | None:
    """The body that this idempotency key was answered with, if it was. Raises KeyReused for another request (M4)."""
    row = connection.execute(
        select(idempotency).where(idempotency.c.scope == scope, idempotency.c.key == key)
    ).one_or_none()
    if row is None:
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

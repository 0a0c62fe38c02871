"""The working set of a batch, read from the tables behind locks and written back in a few statements."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection

from parshall.accounting.books import Books, HeldAccount, HeldGrant, read_parts
from parshall.accounting.model import Grant, Reservation, State
from parshall.accounting.organisation import member_of_row
from parshall.accounting.queries import slice_at
from parshall.accounting.tables import accounts, grants, members, reservations, slices, transfers
from parshall.kernel.bulk import Bulk, fetch
from parshall.kernel.ids import StreamId, UserId

_ACCOUNTS = Bulk(accounts, key="id")
_GRANTS = Bulk(grants, key="id")
_GRANTS_OF = Bulk(grants, key="account_id")
_MEMBERS = Bulk(members, key="user_id")
_RESERVATIONS = Bulk(reservations, key="id")
_SLICES = Bulk(slices, key="reservation_id")
_TRANSFERS = Bulk(transfers, key="account_id")

_HOLD = (
    "SELECT id, available, reserved, number, head, created_at FROM accounts WHERE id IN ("
    "SELECT each FROM {list} UNION SELECT account_id FROM reservations WHERE id IN {keys} "
    "UNION SELECT organisation_id FROM members WHERE user_id IN {keys}) ORDER BY id"
)
"""Everybody holds accounts in the order of their ids, so that two batches never wait for each other."""

_FRESH = attrgetter(*(column.name for column in reservations.columns if not column.nullable))
"""What a reservation has from the start; absent columns are left out, for binding them costs as much as values."""
_STATES = {state.value: state for state in State}
_ENDS = (
    *("state", "reserved", "parts", "output_tokens", "step", "expires_at", "counted_on", "ended_at"),
    *("used_input_tokens", "used_cached_input_tokens", "used_output_tokens", "used_reasoning_tokens"),
    *("usage_source", "outcome", "charged", "uncollected", "balance_after", "transfers_from", "transfers_to"),
)
_CHANGED_RESERVATION = attrgetter("id", *_ENDS)
_MODEL = ("model_id", "price_version", "input_tokens", "output_tokens_max", "slice_tokens", "slice_tokens_min")
_REPRICED_RESERVATION = attrgetter("id", *_MODEL)
_BALANCES = ("available", "reserved", "number", "head")
_CHANGED_ACCOUNT = attrgetter("id", *_BALANCES)
_MEMBER = attrgetter(*(column.name for column in members.columns))
_TERMS = ("role", "limit_day", "limit_month", "limit_total", "day", "day_used", "month", "month_used", "total_used")
_CHANGED_MEMBER = attrgetter("user_id", *_TERMS)

# ── Load ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def load(
    books: Books,
    *,
    users: Iterable[UserId],
    accounts: Iterable[str],
    streams: Sequence[StreamId],
    steps: Iterable[tuple[StreamId, int]],
    memberships: Iterable[UserId] = (),
) -> None:
    """Hold every account that these users, streams and ids stand for, then read all that hangs on them.

    Of the people in `memberships` only that is read, and nothing held.

    The accounts come first: only once they are held can nothing else of theirs change. What is due by then is
    booked as expired before any operation sees it.
    """
    connection = books.connection
    people = sorted(set(users))
    named = {*people, *accounts}
    if connection.dialect.name == "postgresql":
        _hold_accounts(books, named, streams, people)
        _load_reservations(books, streams)
        late = {each.account_id for each in books.reservations.values()} - books.accounts.keys()
        if late:  # reserved by another replica between the two statements; a deadlock that this makes is run again
            _hold_accounts(books, late, (), ())
            _load_reservations(books, streams)
    else:  # the one writer holds everything already, so what hangs on the accounts may as well be read first
        _load_reservations(books, streams)
        _hold_accounts(books, named.union(each.account_id for each in books.reservations.values()), (), people)
    _load_members(books, {*people, *memberships})
    _load_grants(books)
    for stream_id, step in steps:
        reservation = books.reservations.get(stream_id)
        if reservation is not None and 0 < step <= reservation.step:
            books.answers[stream_id, step] = slice_at(connection, stream_id, step)
    for account in list(books.accounts.values()):
        books.expire_grants(account)


def _load_reservations(books: Books, streams: Sequence[StreamId]) -> None:
    for row in _RESERVATIONS.find(books.connection, streams):
        found = Reservation(*row)
        found.state = _STATES[found.state]
        books.reservations[found.id] = found


def _hold_accounts(books: Books, named: set[str], streams: Sequence[str], people: Sequence[str]) -> None:
    """The accounts named, those that pay for the streams, and those of the people's organisations."""
    query = f"{_HOLD} FOR UPDATE" if books.connection.dialect.name == "postgresql" else _HOLD
    for row in fetch(books.connection, query, sorted(named), streams, people):
        account = HeldAccount(*row)
        account.fresh, account.before = False, account.available
        books.accounts[account.id] = account


def _load_members(books: Books, people: set[UserId]) -> None:
    """The memberships of these people, and of those for whose streams an organisation pays."""
    paid_for = {each.user_id for each in books.reservations.values() if each.member_id}
    for row in _MEMBERS.find(books.connection, sorted(people | paid_for)):
        books.members[row[0]] = member_of_row(row)


def _load_grants(books: Books) -> None:
    """Grants that hold credits, and those that a running stream may give back to."""
    held = [account.id for account in books.accounts.values() if account.available]
    rows = _GRANTS_OF.find(books.connection, held, condition="remaining > 0")
    known = {row[0] for row in rows}
    owed = {
        grant_id
        for reservation in books.reservations.values()
        if reservation.state is State.ACTIVE
        for grant_id, _amount in read_parts(reservation.parts)
    }
    rows += _GRANTS.find(books.connection, sorted(owed - known))
    for row in rows:
        grant = HeldGrant(grant=Grant(*row[:9]), remaining=row[3])
        books.grants[grant.grant.id] = grant
        books.accounts[grant.grant.account_id].grants.append(grant)
    for account in books.accounts.values():
        account.grants.sort(key=lambda each: each.rank)


# ── Save ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def save(books: Books) -> None:
    """Write what the batch has changed. A guard of the tables that refuses is a broken invariant."""
    connection = books.connection
    _save_accounts(connection, books.changed_accounts.values())
    _save_grants(connection, books.changed_grants.values())
    _TRANSFERS.insert(connection, books.transfers)
    _RESERVATIONS.insert(connection, [_FRESH(each) for each in books.opened.values()])
    _RESERVATIONS.update(connection, _ENDS, [_CHANGED_RESERVATION(each) for each in books.changed.values()])
    _RESERVATIONS.update(connection, _MODEL, [_REPRICED_RESERVATION(each) for each in books.repriced.values()])
    _SLICES.insert(connection, books.slices)
    _MEMBERS.delete(connection, sorted(books.left))
    _MEMBERS.insert(connection, [_MEMBER(each) for each in books.joined.values()])
    _MEMBERS.update(connection, _TERMS, [_CHANGED_MEMBER(each) for each in books.changed_members.values()])


def _save_accounts(connection: Connection, changed: Iterable[HeldAccount]) -> None:
    fresh: list[tuple[Any, ...]] = []
    known: list[tuple[Any, ...]] = []
    for account in changed:
        row = _CHANGED_ACCOUNT(account)
        if account.fresh:
            fresh.append((*row, account.created_at))
        else:
            known.append(row)
    _ACCOUNTS.insert(connection, fresh)
    _ACCOUNTS.update(connection, _BALANCES, known)


def _save_grants(connection: Connection, changed: Iterable[HeldGrant]) -> None:
    fresh: list[tuple[Any, ...]] = []
    known: list[tuple[Any, ...]] = []
    for held in changed:
        grant = held.grant
        if held.fresh:
            terms = (grant.expires_at, grant.priority, grant.created_at, grant.granted_by, grant.notes, 0)
            fresh.append((grant.id, grant.account_id, grant.amount, held.remaining, *terms))
        else:
            known.append((grant.id, held.remaining))
    _GRANTS.insert(connection, fresh)
    _GRANTS.update(connection, ("remaining",), known)

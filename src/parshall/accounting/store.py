"""The working set of a batch, read from the tables behind locks and written back in a few statements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

from sqlalchemy import Connection

from parshall.accounting.books import Books, HeldAccount, HeldGrant, by_rank, read_parts
from parshall.accounting.kept import Kept
from parshall.accounting.model import Grant, Reservation, State
from parshall.accounting.organisation import member_of_row
from parshall.accounting.pricing import ANY_MODEL
from parshall.accounting.queries import slice_at
from parshall.accounting.tables import accounts, grants, members, reservations, slices, transfers
from parshall.kernel.bulk import Bulk, Row, Statement, is_postgres, query, run
from parshall.kernel.ids import StreamId, UserId

_ACCOUNTS = Bulk(accounts, key="id")
_GRANTS = Bulk(grants, key="id")
_MEMBERS = Bulk(members, key="user_id")
_RESERVATIONS = Bulk(reservations, key="id")
_SLICES = Bulk(slices, key="reservation_id")
_TRANSFERS = Bulk(transfers, key="account_id")

_OF_STREAMS = "SELECT account_id FROM reservations WHERE id IN {keys}"
_OF_PEOPLE = "SELECT organisation_id FROM members WHERE user_id IN {keys}"
_CONCERNED = f"SELECT each FROM {{list}} UNION {_OF_STREAMS} UNION {_OF_PEOPLE}"  # noqa: S608 - words of ours alone
"""The accounts named, those that pay for the streams, and those of the people's organisations."""
_HOLD = (
    f"SELECT id, available, reserved, number, head, created_at FROM accounts WHERE id IN ({_CONCERNED}) "  # noqa: S608 - words of ours alone
    "ORDER BY id"
)
"""Everybody holds accounts in the order of their ids, so that two batches never wait for each other."""
_FIND_RESERVATIONS = f"{_RESERVATIONS.select} WHERE id IN {{keys}}"
_PAID_FOR = "SELECT user_id FROM reservations WHERE id IN {keys} AND member_id <> ''"
_FIND_MEMBERS = f"{_MEMBERS.select} WHERE user_id IN {{keys}} OR user_id IN ({_PAID_FOR})"
"""The memberships of people, and of those for whose streams an organisation pays."""
_FIND_GRANTS = f"{_GRANTS.select} WHERE account_id IN ({_CONCERNED}) AND remaining > 0"
_ACCOUNTS_OF = "SELECT id, available, reserved, number, head, created_at FROM accounts WHERE id IN {keys}"
_GRANTS_OF = f"{_GRANTS.select} WHERE account_id IN {{keys}} AND remaining > 0"
_MEMBERS_OF = f"{_MEMBERS.select} WHERE user_id IN {{keys}}"
_FIND_OWED = f"{_GRANTS.select} WHERE id IN {{keys}}"
_IN_FORCE = (
    "SELECT model_id, version FROM prices p WHERE model_id IN {keys} AND effective_from = (SELECT max(effective_from) "
    "FROM prices WHERE model_id = p.model_id AND effective_from <= {value})"
)

_FRESH = attrgetter(*(column.name for column in reservations.columns if not column.nullable))
"""What a reservation has from the start; absent columns are left out, for binding them costs as much as values."""
_STATES = {state.value: state for state in State}
_GROWTH = ("reserved", "parts", "output_tokens", "step", "expires_at", "counted_on")
_END = (
    *("state", "reserved", "counted_on", "ended_at"),
    *("used_input_tokens", "used_cached_input_tokens", "used_output_tokens", "used_reasoning_tokens"),
    *("usage_source", "outcome", "charged", "uncollected", "balance_after", "transfers_from", "transfers_to"),
)
_GROWN_RESERVATION = attrgetter("id", *_GROWTH)
_ENDED_RESERVATION = attrgetter("id", *_END)
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
    models: Iterable[str] = (),
    kept: Kept | None = None,
) -> None:
    """Hold every account that these users, streams and ids stand for, then read all that hangs on them.

    Of the people in `memberships` only that is read, and nothing held; of `models` the prices in force.

    The accounts come first: only once they are held can nothing else of theirs change. What is due by then is
    booked as expired before any operation sees it. What is `kept` need not be read.
    """
    people = set(users)
    wanted = _Wanted(books, {*people, *accounts}, streams, people, {*people, *memberships}, set(models))
    if is_postgres(books.connection):
        wanted.load_at_once()
    else:
        wanted.load_in_turn(kept or Kept())
    _load_owed(books)
    for stream_id, step in steps:
        reservation = books.reservations.get(stream_id)
        if reservation is not None and 0 < step <= reservation.step:
            books.answers[stream_id, step] = slice_at(books.connection, stream_id, step)
    for account in list(books.accounts.values()):
        account.grants.sort(key=by_rank)
        books.expire_grants(account)


@dataclass(slots=True)
class _Wanted:
    """What a batch needs: accounts, streams, people that may draw on an organisation, members, prices of models."""

    books: Books
    accounts: set[str]
    streams: Sequence[StreamId]
    people: set[UserId]
    members: set[UserId]
    models: set[str]

    def load_at_once(self) -> None:
        """In one round trip, each statement seeing what was committed before it ran: by then the accounts are held."""
        connection, accounts, people = self.books.connection, sorted(self.accounts), sorted(self.people)
        answers = run(
            connection,
            [
                query(connection, f"{_HOLD} FOR UPDATE", accounts, self.streams, people),
                self._reservations(),
                query(connection, _FIND_GRANTS, accounts, self.streams, people),
                query(connection, _FIND_MEMBERS, sorted(self.members), self.streams),
                self._prices(),
            ],
        )
        held, reservations, grants, members, prices = answers
        _put_reservations(self.books, reservations)
        self.books.grants.clear()  # a second time
        _put_accounts(self.books, held, grants)
        _put_members(self.books, members)
        self.books.in_force.update(prices)
        late = (
            {each.account_id for each in self.books.reservations.values()} - self.books.accounts.keys() - self.accounts
        )
        if late:  # reserved by another replica meanwhile; a deadlock that holding it now makes is run again
            self.accounts |= late
            self.load_at_once()

    def load_in_turn(self, kept: Kept) -> None:
        """Without a word about locks, for the one writer holds everything: each reading builds on those before it."""
        books, connection = self.books, self.books.connection
        known, unread = _found(kept.running, self.streams)
        books.reservations.update(known)
        if unread:
            _put_reservations(books, run(connection, [query(connection, _FIND_RESERVATIONS, unread)])[0])
        for reservation in books.reservations.values():
            self.accounts.add(reservation.account_id)
            if reservation.member_id:
                self.members.add(reservation.user_id)
        belonging, unasked = _found(kept.members, self.members)
        books.members.update((user_id, member) for user_id, member in belonging.items() if member is not None)
        if unasked:
            _put_members(books, run(connection, [query(connection, _MEMBERS_OF, unasked)])[0])
        self.accounts.update(books.members[each].organisation_id for each in self.people & books.members.keys())
        held, unheld = _found(kept.accounts, self.accounts)
        for account in held.values():
            account.before = account.available
            books.accounts[account.id] = account
            books.grants.update((each.grant.id, each) for each in account.grants)
        if unheld:
            _put_accounts(
                books, *run(connection, [query(connection, each, unheld) for each in (_ACCOUNTS_OF, _GRANTS_OF)])
            )
        if self.models:
            books.in_force.update(run(connection, [self._prices()])[0])

    def _reservations(self) -> Statement:
        return query(self.books.connection, _FIND_RESERVATIONS, self.streams)

    def _prices(self) -> Statement:
        models = [*self.models, ANY_MODEL] if self.models else []
        return query(self.books.connection, _IN_FORCE, models, self.books.at)


K = TypeVar("K")
V = TypeVar("V")


def _found(known: Mapping[K, V], keys: Iterable[K]) -> tuple[dict[K, V], list[K]]:
    """What is known of these keys, and those of which nothing is."""
    found: dict[K, V] = {}
    unknown: list[K] = []
    for key in keys:
        if key in known:
            found[key] = known[key]
        else:
            unknown.append(key)
    return found, unknown


def _put_accounts(books: Books, accounts: list[Row], grants: list[Row]) -> None:
    for row in accounts:
        account = HeldAccount(*row)
        account.fresh, account.before = False, account.available
        books.accounts[account.id] = account
    for row in grants:
        _put_grant(books, row)


def _put_members(books: Books, members: list[Row]) -> None:
    for row in members:
        books.members[row[0]] = member_of_row(row)


def _put_reservations(books: Books, rows: list[Row]) -> None:
    for row in rows:
        found = Reservation(*row)
        found.state = _STATES[found.state]
        books.reservations[found.id] = found


def _put_grant(books: Books, row: Row) -> None:
    """Keep a grant of an account that is held; who joined an organisation after that has not joined for the batch."""
    account = books.accounts.get(row[1])
    if account is not None:
        held = books.grants[row[0]] = HeldGrant(grant=Grant(*row[:9]), remaining=row[3])
        account.grants.append(held)


def _load_owed(books: Books) -> None:
    """Empty grants that a running stream may give back to."""
    owed = {
        grant_id
        for reservation in books.reservations.values()
        if reservation.state is State.ACTIVE
        for grant_id, _amount in read_parts(reservation.parts)
    }
    if missing := owed - books.grants.keys():
        for row in run(books.connection, [query(books.connection, _FIND_OWED, sorted(missing))])[0]:
            _put_grant(books, row)


# ── Save ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def changes(books: Books) -> list[Statement]:
    """The statements that write what the batch has changed. A guard that refuses one is a broken invariant."""
    connection = books.connection
    return [
        *_accounts_changed(connection, books.changed_accounts.values()),
        *_grants_changed(connection, books.changed_grants.values()),
        *_TRANSFERS.insert(connection, books.transfers),
        *_RESERVATIONS.insert(connection, [_FRESH(each) for each in books.opened.values()]),
        *_RESERVATIONS.update(connection, _GROWTH, [_GROWN_RESERVATION(each) for each in books.grown.values()]),
        *_RESERVATIONS.update(connection, _END, [_ENDED_RESERVATION(each) for each in books.ended.values()]),
        *_RESERVATIONS.update(connection, _MODEL, [_REPRICED_RESERVATION(each) for each in books.repriced.values()]),
        *_SLICES.insert(connection, books.slices),
        *_MEMBERS.delete(connection, sorted(books.left)),
        *_MEMBERS.insert(connection, [_MEMBER(each) for each in books.joined.values()]),
        *_MEMBERS.update(connection, _TERMS, [_CHANGED_MEMBER(each) for each in books.changed_members.values()]),
    ]


def _accounts_changed(connection: Connection, changed: Iterable[HeldAccount]) -> list[Statement]:
    fresh: list[Row] = []
    known: list[Row] = []
    for account in changed:
        row = _CHANGED_ACCOUNT(account)
        if account.fresh:
            fresh.append((*row, account.created_at))
        else:
            known.append(row)
    return _ACCOUNTS.insert(connection, fresh) + _ACCOUNTS.update(connection, _BALANCES, known)


def _grants_changed(connection: Connection, changed: Iterable[HeldGrant]) -> list[Statement]:
    fresh: list[Row] = []
    known: list[Row] = []
    for held in changed:
        grant = held.grant
        if held.fresh:
            terms = (grant.expires_at, grant.priority, grant.created_at, grant.granted_by, grant.notes, 0)
            fresh.append((grant.id, grant.account_id, grant.amount, held.remaining, *terms))
        else:
            known.append((grant.id, held.remaining))
    return _GRANTS.insert(connection, fresh) + _GRANTS.update(connection, ("remaining",), known)

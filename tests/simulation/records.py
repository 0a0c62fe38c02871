"""All rows of a ledger as somebody outside of the service sees them, and the laws that hold for them at any instant."""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, create_engine, text
from tests.ledgers import Books, check_books, read_books

TAKING = ("reserve", "deduct", "revoke")
TOKENS_PER_PRICE = 1_000_000


@dataclass
class Records:
    """The books and what else must never be lost."""

    books: Books
    grants: dict[str, Any]
    slices: dict[tuple[str, int], Any]
    keys: dict[str, Any]
    prices: dict[str, Any]
    members: dict[str, Any]

    @property
    def streams(self) -> dict[str, Any]:
        return self.books.reservations

    def reserved(self) -> int:
        return sum(account.reserved for account in self.books.accounts.values())

    def balances(self) -> dict[str, tuple[int, int]]:
        return {name: (row.available, row.reserved) for name, row in sorted(self.books.accounts.items())}

    def effects(self, key: str) -> list[Any]:
        """The transfers of a keyed change, which bear its key as their note."""
        return [row for row in self.books.transfers if row.note.rpartition(" ")[2] == key]


class Outside:
    """A connection of nobody's."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def records(self) -> Records:
        with self._engine.connect() as connection:
            return read_records(connection)

    def waiting(self) -> bool:
        """Whether a unit of work waits for the locks of another one (PostgreSQL)."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        with self._engine.connect() as connection:
            return bool(connection.execute(text(query)).scalar_one())

    def close(self) -> None:
        self._engine.dispose()


def read_records(connection: Connection) -> Records:
    def rows(table: str) -> list[Any]:
        return list(connection.execute(text(f"SELECT * FROM {table}")).all())

    return Records(
        books=read_books(connection),
        grants={row.id: row for row in rows("grants")},
        slices={(row.reservation_id, row.step): row for row in rows("slices")},
        keys={row.key: row for row in rows("idempotency")},
        prices={row.version: row for row in rows("prices")},
        members={row.user_id: row for row in rows("members")},
    )


def check_records(records: Records) -> None:
    """M1, M2, M5 and M7 by the transfers alone; M6 in every single one; prices; what members have used."""
    check_books(records.books)
    check_order_of_use(records)
    check_returns(records)
    check_members(records)
    accounts: defaultdict[str, list[Any]] = defaultdict(list)
    for row in records.books.transfers:
        accounts[row.account_id].append(row)
    for stream in records.streams.values():
        check_settlement(records, stream, accounts[stream.account_id])


def check_order_of_use(records: Records) -> None:
    """M6: whatever is taken comes from the first grant in order that holds anything, and from none that has expired."""
    holding: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in records.books.transfers:
        held = holding[row.account_id]
        if row.grant_id is None:
            continue
        grant = records.grants[row.grant_id]
        assert grant.account_id == row.account_id, "a transfer stays within its account"
        if row.kind in TAKING:
            better = [each for each, amount in held.items() if amount and rank(records.grants[each]) < rank(grant)]
            assert not better, f"M6: {row.kind} took of a grant while one before it held credits"
            assert grant.expires_at > row.at, f"{row.kind} took of a grant that had expired"
        if row.kind == "expire":
            assert grant.expires_at <= row.at, "a grant expired before its time"
        sign = {"grant": 1, "release": 1, "charge": 0}.get(row.kind, -1)
        held[row.grant_id] = held.get(row.grant_id, 0) + sign * row.amount


def rank(grant: Any) -> tuple[int, int, int, str]:
    return (grant.priority, grant.expires_at, grant.created_at, grant.id)


def check_returns(records: Records) -> None:
    """M6: what was taken first is charged first, and every part of the rest goes back to where it came from."""
    parts: defaultdict[str, list[list[Any]]] = defaultdict(list)
    for row in records.books.transfers:
        if row.kind == "reserve":
            parts[row.reservation_id].append([row.grant_id, row.amount])
        elif row.kind in ("charge", "release"):
            consume(parts[row.reservation_id], row)
    for stream in records.streams.values():
        if stream.state == "active":
            assert flat(json.loads(stream.parts)) == flat(parts[stream.id]), "M6: its parts are what was taken for it"


def consume(parts: list[list[Any]], row: Any) -> None:
    missing = row.amount
    while missing:
        assert parts and parts[0][0] == row.grant_id, f"M6: a {row.kind} is out of order"
        now = min(parts[0][1], missing)
        parts[0][1] -= now
        missing -= now
        if not parts[0][1]:
            parts.pop(0)


def flat(parts: list[list[Any]]) -> list[tuple[str, int]]:
    """Parts with neighbours of one grant made one."""
    joined: list[tuple[str, int]] = []
    for grant_id, amount in parts:
        if joined and joined[-1][0] == grant_id:
            amount += joined.pop()[1]
        joined.append((grant_id, amount))
    return joined


def check_members(records: Records) -> None:
    """A member has used what their streams hold and what the ended ones have cost the organisation."""
    used: defaultdict[str, int] = defaultdict(int)
    for stream in records.streams.values():
        if stream.account_id != stream.user_id:
            used[stream.user_id] += stream.reserved if stream.state == "active" else stream.charged
    for member in records.members.values():
        assert member.total_used == used[member.user_id], "a member has used what their streams hold or have cost"


def check_settlement(records: Records, stream: Any, transfers: list[Any]) -> None:
    """What an ended stream cost is charged or seen as uncollected, by the very transfers that it names.

    `transfers` are its account's, numbered from 1.
    """
    if stream.state == "active":
        assert stream.charged is None and stream.ended_at is None and stream.outcome is None
        return
    wanted = 0 if stream.usage_source is None else cost(records.prices[stream.price_version], stream)
    assert stream.charged + (stream.uncollected or 0) == wanted, "no use goes unseen"
    assert (stream.usage_source is not None) == (stream.state == "settled") or stream.state == "expired", "M3"
    if stream.state == "expired":
        assert stream.expires_at <= stream.ended_at, "a reservation expired before its time"
    if stream.uncollected and not stream.member_id:  # a member's limit ends what an organisation pays sooner
        assert stream.balance_after == 0, "nothing is written off while any is left"
    own = transfers[stream.transfers_from - 1 : stream.transfers_to - 1]
    assert len(own) == stream.transfers_to - stream.transfers_from
    assert all(row.reservation_id == stream.id for row in own), "the receipt names transfers of its own"
    assert sum(row.amount for row in own if row.kind == "charge") == stream.charged, "the receipt names its charges"


def cost(price: Any, stream: Any) -> int:
    """What was used at that price: exact, then rounded up once."""
    cached, reasoning = stream.used_cached_input_tokens, stream.used_reasoning_tokens
    exact = (stream.used_input_tokens - cached) * price.input + cached * price.cached_input
    exact += (stream.used_output_tokens - reasoning) * price.output + reasoning * price.reasoning
    return -(-exact // TOKENS_PER_PRICE)


def ceiling(price: Any, *, input_tokens: int, output_tokens: int) -> int:
    """The most that so many tokens can cost."""
    dearest_input, dearest_output = max(price.input, price.cached_input), max(price.output, price.reasoning)
    return -(-(input_tokens * dearest_input + output_tokens * dearest_output) // TOKENS_PER_PRICE)

"""The books of a ledger, checked from nothing: its transfers must rebuild all that is kept (M1, M2, M5, M6, M7)."""

# What a transfer does is written out here once more, apart from the code under test: a law that both had wrong in the
# same line would hold for both.

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, text

FLOWS = {
    "grant": ("issued", "available"),
    "reserve": ("available", "reserved"),
    "charge": ("reserved", "revenue"),
    "deduct": ("available", "revenue"),
    "release": ("reserved", "available"),
    "expire": ("available", "expired"),
    "revoke": ("available", "issued"),
    "uncollected": ("uncollected", "revenue"),
}


@dataclass
class Books:
    """Everything that the database holds about balances, once as kept and once as transfers rebuild it."""

    accounts: dict[str, Any]
    grants: dict[str, int]
    reservations: dict[str, Any]
    transfers: list[Any]
    members: list[Any]


def read_books(connection: Connection) -> Books:
    def rows(query: str) -> list[Any]:
        return list(connection.execute(text(query)).all())

    return Books(
        accounts={r.id: r for r in rows("SELECT * FROM accounts")},
        grants={r.id: r.remaining for r in rows("SELECT * FROM grants")},
        reservations={r.id: r for r in rows("SELECT * FROM reservations")},
        transfers=rows("SELECT * FROM transfers ORDER BY account_id, number"),
        members=rows("SELECT * FROM members"),
    )


def check_books(books: Books) -> None:
    """M1, M2, M5, M6 and M7 from transfers alone, and the chain of each account."""
    flows: dict[str, defaultdict[str, int]] = {name: defaultdict(int) for name in books.accounts}
    grants: dict[str, int] = dict.fromkeys(books.grants, 0)
    chains: dict[str, tuple[int, str]] = {}
    for row in books.transfers:
        debit, credit = FLOWS[row.kind]
        assert row.amount > 0
        account = flows[row.account_id]
        account[debit] -= row.amount
        account[credit] += row.amount
        for book, change in ((debit, -row.amount), (credit, row.amount)):
            if book == "available":
                grants[row.grant_id] += change
                assert grants[row.grant_id] >= 0, "M2: a grant was overdrawn"
        assert account["available"] >= 0, "M2: an account was overdrawn"
        assert account["reserved"] >= 0, "M2: more was released or charged than reserved"
        assert row.available_after == account["available"], "the running balance is the balance"
        chains[row.account_id] = linked(chains.get(row.account_id, (0, "")), row)
    for name, kept in books.accounts.items():
        account = flows[name]
        assert (account["available"], account["reserved"]) == (kept.available, kept.reserved), "M5"
        granted = -account["issued"]
        charged = account["revenue"] + account["uncollected"]
        assert granted == kept.available + kept.reserved + charged + account["expired"], "M1"
        assert sum(account.values()) == 0
        assert (kept.number, kept.head) == chains.get(name, (0, "")), "M5: the chain ends where the account says"
    assert grants == books.grants, "M5, M6: every grant's remaining is what its transfers say"
    check_reservations(books)
    check_members(books)


def linked(before: tuple[int, str], row: Any) -> tuple[int, str]:
    number, head = before
    assert row.number == number + 1, "M5: no transfer is missing"
    entry = (
        *(row.account_id, row.number, row.kind, row.amount, row.grant_id),
        *(row.reservation_id, row.at, row.available_after, row.note),
    )
    written = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
    expected = hashlib.sha256((head + written).encode()).hexdigest()
    assert row.hash == expected, "M5: a transfer is what it was"
    return row.number, row.hash


def check_reservations(books: Books) -> None:
    """M3, M6, M7: what a stream took of each grant is held, or was charged and given back, and nothing else."""
    taken: defaultdict[tuple[str, str], int] = defaultdict(int)
    held: defaultdict[tuple[str, str], int] = defaultdict(int)
    charged: defaultdict[str, int] = defaultdict(int)
    for row in books.transfers:
        key = (row.reservation_id, row.grant_id)
        if row.kind == "reserve":
            taken[key] += row.amount
            held[key] += row.amount
        elif row.kind in ("charge", "release"):
            held[key] -= row.amount
            assert held[key] >= 0, "M6: a grant gets back no more than it gave"
            charged[row.reservation_id] += row.amount if row.kind == "charge" else 0
    reserved: defaultdict[str, int] = defaultdict(int)
    for (stream, _grant), amount in taken.items():
        reserved[stream] += amount
    holds: defaultdict[str, int] = defaultdict(int)
    for (stream, _grant), amount in held.items():
        holds[stream] += amount
    by_account: defaultdict[str, int] = defaultdict(int)
    for stream, kept in books.reservations.items():
        active = kept.state == "active"
        assert reserved[stream] == kept.reserved, "M7: all that a reservation says it held was reserved"
        assert holds[stream] == (kept.reserved if active else 0), "M3: an ended reservation holds nothing"
        assert charged[stream] == (kept.charged or 0) <= kept.reserved, "M7"
        by_account[kept.account_id] += holds[stream]
    assert set(reserved) <= set(books.reservations)
    for name, kept in books.accounts.items():
        assert kept.reserved == by_account[name], "what is reserved is what active reservations hold"


def check_members(books: Books) -> None:
    """What counts toward a member's limits is what the streams of this membership hold or have cost."""

    def month(day: int) -> tuple[int, int]:
        date = datetime.fromtimestamp(day * 86_400, UTC)
        return date.year, date.month

    for member in books.members:
        streams = [each for each in books.reservations.values() if each.member_id == member.id]
        assert {each.account_id for each in streams} <= {member.organisation_id}, "its organisation pays for them"
        counted = [(each.counted_on, each.reserved if each.state == "active" else each.charged) for each in streams]
        today = sum(amount for day, amount in counted if day == member.day)
        this_month = sum(amount for day, amount in counted if month(day) == month(member.day))
        assert (member.day_used, member.month_used) == (today, this_month)
        assert member.total_used == sum(amount for _, amount in counted)
    paid_by_others = [each for each in books.reservations.values() if each.account_id != each.user_id]
    assert all(each.member_id for each in paid_by_others), "only an organisation pays for another"


def check_ledger(where: Path | str) -> None:
    """The same for the database of a process that has ended: a file, or an address of PostgreSQL."""
    url = f"sqlite:///{where}" if isinstance(where, Path) else where.replace("postgresql://", "postgresql+psycopg://")
    engine = create_engine(url)
    with engine.connect() as connection:
        check_books(read_books(connection))
    engine.dispose()

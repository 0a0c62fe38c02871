"""The books of a ledger, checked from nothing: its transfers must rebuild all that is kept (M1, M2, M5, M6)."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, text


@dataclass
class Books:
    """Everything that the database holds about balances, once as kept and once as transfers rebuild it."""

    accounts: dict[str, tuple[int, int]]
    grants: dict[str, int]
    held: dict[str, int]
    transfers: list[Any]


def read_books(connection: Connection) -> Books:
    rows = connection.execute(text("SELECT * FROM transfers ORDER BY id")).all()
    held = connection.execute(
        text("SELECT account_id, SUM(reserved) FROM reservations WHERE state = 'active' GROUP BY account_id")
    )
    return Books(
        accounts={r.id: (r.available, r.reserved) for r in connection.execute(text("SELECT * FROM accounts"))},
        grants={r.id: r.remaining for r in connection.execute(text("SELECT * FROM grants"))},
        held={r[0]: r[1] for r in held},
        transfers=list(rows),
    )


def check_books(books: Books) -> None:
    """M1, M2, M5 and M6 from transfers alone."""
    flows: dict[str, defaultdict[str, int]] = {name: defaultdict(int) for name in books.accounts}
    grants: dict[str, int] = dict.fromkeys(books.grants, 0)
    for row in books.transfers:
        account = flows[row.account_id]
        account[row.debit] -= row.amount
        account[row.credit] += row.amount
        for book, change in ((row.debit, -row.amount), (row.credit, row.amount)):
            if book == "available":
                grants[row.grant_id] += change
                assert grants[row.grant_id] >= 0, "M2: a grant was overdrawn"
        assert account["available"] >= 0, "M2: an account was overdrawn"
        assert account["reserved"] >= 0, "M2: more was released or charged than reserved"
        assert row.available_after == account["available"], "the running balance is the balance"
    for name, (available, reserved) in books.accounts.items():
        account = flows[name]
        assert (account["available"], account["reserved"]) == (available, reserved), "M5"
        granted = -account["issued"]
        charged = account["revenue"] + account["uncollected"]
        assert granted == available + reserved + charged + account["expired"], "M1"
        assert reserved == books.held.get(name, 0), "what is reserved is what active reservations hold"
        assert sum(account.values()) == 0
    assert grants == books.grants, "M5, M6: every grant's remaining is what its transfers say"


def check_ledger(path: Path) -> None:
    """The same for the database of a process that has ended."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        check_books(read_books(connection))
    engine.dispose()

"""A whole database audited on one snapshot: its accounts one after the other, then all books together."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from sqlalchemy import Connection, select

from parshall.accounting.audit import anchor as anchors
from parshall.accounting.audit import findings as rules
from parshall.accounting.audit import rows
from parshall.accounting.audit.account import Rebuilt
from parshall.accounting.audit.anchor import AnchorUnreadable
from parshall.accounting.audit.findings import Findings, shown
from parshall.accounting.audit.members import check_members
from parshall.accounting.audit.rows import Ordered, Row, Unreadable
from parshall.accounting.model import FLOWS, Book
from parshall.accounting.pricing import Price
from parshall.accounting.tables import accounts, organisations

__all__ = ["AnchorUnreadable", "Report", "Unreadable", "audit", "find_account_id"]

TRANSFERS_PER_REPORT = 10_000
"""Between two reports of the progress."""

Progress = Callable[[int, int], None]
"""Told the transfers so far and in all, from the thread that audits; what it raises ends the audit."""


@dataclass(slots=True, kw_only=True)
class Report:
    """What an audit saw and found. `books` are microcredits; those of accounts as kept, the others as transferred."""

    findings: Findings = field(default_factory=Findings)
    accounts: int = 0
    transfers: int = 0
    grants: int = 0
    reservations: int = 0
    books: dict[Book, int] = field(default_factory=lambda: dict.fromkeys(Book, 0))
    anchor: str | None = None
    against: str | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return self.findings.count == 0

    @property
    def granted(self) -> int:
        """Issued, less what was revoked."""
        return -self.books[Book.ISSUED]

    @property
    def charged(self) -> int:
        """What accounts have paid: revenue without what could not be collected."""
        return self.books[Book.REVENUE] + self.books[Book.UNCOLLECTED]


def audit(
    connection: Connection,
    *,
    account_id: str | None = None,
    save: Path | None = None,
    against: Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Rebuild every balance (or one account's) from the transfers and hold it against all that is kept.

    `connection` stands on a snapshot and is only read. A clean audit of everything saves its anchor to the file `save`;
    `against` is such a file from before, whose every mark must still be on its account's chain.
    Raises AnchorUnreadable, Unreadable, OSError and the errors of the database.
    """
    assert account_id is None or (save is None and against is None), "an anchor is about all accounts"
    report = Report(against=None if against is None else anchors.digest(against))
    told = progress or (lambda _done, _total: None)
    total = rows.count_transfers(connection, account_id)
    told(0, total)
    prices = rows.prices(connection)
    with anchors.writing(save) as anchor:
        sources = rows.open_rows(connection, account_id)
        sources["anchor"] = Ordered(anchors.read(against) if against else iter(()))
        counter = _Counter(told, total)
        while (next_id := _next_account(sources)) is not None:
            rebuilt = _rebuild(next_id, sources, report, prices, counter)
            if rebuilt is not None and rebuilt.number:
                anchor.add((next_id, rebuilt.number, rebuilt.head))
        report.transfers = counter.done
        check_members(rows.memberships(connection, account_id), report.findings)
        if account_id is None:
            _check_sum(report)
            report.anchor = anchor.digest
        told(report.transfers, report.transfers)
        anchor.keep = report.clean
    return report


def find_account_id(connection: Connection, who: str) -> str | None:
    """The account that has this id, or belongs to the organisation of this name, if there is one."""
    by_id = select(accounts.c.id).where(accounts.c.id == who)
    by_name = select(organisations.c.id).where(organisations.c.name == who)
    for query in (by_id, by_name):
        found: str | None = connection.execute(query).scalar_one_or_none()
        if found is not None:
            return found
    return None


class _Counter:
    """Counts transfers as they pass, and reports now and then."""

    def __init__(self, told: Progress, total: int) -> None:
        self.done = 0
        self._told = told
        self._total = total
        self._due = TRANSFERS_PER_REPORT

    def counted(self, transfers: Iterator[Row]) -> Iterator[Row]:
        """The same ones."""
        for done, row in enumerate(transfers, start=self.done + 1):
            self.done = done
            if done == self._due:
                self._due += TRANSFERS_PER_REPORT
                self._told(done, max(self._total, done))
            yield row


def _next_account(sources: dict[str, Ordered]) -> str | None:
    """The first account of which any source still has rows: what was moved to one that does not exist counts too."""
    return min((each.account_id for each in sources.values() if each.account_id is not None), default=None)


def _rebuild(
    account_id: str, sources: dict[str, Ordered], report: Report, prices: Mapping[str, Price], counter: _Counter
) -> Rebuilt | None:
    """One account audited and added to the report; None where its records cannot be understood."""
    kept = _only(sources["accounts"].of(account_id))
    mark = _only(sources["anchor"].of(account_id))
    transfers = counter.counted(sources["transfers"].of(account_id))
    reservations = sources["reservations"].of(account_id)
    try:
        rebuilt = Rebuilt(
            account_id,
            report.findings,
            grants=sources["grants"].of(account_id),
            reservations=reservations,
            prices=prices,
            anchor=None if mark is None else (mark[1], mark[2]),
        )
        rebuilt.replay(transfers)
        rebuilt.close(kept)
        _add_books(report, rebuilt, kept)
        return rebuilt
    except (TypeError, ValueError, ArithmeticError, AssertionError, msgspec.MsgspecError) as error:
        # SQLite keeps a word where a number belongs, if somebody writes one there.
        report.findings.add(rules.UNREADABLE, account_id, found=f"{type(error).__name__}: {error}")
        for rest in (transfers, reservations, sources["grants"].of(account_id)):
            for _row in rest:
                pass
        return None


def _only(found: Iterator[Row]) -> Row | None:
    """The one row there is, if there is one, with its source moved on."""
    every = list(found)
    return every[0] if every else None


def _add_books(report: Report, rebuilt: Rebuilt, kept: Row | None) -> None:
    report.accounts += kept is not None
    report.grants += rebuilt.grant_count
    report.reservations += rebuilt.reservations.count
    books = report.books
    for kind, (debit, credit) in FLOWS.items():
        amount = rebuilt.sums[kind]
        books[debit] -= amount
        books[credit] += amount
    # What accounts have is what they say: so the sum of all books shows what the transfers do not explain.
    available, reserved = (0, 0) if kept is None else kept[1:3]
    books[Book.AVAILABLE] += available - rebuilt.available
    books[Book.RESERVED] += reserved - rebuilt.reserved


def _check_sum(report: Report) -> None:
    total = sum(report.books.values())
    if total:
        report.findings.add(rules.SUM, "", found=shown(total))

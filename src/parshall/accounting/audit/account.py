"""One account rebuilt from its transfers: chain, balances and grants, and each step held against the laws."""

from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

from parshall.accounting.audit import findings as rules
from parshall.accounting.audit.findings import Findings, Rule, shown
from parshall.accounting.audit.reservations import NEVER, Reservations
from parshall.accounting.audit.rows import Row
from parshall.accounting.chain import GENESIS, link
from parshall.accounting.model import Book, Kind, effect
from parshall.accounting.pricing import Price

_AVAILABLE = {kind.value: effect(kind, Book.AVAILABLE) for kind in Kind}
_RESERVED = {kind.value: effect(kind, Book.RESERVED) for kind in Kind}
_TAKING = frozenset({Kind.RESERVE, Kind.DEDUCT, Kind.REVOKE})
_RANK = attrgetter("rank")


class _Grant:
    """A grant as it is kept, and what its transfers make of it."""

    __slots__ = ("amount", "created_at", "expires_at", "id", "issued", "kept", "rank", "remaining")

    def __init__(self, row: Row) -> None:
        _account_id, self.id, self.amount, self.kept, self.expires_at, priority, self.created_at = row
        self.rank = (priority, self.expires_at, self.created_at, self.id)
        self.issued = 0
        self.remaining = 0


class Rebuilt:
    """An account without a history, to which transfers are applied in order; `sums` gives the total of each kind."""

    def __init__(
        self,
        account_id: str,
        findings: Findings,
        *,
        grants: Iterable[Row],
        reservations: Iterator[Row],
        prices: Mapping[str, Price],
        anchor: tuple[int, str] | None = None,
    ) -> None:
        """`prices` are by version; `anchor` is the number and hash of a transfer that is known to have been there."""
        self.account_id = account_id
        self.available = 0
        self.reserved = 0
        self.number = 0
        self.head = GENESIS
        self.sums = dict.fromkeys(_AVAILABLE, 0)
        self.reservations = Reservations(account_id, findings, reservations, prices)
        self._findings = findings
        self._grants = {grant.id: grant for grant in map(_Grant, grants)}
        self._live: list[_Grant] = []
        self._next_expiry = NEVER
        self._drift = 0  # of the recorded running balance, as far as it was reported
        self._broken = False  # whether the chain is: what the order of use would say then is no news
        self._anchor = anchor or (0, GENESIS)

    @property
    def grant_count(self) -> int:
        """Grants that the account has."""
        return len(self._grants)

    def replay(self, transfers: Iterable[Row]) -> None:
        """Apply the account's transfers, oldest first."""
        for row in transfers:
            self._follow(row)
            number, kind, amount, grant_id, stream, at, after = row[1:8]
            self.reservations.reach(number, kind, stream, at=at, recorded=self.available + self._drift)
            if kind not in _AVAILABLE:
                self._add(rules.UNKNOWN_KIND, number=number, found=repr(kind))
                continue
            if amount <= 0:
                self._add(rules.AMOUNT, number=number, found=shown(amount))
            self.sums[kind] += amount
            self.available += _AVAILABLE[kind] * amount
            self.reserved += _RESERVED[kind] * amount
            if grant_id is not None or kind != "uncollected":
                self._move_grant(number, kind, amount, grant_id, at)
            if stream is not None:
                self.reservations.move(number, kind, amount, grant_id, stream)
            elif _RESERVED[kind]:
                self._add(rules.NO_STREAM, number=number)
            self._compare_running(number, after)

    def close(self, kept: Row | None) -> None:
        """Hold what was rebuilt against what is kept of the account, its grants and its reservations."""
        self.reservations.close(recorded=self.available + self._drift)
        self._close_grants()
        if self._anchor[0] > self.number:
            self._add(rules.ANCHOR_CUT, expected=self._anchor[0], found=self.number)
        if kept is None:
            self._add(rules.NO_ACCOUNT)
        else:
            self._close_account(*kept[1:])

    def _close_grants(self) -> None:
        for grant in self._grants.values():
            if grant.issued != grant.amount:
                self._add_amounts(rules.GRANT_AMOUNT, grant.issued, grant.amount, grant=grant.id)
            if grant.remaining != grant.kept:
                self._add_amounts(rules.GRANT_REMAINING, grant.remaining, grant.kept, grant=grant.id)

    def _close_account(self, available: int, reserved: int, number: int, head: str) -> None:
        if available != self.available:
            self._add_amounts(rules.AVAILABLE, self.available, available)
        if reserved != self.reserved:
            self._add_amounts(rules.RESERVED, self.reserved, reserved)
        if number != self.number:
            self._add(rules.NUMBER, expected=self.number, found=number)
        if head != self.head:
            self._add(rules.HEAD, expected=self.head, found=head)

    def _follow(self, row: Row) -> None:
        """The numbering and the chain. Each break is told once: what follows is chained to what is there."""
        number, kept = row[1], row[9]
        if number != self.number + 1:
            self._broken = True
            self._add(rules.MISSING, expected=self.number + 1, found=number)
        elif link(self.head, row[:9]) != kept:
            self._broken = True
            self._add(rules.ALTERED, number=number)
        if number == self._anchor[0] and kept != self._anchor[1]:
            self._add(rules.ANCHOR_CHANGED, number=number)
        self.number, self.head = number, kept

    def _move_grant(self, number: int, kind: str, amount: int, grant_id: str | None, at: int) -> None:
        grant = self._grants.get(grant_id or "")
        if grant is None:
            self._add(rules.NO_GRANT, number=number, found=grant_id)
            return
        if kind == Kind.EXPIRE:
            if grant.expires_at > at:
                self._add(rules.EXPIRED_EARLY, number=number, grant=grant.id)
        elif kind in _TAKING:
            self._check_order(number, grant, at)
        elif kind == Kind.GRANT:
            grant.issued += amount
        if change := _AVAILABLE[kind] * amount:
            self._change(number, grant, change)

    def _check_order(self, number: int, grant: _Grant, at: int) -> None:
        """What is taken comes from the first grant in the order of use, and nothing that is due is there any more."""
        if self._broken:
            return
        # One that was due when it was made is booked as expired by the next batch only.
        due = (
            [each for each in self._live if each.expires_at <= at > each.created_at] if self._next_expiry <= at else []
        )
        if due:
            self._add(rules.EXPIRED_USED, number=number, grant=due[0].id)
        elif self._live and self._live[0] is not grant:
            self._add(rules.ORDER, number=number, expected=self._live[0].id, found=grant.id)

    def _change(self, number: int, grant: _Grant, change: int) -> None:
        before = grant.remaining
        grant.remaining = after = before + change
        if after < 0 and not self._broken:
            self._add(rules.GRANT_OVERDRAWN, number=number, grant=grant.id, found=shown(after))
        if before <= 0 < after:
            insort(self._live, grant, key=_RANK)
            self._next_expiry = min(self._next_expiry, grant.expires_at)
        elif after <= 0 < before:
            self._live.remove(grant)
            if grant.expires_at <= self._next_expiry:
                self._next_expiry = min((each.expires_at for each in self._live), default=NEVER)

    def _compare_running(self, number: int, after: int) -> None:
        if after - self.available != self._drift:
            self._drift = after - self.available
            self._add_amounts(rules.RUNNING, self.available, after, number=number)
        if (self.available < 0 or self.reserved < 0) and not self._broken:
            book, amount = ("available", self.available) if self.available < 0 else ("reserved", self.reserved)
            self._add(rules.OVERDRAWN, number=number, book=book, found=shown(amount))

    def _add(self, rule: Rule, **facts: object) -> None:
        self._findings.add(rule, self.account_id, **facts)

    def _add_amounts(self, rule: Rule, expected: object, found: object, **facts: object) -> None:
        self._add(rule, expected=shown(expected), found=shown(found), **facts)

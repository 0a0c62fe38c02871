"""The working set of one batch: accounts, grants, members, reservations; balances change nowhere but in `post`."""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from sqlalchemy import Connection

from parshall.accounting.chain import GENESIS, Entry, link
from parshall.accounting.model import (
    FLOWS,
    Book,
    Grant,
    Kind,
    ModelWithoutPrice,
    Reservation,
    UnknownReservation,
    effect,
)
from parshall.accounting.organisation import Member
from parshall.accounting.pricing import ANY_MODEL, PriceVersion
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Slice

_AVAILABLE = {kind: effect(kind, Book.AVAILABLE) for kind in FLOWS}
_RESERVED = {kind: effect(kind, Book.RESERVED) for kind in FLOWS}
_NAMES = {kind: kind.value for kind in FLOWS}

Parts = list[tuple[str, int]]
"""Grants and what each gave in microcredits, in the order of taking."""
_PARTS = msgspec.json.Decoder(Parts)


@dataclass(slots=True)
class HeldGrant:
    """A grant as the batch changes it."""

    grant: Grant
    remaining: int
    fresh: bool = False


@dataclass(slots=True)
class HeldAccount:
    """An account as the batch changes it, locked until the batch is committed. `before` is what was available then."""

    id: str
    available: int = 0
    reserved: int = 0
    number: int = 0
    head: str = GENESIS
    created_at: int = 0
    fresh: bool = True
    before: int = 0
    grants: list[HeldGrant] = field(default_factory=list)

    @property
    def posted(self) -> int:
        """Available and reserved together."""
        return self.available + self.reserved


class Books:
    """All that the operations of one batch may read and change; the store loads it and saves what has changed."""

    def __init__(
        self,
        connection: Connection,
        *,
        at: int,
        versions: Callable[[str], PriceVersion],
    ) -> None:
        """`at` is the batch's instant by the database's clock; `versions` gives a price by its version's name."""
        self.connection = connection
        self.at = at
        self.accounts: dict[str, HeldAccount] = {}
        self.grants: dict[str, HeldGrant] = {}
        self.members: dict[UserId, Member] = {}
        self.reservations: dict[StreamId, Reservation] = {}
        self.answers: dict[tuple[StreamId, int], tuple[int, Slice]] = {}
        self.transfers: list[tuple[Any, ...]] = []
        self.slices: list[tuple[Any, ...]] = []
        self.changed_accounts: dict[str, HeldAccount] = {}
        self.changed_grants: dict[str, HeldGrant] = {}
        self.changed_members: dict[UserId, Member] = {}
        self.joined: dict[UserId, Member] = {}
        self.left: set[UserId] = set()
        self.opened: dict[StreamId, Reservation] = {}
        self.repriced: dict[StreamId, Reservation] = {}
        self.grown: dict[StreamId, Reservation] = {}
        self.ended: dict[StreamId, Reservation] = {}
        self.in_force: dict[str, str] = {}
        self.price_version = versions

    # ── Finding ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def account(self, account_id: str) -> HeldAccount:
        """An account that the batch holds; an empty one where it was never opened."""
        held = self.accounts.get(account_id)
        if held is None:
            held = self.accounts[account_id] = HeldAccount(id=account_id, created_at=self.at)
        return held

    def open_account(self, account_id: str) -> None:
        """Have an account saved before anything moves on it: only a row can be held."""
        self.changed_accounts[account_id] = self.account(account_id)

    def reservation(self, stream_id: StreamId) -> Reservation:
        """The reservation of a stream. Raises UnknownReservation."""
        found = self.reservations.get(stream_id)
        if found is None:
            raise UnknownReservation
        return found

    def price(self, model_id: str) -> PriceVersion:
        """The price in force when the batch began. Raises ModelWithoutPrice."""
        version = self.in_force.get(model_id) or self.in_force.get(ANY_MODEL)
        if version is None:
            raise ModelWithoutPrice
        return self.price_version(version)

    # ── Moving ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def post(
        self,
        account: HeldAccount,
        kind: Kind,
        amount: int,
        *,
        grant: HeldGrant | None = None,
        reservation_id: StreamId | None = None,
        note: str = "",
    ) -> int:
        """Record a transfer and apply it to the account and the grant it names; its number. Nothing overdraws (M2)."""
        assert amount > 0
        change = _AVAILABLE[kind] * amount
        account.available += change
        account.reserved += _RESERVED[kind] * amount
        assert account.available >= 0 and account.reserved >= 0, f"{kind} of {amount} would overdraw {account.id}"
        grant_id = None
        if grant is not None:
            grant_id = grant.grant.id
            if change:
                grant.remaining += change
                assert 0 <= grant.remaining <= grant.grant.amount, f"{kind} of {amount} does not fit grant {grant_id}"
                self.changed_grants[grant_id] = grant
        account.number += 1
        entry: Entry = (
            account.id,
            account.number,
            _NAMES[kind],
            amount,
            grant_id,
            reservation_id,
            self.at,
            account.available,
            note,
        )
        account.head = link(account.head, entry)
        self.transfers.append((*entry, account.head))
        self.changed_accounts[account.id] = account
        return account.number

    def take(self, account: HeldAccount, kind: Kind, amount: int, **named: Any) -> Parts:
        """Post `amount` as a transfer of `kind` from each grant that gives, in order of use (M6). It must be there."""
        parts: Parts = []
        missing = amount
        for held in account.grants:
            if missing == 0:
                break
            if (given := min(held.remaining, missing)) > 0:
                self.post(account, kind, given, grant=held, **named)
                parts.append((held.grant.id, given))
                missing -= given
        assert missing == 0, "the grants of an account hold all that is available"
        return parts

    def add_grant(self, account: HeldAccount, grant: Grant) -> HeldGrant:
        """A new grant of an account, still empty: the posting of its transfer fills it."""
        held = HeldGrant(grant=grant, remaining=0, fresh=True)
        self.grants[grant.id] = held
        self.changed_grants[grant.id] = held
        insort(account.grants, held, key=by_rank)
        return held

    def expire_grants(self, account: HeldAccount) -> int:
        """Book what is left of every due grant of an account as expired; how many were due."""
        count = 0
        for held in account.grants:
            if held.remaining and held.grant.due(at=self.at):
                self.post(account, Kind.EXPIRE, held.remaining, grant=held)
                count += 1
        return count

    # ── Members ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def payer(self, user_id: UserId) -> Member | None:
        """The membership by which an organisation may pay for the user.

        None also where its account is not held: who joined after the batch had begun has not joined for the batch.
        """
        member = self.members.get(user_id)
        return member if member is not None and member.organisation_id in self.accounts else None

    def member_of(self, reservation: Reservation) -> Member | None:
        """The membership toward whose limits a stream counts; None where the user pays or has left."""
        member = self.members.get(reservation.user_id)
        return member if member is not None and member.id == reservation.member_id else None

    def count(self, reservation: Reservation, *, was: int, now: int) -> None:
        """Count a stream that held `was` with `now`, what it holds or has cost, where it counts toward limits."""
        member = self.member_of(reservation)
        if member is not None and now != was:
            reservation.counted_on = member.count(was=was, now=now, on=reservation.counted_on, at=self.at)
            self.change(member)

    def change(self, member: Member) -> None:
        """Have a membership saved that was changed."""
        self.changed_members[member.user_id] = member

    def join(self, member: Member) -> None:
        """Have a new membership saved."""
        assert member.user_id not in self.members, "one organisation a user"
        self.members[member.user_id] = self.joined[member.user_id] = member

    def leave(self, member: Member) -> None:
        """Have a membership deleted."""
        del self.members[member.user_id]
        self.changed_members.pop(member.user_id, None)
        if self.joined.pop(member.user_id, None) is None:
            self.left.add(member.user_id)

    # ── Saving ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def grow(self, reservation: Reservation) -> None:
        """Have a reservation saved that holds more or longer and goes on."""
        self.grown[reservation.id] = reservation

    def end(self, reservation: Reservation) -> None:
        """Have a reservation saved that has ended."""
        self.ended[reservation.id] = reservation


def by_rank(held: HeldGrant) -> tuple[int, int, int, str]:
    """The key that sorts grants into the order of use (M6)."""
    return held.grant.rank


def stored_parts(parts: Sequence[tuple[str, int]]) -> str:
    """Parts as JSON text."""
    return msgspec.json.encode(parts).decode()


def read_parts(text: str) -> Parts:
    """The inverse of `stored_parts`."""
    return _PARTS.decode(text)


def joined(parts: Parts, more: Parts) -> Parts:
    """What was taken before and what is taken now; a grant that gave last and gives again stays one part."""
    if parts and more and parts[-1][0] == more[0][0]:
        return [*parts[:-1], (parts[-1][0], parts[-1][1] + more[0][1]), *more[1:]]
    return [*parts, *more]

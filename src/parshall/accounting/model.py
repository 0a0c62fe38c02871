"""The rules of the ledger: which books a transfer may join, which grant pays first, and how a reservation ends."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from parshall.kernel.credits import CREDITS_MAX, Credits
from parshall.kernel.errors import Conflict, Invalid, NotFound
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Usage

BALANCE_MAX = CREDITS_MAX
"""The most that one account may hold, available and reserved together: sums stay exact as JSON numbers."""
GRANTS_PER_ACCOUNT_MAX = 1000
"""Grants of one account that hold credits at a time."""
TOKENS_MAX = 100_000_000
"""Tokens of either direction that one turn may name."""
PRIORITY_MAX = 1000


class UnknownReservation(NotFound):
    """No reservation bears that streaming session id."""

    default = "Nothing was ever reserved for this streaming session id; initialize it first."


class ReservationEnded(Conflict):
    """The reservation is settled, voided or expired, and this call is not a replay of how it ended (M3)."""

    code = "reservation_ended"
    title = "Reservation ended"
    default = "This reservation has already ended; ask for its receipt."


class StepOutOfOrder(Conflict):
    """An extension that does not follow the last one."""

    code = "step_out_of_order"
    title = "Step out of order"
    default = "Extensions are numbered 1, 2, …; send the one that follows the last."


class BelowZero(Invalid):
    """A change that would leave less than nothing, or less than running streams hold."""

    code = "below_zero"
    title = "Balance below zero"
    default = "That would take the balance below zero or below what running streams hold; take less."


class BalanceTooLarge(Invalid):
    """A grant that would lift the account over a limit."""

    code = "balance_too_large"
    title = "Balance too large"
    default = "An account may hold at most a billion credits in a thousand grants; grant less."


class ModelWithoutPrice(Invalid):
    """Neither the model nor `*` has a price."""

    code = "model_without_price"
    title = "Model without price"
    default = "This model has no price; ask an administrator to set one."


class PriceConflict(Conflict):
    """Another price of the model already holds from that very instant."""

    code = "price_conflict"
    title = "Price already set"
    default = "This model already has another price from that instant; choose a later effectiveFrom."


class Book(StrEnum):
    """One side of a transfer. `available` and `reserved` are kept per account; the others are sums over transfers."""

    ISSUED = "issued"
    AVAILABLE = "available"
    RESERVED = "reserved"
    REVENUE = "revenue"
    EXPIRED = "expired"
    UNCOLLECTED = "uncollected"


class Kind(StrEnum):
    """Why credits moved."""

    GRANT = "grant"
    RESERVE = "reserve"
    CHARGE = "charge"
    RELEASE = "release"
    EXPIRE = "expire"
    REVOKE = "revoke"
    UNCOLLECTED = "uncollected"


_FLOWS = frozenset(
    {
        (Kind.GRANT, Book.ISSUED, Book.AVAILABLE),
        (Kind.RESERVE, Book.AVAILABLE, Book.RESERVED),
        (Kind.CHARGE, Book.RESERVED, Book.REVENUE),
        (Kind.CHARGE, Book.AVAILABLE, Book.REVENUE),
        (Kind.RELEASE, Book.RESERVED, Book.AVAILABLE),
        (Kind.EXPIRE, Book.AVAILABLE, Book.EXPIRED),
        (Kind.REVOKE, Book.AVAILABLE, Book.ISSUED),
        (Kind.UNCOLLECTED, Book.UNCOLLECTED, Book.REVENUE),
    }
)
_OF_ACCOUNTS = frozenset({Book.AVAILABLE, Book.RESERVED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """A transfer to be posted: `amount` microcredits leave the book `debit` and enter the book `credit`."""

    kind: Kind
    amount: int
    debit: Book
    credit: Book
    grant_id: str | None = None
    reservation_id: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        """Hold double entry: a positive amount on a known flow, and its grant wherever an account's book is touched."""
        assert self.amount > 0
        assert (self.kind, self.debit, self.credit) in _FLOWS
        assert (self.grant_id is not None) == bool({self.debit, self.credit} & _OF_ACCOUNTS)

    def change_of(self, book: Book) -> int:
        """By how much it changes `book`, in microcredits."""
        return self.amount * ((self.credit == book) - (self.debit == book))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """A movement as it is recorded; `available_after` is the account's available balance behind it."""

    id: int
    account_id: UserId
    at: int
    available_after: Credits
    movement: Movement


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account's two balances in microcredits: what may be spent, and what running streams hold."""

    id: UserId
    available: Credits
    reserved: Credits

    @property
    def posted(self) -> Credits:
        """Both together."""
        return Credits(self.available + self.reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Credits issued to an account until `expires_at`; `remaining` are those neither reserved, charged nor gone."""

    id: str
    account_id: UserId
    amount: Credits
    remaining: Credits
    expires_at: int
    priority: int
    created_at: int
    granted_by: str
    notes: str

    def due(self, *, at: int) -> bool:
        """Whether it has expired at the instant `at`."""
        return self.expires_at <= at

    @property
    def rank(self) -> tuple[int, int, int, str]:
        """The order of use (M6): lowest priority number, then soonest expiry, then oldest; the id settles ties."""
        return (self.priority, self.expires_at, self.created_at, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An amount taken from one grant."""

    grant_id: str
    amount: int


def take(grants: Iterable[Grant], amount: int) -> tuple[Part, ...]:
    """Which grants give `amount` microcredits, in order of use. The grants must cover it."""
    parts: list[Part] = []
    missing = amount
    for grant in sorted(grants, key=lambda each: each.rank):
        if missing == 0:
            break
        if (given := min(grant.remaining, missing)) > 0:
            parts.append(Part(grant_id=grant.id, amount=given))
            missing -= given
    assert missing == 0, "the caller holds the account and has seen that its grants cover the amount"
    return tuple(parts)


def split(parts: Sequence[Part], charge: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The parts that pay `charge` microcredits, first taken first, and those that go back to their grants."""
    paying: list[Part] = []
    returning: list[Part] = []
    missing = charge
    for part in parts:
        paid = min(part.amount, missing)
        missing -= paid
        if paid:
            paying.append(replace(part, amount=paid))
        if paid < part.amount:
            returning.append(replace(part, amount=part.amount - paid))
    assert missing == 0, "a charge never exceeds what is reserved (M7)"
    return tuple(paying), tuple(returning)


class State(StrEnum):
    """Where a reservation stands; every state but the first is final (M3)."""

    ACTIVE = "active"
    SETTLED = "settled"
    VOIDED = "voided"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Credits held for one stream. `reserved` counts all that was ever held, `output_tokens` all output it pays for.

    `step` is the number of extensions so far. `settlement` tells how it ended; `end_hash` is the fingerprint of the
    call that settled it, absent while active, voided, or expired without a late settlement.
    """

    id: StreamId
    account_id: UserId
    model_id: str
    price_version: str
    state: State
    reserved: Credits
    input_tokens: int
    output_tokens: int
    output_tokens_max: int
    step: int
    created_at: int
    expires_at: int
    ended_at: int | None = None
    usage: Usage | None = None
    usage_source: str | None = None
    end_hash: str | None = None
    settlement: Settlement | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What an account holds at an instant; `available` leaves out grants that are due but not yet booked as expired."""

    account_id: UserId
    available: Credits
    reserved: Credits
    grants: tuple[Grant, ...]

    @property
    def total(self) -> Credits:
        """Available and reserved together."""
        return Credits(self.available + self.reserved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What an administrator's change did to the total of an account, in microcredits."""

    account_id: UserId
    previous: Credits
    new: Credits
    grant: Grant | None = None

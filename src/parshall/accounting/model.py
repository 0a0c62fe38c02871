"""The values and refusals of the ledger: books, transfers, grants, reservations and balances."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from parshall.kernel.credits import CREDITS_MAX, Credits
from parshall.kernel.errors import Conflict, Invalid, NotFound
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage

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
    """Why credits moved; between which books follows from it."""

    GRANT = "grant"
    RESERVE = "reserve"
    CHARGE = "charge"
    DEDUCT = "deduct"
    RELEASE = "release"
    EXPIRE = "expire"
    REVOKE = "revoke"
    UNCOLLECTED = "uncollected"


FLOWS = {
    Kind.GRANT: (Book.ISSUED, Book.AVAILABLE),
    Kind.RESERVE: (Book.AVAILABLE, Book.RESERVED),
    Kind.CHARGE: (Book.RESERVED, Book.REVENUE),
    Kind.DEDUCT: (Book.AVAILABLE, Book.REVENUE),
    Kind.RELEASE: (Book.RESERVED, Book.AVAILABLE),
    Kind.EXPIRE: (Book.AVAILABLE, Book.EXPIRED),
    Kind.REVOKE: (Book.AVAILABLE, Book.ISSUED),
    Kind.UNCOLLECTED: (Book.UNCOLLECTED, Book.REVENUE),
}
"""The book that each kind of transfer debits and the one that it credits."""


def effect(kind: Kind, book: Book) -> int:
    """+1 where a transfer of that kind credits `book`, -1 where it debits it, else 0."""
    debit, credit = FLOWS[kind]
    return (credit is book) - (debit is book)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A movement as it is recorded, `number`ed in its account; `available_after` is the account's balance behind it.

    `hash` chains it to the transfer before it (chain.link). The fields stand in the order of the table's columns.
    """

    account_id: str
    number: int
    kind: Kind
    amount: int
    grant_id: str | None
    reservation_id: str | None
    at: int
    available_after: int
    note: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account's two balances in microcredits: what may be spent, and what running streams hold."""

    id: str
    available: Credits
    reserved: Credits

    @property
    def posted(self) -> Credits:
        """Both together."""
        return Credits(self.available + self.reserved)


@dataclass(frozen=True, slots=True)
class Grant:
    """Credits issued to an account until `expires_at`; `remaining` are those neither reserved, charged nor gone.

    The fields stand in the order of the table's columns.
    """

    id: str
    account_id: str
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


class State(StrEnum):
    """Where a reservation stands; every state but the first is final (M3)."""

    ACTIVE = "active"
    SETTLED = "settled"
    VOIDED = "voided"
    EXPIRED = "expired"


class Reservation(msgspec.Struct, gc=False):
    """Credits held for one stream. `reserved` counts all that was ever held, `output_tokens` all output it pays for.

    `parts` tells which grant gave how much, in order (JSON), `step` the number of extensions so far; the fields
    `first_…` repeat the first slice. Where an organisation pays, it counts toward the limits of the membership
    `member_id`, on the day `counted_on`. Those from `ended_at` on are absent while it runs; usage where none was
    reported.
    The fields stand in the order of the table's columns; not frozen, because the working set changes it in place. It
    holds no containers: that the collector passes over the hundreds of a batch saves a twentieth of its CPU.
    """

    id: StreamId
    account_id: str
    user_id: UserId
    model_id: str
    price_version: str
    state: State
    reserved: int
    parts: str
    input_tokens: int
    output_tokens: int
    output_tokens_max: int
    slice_tokens: int
    slice_tokens_min: int
    step: int
    created_at: int
    expires_at: int
    first_reserved: int
    first_output_tokens: int
    first_expires_at: int
    first_final: int
    member_id: str = ""
    counted_on: int = 0
    ended_at: int | None = None
    used_input_tokens: int | None = None
    used_cached_input_tokens: int | None = None
    used_output_tokens: int | None = None
    used_reasoning_tokens: int | None = None
    usage_source: str | None = None
    outcome: str | None = None
    charged: int | None = None
    uncollected: int | None = None
    balance_after: int | None = None
    transfers_from: int | None = None
    transfers_to: int | None = None

    @property
    def first(self) -> Slice:
        """The slice that it began with."""
        return Slice(
            reserved=Credits(self.first_reserved),
            output_tokens=self.first_output_tokens,
            expires_at=self.first_expires_at,
            final=bool(self.first_final),
        )

    @property
    def usage(self) -> Usage | None:
        """What was used, once that was reported."""
        if self.usage_source is None:
            return None
        return Usage(
            input_tokens=self.used_input_tokens or 0,
            cached_input_tokens=self.used_cached_input_tokens or 0,
            output_tokens=self.used_output_tokens or 0,
            reasoning_tokens=self.used_reasoning_tokens or 0,
        )

    @property
    def settlement(self) -> Settlement | None:
        """How it ended, once it has."""
        if self.outcome is None:
            return None
        charged = self.charged or 0
        return Settlement(
            outcome=self.outcome,
            reserved=Credits(self.reserved),
            charged=Credits(charged),
            returned=Credits(self.reserved - charged),
            uncollected=Credits(self.uncollected or 0),
            balance_after=Credits(self.balance_after or 0),
            price_version=self.price_version,
            transfers=tuple(range(self.transfers_from or 0, self.transfers_to or 0)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """What an account holds at an instant; `available` leaves out grants that are due but not yet booked as expired."""

    account_id: str
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

    account_id: str
    previous: Credits
    new: Credits
    grant: Grant | None = None

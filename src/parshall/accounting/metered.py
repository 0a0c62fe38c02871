"""The life of a reservation inside one transaction: reserve, extend, settle, void, expire."""

import hashlib
import json
from dataclasses import dataclass

from sqlalchemy import Connection

from parshall.accounting import reservations, store
from parshall.accounting.model import (
    Account,
    Book,
    Kind,
    ModelWithoutPrice,
    Movement,
    Part,
    Reservation,
    ReservationEnded,
    State,
    StepOutOfOrder,
    UnknownReservation,
    split,
    take,
)
from parshall.kernel.credits import Credits, text, wire
from parshall.kernel.errors import InsufficientCredits, KeyReused
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource

_RESERVE = (Kind.RESERVE, Book.AVAILABLE, Book.RESERVED)
_CHARGE = (Kind.CHARGE, Book.RESERVED, Book.REVENUE)
_RELEASE = (Kind.RELEASE, Book.RESERVED, Book.AVAILABLE)


def fingerprint(*parts: object) -> str:
    """A digest of a request, by which a replay is told from another request under the same key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def enter(connection: Connection, account_id: UserId, *, at: int) -> Account:
    """Hold an account for a change, its due grants booked as expired first."""
    account = store.hold_account(connection, account_id, at=at)
    return store.find_account(connection, account_id) if store.expire_grants(connection, account_id, at=at) else account


def refusal(account: Account, *, required: int) -> InsufficientCredits:
    """The 402 that says what was needed (microcredits), what is there, and what running streams hold."""
    return InsufficientCredits(
        f"This needs {text(required)} credits and {text(account.available)} are available "
        f"({text(account.reserved)} are held by running streams); ask for a grant or wait until those settle.",
        requiredCredits=wire(required),
        availableCredits=wire(account.available),
        reservedCredits=wire(account.reserved),
    )


# ── Reserve ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A request to reserve. `slice_tokens_min` is the least output worth starting for."""

    stream_id: StreamId
    account_id: UserId
    model_id: str
    input_tokens: int
    output_tokens_max: int
    slice_tokens: int
    slice_tokens_min: int = 1

    def __post_init__(self) -> None:
        """Hold what the edge has validated."""
        assert self.input_tokens >= 0
        assert 1 <= self.slice_tokens_min <= min(self.slice_tokens, self.output_tokens_max)

    @property
    def fingerprint(self) -> str:
        """Tells a replay from another request under the same stream id (M4)."""
        return fingerprint("reserve", *(getattr(self, name) for name in self.__slots__))


def reserve(connection: Connection, opening: Opening, *, at: int, expires_at: int) -> Slice:
    """Hold the prompt and a first slice. Raises InsufficientCredits, ModelWithoutPrice, KeyReused, ReservationEnded."""
    account = enter(connection, opening.account_id, at=at)
    answered = reservations.find_slice(connection, opening.stream_id, step=0)
    if answered is not None:
        return _reserved_again(connection, opening, answered)
    version = store.price_in_force(connection, opening.model_id, at=at)
    if version is None:
        raise ModelWithoutPrice
    price, tokens = version.price, opening.input_tokens
    asked = min(opening.slice_tokens, opening.output_tokens_max)
    output = price.affordable(budget=account.available, input_tokens=tokens, output_tokens=asked)
    if output < opening.slice_tokens_min:
        raise refusal(account, required=price.ceiling(input_tokens=tokens, output_tokens=opening.slice_tokens_min))
    granted = Slice(
        reserved=price.ceiling(input_tokens=tokens, output_tokens=output),
        output_tokens=output,
        expires_at=expires_at,
        final=output == opening.output_tokens_max or output < asked,
    )
    reservations.add_reservation(connection, _opened(opening, granted, price_version=version.version, at=at))
    _hold(connection, opening.account_id, opening.stream_id, granted.reserved, at=at)
    reservations.add_slice(connection, opening.stream_id, granted, step=0, fingerprint=opening.fingerprint)
    return granted


def _reserved_again(connection: Connection, opening: Opening, answered: tuple[str, Slice]) -> Slice:
    """The first answer, while it is worth anything: an ended reservation must not look like one that pays."""
    granted = _replayed(answered, opening.fingerprint)
    reservation = reservations.find_reservation(connection, opening.stream_id)
    if reservation is not None and reservation.state is not State.ACTIVE:
        raise ReservationEnded("This reservation has ended; make a new streaming session id.")
    return granted


def _opened(opening: Opening, granted: Slice, *, price_version: str, at: int) -> Reservation:
    return Reservation(
        id=opening.stream_id,
        account_id=opening.account_id,
        model_id=opening.model_id,
        price_version=price_version,
        state=State.ACTIVE,
        reserved=granted.reserved,
        input_tokens=opening.input_tokens,
        output_tokens=granted.output_tokens,
        output_tokens_max=opening.output_tokens_max,
        step=0,
        created_at=at,
        expires_at=granted.expires_at,
    )


def _replayed(answered: tuple[str, Slice], asked: str) -> Slice:
    first, granted = answered
    if first != asked:
        raise KeyReused
    return granted


def _hold(connection: Connection, account_id: UserId, stream_id: StreamId, amount: int, *, at: int) -> list[int]:
    """Move `amount` from the account's grants to its reserved book, remembering which grant gave what."""
    parts = take(store.held_grants(connection, account_id), amount)
    reservations.add_parts(connection, stream_id, parts)
    return store.move_parts(connection, account_id, parts, _RESERVE, at=at, reservation_id=stream_id)


# ── Extend ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def extend(
    connection: Connection, stream_id: StreamId, *, step: int, output_tokens: int, at: int, expires_at: int
) -> Slice:
    """Hold more output. Raises InsufficientCredits, UnknownReservation, ReservationEnded, StepOutOfOrder, KeyReused."""
    account, reservation = _enter_reservation(connection, stream_id, at=at)
    asked_hash = fingerprint("extend", output_tokens)
    answered = reservations.find_slice(connection, stream_id, step=step)
    if answered is not None:
        return _replayed(answered, asked_hash)
    if reservation.state is not State.ACTIVE:
        raise ReservationEnded
    if step != reservation.step + 1:
        raise StepOutOfOrder(f"The next extension of this stream is step {reservation.step + 1}; send that one.")
    granted = _grown(connection, account, reservation, output_tokens=output_tokens, expires_at=expires_at)
    extra = granted.reserved - reservation.reserved
    _hold(connection, account.id, stream_id, extra, at=at)
    grown = reservations.grow(
        connection, reservation, output_tokens=granted.output_tokens, extra=extra, expires_at=expires_at
    )
    assert grown, "the account is held, so nobody else can have moved its reservation"
    reservations.add_slice(connection, stream_id, granted, step=step, fingerprint=asked_hash)
    return granted


def _grown(
    connection: Connection, account: Account, reservation: Reservation, *, output_tokens: int, expires_at: int
) -> Slice:
    """The slice after an extension. One that has reached the turn's own limit is only renewed."""
    price = store.find_price(connection, reservation.price_version).price
    tokens, held, limit = reservation.input_tokens, reservation.output_tokens, reservation.output_tokens_max
    asked = min(held + output_tokens, limit)
    budget = reservation.reserved + account.available
    output = price.affordable(budget=budget, input_tokens=tokens, output_tokens=asked)
    if output <= held < limit:
        least = price.ceiling(input_tokens=tokens, output_tokens=held + 1)
        raise refusal(account, required=least - reservation.reserved)
    return Slice(
        reserved=price.ceiling(input_tokens=tokens, output_tokens=output),
        output_tokens=output,
        expires_at=expires_at,
        final=output == limit or output < asked,
    )


def _enter_reservation(connection: Connection, stream_id: StreamId, *, at: int) -> tuple[Account, Reservation]:
    """Hold the account of a reservation, then read the reservation: only from then on can it not change."""
    found = reservations.find_reservation(connection, stream_id)
    if found is None:
        raise UnknownReservation
    account = enter(connection, found.account_id, at=at)
    reservation = reservations.find_reservation(connection, stream_id)
    assert reservation is not None, "reservations are never deleted"
    return account, reservation


# ── Settle ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a stream used, who says so, and how it ended."""

    usage: Usage
    source: UsageSource
    outcome: str

    @property
    def fingerprint(self) -> str:
        """Tells a replay from another report on the same stream (M4)."""
        return fingerprint("settle", self.usage.wire(), self.source.value, self.outcome)


def settle(connection: Connection, stream_id: StreamId, report: Report, *, at: int) -> Settlement:
    """Charge what was used and return the rest; what no longer can be charged is booked as uncollected.

    An expired reservation holds nothing any more: a late report is charged to what is available now, and the
    reservation stays expired. Raises UnknownReservation, KeyReused, ReservationEnded (for a voided one).
    """
    account, reservation = _enter_reservation(connection, stream_id, at=at)
    if reservation.end_hash is not None and reservation.settlement is not None:
        if reservation.end_hash != report.fingerprint:
            raise KeyReused("This stream was already settled with other usage; its receipt says with which.")
        return reservation.settlement
    if reservation.state is State.VOIDED:
        raise ReservationEnded("This reservation was voided: everything was returned and nothing can be charged to it.")
    settlement = _charge(connection, account, reservation, report, at=at)
    ended = reservations.end_with_usage(
        connection,
        stream_id,
        state=State.SETTLED if reservation.state is State.ACTIVE else State.EXPIRED,
        settlement=settlement,
        usage=report.usage,
        source=report.source.value,
        fingerprint=report.fingerprint,
        at=at,
    )
    assert ended, "the account is held, so nobody else can have ended its reservation"
    return settlement


def _charge(
    connection: Connection, account: Account, reservation: Reservation, report: Report, *, at: int
) -> Settlement:
    cost = store.find_price(connection, reservation.price_version).price.cost(report.usage)
    parts = reservations.find_parts(connection, reservation.id) if reservation.state is State.ACTIVE else ()
    held = sum(part.amount for part in parts)
    extra = min(max(cost - held, 0), account.available)
    numbers: list[int] = []
    if extra:  # reserve first, then charge: nothing is ever charged that was not reserved (M7)
        more = take(store.held_grants(connection, account.id), extra)
        reservations.add_parts(connection, reservation.id, more)
        numbers += store.move_parts(connection, account.id, more, _RESERVE, at=at, reservation_id=reservation.id)
        parts += more
    charged = min(cost, held + extra)
    paying, returning = split(parts, charged)
    numbers += store.move_parts(connection, account.id, paying, _CHARGE, at=at, reservation_id=reservation.id)
    numbers += _release(connection, account.id, reservation.id, returning, at=at)
    numbers += _write_off(connection, account.id, reservation.id, cost - charged, at=at)
    reserved = reservation.reserved + extra
    return Settlement(
        outcome=report.outcome,
        reserved=Credits(reserved),
        charged=Credits(charged),
        returned=Credits(reserved - charged),
        uncollected=Credits(cost - charged),
        balance_after=store.find_account(connection, account.id).available,
        price_version=reservation.price_version,
        transfers=tuple(numbers),
    )


def _release(
    connection: Connection, account_id: UserId, stream_id: StreamId, parts: tuple[Part, ...], *, at: int
) -> list[int]:
    """Give parts back to the grants they came from (M6); what lands in a grant that has expired expires at once."""
    numbers = store.move_parts(connection, account_id, parts, _RELEASE, at=at, reservation_id=stream_id)
    store.expire_grants(connection, account_id, at=at)
    return numbers


def _write_off(connection: Connection, account_id: UserId, stream_id: StreamId, amount: int, *, at: int) -> list[int]:
    """Book what usage cost beyond all that could be charged, so that it is seen."""
    if amount == 0:
        return []
    movement = Movement(
        kind=Kind.UNCOLLECTED,
        amount=amount,
        debit=Book.UNCOLLECTED,
        credit=Book.REVENUE,
        reservation_id=stream_id,
    )
    return [store.post(connection, account_id, movement, at=at).id]


# ── Void, expire ────────────────────────────────────────────────────────────────────────────────────────────────────


def void(connection: Connection, stream_id: StreamId, *, at: int) -> Settlement | None:
    """Return everything. None for an unknown stream; one that has ended answers as it ended."""
    if reservations.find_reservation(connection, stream_id) is None:
        return None
    account, reservation = _enter_reservation(connection, stream_id, at=at)
    if reservation.settlement is not None:
        return reservation.settlement
    return _end_unused(connection, account, reservation, State.VOIDED, at=at)


def expire(connection: Connection, stream_id: StreamId, *, at: int) -> bool:
    """Return everything of a reservation whose time is up; False if it ended or was renewed meanwhile."""
    account, reservation = _enter_reservation(connection, stream_id, at=at)
    if reservation.state is not State.ACTIVE or reservation.expires_at > at:
        return False
    _end_unused(connection, account, reservation, State.EXPIRED, at=at)
    return True


def _end_unused(
    connection: Connection, account: Account, reservation: Reservation, state: State, *, at: int
) -> Settlement:
    parts = reservations.find_parts(connection, reservation.id)
    numbers = _release(connection, account.id, reservation.id, parts, at=at)
    settlement = Settlement(
        outcome=state.value,
        reserved=reservation.reserved,
        charged=Credits(0),
        returned=reservation.reserved,
        uncollected=Credits(0),
        balance_after=store.find_account(connection, account.id).available,
        price_version=reservation.price_version,
        transfers=tuple(numbers),
    )
    ended = reservations.end(connection, reservation.id, state=state, settlement=settlement, at=at)
    assert ended, "the account is held, so nobody else can have ended its reservation"
    return settlement

"""How a reservation ends, by the rules alone: settle, void and expire."""

import msgspec

from parshall.accounting.books import Books, HeldAccount, Parts, joined, read_parts
from parshall.accounting.metered import budget
from parshall.accounting.model import Kind, Reservation, ReservationEnded, State
from parshall.kernel.errors import KeyReused
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Settlement, Usage, UsageSource

# ── Settle ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class Report(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a stream used, who says so, and how it ended."""

    usage: Usage
    source: UsageSource
    outcome: str

    def settled(self, reservation: Reservation) -> bool:
        """Whether `reservation` was settled by this very report (M4)."""
        return (
            reservation.usage == self.usage
            and reservation.usage_source == self.source
            and reservation.outcome == self.outcome
        )


def settle(books: Books, stream_id: StreamId, report: Report) -> Settlement:
    """Charge what was used and return the rest; what no longer can be charged is booked as uncollected.

    An expired reservation holds nothing any more: a late report is charged to what is available now, and the
    reservation stays expired. Raises UnknownReservation, KeyReused, ReservationEnded (for a voided one).
    """
    reservation = books.reservation(stream_id)
    if reservation.usage_source is not None:
        if not report.settled(reservation):
            raise KeyReused("This stream was already settled with other usage; its receipt says with which.")
        return _ended(reservation)
    if reservation.state is State.VOIDED:
        raise ReservationEnded("This reservation was voided: everything was returned and nothing can be charged to it.")
    _charge(books, reservation, report)
    usage = report.usage
    reservation.used_input_tokens = usage.input_tokens
    reservation.used_cached_input_tokens = usage.cached_input_tokens
    reservation.used_output_tokens = usage.output_tokens
    reservation.used_reasoning_tokens = usage.reasoning_tokens
    reservation.usage_source = report.source.value
    return _ended(reservation)


def _charge(books: Books, reservation: Reservation, report: Report) -> None:
    account = books.account(reservation.account_id)
    cost = books.price_version(reservation.price_version).price.cost(report.usage)
    active = reservation.state is State.ACTIVE
    parts = read_parts(reservation.parts) if active else []
    held = reservation.reserved if active else 0
    first = account.number + 1
    extra = min(max(cost - held, 0), budget(books, account, reservation, held=held))
    if extra:  # reserve first, then charge: nothing is ever charged that was not reserved (M7)
        parts = joined(parts, books.take(account, Kind.RESERVE, extra, reservation_id=reservation.id))
    charged = min(cost, held + extra)
    back = pay(books, account, reservation.id, parts, charged)
    if cost > charged:
        books.post(account, Kind.UNCOLLECTED, cost - charged, reservation_id=reservation.id)
    books.count(reservation, was=held, now=charged)
    reservation.reserved += extra
    reservation.uncollected = cost - charged
    state = State.SETTLED if active else State.EXPIRED
    _end(books, account, reservation, state=state, outcome=report.outcome, charged=charged, first=first, back=back)


def pay(books: Books, account: HeldAccount, stream_id: StreamId, parts: Parts, charged: int) -> bool:
    """Charge the parts first taken first and give the rest back to the grants they came from (M6).

    Whether something came back to a grant that has expired meanwhile.
    """
    missing, late = charged, False
    returning: Parts = []
    for grant_id, amount in parts:
        paid = min(amount, missing)
        if paid:
            books.post(account, Kind.CHARGE, paid, grant=books.grants[grant_id], reservation_id=stream_id)
            missing -= paid
        if paid < amount:
            returning.append((grant_id, amount - paid))
    assert missing == 0, "a charge never exceeds what is reserved (M7)"
    for grant_id, amount in returning:
        grant = books.grants[grant_id]
        books.post(account, Kind.RELEASE, amount, grant=grant, reservation_id=stream_id)
        late = late or grant.grant.due(at=books.at)
    return late


def _end(
    books: Books,
    account: HeldAccount,
    reservation: Reservation,
    *,
    state: State,
    outcome: str,
    charged: int,
    first: int,
    back: bool,
) -> None:
    """Record how it ended; the transfers from number `first` on are its own. What came back too late expires."""
    reservation.transfers_from, reservation.transfers_to = first, account.number + 1
    if back:
        books.expire_grants(account)
    reservation.state = state
    reservation.ended_at = books.at
    reservation.outcome = outcome
    reservation.charged = charged
    reservation.balance_after = account.available
    books.end(reservation)


def _ended(reservation: Reservation) -> Settlement:
    settlement = reservation.settlement
    assert settlement is not None
    return settlement


# ── Void, expire ────────────────────────────────────────────────────────────────────────────────────────────────────


def void(books: Books, stream_id: StreamId) -> Settlement | None:
    """Return everything. None for an unknown stream; one that has ended answers as it ended."""
    reservation = books.reservations.get(stream_id)
    if reservation is None:
        return None
    if reservation.state is State.ACTIVE:
        _end_unused(books, reservation, State.VOIDED)
    return _ended(reservation)


def expire(books: Books, stream_id: StreamId) -> bool:
    """Return everything of a reservation whose time is up; False if it ended or was renewed meanwhile."""
    reservation = books.reservation(stream_id)
    if reservation.state is not State.ACTIVE or reservation.expires_at > books.at:
        return False
    _end_unused(books, reservation, State.EXPIRED)
    return True


def _end_unused(books: Books, reservation: Reservation, state: State) -> None:
    account = books.account(reservation.account_id)
    first = account.number + 1
    back = pay(books, account, reservation.id, read_parts(reservation.parts), 0)
    books.count(reservation, was=reservation.reserved, now=0)
    _end(books, account, reservation, state=state, outcome=state.value, charged=0, first=first, back=back)

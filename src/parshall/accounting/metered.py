"""How a reservation begins and grows, by the rules alone: reserve and extend."""

import msgspec

from parshall.accounting.books import Books, HeldAccount, joined, read_parts, stored_parts
from parshall.accounting.model import (
    Kind,
    Reservation,
    ReservationEnded,
    State,
    StepOutOfOrder,
)
from parshall.accounting.organisation import Member
from parshall.accounting.pricing import Price
from parshall.kernel.clock import SECOND
from parshall.kernel.credits import Credits, text, wire
from parshall.kernel.errors import InsufficientCredits, KeyReused
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Slice

SHARE = 4
"""A slice takes at most this part of what is available, so that streams that run at once all get some."""
SHARED_TOKENS_MIN = 16
"""Below so many output tokens a slice is not made smaller: every slice costs a round trip."""


def refusal(
    account: HeldAccount, *, required: int, available: int | None = None, drawable: int | None = None
) -> InsufficientCredits:
    """The 402 that says what was needed (microcredits), what is there, and what running streams hold.

    `available` where it is less than the account has; `drawable` is what an organisation would give beside it.
    """
    there = account.available if available is None else available
    amounts = {"requiredCredits": required, "availableCredits": there, "reservedCredits": account.reserved}
    beside = ""
    if drawable is not None:
        amounts["organisationCredits"] = drawable
        beside = f", and your organisation gives you {text(drawable)} now; one of the two has to cover it"
    return InsufficientCredits(
        f"This needs {text(required)} credits and {text(there)} are available "
        f"({text(account.reserved)} are held by running streams){beside}. "
        "Ask for a grant or wait until those streams settle.",
        **{name: wire(amount) for name, amount in amounts.items()},  # type: ignore[arg-type]
    )


# ── Reserve ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Opening(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request to reserve. `slice_tokens_min` is the least output worth starting for."""

    stream_id: StreamId
    user_id: UserId
    model_id: str
    input_tokens: int
    output_tokens_max: int
    slice_tokens: int
    slice_tokens_min: int = 1

    def __post_init__(self) -> None:
        """Hold what the edge has validated."""
        assert self.input_tokens >= 0
        assert 1 <= self.slice_tokens_min <= min(self.slice_tokens, self.output_tokens_max)

    def opened(self, reservation: Reservation) -> bool:
        """Whether `reservation` was made by this very request (M4)."""
        return (
            reservation.user_id == self.user_id
            and reservation.model_id == self.model_id
            and reservation.input_tokens == self.input_tokens
            and reservation.output_tokens_max == self.output_tokens_max
            and reservation.slice_tokens == self.slice_tokens
            and reservation.slice_tokens_min == self.slice_tokens_min
        )


def reserve(books: Books, opening: Opening, *, reservation_seconds: int) -> Slice:
    """Hold the prompt and a first slice. Raises InsufficientCredits, ModelWithoutPrice, KeyReused, ReservationEnded."""
    known = books.reservations.get(opening.stream_id)
    if known is not None:
        return _reserved_again(known, opening)
    version = books.price(opening.model_id)
    account, member, granted = _first_slice(books, opening, version.price, books.at + reservation_seconds * SECOND)
    reserved = granted.reserved
    parts = books.take(account, Kind.RESERVE, reserved, reservation_id=opening.stream_id) if reserved else []
    reservation = Reservation(
        opening.stream_id,
        account.id,
        opening.user_id,
        opening.model_id,
        version.version,
        State.ACTIVE,
        reserved,
        stored_parts(parts),
        opening.input_tokens,
        granted.output_tokens,
        opening.output_tokens_max,
        opening.slice_tokens,
        opening.slice_tokens_min,
        0,
        books.at,
        granted.expires_at,
        reserved,
        granted.output_tokens,
        granted.expires_at,
        int(granted.final),
        "" if member is None else member.id,
    )
    books.reservations[opening.stream_id] = reservation
    books.opened[opening.stream_id] = reservation
    books.count(reservation, was=0, now=reserved)
    return granted


def _reserved_again(reservation: Reservation, opening: Opening) -> Slice:
    """The first answer, while it is worth anything: an ended reservation must not look like one that pays."""
    if not opening.opened(reservation):
        raise KeyReused
    if reservation.state is not State.ACTIVE:
        raise ReservationEnded("This reservation has ended; make a new streaming session id.")
    return reservation.first


def _first_slice(
    books: Books, opening: Opening, price: Price, expires_at: int
) -> tuple[HeldAccount, Member | None, Slice]:
    """Who pays and what for: the user's organisation within the member's limits, else the user."""
    member, drawable = books.payer(opening.user_id), None
    if member is not None:
        account = books.account(member.organisation_id)
        drawable = member.drawable(account.available, at=books.at)
        if granted := _opened(opening, price, drawable, expires_at):
            return account, member, granted
    account = books.account(opening.user_id)
    if granted := _opened(opening, price, account.available, expires_at):
        return account, None, granted
    least = price.ceiling(input_tokens=opening.input_tokens, output_tokens=opening.slice_tokens_min)
    raise refusal(account, required=least, drawable=drawable)


def _opened(opening: Opening, price: Price, budget: int, expires_at: int) -> Slice | None:
    return fitting_slice(
        price,
        budget=budget,
        input_tokens=opening.input_tokens,
        held=0,
        asked=opening.slice_tokens,
        least=opening.slice_tokens_min,
        limit=opening.output_tokens_max,
        expires_at=expires_at,
    )


def budget(books: Books, account: HeldAccount, reservation: Reservation, *, held: int) -> int:
    """What a stream that holds `held` may still take of the account that pays, within its member's limits.

    Of an organisation that its user has left it takes nothing more.
    """
    if not reservation.member_id:
        return account.available
    member = books.member_of(reservation)
    if member is None:
        return 0
    return member.drawable(account.available, at=books.at, held=held, on=reservation.counted_on)


def fitting_slice(
    price: Price,
    *,
    budget: int,
    input_tokens: int,
    held: int,
    asked: int,
    least: int,
    limit: int,
    expires_at: int,
) -> Slice | None:
    """`asked` more output than `held`, as far as `budget` covers prompt and output; None where not even `least` fits.

    Where there is little, a slice leaves most of it to other streams (SHARE). It is final when `limit` is reached or
    the whole budget would not pay for one more token: the stream then ends at exactly the last one that is paid for.
    """
    paid = price.ceiling(input_tokens=input_tokens, output_tokens=held) if held else 0
    plenty = price.ceiling(input_tokens=input_tokens, output_tokens=min(held + asked, limit))
    if 0 < plenty - paid <= budget // SHARE:  # what most requests meet; the rest of this function says the same
        output = min(held + asked, limit)
        return Slice(reserved=plenty, output_tokens=output, expires_at=expires_at, final=output == limit)
    whole = price.affordable(budget=budget + paid, input_tokens=input_tokens, output_tokens=limit)
    if whole < held + least:
        return None
    share = price.affordable(budget=budget // SHARE + paid, input_tokens=input_tokens, output_tokens=limit)
    fair = max(share - held, SHARED_TOKENS_MIN, least)
    output = min(held + min(asked, fair), whole)
    return Slice(
        reserved=price.ceiling(input_tokens=input_tokens, output_tokens=output),
        output_tokens=output,
        expires_at=expires_at,
        final=output == whole,
    )


# ── Extend ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def extend(books: Books, stream_id: StreamId, *, step: int, output_tokens: int, reservation_seconds: int) -> Slice:
    """Hold more output. Raises InsufficientCredits, UnknownReservation, ReservationEnded, StepOutOfOrder, KeyReused."""
    reservation = books.reservation(stream_id)
    if step <= reservation.step:
        return _extended_again(books, stream_id, step, output_tokens)
    if reservation.state is not State.ACTIVE:
        raise ReservationEnded
    if step != reservation.step + 1:
        raise StepOutOfOrder(f"The next extension of this stream is step {reservation.step + 1}; send that one.")
    account = books.account(reservation.account_id)
    granted = _grown(books, account, reservation, output_tokens, books.at + reservation_seconds * SECOND)
    held, extra = reservation.reserved, granted.reserved - reservation.reserved
    if extra:
        more = books.take(account, Kind.RESERVE, extra, reservation_id=stream_id)
        reservation.parts = stored_parts(joined(read_parts(reservation.parts), more))
    reservation.step = step
    reservation.reserved = granted.reserved
    reservation.output_tokens = granted.output_tokens
    reservation.expires_at = granted.expires_at
    books.grow(reservation)
    books.count(reservation, was=held, now=granted.reserved)
    answer = (granted.reserved, granted.output_tokens, granted.expires_at, int(granted.final))
    books.slices.append((stream_id, step, output_tokens, *answer))
    books.answers[stream_id, step] = (output_tokens, granted)
    return granted


def _extended_again(books: Books, stream_id: StreamId, step: int, output_tokens: int) -> Slice:
    asked, granted = books.answers[stream_id, step]
    if asked != output_tokens:
        raise KeyReused
    return granted


def _grown(books: Books, account: HeldAccount, reservation: Reservation, output_tokens: int, expires_at: int) -> Slice:
    """The slice after an extension. One that has reached the turn's own limit is only renewed."""
    held, limit = reservation.output_tokens, reservation.output_tokens_max
    if held == limit:
        return Slice(reserved=Credits(reservation.reserved), output_tokens=held, expires_at=expires_at, final=True)
    may_take = budget(books, account, reservation, held=reservation.reserved)
    price = books.price_version(reservation.price_version).price
    # A stream that went on with a cheaper model holds more than its slices cost: that is used up first.
    unused = reservation.reserved - price.ceiling(input_tokens=reservation.input_tokens, output_tokens=held)
    granted = fitting_slice(
        price,
        budget=may_take + unused,
        input_tokens=reservation.input_tokens,
        held=held,
        asked=output_tokens,
        least=1,
        limit=limit,
        expires_at=expires_at,
    )
    if granted is None:
        least = price.ceiling(input_tokens=reservation.input_tokens, output_tokens=held + 1)
        raise refusal(account, required=least - reservation.reserved, available=may_take)
    return msgspec.structs.replace(granted, reserved=Credits(max(granted.reserved, reservation.reserved)))

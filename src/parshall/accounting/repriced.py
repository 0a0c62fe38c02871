"""How a reservation goes on with another model, by the rules alone: reprice."""

from dataclasses import dataclass

from parshall.accounting.books import Books, joined, read_parts, stored_parts
from parshall.accounting.metered import budget, fitting_slice, refusal
from parshall.accounting.model import Kind, Reservation, ReservationEnded, State
from parshall.kernel.clock import SECOND
from parshall.kernel.credits import Credits
from parshall.kernel.ids import StreamId
from parshall.kernel.metering import Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Repricing:
    """A request to go on with another model: its prompt and limits take the place of those reserved for."""

    stream_id: StreamId
    model_id: str
    input_tokens: int
    output_tokens_max: int
    slice_tokens: int

    def __post_init__(self) -> None:
        """Hold what the edge has validated."""
        assert self.input_tokens >= 0
        assert 1 <= self.slice_tokens <= self.output_tokens_max

    def holds(self, reservation: Reservation) -> bool:
        """Whether `reservation` is for that model and these tokens already."""
        return (
            reservation.model_id == self.model_id
            and reservation.input_tokens == self.input_tokens
            and reservation.output_tokens_max == self.output_tokens_max
            and reservation.slice_tokens == self.slice_tokens
        )


def reprice(books: Books, request: Repricing, *, reservation_seconds: int) -> Slice:
    """Have another model's price, as it is in force now, hold for a running stream.

    Nothing is returned before the end: what a cheaper model does not need pays for its later slices. A dearer one takes
    what is missing for its first slice. Raises InsufficientCredits, ModelWithoutPrice, UnknownReservation,
    ReservationEnded; then the reservation is as it was.
    """
    reservation = books.reservation(request.stream_id)
    if reservation.state is not State.ACTIVE:
        raise ReservationEnded
    if not request.holds(reservation):
        _reprice(books, reservation, request, books.at + reservation_seconds * SECOND)
    output = reservation.output_tokens
    return Slice(
        reserved=Credits(reservation.reserved),
        output_tokens=output,
        expires_at=reservation.expires_at,
        final=output == reservation.output_tokens_max,
    )


def _reprice(books: Books, reservation: Reservation, request: Repricing, expires_at: int) -> None:
    version, account, held = books.price(request.model_id), books.account(reservation.account_id), reservation.reserved
    may_take = budget(books, account, reservation, held=held)
    granted = fitting_slice(
        version.price,
        budget=may_take + held,
        input_tokens=request.input_tokens,
        held=0,
        asked=request.slice_tokens,
        least=1,
        limit=request.output_tokens_max,
        expires_at=expires_at,
    )
    if granted is None:
        least = version.price.ceiling(input_tokens=request.input_tokens, output_tokens=1)
        raise refusal(account, required=least - held, available=may_take)
    if granted.reserved > held:
        more = books.take(account, Kind.RESERVE, granted.reserved - held, reservation_id=reservation.id)
        reservation.parts = stored_parts(joined(read_parts(reservation.parts), more))
        reservation.reserved = granted.reserved
    reservation.model_id, reservation.price_version = request.model_id, version.version
    reservation.input_tokens, reservation.output_tokens = request.input_tokens, granted.output_tokens
    reservation.output_tokens_max, reservation.slice_tokens = request.output_tokens_max, request.slice_tokens
    reservation.slice_tokens_min, reservation.expires_at = 1, expires_at
    books.grow(reservation)
    books.repriced[reservation.id] = reservation
    books.count(reservation, was=held, now=reservation.reserved)

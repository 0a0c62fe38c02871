"""Accounting's use cases: each is one transaction; balances, grants, streams, prices and what is due."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from parshall.accounting import changes, metered, reservations, store
from parshall.accounting.changes import Terms
from parshall.accounting.metered import Opening, Report, fingerprint
from parshall.accounting.model import (
    Account,
    Balance,
    Changed,
    Grant,
    ModelWithoutPrice,
    Reservation,
    Transfer,
    UnknownReservation,
)
from parshall.accounting.pricing import DEFAULT_PRICES, Price, PriceVersion
from parshall.kernel.clock import MINUTE, SECOND, Clock
from parshall.kernel.credits import Credits
from parshall.kernel.database import Database, Work
from parshall.kernel.errors import Invalid
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource

T = TypeVar("T")

ENTRIES_PER_PAGE_MAX = 500
SESSIONS_PER_LIST_MAX = 500
EXPIRED_PER_TRANSACTION_MAX = 100


class Directory(Protocol):
    """Who is who: auth knows, accounting asks."""

    async def resolve(self, who: str) -> UserId:
        """The id of the user that bears this id, username or e-mail address. Raises NotFound."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Once:
    """An idempotency key as one caller uses it for one operation, and the fingerprint of what is asked under it."""

    scope: str
    key: str
    fingerprint: str

    @classmethod
    def of(cls, *request: object, caller: UserId, operation: str, key: str) -> "Once":
        """`request` is all that the answer depends on, as plain JSON values."""
        return cls(scope=f"{operation}:{caller}", key=key, fingerprint=fingerprint(operation, *request))


class Accounting:
    """The ledger of one deployment. Every method is one transaction; times are microseconds, amounts microcredits."""

    def __init__(self, database: Database, *, directory: Directory, clock: Clock, reservation_seconds: int) -> None:
        """A reservation that is neither extended nor ended for `reservation_seconds` expires."""
        self.directory = directory
        self._database = database
        self._clock = clock
        self._reservation_seconds = reservation_seconds

    async def start(self) -> None:
        """Write the default prices where no price was ever set."""

        def work(connection: Connection) -> None:
            if store.any_price(connection):
                return
            for model_id, price in DEFAULT_PRICES.items():
                store.add_price(connection, PriceVersion.of(model_id, price, effective_from=0, set_by="default"))

        await self._database.write(work)

    async def close(self) -> None:
        """Finish what is under way and close the database."""
        await self._database.close()

    def now(self) -> int:
        """The present instant."""
        return self._clock()

    # ── Ledger: one stream's credits ────────────────────────────────────────────────────────────────────────────────

    async def reserve(
        self,
        *,
        stream_id: StreamId,
        user_id: UserId,
        model_id: str,
        input_tokens: int,
        output_tokens_max: int,
        slice_tokens: int,
    ) -> Slice:
        """Hold the prompt and a first slice of output, as much of it as the balance covers.

        Raises InsufficientCredits when not even one output token is covered, ModelWithoutPrice,
        KeyReused for an id that was reserved with other arguments. The same arguments again: the first answer while
        the reservation runs, ReservationEnded afterwards: a slice that holds nothing must not look like one that does.
        """
        return await self._reserve(
            Opening(
                stream_id=stream_id,
                account_id=user_id,
                model_id=model_id,
                input_tokens=input_tokens,
                output_tokens_max=output_tokens_max,
                slice_tokens=slice_tokens,
            )
        )

    async def reserve_whole(self, *, stream_id: StreamId, user_id: UserId, model_id: str, tokens: int) -> Slice:
        """Hold all of an estimate, priced as output, or nothing. Raises as `reserve` does."""
        return await self._reserve(
            Opening(
                stream_id=stream_id,
                account_id=user_id,
                model_id=model_id,
                input_tokens=0,
                output_tokens_max=tokens,
                slice_tokens=tokens,
                slice_tokens_min=tokens,
            )
        )

    async def _reserve(self, opening: Opening) -> Slice:
        at = self._clock()
        until = self._until(at)
        return await self._database.write(lambda c: metered.reserve(c, opening, at=at, expires_at=until))

    async def extend(self, *, stream_id: StreamId, step: int, output_tokens: int) -> Slice:
        """Hold up to `output_tokens` more and renew the reservation; `step` (1, 2, …) is the idempotency key.

        Raises InsufficientCredits when not one more token is covered, UnknownReservation, ReservationEnded,
        StepOutOfOrder, KeyReused.
        """
        at = self._clock()
        until = self._until(at)
        return await self._database.write(
            lambda c: metered.extend(c, stream_id, step=step, output_tokens=output_tokens, at=at, expires_at=until)
        )

    async def settle(self, *, stream_id: StreamId, usage: Usage, source: UsageSource, outcome: str) -> Settlement:
        """Charge what was used and return the rest. A replay gives the first answer.

        Raises UnknownReservation, KeyReused for other usage than the first, ReservationEnded for a voided one.
        """
        at = self._clock()
        report = Report(usage=usage, source=source, outcome=outcome)
        return await self._database.write(lambda c: metered.settle(c, stream_id, report, at=at))

    async def void(self, *, stream_id: StreamId) -> Settlement | None:
        """Return everything; None for an id that was never reserved. One that has ended answers as it ended."""
        at = self._clock()
        return await self._database.write(lambda c: metered.void(c, stream_id, at=at))

    async def expire_due(self, at: int) -> int:
        """End every reservation, then every grant, whose time is up at the instant `at`; how many. In batches."""
        total = 0
        for expire_batch in (_expire_reservations, _expire_grants):
            while count := await self._database.write(partial(expire_batch, at=at)):
                total += count
        return total

    def _until(self, at: int) -> int:
        return at + self._reservation_seconds * SECOND

    # ── Streams as people see them ──────────────────────────────────────────────────────────────────────────────────

    async def receipt(self, stream_id: StreamId) -> Reservation:
        """A stream's reservation and, once it has ended, its settlement. Raises UnknownReservation."""
        found = await self._database.read(lambda c: reservations.find_reservation(c, stream_id))
        if found is None:
            raise UnknownReservation
        return found

    async def active(self, user_id: UserId | None) -> list[Reservation]:
        """Running reservations of a user, or of everybody, newest first."""
        return await self._database.read(
            lambda c: reservations.active_reservations(c, user_id, limit=SESSIONS_PER_LIST_MAX)
        )

    async def recent(self, user_id: UserId | None, *, minutes: int) -> list[Reservation]:
        """Reservations that run or were made or ended within the last minutes, newest first."""
        since = self._clock() - minutes * MINUTE
        return await self._database.read(
            lambda c: reservations.recent_reservations(c, user_id, since=since, limit=SESSIONS_PER_LIST_MAX)
        )

    # ── Balances ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def balance(self, user_id: UserId) -> Balance:
        """What the user holds now; a grant that is due counts as gone even before it is booked so."""
        at = self._clock()

        def work(connection: Connection) -> Balance:
            held = [grant for grant in store.held_grants(connection, user_id) if not grant.due(at=at)]
            return Balance(
                account_id=user_id,
                available=Credits(sum(grant.remaining for grant in held)),
                reserved=store.find_account(connection, user_id).reserved,
                grants=tuple(held),
            )

        return await self._database.read(work)

    async def check(self, user_id: UserId, required: int) -> tuple[bool, Credits]:
        """Whether `required` is available now, and what is."""
        available = (await self.balance(user_id)).available
        return required <= available, available

    async def calculate(self, model_id: str, usage: Usage) -> Credits:
        """What this usage costs at the price in force. Raises ModelWithoutPrice."""
        return (await self.price_in_force(model_id)).price.cost(usage)

    async def price_in_force(self, model_id: str) -> PriceVersion:
        """What a reservation for the model would be priced at now. Raises ModelWithoutPrice."""
        at = self._clock()
        version = await self._database.read(lambda c: store.price_in_force(c, model_id, at=at))
        if version is None:
            raise ModelWithoutPrice
        return version

    async def statement(self, user_id: UserId, *, after: int, limit: int) -> list[Transfer]:
        """The account's transfers numbered above `after`, oldest first, each with the balance behind it."""
        assert 0 < limit <= ENTRIES_PER_PAGE_MAX
        return await self._database.read(lambda c: store.entries(c, user_id, after=after, limit=limit))

    async def grants_all(self, *, after: str | None = None, limit: int = ENTRIES_PER_PAGE_MAX) -> list[Grant]:
        """Grants of all accounts, oldest first, behind the grant `after`. Raises NotFound for an unknown `after`."""
        assert 0 < limit <= ENTRIES_PER_PAGE_MAX
        return await self._database.read(lambda c: store.all_grants(c, after=after, limit=limit))

    # ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────
    # Each has two forms: a unit of work, which `answer_once` runs behind an idempotency key, and that unit done.

    def allocating(self, user_id: UserId, amount: Credits, terms: Terms) -> Work[Grant]:
        """Issue a grant. Raises BalanceTooLarge."""
        at = self._clock()
        return lambda connection: changes.allocate(connection, user_id, amount, terms, at=at)

    def setting(self, user_id: UserId, total: Credits, terms: Terms) -> Work[Changed]:
        """Make available and reserved together come to `total`. Raises BelowZero, BalanceTooLarge."""
        at = self._clock()
        return lambda connection: changes.set_balance(connection, user_id, total, terms, at=at)

    def adjusting(self, user_id: UserId, difference: int, terms: Terms) -> Work[Changed]:
        """Grant `difference`, or revoke it where negative. Raises BelowZero, BalanceTooLarge."""
        at = self._clock()
        return lambda connection: changes.adjust(connection, user_id, difference, terms, at=at)

    def deducting(self, user_id: UserId, amount: Credits, *, note: str = "") -> Work[Account]:
        """Charge for something that is not a stream. Raises InsufficientCredits."""
        at = self._clock()
        return lambda connection: changes.deduct(connection, user_id, amount, note=note, at=at)

    async def allocate(
        self,
        user_id: UserId,
        amount: Credits,
        *,
        expires_at: int,
        granted_by: str,
        priority: int = 0,
        notes: str = "",
    ) -> Grant:
        """Issue a grant until `expires_at`; grants of a lower `priority` number are used first."""
        terms = Terms(expires_at=expires_at, granted_by=granted_by, priority=priority, notes=notes)
        return await self._database.write(self.allocating(user_id, amount, terms))

    async def set_balance(self, user_id: UserId, total: Credits, terms: Terms) -> Changed:
        """`setting`, done."""
        return await self._database.write(self.setting(user_id, total, terms))

    async def adjust(self, user_id: UserId, difference: int, terms: Terms) -> Changed:
        """`adjusting`, done."""
        return await self._database.write(self.adjusting(user_id, difference, terms))

    async def remove(self, user_id: UserId, amount: Credits, terms: Terms) -> Changed:
        """Revoke `amount`. Raises BelowZero."""
        return await self._database.write(self.adjusting(user_id, -amount, terms))

    async def deduct(self, user_id: UserId, amount: Credits, *, note: str = "") -> Account:
        """`deducting`, done."""
        return await self._database.write(self.deducting(user_id, amount, note=note))

    async def answer_once(self, work: Work[T], *, render: Callable[[T], str], status: int, once: Once | None) -> str:
        """Do a change and keep its rendered answer in the same transaction; a replay gets that text and does nothing.

        Raises KeyReused for the same key with another request. Without a key every call is a new request.
        """
        at = self._clock()

        def unit(connection: Connection) -> str:
            if once is None:
                return render(work(connection))
            known = store.answered(connection, once.scope, once.key, fingerprint=once.fingerprint)
            if known is not None:
                return known
            body = render(work(connection))
            store.keep_answer(
                connection, once.scope, once.key, fingerprint=once.fingerprint, status=status, body=body, at=at
            )
            return body

        return await self._database.write(unit)

    # ── Prices ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def prices(self) -> Sequence[PriceVersion]:
        """Per model the price in force and those to come."""
        at = self._clock()
        return await self._database.read(lambda c: store.current_prices(c, at=at))

    async def put_price(
        self, model_id: str, price: Price, *, set_by: str, effective_from: int | None = None
    ) -> PriceVersion:
        """Set a model's price from an instant on (now where none is given); reservations keep the price they began at.

        Raises Invalid for an instant in the past: what was in force then is history. Raises PriceConflict.
        """
        at = self._clock()
        if effective_from is not None and effective_from < at:
            raise Invalid("effectiveFrom lies in the past; leave it out, or name an instant to come.")
        version = PriceVersion.of(model_id, price, effective_from=effective_from or at, set_by=set_by)
        return await self._database.write(lambda c: store.add_price(c, version))


def _expire_reservations(connection: Connection, *, at: int) -> int:
    due = reservations.due_reservations(connection, at=at, limit=EXPIRED_PER_TRANSACTION_MAX)
    return sum(metered.expire(connection, stream_id, at=at) for stream_id in due)


def _expire_grants(connection: Connection, *, at: int) -> int:
    count = 0
    for account_id in store.accounts_with_due_grants(connection, at=at, limit=EXPIRED_PER_TRANSACTION_MAX):
        store.hold_account(connection, account_id, at=at)
        count += store.expire_grants(connection, account_id, at=at)
    return count

"""Accounting's use cases: each is one transaction; balances, grants, streams, prices and what is due."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from sqlalchemy import Connection

from parshall.accounting import changes, ended, metered, queries, queries_organisations, repriced
from parshall.accounting.announcements import Policy
from parshall.accounting.audit.totals import accounts_that_disagree
from parshall.accounting.books import Books
from parshall.accounting.changes import Terms
from parshall.accounting.combine import Combiner, Operation
from parshall.accounting.ended import Report
from parshall.accounting.metered import Opening
from parshall.accounting.model import (
    Account,
    Balance,
    Changed,
    Grant,
    Reservation,
    Transfer,
    UnknownReservation,
)
from parshall.accounting.once import Once, answering
from parshall.accounting.organisation import Standing
from parshall.accounting.organisations import Organisations
from parshall.accounting.outbox import Outbox
from parshall.accounting.prices import PriceList
from parshall.accounting.repriced import Repricing
from parshall.accounting.tables import accounting_removals
from parshall.accounting.usage import UsageRecords
from parshall.kernel.clock import MINUTE, Clock
from parshall.kernel.credits import Credits
from parshall.kernel.database import Database, answers
from parshall.kernel.ids import StreamId, UserId
from parshall.kernel.metering import Settlement, Slice, Usage, UsageSource
from parshall.kernel.removals import Removals

T = TypeVar("T")

ENTRIES_PER_PAGE_MAX = 500
SESSIONS_PER_LIST_MAX = 500
EXPIRED_PER_TRANSACTION_MAX = 100
FORGETTING_TRANSACTIONS_MAX = 8
"""In one sweep: more than arrive between two sweeps, and few enough to hold nobody up."""


class Directory(Protocol):
    """Who is who: auth knows, accounting asks."""

    async def resolve(self, who: str) -> UserId:
        """The id of the user that bears this id, username or e-mail address. Raises NotFound."""
        ...


class Accounting:
    """The ledger of one deployment. Every method is one transaction; times are microseconds, amounts microcredits."""

    def __init__(
        self,
        database: Database,
        *,
        directory: Directory,
        clock: Clock,
        reservation_seconds: int,
        policy: Policy | None = None,
    ) -> None:
        """A reservation that is neither extended nor ended for `reservation_seconds` expires.

        `policy` says what is announced: without one nothing is, and nothing is spent on it.
        """
        self.directory = directory
        self._database = database
        self._combiner = Combiner(database, announce=None if policy is None else policy.of)
        self.outbox = Outbox(database, policy)
        self.prices = PriceList(database, self._combiner)
        self.usage = UsageRecords(database)
        self.organisations = Organisations(database, self._combiner)
        self._clock = clock
        self._reservation_seconds = reservation_seconds
        self.removals = Removals(database, accounting_removals, clock=clock, erase=self.close_account)

    async def start(self) -> None:
        """Make what a new deployment needs: default prices."""
        await self.prices.start()

    async def answer(self) -> None:
        """Raises unless the books can be read."""
        await answers(self._database)

    async def accounts_that_disagree(self) -> int:
        """How many accounts do not hold what is kept of their grants, reservations and newest transfer (M1)."""
        return await self._database.read(accounts_that_disagree)

    async def close(self) -> None:
        """Finish what is under way and close the database."""
        await self._combiner.close()
        await self._database.close()

    def now(self) -> int:
        """The present instant by this process's clock, for terms; what is due the database's clock decides."""
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
                user_id=user_id,
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
                user_id=user_id,
                model_id=model_id,
                input_tokens=0,
                output_tokens_max=tokens,
                slice_tokens=tokens,
                slice_tokens_min=tokens,
            )
        )

    async def _reserve(self, opening: Opening) -> Slice:
        return await self._combiner.run(
            Operation(
                lambda books: metered.reserve(books, opening, reservation_seconds=self._reservation_seconds),
                user_id=opening.user_id,
                stream_id=opening.stream_id,
                model_id=opening.model_id,
            )
        )

    async def extend(self, *, stream_id: StreamId, step: int, output_tokens: int) -> Slice:
        """Hold up to `output_tokens` more and renew the reservation; `step` (1, 2, …) is the idempotency key.

        Raises InsufficientCredits when not one more token is covered, UnknownReservation, ReservationEnded,
        StepOutOfOrder, KeyReused.
        """
        seconds = self._reservation_seconds

        def apply(books: Books) -> Slice:
            return metered.extend(books, stream_id, step=step, output_tokens=output_tokens, reservation_seconds=seconds)

        return await self._combiner.run(Operation(apply, stream_id=stream_id, step=step))

    async def reprice(
        self, *, stream_id: StreamId, model_id: str, input_tokens: int, output_tokens_max: int, slice_tokens: int
    ) -> Slice:
        """Have the price of another model hold for a stream before its first token; a dearer one takes what it needs.

        Raises InsufficientCredits, ModelWithoutPrice, UnknownReservation, ReservationEnded; then nothing has changed.
        """
        request = Repricing(
            stream_id=stream_id,
            model_id=model_id,
            input_tokens=input_tokens,
            output_tokens_max=output_tokens_max,
            slice_tokens=slice_tokens,
        )
        seconds = self._reservation_seconds
        return await self._combiner.run(
            Operation(
                lambda books: repriced.reprice(books, request, reservation_seconds=seconds),
                stream_id=stream_id,
                model_id=model_id,
            )
        )

    async def settle(self, *, stream_id: StreamId, usage: Usage, source: UsageSource, outcome: str) -> Settlement:
        """Charge what was used and return the rest. A replay gives the first answer.

        Raises UnknownReservation, KeyReused for other usage than the first, ReservationEnded for a voided one.
        """
        report = Report(usage=usage, source=source, outcome=outcome)
        return await self._combiner.run(
            Operation(lambda books: ended.settle(books, stream_id, report), stream_id=stream_id)
        )

    async def void(self, *, stream_id: StreamId) -> Settlement | None:
        """Return everything; None for an id that was never reserved. One that has ended answers as it ended."""
        return await self._combiner.run(Operation(lambda books: ended.void(books, stream_id), stream_id=stream_id))

    async def expire_due(self) -> int:
        """End every reservation, then every grant, whose time is up by the database's clock; how many. In batches."""
        total = 0
        while due := await self._due(queries.due_reservations):
            total += sum(await self._all(_expiring(StreamId(stream_id)) for stream_id in due))
        while due := await self._due(queries.accounts_with_due_grants):
            await self._all(Operation(lambda _: 0, account_id=each) for each in due)  # loading books what is due
            total += len(due)
        return total

    async def forget_answers(self) -> int:
        """Delete idempotency keys past their retention by the database's clock; how many. In batches, and bounded."""
        database, total = self._database, 0
        for _ in range(FORGETTING_TRANSACTIONS_MAX):
            count = await database.write(lambda c: queries.forget_answers(c, at=database.instant(c)))
            total += count
            if count < queries.FORGOTTEN_PER_TRANSACTION_MAX:
                break
        return total

    async def _due(self, find: "Callable[..., Sequence[str]]") -> Sequence[str]:
        database = self._database
        return await database.read(lambda c: find(c, at=database.instant(c), limit=EXPIRED_PER_TRANSACTION_MAX))

    async def _all(self, operations: Iterable[Operation[T]]) -> list[T]:
        return await asyncio.gather(*(self._combiner.run(operation) for operation in operations))

    # ── Streams as people see them ──────────────────────────────────────────────────────────────────────────────────

    async def receipt(self, stream_id: StreamId) -> Reservation:
        """A stream's reservation and, once it has ended, its settlement. Raises UnknownReservation."""
        found = await self._database.read(lambda c: queries.find_reservation(c, stream_id), brief=True)
        if found is None:
            raise UnknownReservation
        return found

    async def active(self, user_id: UserId | None) -> list[Reservation]:
        """Running reservations of a user, or of everybody, newest first."""
        return await self._database.read(lambda c: queries.active_reservations(c, user_id, limit=SESSIONS_PER_LIST_MAX))

    async def recent(self, user_id: UserId | None, *, minutes: int) -> list[Reservation]:
        """Reservations that run or were made or ended within the last minutes, newest first."""
        since, limit = self._clock() - minutes * MINUTE, SESSIONS_PER_LIST_MAX
        return await self._database.read(lambda c: queries.recent_reservations(c, user_id, since=since, limit=limit))

    # ── Balances ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def balance(self, account_id: str) -> Balance:
        """What the account holds now; a grant that is due counts as gone even before it is booked so."""
        database = self._database
        return await database.read(lambda c: queries.balance(c, account_id, at=database.instant(c)), brief=True)

    async def balance_of(self, user_id: UserId) -> tuple[Balance, Standing | None]:
        """What the user holds now, and what an organisation gives the user, as of one instant."""
        database = self._database

        def work(connection: Connection) -> tuple[Balance, Standing | None]:
            at = database.instant(connection)
            held = queries.balance(connection, user_id, at=at)
            return held, queries_organisations.standing(connection, user_id, at=at)

        return await database.read(work, brief=True)

    async def check(self, user_id: UserId, required: int) -> tuple[bool, Credits]:
        """Whether one payer, the user or the user's organisation, covers `required` now, and the most that one does."""
        held, standing = await self.balance_of(user_id)
        most = max(held.available, standing.drawable if standing else 0)
        return required <= most, Credits(most)

    async def statement(self, account_id: str, *, after: int, limit: int) -> list[Transfer]:
        """The account's transfers numbered above `after`, oldest first, each with the balance behind it."""
        assert 0 < limit <= ENTRIES_PER_PAGE_MAX
        return await self._database.read(lambda c: queries.entries(c, account_id, after=after, limit=limit))

    async def grants_all(self, *, after: str | None = None, limit: int = ENTRIES_PER_PAGE_MAX) -> list[Grant]:
        """Grants of all accounts, oldest first, behind the grant `after`. Raises NotFound for an unknown `after`."""
        assert 0 < limit <= ENTRIES_PER_PAGE_MAX
        return await self._database.read(lambda c: queries.all_grants(c, after=after, limit=limit))

    # ── Changes ─────────────────────────────────────────────────────────────────────────────────────────────────────
    # Each has two forms: an operation, which `answer_once` runs behind an idempotency key, and that operation done.

    def allocating(self, account_id: str, amount: Credits, terms: Terms) -> Operation[Grant]:
        """Issue a grant. Raises BalanceTooLarge, Invalid for one that is due already."""
        return Operation(lambda books: changes.allocate(books, account_id, amount, terms), account_id=account_id)

    def setting(self, account_id: str, total: Credits, terms: Terms) -> Operation[Changed]:
        """Make available and reserved together come to `total`. Raises BelowZero, and as `allocating` does."""
        return Operation(lambda books: changes.set_balance(books, account_id, total, terms), account_id=account_id)

    def adjusting(self, account_id: str, difference: int, terms: Terms) -> Operation[Changed]:
        """Grant `difference`, or revoke it where negative. Raises BelowZero, and as `allocating` does."""
        return Operation(lambda books: changes.adjust(books, account_id, difference, terms), account_id=account_id)

    def deducting(self, account_id: str, amount: Credits, *, note: str = "") -> Operation[Account]:
        """Charge for something that is not a stream. Raises InsufficientCredits."""
        return Operation(lambda books: changes.deduct(books, account_id, amount, note=note), account_id=account_id)

    async def allocate(
        self,
        account_id: str,
        amount: Credits,
        *,
        expires_at: int,
        granted_by: str,
        priority: int = 0,
        notes: str = "",
    ) -> Grant:
        """Issue a grant until `expires_at`; grants of a lower `priority` number are used first."""
        terms = Terms(expires_at=expires_at, granted_by=granted_by, priority=priority, notes=notes)
        return await self._combiner.run(self.allocating(account_id, amount, terms))

    async def set_balance(self, account_id: str, total: Credits, terms: Terms) -> Changed:
        """`setting`, done."""
        return await self._combiner.run(self.setting(account_id, total, terms))

    async def close_account(self, user_id: UserId) -> bool:
        """Leave a removed user nothing to reserve; whether that is all: no running stream is still to be settled."""
        operation = Operation(lambda books: changes.close(books, user_id), user_id=user_id, memberships=(user_id,))
        return await self._combiner.run(operation)

    async def adjust(self, account_id: str, difference: int, terms: Terms) -> Changed:
        """`adjusting`, done."""
        return await self._combiner.run(self.adjusting(account_id, difference, terms))

    async def deduct(self, account_id: str, amount: Credits, *, note: str = "") -> Account:
        """`deducting`, done."""
        return await self._combiner.run(self.deducting(account_id, amount, note=note))

    async def answer_once(
        self, operation: Operation[T], *, render: Callable[[T], str], status: int, once: Once | None
    ) -> str:
        """Do a change and keep its rendered answer in the same transaction; a replay gets that text and does nothing.

        Raises KeyReused for the same key with another request. Without a key every call is a new request.
        """
        return await self._combiner.run(answering(operation, render=render, status=status, once=once))


def _expiring(stream_id: StreamId) -> Operation[bool]:
    return Operation(lambda books: ended.expire(books, stream_id), stream_id=stream_id)

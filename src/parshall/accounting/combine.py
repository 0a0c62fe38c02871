"""Combines the operations that wait at the same time into one transaction: a busy account is locked once for many."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from sqlalchemy import Connection

from parshall.accounting import outbox, queries, store
from parshall.accounting.announcements import Announcement
from parshall.accounting.books import Books
from parshall.accounting.kept import Kept
from parshall.accounting.moved import Moved, count, moved
from parshall.accounting.pricing import PriceVersion
from parshall.kernel.bulk import run
from parshall.kernel.database import Database
from parshall.kernel.errors import ParshallError, Unavailable
from parshall.kernel.ids import StreamId, UserId

T = TypeVar("T")

OPERATIONS_PER_BATCH_MAX = 256
VERSIONS_KEPT_MAX = 4096
"""Price versions held in memory: they never change."""


@dataclass(slots=True)
class Operation(Generic[T]):
    """One change of the books and what it needs to be held and loaded.

    `apply` is the rule. It raises a ParshallError before it changes anything: what is refused must leave no trace in
    the batch that others share. `step` names the extension whose earlier answer it may have to repeat; of `memberships`
    no account is held; it may ask for the price of `model_id`.
    """

    apply: Callable[[Books], T]
    user_id: UserId | None = None
    account_id: str | None = None
    stream_id: StreamId | None = None
    step: int = 0
    memberships: tuple[UserId, ...] = ()
    model_id: str | None = None


_Answer = tuple[Any, ParshallError | None]
_Waiting = tuple[Operation[Any], "asyncio.Future[Any]"]


class Combiner:
    """Runs operations in batches, in the order of their arrival: whatever waits when one batch is done makes the next.

    One at a time: two would be two halves, each with the fixed cost of a whole, and wait for each other's locks.
    """

    def __init__(
        self, database: Database, *, announce: Callable[[Books], Sequence[Announcement]] | None = None
    ) -> None:
        """`announce` says what of each batch goes to the outbox, in the batch's own transaction."""
        self._database = database
        self._announce = announce
        self._waiting: list[_Waiting] = []
        self._task: asyncio.Task[None] | None = None
        self._versions: dict[str, PriceVersion] = {}
        self._kept = Kept()

    async def run(self, operation: Operation[T]) -> T:
        """What `operation` returns or raises, once its batch is durable.

        A caller that is cancelled meanwhile does not undo it: whoever must know asks again with the same key.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, answer))
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await answer

    async def close(self) -> None:
        """Finish what waits."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch = self._waiting[:OPERATIONS_PER_BATCH_MAX]
                del self._waiting[:OPERATIONS_PER_BATCH_MAX]
                await self._answer(batch)
        finally:  # in the same turn that found nothing waiting: whoever asks next must see that no task would take it
            self._task = None

    async def _answer(self, batch: list[_Waiting]) -> None:
        operations = [operation for operation, _ in batch]
        try:
            answers, sums, kept = await self._database.write(
                lambda connection: self._apply(connection, operations), brief=True
            )
        except Exception as error:
            if len(batch) > 1 and not isinstance(error, Unavailable):
                for each in batch:  # a broken operation must not take others with it
                    await self._answer([each])
                return
            _refuse(batch, error)
            return
        self._kept = kept
        count(sums)  # after the commit, and so never twice
        for (_, waiting), (result, refusal) in zip(batch, answers, strict=False):
            if waiting.done():
                continue
            if refusal is None:
                waiting.set_result(result)
            else:
                waiting.set_exception(refusal)

    def _apply(self, connection: Connection, operations: list[Operation[Any]]) -> tuple[list[_Answer], Moved, Kept]:
        """The batch's unit of work."""
        at = self._database.instant(connection)
        kept, self._kept = self._kept.at(self._database.version(connection)), Kept()
        books = Books(connection, at=at, versions=lambda version: self._version(connection, version))
        people = {each.user_id for each in operations if each.user_id is not None}
        members = people.union(*(each.memberships for each in operations))
        store.load(
            books,
            users=people,
            accounts=[each.account_id for each in operations if each.account_id is not None],
            streams=[each.stream_id for each in operations if each.stream_id is not None],
            steps=[(each.stream_id, each.step) for each in operations if each.step and each.stream_id is not None],
            memberships=members,
            models={each.model_id for each in operations if each.model_id is not None},
            kept=kept,
        )
        answers = [_attempt(operation, books) for operation in operations]
        changes = store.changes(books)
        if self._announce is not None:
            changes += outbox.kept(connection, self._announce(books), at=at)
        run(connection, changes)
        return answers, moved(books), kept.after(books, people=members, version=self._database.version(connection))

    def _version(self, connection: Connection, version: str) -> PriceVersion:
        known = self._versions.get(version)
        if known is None:
            if len(self._versions) >= VERSIONS_KEPT_MAX:
                self._versions.clear()
            known = self._versions[version] = queries.find_price(connection, version)
        return known


def _attempt(operation: Operation[T], books: Books) -> tuple[T, ParshallError | None]:
    try:
        return operation.apply(books), None
    except ParshallError as refusal:
        return cast(T, None), refusal


def _refuse(batch: list[_Waiting], error: Exception) -> None:
    for _, waiting in batch:
        if not waiting.done():
            waiting.set_exception(error)

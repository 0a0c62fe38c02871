"""Removed users: auth says who was, in order, and each service that hears it erases what it keeps until that is done.

Nothing is lost where a process dies: what was heard is in the service's own records, by the number that auth gave it,
and erasing may be repeated. Records that were restored from before a removal hear of it again.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from sqlalchemy import BigInteger, Column, Connection, Index, MetaData, String, Table, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.ids import UserId
from parshall.kernel.telemetry import log

REMOVALS_PER_PAGE_MAX = 500
TOKEN_SECONDS_MAX = 13 * 3600
"""Longer than any access token lives: after that nothing of a removed user's can be begun anywhere."""
AGAIN_SECONDS = 2
"""Until what could not be erased whole is tried again."""
ERASED_PER_SWEEP_MAX = 100

_logger = log("removals")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A user was removed at `removed_at` (microseconds); numbers rise from one removal to the next."""

    number: int
    user_id: UserId
    removed_at: int


class Feed(Protocol):
    """Auth, as far as it says who was removed."""

    async def removals(self, *, after: int, limit: int = REMOVALS_PER_PAGE_MAX) -> Sequence[Removal]:
        """Removals numbered above `after`, in order. Raises Unavailable."""
        ...


Erase = Callable[[UserId], Awaitable[bool]]
"""Erases what a service keeps of a user; whether nothing is left. It may be repeated. Raises ParshallError."""


def removals_table(name: str, metadata: MetaData) -> Table:
    """The table of a service that hears of removals; `due_at` is when to erase (again), absent where that is over."""
    return Table(
        name,
        metadata,
        Column("number", BigInteger, primary_key=True),
        Column("user_id", String(32), nullable=False),
        Column("removed_at", BigInteger, nullable=False),
        Column("due_at", BigInteger),
        Index(f"{name}_due", "due_at"),
        Index(f"{name}_by_time", "removed_at"),
    )


class Removals:
    """What one service has heard of removals, and what is left to do."""

    def __init__(self, database: Database, table: Table, *, clock: Clock, erase: Erase) -> None:
        """`table` is one of `removals_table` in the service's own `database`."""
        self._database = database
        self._table = table
        self._clock = clock
        self._erase = erase

    async def hear(self, feed: Feed) -> None:
        """Keep all removals that are new. Raises Unavailable."""
        heard = await self._database.read(self._heard)
        while page := await feed.removals(after=heard):
            try:
                await self._database.write(partial(self._keep, news=page))
            except IntegrityError:  # another process has just kept some: the next pass goes on behind those
                return
            heard = page[-1].number

    async def recent(self) -> frozenset[UserId]:
        """Removed users of whom an access token may still be about."""
        since = self._clock() - TOKEN_SECONDS_MAX * SECOND
        query = select(self._table.c.user_id).where(self._table.c.removed_at > since)
        rows = await self._database.read(lambda connection: connection.execute(query).scalars().all())
        return frozenset(map(UserId, rows))

    async def carry_out(self) -> None:
        """Erase what is due. One that cannot be erased now hinders no other.

        What is clean is looked at once more when no token of the user's can be about: one may have made things anew.
        """
        for removal in await self._database.read(self._due):
            try:
                is_clean = await self._erase(removal.user_id)
            except Exception as error:  # the next sweep tries again, whatever it was
                _logger.warning("erasing_put_off", user=removal.user_id, reason=type(error).__name__)
                is_clean = False
            await self._note(removal, is_clean=is_clean)

    async def _note(self, removal: Removal, *, is_clean: bool) -> None:
        at, last = self._clock(), removal.removed_at + TOKEN_SECONDS_MAX * SECOND
        due_at = at + AGAIN_SECONDS * SECOND if not is_clean else last if at < last else None
        statement = update(self._table).where(self._table.c.number == removal.number).values(due_at=due_at)
        await self._database.write(lambda connection: connection.execute(statement).rowcount)
        if is_clean:
            _logger.info("user_erased", user=removal.user_id, table=self._table.name)

    def _heard(self, connection: Connection) -> int:
        newest: int | None = connection.execute(select(func.max(self._table.c.number))).scalar_one()
        return newest or 0

    def _keep(self, connection: Connection, *, news: Sequence[Removal]) -> None:
        """Of two processes that hear the same at once, one keeps it; the other finds it there, or fails."""
        known = select(self._table.c.number).where(self._table.c.number.in_([each.number for each in news]))
        there = set(connection.execute(known).scalars())
        rows = [
            {"number": each.number, "user_id": each.user_id, "removed_at": each.removed_at, "due_at": 0}
            for each in news
            if each.number not in there
        ]
        if rows:
            connection.execute(insert(self._table), rows)

    def _due(self, connection: Connection) -> list[Removal]:
        columns = (self._table.c.number, self._table.c.user_id, self._table.c.removed_at)
        due = select(*columns).where(self._table.c.due_at <= self._clock()).order_by(self._table.c.due_at)
        rows = connection.execute(due.limit(ERASED_PER_SWEEP_MAX))
        return [Removal(number=row.number, user_id=UserId(row.user_id), removed_at=row.removed_at) for row in rows]

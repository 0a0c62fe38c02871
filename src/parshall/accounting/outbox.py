"""The outbox: announcements kept in the ledger's own transactions until a receiver has taken them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec
from sqlalchemy import Connection, bindparam, delete, func, literal_column, null, select, update

from parshall.accounting.announcements import Announcement, Policy, Topic, expiring
from parshall.accounting.tables import grants, outbox
from parshall.kernel.bulk import Bulk, Statement, run
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.database import Database
from parshall.kernel.ids import new_id
from parshall.kernel.telemetry import log

LEASE_SECONDS = 20
"""How long a claimed row is left alone: longer than an attempt and what is written of it take."""
GRANTS_PER_TRANSACTION_MAX = 500
ROWS_MAX = 1_000_000
"""Announcements kept, some 600 MB of them; beyond that the oldest are dropped, and the log says how many."""
RETENTION_DAYS = 30
"""How long after its fact an announcement that was given up is kept."""
TRIMMED_PER_TRANSACTION_MAX = 5000
TRIMMING_TRANSACTIONS_MAX = 64

_logger = log("outbox")
_OUTBOX = Bulk(outbox, key="id")


@dataclass(frozen=True, slots=True)
class Delivery:
    """An announcement on its way. `due_at` is when to try (again), or until when a claim holds; None: given up.

    The fields stand in the order of the table's columns.
    """

    id: str
    topic: str
    subject: str
    at: int
    body: str
    attempts: int
    due_at: int | None
    last_error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of an attempt: delivered, or why not and in how many microseconds to try again (None: never)."""

    delivery: Delivery
    delivered: bool = False
    problem: str = ""
    delay: int | None = None


# ── Statements ──────────────────────────────────────────────────────────────────────────────────────────────────────
# Rows are chosen behind locks that are never waited for: a replica takes what no other one is taking. PostgreSQL
# works out a chosen set with locks once; SQLite has one writer and no locks to ask for.

_DUE = (
    select(outbox.c.id)
    .where(outbox.c.due_at <= bindparam("instant"))
    .order_by(outbox.c.due_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
    .cte("chosen")
)
_CLAIM = (
    update(outbox)
    .where(outbox.c.id.in_(select(_DUE.c.id)))
    .values(due_at=bindparam("until"), attempts=outbox.c.attempts + 1)
    .returning(*outbox.columns)
)
_POSTPONE = (  # the number of attempts tells a claim from the one that took over when it had run out
    update(outbox)
    .where(outbox.c.id == bindparam("row"), outbox.c.attempts == bindparam("claim"))
    .values(due_at=bindparam("due"), last_error=bindparam("problem"))
)
_SOON = (
    select(grants.c.id)
    .where(
        grants.c.remaining > literal_column("0"),  # written out, so that the planners see that a partial index applies
        grants.c.expires_at > bindparam("instant"),
        grants.c.expires_at <= bindparam("until"),
        grants.c.announced == 0,
    )
    .order_by(grants.c.expires_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
    .cte("chosen")
)
_MARK = (
    update(grants)
    .where(grants.c.id.in_(select(_SOON.c.id)))
    .values(announced=1)
    .returning(grants.c.id, grants.c.account_id, grants.c.amount, grants.c.remaining, grants.c.expires_at)
)


def kept(connection: Connection, announcements: Sequence[Announcement], *, at: int) -> list[Statement]:
    """The statements that keep announcements of what happened at that instant, due at once."""
    rows = [(new_id(), *_columns(each), at, _body(each), 0, at, "") for each in announcements]
    return _OUTBOX.insert(connection, rows)


def _columns(announcement: Announcement) -> tuple[str, str]:
    return announcement.topic.value, announcement.subject


def _body(announcement: Announcement) -> str:
    return msgspec.json.encode(announcement.data).decode()


def claim(connection: Connection, *, at: int, limit: int) -> list[Delivery]:
    """Take what is due for LEASE_SECONDS, longest due first; every claim counts as an attempt."""
    found = {"instant": at, "until": at + LEASE_SECONDS * SECOND, "most": limit}
    return [Delivery(*row) for row in connection.execute(_CLAIM, found)]


def record(connection: Connection, verdicts: Sequence[Verdict], *, at: int) -> None:
    """Delete what was delivered, by whomever it was claimed; put off or give up the rest while its claim is ours."""
    gone = [each.delivery.id for each in verdicts if each.delivered]
    if gone:
        connection.execute(delete(outbox).where(outbox.c.id.in_(gone)))
    rest = [
        {
            "row": each.delivery.id,
            "claim": each.delivery.attempts,
            "due": None if each.delay is None else at + each.delay,
            "problem": each.problem,
        }
        for each in verdicts
        if not each.delivered
    ]
    if rest:
        connection.execute(_POSTPONE, rest)


def announce_expiring(connection: Connection, *, at: int, notice: int) -> int:
    """Mark and announce grants that expire within `notice`, some at a time; how many. Each is announced once."""
    found = {"instant": at, "until": at + notice, "most": GRANTS_PER_TRANSACTION_MAX}
    rows = connection.execute(_MARK, found).all()
    soon = [expiring(row[0], row[1], amount=row[2], remaining=row[3], expires_at=row[4]) for row in rows]
    run(connection, kept(connection, soon, at=at))
    return len(soon)


def _retained_too_long(connection: Connection, *, at: int) -> list[str]:
    """Some that were given up and whose retention is over."""
    old = outbox.c.due_at.is_(None) & (outbox.c.at < at - RETENTION_DAYS * DAY)
    return list(connection.execute(select(outbox.c.id).where(old).limit(TRIMMED_PER_TRANSACTION_MAX)).scalars())


def _beyond(connection: Connection, rows_max: int) -> list[str]:
    """Some of the oldest, where there are too many."""
    excess = connection.execute(select(func.count()).select_from(outbox)).scalar_one() - rows_max
    if excess <= 0:
        return []
    oldest = select(outbox.c.id).order_by(outbox.c.at).limit(min(excess, TRIMMED_PER_TRANSACTION_MAX))
    return list(connection.execute(oldest).scalars())


def _delete(connection: Connection, *, ids: Sequence[str]) -> None:
    connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))


# ── Use cases ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Outbox:
    """The announcements of one deployment that wait for delivery or were given up. Every method is a transaction."""

    def __init__(self, database: Database, policy: Policy | None, *, rows_max: int = ROWS_MAX) -> None:
        """Nothing is announced without a `policy`; what was announced before can still be seen and delivered."""
        self._database = database
        self._policy = policy
        self._rows_max = rows_max

    async def claim(self, limit: int) -> list[Delivery]:
        """At most `limit` that are due, for this process alone until LEASE_SECONDS are over."""
        database = self._database
        return await database.write(lambda c: claim(c, at=database.instant(c), limit=limit))

    async def record(self, verdicts: Sequence[Verdict]) -> None:
        """What became of claimed ones."""
        database = self._database
        await database.write(lambda c: record(c, verdicts, at=database.instant(c)))

    async def announce_expiring(self) -> int:
        """Announce each grant that will expire soon, once; how many there were."""
        policy, database = self._policy, self._database
        if policy is None or Topic.GRANT_EXPIRING not in policy.topics:
            return 0
        total = 0
        while count := await database.write(
            lambda c: announce_expiring(c, at=database.instant(c), notice=policy.notice)
        ):
            total += count
        return total

    async def all(self, *, limit: int) -> list[Delivery]:
        """Those that were given up, then those that wait; oldest first."""
        waits = outbox.c.due_at.is_not(None)
        query = select(outbox).order_by(waits, outbox.c.at, outbox.c.id).limit(limit)
        return await self._database.read(lambda c: [Delivery(*row) for row in c.execute(query)])

    async def retry(self, ids: Sequence[str] | None) -> int:
        """Have those that were given up tried again, all of them or the ones named; how many there were."""
        given_up = update(outbox).where(outbox.c.due_at.is_(null()))
        if ids is not None:
            given_up = given_up.where(outbox.c.id.in_(ids))
        database = self._database
        again = given_up.values(due_at=bindparam("instant"), attempts=0)
        return await database.write(lambda c: c.execute(again, {"instant": database.instant(c)}).rowcount)

    async def trim(self) -> None:
        """Forget what was given up long ago, and the oldest of too many."""
        await self._forget(lambda c: _retained_too_long(c, at=self._database.instant(c)))
        dropped = await self._forget(lambda c: _beyond(c, self._rows_max))
        if dropped:
            _logger.error("outbox_overflowed", dropped=dropped)

    async def _forget(self, find: Callable[[Connection], list[str]]) -> int:
        """Found on a snapshot and deleted by id: sorting many rows must not keep the ledger waiting."""
        total = 0
        for _ in range(TRIMMING_TRANSACTIONS_MAX):
            ids = await self._database.read(find)
            if not ids:
                break
            await self._database.write(partial(_delete, ids=ids))
            total += len(ids)
        return total

"""Every statement on the list of removed users, which other services hear of; whoever calls owns the transaction."""

from sqlalchemy import Connection, func, insert, select

from parshall.auth.store import hold_start
from parshall.auth.tables import removals
from parshall.kernel.ids import UserId
from parshall.kernel.removals import Removal


def note_removal(connection: Connection, user_id: UserId, *, at: int) -> None:
    """Put a user on the list, behind all who are there: removals take turns, so that no number comes late.

    It is the instant where that is higher, so that records that are restored from a backup give no number again.
    """
    hold_start(connection)
    newest: int | None = connection.execute(select(func.max(removals.c.number))).scalar_one()
    connection.execute(insert(removals).values(number=max((newest or 0) + 1, at), user_id=user_id, removed_at=at))


def list_removals(connection: Connection, *, after: int, limit: int) -> list[Removal]:
    """Removals numbered above `after`, in order."""
    rows = connection.execute(
        select(removals).where(removals.c.number > after).order_by(removals.c.number).limit(limit)
    )
    return [Removal(number=row.number, user_id=UserId(row.user_id), removed_at=row.removed_at) for row in rows]

"""The check of M1 that runs beside the service: what is kept of each account agrees, without reading its history."""

from typing import Any

from sqlalchemy import Connection, and_, func, or_, select

from parshall.accounting.model import State
from parshall.accounting.tables import accounts, grants, reservations, transfers


def accounts_that_disagree(connection: Connection) -> int:
    """How many accounts do not hold what their grants, running reservations and newest transfer say, on one snapshot.

    Its cost grows with accounts, not with transfers: what is granted, charged and expired in all is for `audit`.
    """
    given = _sums(grants.c.account_id, grants.c.remaining, grants.c.remaining > 0)
    held = _sums(reservations.c.account_id, reservations.c.reserved, reservations.c.state == State.ACTIVE.value)
    newest = and_(transfers.c.account_id == accounts.c.id, transfers.c.number == accounts.c.number)
    source = (
        accounts.outerjoin(given, given.c.account_id == accounts.c.id)
        .outerjoin(held, held.c.account_id == accounts.c.id)
        .outerjoin(transfers, newest)
    )
    differs = or_(
        accounts.c.available != func.coalesce(given.c.amount, 0),
        accounts.c.reserved != func.coalesce(held.c.amount, 0),
        accounts.c.available != func.coalesce(transfers.c.available_after, 0),
    )
    found: int = connection.execute(select(func.count()).select_from(source).where(differs)).scalar_one()
    return found


def _sums(account_id: Any, amount: Any, which: Any) -> Any:
    query = select(account_id.label("account_id"), func.sum(amount).label("amount")).where(which)
    return query.group_by(account_id).subquery()

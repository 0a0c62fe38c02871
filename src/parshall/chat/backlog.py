"""What has ended and waits for accounting: how many streams, and since when."""

from sqlalchemy import Connection, func, or_, select

from parshall.chat.store import streams


def unsettled(connection: Connection) -> tuple[int, int | None]:
    """How many streams have ended and are not settled, and when the first of them ended (microseconds)."""
    left = or_(streams.c.closed_at.is_(None), streams.c.settlement.is_(None))  # as the index of the unfinished has it
    waiting = streams.c.settlement.is_(None) & streams.c.ended_at.is_not(None)
    count, oldest = connection.execute(select(func.count(), func.min(streams.c.ended_at)).where(left, waiting)).one()
    return count, oldest

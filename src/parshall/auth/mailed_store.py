"""Every statement on mailed codes; whoever calls owns the transaction."""

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select

from parshall.auth.mailed import Purpose
from parshall.auth.model import User
from parshall.auth.tables import mailed_codes
from parshall.kernel.ids import UserId


def insert_code(connection: Connection, digest: str, purpose: Purpose, user: User, *, at: int, expires_at: int) -> None:
    """Keep a code that is sent to the user's present address, and forget those of the user that have run out."""
    own = mailed_codes.c.user_id == user.id
    connection.execute(delete(mailed_codes).where(own, mailed_codes.c.expires_at <= at))
    connection.execute(
        insert(mailed_codes).values(
            digest=digest, user_id=user.id, purpose=purpose.value, email_key=user.email.lower(), expires_at=expires_at
        )
    )


def code_lives(connection: Connection, digest: str, purpose: Purpose, *, at: int) -> bool:
    """Whether there is such a code that has not run out."""
    living = _living(digest, purpose, at=at)
    return connection.execute(select(mailed_codes.c.digest).where(living)).first() is not None


def consume_code(connection: Connection, digest: str, purpose: Purpose, *, at: int) -> tuple[UserId, str] | None:
    """Use the code up: whose it is, and the address in lower case that it was sent to."""
    living = _living(digest, purpose, at=at)
    row = connection.execute(
        delete(mailed_codes).where(living).returning(mailed_codes.c.user_id, mailed_codes.c.email_key)
    ).one_or_none()
    return (UserId(row.user_id), row.email_key) if row else None


def list_codes(connection: Connection, user_id: UserId) -> list[tuple[Purpose, int]]:
    """What the codes of the user are for and when they expire."""
    codes = select(mailed_codes.c.purpose, mailed_codes.c.expires_at).where(mailed_codes.c.user_id == user_id)
    rows = connection.execute(codes.order_by(mailed_codes.c.expires_at, mailed_codes.c.digest))
    return [(Purpose(row.purpose), row.expires_at) for row in rows]


def delete_codes(connection: Connection, user_id: UserId, purpose: Purpose) -> None:
    """Take back all codes of the user for this purpose."""
    own = and_(mailed_codes.c.user_id == user_id, mailed_codes.c.purpose == purpose.value)
    connection.execute(delete(mailed_codes).where(own))


def _living(digest: str, purpose: Purpose, *, at: int) -> ColumnElement[bool]:
    return and_(
        mailed_codes.c.digest == digest, mailed_codes.c.purpose == purpose.value, mailed_codes.c.expires_at > at
    )

"""Every statement on API keys; whoever calls owns the transaction."""

from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from parshall.auth.apikey import PER_USER_MAX, ApiKey, KeyNameTaken, TooManyKeys
from parshall.auth.tables import api_keys, users
from parshall.kernel.ids import UserId


def insert_key(connection: Connection, key: ApiKey, digest: str) -> None:
    """Keep a new key. Raises KeyNameTaken or TooManyKeys.

    The user's row is held, so that of two at once the second sees the first, where writers run side by side.
    """
    connection.execute(select(users.c.id).where(users.c.id == key.user_id).with_for_update()).all()
    own = api_keys.c.user_id == key.user_id
    if connection.execute(select(api_keys.c.id).where(own, api_keys.c.name == key.name)).first():
        raise KeyNameTaken
    if connection.execute(select(func.count()).select_from(api_keys).where(own)).scalar_one() >= PER_USER_MAX:
        raise TooManyKeys
    connection.execute(
        insert(api_keys).values(
            id=key.id,
            user_id=key.user_id,
            name=key.name,
            digest=digest,
            scopes=" ".join(sorted(key.scopes)),
            created_at=key.created_at,
            expires_at=key.expires_at,
        )
    )


def find_key(connection: Connection, key_id: str) -> tuple[ApiKey, str] | None:
    """The key and the digest of its text."""
    row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).one_or_none()
    return (_key(row), row.digest) if row else None


def list_keys(connection: Connection, user_id: UserId) -> list[ApiKey]:
    """The user's keys, eldest first, with those that have expired."""
    own = select(api_keys).where(api_keys.c.user_id == user_id).order_by(api_keys.c.created_at, api_keys.c.id)
    return [_key(row) for row in connection.execute(own)]


def key_lives(connection: Connection, key_id: str, user_id: UserId, *, at: int) -> bool:
    """Whether the user has this key and it has not expired."""
    living = and_(api_keys.c.id == key_id, api_keys.c.user_id == user_id, api_keys.c.expires_at > at)
    return connection.execute(select(api_keys.c.id).where(living)).first() is not None


def record_use(connection: Connection, key_id: str, *, day: int) -> None:
    """Note that the key was used on this day, unless a later one is there."""
    earlier = or_(api_keys.c.used_day.is_(None), api_keys.c.used_day < day)
    connection.execute(update(api_keys).where(api_keys.c.id == key_id, earlier).values(used_day=day))


def delete_key(connection: Connection, key_id: str, user_id: UserId) -> bool:
    """Take a key of the user's away; whether there was one."""
    own = and_(api_keys.c.id == key_id, api_keys.c.user_id == user_id)
    return connection.execute(delete(api_keys).where(own).returning(api_keys.c.id)).one_or_none() is not None


def delete_keys(connection: Connection, user_id: UserId) -> None:
    """Take all keys of the user away."""
    connection.execute(delete(api_keys).where(api_keys.c.user_id == user_id))


def _key(row: Row[*tuple[Any, ...]]) -> ApiKey:
    return ApiKey(
        id=row.id,
        user_id=UserId(row.user_id),
        name=row.name,
        scopes=frozenset(row.scopes.split()),
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_day=row.used_day,
    )

"""Every statement on the tables of auth; whoever calls owns the transaction."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    true,
    update,
)

from parshall.auth.external import NO_PASSWORD
from parshall.auth.model import Credential, Service, SigningKey, User, handle
from parshall.auth.tables import refresh_families, refresh_tokens, services, signing_keys, users
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import Role

_HOLD_START = text("UPDATE auth_version SET version_num = version_num")
_USER = (users.c.id, users.c.username, users.c.email, users.c.role, users.c.is_verified, users.c.created_at)

# ── Users ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_user(connection: Connection, who: str) -> User | None:
    """The user with this id, username or e-mail address."""
    credential = find_credential(connection, who)
    return credential.user if credential else None


def find_credential(connection: Connection, who: str) -> Credential | None:
    """The same with the password hash."""
    sought = handle(who)
    if sought is None:
        return None
    column, value = sought
    row = connection.execute(select(*_USER, users.c.password_hash).where(users.c[column] == value)).one_or_none()
    return Credential(user=_user(row), password_hash=row.password_hash) if row else None


def insert_user(connection: Connection, user: User, password_hash: str, *, first: bool = False) -> bool:
    """Keep a new user unless the name or the address is taken or, for `first`, there is any user; whether it was."""
    values: dict[str, Any] = {
        "id": user.id,
        "username": user.username,
        "username_key": user.username.lower(),
        "email": user.email,
        "email_key": user.email.lower(),
        "password_hash": password_hash,
        "role": user.role.value,
        "is_verified": user.is_verified,
        "created_at": user.created_at,
    }
    other = users.alias()
    obstacle = true() if first else _same_handle(other, user.username, user.email)
    row = select(*(literal(value, users.c[name].type) for name, value in values.items())).where(
        ~exists(select(other.c.id).where(obstacle))
    )
    kept = connection.execute(insert(users).from_select(list(values), row).returning(users.c.id))
    return kept.one_or_none() is not None


def username_taken(connection: Connection, username: str, *, but_for: UserId | None = None) -> bool:
    """Whether another user than `but_for` has this name."""
    same = and_(users.c.username_key == username.lower(), users.c.id != (but_for or ""))
    return connection.execute(select(users.c.id).where(same)).first() is not None


def list_users(connection: Connection, *, query: str, limit: int, offset: int) -> tuple[list[User], int]:
    """Users whose name or address contains `query`, eldest first, and how many there are in all."""
    matching = or_(
        users.c.username_key.contains(query.lower(), autoescape=True),
        users.c.email_key.contains(query.lower(), autoescape=True),
    )
    page = select(*_USER).where(matching).order_by(users.c.created_at, users.c.id).limit(limit).offset(offset)
    total = connection.execute(select(func.count()).select_from(users).where(matching)).scalar_one()
    return [_user(row) for row in connection.execute(page)], total


def update_profile(connection: Connection, user_id: UserId, *, username: str, email: str) -> User | None:
    """Rename the user unless another has the name or the address; a new address is not verified yet."""
    other = users.alias()
    taken = exists(
        select(other.c.id).where(other.c.id != user_id, _same_handle(other, username, email)),
    )
    same_address = users.c.email_key == email.lower()
    changed = connection.execute(
        update(users)
        .where(users.c.id == user_id, ~taken)
        .values(
            username=username,
            username_key=username.lower(),
            email=email,
            email_key=email.lower(),
            is_verified=case((same_address, users.c.is_verified), else_=False),
        )
        .returning(*_USER)
    ).one_or_none()
    return _user(changed) if changed else None


def update_role(connection: Connection, user_id: UserId, role: Role) -> User | None:
    """Give the user this role, unless no admin would be left."""
    _hold_admins(connection)
    allowed = true() if role is Role.ADMIN else _spares_an_admin()
    changed = connection.execute(
        update(users).where(users.c.id == user_id, allowed).values(role=role.value).returning(*_USER)
    ).one_or_none()
    return _user(changed) if changed else None


def delete_user(connection: Connection, user_id: UserId) -> bool:
    """Remove the user and every session, unless no admin would be left; whether it was done."""
    _hold_admins(connection)
    gone = connection.execute(delete(users).where(users.c.id == user_id, _spares_an_admin()).returning(users.c.id))
    return gone.one_or_none() is not None


def update_password(connection: Connection, user_id: UserId, password_hash: str, *, replacing: str | None) -> bool:
    """Set the hash, if it still is `replacing` (None: whatever it is), and end every session; whether it was done.

    Who has no password here never gets one.
    """
    expected = users.c.password_hash != NO_PASSWORD if replacing is None else users.c.password_hash == replacing
    changed = connection.execute(
        update(users).where(users.c.id == user_id, expected).values(password_hash=password_hash).returning(users.c.id)
    )
    if changed.one_or_none() is None:
        return False
    delete_families(connection, user_id)
    return True


def record_login(connection: Connection, user_id: UserId, *, verified_hash: str, at: int) -> User | None:
    """The user as of now; None if the password that was verified is no longer theirs.

    Writing the row keeps a change of password out until this login's session is there to be ended by it.
    """
    row = connection.execute(
        update(users)
        .where(users.c.id == user_id, users.c.password_hash == verified_hash)
        .values(logged_in_at=at)
        .returning(*_USER)
    ).one_or_none()
    return _user(row) if row else None


def mark_verified(connection: Connection, user_id: UserId) -> None:
    """Note that the user's present address is theirs."""
    connection.execute(update(users).where(users.c.id == user_id).values(is_verified=True))


def last_login(connection: Connection, user_id: UserId) -> int | None:
    """When the user last logged in, if ever."""
    return connection.execute(select(users.c.logged_in_at).where(users.c.id == user_id)).scalar_one_or_none()


def _same_handle(table: Any, username: str, email: str) -> ColumnElement[bool]:
    return or_(table.c.username_key == username.lower(), table.c.email_key == email.lower())


def _spares_an_admin() -> ColumnElement[bool]:
    """Whose role an external issuer decides does not count: the next token may take it away."""
    other = users.alias()
    local_admin = and_(other.c.role == Role.ADMIN.value, other.c.password_hash != NO_PASSWORD)
    another = exists(select(other.c.id).where(local_admin, other.c.id != users.c.id))
    return or_(users.c.role != Role.ADMIN.value, users.c.password_hash == NO_PASSWORD, another)


def _hold_admins(connection: Connection) -> None:
    """Make concurrent demotions wait for each other, where writers run side by side: two could each spare the other."""
    held = select(users.c.id).where(users.c.role == Role.ADMIN.value).order_by(users.c.id).with_for_update()
    connection.execute(held).all()


def _user(row: Row[*tuple[Any, ...]]) -> User:
    return User(
        id=UserId(row.id),
        username=row.username,
        email=row.email,
        role=Role(row.role),
        is_verified=row.is_verified,
        created_at=row.created_at,
    )


# ── Refresh tokens ──────────────────────────────────────────────────────────────────────────────────────────────────


def insert_family(
    connection: Connection, family_id: str, user_id: UserId, *, at: int, expires_at: int, ends_at: int | None
) -> None:
    """Begin a family of refresh tokens, and forget those of this user that have run out.

    No refresh prolongs it beyond `ends_at`, where there is one.
    """
    connection.execute(
        delete(refresh_families).where(refresh_families.c.user_id == user_id, refresh_families.c.expires_at <= at)
    )
    connection.execute(
        insert(refresh_families).values(
            id=family_id, user_id=user_id, created_at=at, expires_at=expires_at, ends_at=ends_at
        )
    )


def insert_token(connection: Connection, digest: str, family_id: str, *, at: int, expires_at: int) -> None:
    """Add the family's next token, and forget its oldest."""
    connection.execute(
        delete(refresh_tokens).where(refresh_tokens.c.family_id == family_id, refresh_tokens.c.expires_at <= at)
    )
    connection.execute(insert(refresh_tokens).values(digest=digest, family_id=family_id, expires_at=expires_at))


def hold_family(connection: Connection, digest: str, *, expires_at: int) -> tuple[str, UserId, int] | None:
    """The family of this token, its user and its new end; writing the row makes rotation and revocation take turns."""
    family = select(refresh_tokens.c.family_id).where(refresh_tokens.c.digest == digest).scalar_subquery()
    row = connection.execute(
        update(refresh_families)
        .where(refresh_families.c.id == family)
        .values(
            expires_at=case((refresh_families.c.ends_at < expires_at, refresh_families.c.ends_at), else_=expires_at)
        )
        .returning(refresh_families.c.id, refresh_families.c.user_id, refresh_families.c.expires_at)
    ).one_or_none()
    return (row.id, UserId(row.user_id), row.expires_at) if row else None


def consume_token(connection: Connection, digest: str, *, at: int) -> bool:
    """Use the token up; False if it was used already or has expired."""
    fresh = and_(refresh_tokens.c.used_at.is_(None), refresh_tokens.c.expires_at > at)
    used = connection.execute(
        update(refresh_tokens)
        .where(refresh_tokens.c.digest == digest, fresh)
        .values(used_at=at)
        .returning(refresh_tokens.c.digest)
    )
    return used.one_or_none() is not None


def list_families(connection: Connection, user_id: UserId) -> list[tuple[int, int]]:
    """When each session of the user began and ends, eldest first."""
    families = select(refresh_families.c.created_at, refresh_families.c.expires_at)
    own = families.where(refresh_families.c.user_id == user_id).order_by(refresh_families.c.created_at)
    return [(row.created_at, row.expires_at) for row in connection.execute(own)]


def family_lives(connection: Connection, family_id: str, user_id: UserId) -> bool:
    """Whether this session of the user has not ended."""
    family = and_(refresh_families.c.id == family_id, refresh_families.c.user_id == user_id)
    return connection.execute(select(refresh_families.c.id).where(family)).first() is not None


def delete_family(connection: Connection, family_id: str) -> None:
    """Revoke every token of the family."""
    connection.execute(delete(refresh_families).where(refresh_families.c.id == family_id))


def delete_family_of(connection: Connection, digest: str) -> None:
    """Revoke every token of this token's family."""
    family = select(refresh_tokens.c.family_id).where(refresh_tokens.c.digest == digest).scalar_subquery()
    connection.execute(delete(refresh_families).where(refresh_families.c.id == family))


def delete_families(connection: Connection, user_id: UserId) -> None:
    """Revoke every refresh token of the user."""
    connection.execute(delete(refresh_families).where(refresh_families.c.user_id == user_id))


# ── Signing keys ────────────────────────────────────────────────────────────────────────────────────────────────────


def list_keys(connection: Connection) -> list[SigningKey]:
    """All signing keys, newest first."""
    rows = connection.execute(
        select(signing_keys).order_by(signing_keys.c.created_at.desc(), signing_keys.c.kid.desc())
    )
    return [SigningKey(kid=row.kid, private_pem=row.private_pem, created_at=row.created_at) for row in rows]


def hold_start(connection: Connection) -> None:
    """Make processes that start together take turns, where writers run side by side: each would add a first key.

    The row held is the one that says which migration was reached: it is always there, and nobody else writes it.
    """
    connection.execute(_HOLD_START)


def insert_key(connection: Connection, key: SigningKey) -> None:
    """Keep a signing key."""
    connection.execute(insert(signing_keys).values(kid=key.kid, private_pem=key.private_pem, created_at=key.created_at))


def delete_keys_but(connection: Connection, kids: Sequence[str]) -> None:
    """Forget all signing keys but these."""
    connection.execute(delete(signing_keys).where(signing_keys.c.kid.not_in(kids)))


# ── Services ────────────────────────────────────────────────────────────────────────────────────────────────────────


def insert_service(connection: Connection, service: Service, secret_digest: str) -> None:
    """Keep a service's credential; the name must be free."""
    connection.execute(
        insert(services).values(
            name=service.name,
            secret_digest=secret_digest,
            scopes=" ".join(sorted(service.scopes)),
            created_at=service.created_at,
        )
    )


def find_service(connection: Connection, name: str) -> tuple[Service, str] | None:
    """The service and the digest of its secret."""
    row = connection.execute(select(services).where(services.c.name == name)).one_or_none()
    return (_service(row), row.secret_digest) if row else None


def list_services(connection: Connection) -> list[Service]:
    """All services by name."""
    return [_service(row) for row in connection.execute(select(services).order_by(services.c.name))]


def delete_service(connection: Connection, name: str) -> bool:
    """Take a service's credential away; whether there was one."""
    gone = connection.execute(delete(services).where(services.c.name == name).returning(services.c.name))
    return gone.one_or_none() is not None


def _service(row: Row[*tuple[Any, ...]]) -> Service:
    return Service(name=row.name, scopes=frozenset(row.scopes.split()), created_at=row.created_at)

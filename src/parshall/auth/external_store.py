"""Every statement on users of external issuers and on their logins; whoever calls owns the transaction."""

import hashlib
import json
from dataclasses import dataclass

from sqlalchemy import Connection, and_, delete, exists, insert, literal, select, update

from parshall.auth.external import NO_PASSWORD, Identity
from parshall.auth.tables import external_users, refresh_families, shut_out, spent_logins, users
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Which user somebody at an issuer is here; `claimed_at` is when the newest token that was met was issued.

    Instants are in microseconds since the epoch.
    """

    id: str
    user_id: UserId
    claimed_at: int


def find_link(connection: Connection, identity: Identity) -> Link | None:
    """The link of this identity."""
    found = select(external_users).where(external_users.c.digest == digest_of(identity.issuer, identity.subject))
    row = connection.execute(found).one_or_none()
    return Link(id=row.id, user_id=UserId(row.user_id), claimed_at=row.claimed_at) if row else None


def insert_link(connection: Connection, link: Link, identity: Identity, *, at: int) -> None:
    """Keep that this identity is that user; an integrity error where another process was faster."""
    connection.execute(
        insert(external_users).values(
            id=link.id,
            user_id=link.user_id,
            digest=digest_of(identity.issuer, identity.subject),
            issuer=identity.issuer,
            subject=identity.subject,
            claimed_at=link.claimed_at,
            created_at=at,
        )
    )


def claim_role(connection: Connection, link: Link, role: Role, *, at: int) -> None:
    """Give the user the role that a token issued at `at` claims, unless a newer one has been met."""
    newest = and_(external_users.c.id == link.id, external_users.c.claimed_at <= at)
    claimed = connection.execute(
        update(external_users).where(newest).values(claimed_at=at).returning(external_users.c.id)
    )
    if claimed.one_or_none() is not None:
        connection.execute(update(users).where(users.c.id == link.user_id).values(role=role.value))


def is_external(connection: Connection, user_id: UserId) -> bool:
    """Whether an issuer vouches for this user."""
    found = select(users.c.id).where(users.c.id == user_id, users.c.password_hash == NO_PASSWORD)
    return connection.execute(found).first() is not None


def email_taken(connection: Connection, email: str) -> bool:
    """Whether a user has this address."""
    return connection.execute(select(users.c.id).where(users.c.email_key == email.lower())).first() is not None


def link_lives(connection: Connection, link_id: str, user_id: UserId) -> bool:
    """Whether the user has this link."""
    own = and_(external_users.c.id == link_id, external_users.c.user_id == user_id)
    return connection.execute(select(external_users.c.id).where(own)).first() is not None


def find_origin(connection: Connection, user_id: UserId) -> tuple[str, str, int] | None:
    """The issuer and the subject that the user is there, and since when they are known here."""
    found = select(external_users).where(external_users.c.user_id == user_id)
    row = connection.execute(found).one_or_none()
    return (row.issuer, row.subject, row.created_at) if row else None


def began_since(connection: Connection, family_id: str, user_id: UserId, *, at: int) -> bool:
    """Whether this session of the user began at `at` or later."""
    family = and_(refresh_families.c.id == family_id, refresh_families.c.user_id == user_id)
    recent = select(refresh_families.c.id).where(family, refresh_families.c.created_at >= at)
    return connection.execute(recent).first() is not None


# ── Those who were removed ──────────────────────────────────────────────────────────────────────────────────────────


def shut_out_user(connection: Connection, user_id: UserId, *, at: int) -> None:
    """Keep that the identity of this user was removed: its issuer goes on signing for it. By a digest, not by name."""
    row = select(external_users.c.digest, literal(at)).where(
        external_users.c.user_id == user_id, ~exists().where(shut_out.c.digest == external_users.c.digest)
    )
    connection.execute(insert(shut_out).from_select(["digest", "removed_at"], row))


def is_shut_out(connection: Connection, identity: Identity) -> bool:
    """Whether this identity was removed."""
    found = select(shut_out.c.digest).where(shut_out.c.digest == digest_of(identity.issuer, identity.subject))
    return connection.execute(found).first() is not None


def let_in(connection: Connection, issuer: str, subject: str) -> bool:
    """Forget that the identity was removed; whether it was."""
    removed = shut_out.c.digest == digest_of(issuer, subject)
    return connection.execute(delete(shut_out).where(removed).returning(shut_out.c.digest)).one_or_none() is not None


# ── Logins ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def spend(connection: Connection, digest: str, *, at: int, expires_at: int) -> None:
    """Use a login up, and forget those that have run out; an integrity error where it was used."""
    connection.execute(delete(spent_logins).where(spent_logins.c.expires_at <= at))
    connection.execute(insert(spent_logins).values(digest=digest, expires_at=expires_at))


def digest_of(issuer: str, subject: str) -> str:
    """The SHA-256 of an identity, unambiguous between issuers."""
    return hashlib.sha256(json.dumps([issuer, subject]).encode()).hexdigest()

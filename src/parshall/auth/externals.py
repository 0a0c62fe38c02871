"""The use cases of external tokens: each is exchanged for one of ours, and whom it names becomes a user here."""

import secrets
from collections.abc import Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from parshall.auth import external, external_store, keys, store
from parshall.auth.external import ExternalIssuer, ExternalTokenRefused, Identity
from parshall.auth.external_issuer import IssuerClient
from parshall.auth.external_store import Link
from parshall.auth.model import ServiceToken, SigningKey, User
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.ids import UserId, new_id
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import TOKEN_BYTES_MAX, issuer_named

TOKEN_SECONDS = 300
"""The life of an access token that an external one is exchanged for; it is never longer than what is left of that."""
NAMES_TRIED_MAX = 5
_logger = log("oidc")


class Externals:
    """The issuers that are trusted, and whom they vouch for. It owns the connections to them: `close` closes them."""

    def __init__(self, database: Database, *, issuer: str, clock: Clock, issuers: Sequence[ExternalIssuer]) -> None:
        """`issuer` is the `iss` of the tokens that external ones are exchanged for."""
        self._database = database
        self._issuer = issuer
        self._clock = clock
        self._clients = {each.issuer: IssuerClient(each, clock=clock) for each in issuers}

    async def close(self) -> None:
        """Close every connection."""
        for client in self._clients.values():
            await client.close()

    def client(self, name: str) -> IssuerClient | None:
        """The issuer of this name, if it is one that logs people in."""
        return next((client for client in self.logins() if client.issuer.name == name), None)

    def logins(self) -> list[IssuerClient]:
        """The issuers that log people in."""
        return [client for client in self._clients.values() if client.issuer.client_id is not None]

    async def access_token(self, token: str, _address: str) -> str:
        """An access token of ours for one of another issuer: the Exchange of a TokenVerifier. Raises as `exchange`."""
        return (await self.exchange(token)).access_token

    async def exchange(self, token: str) -> ServiceToken:
        """An access token of TOKEN_SECONDS at most for that of an external issuer (RFC 8693).

        The issuer that it names gives the keys, and says so again once it is verified: no key is tried on the tokens
        of another. Raises ExternalTokenRefused or IssuerAway.
        """
        at = self._clock()
        client = self._clients.get(issuer_named(token)) if len(token) <= TOKEN_BYTES_MAX else None
        if client is None:
            raise ExternalTokenRefused("The access token comes from another issuer; log in here.")
        identity = external.access_identity(client.issuer, *await client.verified(token), at=at)
        user, link, key = await self.admit(identity)
        seconds = max(1, min(TOKEN_SECONDS, (identity.expires_at - at) // SECOND))
        claims = keys.user_claims(user, issuer=self._issuer, at=at, seconds=seconds, family_id=link.id)
        return ServiceToken(access_token=keys.sign(key, claims), expires_in=seconds, scopes=frozenset())

    async def admit(self, identity: Identity) -> tuple[User, Link, SigningKey]:
        """The user whom a verified identity names, made if need be, in the role that it claims; and the key that signs.

        Raises ExternalTokenRefused for whom we have removed.
        """
        at = self._clock()
        known = await self._database.read(lambda connection: self._known(connection, identity, at), brief=True)
        if known is not None:
            return known
        try:
            return await self._database.write(lambda connection: self._admit(connection, identity, at))
        except IntegrityError:  # another process has met them at the same time, or taken that name
            return await self._database.write(lambda connection: self._admit(connection, identity, at))

    def _known(self, connection: Connection, identity: Identity, at: int) -> tuple[User, Link, SigningKey] | None:
        """The user where nothing is to be written."""
        link = external_store.find_link(connection, identity)
        if link is None or link.claimed_at < identity.issued_at:
            return None
        user = store.find_user(connection, link.user_id)
        assert user is not None, "a link goes with its user"
        if link.claimed_at == identity.issued_at and user.role is not identity.role:
            return None
        return user, link, keys.signing_key(store.list_keys(connection), at=at)

    def _admit(self, connection: Connection, identity: Identity, at: int) -> tuple[User, Link, SigningKey]:
        link = external_store.find_link(connection, identity)
        if link is None:
            link = _provide(connection, identity, at)
        else:
            external_store.claim_role(connection, link, identity.role, at=identity.issued_at)
        user = store.find_user(connection, link.user_id)
        assert user is not None, "a link goes with its user"
        return user, link, keys.signing_key(store.list_keys(connection), at=at)


def _provide(connection: Connection, identity: Identity, at: int) -> Link:
    """Make a user for somebody who is met for the first time.

    An address is taken where the issuer has verified it and nobody here has it: it never opens an account that is
    there, nor lets whoever made that one into this.
    """
    if external_store.is_shut_out(connection, identity):
        raise ExternalTokenRefused("The user of this token was removed here; ask an administrator.", reason="removed")
    user_id = UserId(new_id())
    is_free = identity.email and not external_store.email_taken(connection, identity.email)
    user = User(
        id=user_id,
        username=_free_name(connection, identity),
        email=identity.email if is_free else f"{user_id}@{external.NO_ADDRESS}",
        role=identity.role,
        is_verified=bool(is_free),
        created_at=at,
    )
    store.insert_user(connection, user, external.NO_PASSWORD)
    link = Link(id=new_id(), user_id=user_id, claimed_at=identity.issued_at)
    external_store.insert_link(connection, link, identity, at=at)
    _logger.info("external_user_made", user=user_id, issuer=identity.issuer)
    return link


def _free_name(connection: Connection, identity: Identity) -> str:
    """The name that the issuer gives, or one like it."""
    name = external.username_of(identity.username)
    tried = [name, *(external.username_like(name, secrets.token_hex(3)) for _ in range(NAMES_TRIED_MAX - 1))]
    return next((each for each in tried if not store.username_taken(connection, each)), tried[-1])

"""The issuing half of auth: signing keys, the tokens signed with them, and the services that may ask for one."""

import hashlib
import hmac
import secrets
from collections.abc import Iterable

from joserfc.jwk import KeySet
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from parshall.auth import keys, model, store
from parshall.auth.model import Service, ServiceToken, Session, SigningKey, User
from parshall.kernel.clock import DAY, SECOND, Clock
from parshall.kernel.database import Database, answers
from parshall.kernel.debugtokens import DEBUG_MINUTES_MAX, DEBUG_TYPE
from parshall.kernel.errors import NotFound


class Issuer:
    """Keeps the signing keys and hands out access tokens, to users for a login and to services for their secret."""

    def __init__(self, database: Database, *, issuer: str, clock: Clock, access_seconds: int) -> None:
        """`issuer` is the tokens' `iss`; `access_seconds` (half a day at most) is a user token's life."""
        assert 0 < 2 * access_seconds * SECOND <= DAY, "a replaced key stays published for a day only"
        self.issuer = issuer
        self._database = database
        self._clock = clock
        self._access_seconds = access_seconds

    async def start(self) -> None:
        """Make the first signing key if there is none."""
        fresh = keys.new_signing_key(at=self._clock())

        def begin(connection: Connection) -> None:
            store.hold_start(connection)
            if not store.list_keys(connection):
                store.insert_key(connection, fresh)

        await self._database.write(begin)

    async def answer(self) -> None:
        """Raises unless the records can be read."""
        await answers(self._database)

    # ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def key_set(self) -> KeySet:
        """The public keys in force: the KeySource of a TokenVerifier, and what jwks.json publishes."""
        known = await self._database.read(store.list_keys)
        return keys.public_keys(keys.in_force(known, at=self._clock()))

    async def keys_in_force(self) -> list[SigningKey]:
        """The keys that are published, newest first."""
        known = await self._database.read(store.list_keys)
        return keys.in_force(known, at=self._clock())

    async def rotate(self) -> str:
        """Add a signing key, published at once and signing a minute later, and return its kid.

        The key it replaces stays published for a day, longer than any token that it signed; then a rotation forgets it.
        """
        at = self._clock()
        fresh = keys.new_signing_key(at=at)

        def add(connection: Connection) -> None:
            store.insert_key(connection, fresh)
            kept = keys.in_force(store.list_keys(connection), at=at)
            store.delete_keys_but(connection, [key.kid for key in kept])

        await self._database.write(add)
        return fresh.kid

    async def replace_keys(self) -> str:
        """Forget every signing key for a new one, which signs at once; its kid. For keys that somebody else has.

        Access tokens end as services notice, within KEYS_REFRESH_SECONDS_MAX; refresh tokens and API keys do not.
        """
        fresh = keys.new_signing_key(at=self._clock())

        def replace(connection: Connection) -> None:
            store.delete_keys_but(connection, [])
            store.insert_key(connection, fresh)

        await self._database.write(replace)
        return fresh.kid

    # ── Services ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def add_service(self, name: str, scopes: Iterable[str] = model.SCOPES) -> str:
        """Give a service a credential; its secret, which is shown this once.

        Raises MalformedServiceName, InvalidScope or ServiceExists.
        """
        service, secret = self._service(name, scopes), secrets.token_urlsafe(32)
        try:
            await self._database.write(lambda c: store.insert_service(c, service, digest(secret)))
        except IntegrityError as error:
            raise model.ServiceExists from error
        return secret

    async def keep_service(self, name: str, scopes: Iterable[str] = model.SCOPES, *, secret: str) -> bool:
        """Have a service be known by this secret and these scopes, in place of others; whether that changed anything.

        Raises MalformedServiceName, InvalidScope or WeakSecret.
        """
        service = self._service(name, scopes)
        model.check_service_secret(secret)

        def work(connection: Connection) -> bool:
            found = store.find_service(connection, name)
            if found and (found[0].scopes, found[1]) == (service.scopes, digest(secret)):
                return False
            store.delete_service(connection, name)
            store.insert_service(connection, service, digest(secret))
            return True

        return await self._database.write(work)

    def _service(self, name: str, scopes: Iterable[str]) -> Service:
        model.check_service_name(name)
        service = Service(name=name, scopes=frozenset(scopes), created_at=self._clock())
        if not service.scopes or not service.scopes <= model.SCOPES:
            raise model.InvalidScope
        return service

    async def services(self) -> list[Service]:
        """The services by name."""
        return await self._database.read(store.list_services)

    async def revoke_service(self, name: str) -> None:
        """Take a service's credential away; its last token still runs for up to five minutes. Raises NotFound."""
        if not await self._database.write(lambda connection: store.delete_service(connection, name)):
            raise NotFound("There is no such service; `parshall services list` names them.")

    async def service_token(self, client_id: str, client_secret: str, scope: str | None = None) -> ServiceToken:
        """An access token for a service itself (RFC 6749 §4.4). Raises InvalidClient or InvalidScope."""
        at = self._clock()
        try:
            model.check_service_name(client_id)
        except model.MalformedServiceName as error:
            raise model.InvalidClient from error
        found, known = await self._database.read(lambda c: (store.find_service(c, client_id), store.list_keys(c)))
        if found is None or not hmac.compare_digest(found[1], digest(client_secret)):
            raise model.InvalidClient
        scopes = model.granted_scopes(found[0].scopes, scope)
        claims = keys.service_claims(client_id, scopes, issuer=self.issuer, at=at)
        token = keys.sign(keys.signing_key(known, at=at), claims)
        return ServiceToken(access_token=token, expires_in=keys.SERVICE_SECONDS, scopes=scopes)

    async def debug_token(self, who: str, *, minutes: int) -> str:
        """A token that has the requests traced which carry it in DEBUG_HEADER, for an administrator."""
        assert 0 < minutes <= DEBUG_MINUTES_MAX
        at, known = self._clock(), await self._database.read(store.list_keys)
        claims = keys.debug_claims(who, issuer=self.issuer, at=at, seconds=minutes * 60)
        return keys.sign(keys.signing_key(known, at=at), claims, media_type=DEBUG_TYPE)

    def _session(self, user: User, family_id: str, key: SigningKey, *, refresh_token: str, at: int) -> Session:
        seconds = self._access_seconds
        claims = keys.user_claims(user, issuer=self.issuer, at=at, seconds=seconds, family_id=family_id)
        return Session(access_token=keys.sign(key, claims), refresh_token=refresh_token, expires_in=seconds, user=user)


def digest(secret: str) -> str:
    """What is kept of a secret that we made: with 256 random bits a plain SHA-256 cannot be searched."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()

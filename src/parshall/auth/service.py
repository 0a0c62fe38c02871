"""The use cases of auth: each one transaction, with hashing and signing outside of it."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from parshall.auth import apikey_store, external, external_store, keys, mailed_store, model, store
from parshall.auth.apikey import ApiKey
from parshall.auth.apikeys import ApiKeys
from parshall.auth.correspondence import Correspondence
from parshall.auth.external import ExternalIssuer
from parshall.auth.external_login import Arrived, ExternalLogin
from parshall.auth.externals import Externals
from parshall.auth.issuer import digest
from parshall.auth.mail import Post
from parshall.auth.mailed import Purpose, SignupClosed
from parshall.auth.model import Credential, Session, SigningKey, User
from parshall.auth.passwords import AT_ONCE, LoginThrottle, PasswordHasher, SignupThrottle
from parshall.auth.users import Users, found, present, remove_user
from parshall.kernel.clock import INSTANT_MAX, SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.ids import UserId, new_id
from parshall.kernel.telemetry import log

REFRESH_SECONDS = 30 * 86_400
FRESH_SECONDS = 600
"""How long a login through an issuer stands for the password that its user does not have here."""
_logger = log("auth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What auth keeps of a user; instants in microseconds since the epoch.

    A session is given as when it began and when it ends, a mailed code as its purpose and when it expires, the origin
    as the external issuer, the subject there, and since when that is known.
    """

    user: User
    logged_in_at: int | None
    sessions: list[tuple[int, int]]
    api_keys: list[ApiKey]
    mailed_codes: list[tuple[Purpose, int]]
    origin: tuple[str, str, int] | None


class Auth(Users):
    """The auth service. It owns the database and the hasher that it is given: `close` closes both."""

    def __init__(
        self,
        database: Database,
        *,
        issuer: str,
        clock: Clock,
        hasher: PasswordHasher,
        access_seconds: int = keys.ACCESS_SECONDS,
        signup_open: bool = False,
        post: Post | None = None,
        pages: str | None = None,
        issuers: Sequence[ExternalIssuer] = (),
        public_url: str | None = None,
    ) -> None:
        """`issuer` is the tokens' `iss`; `access_seconds` (half a day at most) is a user token's life.

        `signup_open` lets anybody become a user; `post` takes letters, which lead to `pages` where there are any.
        `issuers` are believed, and send browsers back to `public_url`.
        """
        super().__init__(database, issuer=issuer, clock=clock, hasher=hasher, access_seconds=access_seconds)
        self._throttle = LoginThrottle()
        self._signups = SignupThrottle()
        self._verifying = asyncio.Semaphore(AT_ONCE)
        self.api_keys = ApiKeys(database, issuer=issuer, clock=clock)
        self.correspondence = Correspondence(database, clock=clock, hasher=hasher, post=post, pages=pages)
        self.externals = Externals(database, issuer=issuer, clock=clock, issuers=issuers)
        self.external_login = ExternalLogin(database, externals=self.externals, clock=clock, public_url=public_url)
        self._signup_open = signup_open

    async def close(self) -> None:
        """Finish the hashes and transactions under way."""
        await self.externals.close()
        await self._hasher.close()
        await self._database.close()

    async def present(self, user_id: UserId, session_id: str) -> User:
        """The user of an access token. Raises UserGone, or SessionOver where its login or API key has ended.

        That of an external issuer's user names their link to it as the session.
        """
        at = self._clock()

        def look(connection: Connection) -> tuple[User, bool]:
            return present(connection, user_id), (
                store.family_lives(connection, session_id, user_id)
                or apikey_store.key_lives(connection, session_id, user_id, at=at)
                or external_store.link_lives(connection, session_id, user_id)
            )

        user, lives = await self._database.read(look, brief=True)
        if not lives:
            raise model.SessionOver
        return user

    async def sign_up(self, username: str, email: str, password: str, address: str) -> User:
        """Become a user; the address is asked to be confirmed.

        A taken name and a taken address are refused in the same words, and after a while not answered any more.
        Raises SignupClosed, TooManyRequests, or as create_user.
        """
        if not self._signup_open:
            raise SignupClosed
        self._signups.check("", address)
        try:
            user = await self.create_user(username, email, password)
        except (model.UsernameTaken, model.EmailTaken) as error:
            self._signups.failed("", address)
            raise model.UsernameTaken(model.EITHER_TAKEN) from error
        self.correspondence.offer(Purpose.VERIFY, user.email, address)
        return user

    # ── Sessions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def login(self, name: str, password: str, address: str) -> Session:
        """A new session for a username or e-mail address. Raises WrongCredentials or TooManyRequests.

        `address` is the caller's network address, which counts for the throttle.
        """
        credential = await self._verified(name, password, address)
        session = await self._open(credential.user.id, credential.password_hash)
        if session is None:
            raise model.WrongCredentials
        return session

    async def login_from(self, arrived: Arrived) -> Session:
        """A new session for somebody whom an issuer has logged in. Raises ExternalTokenRefused for whom we removed."""
        user, _, _ = await self.externals.admit(arrived.identity)
        session = await self._open(user.id, external.NO_PASSWORD, lasting=arrived.issuer.session_seconds)
        if session is None:
            raise model.UserGone
        return session

    async def change_password(self, user_id: UserId, current: str, password: str, address: str) -> Session:
        """Replace the user's own password, end every session and open a new one for the caller.

        Raises WrongPassword, UnfitPassword, UserGone or TooManyRequests.
        """
        model.check_password(password)
        verified = await self._confirmed(user_id, current, address)
        hashed = await self._hasher.hash(password)

        def replace(connection: Connection) -> bool:
            mailed_store.delete_codes(connection, user_id, Purpose.RESET)
            return store.update_password(connection, user_id, hashed, replacing=verified.password_hash)

        if not await self._database.write(replace):
            raise model.WrongPassword
        session = await self._open(user_id, hashed)
        if session is None:
            raise model.UserGone
        return session

    async def refresh(self, refresh_token: str) -> Session:
        """Use a refresh token up for a new pair. Raises RefreshRefused; a used one ends the whole family (RFC 9700)."""
        at, successor = self._clock(), secrets.token_urlsafe(32)
        expires_at = at + REFRESH_SECONDS * SECOND

        def rotate(connection: Connection) -> tuple[User, str, SigningKey] | None:
            held = store.hold_family(connection, digest(refresh_token), expires_at=expires_at)
            if held is None:
                return None
            family_id, user_id, ends_at = held
            if not store.consume_token(connection, digest(refresh_token), at=at):
                store.delete_family(connection, family_id)
                _logger.warning("refresh_replayed", user=user_id, family=family_id)
                return None
            store.insert_token(connection, digest(successor), family_id, at=at, expires_at=ends_at)
            return found(connection, user_id), family_id, keys.signing_key(store.list_keys(connection), at=at)

        rotated = await self._database.write(rotate, brief=True)
        if rotated is None:
            raise model.RefreshRefused
        return self._session(*rotated, refresh_token=successor, at=at)

    async def delete_own(self, user_id: UserId, session_id: str, password: str, address: str) -> None:
        """Remove the caller, who knows the password, or has just logged in at an external issuer.

        Raises WrongPassword, FreshLoginNeeded, LastAdmin, UserGone or TooManyRequests.
        """
        at = self._clock()
        if await self._database.read(lambda connection: external_store.is_external(connection, user_id)):
            await self._delete_external(user_id, session_id, at)
            return
        confirmed = await self._confirmed(user_id, password, address)

        def remove(connection: Connection) -> None:
            present(connection, user_id)
            if store.find_credential(connection, user_id) != confirmed:
                raise model.WrongPassword
            remove_user(connection, user_id, at=at)

        await self._database.write(remove)

    async def _delete_external(self, user_id: UserId, session_id: str, at: int) -> None:
        def remove(connection: Connection) -> None:
            if not external_store.began_since(connection, session_id, user_id, at=at - FRESH_SECONDS * SECOND):
                raise external.FreshLoginNeeded
            remove_user(connection, user_id, at=at)

        await self._database.write(remove)

    async def export(self, who: str) -> Export:
        """All that is kept of a user, secrets aside. Raises NotFound."""

        def gather(connection: Connection) -> Export:
            user = found(connection, who)
            return Export(
                user=user,
                logged_in_at=store.last_login(connection, user.id),
                sessions=store.list_families(connection, user.id),
                api_keys=apikey_store.list_keys(connection, user.id),
                mailed_codes=mailed_store.list_codes(connection, user.id),
                origin=external_store.find_origin(connection, user.id),
            )

        return await self._database.read(gather)

    async def logout(self, refresh_token: str) -> None:
        """End the session that this refresh token belongs to; an unknown one has none."""
        await self._database.write(lambda c: store.delete_family_of(c, digest(refresh_token)))

    async def logout_session(self, session_id: str) -> None:
        """End the session that an access token names (`sid`)."""
        await self._database.write(lambda connection: store.delete_family(connection, session_id))

    async def logout_all(self, user_id: UserId) -> None:
        """End every session of the user."""
        await self._database.write(lambda connection: store.delete_families(connection, user_id))

    # ── Steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _verified(self, who: str, password: str, address: str) -> Credential:
        """The credential that the password matches. Raises WrongCredentials or TooManyRequests.

        Whoever waits for a turn is checked again: the failures of those before may have used the guesses up.
        """
        self._throttle.check(who, address)
        async with self._verifying:
            self._throttle.check(who, address)
            credential = await self._database.read(
                lambda connection: store.find_credential(connection, who), brief=True
            )
            matches = await self._hasher.verify(password, credential.password_hash if credential else None)
            if credential is None or not matches:
                self._throttle.failed(who, address)
                raise model.WrongCredentials
            self._throttle.succeeded(who, address)
            return credential

    async def _confirmed(self, user_id: UserId, password: str, address: str) -> Credential:
        """The same for a user who has logged in. Raises WrongPassword or TooManyRequests."""
        try:
            return await self._verified(user_id, password, address)
        except model.WrongCredentials as error:
            raise model.WrongPassword from error

    async def _open(self, user_id: UserId, verified_hash: str, *, lasting: int | None = None) -> Session | None:
        """A new session, in a family of its own; None if the password that was verified is no longer the user's.

        No refresh makes it last longer than `lasting` seconds, where that is given.
        """
        at, token, family_id = self._clock(), secrets.token_urlsafe(32), new_id()
        ends_at = None if lasting is None else at + lasting * SECOND
        expires_at = min(at + REFRESH_SECONDS * SECOND, ends_at or INSTANT_MAX)

        def begin(connection: Connection) -> tuple[User, SigningKey] | None:
            user = store.record_login(connection, user_id, verified_hash=verified_hash, at=at)
            if user is None:
                return None
            store.insert_family(connection, family_id, user_id, at=at, expires_at=expires_at, ends_at=ends_at)
            store.insert_token(connection, digest(token), family_id, at=at, expires_at=expires_at)
            return user, keys.signing_key(store.list_keys(connection), at=at)

        begun = await self._database.write(begin, brief=True)
        if begun is None:
            return None
        return self._session(begun[0], family_id, begun[1], refresh_token=token, at=at)

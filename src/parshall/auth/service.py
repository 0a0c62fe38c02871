"""The use cases of auth: each one transaction, with hashing and signing outside of it."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import NoReturn

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from parshall.auth import apikey_store, keys, model, store
from parshall.auth.apikeys import ApiKeys
from parshall.auth.issuer import Issuer, digest
from parshall.auth.model import Credential, NewUser, Session, SigningKey, User
from parshall.auth.passwords import AT_ONCE, LoginThrottle, PasswordHasher
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.errors import NotFound, ParshallError
from parshall.kernel.ids import UserId, new_id
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import Role

REFRESH_SECONDS = 30 * 86_400
ADMIN_USERNAME = "admin"
ADMIN_EMAIL = "admin@localhost"
_NO_USER = "There is no such user; give an id, a username or an e-mail address."
_logger = log("auth")


class Auth(Issuer):
    """The auth service. It owns the database and the hasher that it is given: `close` closes both."""

    def __init__(
        self,
        database: Database,
        *,
        issuer: str,
        clock: Clock,
        hasher: PasswordHasher,
        access_seconds: int = keys.ACCESS_SECONDS,
    ) -> None:
        """`issuer` is the tokens' `iss`; `access_seconds` (half a day at most) is a user token's life."""
        super().__init__(database, issuer=issuer, clock=clock, access_seconds=access_seconds)
        self._hasher = hasher
        self._throttle = LoginThrottle()
        self._verifying = asyncio.Semaphore(AT_ONCE)
        self.api_keys = ApiKeys(database, issuer=issuer, clock=clock)

    async def close(self) -> None:
        """Finish the hashes and transactions under way."""
        await self._hasher.close()
        await self._database.close()

    # ── Users ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def create_user(self, username: str, email: str, password: str, role: Role = Role.ENDUSER) -> User:
        """Make a user. Raises MalformedUsername, MalformedEmail, UnfitPassword, UsernameTaken or EmailTaken."""
        new = NewUser(username=username, email=email, password=password, role=role)
        _check(new)
        return await self._insert(new, await self._hasher.hash(password))

    async def create_users(self, batch: Sequence[NewUser]) -> list[User | ParshallError]:
        """Make each of these users or say why not, in order; one refusal does not hinder the others."""
        assert len(batch) <= model.BATCH_USERS_MAX
        hashes = await asyncio.gather(*(self._hash_checked(new) for new in batch))
        return [
            hashed if isinstance(hashed, ParshallError) else await self._insert_or_refuse(new, hashed)
            for new, hashed in zip(batch, hashes, strict=True)
        ]

    async def ensure_admin(self, password: str | None) -> str | None:
        """Make the user `admin` if there is no user at all; the password if it had to be generated, else None.

        A given password is taken as it is, however short. Of several processes that start at once, one makes it.
        """
        if (await self.users_page(limit=1))[1]:
            return None
        chosen = password or secrets.token_urlsafe(12)
        hashed = await self._hasher.hash(chosen)
        new = NewUser(username=ADMIN_USERNAME, email=ADMIN_EMAIL, password=chosen, role=Role.ADMIN)
        user = self._user(new, is_verified=True)
        try:
            made = await self._database.write(lambda c: store.insert_user(c, user, hashed, first=True))
        except IntegrityError:
            return None
        return chosen if made and not password else None

    async def find_user(self, who: str) -> User:
        """The user with this id, username or e-mail address. Raises NotFound."""
        return await self._database.read(lambda connection: _found(connection, who))

    async def present(self, user_id: UserId, session_id: str) -> User:
        """The user of an access token. Raises UserGone, or SessionOver where its login or API key has ended."""
        at = self._clock()

        def look(connection: Connection) -> tuple[User, bool]:
            return _present(connection, user_id), (
                store.family_lives(connection, session_id, user_id)
                or apikey_store.key_lives(connection, session_id, user_id, at=at)
            )

        user, lives = await self._database.read(look)
        if not lives:
            raise model.SessionOver
        return user

    async def resolve(self, who: str) -> UserId:
        """The id of the user with this id, username or e-mail address. Raises NotFound."""
        return (await self.find_user(who)).id

    async def users(self) -> list[User]:
        """The users, eldest first, at most USERS_PER_PAGE_MAX."""
        return (await self.users_page())[0]

    async def users_page(
        self, *, query: str = "", page: int = 1, limit: int = model.USERS_PER_PAGE_MAX
    ) -> tuple[list[User], int]:
        """One page (from 1) of the users whose name or address contains `query`, and how many there are in all."""
        assert page >= 1
        assert 1 <= limit <= model.USERS_PER_PAGE_MAX
        offset = (page - 1) * limit
        return await self._database.read(lambda c: store.list_users(c, query=query, limit=limit, offset=offset))

    async def update_profile(self, user_id: UserId, *, username: str | None, email: str | None) -> User:
        """Change the name, the address or both. Raises UsernameTaken, EmailTaken, MalformedUsername, MalformedEmail."""
        if username is not None:
            model.check_username(username)
        if email is not None:
            model.check_email(email)

        def rename(connection: Connection) -> User:
            user = _present(connection, user_id)
            name, address = username or user.username, email or user.email
            changed = store.update_profile(connection, user_id, username=name, email=address)
            return changed or _refuse_taken(connection, name, but_for=user_id)

        try:
            return await self._database.write(rename)
        except IntegrityError as error:
            raise model.UsernameTaken("That username or e-mail address is taken; choose another.") from error

    async def set_role(self, who: str, role: Role) -> User:
        """Give a user a role. Raises NotFound, or LastAdmin when nobody could administer afterwards."""

        def change(connection: Connection) -> User:
            user = store.update_role(connection, _found(connection, who).id, role)
            if user is None:
                raise model.LastAdmin
            return user

        return await self._database.write(change)

    async def delete_user(self, who: str, *, by: UserId | None = None) -> None:
        """Remove a user with every session. Raises NotFound, LastAdmin, or OwnAccount where `by` is that user."""

        def remove(connection: Connection) -> None:
            user = _found(connection, who)
            if user.id == by:
                raise model.OwnAccount
            if not store.delete_user(connection, user.id):
                raise model.LastAdmin

        await self._database.write(remove)

    async def set_password(self, who: str, password: str) -> None:
        """Give a user another password; every session and API key ends. Raises NotFound or UnfitPassword.

        Whoever needs this may have lost the account to somebody else, who could have made keys.
        """
        model.check_password(password)
        user_id = await self.resolve(who)
        hashed = await self._hasher.hash(password)

        def replace(connection: Connection) -> bool:
            apikey_store.delete_keys(connection, user_id)
            return store.update_password(connection, user_id, hashed, replacing=None)

        if not await self._database.write(replace):
            raise NotFound(_NO_USER)

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

    async def change_password(self, user_id: UserId, current: str, password: str, address: str) -> Session:
        """Replace the user's own password, end every session and open a new one for the caller.

        Raises WrongPassword, UnfitPassword, UserGone or TooManyRequests.
        """
        model.check_password(password)
        try:
            verified = await self._verified(user_id, current, address)
        except model.WrongCredentials as error:
            raise model.WrongPassword from error
        hashed = await self._hasher.hash(password)
        old = verified.password_hash
        if not await self._database.write(lambda c: store.update_password(c, user_id, hashed, replacing=old)):
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
            family_id, user_id = held
            if not store.consume_token(connection, digest(refresh_token), at=at):
                store.delete_family(connection, family_id)
                _logger.warning("refresh_replayed", user=user_id, family=family_id)
                return None
            store.insert_token(connection, digest(successor), family_id, at=at, expires_at=expires_at)
            return _found(connection, user_id), family_id, keys.signing_key(store.list_keys(connection), at=at)

        rotated = await self._database.write(rotate)
        if rotated is None:
            raise model.RefreshRefused
        return self._session(*rotated, refresh_token=successor, at=at)

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
            found = await self._database.read(lambda connection: store.find_credential(connection, who))
            matches = await self._hasher.verify(password, found.password_hash if found else None)
            if found is None or not matches:
                self._throttle.failed(who, address)
                raise model.WrongCredentials
            self._throttle.succeeded(who, address)
            return found

    async def _open(self, user_id: UserId, verified_hash: str) -> Session | None:
        """A new session, in a family of its own; None if the password that was verified is no longer the user's."""
        at, token, family_id = self._clock(), secrets.token_urlsafe(32), new_id()
        expires_at = at + REFRESH_SECONDS * SECOND

        def begin(connection: Connection) -> tuple[User, SigningKey] | None:
            user = store.record_login(connection, user_id, verified_hash=verified_hash, at=at)
            if user is None:
                return None
            store.insert_family(connection, family_id, user_id, at=at, expires_at=expires_at)
            store.insert_token(connection, digest(token), family_id, at=at, expires_at=expires_at)
            return user, keys.signing_key(store.list_keys(connection), at=at)

        begun = await self._database.write(begin)
        if begun is None:
            return None
        return self._session(begun[0], family_id, begun[1], refresh_token=token, at=at)

    async def _hash_checked(self, new: NewUser) -> str | ParshallError:
        try:
            _check(new)
            return await self._hasher.hash(new.password)
        except ParshallError as error:
            return error

    async def _insert_or_refuse(self, new: NewUser, password_hash: str) -> User | ParshallError:
        try:
            return await self._insert(new, password_hash)
        except ParshallError as error:
            return error

    async def _insert(self, new: NewUser, password_hash: str) -> User:
        user = self._user(new, is_verified=False)

        def keep(connection: Connection) -> User:
            if not store.insert_user(connection, user, password_hash):
                _refuse_taken(connection, user.username, but_for=user.id)
            return user

        try:
            return await self._database.write(keep)
        except IntegrityError as error:  # two that could not see each other, where writers run side by side
            raise model.UsernameTaken("That username or e-mail address is taken; choose another.") from error

    def _user(self, new: NewUser, *, is_verified: bool) -> User:
        return User(
            id=UserId(new_id()),
            username=new.username,
            email=new.email,
            role=new.role,
            is_verified=is_verified,
            created_at=self._clock(),
        )


def _check(new: NewUser) -> None:
    model.check_username(new.username)
    model.check_email(new.email)
    model.check_password(new.password)


def _found(connection: Connection, who: str) -> User:
    user = store.find_user(connection, who)
    if user is None:
        raise NotFound(_NO_USER)
    return user


def _present(connection: Connection, user_id: UserId) -> User:
    user = store.find_user(connection, user_id)
    if user is None:
        raise model.UserGone
    return user


def _refuse_taken(connection: Connection, username: str, *, but_for: UserId) -> NoReturn:
    """Say which of name and address was in the way of a statement that changed nothing."""
    raise model.UsernameTaken if store.username_taken(connection, username, but_for=but_for) else model.EmailTaken

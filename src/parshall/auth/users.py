"""The half of auth that keeps users: made, found, changed and removed."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import NoReturn

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from parshall.auth import apikey_store, external_store, keys, mailed_store, model, removal_store, store
from parshall.auth.external import ExternalUser
from parshall.auth.issuer import Issuer
from parshall.auth.mailed import Purpose
from parshall.auth.model import NewUser, User
from parshall.auth.passwords import PasswordHasher
from parshall.kernel.clock import Clock
from parshall.kernel.database import Database
from parshall.kernel.errors import NotFound, ParshallError
from parshall.kernel.ids import UserId, new_id
from parshall.kernel.removals import REMOVALS_PER_PAGE_MAX, Removal
from parshall.kernel.tokens import Role

ADMIN_USERNAME = "admin"
ADMIN_EMAIL = "admin@localhost"
_NO_USER = "There is no such user; give an id, a username or an e-mail address."


class Users(Issuer):
    """The users, with the hasher that their passwords go through."""

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
        return await self._database.read(lambda connection: found(connection, who), brief=True)

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
            user = present(connection, user_id)
            name, address = username or user.username, email or user.email
            changed = store.update_profile(connection, user_id, username=name, email=address)
            return changed or _refuse_taken(connection, name, but_for=user_id)

        try:
            return await self._database.write(rename)
        except IntegrityError as error:
            raise model.UsernameTaken(model.EITHER_TAKEN) from error

    async def set_role(self, who: str, role: Role) -> User:
        """Give a user a role. Raises NotFound, ExternalUser, or LastAdmin when nobody could administer afterwards."""

        def change(connection: Connection) -> User:
            user_id = found(connection, who).id
            if external_store.is_external(connection, user_id):
                raise ExternalUser
            user = store.update_role(connection, user_id, role)
            if user is None:
                raise model.LastAdmin
            return user

        return await self._database.write(change)

    async def delete_user(self, who: str, *, by: UserId | None = None) -> None:
        """Remove a user with every session. Raises NotFound, LastAdmin, or OwnAccount where `by` is that user.

        Whom an external issuer vouches for is shut out until `let_in`: it goes on signing for them.
        """
        at = self._clock()

        def remove(connection: Connection) -> None:
            user = found(connection, who)
            if user.id == by:
                raise model.OwnAccount
            remove_user(connection, user.id, at=at)

        await self._database.write(remove)

    async def removals(self, *, after: int, limit: int = REMOVALS_PER_PAGE_MAX) -> list[Removal]:
        """Users who were removed, numbered above `after`, in order: what kernel.removals.Feed asks for."""
        assert 1 <= limit <= REMOVALS_PER_PAGE_MAX
        return await self._database.read(lambda c: removal_store.list_removals(c, after=after, limit=limit))

    async def let_in(self, issuer: str, subject: str) -> None:
        """Take somebody of an external issuer who was removed for a new user, when they next come. Raises NotFound."""
        if not await self._database.write(lambda c: external_store.let_in(c, issuer, subject)):
            raise NotFound("Nobody with this issuer and subject was removed here; give both as its tokens do.")

    async def set_password(self, who: str, password: str) -> None:
        """Give a user another password; every session and API key ends. Raises NotFound, UnfitPassword, ExternalUser.

        Whoever needs this may have lost the account to somebody else, who could have made keys.
        """
        model.check_password(password)
        user_id = await self.resolve(who)
        hashed = await self._hasher.hash(password)

        def replace(connection: Connection) -> bool:
            if external_store.is_external(connection, user_id):
                raise ExternalUser
            apikey_store.delete_keys(connection, user_id)
            mailed_store.delete_codes(connection, user_id, Purpose.RESET)
            return store.update_password(connection, user_id, hashed, replacing=None)

        if not await self._database.write(replace):
            raise NotFound(_NO_USER)

    # ── Steps ───────────────────────────────────────────────────────────────────────────────────────────────────────

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
            raise model.UsernameTaken(model.EITHER_TAKEN) from error

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


def found(connection: Connection, who: str) -> User:
    """The user with this id, username or e-mail address. Raises NotFound."""
    user = store.find_user(connection, who)
    if user is None:
        raise NotFound(_NO_USER)
    return user


def present(connection: Connection, user_id: UserId) -> User:
    """The user whom a token names. Raises UserGone."""
    user = store.find_user(connection, user_id)
    if user is None:
        raise model.UserGone
    return user


def remove_user(connection: Connection, user_id: UserId, *, at: int) -> None:
    """Remove a user who is there, with all that hangs on them here; other services hear of it. Raises LastAdmin."""
    external_store.shut_out_user(connection, user_id, at=at)
    if not store.delete_user(connection, user_id):
        raise model.LastAdmin
    removal_store.note_removal(connection, user_id, at=at)


def _refuse_taken(connection: Connection, username: str, *, but_for: UserId) -> NoReturn:
    """Say which of name and address was in the way of a statement that changed nothing."""
    raise model.UsernameTaken if store.username_taken(connection, username, but_for=but_for) else model.EmailTaken

"""Auth as another service sees it over HTTP: its keys, the own service token, who is who, and API keys."""

import asyncio
import contextvars
import time
from collections import OrderedDict
from datetime import datetime
from typing import Any

import aiohttp
import msgspec
from joserfc.jwk import KeySet

from parshall.auth import model
from parshall.auth.apikey import ApiKeyRefused
from parshall.auth.external import ExternalTokenRefused, IssuerAway
from parshall.auth.model import User
from parshall.auth.wire import ACCESS_TOKEN_TYPE, EXCHANGE_GRANT
from parshall.kernel.clock import instant
from parshall.kernel.errors import NotFound, TooManyRequests, Unavailable
from parshall.kernel.ids import UserId
from parshall.kernel.peer import Peer, Refusal
from parshall.kernel.removals import REMOVALS_PER_PAGE_MAX, Removal
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import Role

TOKEN_SPENT = 2 / 3
"""Of a token's life: then the next one is fetched, while this one goes on working."""
TOKEN_MARGIN_SECONDS = 10.0
"""A token is not used in its last seconds: clocks differ, and a call takes time."""
TOKEN_RETRY_SECONDS = 2.0
KEYS_SECONDS_MAX = 1.0
"""How long auth may take to give its keys: requests wait for that, every half minute, and known keys do as well."""
PEOPLE_SECONDS_MAX = 10.0
"""How long it is remembered whose a name or address is. What somebody may do is asked anew each time."""
PEOPLE_KEPT_MAX = 10_000

_logger = log("peers")


class _Granted(msgspec.Struct):
    """The answer of the token endpoint (RFC 6749 §5.1)."""

    access_token: str
    expires_in: int


class _Keys(msgspec.Struct):
    """A JWK set (RFC 7517 §5)."""

    keys: list[dict[str, Any]]


class _Document(msgspec.Struct, rename="camel"):
    id: str
    username: str
    email: str
    is_verified: bool
    role: str
    created_at: datetime

    def user(self) -> User:
        return User(
            id=UserId(self.id),
            username=self.username,
            email=self.email,
            role=Role(self.role),
            is_verified=self.is_verified,
            created_at=instant(self.created_at),
        )


class _Removal(msgspec.Struct, rename="camel"):
    number: int
    user_id: str
    removed_at: datetime


class _Removals(msgspec.Struct):
    removals: list[_Removal]


class _Pagination(msgspec.Struct):
    total: int


class _Page(msgspec.Struct):
    users: list[_Document]
    pagination: _Pagination


class ServiceTokens:
    """The token that a service calls others with: got for its secret, renewed ahead of its end, once for all."""

    def __init__(self, auth: Peer, *, name: str, secret: str) -> None:
        """`name` and `secret` are the service's client credentials at auth (RFC 6749 §4.4)."""
        self._auth = auth
        self._credentials = {"Authorization": aiohttp.encode_basic_auth(name, secret)}
        self._token = ""
        self._until = 0.0
        self._renew_at = 0.0
        self._renewal: asyncio.Task[None] | None = None

    async def token(self) -> str:
        """A token that is valid now; nobody waits for the next one while this one works. Raises Unavailable."""
        if self._renewal is None and time.monotonic() >= self._renew_at:
            # A context of its own: it is not the caller's deadline that holds for what all will use.
            self._renewal = asyncio.create_task(self._renew(), context=contextvars.Context())
        if self._renewal is not None and time.monotonic() >= self._until:
            await asyncio.shield(self._renewal)
        if time.monotonic() >= self._until:
            raise Unavailable("Auth gives this service no token, so nobody else can be asked; try again shortly.")
        return self._token

    def refused(self, token: str) -> None:
        """Somebody did not take that token: the next call gets another."""
        if token == self._token:
            self._until = self._renew_at = 0.0

    async def close(self) -> None:
        """Await what is under way."""
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)

    async def _renew(self) -> None:
        asked_at, form = time.monotonic(), {"grant_type": "client_credentials"}
        try:
            granted = await self._auth.call("POST", "/api/auth/token", _Granted, data=form, headers=self._credentials)
        except (Unavailable, Refusal) as error:
            _logger.error("no_service_token", reason=str(error))
            self._renew_at = time.monotonic() + (TOKEN_RETRY_SECONDS if self._token else 0)
        else:
            self._token = granted.access_token
            self._until = asked_at + granted.expires_in - TOKEN_MARGIN_SECONDS
            self._renew_at = asked_at + granted.expires_in * TOKEN_SPENT
        finally:
            self._renewal = None


class RemoteAuth:
    """What accounting and chat need of auth."""

    def __init__(self, url: str, *, name: str, secret: str) -> None:
        """Auth at `url`, asked by the service of that name with its secret."""
        self._public = Peer("auth", url, voucher=self._own_token)
        self.tokens = ServiceTokens(self._public, name=name, secret=secret)
        self._private = Peer("auth", url, tokens=self.tokens)
        self._people: OrderedDict[str, tuple[UserId, float]] = OrderedDict()

    async def close(self) -> None:
        """Close every connection."""
        await self.tokens.close()
        await self._public.close()
        await self._private.close()

    async def _own_token(self) -> str:
        return await self.tokens.token()

    async def key_set(self) -> KeySet:
        """The public keys in force: the KeySource of a TokenVerifier. Raises Unavailable."""
        try:
            keys = await self._public.call("GET", "/.well-known/jwks.json", _Keys, within=KEYS_SECONDS_MAX)
            return KeySet.import_key_set({"keys": keys.keys})
        except Refusal as refusal:
            raise refusal.error() from refusal
        except ValueError as error:
            raise Unavailable("The keys that auth publishes cannot be read; try again later.") from error

    async def access_token(self, text: str, _address: str) -> str:
        """An access token for an API key: the Exchange of a TokenVerifier.

        The service token that comes along keeps auth from counting all keys as one caller. Raises ApiKeyRefused,
        TooManyRequests, Unavailable.
        """
        form = {"grant_type": "client_credentials", "client_secret": text}
        own = {"Authorization": f"Bearer {await self.tokens.token()}"}
        try:
            return (await self._public.call("POST", "/api/auth/token", _Granted, data=form, headers=own)).access_token
        except Refusal as refusal:
            if refusal.status in (400, 401):
                raise ApiKeyRefused from refusal
            raise refusal.error(TooManyRequests) from refusal

    async def external_token(self, text: str, _address: str) -> str:
        """An access token for one of an external issuer, which auth alone knows: the Exchange of a TokenVerifier.

        Raises ExternalTokenRefused, Unavailable.
        """
        form = {"grant_type": EXCHANGE_GRANT, "subject_token": text, "subject_token_type": ACCESS_TOKEN_TYPE}
        own = {"Authorization": f"Bearer {await self.tokens.token()}"}
        try:
            return (await self._public.call("POST", "/api/auth/token", _Granted, data=form, headers=own)).access_token
        except Refusal as refusal:
            if refusal.status != 400:
                raise refusal.error(TooManyRequests) from refusal
            away = refusal.extra.get("reason") == IssuerAway.code
            raise (IssuerAway if away else ExternalTokenRefused)(refusal.detail) from refusal

    async def find_user(self, who: str) -> User:
        """The user with this id, username or e-mail address as auth knows them now. Raises NotFound, Unavailable."""
        if model.handle(who) is None:
            raise NotFound("There is no such user; give an id, a username or an e-mail address.")
        try:  # in the query, for paths are logged, and this is what a client said, a secret by mistake perhaps
            page = await self._private.call("GET", "/api/admin/users", _Page, params={"who": who})
        except Refusal as refusal:
            raise refusal.error(NotFound) from refusal
        for user in (each.user() for each in page.users):
            if who.lower() in (user.id, user.username.lower(), user.email.lower()):
                return user
        raise NotFound

    async def resolve(self, who: str) -> UserId:
        """The id of the user with this id, name or address, remembered for a while. Raises NotFound, Unavailable."""
        known = self._people.get(who)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        user_id = (await self.find_user(who)).id
        self._people[who] = user_id, time.monotonic() + PEOPLE_SECONDS_MAX
        if len(self._people) > PEOPLE_KEPT_MAX:
            self._people.popitem(last=False)
        return user_id

    async def removals(self, *, after: int, limit: int = REMOVALS_PER_PAGE_MAX) -> list[Removal]:
        """Users who were removed, numbered above `after`, in order. Raises Unavailable."""
        asked = {"after": str(after), "limit": str(limit)}
        try:
            page = await self._private.call("GET", "/api/admin/removals", _Removals, params=asked)
        except Refusal as refusal:
            raise refusal.error() from refusal
        return [
            Removal(number=each.number, user_id=UserId(each.user_id), removed_at=instant(each.removed_at))
            for each in page.removals
        ]

    async def users_page(self, *, query: str = "", limit: int = model.USERS_PER_PAGE_MAX) -> tuple[list[User], int]:
        """The first users whose name or address contains `query`, and how many there are. Raises Unavailable."""
        asked = {"query": query, "limit": str(limit)}
        try:
            page = await self._private.call("GET", "/api/admin/users", _Page, params=asked)
        except Refusal as refusal:
            raise refusal.error() from refusal
        return [each.user() for each in page.users], page.pagination.total

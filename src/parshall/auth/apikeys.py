"""The use cases of API keys: made, listed and revoked by their owner, and exchanged for access tokens."""

import hmac

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from parshall.auth import apikey, apikey_store, keys, store
from parshall.auth.apikey import ApiKey, ApiKeyRefused, MadeKey
from parshall.auth.issuer import digest
from parshall.auth.model import InvalidClient, ServiceToken, SigningKey, User, UserGone, granted_scopes
from parshall.auth.passwords import LoginThrottle
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.errors import NotFound
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import KEY_SCOPES

_NOBODY = digest("")
_NO_KEY = "There is no such API key, or it is not yours; list the keys to see their ids."


class ApiKeys:
    """The API keys of all users."""

    def __init__(self, database: Database, *, issuer: str, clock: Clock) -> None:
        """`issuer` is the `iss` of the tokens that keys are exchanged for."""
        self._database = database
        self._issuer = issuer
        self._clock = clock
        self._throttle = LoginThrottle()

    async def create(
        self, user_id: UserId, name: str, *, scopes: frozenset[str] = KEY_SCOPES, expires_at: int | None = None
    ) -> MadeKey:
        """A new key of the user's, good until `expires_at` (microseconds since the epoch; None: DAYS_DEFAULT days).

        Raises UserGone, MalformedKeyName, UnknownScope, UnfitExpiry, KeyNameTaken or TooManyKeys.
        """
        made = apikey.new_key(user_id, name, scopes, at=self._clock(), expires_at=expires_at)
        try:
            await self._database.write(lambda c: apikey_store.insert_key(c, made.key, digest(made.text)))
        except IntegrityError as error:
            raise UserGone from error
        return made

    async def keys_of(self, user_id: UserId) -> list[ApiKey]:
        """The user's keys, eldest first, with those that have expired."""
        return await self._database.read(lambda connection: apikey_store.list_keys(connection, user_id))

    async def revoke(self, user_id: UserId, key_id: str) -> None:
        """Take the key with this id, or prefix, away from the user. Raises NotFound."""
        listed = apikey.listed_id(key_id)
        if not await self._database.write(lambda c: apikey_store.delete_key(c, listed, user_id)):
            raise NotFound(_NO_KEY)

    async def access_token(self, text: str, address: str) -> str:
        """An access token with all scopes of a key: the Exchange of a TokenVerifier. Raises as `exchange`."""
        return (await self.exchange(text, address)).access_token

    async def exchange(self, text: str, address: str, scope: str | None = None) -> ServiceToken:
        """An access token of TOKEN_SECONDS at most, limited to the key's scopes or those asked for of them.

        Raises ApiKeyRefused, InvalidScope, or TooManyRequests for wrong keys from one address.
        """
        at = self._clock()
        key, user, known = await self._verified(text, address, at)
        scopes = granted_scopes(key.scopes, scope)
        if (day := apikey.day_of(at)) > (key.used_day or 0):
            await self._database.write(
                lambda connection: apikey_store.record_use(connection, key.id, day=day), brief=True
            )
        seconds = min(apikey.TOKEN_SECONDS, (key.expires_at - at) // SECOND)
        claims = keys.limited_claims(user, scopes, issuer=self._issuer, at=at, seconds=seconds, key_id=key.id)
        token = keys.sign(keys.signing_key(known, at=at), claims)
        return ServiceToken(access_token=token, expires_in=seconds, scopes=scopes)

    async def granted(self, client_id: str, text: str, scope: str | None, address: str) -> ServiceToken:
        """The same for client credentials (RFC 6749 §4.4). Raises InvalidClient, InvalidScope or TooManyRequests."""
        if client_id and apikey.listed_id(client_id) != apikey.claimed_id(text):
            raise InvalidClient(ApiKeyRefused.default)
        try:
            return await self.exchange(text, address, scope)
        except ApiKeyRefused as error:
            raise InvalidClient(error.detail) from error

    async def _verified(self, text: str, address: str, at: int) -> tuple[ApiKey, User, list[SigningKey]]:
        """The key, its user, and the keys that sign. Raises ApiKeyRefused or TooManyRequests.

        Nobody guesses 256 bits, so wrong keys do not shut right ones out from the same address, which may be a proxy's.
        """

        def look(connection: Connection) -> tuple[tuple[ApiKey, str] | None, list[SigningKey]]:
            return apikey_store.find_key(connection, apikey.claimed_id(text)), store.list_keys(connection)

        found, known = await self._database.read(look, brief=True)
        right = hmac.compare_digest(found[1] if found else _NOBODY, digest(text))
        if found is None or not right or found[0].expires_at <= at:
            self._throttle.check("", address)
            self._throttle.failed("", address)
            raise ApiKeyRefused
        user = await self._database.read(lambda connection: store.find_user(connection, found[0].user_id), brief=True)
        if user is None:
            raise ApiKeyRefused
        return found[0], user, known

"""Access tokens (RFC 9068): who a caller is, and how every service verifies that without asking auth."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.util import urlsafe_b64decode
from starlette.requests import Request

from parshall.kernel.bodies import MalformedJson, parsed
from parshall.kernel.clock import INSTANT_MAX, SECOND, Clock
from parshall.kernel.errors import Forbidden, TokenRefused, Unavailable
from parshall.kernel.ids import UserId

ALGORITHM = "Ed25519"
"""The one signature algorithm (RFC 9864); the allow-list that RFC 8725 §3.1 asks for."""
TOKEN_TYPE = "at+jwt"  # noqa: S105 - the media type of RFC 9068 §2.1, not a secret
AUDIENCE = "parshall"
TOKEN_BYTES_MAX = 8192
_HEADER = frozenset({"alg", "kid", "typ"})
VERIFIED_MAX = 10_000
KEYS_REFRESH_SECONDS_MIN = 10
KEYS_REFRESH_SECONDS_MAX = 30
"""After so long the keys are fetched again even where all is well: one may have been taken back, and one that will sign
soon must be known by then, should auth be away."""
API_KEY_PREFIX = "parshall_"
"""How every API key begins, and the `client_id` of the tokens that it is exchanged for; no service is named so."""
API_KEY_REMEMBERED_SECONDS = 30
"""How long a service goes on taking an API key without asking auth again: as long as a revoked one still works."""
LEEWAY_SECONDS = 30

CHAT_SCOPE = "chat"
CREDITS_SCOPE = "credits:read"
PROFILE_SCOPE = "profile:read"
KEY_SCOPES = frozenset({CHAT_SCOPE, CREDITS_SCOPE, PROFILE_SCOPE})
"""What an API key can be allowed: to chat, to see the own credits and usage, to see the own profile."""

KeySource = Callable[[], Awaitable[KeySet]]
"""Fetches the public keys that are in force."""
Exchange = Callable[[str, str], Awaitable[str]]
"""An access token for another credential that came from a network address. Raises TokenRefused or TooManyRequests."""


class Role(StrEnum):
    """What a user may do; each role includes those below it."""

    ADMIN = "admin"
    SUPERVISOR = "supervisor"
    ENDUSER = "enduser"

    def covers(self, other: "Role") -> bool:
        """Whether this role may do all that `other` may."""
        order = list(Role)
        return order.index(self) <= order.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The verified caller: a user, or a service (`scopes` then says what it may do, `user_id` is its name).

    `session_id` names the login or API key that a user's token stems from (`sid`); auth alone knows whether it has
    ended. A user's token is limited to `scopes` where `is_limited` says so, else it may do all that the user may.
    """

    user_id: UserId
    username: str
    email: str
    role: Role
    scopes: frozenset[str] = frozenset()
    is_service: bool = False
    is_limited: bool = False
    session_id: str = ""

    def require(self, role: Role) -> None:
        """Raises Forbidden unless the caller is a user of at least this role."""
        if self.is_service or not self.role.covers(role):
            raise Forbidden(f"This needs the role {role.value}; ask an administrator.")

    def require_scope(self, scope: str) -> None:
        """Raises Forbidden unless the caller is a service with this scope."""
        if not self.is_service or scope not in self.scopes:
            raise Forbidden(f"This needs a service token with the scope {scope}; users cannot do it.")


def presented_token(request: Request) -> str:
    """The access token that a request presents, as a header or as a cookie; empty without one.

    Two headers are one that holds no token (RFC 9110 §5.3), and not a choice between two.
    """
    given = ", ".join(request.headers.getlist("authorization"))
    scheme, _, token = given.partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else ""
    if not given and request.method in ("GET", "HEAD"):  # a cookie comes along uncalled: it must not change anything
        token = request.cookies.get("accessToken", "").strip()
    return token


class TokenVerifier:
    """Verifies access tokens against a key source and remembers each verdict until the token expires."""

    def __init__(
        self,
        keys: KeySource,
        *,
        issuer: str,
        clock: Clock,
        exchange: Exchange | None = None,
        external: Exchange | None = None,
    ) -> None:
        """`issuer` must equal the token's `iss` (RFC 9068 §4).

        `exchange` gives a token for an API key, `external` one for a token of another issuer; without, none is taken.
        """
        self._keys = keys
        self._exchange = exchange
        self._external = external
        self._issuer = issuer
        self._clock = clock
        self._key_set: KeySet | None = None
        self._fetched_at = 0
        self._away = False
        self._fetching = asyncio.Lock()
        self._verified: OrderedDict[str, tuple[Principal, int]] = OrderedDict()
        self._shut_out: frozenset[UserId] = frozenset()

    async def verify(self, token: str, address: str = "") -> Principal:
        """The principal of a valid token or API key. Raises TokenRefused, and TooManyRequests for wrong keys.

        `address` is where the request came from. A signature costs about 0.2 ms, hence the memory; it is bounded and
        forgets the longest unused.
        """
        at = self._clock()
        await self._current_keys(at, refresh=False)  # before the memory, which goes with a key that was taken back
        known = self._verified.get(token)
        if known is not None and known[1] > at:
            self._verified.move_to_end(token)
            return known[0]
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenRefused("The access token is too long; log in again.")
        exchanged, remembered = await self._exchanged(token, address, at)
        principal, expires_at = _principal(await self._claims(exchanged, at, TOKEN_TYPE), issuer=self._issuer, at=at)
        if principal.user_id in self._shut_out:
            raise TokenRefused("The user of this access token was removed; log in as somebody else.", reason="removed")
        expires_at = min(expires_at, remembered)
        self._verified[token] = (principal, expires_at)
        if len(self._verified) > VERIFIED_MAX:
            self._verified.popitem(last=False)
        return principal

    def shut_out(self, users: frozenset[UserId]) -> None:
        """Take no token of these users, however long it lives: they were removed. In place of those before."""
        if users - self._shut_out:
            known = self._verified.items()
            self._verified = OrderedDict((token, each) for token, each in known if each[0].user_id not in users)
        self._shut_out = users

    async def _exchanged(self, token: str, address: str, at: int) -> tuple[str, int]:
        """The token of our own that counts for what was presented, and until when that is remembered at most.

        What `iss` says is not proved yet: it decides who is asked, and never what is believed.
        """
        if self._exchange is not None and token.startswith(API_KEY_PREFIX):
            return await self._exchange(token, address), at + API_KEY_REMEMBERED_SECONDS * SECOND
        if self._external is not None and issuer_named(token) not in ("", self._issuer):
            return await self._external(token, address), INSTANT_MAX
        return token, INSTANT_MAX

    def remembered(self, token: str) -> Principal | None:
        """The principal of a token that was verified before and has not expired since."""
        known = self._verified.get(token)
        return known[0] if known is not None and known[1] > self._clock() else None

    async def claims_for(self, token: str, audience: str, media_type: str) -> dict[str, Any]:
        """The claims of a valid token of ours that is no access token, but of that type. Raises TokenRefused."""
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenRefused("The token is too long; get another one.")
        at = self._clock()
        claims = await self._claims(token, at, media_type)
        _check_validity(claims, issuer=self._issuer, audience=audience, at=at)
        return claims

    async def _claims(self, token: str, at: int, media_type: str) -> dict[str, Any]:
        for fresh in (False, True):
            keys = await self._current_keys(at, refresh=fresh)
            try:
                decoded = jwt.decode(token, keys, algorithms=[ALGORITHM])
            except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                if fresh and self._away and _names_another_key(token, keys):
                    raise Unavailable("The key of this token cannot be fetched now; try again shortly.") from error
                if fresh:
                    raise TokenRefused("The access token does not verify; log in again.") from error
            else:
                if decoded.header.get("typ") not in (media_type, f"application/{media_type}"):
                    raise TokenRefused("This is not an access token (RFC 9068 §4); send the accessToken of the login.")
                return _signed(token)
        raise AssertionError("unreachable: the second pass answers or raises")

    async def _current_keys(self, at: int, *, refresh: bool) -> KeySet:
        """The keys; fetched again when they are old or, at most every few seconds, for a token that fails.

        Such a token may bear a rotated key, and so may those that come while the keys are on their way.
        """
        age = KEYS_REFRESH_SECONDS_MIN if refresh else KEYS_REFRESH_SECONDS_MAX
        if self._key_set is None or at - self._fetched_at >= age * SECOND:
            async with self._fetching:
                if self._key_set is None or at - self._fetched_at >= age * SECOND:
                    self._key_set = await self._fetch()
                    self._fetched_at = at
        return self._key_set

    async def _fetch(self) -> KeySet:
        """The keys in force, or those known where auth is away. What a key signed that is gone is forgotten with it."""
        try:
            fetched = await self._keys()
        except Unavailable:
            self._away = True
            if self._key_set is None:
                raise
            return self._key_set
        self._away = False
        if self._key_set is not None and {key.kid for key in self._key_set.keys} - {key.kid for key in fetched.keys}:
            self._verified.clear()
        return fetched


def unproved(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token, read in the one way there is (RFC 8725 §2.4), and not verified.

    Raises TokenRefused unless there are three parts, and each of these two is an object.
    """
    try:
        head, body, _signature = token.split(".")
        header, claims = (parsed(urlsafe_b64decode(part.encode("ascii"))) for part in (head, body))
    except (MalformedJson, ValueError) as error:
        raise TokenRefused("The access token can be read in two ways; log in again.") from error
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise TokenRefused("The access token is none; log in again.")
    return header, claims


def issuer_named(token: str) -> str:
    """Whose token it claims to be; empty where it names nobody or is none."""
    try:
        issuer = unproved(token)[1].get("iss")
    except TokenRefused:
        return ""
    return issuer if isinstance(issuer, str) else ""


def _names_another_key(token: str, known: KeySet) -> bool:
    """Whether a token names a key that is not among these; what cannot be read names none."""
    try:
        header = parsed(urlsafe_b64decode(token.partition(".")[0].encode("ascii")))
    except (MalformedJson, ValueError):
        return False
    kid = header.get("kid") if isinstance(header, dict) else None
    return isinstance(kid, str) and kid not in {key.kid for key in known.keys}


def _signed(token: str) -> dict[str, Any]:
    """The claims of a token that verifies. Raises TokenRefused.

    What a header says of keys, extensions or nesting is neither needed nor followed (RFC 8725 §3.10, §3.11).
    """
    header, claims = unproved(token)
    if not header.keys() <= _HEADER:
        raise TokenRefused("The access token's header says more than it may; log in again.")
    return claims


def _principal(claims: dict[str, Any], *, issuer: str, at: int) -> tuple[Principal, int]:
    """The caller that valid claims name, and until when (microseconds). Raises TokenRefused."""
    expires_at = _check_validity(claims, issuer=issuer, audience=AUDIENCE, at=at)
    if claims.get("type") != "access":
        raise TokenRefused("This is not an access token; send the accessToken of the login.")
    if not all(isinstance(claims.get(name), str) and claims[name] for name in ("sub", "jti", "client_id")):
        raise TokenRefused("The access token lacks a claim that RFC 9068 §2.2 asks for; log in again.")
    return _caller(claims), expires_at


def _check_validity(claims: dict[str, Any], *, issuer: str, audience: str, at: int) -> int:
    """Until when a token is good (microseconds, leeway included). Raises TokenRefused where it is not, now and here."""
    leeway = LEEWAY_SECONDS * SECOND
    expires_at, meant = _seconds(claims, "exp"), claims.get("aud")
    if claims.get("iss") != issuer:
        raise TokenRefused("The access token comes from another issuer; log in here.")
    if not isinstance(meant, str | list) or audience not in ([meant] if isinstance(meant, str) else meant):
        raise TokenRefused("The access token is meant for another audience; log in here.")
    if expires_at + leeway <= at:
        raise TokenRefused("The access token has expired; refresh it or log in again.", reason="token_expired")
    if _seconds(claims, "iat") > at + leeway or ("nbf" in claims and _seconds(claims, "nbf") > at + leeway):
        raise TokenRefused("The access token is not valid yet; check the clocks.")
    return expires_at + leeway


def _caller(claims: dict[str, Any]) -> Principal:
    name, email, scope, session = (claims.get(claim, "") for claim in ("username", "email", "scope", "sid"))
    if not all(isinstance(claim, str) for claim in (name, email, scope, session)):
        raise TokenRefused("The access token's claims have the wrong types; log in again.")
    service = claims.get("role") == "service"
    if service != (claims["client_id"] == claims["sub"]) or service == bool(session):  # RFC 9068 §2.2, RFC 8725 §3.8
        raise TokenRefused("The access token is neither a user's nor a service's; log in again.")
    try:
        role = Role.ENDUSER if service else Role(str(claims.get("role")))
    except ValueError as error:
        raise TokenRefused("The access token names an unknown role; log in again.") from error
    return Principal(
        user_id=UserId(claims["sub"]),
        username=name,
        email=email,
        role=role,
        scopes=frozenset(scope.split()),
        is_service=service,
        is_limited=not service and claims["client_id"].startswith(API_KEY_PREFIX),
        session_id=session,
    )


def _seconds(claims: dict[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 253_402_300_800:
        raise TokenRefused(f"The access token's claim {name} is missing or not a time; log in again.")
    return int(value * SECOND)

"""One external issuer over HTTP: its metadata, its keys as they rotate, and codes exchanged for ID tokens."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote_plus

import aiohttp
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import Key, import_key
from joserfc.jws import JWSRegistry

from parshall.auth.external import ExternalIssuer, ExternalTokenRefused, IssuerAway, LoginRefused
from parshall.kernel.addresses import is_private
from parshall.kernel.bodies import MalformedJson, parsed
from parshall.kernel.clock import DAY, SECOND, Clock
from parshall.kernel.errors import TokenRefused
from parshall.kernel.telemetry import log
from parshall.kernel.tokens import unproved

DOCUMENT_BYTES_MAX = 256 * 1024
KEYS_MAX = 100
RSA_BITS_MIN = 2048
FETCH_SECONDS_MAX = 5.0
"""Metadata and keys; whoever waits for them gives up earlier, and finds them the next time."""
WAIT_SECONDS_MAX = 1.2
"""Below what a service apart waits for one attempt at auth (kernel.peer)."""
KEYS_REFRESH_SECONDS = 300
"""After so long the keys are fetched again beside the requests; one may have been taken back."""
KEYS_KEPT_SECONDS_MAX = DAY // SECOND
"""How long an issuer may be away before its tokens are refused."""
KEYS_PAUSE_SECONDS = 1.0
"""Between two fetches at least, whatever tokens come along; shorter than a wait, so that a new key fails no token."""
TOKEN_SECONDS_MAX = 10.0

_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""The kind of key by how the name of an algorithm begins (RFC 7518 §3.1, RFC 9864)."""
_logger = log("oidc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What an issuer says of itself (OpenID Connect Discovery §3)."""

    jwks_uri: str
    authorization_endpoint: str
    token_endpoint: str
    names_itself: bool
    """Whether its answers to the browser bear `iss` (RFC 9207)."""
    takes_basic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    metadata: Metadata
    keys: Mapping[str, Key]
    fetched_at: int


class IssuerClient:
    """An issuer, asked as rarely as possible. It owns its connections: `close` closes them."""

    def __init__(self, issuer: ExternalIssuer, *, clock: Clock) -> None:
        """Nothing is fetched before it is needed."""
        self.issuer = issuer
        self._clock = clock
        self._known: _Known | None = None
        self._asked_at = -DAY
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None
        self._opened: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End what is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        if self._opened is not None:
            await self._opened.close()

    async def metadata(self) -> Metadata:
        """Where the issuer's endpoints are. Raises IssuerAway."""
        return (await self._current()).metadata

    async def verified(self, token: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and claims of a token with this issuer's signature. Raises ExternalTokenRefused or IssuerAway.

        Nothing in the header leads to a key but `kid`, and that to none but this issuer's own (RFC 8725 §3.10).
        """
        try:
            header, claims = unproved(token)
        except TokenRefused as error:
            raise ExternalTokenRefused(error.detail) from error
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in self.issuer.algorithms:
            raise ExternalTokenRefused("The token is not signed with an algorithm that is allowed for its issuer.")
        if not isinstance(kid, str) or "crit" in header or "b64" in header:
            raise ExternalTokenRefused("The token's header says less or more than it may.")
        key = await self._key(kid)
        if key is None or not _fits(key, algorithm):
            raise ExternalTokenRefused("The token's key is none of its issuer's.")
        try:
            jws.deserialize_compact(token, key, registry=_registry(algorithm))
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ExternalTokenRefused from error
        return header, claims

    async def redeem(self, code: str, *, verifier: str, redirect_uri: str) -> str:
        """The ID token for a code (OpenID Connect Core §3.1.3). Raises LoginRefused or IssuerAway."""
        metadata, issuer = await self.metadata(), self.issuer
        assert issuer.client_id is not None, "who logs nobody in gets no codes"
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}
        form |= {"code_verifier": verifier}
        headers = {}
        if issuer.client_secret is not None and metadata.takes_basic:  # quoted as RFC 6749 §2.3.1 asks for
            credentials = map(quote_plus, (issuer.client_id, issuer.client_secret))
            headers["Authorization"] = aiohttp.encode_basic_auth(*credentials)
        else:
            form |= {"client_id": issuer.client_id}
            form |= {} if issuer.client_secret is None else {"client_secret": issuer.client_secret}
        status, document = await self._ask("POST", metadata.token_endpoint, data=form, headers=headers)
        token = document.get("id_token")
        if status != 200 or not isinstance(token, str):
            _logger.warning("code_refused", issuer=issuer.name, status=status)
            raise LoginRefused("The issuer does not take the code of this login; begin it again.")
        return token

    # ── Keys ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _key(self, kid: str) -> Key | None:
        """The key of this id; the keys are fetched again for one that is not known, which may be new.

        Nobody waits twice: a service apart would give this answer up, and take auth for away.
        """
        before = self._known
        current = await self._current()
        found = current.keys.get(kid)
        if found is None and current is before:
            await self._wait()
            found = (await self._current()).keys.get(kid)
        if found is None and self._failed:
            raise IssuerAway
        return found

    async def _current(self) -> _Known:
        """What is known and not too old, waiting for nobody where there is something. Raises IssuerAway."""
        if self._age() >= KEYS_KEPT_SECONDS_MAX * SECOND:
            await self._wait()
        elif self._age() >= KEYS_REFRESH_SECONDS * SECOND:
            self._begin()
        if self._known is None or self._age() >= KEYS_KEPT_SECONDS_MAX * SECOND:
            raise IssuerAway
        return self._known

    def _age(self) -> int:
        return self._clock() - (self._known.fetched_at if self._known else -DAY)

    def _pause(self) -> float:
        """How many seconds the next fetch has to wait."""
        return max(0.0, KEYS_PAUSE_SECONDS - (self._clock() - self._asked_at) / SECOND)

    def _begin(self) -> None:
        """Fetch as soon as may be; but where it has just failed, leave it to who comes later."""
        if self._fetching is None and not (self._failed and self._pause()):
            self._fetching = asyncio.create_task(self._fetch())

    async def _wait(self) -> None:
        """Give a fetch, begun now or before, a while."""
        self._begin()
        if self._fetching is not None:
            await asyncio.wait({self._fetching}, timeout=WAIT_SECONDS_MAX)

    async def _fetch(self) -> None:
        try:
            await asyncio.sleep(self._pause())
            at = self._asked_at = self._clock()
            async with asyncio.timeout(FETCH_SECONDS_MAX):
                metadata = await self._discover()
                _, document = await self._ask("GET", metadata.jwks_uri, only=200)
            self._known = _Known(metadata=metadata, keys=_keys(document), fetched_at=at)
            self._failed = False
        except (IssuerAway, TimeoutError) as error:
            self._failed = True
            _logger.error("issuer_away", issuer=self.issuer.name, reason=str(error) or "too slow")
        finally:
            self._fetching = None

    async def _discover(self) -> Metadata:
        url = self.issuer.issuer.rstrip("/") + "/.well-known/openid-configuration"
        _, document = await self._ask("GET", url, only=200)
        if document.get("issuer") != self.issuer.issuer:  # OpenID Connect Discovery §4.3
            raise IssuerAway("The issuer's metadata names another issuer; correct the one that is configured.")
        methods = document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        return Metadata(
            jwks_uri=self._endpoint(document, "jwks_uri"),
            authorization_endpoint=self._endpoint(document, "authorization_endpoint"),
            token_endpoint=self._endpoint(document, "token_endpoint"),
            names_itself=document.get("authorization_response_iss_parameter_supported") is True,
            takes_basic=isinstance(methods, list) and "client_secret_basic" in methods,
        )

    def _endpoint(self, document: Mapping[str, Any], name: str) -> str:
        url = document.get(name)
        secure = self.issuer.issuer.startswith("https:")
        if not isinstance(url, str) or not is_private(url) or (secure and not url.startswith("https:")):
            raise IssuerAway(f"The issuer's metadata has no {name} that is an https URL.")
        return url

    async def _ask(self, method: str, url: str, *, only: int | None = None, **more: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of an answer, which goes nowhere else. Raises IssuerAway."""
        try:
            async with self._session().request(method, url, allow_redirects=False, **more) as response:
                body = bytearray()
                async for piece in response.content.iter_any():
                    body += piece
                    if len(body) > DOCUMENT_BYTES_MAX:
                        raise IssuerAway(f"The issuer's answer has more than {DOCUMENT_BYTES_MAX} bytes.")
        except (aiohttp.ClientError, OSError, RuntimeError, ValueError) as error:
            raise IssuerAway(f"The external issuer does not answer ({type(error).__name__}).") from error
        document: Any = None
        with contextlib.suppress(MalformedJson):
            document = parsed(bytes(body))
        if (only is not None and response.status != only) or response.status >= 500 or not isinstance(document, dict):
            raise IssuerAway(f"The external issuer answers {response.status}, or not as documented.")
        return response.status, document

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            self._opened = aiohttp.ClientSession(
                headers={"User-Agent": "parshall", "Accept": "application/json"},
                connector=aiohttp.TCPConnector(limit=8),
                timeout=aiohttp.ClientTimeout(total=TOKEN_SECONDS_MAX),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._opened


def _keys(document: Mapping[str, Any]) -> dict[str, Key]:
    """The keys that can verify, by their id: secrets and keys for other uses are left out, and so is what is broken."""
    found: dict[str, Key] = {}
    listed = document.get("keys")
    for each in listed[:KEYS_MAX] if isinstance(listed, list) else ():
        if not isinstance(each, dict) or each.get("kty") == "oct" or each.get("use", "sig") != "sig":
            continue
        kid = each.get("kid")
        with contextlib.suppress(Exception):  # whatever a library makes of a broken key: the others count
            if isinstance(kid, str) and kid not in found:
                found[kid] = import_key(each)
    return found


@cache
def _registry(algorithm: str) -> JWSRegistry:
    """What verifies that one algorithm; members of a header that nobody knows are ignored (RFC 7515 §4)."""
    return JWSRegistry(algorithms=[algorithm], strict_check_header=False)


def _fits(key: Key, algorithm: str) -> bool:
    """Whether the key is one for the algorithm, strong enough, and not meant for another one (RFC 8725 §3.1, §3.5)."""
    if key.key_type != _KINDS[algorithm[:2]]:
        return False
    if key.key_type == "RSA" and getattr(key.raw_value, "key_size", 0) < RSA_BITS_MIN:
        return False
    return key.alg in (None, algorithm)

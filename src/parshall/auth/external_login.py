"""Logging in at an external issuer: the authorization code flow with PKCE, bound to the browser that began it."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.util import urlsafe_b64encode
from sqlalchemy.exc import IntegrityError

from parshall.auth import external, external_store, keys, store
from parshall.auth.external import ExternalIssuer, Identity, LoginRefused, UnknownIssuer
from parshall.auth.external_issuer import IssuerClient, Metadata
from parshall.auth.externals import Externals
from parshall.auth.issuer import digest
from parshall.kernel.clock import SECOND, Clock
from parshall.kernel.database import Database
from parshall.kernel.tokens import ALGORITHM

LOGIN_SECONDS = 600
"""How long somebody may take at the issuer."""
LOGIN_TYPE = "oidc-login+jwt"
"""The media type of what the browser keeps meanwhile: by it that is no access token, and no access token is that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """Where the browser goes, and what it keeps until it comes back."""

    url: str
    ticket: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """Who has come back from which issuer, and where they were going."""

    issuer: ExternalIssuer
    identity: Identity
    return_to: str


class ExternalLogin:
    """Logins through the issuers that people can log in at."""

    def __init__(self, database: Database, *, externals: Externals, clock: Clock, public_url: str | None) -> None:
        """`public_url` is where browsers reach this service; without one nobody can log in through an issuer."""
        self._database = database
        self._externals = externals
        self._clock = clock
        self.public_url = (public_url or "").rstrip("/")

    def issuers(self) -> list[ExternalIssuer]:
        """Where people can log in."""
        return [client.issuer for client in self._externals.logins()] if self.public_url else []

    async def begin(self, name: str, return_to: str) -> Begun:
        """Send a browser to the issuer of this name. Raises UnknownIssuer, UnfitReturn or IssuerAway."""
        external.check_return(return_to)
        client = self._client(name)
        metadata = await client.metadata()
        state, nonce, verifier = (secrets.token_urlsafe(32) for _ in range(3))
        at = self._clock()
        known = await self._database.read(store.list_keys)
        kept = {"name": name, "state": state, "nonce": nonce, "verifier": verifier, "return_to": return_to}
        ticket = keys.sign(
            keys.signing_key(known, at=at), {**kept, "exp": at // SECOND + LOGIN_SECONDS}, media_type=LOGIN_TYPE
        )
        asked = {
            "response_type": "code",
            "client_id": client.issuer.client_id,
            "redirect_uri": self._redirect_uri(name),
            "scope": client.issuer.scopes,
            "state": state,
            "nonce": nonce,
            "code_challenge": urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode(),
            "code_challenge_method": "S256",
        }
        joint = "&" if "?" in metadata.authorization_endpoint else "?"
        return Begun(url=f"{metadata.authorization_endpoint}{joint}{urlencode(asked)}", ticket=ticket)

    async def finish(self, name: str, answer: Mapping[str, str], ticket: str) -> Arrived:
        """Who has come back with the issuer's answer, which is the query of the redirect. It works once.

        Raises LoginRefused, UnknownIssuer, ExternalTokenRefused or IssuerAway.
        """
        client = self._client(name)
        kept = await self._kept(ticket)
        if kept["name"] != name or not hmac.compare_digest(kept["state"].encode(), answer.get("state", "").encode()):
            raise LoginRefused
        metadata = await client.metadata()
        _check_sender(client.issuer, metadata, answer)
        await self._spend(kept)
        code = answer.get("code")
        if not code:
            raise LoginRefused("The issuer did not log you in; begin again, or ask whoever runs it.")
        token = await client.redeem(code, verifier=kept["verifier"], redirect_uri=self._redirect_uri(name))
        header, claims = await client.verified(token)
        if header.get("typ", "JWT") != "JWT":
            raise LoginRefused("The issuer gives something else for an ID token; ask whoever runs it.")
        identity = external.login_identity(client.issuer, claims, nonce=kept["nonce"], at=self._clock())
        return Arrived(issuer=client.issuer, identity=identity, return_to=kept["return_to"])

    def _client(self, name: str) -> IssuerClient:
        client = self._externals.client(name) if self.public_url else None
        if client is None:
            raise UnknownIssuer
        return client

    def _redirect_uri(self, name: str) -> str:
        """Where the issuer sends the browser back; never what a request says of itself."""
        return f"{self.public_url}/api/auth/oidc/{name}/callback"

    async def _kept(self, ticket: str) -> dict[str, Any]:
        """What the browser has kept, if it is ours and not too old. Raises LoginRefused."""
        at = self._clock()
        known = await self._database.read(store.list_keys)
        try:
            found = jwt.decode(ticket, keys.public_keys(keys.in_force(known, at=at)), algorithms=[ALGORITHM])
        except (JoseError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise LoginRefused from error
        if found.header.get("typ") != LOGIN_TYPE or found.claims["exp"] * SECOND <= at:
            raise LoginRefused
        return found.claims

    async def _spend(self, kept: Mapping[str, Any]) -> None:
        """Let this login work once, whatever the issuer thinks of its code. Raises LoginRefused."""
        at, used, ends = self._clock(), digest(kept["state"]), kept["exp"] * SECOND
        try:
            await self._database.write(lambda c: external_store.spend(c, used, at=at, expires_at=ends))
        except IntegrityError as error:
            raise LoginRefused from error


def _check_sender(issuer: ExternalIssuer, metadata: Metadata, answer: Mapping[str, str]) -> None:
    """Raises LoginRefused where the answer comes from another issuer than was asked (RFC 9207 §2.4)."""
    named = answer.get("iss")
    if named is None and not metadata.names_itself:
        return
    if named != issuer.issuer:
        raise LoginRefused("The answer comes from another issuer than the one that was asked; begin again.")

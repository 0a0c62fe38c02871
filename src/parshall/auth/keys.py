"""Signing keys and access tokens (RFC 9068): which key signs, which are published, and what a token claims."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from joserfc import jwt
from joserfc.jwk import KeySet, OKPKey

from parshall.auth.model import SigningKey, User
from parshall.kernel.clock import DAY, SECOND
from parshall.kernel.debugtokens import DEBUG_AUDIENCE
from parshall.kernel.ids import new_id
from parshall.kernel.tokens import ALGORITHM, API_KEY_PREFIX, AUDIENCE, TOKEN_TYPE, Role

PUBLISHED_AHEAD_SECONDS = 60
"""A new key is published this long before it signs: no verifier meets a token whose key it could not have fetched."""
KEYS_CACHED_SECONDS = 30
"""How long the published keys may be cached; with the verifiers' own pause it stays below PUBLISHED_AHEAD_SECONDS."""
ACCESS_SECONDS = 900
SERVICE_SECONDS = 300
CLIENT_ID = "parshall"
"""The OAuth2 client on whose behalf users log in: Parshall's own pages and tools."""


def new_signing_key(*, at: int) -> SigningKey:
    """A fresh Ed25519 key (RFC 8032)."""
    key = OKPKey.generate_key("Ed25519")
    return SigningKey(kid=key.thumbprint(), private_pem=key.as_pem(private=True).decode(), created_at=at)


def in_force(keys: Sequence[SigningKey], *, at: int) -> list[SigningKey]:
    """The keys to publish, of all keys newest first: the newest, and each that was replaced less than a day ago."""
    replaced_at = [at, *(key.created_at for key in keys)]
    return [key for key, until in zip(keys, replaced_at, strict=False) if until + DAY > at]


def signing_key(keys: Sequence[SigningKey], *, at: int) -> SigningKey:
    """The key that signs now, of all keys newest first: the newest that was published long enough ago."""
    assert keys, "Auth.start makes the first key"
    ahead = PUBLISHED_AHEAD_SECONDS * SECOND
    return next((key for key in keys if key.created_at + ahead <= at), keys[-1])


def public_keys(keys: Sequence[SigningKey]) -> KeySet:
    """The public halves, as they are published (RFC 7517)."""
    parameters = {"alg": ALGORITHM, "use": "sig"}
    return KeySet(
        [
            OKPKey.import_key({**_private(key.private_pem).as_dict(private=False), **parameters, "kid": key.kid})
            for key in keys
        ]
    )


def sign(key: SigningKey, claims: dict[str, Any], *, media_type: str = TOKEN_TYPE) -> str:
    """The token with these claims, an access token unless another type is named."""
    header = {"typ": media_type, "alg": ALGORITHM, "kid": key.kid}
    return jwt.encode(header, claims, _private(key.private_pem), algorithms=[ALGORITHM])


def user_claims(user: User, *, issuer: str, at: int, seconds: int, family_id: str) -> dict[str, Any]:
    """The claims of a user's access token; `sid` names the login that it stems from."""
    return {
        **_claims(issuer=issuer, subject=user.id, client_id=CLIENT_ID, at=at, seconds=seconds),
        "username": user.username,
        "email": user.email,
        "role": user.role.value,
        "sid": family_id,
    }


def limited_claims(
    user: User, scopes: frozenset[str], *, issuer: str, at: int, seconds: int, key_id: str
) -> dict[str, Any]:
    """The claims of a token for the API key with this id: limited to scopes, and never above an enduser."""
    whole = user_claims(user, issuer=issuer, at=at, seconds=seconds, family_id=key_id)
    limits = {"client_id": f"{API_KEY_PREFIX}{key_id}", "scope": " ".join(sorted(scopes))}
    return {**whole, **limits, "role": Role.ENDUSER.value}


def service_claims(name: str, scopes: frozenset[str], *, issuer: str, at: int) -> dict[str, Any]:
    """The claims of a service's own access token (RFC 9068 §2.2: the subject is the client)."""
    return {
        **_claims(issuer=issuer, subject=name, client_id=name, at=at, seconds=SERVICE_SECONDS),
        "username": name,
        "email": "",
        "role": "service",
        "scope": " ".join(sorted(scopes)),
    }


def debug_claims(who: str, *, issuer: str, at: int, seconds: int) -> dict[str, Any]:
    """The claims of a token that has the requests traced which carry it, and opens nothing."""
    issued = at // SECOND
    return {"iss": issuer, "sub": who, "aud": DEBUG_AUDIENCE, "iat": issued, "exp": issued + seconds, "jti": new_id()}


def _claims(*, issuer: str, subject: str, client_id: str, at: int, seconds: int) -> dict[str, Any]:
    issued = at // SECOND
    return {
        "iss": issuer,
        "sub": subject,
        "aud": AUDIENCE,
        "exp": issued + seconds,
        "iat": issued,
        "jti": new_id(),
        "client_id": client_id,
        "type": "access",
    }


@lru_cache(maxsize=16)
def _private(pem: str) -> OKPKey:
    return OKPKey.import_key(pem)

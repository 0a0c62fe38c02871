"""Tokens that ask for a trace of the request that carries them: an administrator's made for that, a service's own."""

import base64
import binascii
import json
from dataclasses import dataclass

from parshall.kernel.errors import TokenRefused
from parshall.kernel.tokens import API_KEY_PREFIX, TOKEN_BYTES_MAX, TokenVerifier

DEBUG_TYPE = "header-trace+jwt"
"""The `typ` of a debug token, which keeps it from being taken for an access token (RFC 8725 §3.11)."""
DEBUG_AUDIENCE = "parshall-headers"
DEBUG_MINUTES = 10
DEBUG_MINUTES_MAX = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Debugger:
    """Who asks for a trace: an administrator, by id, or a service, which is told what arrived."""

    who: str
    is_service: bool


async def debugger_of(verifier: TokenVerifier, token: str) -> Debugger:
    """Who presents that token in the debug header. Raises TokenRefused, and Unavailable where keys cannot be had."""
    if unverified(token, 0).get("typ") == DEBUG_TYPE:
        claims = await verifier.claims_for(token, DEBUG_AUDIENCE, DEBUG_TYPE)
        return Debugger(who=str(claims.get("sub", "")), is_service=False)
    if token.startswith(API_KEY_PREFIX):
        raise TokenRefused("An API key asks for no trace.")
    principal = await verifier.verify(token)
    if not principal.is_service:
        raise TokenRefused("An access token of a user asks for no trace; `parshall headers token` makes one that does.")
    return Debugger(who=principal.user_id, is_service=True)


def unverified(token: str, part: int) -> dict[str, object]:
    """The header (0) or the claims (1) of a token, for a first look that decides nothing; empty where it is none."""
    pieces = token[:TOKEN_BYTES_MAX].split(".")
    if len(pieces) != 3:
        return {}
    try:
        found = json.loads(base64.urlsafe_b64decode(pieces[part] + "=" * (-len(pieces[part]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

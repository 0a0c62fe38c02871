"""Signatures of deliveries, by the scheme of Standard Webhooks: HMAC-SHA256 of id, timestamp and body."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

PREFIX = "whsec_"
SECRETS_MAX = 2
"""The one in use and, while receivers change over, the one before it."""


def read_secrets(text: str) -> tuple[bytes, ...]:
    """The keys of a comma list: `whsec_` and base64, or any other text as it stands.

    Raises ValueError, without a word of the secrets.
    """
    parts = [part.strip() for part in text.split(",")]
    if not 1 <= len(parts) <= SECRETS_MAX or not all(parts):
        raise ValueError("give one secret, or two with a comma between them")
    return tuple(_key(part) for part in parts)


def _key(secret: str) -> bytes:
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):  # ValueError: letters beyond ASCII
        key = b""
    if not key:
        raise ValueError(f"a secret that begins with {PREFIX} must go on in base64")
    return key


def signatures(keys: Sequence[bytes], *, id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one signature for each key."""
    signed = f"{id}.{timestamp}.".encode() + body
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)

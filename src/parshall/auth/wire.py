"""Documents and forms on auth's wire: users, batch results, the token request of RFC 6749, discovery of RFC 8414."""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus

from parshall.auth.apikey import ApiKey
from parshall.auth.model import SCOPES, InvalidClient, NewUser, User
from parshall.auth.service import Export
from parshall.kernel.clock import DAY, rfc3339
from parshall.kernel.errors import Invalid, ParshallError
from parshall.kernel.tokens import ALGORITHM, KEY_SCOPES

FORM_FIELDS_MAX = 16
EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN_TYPE = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name of RFC 8693 §3, not a secret
_FORM = "application/x-www-form-urlencoded"


class MalformedTokenRequest(Invalid):
    """A token request that is not the form RFC 6749 asks for."""

    code = "invalid_token_request"
    title = "Invalid token request"
    default = f"Send grant_type=client_credentials with the client's id and secret as {_FORM} (RFC 6749 §4.4)."

    def __init__(self, detail: str | None = None, /) -> None:
        """Say it in the words of RFC 6749 §5.2 too."""
        super().__init__(detail, error="invalid_request")


class UnsupportedGrant(Invalid):
    """A grant type that the token endpoint does not know (RFC 6749 §5.2)."""

    code = "unsupported_grant_type"
    title = "Unsupported grant type"
    default = "grant_type is client_credentials, or token-exchange of RFC 8693; users log in at /api/auth/login."

    def __init__(self) -> None:
        """Say it in the words of RFC 6749 §5.2 too."""
        super().__init__(error="unsupported_grant_type")


class InvalidSubject(Invalid):
    """A token that is not exchanged (RFC 8693 §2.2.2); `reason` is the code of what it is refused with elsewhere.

    So it is too where the issuer is away: that is no failure of auth, after which others would leave it alone.
    """

    code = "invalid_subject_token"
    title = "Token not exchanged"
    default = "The token is not exchanged for one of ours; `detail` says why."

    def __init__(self, refused: ParshallError) -> None:
        """Say why in the words of that refusal."""
        super().__init__(refused.detail, error="invalid_request", reason=refused.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """A client credentials request (RFC 6749 §4.4.2)."""

    client_id: str
    client_secret: str = field(repr=False)
    scope: str | None


def user_document(user: User) -> dict[str, Any]:
    """A user as clients read one."""
    return {
        "id": user.id,
        "username": user.username,
        "email": user.email,
        "isVerified": user.is_verified,
        "role": user.role.value,
        "createdAt": rfc3339(user.created_at),
    }


def key_document(key: ApiKey) -> dict[str, Any]:
    """A key as its owner reads it; the day of its last use is a date in UTC."""
    return {
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "scopes": sorted(key.scopes),
        "createdAt": rfc3339(key.created_at),
        "expiresAt": rfc3339(key.expires_at),
        "lastUsedOn": None if key.used_day is None else rfc3339(key.used_day * DAY)[:10],
    }


def export_document(export: Export) -> dict[str, Any]:
    """All that auth keeps of a user. The password is kept as an Argon2id hash, tokens and keys as digests: left out."""
    return {
        "user": user_document(export.user),
        "loggedInAt": None if export.logged_in_at is None else rfc3339(export.logged_in_at),
        "sessions": [{"createdAt": rfc3339(began), "expiresAt": rfc3339(ends)} for began, ends in export.sessions],
        "apiKeys": [key_document(key) for key in export.api_keys],
        "mailedCodes": [{"purpose": use.value, "expiresAt": rfc3339(ends)} for use, ends in export.mailed_codes],
        "externalIdentity": None if export.origin is None else _origin(*export.origin),
    }


def _origin(issuer: str, subject: str, since: int) -> dict[str, Any]:
    return {"issuer": issuer, "subject": subject, "createdAt": rfc3339(since)}


def outcome_document(asked: NewUser, outcome: User | ParshallError) -> dict[str, Any]:
    """What became of one user of a batch."""
    named = {"username": asked.username, "email": asked.email}
    if isinstance(outcome, ParshallError):
        return {**named, "success": False, "error": outcome.detail, "code": outcome.code}
    return {**named, "success": True, "userId": outcome.id}


def token_form(headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    """The fields of a token request, of a grant that is known. Raises MalformedTokenRequest or UnsupportedGrant."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise MalformedTokenRequest
    form = _form(body)
    grant = form.get("grant_type")
    if not grant:
        raise MalformedTokenRequest
    if grant not in ("client_credentials", EXCHANGE_GRANT):
        raise UnsupportedGrant
    return form


def subject_token(form: Mapping[str, str]) -> str:
    """The token that is to be exchanged (RFC 8693 §2.1). Raises MalformedTokenRequest."""
    token = form.get("subject_token", "")
    if not token or form.get("subject_token_type") != ACCESS_TOKEN_TYPE:
        raise MalformedTokenRequest(f"Send the issuer's token as subject_token, of the type {ACCESS_TOKEN_TYPE}.")
    return token


def client_credentials(headers: Mapping[str, str], form: Mapping[str, str]) -> TokenRequest:
    """The client credentials in a form with these headers. Raises MalformedTokenRequest, or InvalidClient."""
    client_id, secret = _client(headers.get("authorization", ""), form)
    return TokenRequest(client_id=client_id, client_secret=secret, scope=form.get("scope"))


def discovery(issuer: str) -> dict[str, Any]:
    """The metadata of RFC 8414; there is no authorization endpoint, for users log in with their password."""
    base = issuer.rstrip("/")
    return {
        "issuer": issuer,
        "jwks_uri": f"{base}/.well-known/jwks.json",
        "token_endpoint": f"{base}/api/auth/token",
        "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
        "grant_types_supported": ["client_credentials", EXCHANGE_GRANT],
        "response_types_supported": [],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": [ALGORITHM],
        "scopes_supported": sorted(SCOPES | KEY_SCOPES),
    }


def _form(body: bytes) -> dict[str, str]:
    """The fields by name; RFC 6749 §3.2 forbids repeating one."""
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS_MAX)
    except ValueError as error:
        raise MalformedTokenRequest from error
    form = dict(pairs)
    if len(form) < len(pairs):
        raise MalformedTokenRequest("A field is there twice; send each once.")
    return form


def _client(authorization: str, form: Mapping[str, str]) -> tuple[str, str]:
    """The client's id and secret, from HTTP Basic or the form, but not from both (RFC 6749 §2.3)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return form.get("client_id", ""), form.get("client_secret", "")
    if "client_secret" in form:
        raise MalformedTokenRequest("Send the client secret once: as HTTP Basic or in the form.")
    try:
        name, _, secret = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise InvalidClient from error
    return unquote_plus(name), unquote_plus(secret)

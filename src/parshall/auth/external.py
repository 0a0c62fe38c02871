"""External issuers as auth knows them: which are trusted for what, and the rules that their tokens obey."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from parshall.auth.model import check_email
from parshall.kernel.clock import SECOND
from parshall.kernel.errors import Forbidden, Invalid, NotFound, TokenRefused, Unauthenticated, Unavailable
from parshall.kernel.tokens import LEEWAY_SECONDS, TOKEN_TYPE, Role

ALGORITHMS = frozenset(
    {*("RS256", "RS384", "RS512"), *("PS256", "PS384", "PS512"), *("ES256", "ES384", "ES512"), "Ed25519", "EdDSA"}
)
"""What can be allowed of an issuer: asymmetric signatures alone, so that no public key is ever a secret."""
ALGORITHMS_DEFAULT = frozenset({"RS256", "PS256", "ES256", "Ed25519"})
SUBJECT_CHARS_MAX = 255
"""OpenID Connect Core §2."""
USERNAME_CHARS_MAX = 30
USERNAME_CHARS_MIN = 3
NO_PASSWORD = ""
"""In place of the password hash of users who log in elsewhere; no password has it."""
NO_ADDRESS = "external.invalid"
"""Domain of the address of who has none that is proved and free (RFC 6761 §6.4: it never leads anywhere)."""
RETURN_CHARS_MAX = 2048

_UNFIT = re.compile(r"[^a-zA-Z0-9_-]+")
_RETURN = re.compile(r"/(?!/)[\x21-\x5b\x5d-\x7e]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIssuer:
    """An OpenID provider that is trusted, as the operator describes it.

    `audience` is what its access tokens for us name, `client_id` is who we are when it logs people in; without one it
    does not. `roles` gives the role for a value of the claim. A session that begins there lasts `session_seconds`.
    """

    name: str
    issuer: str
    audience: str
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)
    scopes: str = "openid profile email"
    roles_claim: str = "roles"
    roles: Mapping[str, Role] = field(default_factory=dict)
    username_claim: str = "preferred_username"
    email_claim: str = "email"
    algorithms: frozenset[str] = ALGORITHMS_DEFAULT
    token_types: frozenset[str] = frozenset({TOKEN_TYPE})
    session_seconds: int = 12 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who an issuer says that somebody is; `email` is empty unless the issuer has verified it.

    `issued_at` and `expires_at` are those of the token that says so, in microseconds since the epoch.
    """

    issuer: str
    subject: str
    username: str
    email: str
    role: Role
    issued_at: int
    expires_at: int


class ExternalTokenRefused(TokenRefused):
    """A token of another issuer that does not hold here; `reason` says why where there is more to say."""

    code = "external_token_refused"
    title = "Token of another issuer refused"
    default = "The token of the external issuer does not hold here; log in again."


class IssuerAway(Unavailable):
    """An external issuer does not give what a token is verified with."""

    code = "issuer_unavailable"
    title = "Issuer unavailable"
    default = "The external issuer cannot be reached now, and this token cannot be verified without; try again shortly."


class UnknownIssuer(NotFound):
    """No issuer of this name logs people in."""

    code = "unknown_issuer"
    title = "Unknown issuer"
    default = "Nobody logs in through an issuer of that name; GET /api/auth/oidc lists those that there are."


class UnfitReturn(Invalid):
    """Where the browser should go after the login is not on this site."""

    code = "unfit_return_to"
    title = "Unfit return address"
    default = "returnTo is a path on this site that begins with one slash; give such a one."


class LoginRefused(Unauthenticated):
    """A login through an issuer that did not come to its end: declined, stale, replayed, or of another browser."""

    code = "external_login_refused"
    title = "Login refused"
    default = "This login through the issuer is over, or was begun in another browser; begin it again."


class ExternalUser(Invalid):
    """Something that an external issuer decides cannot be changed here."""

    code = "external_user"
    title = "User of an external issuer"
    default = "An external issuer vouches for this user and decides on password and role; change them there."


class FreshLoginNeeded(Forbidden):
    """A user without a password here confirms by having just logged in."""

    code = "fresh_login_needed"
    title = "Fresh login needed"
    default = "Log in through your issuer again and repeat this within ten minutes, or ask an administrator."


def access_identity(
    issuer: ExternalIssuer, header: Mapping[str, Any], claims: Mapping[str, Any], *, at: int
) -> Identity:
    """Who the verified access token of an issuer names (RFC 9068 §4). Raises ExternalTokenRefused."""
    kind = header.get("typ")
    if not isinstance(kind, str) or kind.removeprefix("application/") not in issuer.token_types:
        raise ExternalTokenRefused("This is not an access token (RFC 9068 §4); send the access token of the issuer.")
    if issuer.audience not in _audience(claims):
        raise ExternalTokenRefused("The issuer made this token for another audience; ask it for one for this service.")
    if claims.get("sub") == claims.get("client_id"):
        raise ExternalTokenRefused("This token is a program's (RFC 9068 §5); people log in, programs take an API key.")
    return _identity(issuer, claims, at=at)


def login_identity(issuer: ExternalIssuer, claims: Mapping[str, Any], *, nonce: str, at: int) -> Identity:
    """Who the verified ID token of an issuer names (OpenID Connect Core §3.1.3.7). Raises ExternalTokenRefused."""
    audience = _audience(claims)
    if issuer.client_id is None or issuer.client_id not in audience:
        raise ExternalTokenRefused("The ID token is meant for another client.")
    if ("azp" in claims or len(audience) > 1) and claims.get("azp") != issuer.client_id:
        raise ExternalTokenRefused("The ID token was made for another client (azp).")
    if claims.get("nonce") != nonce:
        raise ExternalTokenRefused("The ID token belongs to another login (nonce).")
    return _identity(issuer, claims, at=at)


def username_of(claimed: str) -> str:
    """A username that resembles what an issuer calls somebody; it need not be free."""
    local = claimed.partition("@")[0]
    fit = _UNFIT.sub("-", local).strip("-")[:USERNAME_CHARS_MAX]
    return fit if len(fit) >= USERNAME_CHARS_MIN else "user"


def username_like(name: str, ending: str) -> str:
    """The name with an ending that makes it unique."""
    return f"{name[: USERNAME_CHARS_MAX - len(ending) - 1]}-{ending}"


def check_return(path: str) -> None:
    """Raises UnfitReturn unless that is a path here: no scheme, no host, and nothing that browsers take for a slash."""
    if len(path) > RETURN_CHARS_MAX or not _RETURN.match(path):
        raise UnfitReturn


def _identity(issuer: ExternalIssuer, claims: Mapping[str, Any], *, at: int) -> Identity:
    subject, leeway = claims.get("sub"), LEEWAY_SECONDS * SECOND
    if claims.get("iss") != issuer.issuer:
        raise ExternalTokenRefused("The token comes from another issuer than its key.")
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARS_MAX or not subject.isprintable():
        raise ExternalTokenRefused("The token's claim sub is missing or names nobody.")
    expires_at, issued_at = _seconds(claims, "exp"), _seconds(claims, "iat")
    if expires_at + leeway <= at:
        raise ExternalTokenRefused("The issuer's token has expired; log in again.", reason="token_expired")
    if issued_at > at + leeway or ("nbf" in claims and _seconds(claims, "nbf") > at + leeway):
        raise ExternalTokenRefused("The issuer's token is not valid yet; check the clocks.")
    return Identity(
        issuer=issuer.issuer,
        subject=subject,
        username=_text(_claim(claims, issuer.username_claim)),
        email=_verified_email(issuer, claims),
        role=_role(issuer, claims),
        issued_at=issued_at,
        expires_at=expires_at,
    )


def _role(issuer: ExternalIssuer, claims: Mapping[str, Any]) -> Role:
    """The highest role that a value of the claim gives; who has none is an enduser."""
    claimed = _claim(claims, issuer.roles_claim)
    values = claimed if isinstance(claimed, list) else [claimed]
    given = {issuer.roles[value] for value in values if isinstance(value, str) and value in issuer.roles}
    return next((role for role in Role if role in given), Role.ENDUSER)


def _verified_email(issuer: ExternalIssuer, claims: Mapping[str, Any]) -> str:
    email = _text(_claim(claims, issuer.email_claim))
    if claims.get("email_verified") is not True:
        return ""
    try:
        check_email(email)
    except Invalid:
        return ""
    return email


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by the way to it where it stands within others, as in `realm_access.roles`."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for step in name.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _audience(claims: Mapping[str, Any]) -> list[str]:
    audience = claims.get("aud")
    return [each for each in (audience if isinstance(audience, list) else [audience]) if isinstance(each, str)]


def _seconds(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 253_402_300_800:
        raise ExternalTokenRefused(f"The token's claim {name} is missing or not a time.")
    return int(value * SECOND)

"""Users, sessions and service credentials as auth knows them, and the rules that names and passwords obey."""

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Literal

from parshall.kernel.errors import Conflict, Invalid, TokenRefused, Unauthenticated
from parshall.kernel.ids import UserId, is_user_id
from parshall.kernel.tokens import Role

USERNAME_PATTERN = r"^[a-zA-Z0-9_-]{3,30}$"
EMAIL_PATTERN = (
    r"^[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]+@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$"
)
"""What browsers accept in `<input type=email>` (HTML Living Standard §4.10.5.1.5)."""
SERVICE_NAME_PATTERN = r"^[a-z][a-z0-9-]{1,30}$"
EMAIL_CHARS_MAX = 254
PASSWORD_CHARS_MIN = 8
PASSWORD_BYTES_MAX = 1024
BATCH_USERS_MAX = 100
USERS_PER_PAGE_MAX = 1000

SETTLE_SCOPE = "accounting:settle"
READ_SCOPE = "auth:read"
SCOPES = frozenset({SETTLE_SCOPE, READ_SCOPE})
"""What a service can be allowed to do: move credits for streams; look users up."""

_USERNAME = re.compile(USERNAME_PATTERN.removesuffix("$") + r"\Z")
_EMAIL = re.compile(EMAIL_PATTERN.removesuffix("$") + r"\Z")
_SERVICE_SECRET = re.compile(r"[!-~]{32,200}\Z")
_SERVICE_NAME = re.compile(SERVICE_NAME_PATTERN.removesuffix("$") + r"\Z")

Column = Literal["id", "username_key", "email_key"]

# ── Values ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A person who can log in. `created_at` is in microseconds since the epoch."""

    id: UserId
    username: str
    email: str
    role: Role
    is_verified: bool
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A user with the hash that a password must match."""

    user: User
    password_hash: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a login or a refresh hands out; `expires_in` is the access token's life in seconds."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int
    user: User


@dataclass(frozen=True, slots=True, kw_only=True)
class NewUser:
    """A user as an administrator asks for one; nothing is checked yet."""

    username: str
    email: str
    password: str = field(repr=False)
    role: Role = Role.ENDUSER


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service that may call others as itself. `created_at` is in microseconds since the epoch."""

    name: str
    scopes: frozenset[str]
    created_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceToken:
    """The answer to a client credentials request (RFC 6749 §4.4.3); `expires_in` is in seconds."""

    access_token: str = field(repr=False)
    expires_in: int
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key that signs access tokens; `kid` is its RFC 7638 thumbprint."""

    kid: str
    private_pem: str = field(repr=False)
    created_at: int


# ── Refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


class MalformedUsername(Invalid):
    """A username that does not match USERNAME_PATTERN."""

    code = "malformed_username"
    title = "Malformed username"
    default = "A username has 3 to 30 letters, digits, hyphens or underscores; choose such a one."


class MalformedEmail(Invalid):
    """An e-mail address that no browser form would take."""

    code = "malformed_email"
    title = "Malformed e-mail address"
    default = "That is not an e-mail address; write it like name@example.org."


class UnfitPassword(Invalid):
    """A new password that is too short, or longer than we hash."""

    code = "unfit_password"
    title = "Unfit password"
    default = f"A password has at least {PASSWORD_CHARS_MIN} characters and at most {PASSWORD_BYTES_MAX} bytes."


EITHER_TAKEN = "That username or e-mail address is taken; choose another."


class UsernameTaken(Invalid):
    """Another user has this name, in whatever case."""

    code = "username_taken"
    title = "Username taken"
    default = "That username is taken; choose another."


class EmailTaken(Invalid):
    """Another user has this address, in whatever case."""

    code = "email_taken"
    title = "E-mail address taken"
    default = "That e-mail address belongs to a user already; log in, or use another."


class LastAdmin(Invalid):
    """Without an administrator nobody could make one."""

    code = "last_admin"
    title = "Last administrator"
    default = "This is the last administrator; make another user an admin first."


class OwnAccount(Invalid):
    """Nobody deletes the account that they act with."""

    code = "own_account"
    title = "Your own account"
    default = "You cannot delete your own account; ask another administrator."


class WrongPassword(Invalid):
    """The current password that must accompany a change is not right; 400, for the access token itself is fine."""

    code = "wrong_password"
    title = "Wrong password"
    default = "The current password is not right; try again."


class WrongCredentials(Unauthenticated):
    """No such user, or not that password: one answer for both, so that names cannot be probed."""

    code = "wrong_credentials"
    title = "Login failed"
    default = "The username or password is not right; check both and try again."


class RefreshRefused(Unauthenticated):
    """A refresh token that is unknown, used, expired or revoked."""

    code = "refresh_refused"
    title = "Session over"
    default = "This session is over; log in again."


class SessionOver(TokenRefused):
    """The access token is valid and the login that it stems from has ended."""

    code = "session_over"
    title = "Session over"
    default = "The session of this access token has ended; log in again."


class UserGone(TokenRefused):
    """The access token is valid and its user no longer exists."""

    code = "user_gone"
    title = "User gone"
    default = "The user of this access token no longer exists; log in again."


class MalformedServiceName(Invalid):
    """A service name that does not match SERVICE_NAME_PATTERN."""

    code = "malformed_service_name"
    title = "Malformed service name"
    default = "A service name has 2 to 31 lower-case letters, digits or hyphens and begins with a letter."


class ServiceExists(Conflict):
    """A service of this name has a secret already; it cannot be shown again."""

    code = "service_exists"
    title = "Service exists"
    default = "A service of that name exists; revoke it first to give it a new secret."


class WeakSecret(Invalid):
    """A secret for a service that could be guessed, or that a header cannot carry."""

    code = "weak_secret"
    title = "Weak secret"
    default = "A secret has 32 to 200 printable ASCII characters without blanks; `openssl rand -hex 32` makes one."


class InvalidScope(Invalid):
    """A scope that does not exist, or that this service does not have (RFC 6749 §5.2)."""

    code = "invalid_scope"
    title = "Invalid scope"
    default = f"Ask for scopes that this service or API key has; services know {', '.join(sorted(SCOPES))}."

    def __init__(self, detail: str | None = None, /) -> None:
        """Say it in the words of RFC 6749 §5.2 too."""
        super().__init__(detail, error=self.code)


class InvalidClient(Unauthenticated):
    """The client credentials do not verify (RFC 6749 §5.2)."""

    code = "invalid_client"
    title = "Invalid client"
    default = "The client id or secret is not right; make a new one with `parshall services add`."

    def __init__(self, detail: str | None = None, /, **extra: Any) -> None:
        """Like any refusal, but in the words of RFC 6749, and naming the scheme that the token endpoint takes."""
        super().__init__(detail, error=self.code, **extra)
        self.headers = {"WWW-Authenticate": 'Basic realm="parshall"'}


# ── Rules ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_username(username: str) -> None:
    """Raises MalformedUsername. No username can be mistaken for an e-mail address or a user id."""
    if not _USERNAME.match(username):
        raise MalformedUsername(errors=[{"path": "body.username", "message": MalformedUsername.default}])


def check_email(email: str) -> None:
    """Raises MalformedEmail."""
    if len(email) > EMAIL_CHARS_MAX or not _EMAIL.match(email):
        raise MalformedEmail(errors=[{"path": "body.email", "message": MalformedEmail.default}])


def check_service_secret(secret: str) -> None:
    """Raises WeakSecret."""
    if not _SERVICE_SECRET.match(secret):
        raise WeakSecret


def check_service_name(name: str) -> None:
    """Raises MalformedServiceName."""
    if not _SERVICE_NAME.match(name):
        raise MalformedServiceName


def check_password(password: str) -> None:
    """Raises UnfitPassword for a new password that is too short or too long; only length counts (NIST 800-63B)."""
    if len(password) < PASSWORD_CHARS_MIN:
        raise UnfitPassword
    password_bytes(password)


def password_bytes(password: str) -> bytes:
    """The password as it is hashed: NFC, so that every keyboard's form of it is the same one. Raises UnfitPassword."""
    try:
        encoded = unicodedata.normalize("NFC", password).encode()
    except UnicodeEncodeError as error:
        raise UnfitPassword("A password must be text; it holds half a character (a lone surrogate).") from error
    if len(encoded) > PASSWORD_BYTES_MAX:
        raise UnfitPassword
    return encoded


def handle(who: str) -> tuple[Column, str] | None:
    """Which column `who` (an id, a username or an e-mail address) is to be sought in, and as what; None for neither."""
    if is_user_id(who):
        return "id", who
    if _USERNAME.match(who):
        return "username_key", who.lower()
    if len(who) <= EMAIL_CHARS_MAX and _EMAIL.match(who):
        return "email_key", who.lower()
    return None


def granted_scopes(held: frozenset[str], asked: str | None) -> frozenset[str]:
    """The scopes of a new token: all that are held, or those asked for (space-separated). Raises InvalidScope."""
    wanted = frozenset((asked or "").split()) or held
    if not wanted <= held:
        raise InvalidScope
    return wanted

"""API keys as auth knows them: their form, their scopes, and the rules that names and expiries obey."""

import re
import secrets
from dataclasses import dataclass, field

from parshall.kernel.clock import DAY
from parshall.kernel.errors import Conflict, Invalid, TokenRefused
from parshall.kernel.ids import UserId
from parshall.kernel.tokens import API_KEY_PREFIX, KEY_SCOPES

NAME_CHARS_MAX = 100
PER_USER_MAX = 50
DAYS_DEFAULT = 90
DAYS_MAX = 3660
TOKEN_SECONDS = 300
"""The life of an access token that a key is exchanged for."""

_ID_BYTES = 8
_SECRET_BYTES = 32
_LISTED = re.compile(rf"(?:{API_KEY_PREFIX})?([0-9a-f]{{16}})\Z")
_FORM = re.compile(rf"{API_KEY_PREFIX}([0-9a-f]{{16}})_[A-Za-z0-9_-]{{43}}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What is kept of a user's key beside its digest. Instants are in microseconds since the epoch.

    `used_day` is the day (UTC, counted from the epoch) on which it was last used.
    """

    id: str
    user_id: UserId
    name: str
    scopes: frozenset[str]
    created_at: int
    expires_at: int
    used_day: int | None = None

    @property
    def prefix(self) -> str:
        """How the key begins, which its owner knows it by; the rest is secret."""
        return f"{API_KEY_PREFIX}{self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeKey:
    """A new key with its text, which is shown this once."""

    key: ApiKey
    text: str = field(repr=False)


class MalformedKeyName(Invalid):
    """A name that is empty, too long, or not printable."""

    code = "malformed_key_name"
    title = "Malformed name of an API key"
    default = f"An API key has a name of 1 to {NAME_CHARS_MAX} printable characters; choose one that tells its use."


class UnfitExpiry(Invalid):
    """An expiry that has passed, or that is too far away."""

    code = "unfit_expiry"
    title = "Unfit expiry"
    default = f"An API key expires in the future and within {DAYS_MAX} days; choose such an instant."


class UnknownScope(Invalid):
    """A scope that API keys cannot have, or none at all."""

    code = "unknown_scope"
    title = "Unknown scope"
    default = f"An API key has one scope at least, of {', '.join(sorted(KEY_SCOPES))}."


class KeyNameTaken(Conflict):
    """The user has a key of this name."""

    code = "key_name_taken"
    title = "Name of an API key taken"
    default = "You have an API key of that name; revoke it first, or choose another name."


class TooManyKeys(Conflict):
    """The user has as many keys as anybody may have."""

    code = "too_many_keys"
    title = "Too many API keys"
    default = f"You have {PER_USER_MAX} API keys already; revoke one that is not used any more."


class ApiKeyRefused(TokenRefused):
    """A key that is unknown, wrong, expired or revoked: one answer for all, so that keys cannot be probed."""

    code = "api_key_refused"
    title = "API key refused"
    default = "The API key is not right, has expired or was revoked; make another one."


def new_key(user_id: UserId, name: str, scopes: frozenset[str], *, at: int, expires_at: int | None) -> MadeKey:
    """A fresh key that begins at `at`. Raises MalformedKeyName, UnknownScope or UnfitExpiry."""
    until = at + DAYS_DEFAULT * DAY if expires_at is None else expires_at
    if not (0 < len(name) <= NAME_CHARS_MAX and name.isprintable() and name.strip() == name):
        raise MalformedKeyName
    if not scopes or not scopes <= KEY_SCOPES:
        raise UnknownScope
    if not at < until <= at + DAYS_MAX * DAY:
        raise UnfitExpiry
    key_id = secrets.token_hex(_ID_BYTES)
    key = ApiKey(id=key_id, user_id=user_id, name=name, scopes=scopes, created_at=at, expires_at=until)
    return MadeKey(key=key, text=f"{key.prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}")


def claimed_id(text: str) -> str:
    """Which key the text claims to be; empty where it cannot be one."""
    found = _FORM.match(text)
    return found[1] if found else ""


def listed_id(named: str) -> str:
    """The id of the key that is named by its id or prefix; empty where it cannot be one."""
    found = _LISTED.match(named)
    return found[1] if found else ""


def day_of(at: int) -> int:
    """The day (UTC) of the instant `at`, counted from the epoch."""
    return at // DAY

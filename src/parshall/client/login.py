"""Who the client is: the credential that its requests carry, and when to renew it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from parshall.client.errors import ClientError, foreign

REFRESH_AHEAD_SECONDS = 60.0
REFRESH_AGAIN_SECONDS = 5.0
"""After a renewal ahead of time that failed, for as long as the token still holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a login gives: an access token, and a refresh token that works once. `expires_in` is in seconds."""

    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    expires_in: float = float("inf")

    @classmethod
    def read(cls, wire: Mapping[str, Any]) -> Self:
        """The tokens in the answer of a login or a refresh. Raises ApiError where there are none."""
        access, refresh, life = wire.get("accessToken"), wire.get("refreshToken"), wire.get("expiresIn")
        if not isinstance(access, str):
            raise foreign(200)
        return cls(
            access=access,
            refresh=refresh if isinstance(refresh, str) else None,
            expires_in=float(life) if life else float("inf"),
        )


RefreshHook = Callable[[Tokens], None]
"""Called with each new pair of tokens, so that another process can go on with them. It must not use the client."""


class Login:
    """The tokens in use. A pair is replaced as a whole, so that threads never see halves of two."""

    def __init__(
        self, tokens: Tokens | None, *, now: Callable[[], float], on_refresh: RefreshHook | None = None
    ) -> None:
        """`now` gives seconds that never run backwards. Tokens without a known life are renewed when refused."""
        self.tokens = tokens
        self._now = now
        self._on_refresh = on_refresh
        self._due = self._over = float("inf")

    @property
    def is_due(self) -> bool:
        """Whether to renew before the next request."""
        return self.can_renew and self._now() >= self._due

    @property
    def can_renew(self) -> bool:
        """Whether there is a refresh token."""
        return self.tokens is not None and self.tokens.refresh is not None

    @property
    def still_holds(self) -> bool:
        """Whether the access token has not expired yet, as far as is known."""
        return self._now() < self._over

    def keep(self, tokens: Tokens | None) -> None:
        """Go on with these; a short-lived pair is renewed after two thirds of its life."""
        self.tokens = tokens
        life = float("inf") if tokens is None else tokens.expires_in
        self._due = self._now() + max(life - REFRESH_AHEAD_SECONDS, life * 2 / 3)
        self._over = self._now() + life
        if tokens is not None and self._on_refresh is not None:
            self._on_refresh(tokens)

    def postpone(self) -> None:
        """Renewing did not work; the token still holds, so try again in a while."""
        self._due = self._now() + REFRESH_AGAIN_SECONDS


def credential(*, token: str | None, api_key: str | None, refresh_token: str | None) -> Tokens | None:
    """What the client was given to begin with. Raises ClientError for what no header can carry."""
    if api_key is not None and (token is not None or refresh_token is not None):
        raise ClientError("Give an API key or the tokens of a login, not both.")
    access = _printable(token if api_key is None else api_key)
    refresh = _printable(refresh_token)
    if access is None and refresh is None:
        return None
    return Tokens(access=access or "", refresh=refresh)


def _printable(token: str | None) -> str | None:
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ClientError("The access token has characters that no token has; give the accessToken of a login.")
    return token and token.strip()

"""Calls to auth: logging in and out, the own profile, API keys."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from parshall.client import records
from parshall.client.addresses import segment
from parshall.client.asked import Asks, asked
from parshall.client.core import Ask
from parshall.client.login import Tokens
from parshall.client.model import Account
from parshall.client.records import ApiKey, User
from parshall.client.steps import Steps


class LoginCalls(Asks):
    """What one asks of auth for oneself."""

    @asked
    def login(self, username: str, password: str) -> Steps[Account]:
        """Log in by username or e-mail address; later calls act as this user."""
        body = {"username": username, "password": password}
        ask = Ask(method="POST", path="/auth/login", body=body, anonymous=True)
        answer = yield from self._core.call(ask, _as_it_came)
        self._core.login.keep(Tokens.read(answer))
        return Account.read(answer.get("user") or {})

    @asked
    def refresh(self) -> Steps[None]:
        """Exchange the refresh token for a new pair; nothing happens without one. Calls do so by themselves in time."""
        yield from self._core.renew()

    @asked
    def logout(self) -> Steps[None]:
        """Give the refresh token up, so that nobody can use it."""
        tokens = self._core.login.tokens
        if tokens is None or tokens.refresh is None:
            return
        ask = Ask(method="POST", path="/auth/logout", body={"refreshToken": tokens.refresh})
        yield from self._core.call(ask, _as_it_came)
        self._core.login.keep(None)

    @asked
    def logout_everywhere(self) -> Steps[None]:
        """End every session of the user, this one included."""
        yield from self._core.call(Ask(method="POST", path="/auth/logout-all"), _as_it_came, repeatable=True)
        self._core.login.keep(None)

    @asked
    def sign_up(self, username: str, email: str, password: str) -> Steps[str]:
        """Become a user, where the deployment lets anybody; the id. Log in afterwards."""
        body = {"username": username, "email": email, "password": password}
        ask = Ask(method="POST", path="/auth/signup", body=body, anonymous=True)
        return (yield from self._core.call(ask, records.member("userId", str)))

    @asked
    def change_password(self, current: str, new: str) -> Steps[None]:
        """Change the own password; other sessions end, this one goes on with new tokens."""
        ask = Ask(method="POST", path="/change-password", body={"currentPassword": current, "newPassword": new})
        self._core.login.keep((yield from self._core.call(ask, Tokens.read)))

    @asked
    def profile(self) -> Steps[User]:
        """The user as auth knows them now."""
        return self._core.call(Ask(method="GET", path="/profile"), records.member("user", User))

    @asked
    def update_profile(self, *, username: str | None = None, email: str | None = None) -> Steps[User]:
        """Change the own username or e-mail address."""
        ask = Ask(method="PUT", path="/profile", body={"username": username, "email": email})
        return self._core.call(ask, records.member("user", User), repeatable=True)

    @asked
    def export_profile(self) -> Steps[dict[str, Any]]:
        """All that auth keeps of the user, secrets aside."""
        return self._core.call(Ask(method="GET", path="/profile/export"), _as_it_came)

    @asked
    def delete_profile(self, password: str) -> Steps[None]:
        """Remove the user with every session and API key, for good."""
        ask = Ask(method="DELETE", path="/profile", body={"currentPassword": password})
        yield from self._core.call(ask, _as_it_came)
        self._core.login.keep(None)

    @asked
    def api_keys(self) -> Steps[list[ApiKey]]:
        """The own API keys, eldest first, with those that have expired."""
        return self._core.call(Ask(method="GET", path="/auth/api-keys"), records.member("keys", list[ApiKey]))

    @asked
    def create_api_key(
        self, name: str, *, scopes: Sequence[str] | None = None, expires_at: datetime | None = None
    ) -> Steps[ApiKey]:
        """Make an API key; `key` is shown this once. Without `scopes` it has all, without an end it lives 90 days."""
        until = None if expires_at is None else expires_at.isoformat()
        body = {"name": name, "scopes": None if scopes is None else list(scopes), "expiresAt": until}
        return self._core.call(Ask(method="POST", path="/auth/api-keys", body=body), records.of(ApiKey))

    @asked
    def revoke_api_key(self, key_id: str) -> Steps[None]:
        """Revoke an API key by its id or prefix: auth refuses it at once, other services within half a minute."""
        yield from self._core.call(Ask(method="DELETE", path=f"/auth/api-keys/{segment(key_id)}"), _as_it_came)


def _as_it_came(answer: Mapping[str, Any]) -> dict[str, Any]:
    return dict(answer)

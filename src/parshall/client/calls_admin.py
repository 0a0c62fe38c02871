"""Calls of those who look after others: users for administrators, users' chats for supervisors."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from parshall.client import records
from parshall.client.addresses import segment
from parshall.client.asked import Asks, asked
from parshall.client.core import Ask
from parshall.client.records import Chat, MadeUser, NewUser, NumberedPage, Observation, Page, User
from parshall.client.steps import Steps


class AdminCalls(Asks):
    """What administrators and supervisors ask. A user is named by id, username or e-mail address."""

    @asked
    def users(self, query: str = "", *, page: int = 1, limit: int = 100) -> Steps[NumberedPage[User]]:
        """Users whose name or e-mail address contains `query`, eldest first. For administrators."""
        ask = Ask(method="GET", path="/admin/users", query={"query": query, "page": page, "limit": limit})
        return self._core.call(ask, records.numbered("users", User))

    @asked
    def user(self, user: str) -> Steps[User]:
        """That user. For administrators."""
        return self._core.call(Ask(method="GET", path=_user(user)), records.member("user", User))

    @asked
    def create_user(self, username: str, email: str, password: str, *, role: str = "enduser") -> Steps[str]:
        """Make a user; the id. For administrators."""
        body = {"username": username, "email": email, "password": password, "role": role}
        return self._core.call(Ask(method="POST", path="/admin/users", body=body), records.member("userId", str))

    @asked
    def create_users(self, users: Sequence[NewUser]) -> Steps[list[MadeUser]]:
        """Make many users; what became of each, in order. For administrators."""
        body = {"users": [msgspec.to_builtins(each) for each in users]}
        ask = Ask(method="POST", path="/admin/users/batch", body=body)
        return self._core.call(ask, records.member("results", list[MadeUser]))

    @asked
    def set_role(self, user: str, role: str) -> Steps[User]:
        """Give a user a role: `enduser`, `supervisor` or `admin`. For administrators."""
        ask = Ask(method="PUT", path=f"{_user(user)}/role", body={"role": role})
        return self._core.call(ask, records.member("user", User), repeatable=True)

    @asked
    def reset_password(self, user: str, password: str) -> Steps[None]:
        """Give a user another password; every session of theirs ends. For administrators."""
        ask = Ask(method="POST", path=f"{_user(user)}/reset-password", body={"newPassword": password})
        yield from self._core.call(ask, dict, repeatable=True)

    @asked
    def delete_user(self, user: str) -> Steps[None]:
        """Remove a user with every session; not oneself. For administrators."""
        yield from self._core.call(Ask(method="DELETE", path=_user(user)), dict)

    @asked
    def export_user(self, user: str) -> Steps[dict[str, Any]]:
        """All that auth keeps of a user, secrets aside. For administrators."""
        return self._core.call(Ask(method="GET", path=f"{_user(user)}/export"), _as_it_came)

    # ── Supervision ─────────────────────────────────────────────────────────────────────────────────────────────────

    @asked
    def search_users(self, query: str, *, limit: int = 20) -> Steps[list[User]]:
        """Users whose name or e-mail address contains `query`. For supervisors."""
        ask = Ask(method="GET", path="/chat/users/search", query={"query": query, "limit": limit})
        return self._core.call(ask, records.member("users", list[User]))

    @asked
    def sessions_of(
        self, user: str, query: str | None = None, *, page: int = 1, limit: int = 20
    ) -> Steps[NumberedPage[Chat]]:
        """A user's chat sessions, last used first. For supervisors."""
        path = f"/chat/users/{segment(user)}/sessions"
        ask = Ask(method="GET", path=path, query={"query": query, "page": page, "limit": limit})
        return self._core.call(ask, records.numbered("sessions", Chat))

    @asked
    def session_of(self, user: str, session_id: str) -> Steps[dict[str, Any]]:
        """A user's chat session with its messages. For supervisors; it is kept on record that it was read."""
        path = f"/chat/users/{segment(user)}/sessions/{segment(session_id)}"
        return self._core.call(Ask(method="GET", path=path), _as_it_came)

    @asked
    def observations(
        self,
        *,
        user: str | None = None,
        observer: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Steps[Page[Observation]]:
        """Who looked at whose chat, newest first. For administrators."""
        query = {"userId": user, "observerId": observer, "after": after, "limit": limit}
        ask = Ask(method="GET", path="/chat/observations", query={**query})
        return self._core.call(ask, records.page("observations", Observation))


def _user(user: str) -> str:
    return f"/admin/users/{segment(user)}"


def _as_it_came(answer: Mapping[str, Any]) -> dict[str, Any]:
    return dict(answer)

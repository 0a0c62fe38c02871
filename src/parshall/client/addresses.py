"""Where each service of a deployment answers: all at one address, or each at its own."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, urlencode

import httpx2

from parshall.client.errors import ClientError

AUTH_PATHS = ("/auth/", "/profile", "/change-password", "/admin/")
ACCOUNTING_PATHS = ("/credits/", "/streaming-sessions/", "/usage/", "/prices", "/organisations")
"""What auth and accounting answer where services are apart; all else is chat's (docs/PROTOCOL.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The address of each service, without a slash at the end."""

    auth: str
    accounting: str
    chat: str

    @classmethod
    def of(cls, url: str | None, *, auth: str | None, accounting: str | None, chat: str | None) -> Self:
        """`url` stands for every service that is not named. Raises ClientError for what cannot be an address."""
        return cls(
            auth=_address(auth if auth is not None else url),
            accounting=_address(accounting if accounting is not None else url),
            chat=_address(chat if chat is not None else url),
        )

    def at(self, path: str, query: dict[str, object] | None = None) -> str:
        """The URL of a path below `/api`; members of the query that are None are left out."""
        given = {name: value for name, value in (query or {}).items() if value is not None}
        return f"{self.serving(path)}/api{path}" + (f"?{urlencode(given, errors='replace')}" if given else "")

    def serving(self, path: str) -> str:
        """The address of the service that answers that path."""
        if path.startswith(AUTH_PATHS):
            return self.auth
        return self.accounting if path.startswith(ACCOUNTING_PATHS) else self.chat


def segment(text: str) -> str:
    """`text` as one segment of a path."""
    return quote(text, safe="", errors="replace")


def _address(url: str | None) -> str:
    try:
        parsed = httpx2.URL(url or "")
    except httpx2.InvalidURL:
        parsed = httpx2.URL("")
    if url is None or parsed.scheme not in ("http", "https") or not parsed.host:
        shown = "nothing" if url is None else repr(url)
        raise ClientError(f"{shown} is no address of a server; give one such as http://127.0.0.1:8000.")
    return url.rstrip("/")

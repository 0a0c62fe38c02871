"""What accounting and chat keep of a user, for the export of it all: asked by the user's own token."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import httpx2
from starlette.types import ASGIApp

from parshall.accounting.activity import SPAN_DAYS_MAX
from parshall.accounting.service import ENTRIES_PER_PAGE_MAX
from parshall.app.config import Settings
from parshall.chat.model import PER_PAGE_MAX
from parshall.kernel.clock import DAY, now, rfc3339
from parshall.kernel.errors import Unavailable

ANSWER_SECONDS_MAX = 30.0
PATIENCE_SECONDS_MAX = 61
"""How long one question waits where the user's requests are all used up: a window, and no longer."""

Place = ASGIApp | str
"""A service: the application that serves it in this process, or its URL."""


class Elsewhere:
    """The services beside auth, as their users see them."""

    def __init__(self, settings: Settings, *, together: ASGIApp | None) -> None:
        """Asks the application that serves all of them `together`, or each where the settings say that it is."""
        self._accounting: Place = together or settings.accounting_url
        self._chat: Place = together or settings.chat_url

    async def members(self, token: str) -> AsyncIterator[str]:
        """The members `credits` and `chat` of a JSON object, piece by piece; what fails at once fails before the first.

        A chat session that is deleted meanwhile is left out. Raises Unavailable.
        """
        pieces = self._pieces(token)
        return _joined(await anext(pieces), pieces)

    async def _pieces(self, token: str) -> AsyncGenerator[str]:
        async with _asking(self._accounting, token) as credits, _asking(self._chat, token) as chats:
            held = await _got(credits, "/api/credits/balance")
            page = await _got(chats, "/api/chat/sessions", page=1, limit=PER_PAGE_MAX)
            yield f'"credits":{{"balance":{json.dumps(held)}'
            since = rfc3339(now() - (SPAN_DAYS_MAX - 1) * DAY)
            for name, path, asked in (
                ("organisation", "/api/organisations/mine", {}),
                ("usage", "/api/usage/stats", {"startDate": since}),
            ):
                yield f',"{name}":{json.dumps(await _got(credits, path, **asked))}'
            yield ',"statement":'
            async for piece in _listed(_statement(credits)):
                yield piece
            yield '},"chat":{"sessions":'
            async for piece in _listed(_conversations(chats, page)):
                yield piece
            yield "}"


async def _statement(credits: httpx2.AsyncClient) -> AsyncIterator[Any]:
    after: int | None = 0
    while after is not None:
        page = await _got(credits, "/api/credits/statement", after=after, limit=ENTRIES_PER_PAGE_MAX)
        for entry in page["entries"]:
            yield entry
        after = page["next"]


async def _conversations(chats: httpx2.AsyncClient, page: Any) -> AsyncIterator[Any]:
    """Chat sessions with their messages; one that moves to the front while pages are turned comes once."""
    seen: set[str] = set()
    number = 1
    while page["sessions"]:
        for each in page["sessions"]:
            if each["id"] not in seen and (found := await _got(chats, f"/api/chat/sessions/{each['id']}")) is not None:
                seen.add(each["id"])
                yield found
        number += 1
        page = await _got(chats, "/api/chat/sessions", page=number, limit=PER_PAGE_MAX)


async def _listed(found: AsyncIterator[Any]) -> AsyncIterator[str]:
    """An array, written as it comes."""
    yield "["
    joint = ""
    async for each in found:
        yield f"{joint}{json.dumps(each)}"
        joint = ","
    yield "]"


async def _joined(first: str, rest: AsyncGenerator[str]) -> AsyncIterator[str]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _asking(place: Place, token: str) -> httpx2.AsyncClient:
    """A client of a service; in this process without a connection, and not counted among the user's requests."""
    headers = {"Authorization": f"Bearer {token}", "User-Agent": "parshall"}
    if isinstance(place, str):
        return httpx2.AsyncClient(base_url=place, headers=headers, timeout=ANSWER_SECONDS_MAX, trust_env=False)
    transport = httpx2.ASGITransport(app=place)
    return httpx2.AsyncClient(base_url="http://127.0.0.1", headers=headers, transport=transport)


async def _got(client: httpx2.AsyncClient, path: str, **asked: Any) -> Any:
    """The answer; None for what is not there. Raises Unavailable."""
    waited = 0
    while True:
        try:
            answer = await client.get(path, params=asked)
        except httpx2.HTTPError as error:
            raise _away() from error
        if answer.status_code == 404:
            return None
        if answer.status_code == 200:
            return answer.json()
        pause = answer.headers.get("Retry-After", "")
        if answer.status_code != 429 or not pause.isdecimal() or waited + int(pause) > PATIENCE_SECONDS_MAX:
            raise _away()
        waited += int(pause)
        await asyncio.sleep(int(pause))


def _away() -> Unavailable:
    return Unavailable("A service that keeps a part of your data cannot be reached now; export it later.")

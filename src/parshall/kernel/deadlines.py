"""How long an answer is waited for, as one service tells the next: work that nobody waits for any more is given up.

Services honour it of each other alone: it stands in front of those that have no streams, whose producers would inherit
the deadline of the request that began them.
"""

import asyncio
import re
from contextvars import ContextVar

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from parshall.kernel.errors import Unavailable
from parshall.kernel.refusals import problem

WITHIN_HEADER = "X-Answer-Within"
"""Seconds, as a decimal, from when the request is read."""
_SECONDS = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,6})?\Z")
_until: ContextVar[float | None] = ContextVar("until", default=None)


def seconds_left(most: float) -> float:
    """What may be spent on asking another service: `most` seconds, or what is left of the caller's own time."""
    until = _until.get()
    return most if until is None else max(0.0, min(most, until - asyncio.get_running_loop().time()))


class Deadlines:
    """Answers 503 once the time that the caller has named is over; what was begun by then may still be done."""

    def __init__(self, app: ASGIApp) -> None:
        """In front of `app`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        named = Headers(scope=scope).get(WITHIN_HEADER, "") if scope["type"] == "http" else ""
        if not _SECONDS.match(named):
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def begin(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        _until.set(asyncio.get_running_loop().time() + float(named))
        try:
            async with asyncio.timeout(float(named)) as limit:
                await self._app(scope, receive, begin)
        except TimeoutError:
            if has_begun or not limit.expired():
                raise
            await _refuse(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    late = Unavailable("The time for this answer is over; ask again with the same key.")
    document = problem(
        Request(scope), status=late.status, code=late.code, title=late.title, detail=late.detail, headers=late.headers
    )
    await document(scope, receive, send)

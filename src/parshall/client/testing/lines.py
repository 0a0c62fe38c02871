"""The connections of the fake deployment: streams that are read on them, and cut in the middle where that is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from parshall.client.testing.world import Answer
from parshall.kernel.recording import RawHeaders

NOTHING = -1
"""Cut before the status line."""


class Lines:
    """Every open connection, so that one can be ended without a word."""

    def __init__(self) -> None:
        """None is open."""
        self._open: dict[Any, asyncio.Transport] = {}

    def protocol(self) -> type[H11Protocol]:
        """What connections are served by: it remembers them."""
        lines = self._open

        class Remembered(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                lines[transport.get_extra_info("peername")] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                lines.pop(self.client, None)
                super().connection_lost(exc)

        return Remembered

    async def cut(self, scope: Scope, receive: Receive) -> None:
        """End a connection as a network does."""
        self._open[scope["client"]].close()
        while (await receive())["type"] != "http.disconnect":
            pass


class Reading(Response):
    """The events of a stream behind an offset, as they come."""

    def __init__(
        self,
        lines: Lines,
        stream: Answer,
        *,
        after: int = 0,
        cut_after: int | None = None,
        raw_headers: RawHeaders | None = None,
    ) -> None:
        """The connection is cut behind so many events, or before anything (NOTHING)."""
        super().__init__()
        self.raw_headers = raw_headers or []
        self._lines = lines
        self._stream = stream
        self._after = after
        self._cut_after = cut_after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send what is there, and what comes."""
        if self._cut_after == NOTHING:
            await self._lines.cut(scope, receive)
            return
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        sent = 0
        async for event in self._events():
            if sent == self._cut_after:
                self._stream.cut = True
                await self._lines.cut(scope, receive)
                return
            await send({"type": "http.response.body", "body": event, "more_body": True})
            sent += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        offset = self._after
        while True:
            running = self._stream.is_running
            for event in self._stream.frames(offset):
                offset += 1
                yield event
            if not running:
                return
            await asyncio.sleep(self._stream.seconds_to_wait())

"""Clients that do what a good client does: ask once, and come back behind the last event until the stream has ended."""

import asyncio
from dataclasses import dataclass, field

import aiohttp

from parshall.kernel.sse import Event, EventParser

TRIES_MAX = 400
PAUSE_SECONDS = 0.1
TERMINAL = ("done", "error")


@dataclass(kw_only=True)
class Follower:
    """One client and its one stream."""

    token: str
    session: str
    stream_id: str
    message: str = ""
    """The question; without one it only reads what somebody else has asked for."""
    events: list[Event] = field(default_factory=list)
    connections: int = 0
    broken: list[str] = field(default_factory=list)
    """Answers that were no end of a stream: what cut the connection short."""
    refused: int = 0
    """The status that said that the stream came to nothing, if any."""

    @property
    def ended(self) -> bool:
        return bool(self.events) and self.events[-1].event in TERMINAL

    async def follow(self, http: aiohttp.ClientSession, first: str, then: str | None = None) -> "Follower":
        """Ask at the URL `first`, come back there or at `then`, until the end."""
        url = first
        for _ in range(TRIES_MAX):
            try:
                await self._read(http, url)
            except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
                self.broken.append(f"{type(error).__name__}: {error}")
            if self.ended or self.refused:
                return self
            url = then or first
            await asyncio.sleep(PAUSE_SECONDS)
        raise AssertionError(f"{self.stream_id} has not ended: {self.events[-1:]} {self.broken}")

    async def _read(self, http: aiohttp.ClientSession, url: str) -> None:
        self.connections += 1
        headers = {"Authorization": f"Bearer {self.token}", "Last-Event-ID": str(len(self.events))}
        if self.connections == 1 and self.message:
            headers["X-Streaming-Session-Id"] = self.stream_id
            path, body = f"/api/chat/sessions/{self.session}/stream", {"message": self.message}
            request = http.post(url + path, json=body, headers=headers)
        else:
            request = http.get(f"{url}/api/chat/streams/{self.stream_id}", headers=headers)
        async with request as answer:
            if answer.status != 200:
                await self._refuse(answer)
                return
            parser = EventParser()
            async for chunk in answer.content.iter_any():
                self.events += [event for event in parser.feed(chunk) if event.id is not None]

    async def _refuse(self, answer: aiohttp.ClientResponse) -> None:
        """503 says try again; 404 that the stream came to nothing, unless something of it was seen before."""
        text = await answer.text()
        if answer.status == 503 and self.connections == 1 and self.message:
            self.connections = 0  # not begun: asked again
        elif answer.status != 503:
            assert answer.status == 404 and not self.events, f"{answer.status} {text}"
            self.refused = answer.status

"""A stream on which nothing happens: shows whether what stands in front keeps a silent connection."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from parshall.chat.http_streams import StreamResponse
from parshall.chat.streaming import SILENCE_SECONDS
from parshall.kernel import sse
from parshall.kernel.headers import STREAM_ID_HEADER
from parshall.kernel.http import User
from parshall.kernel.ids import StreamId

silence_router = APIRouter(tags=["streams"])

SECONDS_MAX = 600


class Silence:
    """A reading without events: one at its beginning, an empty piece after each silence, and one at its end."""

    def __init__(self, *, seconds: float) -> None:
        """Counts from now."""
        self.ended = False
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._begun = False
        self._interrupted = asyncio.Event()

    def __aiter__(self) -> "Silence":
        """Itself."""
        return self

    async def __anext__(self) -> bytes:
        """The next piece."""
        if not self._begun:
            self._begun = True
            return sse.notice("silence", {"seconds": self._seconds})
        left = self._until - time.monotonic()
        if self.ended or self._interrupted.is_set():
            raise StopAsyncIteration
        if left <= 0:
            self.ended = True
            return sse.notice("silence-end", {"seconds": self._seconds})
        try:
            await asyncio.wait_for(self._interrupted.wait(), min(left, SILENCE_SECONDS))
        except TimeoutError:
            return b"" if left > SILENCE_SECONDS else await anext(self)
        raise StopAsyncIteration

    def interrupt(self) -> None:
        """End it, whoever waits."""
        self._interrupted.set()

    def leave(self) -> None:
        """Nothing is held."""
        self._interrupted.set()


class _SilentResponse(StreamResponse):
    """It names no stream, since there is none."""

    def __init__(self, request: Request, silence: Silence) -> None:
        super().__init__(request, StreamId(""), silence)
        own = STREAM_ID_HEADER.encode("latin-1")
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != own]


# It stands beside the streams, so that what a proxy does to these it does to it.
@silence_router.get("/chat/streams/silence", response_class=StreamResponse, status_code=200)
async def keep_silent(
    request: Request, _user: User, seconds: Annotated[float, Query(ge=1, le=SECONDS_MAX, allow_inf_nan=False)] = 90
) -> Response:
    """Send nothing but pings for so many seconds: a test of timeouts in between. It costs nothing."""
    return _SilentResponse(request, Silence(seconds=seconds))

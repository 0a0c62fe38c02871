"""Reading one stream to its end across disconnects, restarts and outages, each event exactly once."""

import json
import random
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import httpx2

from parshall.client.errors import ApiError, StreamLost, Unreachable, refusal, why
from parshall.client.model import StreamEvent
from parshall.kernel.ids import StreamId
from parshall.kernel.sse import Event, EventParser

RETRIED_STATUSES = frozenset({502, 503, 504})
"""A deployment that restarts or a proxy in front of one: the same request may work in a moment."""

Answer = AbstractContextManager[httpx2.Response]
ReconnectHook = Callable[[int, str], None]
"""Called before each pause with the number of the attempt that follows (1, 2, …) and a few words on what broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How to reconnect: pauses that double between two bounds, until an outage without progress lasts too long."""

    pause_seconds_min: float = 0.2
    pause_seconds_max: float = 5.0
    outage_seconds_max: float = 60.0

    def pause(self, attempt: int, *, at_least: float, chance: float) -> float:
        """Seconds before attempt 1, 2, …; `chance` in [0, 1) spreads clients that were cut at the same moment."""
        doubled = self.pause_seconds_min * 2.0 ** min(attempt - 1, 20)
        return max(min(doubled, self.pause_seconds_max) * (0.5 + chance / 2), at_least * (1 + chance / 4))


class _Cut(Exception):
    """A connection that ended, or cannot be trusted, before the stream's terminal event."""


class Stream(Iterator[StreamEvent]):
    """The events of one stream, to be iterated once. Close it to stop reading; the server goes on.

    Iterating raises ApiError when the server refuses, StreamLost when reconnecting was given up.
    """

    def __init__(
        self,
        stream_id: StreamId,
        *,
        start: Callable[[], Answer],
        resume: Callable[[int], Answer],
        retry: Retry,
        on_reconnect: ReconnectHook | None = None,
    ) -> None:
        """`start` asks for the stream under `stream_id`, `resume` for what follows an offset."""
        self.id = stream_id
        """The streaming session id, known before anything is sent."""
        self.offset = 0
        """Offset of the last event delivered."""
        self._start = start
        self._resume = resume
        self._on_reconnect = on_reconnect or (lambda _attempt, _reason: None)
        self._outage = _Outage(retry)
        self._asked = False
        self._server_pause = 0.0
        self._events = self._until_the_end()

    def __next__(self) -> StreamEvent:
        """The next event. Raises StopIteration after the terminal one."""
        return next(self._events)

    def close(self) -> None:
        """Drop the connection; iterating afterwards yields nothing."""
        self._events.close()

    def _until_the_end(self) -> Generator[StreamEvent, None, None]:
        while True:
            try:
                yield from self._connection()
            except ApiError as error:
                if error.status == 404 and self._asked and self.offset == 0:
                    self._asked = False  # the request never arrived: the same id again can start only one stream
                elif self._passing(error):
                    self._wait(error.message, at_least=error.retry_after)
                else:
                    raise
            except httpx2.RequestError as error:
                self._wait(why(error))
            except (_Cut, Unreachable) as error:
                self._wait(str(error))
            else:
                return

    def _connection(self) -> Generator[StreamEvent, None, None]:
        """The new events of one connection. Raises _Cut unless the terminal event came."""
        with self._resume(self.offset) if self._asked else self._start() as response:
            if not response.is_success:
                response.read()
                raise refusal(response)
            if not response.headers.get("Content-Type", "").startswith("text/event-stream"):
                raise _Cut("something other than the server answered")
            self._outage.connected()
            for event in self._arriving(response):
                yield event
                if event.terminal:
                    return
        raise _Cut("the connection ended before the answer did")

    def _arriving(self, response: httpx2.Response) -> Iterator[StreamEvent]:
        parser = EventParser()
        for chunk in response.iter_bytes():
            try:
                parsed = list(parser.feed(chunk))
            except ValueError as error:
                raise _Cut(str(error)) from error
            if parser.retry_milliseconds is not None:
                self._server_pause = parser.retry_milliseconds / 1000
            for raw in parsed:
                event = self._fresh(raw)
                if event is not None:
                    yield event

    def _fresh(self, raw: Event) -> StreamEvent | None:
        """The event if it is the next one; None for one already delivered. Raises _Cut where one is missing.

        An event without an offset of its own is not of the log, so nothing could make its delivery happen once.
        """
        offset = int(raw.id) if raw.id.isascii() and raw.id.isdigit() and len(raw.id) < 19 else 0
        if offset <= self.offset:
            return None
        if offset != self.offset + 1:
            raise _Cut(f"events are missing after {self.offset}")
        try:
            data = json.loads(raw.data)
        except ValueError as error:
            raise _Cut("an event arrived damaged") from error
        if not isinstance(data, dict):
            raise _Cut("an event arrived damaged")
        self.offset = offset
        self._outage.over()
        return StreamEvent(offset=offset, event=raw.event, data=data)

    def _passing(self, error: ApiError) -> bool:
        """Whether waiting may help: being told to slow down does not end a stream that has begun."""
        return error.status in RETRIED_STATUSES or (error.status == 429 and self._asked)

    def _wait(self, reason: str, *, at_least: float = 0.0) -> None:
        self._asked = True
        pause = self._outage.next_pause(at_least=max(at_least, self._server_pause))
        if pause is None:
            kept = "was answered" if self.offset else "it may have answered"
            raise StreamLost(
                f"The stream could not be read ({reason}); the server keeps what {kept} as {self.id}.",
                stream_id=self.id,
            )
        self._on_reconnect(self._outage.attempts, reason)
        time.sleep(pause)


class _Outage:
    """How often and how long a stream has been cut off since its last event.

    Time while connected does not count: a model may think for minutes between two events.
    """

    def __init__(self, retry: Retry) -> None:
        self.attempts = 0
        self._retry = retry
        self._seconds = 0.0
        self._since: float | None = None

    def next_pause(self, *, at_least: float) -> float | None:
        """Seconds to wait before the next attempt; None once the outage has lasted too long."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        left = self._retry.outage_seconds_max - self._seconds - (now - self._since)
        if left <= 0:
            return None
        self.attempts += 1
        chance = random.random()  # noqa: S311 - spreads load, guards nothing
        return min(self._retry.pause(self.attempts, at_least=at_least, chance=chance), left)

    def connected(self) -> None:
        """The server answers again; whether it gets further is yet to be seen."""
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
            self._since = None

    def over(self) -> None:
        """An event came."""
        self.attempts, self._seconds, self._since = 0, 0.0, None

"""The driver that awaits: it performs the steps of calls and streams over an asynchronous client of httpx2."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self, TypeVar

import httpx2

from parshall.client.core import Core
from parshall.client.errors import ClientError
from parshall.client.http import answered, broken
from parshall.client.model import StreamEvent
from parshall.client.reading import Progress, Reading
from parshall.client.steps import Alone, Answer, Broken, Ended, Failure, Pause, Read, Send, Step, Steps, go_on

T = TypeVar("T")


class Awaiting:
    """Runs steps on the event loop; any number of tasks of one loop may do so at once."""

    def __init__(self, core: Core, http: httpx2.AsyncClient) -> None:
        """Connections are `http`'s; what goes alone waits for a lock."""
        self._core = core
        self._http = http
        self._lock = asyncio.Lock()
        self._going: set[asyncio.Task[None]] = set()
        """What goes alone: a caller that is cancelled leaves it to `_settle`."""

    async def _run(self, steps: Steps[T]) -> T:
        hands = _Hands(self._http, self)
        try:
            step = go_on(steps, None)
            while not isinstance(step, Ended):
                step = go_on(steps, await hands.attempt(step))
            return step.value
        finally:
            await hands.drop()

    async def _alone(self, steps: Steps[None]) -> None:
        """A renewal that is cancelled half way would lose the new tokens, and the old ones no longer work."""

        async def in_turn() -> None:
            async with self._lock:
                await self._run(steps)

        task = asyncio.create_task(in_turn())
        self._going.add(task)
        task.add_done_callback(self._gone)
        await asyncio.shield(task)

    def _gone(self, task: "asyncio.Task[None]") -> None:
        self._going.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has been told

    async def _settle(self) -> None:
        await asyncio.gather(*self._going, return_exceptions=True)


class _Hands:
    """Performs steps one after the other, and holds the one connection that they may have open."""

    def __init__(self, http: httpx2.AsyncClient, owner: Awaiting) -> None:
        self._http = http
        self._owner = owner
        self._response: httpx2.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def attempt(self, step: Step) -> Any:
        """What came of the step: what the steps go on with, or why it failed."""
        try:
            return await self._perform(step)
        except httpx2.HTTPError as error:
            return Failure(broken(error))
        except (Broken, ClientError) as error:
            return Failure(error)

    async def _perform(self, step: Step) -> Any:
        match step:
            case Send():
                return await self._send(step)
            case Read():
                return b"" if self._chunks is None else await anext(self._chunks, b"")
            case Pause():
                await self.drop()
                await asyncio.sleep(step.seconds)
            case Alone():
                await self._owner._alone(step.steps)
        return None

    async def _send(self, step: Send) -> Answer:
        await self.drop()
        request = self._http.build_request(step.method, step.url, headers=step.headers, content=step.content)
        response = await self._http.send(request, stream=step.stream)
        if step.stream:
            self._response, self._chunks = response, response.aiter_bytes()
        return answered(response, body=b"" if step.stream else response.content)

    async def drop(self) -> None:
        """Close the connection that is open, if any."""
        response, self._response, self._chunks = self._response, None, None
        if response is not None:
            await response.aclose()


class AsyncStream(Progress, AsyncIterator[StreamEvent]):
    """The events of one stream, to be iterated once, by one task. Close it to stop reading; the server goes on.

    Iterating raises ApiError when the server refuses, StreamLost when reconnecting was given up. A wait for the next
    event may be cancelled, by a timeout for example; the next wait goes on where it stood.
    """

    def __init__(self, reading: Reading, client: Awaiting) -> None:
        """Nothing is sent before the first event is asked for."""
        super().__init__(reading)
        self._hands = _Hands(client._http, client)

    async def __aenter__(self) -> Self:
        """The stream itself; leaving drops the connection."""
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Close."""
        await self.aclose()

    async def __anext__(self) -> StreamEvent:
        """The next event. Raises StopAsyncIteration after the terminal one."""
        try:
            step = go_on(self._steps, self._came)
            while not isinstance(step, Ended | StreamEvent):
                # Should the wait be cancelled, the next one goes on from the last event delivered.
                self._came = None if isinstance(step, Pause) else Failure(Broken("reading was interrupted"))
                step = go_on(self._steps, await self._hands.attempt(step))
            self._came = None
        except Exception:
            self._came = None
            await self._hands.drop()
            raise
        except BaseException:
            await self._hands.drop()
            raise
        if isinstance(step, Ended) or step.terminal:
            await self._hands.drop()
        if isinstance(step, Ended):
            raise StopAsyncIteration
        return self._delivered(step)

    async def aclose(self) -> None:
        """Drop the connection; iterating afterwards yields nothing."""
        self._came = None
        self._steps.close()
        await self._hands.drop()

"""The driver that blocks: it performs the steps of calls and streams over a client of httpx2."""

import threading
import time
from collections.abc import Iterator
from typing import Any, Self, TypeVar

import httpx2

from parshall.client.core import Core
from parshall.client.errors import ClientError
from parshall.client.http import answered, broken
from parshall.client.model import StreamEvent
from parshall.client.reading import Progress, Reading
from parshall.client.steps import Alone, Answer, Broken, Ended, Failure, Pause, Read, Send, Step, Steps, go_on

T = TypeVar("T")


class Blocking:
    """Runs steps in the calling thread; any number of threads may do so at once."""

    def __init__(self, core: Core, http: httpx2.Client) -> None:
        """Connections are `http`'s; what goes alone waits for a lock."""
        self._core = core
        self._http = http
        self._lock = threading.Lock()

    def _run(self, steps: Steps[T]) -> T:
        hands = _Hands(self._http, self)
        try:
            step = go_on(steps, None)
            while not isinstance(step, Ended):
                step = go_on(steps, hands.attempt(step))
            return step.value
        finally:
            hands.drop()

    def _alone(self, steps: Steps[None]) -> None:
        with self._lock:
            self._run(steps)


class _Hands:
    """Performs steps one after the other, and holds the one connection that they may have open."""

    def __init__(self, http: httpx2.Client, owner: Blocking) -> None:
        self._http = http
        self._owner = owner
        self._response: httpx2.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def attempt(self, step: Step) -> Any:
        """What came of the step: what the steps go on with, or why it failed."""
        try:
            return self._perform(step)
        except httpx2.HTTPError as error:
            return Failure(broken(error))
        except (Broken, ClientError) as error:
            return Failure(error)

    def _perform(self, step: Step) -> Any:
        match step:
            case Send():
                return self._send(step)
            case Read():
                return next(self._chunks, b"")
            case Pause():
                self.drop()
                time.sleep(step.seconds)
            case Alone():
                self._owner._alone(step.steps)
        return None

    def _send(self, step: Send) -> Answer:
        self.drop()
        request = self._http.build_request(step.method, step.url, headers=step.headers, content=step.content)
        response = self._http.send(request, stream=step.stream)
        if step.stream:
            self._response, self._chunks = response, response.iter_bytes()
        return answered(response, body=b"" if step.stream else response.content)

    def drop(self) -> None:
        """Close the connection that is open, if any."""
        response, self._response, self._chunks = self._response, None, iter(())
        if response is not None:
            response.close()


class Stream(Progress, Iterator[StreamEvent]):
    """The events of one stream, to be iterated once, by one thread. Close it to stop reading; the server goes on.

    Iterating raises ApiError when the server refuses, StreamLost when reconnecting was given up.
    """

    def __init__(self, reading: Reading, client: Blocking) -> None:
        """Nothing is sent before the first event is asked for."""
        super().__init__(reading)
        self._hands = _Hands(client._http, client)

    def __enter__(self) -> Self:
        """The stream itself; leaving drops the connection."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close."""
        self.close()

    def __next__(self) -> StreamEvent:
        """The next event. Raises StopIteration after the terminal one."""
        try:
            step = go_on(self._steps, self._came)
            while not isinstance(step, Ended | StreamEvent):
                # Should the wait be interrupted, the next one goes on from the last event delivered.
                self._came = None if isinstance(step, Pause) else Failure(Broken("reading was interrupted"))
                step = go_on(self._steps, self._hands.attempt(step))
            self._came = None
        except Exception:
            self._came = None
            self._hands.drop()
            raise
        except BaseException:
            self._hands.drop()
            raise
        if isinstance(step, Ended) or step.terminal:
            self._hands.drop()
        if isinstance(step, Ended):
            raise StopIteration
        return self._delivered(step)

    def close(self) -> None:
        """Drop the connection; iterating afterwards yields nothing."""
        self._came = None
        self._steps.close()
        self._hands.drop()

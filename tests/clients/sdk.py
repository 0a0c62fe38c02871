"""The Python client of this project as tests use it: the asynchronous one behind the face of the one that blocks."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

from parshall.client import AsyncClient, AsyncStream, Client, Retry, StreamEvent

QUICK = Retry(pause_seconds_min=0.02, pause_seconds_max=0.3, outage_seconds_max=100)
"""Patient too: a server may take half a minute to start on a busy machine."""
Kind = Literal["blocking", "awaiting"]
KINDS: tuple[Kind, ...] = ("blocking", "awaiting")


class _AwaitedStream(Iterator[StreamEvent]):
    def __init__(self, stream: AsyncStream, run: Callable[[Any], Any]) -> None:
        self._stream = stream
        self._run = run

    def __next__(self) -> StreamEvent:
        event = self._run(_next(self._stream))
        if event is None:
            raise StopIteration
        return event  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        self._run(self._stream.aclose())


async def _next(stream: AsyncStream) -> StreamEvent | None:
    return await anext(stream, None)


class _Awaited:
    def __init__(self, client: AsyncClient, run: Callable[[Any], Any]) -> None:
        self._client = client
        self._run = run

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def call(*args: Any, **named: Any) -> Any:
            made = found(*args, **named)
            return self._run(made) if inspect.iscoroutine(made) else _AwaitedStream(made, self._run)

        return call


@contextlib.contextmanager
def client_of(kind: Kind, url: str | None = None, **options: Any) -> Iterator[Any]:
    """A client of that kind; both are used alike."""
    options = {"retry": QUICK} | options
    if kind == "blocking":
        with Client(url, **options) as blocking:
            yield blocking
        return
    with asyncio.Runner() as runner:
        awaiting = AsyncClient(url, **options)
        yield _Awaited(awaiting, runner.run)
        runner.run(awaiting.aclose())


def text_of(events: list[StreamEvent]) -> str:
    """The answer that the chunks spell."""
    return "".join(event.text for event in events)

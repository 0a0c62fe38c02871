"""One definition of each call for both clients: its steps, run at once by one that blocks, awaited by the other."""

import uuid
from collections.abc import Callable, Coroutine
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from parshall.client.awaiting import AsyncStream, Awaiting
from parshall.client.blocking import Blocking, Stream
from parshall.client.core import Ask, Core, Members
from parshall.client.reading import Reading
from parshall.client.steps import Steps

P = ParamSpec("P")
T = TypeVar("T")


class Asks:
    """The base of the classes that define calls."""

    _core: Core

    def _change(self, method: str, path: str, body: Members, key: str | None, read: Callable[[Members], T]) -> Steps[T]:
        """A change of credits bears one key through every repetition: the ledger gives the first answer again."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return self._core.call(Ask(method=method, path=path, body=body, headers=headers), read, repeatable=True)


class asked(Generic[P, T]):  # noqa: N801 - a decorator
    """A call: what it decorates gives the steps. `Client` runs them and returns T; of `AsyncClient` it is awaited."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        """The docstring of `steps` is the call's."""
        self._steps = steps
        update_wrapper(self, steps)  # type: ignore[arg-type] # a callable once it is bound

    @overload
    def __get__(self, client: None, owner: type) -> "asked[P, T]": ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """The call as a method of the client."""
        if client is None:
            return self

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client._run(self._steps(client, *args, **kwargs))

        return update_wrapper(call, self._steps)


class opened(Generic[P]):  # noqa: N801 - a decorator
    """A call that gives a stream: what it decorates prepares the reading, which begins with the first event."""

    def __init__(self, reading: Callable[Concatenate[Any, P], Reading]) -> None:
        """The docstring of `reading` is the call's."""
        self._reading = reading
        update_wrapper(self, reading)  # type: ignore[arg-type] # a callable once it is bound

    @overload
    def __get__(self, client: None, owner: type) -> "opened[P]": ...
    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, Stream]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, AsyncStream]: ...
    def __get__(self, client: Any, owner: type) -> Any:
        """The call as a method of the client."""
        if client is None:
            return self
        kind = Stream if isinstance(client, Blocking) else AsyncStream

        def call(*args: P.args, **kwargs: P.kwargs) -> Any:
            return kind(self._reading(client, *args, **kwargs), client)

        return update_wrapper(call, self._reading)

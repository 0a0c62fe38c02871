"""Sending a piece of a response at once, from wherever it comes to be, where the server can take it without waiting."""

from collections.abc import Callable

from starlette.types import Scope

PUSHES = "parshall.pushes"
"""The ASGI extension of a server that takes pieces of a body besides `send`: `{"push": a Push}`."""

Push = Callable[[bytes], bool]
"""Writes a piece of the body of a response that has begun. False where that would have to be waited for, or cannot be
any more: then nothing was written, and the piece goes the way of `await send`.
"""


def push_of(scope: Scope) -> Push | None:
    """The way to write at once, where the server has one."""
    extension = scope.get("extensions", {}).get(PUSHES)
    return None if extension is None else extension["push"]


def pushing(scope: Scope, push: Push) -> Scope:
    """The scope of the same request, with that way to write."""
    return {**scope, "extensions": {**scope.get("extensions", {}), PUSHES: {"push": push}}}

"""`parshall`, killed with -9 at a named point of the first stream that it is asked for."""

# PARSHALL_TEST_DIES names the point as MODULE:CLASS.METHOD:before|after:COUNT. Only the work of that stream counts: its
# task and those that it starts bear a mark, so that the sweeper, which calls the same, dies of no other stream.

import contextvars
import functools
import importlib
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

from parshall.chat import openings
from parshall.cli.main import main

marked: contextvars.ContextVar[bool] = contextvars.ContextVar("marked", default=False)
left = [0]


def die() -> None:
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(method: Callable[..., Awaitable[Any]], when: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def call(*given: Any, **named: Any) -> Any:
        if marked.get() and when == "before":
            die()
        answer = await method(*given, **named)
        if marked.get() and when == "after":
            die()
        return answer

    return call


def arm(point: str) -> None:
    place, method, when, count = point.split(":")
    owner_name, _, name = method.partition(".")
    owner = getattr(importlib.import_module(place), owner_name)
    left[0] = int(count)
    setattr(owner, name, deadly(getattr(owner, name), when))


def mark(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(ask)
    async def call(*given: Any, **named: Any) -> Any:
        marked.set(True)
        return await ask(*given, **named)

    return call


if __name__ == "__main__":
    if seconds := os.environ.get("PARSHALL_TEST_OPENING_SECONDS"):
        openings.OPENING_SECONDS_MAX = float(seconds)  # also where it is imported by name, below
        importlib.import_module("parshall.chat.streaming").OPENING_SECONDS_MAX = float(seconds)
    if point := os.environ.get("PARSHALL_TEST_DIES"):
        arm(point)
        openings.Openings.ask = mark(openings.Openings.ask)  # type: ignore[method-assign]
    main()

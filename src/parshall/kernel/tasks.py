"""Ending tasks for certain."""

import asyncio
from typing import Any

AGAIN_SECONDS = 0.5


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel the tasks until each has ended, whatever they raise.

    Once is not enough: up to Python 3.11 `asyncio.wait_for`, with which the Redis client sends, swallows a cancellation
    that comes just as what it waits for is done (CPython issue 86296). A task must bear to be cancelled while it ends.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)  # what they raised is seen

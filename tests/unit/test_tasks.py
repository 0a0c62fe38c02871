"""Ending tasks for certain."""

import asyncio

import pytest

from parshall.kernel import tasks


async def test_a_task_that_did_not_hear_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `asyncio.wait_for` does not, where what it waits for is done in the same turn of the loop."""
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while heard < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1
        await asyncio.Event().wait()

    deafest, other = asyncio.create_task(deaf()), asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    await asyncio.wait_for(tasks.end(deafest, other), 5)
    assert deafest.cancelled() and other.cancelled() and heard == 2


async def test_what_an_ending_task_raises_is_kept_from_whoever_ends_it() -> None:
    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in its end")

    task = asyncio.create_task(failing())
    await asyncio.sleep(0)
    await tasks.end(task)
    assert isinstance(task.exception(), ValueError)
    await tasks.end(task)
    await tasks.end()

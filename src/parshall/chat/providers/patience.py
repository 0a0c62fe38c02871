"""How long a provider's silence is borne, by one timer an answer: a timer a read would cost more than the read."""

import asyncio

import aiohttp


class Patience:
    """Has the reads of a response end with TimeoutError once a deadline has passed, which may be moved."""

    def __init__(self, response: aiohttp.ClientResponse, deadline: float) -> None:
        """`deadline` is an instant of the running loop's clock. End it with `close`."""
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._timer = self._loop.call_at(deadline, self._look)

    def again(self, seconds: float) -> None:
        """So many seconds from now on."""
        self._deadline = self._loop.time() + seconds
        if self._deadline < self._timer.when():
            self._timer.cancel()
            self._timer = self._loop.call_at(self._deadline, self._look)

    def close(self) -> None:
        """Wait for as long as it takes."""
        self._timer.cancel()

    def _look(self) -> None:
        """Armed anew only here: a deadline that was moved is looked at when the timer of the last one fires."""
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self._response.content.set_exception(TimeoutError())
